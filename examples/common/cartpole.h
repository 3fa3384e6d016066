/* CartPole, the world of the example programs that learn by reinforcement: a pole is to stay upright on a cart that is pushed to
 * the left or to the right. Barto, Sutton and Anderson, 1983, with the constants of Gym's CartPole-v1. */
#ifndef EXAMPLES_CARTPOLE_H
#define EXAMPLES_CARTPOLE_H

#include <stdbool.h>
#include <stdint.h>

enum { CART_SIZE = 4, CART_ACTIONS = 2, CART_LIMIT = 500 }; /* of an observation; of an episode */

typedef struct cart {
    float at[CART_SIZE]; /* position, speed, angle, angular speed */
    int age;
} cart;

void cart_reset(cart *c, uint64_t *random);
/* 20 ms with a push; has the pole fallen, or the cart left the track? */
bool cart_push(cart *c, int64_t action);

/* The mean return of episodes that run side by side, at most 128. `choose` says the actions of n observations. */
double cart_mean_return(int episodes, uint64_t random,
                        void (*choose)(void *user, int64_t n, const float *observations, int64_t *actions),
                        void *user);

#endif
