/* Measuring schedules. A move changes one knob, at every site that has it: so one compilation tries it for all kernels, which are
 * timed each by itself, run by run in turn with the best model so far. What is faster by MARGIN is kept, and the next move starts
 * from there. In the end the winners run against what the cost model takes, twice: those that are no faster there were noise. */
#include "driver/tune.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "driver/tensors.h"
#include "ir/clock.h"

/* ---- the cache ---- */

static qn_cache_key key_of(const qn_machine *machine, const char *site, qn_arena *arena)
{
    const char *texts[] = { "schedule of quern " QN_VERSION_STRING,
                            qn_arena_printf(arena, "%s, caches of %lld and %lld", machine->features,
                                            (long long)machine->l1_bytes, (long long)machine->l2_bytes),
                            site };
    return qn_cache_key_of(3, texts);
}

static bool find_kept(void *user, const char *site, qn_schedule *out)
{
    const qn_kept_schedules *kept = user;
    qn_arena *arena = qn_arena_new();
    const qn_cache_key key = key_of(kept->machine, site, arena);
    qn_code text;
    const bool found =
        qn_cache_get(kept->cache, &key, arena, &text) &&
        qn_schedule_parse(qn_arena_printf(arena, "%.*s", (int)text.size, (char *)text.data), out);
    qn_arena_free(arena);
    return found;
}

/* An entry of its own: whose key is that of a site without a name. */
const char *qn_last_tuned(const qn_cache *cache, const qn_machine *machine, qn_arena *arena)
{
    qn_code text;
    const qn_cache_key key = key_of(machine, "", arena);
    return qn_cache_get(cache, &key, arena, &text)
               ? qn_arena_printf(arena, "%.*s", (int)text.size, (char *)text.data)
               : "";
}

static void note_time(qn_cache *cache, const qn_machine *machine, qn_arena *arena)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    const char *text =
        qn_arena_printf(arena, "%lld.%09ld %ld", (long long)t.tv_sec, t.tv_nsec, (long)getpid());
    const qn_cache_key key = key_of(machine, "", arena);
    qn_cache_put(cache, &key, &(qn_code){ (void *)(uintptr_t)text, strlen(text) });
}

void qn_kept_schedules_init(qn_kept_schedules *kept, const qn_cache *cache, const qn_machine *machine)
{
    *kept = (qn_kept_schedules){ .schedules = { .find = find_kept, .user = kept },
                                 .cache = cache,
                                 .machine = machine };
}

/* ---- sites ---- */

typedef struct site {
    const char *name;
    qn_vec(const char *) nodes; /* whose kernels it is */
    qn_schedule modelled, best, tried;
    double before, after; /* seconds of a run, in the end: as modelled, as tuned */
    bool measured;
} site;

typedef enum choice { MODELLED, BEST, TRIED } choice; /* which schedules a compilation gets */

typedef struct tuner {
    const qn_module *module;
    qn_settings settings;
    const quern_tune_options *options;
    qn_arena *arena;
    qn_diags *diags;
    choice choice;
    qn_vec(site) sites;
} tuner;

static site *site_named(tuner *t, const char *name)
{
    for (size_t i = 0; i < t->sites.n; i++)
        if (strcmp(t->sites.items[i].name, name) == 0)
            return &t->sites.items[i];
    return NULL;
}

static bool find(void *user, const char *name, qn_schedule *out)
{
    tuner *t = user;
    const site *s = site_named(t, name);
    if (!s || t->choice == MODELLED)
        return false;
    *out = t->choice == BEST ? s->best : s->tried;
    return true;
}

/* A site that a compilation meets for the first time gets what its cost model takes. */
static void note(void *user, const char *name, const char *node, const qn_schedule *schedule)
{
    tuner *t = user;
    site *s = site_named(t, name);
    if (!s) {
        const site new = { .name = qn_arena_strdup(t->arena, name),
                           .modelled = *schedule,
                           .best = *schedule,
                           .tried = *schedule };
        qn_vec_push(t->arena, &t->sites, new);
        s = &t->sites.items[t->sites.n - 1];
    }
    if (t->choice == TRIED)
        s->tried = *schedule; /* what is possible of it */
    for (size_t i = 0; node && i < s->nodes.n; i++)
        if (strcmp(s->nodes.items[i], node) == 0)
            return;
    if (node)
        qn_vec_push(t->arena, &s->nodes, qn_arena_strdup(t->arena, node));
}

/* ---- a model that is measured ---- */

enum { MOST_RUNS = 201 };

typedef struct node_time {
    const char *node;
    double runs[MOST_RUNS]; /* seconds */
} node_time;

typedef struct subject {
    qn_arena *arena;
    quern_model *model;
    quern_session *session;
    qn_vec(node_time *) nodes;
    int run;
    double started, whole[MOST_RUNS];
} subject;

static node_time *time_of(subject *s, const char *node)
{
    for (size_t i = 0; i < s->nodes.n; i++)
        if (strcmp(s->nodes.items[i]->node, node) == 0)
            return s->nodes.items[i];
    node_time *new = QN_NEW(s->arena, node_time);
    new->node = node;
    qn_vec_push(s->arena, &s->nodes, new);
    return new;
}

/* Kernels are called "KERNEL NODE". */
static void trace(void *user, const char *kernel, int begin)
{
    subject *s = user;
    const double time = qn_seconds();
    const char *space = strchr(kernel, ' ');
    if (!begin && space)
        time_of(s, space + 1)->runs[s->run] += time - s->started;
    s->started = qn_seconds();
}

static void subject_free(subject *s)
{
    quern_session_free(s->session);
    quern_model_free(s->model);
    if (s->arena)
        qn_arena_free(s->arena);
    *s = (subject){ 0 };
}

static qn_status api_error(const tuner *t, int status)
{
    return status ? qn_error(t->diags, (qn_status)status, NULL, "%s", quern_last_error()) : QUERN_OK;
}

static qn_status subject_make(tuner *t, choice choice, subject *out)
{
    *out = (subject){ .arena = qn_arena_new() };
    qn_module *copy = qn_module_clone(t->module, 0, NULL);
    t->choice = choice;
    for (size_t i = 0; choice == TRIED && i < t->sites.n; i++)
        t->sites.items[i].nodes.n = 0; /* only sites of this model are compared */
    const qn_status status = qn_model_jit(copy, &t->settings, &out->model, t->diags);
    qn_module_free(copy);
    QN_TRY(status);
    QN_TRY(api_error(t, quern_session_new(out->model, t->options->entry, &out->session)));
    QN_TRY(api_error(t, qn_bind_random(out->session, 0, out->arena)));
    return api_error(t, quern_session_run(out->session)); /* pages and caches are warm behind this */
}

static qn_status run_once(const tuner *t, subject *s, int run)
{
    quern_ctx *ctx = quern_session_ctx(s->session);
    s->run = run;
    ctx->trace = trace;
    ctx->trace_user = s;
    const double start = qn_seconds();
    const int status = quern_session_run(s->session);
    s->whole[run] = qn_seconds() - start;
    ctx->trace = NULL;
    return api_error(t, status);
}

static void forget_runs(subject *s)
{
    for (size_t i = 0; i < s->nodes.n; i++)
        memset(s->nodes.items[i]->runs, 0, sizeof s->nodes.items[i]->runs);
}

/* Both by turns, for so many seconds. Gives the number of runs of each. */
static qn_status race(const tuner *t, subject *a, subject *b, double seconds, int *out_runs)
{
    enum { LEAST_RUNS = 7 };
    const double end = qn_seconds() + seconds;
    int n = 0;
    forget_runs(a);
    forget_runs(b);
    while (n < MOST_RUNS && (n < LEAST_RUNS || qn_seconds() < end)) {
        QN_TRY(run_once(t, n % 2 ? b : a, n));
        QN_TRY(run_once(t, n % 2 ? a : b, n));
        n++;
    }
    *out_runs = n;
    return QUERN_OK;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(int n, const double *times)
{
    double sorted[MOST_RUNS];
    memcpy(sorted, times, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return sorted[n / 2];
}

/* Seconds of a run in the kernels of the site's nodes; 0: they are not told apart. */
static double seconds_of(const subject *s, const site *at, int runs)
{
    double sums[MOST_RUNS] = { 0 };
    for (size_t i = 0; i < s->nodes.n; i++)
        for (size_t k = 0; k < at->nodes.n; k++)
            if (strcmp(s->nodes.items[i]->node, at->nodes.items[k]) == 0)
                for (int run = 0; run < runs; run++)
                    sums[run] += s->nodes.items[i]->runs[run];
    return median(runs, sums);
}

/* ---- moves ---- */

static const struct move {
    qn_knob knob;
    enum { SET, ADD, HALVE, DOUBLE } how;
    int64_t n;
} moves[] = {
    { QN_KNOB_TRANSFORM, SET, 1 }, { QN_KNOB_TRANSFORM, SET, 4 }, { QN_KNOB_TRANSFORM, SET, 6 },
    { QN_KNOB_VECTORS, SET, 1 },   { QN_KNOB_VECTORS, SET, 2 },   { QN_KNOB_VECTORS, SET, 3 },
    { QN_KNOB_VECTORS, SET, 4 },   { QN_KNOB_SHARED, SET, 1 },    { QN_KNOB_SHARED, SET, 2 },
    { QN_KNOB_ROWS, ADD, -2 },     { QN_KNOB_ROWS, ADD, 2 },      { QN_KNOB_DEPTH, HALVE, 0 },
    { QN_KNOB_DEPTH, DOUBLE, 0 },  { QN_KNOB_TILES, HALVE, 0 },   { QN_KNOB_TILES, DOUBLE, 0 },
    { QN_KNOB_PANELS, HALVE, 0 },  { QN_KNOB_PANELS, DOUBLE, 0 }, { QN_KNOB_AHEAD, HALVE, 0 },
    { QN_KNOB_AHEAD, DOUBLE, 0 },
};
enum { N_MOVES = sizeof moves / sizeof *moves };

static int64_t moved(const struct move *m, int64_t value)
{
    switch (m->how) {
    case SET: return m->n;
    case ADD: return value + m->n > 1 ? value + m->n : 1;
    case HALVE: return value > 1 ? value / 2 : 1;
    case DOUBLE: return 2 * value;
    }
    return value;
}

static bool same(const qn_schedule *a, const qn_schedule *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* Sets what is tried; false: it is the best at each site. */
static bool propose(tuner *t, const struct move *m)
{
    bool any = false;
    for (size_t i = 0; i < t->sites.n; i++) {
        site *s = &t->sites.items[i];
        s->tried = s->best;
        const int64_t value = s->best.knobs[m->knob], next = value > 0 ? moved(m, value) : 0;
        if (next == value)
            continue;
        s->tried.knobs[m->knob] = next;
        for (int k = m->knob + 1; k < QN_N_KNOBS && m->knob <= QN_KNOB_ROWS; k++)
            s->tried.knobs[k] = 0; /* depend on it: the cost model's */
        any = true;
    }
    return any;
}

/* A share of the time of a run that no kernel below it is looked at for, and by how much a schedule must be faster. */
#define SHARE 0.005
#define MARGIN 0.97

static qn_status try_move(tuner *t, const struct move *m, subject *best, double seconds)
{
    subject tried;
    int runs = 0;
    if (!propose(t, m))
        return QUERN_OK;
    qn_status status = subject_make(t, TRIED, &tried);
    if (!status)
        status = race(t, best, &tried, seconds, &runs);
    bool better = false;
    for (size_t i = 0; !status && i < t->sites.n; i++) {
        site *s = &t->sites.items[i];
        if (same(&s->tried, &s->best))
            continue;
        const double was = seconds_of(best, s, runs), is = seconds_of(&tried, s, runs);
        if (was > SHARE * median(runs, best->whole) && is < MARGIN * was) {
            s->best = s->tried;
            better = true;
        }
    }
    subject_free(&tried);
    if (status || !better)
        return status;
    subject_free(best);
    return subject_make(t, BEST, best);
}

/* ---- the end ---- */

static qn_status confirm(tuner *t, subject *best, double seconds, double *out_before, double *out_after)
{
    subject modelled;
    int runs = 0;
    qn_status status = subject_make(t, MODELLED, &modelled);
    if (!status)
        status = race(t, &modelled, best, seconds, &runs);
    for (size_t i = 0; !status && i < t->sites.n; i++) {
        site *s = &t->sites.items[i];
        s->before = seconds_of(&modelled, s, runs);
        s->after = seconds_of(best, s, runs);
        s->measured = s->before > SHARE * median(runs, modelled.whole);
        if (!s->measured || s->after >= s->before || same(&s->best, &s->modelled)) {
            s->best = s->modelled;
            s->after = s->before;
        }
    }
    *out_before = status ? 0 : median(runs, modelled.whole);
    *out_after = status ? 0 : median(runs, best->whole);
    subject_free(&modelled);
    return status;
}

static qn_status no_folder(const tuner *t, const char *reason)
{
    return qn_error(t->diags, QUERN_ERROR_IO, NULL,
                    "schedules are kept in the cache folder, where compilations find them, but %s", reason);
}

/* Whether there is a cache folder that can be written to: asked before anything is measured. */
static qn_status can_keep(const tuner *t)
{
    qn_cache cache;
    QN_TRY(qn_cache_open(&cache, t->settings.cache, t->diags));
    const bool is_there = cache.folder >= 0;
    const int failed = is_there && faccessat(cache.folder, ".", W_OK | X_OK, AT_EACCESS) ? errno : 0;
    qn_cache_close(&cache);
    return !is_there ? no_folder(t, "there is none: name one with --cache (cache) or QUERN_CACHE")
           : failed ? no_folder(t, qn_arena_printf(t->arena, "it cannot be written to: %s", strerror(failed)))
                    : QUERN_OK;
}

/* Winners, and where the cost model's were the best those, in place of what may have been kept before. */
static qn_status keep(tuner *t)
{
    qn_cache cache;
    qn_machine machine;
    QN_TRY(qn_cache_open(&cache, t->settings.cache, t->diags));
    QN_TRY(t->settings.backend->describe(&t->settings.target, t->arena, &machine, t->diags));
    bool kept = true;
    for (size_t i = 0; i < t->sites.n; i++) {
        const site *s = &t->sites.items[i];
        const char *text = qn_schedule_print(&s->best, t->arena);
        const qn_cache_key key = key_of(&machine, s->name, t->arena);
        const qn_code code = { (void *)(uintptr_t)text, strlen(text) };
        if (s->measured)
            kept &= qn_cache_put(&cache, &key, &code);
    }
    note_time(&cache, &machine, t->arena);
    qn_cache_close(&cache);
    return kept ? QUERN_OK : no_folder(t, "they could not be written there");
}

static void report(const tuner *t, double before, double after)
{
    if (!t->options->report)
        return;
    for (size_t i = 0; i < t->sites.n; i++) {
        const site *s = &t->sites.items[i];
        if (s->measured)
            t->options->report(t->options->report_user, s->name, s->before, s->after,
                               qn_schedule_print(&s->best, t->arena));
    }
    t->options->report(t->options->report_user, NULL, before, after, "");
}

static qn_status tune(tuner *t)
{
    const double seconds = t->options->seconds > 0 ? t->options->seconds : 20;
    void (*progress)(void *, const char *, int, int) = t->settings.progress;
    double before = 0, after = 0;
    subject best;
    QN_TRY(can_keep(t));
    t->settings.progress = NULL; /* compilations are steps of this */
    t->settings.planned = NULL;
    qn_status status = subject_make(t, MODELLED, &best);
    for (int i = 0; !status && i < N_MOVES; i++) {
        if (progress)
            progress(t->settings.progress_user, "measuring schedules", i, N_MOVES);
        status = try_move(t, &moves[i], &best, seconds / (N_MOVES + 4));
    }
    for (int i = 0; !status && i < 2;
         i++) { /* without the losers of the first time, what is left is measured again */
        subject_free(&best);
        status = subject_make(t, BEST, &best);
        if (!status)
            status = confirm(t, &best, 2 * seconds / (N_MOVES + 4), &before, &after);
    }
    subject_free(&best);
    if (status)
        return status;
    report(t, before, after);
    return keep(t);
}

qn_status qn_tune(const qn_module *module, const qn_settings *settings, const quern_tune_options *options,
                  qn_diags *diags)
{
    tuner t = {
        .module = module, .settings = *settings, .options = options, .arena = qn_arena_new(), .diags = diags
    };
    const qn_schedule_book schedules = { .find = find, .note = note, .user = &t };
    t.settings.target.jit = true;
    t.settings.schedules = &schedules;
    const qn_status status = settings->backend == &qn_backend_cpu
                                 ? tune(&t)
                                 : qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                                            "tuning measures machine code for this CPU: target 'cpu'");
    qn_arena_free(t.arena);
    return status;
}
