/* CartPole: see cartpole.h. */
#include "examples/common/cartpole.h"

#include <math.h>
#include <string.h>

#include "examples/common/common.h"

void cart_reset(cart *c, uint64_t *random)
{
    for (int i = 0; i < CART_SIZE; i++)
        c->at[i] = (float)(0.1 * example_uniform(random) - 0.05);
    c->age = 0;
}

bool cart_push(cart *c, int64_t action)
{
    const double gravity = 9.8, cart_mass = 1, pole_mass = 0.1, half_length = 0.5, force = 10, time = 0.02;
    const double mass = cart_mass + pole_mass, push = action ? force : -force;
    const double sine = sin(c->at[2]), cosine = cos(c->at[2]);
    const double pushed = (push + pole_mass * half_length * c->at[3] * c->at[3] * sine) / mass;
    const double turn =
        (gravity * sine - cosine * pushed) / (half_length * (4.0 / 3 - pole_mass * cosine * cosine / mass));
    const double change[CART_SIZE] = { c->at[1], pushed - pole_mass * half_length * turn * cosine / mass,
                                       c->at[3], turn };
    for (int i = 0; i < CART_SIZE; i++)
        c->at[i] = (float)(c->at[i] + time * change[i]);
    c->age++;
    return fabsf(c->at[0]) > 2.4f || fabsf(c->at[2]) > 0.2095f; /* 12 degrees */
}

double cart_mean_return(int episodes, uint64_t random,
                        void (*choose)(void *user, int64_t n, const float *observations, int64_t *actions),
                        void *user)
{
    enum { MOST = 128 };
    cart carts[MOST];
    float observations[MOST][CART_SIZE] = { { 0 } };
    int64_t actions[MOST];
    int total = 0;
    episodes = episodes < MOST ? episodes : MOST;
    for (int i = 0; i < episodes; i++)
        cart_reset(&carts[i], &random);
    for (int n = episodes; n;) {
        int left = 0;
        for (int i = 0; i < n; i++)
            memcpy(observations[i], carts[i].at, sizeof carts[i].at);
        choose(user, n, observations[0], actions);
        for (int i = 0; i < n; i++) {
            const bool fallen = cart_push(&carts[i], actions[i]);
            total++;
            if (!fallen && carts[i].age < CART_LIMIT)
                carts[left++] = carts[i];
        }
        n = left;
    }
    return (double)total / episodes;
}
