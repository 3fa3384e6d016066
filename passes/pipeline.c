/* The pass table and the runner: which passes there are, in which order, with the verifier between them. */
#include <string.h>

#include "ir/clock.h"
#include "passes/passes.h"

const qn_pass qn_passes[] = {
#define QN_PASS(name, help) { #name, qn_pass_##name, help },
#include "passes/pipeline.def"
    { NULL, NULL, NULL },
};

static const char *const standard[] = {
#define QN_RUN(name) #name,
#include "passes/pipeline.def"
};

static const qn_pass *find(const char *name, size_t length)
{
    for (const qn_pass *pass = qn_passes; pass->name; pass++)
        if (strlen(pass->name) == length && memcmp(pass->name, name, length) == 0)
            return pass;
    return NULL;
}

const qn_pass *qn_pass_find(const char *name)
{
    return find(name, strlen(name));
}

static qn_status run_one(const qn_pass *pass, qn_graph *graph, const qn_pass_options *options,
                         const qn_pass_hooks *hooks, int *occurrences, qn_diags *diags)
{
    const int occurrence = occurrences[pass - qn_passes]++;
    if (hooks && hooks->enabled && !hooks->enabled(hooks->user, pass, occurrence))
        return QUERN_OK;
    bool changed = false;
    const double start = qn_seconds();
    QN_TRY(pass->run(graph, options, &changed, diags));
    const double seconds = qn_seconds() - start;
    if (hooks && hooks->after)
        hooks->after(hooks->user, pass, graph, changed, seconds);
    if (changed && hooks && hooks->verify_each && qn_verify_graph(graph, diags))
        return qn_error(diags, QUERN_ERROR_INTERNAL, NULL,
                        "the pass %s (run %d of it) left an invalid graph @%s", pass->name, occurrence,
                        graph->name ? graph->name : "");
    return QUERN_OK;
}

qn_status qn_run_passes(qn_graph *graph, const char *names, const qn_pass_options *options,
                        const qn_pass_hooks *hooks, qn_diags *diags)
{
    static const qn_pass_options defaults = { .math = QN_MATH_DEFAULT };
    int occurrences[sizeof qn_passes / sizeof *qn_passes] = { 0 };
    if (!options)
        options = &defaults;
    if (!names) {
        for (size_t i = 0; i < sizeof standard / sizeof *standard; i++)
            QN_TRY(run_one(qn_pass_find(standard[i]), graph, options, hooks, occurrences, diags));
        return QUERN_OK;
    }
    /* Every name is looked up before anything runs. */
    for (int check = 1; check >= 0; check--)
        for (const char *at = names; *at;) {
            const size_t length = strcspn(at, ",");
            const qn_pass *pass = find(at, length);
            if (!pass && length > 0) {
                const char *known = "";
                for (const qn_pass *p = qn_passes; p->name; p++)
                    known =
                        qn_arena_printf(graph->module->arena, "%s%s%s", known, *known ? ", " : "", p->name);
                return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                                "there is no pass '%.*s'; the passes are %s", (int)length, at, known);
            }
            if (!check && pass)
                QN_TRY(run_one(pass, graph, options, hooks, occurrences, diags));
            at += length + (at[length] == ',');
        }
    return QUERN_OK;
}
