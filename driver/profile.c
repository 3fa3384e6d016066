/* The run is watched from outside: quern_ctx.trace says which kernel begins and ends, and a parallel_for of ours, around the
 * pool's, sees on which thread each task runs. See profile.h. */
#include "driver/profile.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdatomic.h>

#include "driver/cli.h"
#include "driver/output.h"
#include "ir/clock.h"
#include "runtime/pool.h"
#include "runtime/session.h"

/* What a thread has done of the kernel at work. Written by that thread within a parallel_for, read after it. */
typedef struct lane {
    _Alignas(64) pthread_t thread;
    int64_t tasks;
    double first, last; /* seconds: its first task's start, its last one's end */
} lane;

typedef struct event {
    const char *name;
    int row;            /* 0: the kernels; 1 + number of a lane: a thread's part */
    int64_t tasks, all; /* done in this row, of all */
    double start, end;
} event;

typedef qn_vec(event) event_list;

typedef void (*task_fn)(void *arg, int64_t i);

typedef struct profile {
    quern_ctx own; /* what the session had */
    atomic_int n_lanes;
    lane lanes[QN_POOL_MAX_THREADS]; /* the first is the caller's */
    pthread_mutex_t new_lane;
    /* the kernel at work */
    task_fn task;
    void *arg;
    int64_t n_tasks; /* that parallel_for was given; 0: the caller does them by itself */
    double started;
    event_list events;
    qn_arena *arena;
} profile;

/* ---- watching ---- */

static lane *lane_of(profile *p, pthread_t thread)
{
    int n = atomic_load_explicit(&p->n_lanes, memory_order_acquire);
    for (int i = 0; i < n; i++)
        if (pthread_equal(p->lanes[i].thread, thread))
            return &p->lanes[i];
    pthread_mutex_lock(&p->new_lane);
    n = atomic_load_explicit(&p->n_lanes, memory_order_relaxed);
    QN_ASSERT(n < QN_POOL_MAX_THREADS, "a pool of more than %d threads", QN_POOL_MAX_THREADS);
    p->lanes[n] = (lane){ .thread = thread };
    atomic_store_explicit(&p->n_lanes, n + 1, memory_order_release);
    pthread_mutex_unlock(&p->new_lane);
    return &p->lanes[n];
}

static void watched_task(void *profile_, int64_t i)
{
    profile *p = profile_;
    lane *l = lane_of(p, pthread_self());
    const double start = qn_seconds();
    p->task(p->arg, i);
    if (l->tasks++ == 0)
        l->first = start;
    l->last = qn_seconds();
}

static void watch_tasks(profile *p, task_fn task, void *arg, int64_t n)
{
    p->task = task;
    p->arg = arg;
    p->n_tasks += n;
}

static void parallel_for(void *profile_, task_fn task, void *arg, int64_t n)
{
    profile *p = profile_;
    watch_tasks(p, task, arg, n);
    p->own.parallel_for(p->own.pool, watched_task, p, n);
}

static void parallel_for_down(void *profile_, task_fn task, void *arg, int64_t n)
{
    profile *p = profile_;
    watch_tasks(p, task, arg, n);
    p->own.parallel_for_down(p->own.pool, watched_task, p, n);
}

static void add_event(profile *p, event e)
{
    qn_vec_push(p->arena, &p->events, e);
}

static void trace(void *profile_, const char *kernel, int begin)
{
    profile *p = profile_;
    const double now = qn_seconds();
    const int n_lanes = atomic_load(&p->n_lanes);
    if (begin) {
        p->n_tasks = 0;
        for (int i = 0; i < n_lanes; i++)
            p->lanes[i].tasks = 0;
        p->started = qn_seconds();
        return;
    }
    const int64_t all = p->n_tasks ? p->n_tasks : 1;
    add_event(p, (event){ kernel, 0, all, all, p->started, now });
    if (!p->n_tasks)
        add_event(p, (event){ kernel, 1, 1, 1, p->started, now });
    for (int i = 0; p->n_tasks && i < n_lanes; i++) {
        const lane *l = &p->lanes[i];
        if (l->tasks)
            add_event(p, (event){ kernel, 1 + i, l->tasks, all, l->first, l->last });
    }
}

static int run_watched(quern_session *session, profile *p, double *out_start, double *out_end)
{
    quern_ctx *ctx = quern_session_ctx(session);
    p->own = *ctx;
    lane_of(p, pthread_self());
    ctx->trace = trace;
    ctx->trace_user = p;
    if (ctx->parallel_for) {
        ctx->pool = p;
        ctx->parallel_for = parallel_for;
        ctx->parallel_for_down = ctx->parallel_for_down ? parallel_for_down : NULL;
    }
    *out_start = qn_seconds();
    const int status = quern_session_run(session);
    *out_end = qn_seconds();
    ctx->trace = p->own.trace;
    ctx->trace_user = p->own.trace_user;
    ctx->pool = p->own.pool;
    ctx->parallel_for = p->own.parallel_for;
    ctx->parallel_for_down = p->own.parallel_for_down;
    return status;
}

/* ---- the file ---- */

/* A number that JSON can say, without digits that mean nothing. */
static void add_number(cJSON *to, const char *name, double value)
{
    char text[32];
    snprintf(text, sizeof text, "%.6g", value);
    cJSON_AddRawToObject(to, name, text);
}

static cJSON *add_row(cJSON *events, const char *kind, const char *name, int row)
{
    cJSON *e = cJSON_CreateObject();
    cJSON_AddItemToArray(events, e);
    cJSON_AddStringToObject(e, "name", name);
    cJSON_AddStringToObject(e, "ph", kind);
    cJSON_AddNumberToObject(e, "pid", 1);
    cJSON_AddNumberToObject(e, "tid", row);
    return e;
}

/* Names of rows, and their order. */
static void add_row_name(cJSON *events, const char *name, int row)
{
    cJSON *named = add_row(events, "M", "thread_name", row);
    cJSON_AddStringToObject(cJSON_AddObjectToObject(named, "args"), "name", name);
    cJSON *sorted = add_row(events, "M", "thread_sort_index", row);
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(sorted, "args"), "sort_index", row);
}

static void add_times(cJSON *to, double start, double end)
{
    char text[32];
    snprintf(text, sizeof text, "%.3f", 1e6 * start); /* microseconds */
    cJSON_AddRawToObject(to, "ts", text);
    snprintf(text, sizeof text, "%.3f", 1e6 * (end - start));
    cJSON_AddRawToObject(to, "dur", text);
}

/* "GFLOP/s" and how much of what the threads of the row reach that is, in per cent. */
static void add_rate(cJSON *args, const char *name, const char *share, double rate, double peak)
{
    add_number(args, name, 1e-9 * rate);
    if (peak > 0)
        add_number(args, share, 100 * rate / peak);
}

static void add_kernel(cJSON *events, const event *e, qn_kernel_cost cost, const qn_peaks *peaks,
                       double origin)
{
    const double seconds = e->end - e->start, part = (double)e->tasks / (double)e->all;
    cJSON *to = add_row(events, "X", e->name, e->row);
    add_times(to, e->start - origin, e->end - origin);
    cJSON *args = cJSON_AddObjectToObject(to, "args");
    cJSON_AddNumberToObject(args, "tasks", (double)e->tasks);
    const double threads = e->row ? peaks->threads : 1; /* of which a row is one */
    if (cost.flops > 0 && seconds > 0)
        add_rate(args, "GFLOP/s", "% of peak GFLOP/s", cost.flops * part / seconds, peaks->flops / threads);
    if (cost.bytes > 0 && seconds > 0)
        add_rate(args, "GB/s", "% of peak GB/s", cost.bytes * part / seconds, peaks->bytes / threads);
}

static void json_free(void *text)
{
    cJSON_free(text);
}

static const char *json_text(const profile *p, int entry, const qn_model_notes *notes, const qn_peaks *peaks,
                             double start, double end)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "displayTimeUnit", "ns");
    cJSON *events = cJSON_AddArrayToObject(root, "traceEvents");
    add_row_name(events, "kernels", 0);
    const int n_lanes = atomic_load(&p->n_lanes);
    for (int i = 0; i < n_lanes; i++)
        add_row_name(events, qn_arena_printf(p->arena, "thread %d", i), 1 + i);
    cJSON *all = add_row(events, "X", "run", 0);
    add_times(all, 0, end - start);
    for (size_t i = 0; i < p->events.n; i++) {
        const event *e = &p->events.items[i];
        add_kernel(events, e, qn_model_cost_of(notes, entry, e->name), peaks, start);
    }
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    QN_ASSERT(text, "out of memory");
    qn_arena_defer(p->arena, json_free, text);
    return text;
}

static qn_status write_text(const char *text, const char *path, qn_diags *diags)
{
    qn_output output;
    QN_TRY(qn_output_open(&output, path, diags));
    fputs(text, output.file);
    putc('\n', output.file);
    return qn_output_commit(&output, diags);
}

/* The fastest of a few: one alone may have been disturbed. */
static int watch(quern_session *session, profile *p, double *out_start, double *out_end)
{
    enum { RUNS = 5 };
    const double begun = qn_seconds();
    event_list best = { 0 };
    for (int i = 0; i < RUNS && (i < 2 || qn_seconds() - begun < 1); i++) {
        double start, end;
        p->events = (event_list){ 0 };
        const int status = run_watched(session, p, &start, &end);
        if (status)
            return status;
        if (i == 0 || end - start < *out_end - *out_start) {
            best = p->events;
            *out_start = start;
            *out_end = end;
        }
    }
    p->events = best;
    return QUERN_OK;
}

qn_status qn_profile(quern_session *session, const qn_model_notes *notes, const qn_peaks *peaks,
                     const char *path, qn_arena *arena, qn_diags *diags)
{
    profile p = { .arena = arena };
    pthread_mutex_init(&p.new_lane, NULL);
    double start = 0, end = 0;
    const int status = watch(session, &p, &start, &end);
    pthread_mutex_destroy(&p.new_lane);
    if (status)
        return qn_error(diags, (qn_status)status, NULL, "%s", quern_last_error());
    if (!p.events.n)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "this model has no kernels to look at: choose --target cpu");
    return write_text(json_text(&p, session->entry_index, notes, peaks, start, end), path, diags);
}
