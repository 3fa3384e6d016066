#include "runtime/dist/carrier.h"

#include <stdlib.h>

static int run(const qn_started *s)
{
    return s->call(s->comm, s->in, s->out, s->n, s->dtype, s->how);
}

static void end_oldest(qn_carrier *c, int status)
{
    c->items[c->ended++].status = status;
    c->failed = c->failed ? c->failed : status;
    while (c->failed && c->ended < c->started)
        c->items[c->ended++].status = c->failed;
}

static void *carry(void *user)
{
    qn_carrier *c = user;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->ended == c->started && !c->leaves)
            pthread_cond_wait(&c->changed, &c->lock);
        if (c->ended == c->started)
            break;
        const qn_started now = c->items[c->ended];
        pthread_mutex_unlock(&c->lock);
        const int status = run(&now);
        pthread_mutex_lock(&c->lock);
        end_oldest(c, status);
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

void qn_carrier_init(qn_carrier *c, bool beside)
{
    *c = (qn_carrier){ .beside = beside };
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
}

void qn_carrier_release(qn_carrier *c)
{
    pthread_mutex_lock(&c->lock);
    c->leaves = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (c->runs)
        pthread_join(c->thread, NULL);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c->items);
}

/* Behind the others; false: no memory. */
static bool put(qn_carrier *c, const qn_started *what)
{
    if (c->started == c->capacity) {
        const size_t capacity = c->capacity ? 2 * c->capacity : 16;
        qn_started *items = realloc(c->items, capacity * sizeof *items);
        if (!items)
            return false;
        c->items = items;
        c->capacity = capacity;
    }
    c->items[c->started++] = *what;
    return true;
}

int qn_carrier_start(qn_carrier *c, const qn_started *what)
{
    pthread_mutex_lock(&c->lock);
    if (c->beside && !c->runs)
        c->runs = c->beside = pthread_create(&c->thread, NULL, carry, c) == 0;
    const bool there = put(c, what), at_once = there && !c->runs;
    if (there && c->failed)
        end_oldest(c, c->failed);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (at_once && !c->failed)
        end_oldest(c, run(what));
    return there ? QUERN_OK : QUERN_ERROR_MEMORY;
}

int qn_carrier_wait(qn_carrier *c)
{
    int status = QUERN_ERROR_ARGUMENT; /* nothing was started */
    pthread_mutex_lock(&c->lock);
    if (c->waited < c->started) {
        while (c->ended <= c->waited)
            pthread_cond_wait(&c->changed, &c->lock);
        status = c->items[c->waited++].status;
    }
    if (c->waited == c->started)
        c->waited = c->ended = c->started = 0;
    pthread_mutex_unlock(&c->lock);
    return status;
}

void qn_carrier_drain(qn_carrier *c)
{
    pthread_mutex_lock(&c->lock);
    while (c->ended < c->started)
        pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

bool qn_carrier_busy(qn_carrier *c)
{
    pthread_mutex_lock(&c->lock);
    const bool busy = c->ended < c->started;
    pthread_mutex_unlock(&c->lock);
    return busy;
}
