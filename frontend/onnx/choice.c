/* An If whose branches' results can't be one value: they have different ranks, say, or are sequences of different lengths.
 *
 *   y = If(p) { squeeze x } { x }             z = If(p) { y = squeeze x; a = f(y); return g(a) } { a = f(x); return g(a) }
 *   a = f(y)                            ->    h(z)
 *   z = g(a)
 *   h(z)
 *
 * Its regions stay open: nodes that read what is in them are imported into both, as long as something that is still to be read
 * differs. Other nodes go where they would, which is in front of the if. Where the scope ends with an open choice, and has the
 * graph of the scope around it, the choice goes on there. */
#include <string.h>

#include "frontend/onnx/body.h"

/* The most nodes that sides have: several choices at once multiply them. */
enum { MOST_CHOSEN = 20000 };

/* A name that is in both sides, and the last node that reads it. */
typedef struct open_name {
    const char *name;
    size_t last;
} open_name;

struct qn_onnx_choice {
    qn_onnx_node *n;
    qn_onnx_scope *sides[2];     /* in the regions */
    const char *const *names[2]; /* what the node's outputs are called in them, until they have a scope */
    qn_vec(open_name) open;
    const char *problem; /* why it is one; else NULL, and it is closed at once */
};

/* ---- messages that may not count ---- */

qn_onnx_trial *qn_onnx_trial_begin(qn_onnx_import *im)
{
    qn_onnx_trial *trial = QN_NEW(im->arena, qn_onnx_trial);
    *trial = (qn_onnx_trial){ .diags = im->diags,
                              .needs = im->needs,
                              .needs_shapes = im->needs_shapes,
                              .n_needs_dims = im->needs_dims.n };
    qn_diags_init(&trial->mine, im->diags->arena); /* they may become others, and outlive the module */
    im->diags = &trial->mine;
    return trial;
}

qn_status qn_onnx_trial_end(qn_onnx_import *im, qn_onnx_trial *trial)
{
    im->diags = trial->diags;
    im->needs = trial->needs;
    im->needs_shapes = trial->needs_shapes;
    im->needs_dims.n = trial->n_needs_dims;
    return qn_diags_status(&trial->mine);
}

/* ---- one that is decided ---- */

/* The If of that number among all nodes takes that branch. */
struct qn_onnx_decision {
    int64_t number;
    int branch;
    const struct qn_onnx_decision *next; /* of a smaller number */
};

int qn_onnx_decided(const qn_onnx_node *n)
{
    for (const struct qn_onnx_decision *d = n->im->decisions; d; d = d->next)
        if (d->number == n->number)
            return d->branch;
    return -1;
}

/* The import starts again, with that branch in the place of the If. What was decided of nodes behind it may have other numbers then. */
static void decide(qn_onnx_import *im, const qn_onnx_choice *c, int branch)
{
    const struct qn_onnx_decision *before = im->decisions;
    while (before && before->number >= c->n->number)
        before = before->next;
    struct qn_onnx_decision *d =
        QN_NEW(im->diags->arena, struct qn_onnx_decision); /* outlives this attempt */
    *d = (struct qn_onnx_decision){ c->n->number, branch, before };
    im->decisions = d;
    im->restart = true;
}

/* ---- what differs ---- */

/* Is it a tensor that an if may give? */
static bool is_result(const qn_onnx_value *v)
{
    return v && v->kind == QN_ONNX_TENSOR;
}

/* May they be one value? loose: even if some extents are never equal. */
static bool can_join(qn_dims *dims, const qn_onnx_value *x, const qn_onnx_value *y, bool loose)
{
    return is_result(x) && is_result(y) && x->strings == y->strings &&
           (qn_onnx_can_be_equal(dims, &x->type, &y->type) ||
            (loose && x->type.dtype == y->type.dtype && x->type.rank == y->type.rank));
}

static const char *describe(const qn_onnx_import *im, const qn_onnx_value *v)
{
    return !v                          ? "of no single type"
           : v->kind == QN_ONNX_NONE   ? "none"
           : v->kind != QN_ONNX_TENSOR ? "a sequence"
           : v->strings                ? "a tensor of strings"
                                       : qn_type_print(&v->type, im->arena);
}

/* What the name is in a side; NULL where that has no single value of it. */
static qn_onnx_value *find_in(qn_onnx_scope *side, const char *name)
{
    const qn_onnx_choice *inner = side->choice;
    for (size_t i = 0; inner && i < inner->open.n; i++)
        if (!strcmp(inner->open.items[i].name, name))
            return NULL;
    return qn_onnx_scope_find(side, name);
}

static bool node_reads(const Onnx__Node *node, const char *name, int depth)
{
    for (size_t i = 0; i < node->n_input; i++)
        if (!strcmp(node->input[i], name))
            return true;
    for (size_t i = 0; i < node->n_attribute; i++) {
        const Onnx__Graph *g = node->attribute[i]->g;
        for (size_t k = 0; g && depth < QN_ONNX_MAX_DEPTH && k < g->n_node; k++)
            if (node_reads(g->node[k], name, depth + 1))
                return true;
        for (size_t k = 0; g && k < g->n_output; k++)
            if (!strcmp(g->output[k]->name, name))
                return true;
    }
    return false;
}

static const Onnx__Node *node_at(const qn_onnx_nodes *nodes, size_t i)
{
    return nodes->nodes[nodes->order ? nodes->order[i] : i];
}

static bool reads_open(const qn_onnx_choice *c, const Onnx__Node *node)
{
    for (size_t i = 0; i < c->open.n; i++)
        if (node_reads(node, c->open.items[i].name, 0))
            return true;
    return false;
}

/* Node i has made the name, in both sides. */
static void add_open(qn_onnx_choice *c, const qn_onnx_nodes *nodes, size_t i, const char *name)
{
    size_t last = nodes->n;
    for (size_t k = 0; k < nodes->n_outputs; k++)
        if (!strcmp(nodes->outputs[k], name))
            last = nodes->n + 1;
    while (last <= nodes->n && --last > i && !node_reads(node_at(nodes, last), name, 0))
        ;
    if (*name && last > i)
        qn_vec_push(c->n->im->arena, &c->open, ((open_name){ name, last }));
}

/* Only what a node behind i reads stays open. */
static void drop_unread(qn_onnx_choice *c, size_t i)
{
    size_t n = 0;
    for (size_t k = 0; k < c->open.n; k++)
        if (c->open.items[k].last > i)
            c->open.items[n++] = c->open.items[k];
    c->open.n = n;
}

/* ---- opening ---- */

/* The side as one in the scope `to`, with the node's outputs under the names that they have there. */
static qn_onnx_scope *move_side(qn_onnx_scope *to, qn_onnx_scope *from, const qn_onnx_nodes *nodes, size_t at,
                                const char *const *names)
{
    const Onnx__Node *node = node_at(nodes, at);
    qn_onnx_scope *side = qn_arena_copy(to->im->arena, from, sizeof *from);
    side->parent = to;
    side->frame = to->frame;
    side->opsets = to->opsets;
    side->n_opsets = to->n_opsets;
    side->depth = to->depth + 1;
    side->names = NULL;
    side->n_names = side->name_capacity = 0;
    side->hands_over = false;
    qn_onnx_choice *inner = from->choice;
    if (inner)
        inner->open.n = 0;
    for (int k = 0; inner && k < 2; k++)
        inner->sides[k] = move_side(side, inner->sides[k], nodes, at, names);
    for (size_t i = 0; i < node->n_output; i++)
        if (!*node->output[i])
            continue;
        else if (inner)
            add_open(inner, nodes, at, node->output[i]);
        else {
            qn_onnx_value *v = qn_onnx_scope_find(from, names[i]);
            v = v ? v : qn_onnx_value_new(to->im, QN_ONNX_FAILED);
            qn_onnx_scope_define(side, node->output[i], v, NULL);
        }
    return side;
}

/* The choice that node `at` has opened, or handed over, is open in the scope. */
static void take_choice(qn_onnx_scope *scope, qn_onnx_choice *c, const qn_onnx_nodes *nodes, size_t at)
{
    const Onnx__Node *node = node_at(nodes, at);
    c->open.n = 0;
    for (int k = 0; k < 2; k++)
        c->sides[k] = move_side(scope, c->sides[k], nodes, at, c->names[k]);
    for (size_t i = 0; i < node->n_output; i++)
        add_open(c, nodes, at, node->output[i]);
    scope->choice = c;
}

void qn_onnx_open_choice(qn_onnx_node *n, qn_onnx_scope *const *sides, const char *const *const *names)
{
    qn_onnx_import *im = n->im;
    qn_onnx_choice *c = QN_NEW(im->arena, qn_onnx_choice);
    c->n = qn_arena_copy(im->arena, n, sizeof *n);
    for (int k = 0; k < 2; k++) {
        c->sides[k] = sides[k];
        c->names[k] = names[k];
    }
    for (int i = 0; i < n->n_out && !c->problem; i++) {
        qn_onnx_value *v[2];
        for (int k = 0; k < 2; k++)
            v[k] = sides[k]->choice ? NULL : qn_onnx_scope_find(sides[k], names[k][i]);
        if (!can_join(im->dims, v[0], v[1], false))
            c->problem = qn_arena_printf(
                im->arena,
                "output %d is %s in one branch and %s in the other, and the condition is not known", i,
                describe(im, v[0]), describe(im, v[1]));
    }
    n->choice = c;
}

void qn_onnx_hand_over(qn_onnx_node *n, qn_onnx_scope *scope, const char *const *names)
{
    qn_onnx_choice *c = n->choice = scope->choice;
    c->names[0] = c->names[1] = names;
    c->n->depends |= n->depends | scope->touched;
    c->n->extents |= n->extents | scope->touched_extents;
}

/* ---- closing ---- */

/* Both regions take the same values, in one order. */
static void share_captures(const qn_onnx_choice *c)
{
    qn_onnx_scope *x = c->sides[0], *y = c->sides[1];
    for (size_t i = 0; i < y->captured.n; i++)
        qn_onnx_scope_capture(x, y->captured.items[i]);
    for (size_t i = 0; i < x->captured.n; i++)
        qn_onnx_scope_capture(y, x->captured.items[i]);
    for (int i = 0; i < y->graph->n_inputs; i++) {
        qn_value *input = qn_onnx_scope_capture(y, x->captured.items[i]);
        y->graph->inputs[i] = input;
        input->index = i;
    }
}

static void define(qn_onnx_scope *scope, const qn_onnx_choice *c, const char *name, qn_onnx_value *v)
{
    v->depends |= c->n->depends | c->sides[0]->touched | c->sides[1]->touched;
    v->extents |= c->n->extents | c->sides[0]->touched_extents | c->sides[1]->touched_extents;
    qn_onnx_scope_define(scope, name, v, &c->n->b.loc);
}

/* What is open is not to be had; that was reported. */
static bool abandon(qn_onnx_scope *scope)
{
    const qn_onnx_choice *c = scope->choice;
    scope->choice = NULL;
    for (size_t i = 0; i < c->open.n; i++)
        define(scope, c, c->open.items[i].name, qn_onnx_value_new(scope->im, QN_ONNX_FAILED));
    return false;
}

static bool give_up(qn_onnx_scope *scope)
{
    const qn_onnx_choice *c = scope->choice;
    qn_onnx_misses(c->n, c->n->in[0]);
    if (scope->im->n_chosen > MOST_CHOSEN)
        qn_onnx_unsupported(c->n, "%s; both would have more than %d nodes", c->problem, MOST_CHOSEN);
    else
        qn_onnx_unsupported(c->n, "%s", c->problem);
    return abandon(scope);
}

/* Numbers that are known, and the same on both sides; NULL: they are not. */
static qn_onnx_value *same_numbers(qn_onnx_import *im, qn_onnx_value *x, qn_onnx_value *y)
{
    qn_onnx_contents a, b;
    if (!qn_onnx_contents_of(im, x, &a) || !qn_onnx_contents_of(im, y, &b) || !a.dims || !b.dims ||
        a.dtype != b.dtype || a.rank != b.rank || memcmp(a.shape, b.shape, (size_t)a.rank * sizeof *a.shape))
        return NULL;
    for (int64_t i = 0; i < a.n; i++)
        if (a.dims[i] != b.dims[i] || !qn_dim_is_const(a.dims[i]))
            return NULL;
    return qn_onnx_value_dims(im, a.dtype, a.rank, a.shape, a.dims);
}

/* The if, whose results are what is open from here on; false after a report. */
static bool close_choice(qn_onnx_scope *scope)
{
    qn_onnx_choice *c = scope->choice;
    qn_onnx_import *im = scope->im;
    const int n_open = (int)c->open.n;
    qn_onnx_value **values = QN_NEW_ARRAY(im->arena, qn_onnx_value *, n_open);
    bool *strings = QN_NEW_ARRAY(im->arena, bool, n_open);
    qn_value **made[2], **results = QN_NEW_ARRAY(im->arena, qn_value *, n_open);
    int n = 0;
    c->n->b.diags = im->diags;
    for (int k = 0; k < 2; k++)
        made[k] = QN_NEW_ARRAY(im->arena, qn_value *, n_open);
    for (int i = 0; i < n_open; i++) {
        qn_onnx_value *v[2];
        for (int k = 0; k < 2; k++)
            v[k] = qn_onnx_scope_find(c->sides[k], c->open.items[i].name);
        values[i] = same_numbers(im, v[0], v[1]);
        strings[i] = v[0]->strings;
        for (int k = 0; k < 2 && !values[i]; k++) {
            qn_builder inner = qn_onnx_region_builder(c->n, c->sides[k]->graph);
            if (!(made[k][n] = qn_onnx_value_make(&inner, v[k])))
                return abandon(scope);
        }
        n += !values[i];
    }
    share_captures(c);
    if (!qn_onnx_join(c->n, c->sides[0], c->sides[1], n, made, results))
        return abandon(scope);
    scope->choice = NULL;
    n = 0;
    for (int i = 0; i < n_open; i++) {
        values[i] = values[i] ? values[i] : qn_onnx_value_from(im, results[n++]);
        values[i]->strings = strings[i];
        define(scope, c, c->open.items[i].name, values[i]);
    }
    return true;
}

/* Behind node i: closes the open choice if all that is still open can be joined. */
static bool try_close(qn_onnx_scope *scope, size_t i, bool loose)
{
    qn_onnx_choice *c = scope->choice;
    drop_unread(c, i);
    for (size_t k = 0; k < c->open.n; k++) {
        const char *name = c->open.items[k].name;
        if (!can_join(scope->im->dims, find_in(c->sides[0], name), find_in(c->sides[1], name), loose))
            return true;
    }
    return close_choice(scope);
}

bool qn_onnx_finish_choice(qn_onnx_scope *scope, const qn_onnx_nodes *nodes)
{
    bool good = true;
    for (int k = 0; k < 2; k++)
        if (scope->choice->sides[k]->choice) {
            qn_onnx_trial *trial = qn_onnx_trial_begin(scope->im);
            good &= qn_onnx_finish_choice(scope->choice->sides[k], nodes);
            (void)qn_onnx_trial_end(scope->im, trial);
        }
    good = good && try_close(scope, nodes->n, true);
    return scope->choice ? give_up(scope) : good;
}

/* ---- nodes behind ---- */

static bool step_both(qn_onnx_scope *scope, const qn_onnx_nodes *nodes, size_t i)
{
    qn_onnx_choice *c = scope->choice;
    qn_onnx_import *im = scope->im;
    const Onnx__Node *node = node_at(nodes, i);
    qn_onnx_trial *trials[2];
    qn_status failed[2];
    bool good[2];
    for (size_t k = 0; k < node->n_output; k++)
        add_open(c, nodes, i, node->output[k]);
    im->n_chosen++;
    im->n_sides++;
    for (int k = 0; k < 2; k++) {
        trials[k] = qn_onnx_trial_begin(im);
        good[k] = qn_onnx_step(c->sides[k], nodes, i);
        failed[k] = qn_onnx_trial_end(im, trials[k]);
    }
    im->n_sides--;
    if (good[0] && good[1] && im->n_chosen <= MOST_CHOSEN)
        return true;
    const int only = good[0] ? 0 : 1;
    if (good[only] && failed[!only] == QUERN_ERROR_MODEL && !im->restart)
        decide(im, c, only);
    if (im->restart)
        return abandon(scope);
    if (good[only] || !failed[0])
        return give_up(scope);
    qn_onnx_misses(c->n, c->n->in[0]);
    c->n->n_missed = 0;
    qn_diags_move(&trials[0]->mine, im->diags); /* has nothing to do with the branches */
    return abandon(scope);
}

bool qn_onnx_step(qn_onnx_scope *scope, const qn_onnx_nodes *nodes, size_t i)
{
    qn_onnx_choice *opened = NULL;
    bool good = true;
    const bool inside = scope->choice && reads_open(scope->choice, node_at(nodes, i));
    if (!inside)
        good = qn_onnx_import_one(scope, nodes, i, &opened);
    if (opened && !scope->choice)
        take_choice(scope, opened, nodes, i);
    else if (inside || opened) /* a second choice is one in each side */
        good = step_both(scope, nodes, i);
    const bool closed = !scope->choice || try_close(scope, i, false);
    return good && closed;
}
