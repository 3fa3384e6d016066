/* Stores constant right sides of products of one row in 28 bits a number, those of bf16 in 12, where the products wait for them
 * (ir/condensed.h): what is not read from the last cache or from memory takes no time.
 *
 * Before: folded constants, and products in panels.
 * After:  matmul_packed of one row with panels of float32, or of bf16 that is multiplied as float32, which are constant, as large as
 *         the second cache or larger, read by nothing else, and of numbers with few different top bytes, have condensed panels. Others
 *         are as they were.
 *
 * Where a model is made ready to run at once a sample of the numbers is looked at (options->samples): whether all have room shows when
 * they are written, and if not, qn_expand_sampled gives the constants back.
 *
 *   %p = constant f32[96, 768, 32]                   %p = constant u8[96, 2695, 32]
 *   %r = matmul_packed %x: f32[1, 768], %p     ->    %r = matmul_packed %x, %p
 *
 * A sum has numbers with other top bytes at its end; next to an infinite one in x they make NaN. So not in strict math. */
#include <stdatomic.h>
#include <stdlib.h>

#include "ir/build.h"
#include "ir/condensed.h"
#include "passes/passes.h"
#include "passes/words.h"

enum { LEAST_BYTES = 1 << 20, TASK_BYTES = 1 << 20, OF_SAMPLE = 16 };

typedef struct candidate {
    const qn_tensor *panels, *condensed;
    qn_condensed of;
    int64_t n_panels, task_panels, first_task;
    atomic_bool unfit;
    atomic_llong n, n_others; /* of a sample: numbers, those that tables lack */
} candidate;

typedef struct condenser {
    qn_arena *arena;
    bool sample;
    qn_vec(candidate *) candidates;
} condenser;

static int64_t bytes_of(const qn_tensor *tensor)
{
    return (int64_t)tensor->bytes;
}

/* Of float32, or of bf16 that is multiplied as float32. What a loop reads again comes from the last cache: short vectors take longer to
 * put bf16 together than they wait for it (an LSTM 1.2 times with AVX2). */
static bool are_panels(const qn_type *y, int n_batch, bool in_loop, const qn_machine *machine)
{
    enum { SHORT = 32 };
    const int bytes = machine->vector_bytes;
    const int64_t lanes = bytes / QN_WORD_BYTES, width = y->dims[y->rank - 1]->value;
    if (y->dtype == QUERN_BF16)
        return y->rank == n_batch + 3 && (width == lanes || width == 2 * lanes) &&
               (in_loop ? bytes > SHORT : bytes >= SHORT);
    return y->dtype == QUERN_F32 && qn_word_panels(y, n_batch, machine) > 0;
}

/* The panels of a product that would be condensed, or NULL. */
static const qn_tensor *panels_to_condense(const qn_node *node, const qn_machine *machine)
{
    if (node->op != QN_OP_MATMUL_PACKED || node->n_operands > 2)
        return NULL;
    const qn_type *x = &node->operands[0]->type, *type = &node->results[0].type;
    const qn_tensor *panels = qn_value_constant(node->operands[1]);
    const int n_batch = (int)qn_attr_int(node, QN_ATTR_BATCH_DIMS);
    if (!panels || bytes_of(panels) < LEAST_BYTES || x->dtype != QUERN_F32 ||
        !are_panels(&panels->type, n_batch, !node->graph->name, machine))
        return NULL;
    for (int i = n_batch; i < type->rank - 1; i++)
        if (!qn_dim_is(type->dims[i], 1))
            return NULL;
    return qn_condensed_has(qn_condensed_panels(panels)) ? panels : NULL;
}

static candidate *find(const condenser *c, const qn_tensor *panels)
{
    for (size_t i = 0; i < c->candidates.n; i++)
        if (c->candidates.items[i]->panels == panels)
            return c->candidates.items[i];
    return NULL;
}

static void collect(condenser *c, const qn_graph *graph, const qn_machine *machine)
{
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_regions; i++)
            collect(c, node->regions[i], machine);
        const qn_tensor *panels = panels_to_condense(node, machine);
        if (!panels || find(c, panels))
            continue;
        candidate *new = QN_NEW(c->arena, candidate);
        new->panels = panels;
        new->of = qn_condensed_panels(panels);
        const int64_t panel_bytes = (int64_t)qn_dtype_bytes(new->of.dtype) * new->of.k *new->of.width;
        new->n_panels = bytes_of(panels) / panel_bytes;
        new->task_panels = panel_bytes < TASK_BYTES ? TASK_BYTES / panel_bytes : 1;
        qn_vec_push(c->arena, &c->candidates, new);
    }
}

static void exclude_value(const condenser *c, const qn_value *value)
{
    const qn_tensor *tensor = qn_value_constant(value);
    candidate *of = tensor ? find(c, tensor) : NULL;
    if (of)
        of->unfit = true;
}

/* What others read too, such as a table that rows are looked up in, would be there twice. */
static void exclude_shared(const condenser *c, const qn_graph *graph, const qn_machine *machine)
{
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_regions; i++)
            exclude_shared(c, node->regions[i], machine);
        const bool condensable = panels_to_condense(node, machine) != NULL;
        for (int i = 0; i < node->n_operands; i++)
            if (i != 1 || !condensable)
                exclude_value(c, node->operands[i]);
    }
    for (int i = 0; i < graph->n_outputs; i++)
        exclude_value(c, graph->outputs[i]);
}

/* Is that certain of one panel? Of a sample it shows when the constant is written. */
static void look_at(const condenser *c, candidate *of, const qn_runs *panel)
{
    if (!c->sample) {
        if (!qn_condensed_takes(of->of, panel))
            of->unfit = true;
        return;
    }
    int64_t others;
    of->n += qn_condensed_sample(of->of, panel, &others);
    of->n_others += others;
    if (others > qn_condensed_room(of->of))
        of->unfit = true;
}

/* Do lists have twice the room that the sample asks for? */
static bool sample_fits(const candidate *of)
{
    const double share = (double)qn_condensed_room(of->of) / (double)(of->of.k * of->of.width);
    return 2 * (double)of->n_others <= share * (double)of->n;
}

/* Looks at some panels of one constant, or at one of each few of these. */
static void look(void *arg, int64_t task)
{
    const condenser *c = arg;
    size_t i = c->candidates.n - 1;
    while (c->candidates.items[i]->first_task > task)
        i--;
    candidate *of = c->candidates.items[i];
    const int64_t first = (task - of->first_task) * of->task_panels, past = first + of->task_panels;
    void *scratch = malloc((size_t)(of->of.k * of->of.width) * qn_dtype_bytes(of->of.dtype));
    QN_ASSERT(scratch, "out of memory");
    for (int64_t p = first; p < past && p < of->n_panels && !of->unfit; p += c->sample ? OF_SAMPLE : 1) {
        const qn_runs panel = qn_tensor_panel(of->panels, p, false, scratch);
        look_at(c, of, &panel);
    }
    free(scratch);
}

static qn_status rewrite(condenser *c, qn_graph *graph, const qn_machine *machine, bool *changed,
                         qn_diags *diags)
{
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_regions; i++)
            QN_TRY(rewrite(c, node->regions[i], machine, changed, diags));
        const qn_tensor *panels = panels_to_condense(node, machine);
        candidate *of = panels ? find(c, panels) : NULL;
        if (!of || of->unfit || (c->sample && !sample_fits(of)))
            continue;
        if (!of->condensed)
            of->condensed = qn_tensor_condensed(graph->module, panels, c->sample);
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *y = qn_b_constant(&b, of->condensed);
        if (!y)
            return qn_diags_status(diags);
        node->operands[1] = y;
        *changed = true;
    }
    return QUERN_OK;
}

qn_status qn_pass_condense(qn_graph *graph, const qn_pass_options *options, bool *out_changed,
                           qn_diags *diags)
{
    *out_changed = false;
    if (!options->machine || options->machine->gpu || options->machine->vector_bytes < 16 ||
        options->math == QN_MATH_STRICT)
        return QUERN_OK;
    condenser c = { .arena = qn_arena_new(), .sample = options->samples };
    collect(&c, graph, options->machine);
    exclude_shared(&c, graph, options->machine);
    int64_t tasks = 0;
    for (size_t i = 0; i < c.candidates.n; i++) {
        candidate *of = c.candidates.items[i];
        of->first_task = tasks;
        tasks += (of->n_panels + of->task_panels - 1) / of->task_panels;
    }
    if (options->parallel_for)
        options->parallel_for(options->pool, look, &c, tasks);
    else
        for (int64_t i = 0; i < tasks; i++)
            look(&c, i);
    const qn_status status = rewrite(&c, graph, options->machine, out_changed, diags);
    qn_arena_free(c.arena);
    return status;
}

int qn_expand_sampled(qn_graph *graph, bool (*which)(const qn_tensor *tensor, void *user), void *user)
{
    int n = 0;
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_regions; i++)
            n += qn_expand_sampled(node->regions[i], which, user);
        const qn_tensor *tensor =
            node->op == QN_OP_MATMUL_PACKED ? qn_value_constant(node->operands[1]) : NULL;
        const qn_tensor *panels = tensor ? qn_tensor_sampled(tensor) : NULL;
        if (!panels || !which(tensor, user))
            continue;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc };
        node->operands[1] = qn_b_constant(&b, panels);
        n++;
    }
    return n;
}
