/* Kept programs: see kept.h. An entry is the program's fields one after the other, as this build of Quern has them: its key tells
 * builds apart. One function for each structure writes it or reads it. */
#include "driver/kept.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "ir/condensed.h"
#include "ir/print.h"
#include "passes/bounds.h"
#include "passes/claim.h"

/* ---- the key ---- */

typedef struct constants {
    qn_arena *arena;
    qn_vec(const qn_tensor *) items; /* in the order of the graph, regions behind their nodes */
} constants;

static void find_constants(constants *c, const qn_graph *graph)
{
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_attrs; i++)
            if (qn_attrs[node->attrs[i].key].kind == QN_ATTR_KIND_TENSOR)
                qn_vec_push(c->arena, &c->items, node->attrs[i].tensor);
        for (int i = 0; i < node->n_regions; i++)
            find_constants(c, node->regions[i]);
    }
}

typedef struct keyed {
    uint64_t key;
    int number;
} keyed;

static int by_key(const void *a, const void *b)
{
    const keyed *x = a, *y = b;
    return x->key != y->key ? (x->key < y->key ? -1 : 1) : x->number - y->number;
}

/* By constant: the first that has the same contents. */
static int *find_equals(const constants *c)
{
    const int n = (int)c->items.n;
    const qn_tensor *const *all = c->items.items;
    int *first = QN_NEW_ARRAY(c->arena, int, n);
    keyed *sorted = QN_NEW_ARRAY(c->arena, keyed, n);
    for (int i = 0; i < n; i++)
        sorted[i] = (keyed){ qn_tensor_key(all[i]), i };
    if (n)
        qsort(sorted, (size_t)n, sizeof *sorted, by_key);
    for (int i = 0; i < n; i++) {
        int at = i;
        while (at > 0 && sorted[at - 1].key == sorted[i].key &&
               !qn_tensor_same_bytes(all[sorted[at - 1].number], all[sorted[i].number]))
            at--;
        const bool found = at > 0 && sorted[at - 1].key == sorted[i].key;
        first[sorted[i].number] = found ? first[sorted[at - 1].number] : sorted[i].number;
    }
    return first;
}

static bool is_splat(const qn_tensor *tensor, size_t element)
{
    return tensor->data && tensor->bytes >= element &&
           memcmp(tensor->data, (const char *)tensor->data + element, tensor->bytes - element) == 0;
}

static void add_constants(qn_strbuf *text, const constants *c)
{
    const int *first = find_equals(c);
    for (int i = 0; i < (int)c->items.n; i++) {
        const qn_tensor *tensor = c->items.items[i];
        const size_t element = qn_dtype_bytes(tensor->type.dtype);
        qn_strbuf_int(text, first[i]);
        if (is_splat(tensor, element)) {
            uint64_t bits = 0;
            memcpy(&bits, tensor->data, element);
            qn_strbuf_printf(text, " splat %" PRIx64, bits);
        } else if (qn_bounds_reads(tensor)) {
            qn_strbuf_printf(text, " is %" PRIx64, qn_tensor_hash(tensor));
        }
        qn_strbuf_puts(text, "\n");
    }
}

/* What the library takes of products depends on whether it is there. False: there are calls. */
static bool add_choices(qn_strbuf *text, const qn_graph *graph, const qn_pass_options *options)
{
    QN_FOR_NODES (graph, node) {
        if (node->op == QN_OP_CALL)
            return false;
        if (node->op == QN_OP_DOT_GENERAL)
            qn_strbuf_int(text, qn_blas_takes(node, options));
        for (int i = 0; i < node->n_regions; i++)
            if (!add_choices(text, node->regions[i], options))
                return false;
    }
    return true;
}

bool qn_kept_of(const qn_graph *graph, const qn_pass_options *options, const char *settings, qn_arena *arena,
                qn_kept *out)
{
    const qn_print_options without_contents = { .no_contents = true };
    constants c = { .arena = arena };
    qn_strbuf more = { .arena = arena };
    if (!add_choices(&more, graph, options))
        return false;
    find_constants(&c, graph);
    add_constants(&more, &c);
    const char *texts[] = { "program", settings, qn_graph_print_as(graph, &without_contents, arena),
                            qn_strbuf_text(&more) };
    *out = (qn_kept){ .key = qn_cache_key_of(sizeof texts / sizeof *texts, texts),
                      .graph = graph,
                      .n_constants = (int)c.items.n,
                      .constants = c.items.items };
    return true;
}

/* ---- lost constants ---- */

const bool *qn_kept_lost(qn_cache *cache, const qn_kept *kept, qn_arena *arena)
{
    const int n = kept->n_constants;
    bool *lost = QN_NEW_ARRAY(arena, bool, n), any = false, any_sampled = false, any_new = false;
    for (int i = 0; i < n; i++)
        any_sampled |= qn_tensor_sampled(kept->constants[i]) != NULL;
    if (!any_sampled)
        return NULL;
    char key_text[33];
    qn_cache_key_text(&kept->key, key_text);
    const qn_cache_key key = qn_cache_key_of(2, (const char *[]){ "lost", key_text });
    qn_code note = { 0 };
    const bool noted = qn_cache_get(cache, &key, arena, &note) && note.size == (size_t)n;
    for (int i = 0; i < n; i++) {
        const bool was = noted && ((const char *)note.data)[i] != 0;
        lost[i] = was || qn_tensor_is_lost(kept->constants[i]);
        any |= lost[i];
        any_new |= lost[i] && !was;
    }
    if (any_new)
        qn_cache_put(cache, &key, &(qn_code){ lost, (size_t)n });
    return any ? lost : NULL;
}

/* ---- the entry ---- */

/* Whoever adds a field has to think of it here, too. */
_Static_assert(sizeof(void *) != 8 ||
                   (sizeof(qn_program) == 160 && sizeof(qn_pio) == 64 && sizeof(qn_pbuffer) == 112 &&
                    sizeof(qn_step) == 240 && sizeof(qn_kernel) == 120 && sizeof(qn_kbuffer) == 48),
               "a structure has changed: does an entry have all of it?");

typedef struct coder {
    qn_strbuf *to;        /* NULL: it reads */
    const char *at, *end; /* what is left to be read */
    bool bad;             /* it was not what it had to be; what is read then is 0 */
    qn_arena *arena;      /* of what is read */
    qn_dims *dims;
    const qn_kept *kept;
} coder;

static void code_bytes(coder *c, void *bytes, size_t n)
{
    if (n == 0)
        return;
    if (c->to) {
        qn_strbuf_add(c->to, bytes, n);
        return;
    }
    c->bad |= n > (size_t)(c->end - c->at);
    if (c->bad) {
        memset(bytes, 0, n);
        return;
    }
    memcpy(bytes, c->at, n);
    c->at += n;
}

/* Whatever is no pointer. */
#define CODE(c, field) code_bytes((c), &(field), sizeof(field))

static void code_flag(coder *c, bool *flag)
{
    unsigned char byte = *flag;
    CODE(c, byte);
    c->bad |= byte > 1;
    *flag = byte == 1;
}

/* A length; when it is read, of items that take a byte or more. */
static void code_count(coder *c, int *n)
{
    CODE(c, *n);
    if (!c->to && (*n < 0 || *n > c->end - c->at)) {
        c->bad = true;
        *n = 0;
    }
}

/* An array of *n items. */
static void *code_array(coder *c, int *n, void *items, size_t size)
{
    code_count(c, n);
    return c->to ? items : qn_arena_calloc(c->arena, (size_t)*n, size);
}
#define CODE_ARRAY(c, n, items) ((items) = code_array((c), (n), (void *)(uintptr_t)(items), sizeof *(items)))

static void code_text(coder *c, const char **text)
{
    int length = c->to && *text ? (int)strlen(*text) + 1 : 0;
    code_count(c, &length);
    char *read = c->to || !length ? NULL : qn_arena_alloc(c->arena, (size_t)length + 1);
    code_bytes(c, c->to ? (void *)(uintptr_t)*text : read, (size_t)length);
    if (!c->to)
        *text = read;
}

static void code_dim(coder *c, qn_dim *d)
{
    enum { NONE, NUMBER, EXPRESSION };
    char kind = !c->to || !*d ? NONE : qn_dim_is_const(*d) ? NUMBER : EXPRESSION;
    CODE(c, kind);
    if (kind == NUMBER) {
        int64_t value = c->to ? (*d)->value : 0;
        CODE(c, value);
        *d = c->to ? *d : qn_dim_const(c->dims, value);
    } else if (kind == EXPRESSION) {
        const char *text = c->to ? qn_dim_print(*d, c->arena) : NULL;
        code_text(c, &text);
        if (!c->to)
            *d = text ? qn_dim_parse(c->dims, &text) : NULL;
        c->bad |= !*d || (!c->to && *text);
    }
}

static void code_symbols(coder *c, qn_program *p)
{
    int n = c->to ? qn_dims_symbol_count(p->dims) : 0;
    code_count(c, &n);
    CODE(c, p->n_entry_symbols);
    for (int i = 0; i < n && !c->bad; i++) {
        const qn_dim symbol = c->to ? qn_dims_symbol_at(p->dims, i) : NULL;
        const char *name = symbol ? symbol->name : NULL;
        int64_t min = symbol ? symbol->min : 0, max = symbol ? symbol->max : 0;
        code_text(c, &name);
        CODE(c, min);
        CODE(c, max);
        c->bad |= !name;
        if (!c->to && !c->bad)
            qn_dim_symbol(c->dims, name, min, max);
    }
    c->bad |= p->n_entry_symbols < 0 || p->n_entry_symbols > n;
    const int n_limits = c->bad ? 0 : n - p->n_entry_symbols;
    qn_dim *limits = c->to ? (qn_dim *)(uintptr_t)p->limits : QN_NEW_ARRAY(c->arena, qn_dim, n_limits);
    for (int i = 0; i < n_limits; i++)
        code_dim(c, &limits[i]);
    p->limits = limits;
}

static void code_io(coder *c, qn_pio *io, int number)
{
    int dtype = (int)io->type.dtype, role = (int)io->role;
    bool has_initial = io->initial != NULL;
    code_text(c, &io->name);
    CODE(c, role);
    CODE(c, dtype);
    qn_dim *dims = (qn_dim *)(uintptr_t)io->type.dims;
    CODE_ARRAY(c, &io->type.rank, dims);
    for (int i = 0; i < io->type.rank; i++)
        code_dim(c, &dims[i]);
    CODE(c, io->alias);
    code_flag(c, &io->trainable);
    code_flag(c, &has_initial);
    CODE(c, io->initial_offset);
    io->role = (quern_role)role;
    io->type.dtype = (qn_dtype)dtype;
    io->type.dims = dims;
    c->bad |= has_initial && number >= c->kept->graph->n_inputs; /* inputs are the first io, in their order */
    if (has_initial && !c->bad)
        io->initial = c->kept->graph->input_initial[number];
}

static void code_tensor(coder *c, const qn_tensor **tensor)
{
    const int n = c->kept->n_constants;
    int number = -1;
    if (c->to && *tensor) {
        number = 0;
        while (number < n && c->kept->constants[number] != *tensor)
            number++;
        c->bad |= number == n; /* lowering made it */
    }
    CODE(c, number);
    c->bad |= number >= n;
    if (!c->to && !c->bad)
        *tensor = number < 0 ? NULL : c->kept->constants[number];
}

static void code_buffer(coder *c, qn_pbuffer *b)
{
    int dtype = (int)b->dtype, place = (int)b->place;
    code_text(c, &b->name);
    CODE(c, dtype);
    code_dim(c, &b->elements);
    CODE(c, place);
    CODE(c, b->io);
    CODE(c, b->base);
    code_dim(c, &b->offset);
    CODE(c, b->loop);
    code_dim(c, &b->stride);
    code_tensor(c, &b->tensor);
    CODE(c, b->first);
    CODE(c, b->last);
    b->dtype = (qn_dtype)dtype;
    b->place = (qn_place)place;
}

static void code_steps(coder *c, qn_steps *steps);

static void code_step(coder *c, qn_step *s)
{
    int kind = (int)s->kind, library = (int)s->library, collective = (int)s->collective, text = (int)s->text;
    qn_dim *params = (qn_dim *)(uintptr_t)s->params;
    CODE(c, kind);
    code_text(c, &s->name);
    CODE(c, s->kernel);
    CODE(c, library);
    CODE_ARRAY(c, &s->n_buffers, s->buffers);
    for (int i = 0; i < s->n_buffers; i++)
        CODE(c, s->buffers[i]);
    CODE_ARRAY(c, &s->n_params, params);
    for (int i = 0; i < s->n_params; i++)
        code_dim(c, &params[i]);
    code_dim(c, &s->tasks);
    CODE(c, s->flops);
    code_flag(c, &s->alternates);
    CODE(c, s->node);
    CODE(c, collective);
    CODE(c, text);
    CODE(c, s->how);
    CODE(c, s->ranks);
    code_flag(c, &s->starts);
    CODE(c, s->loop);
    code_dim(c, &s->count);
    code_flag(c, &s->reverse);
    CODE(c, s->condition);
    code_steps(c, &s->test);
    code_steps(c, &s->body);
    code_steps(c, &s->other);
    s->kind = (qn_step_kind)kind;
    s->library = (qn_library)library;
    s->collective = (qn_op)collective;
    s->text = (qn_op)text;
    s->params = params;
}

static void code_steps(coder *c, qn_steps *steps)
{
    int n = (int)steps->n;
    CODE_ARRAY(c, &n, steps->items);
    for (int i = 0; i < n && !c->bad; i++)
        code_step(c, &steps->items[i]);
    if (!c->to)
        steps->n = steps->capacity = (size_t)n;
}

static void code_argument(coder *c, qn_kbuffer *b)
{
    int dtype = (int)b->dtype;
    code_text(c, &b->name);
    CODE(c, dtype);
    CODE(c, b->index);
    code_flag(c, &b->written);
    code_flag(c, &b->read);
    CODE(c, b->inplace);
    CODE(c, b->align);
    b->dtype = (qn_dtype)dtype;
}

/* What calls see of a kernel. */
static void code_kernel(coder *c, qn_kernel *k)
{
    CODE_ARRAY(c, &k->n_buffers, k->buffers);
    for (int i = 0; i < k->n_buffers; i++) {
        if (!c->to)
            k->buffers[i] = QN_NEW(c->arena, qn_kbuffer);
        code_argument(c, k->buffers[i]);
    }
    CODE_ARRAY(c, &k->n_params, k->param_names);
    for (int i = 0; i < k->n_params; i++)
        code_text(c, &k->param_names[i]);
    if (!c->to) {
        k->n_all_buffers = k->n_buffers;
        k->param_min = QN_NEW_ARRAY(c->arena, int64_t, k->n_params);
        k->param_max = QN_NEW_ARRAY(c->arena, int64_t, k->n_params);
        k->param_multiple = QN_NEW_ARRAY(c->arena, int64_t, k->n_params);
    }
    for (int i = 0; i < k->n_params; i++) {
        CODE(c, k->param_min[i]);
        CODE(c, k->param_max[i]);
        CODE(c, k->param_multiple[i]);
    }
    CODE(c, k->gpu_threads);
    code_flag(c, &k->by_thread);
    CODE(c, k->flops);
    CODE(c, k->bytes);
}

static void code_kernels(coder *c, qn_program *p, qn_cache_key **keys)
{
    CODE_ARRAY(c, &p->n_kernels, p->kernels);
    if (!c->to)
        *keys = QN_NEW_ARRAY(c->arena, qn_cache_key, p->n_kernels);
    for (int i = 0; i < p->n_kernels && !c->bad; i++) {
        const char *name = c->to ? p->kernels[i]->name : NULL;
        code_text(c, &name);
        c->bad |= !name;
        if (!c->to)
            p->kernels[i] = qn_kernel_new(c->arena, name ? name : "");
        code_kernel(c, p->kernels[i]);
        CODE(c, (*keys)[i]);
    }
}

static void code_program(coder *c, qn_program *p, qn_cache_key **keys)
{
    code_text(c, &p->name);
    code_symbols(c, p);
    CODE_ARRAY(c, &p->n_io, p->io);
    for (int i = 0; i < p->n_io && !c->bad; i++)
        code_io(c, &p->io[i], i);
    CODE_ARRAY(c, &p->n_buffers, p->buffers);
    for (int i = 0; i < p->n_buffers && !c->bad; i++)
        code_buffer(c, &p->buffers[i]);
    code_steps(c, &p->steps);
    CODE(c, p->n_loops);
    CODE_ARRAY(c, &p->n_nodes, p->node_names);
    for (int i = 0; i < p->n_nodes; i++)
        code_text(c, &p->node_names[i]);
    code_dim(c, &p->arena_bytes);
    code_dim(c, &p->arena_lower_bound);
    code_kernels(c, p, keys);
}

bool qn_kept_get(const qn_cache *cache, const qn_kept *kept, qn_arena *arena, qn_program **out,
                 qn_cache_key **out_keys)
{
    qn_code entry;
    if (!qn_cache_get(cache, &kept->key, arena, &entry))
        return false;
    qn_dims *dims = qn_dims_new(arena);
    qn_program *p = qn_program_new(arena, dims, "");
    coder c = { .at = entry.data,
                .end = (const char *)entry.data + entry.size,
                .arena = arena,
                .dims = dims,
                .kept = kept };
    code_program(&c, p, out_keys);
    qn_program_number(p);
    *out = p;
    return !c.bad && c.at == c.end;
}

void qn_kept_put(qn_cache *cache, const qn_kept *kept, const qn_program *program, const qn_cache_key *keys)
{
    qn_arena *arena = qn_arena_new();
    qn_strbuf text = { .arena = arena };
    qn_program p = *program; /* writing changes nothing */
    qn_cache_key *of = (qn_cache_key *)(uintptr_t)keys;
    coder c = { .to = &text, .arena = arena, .kept = kept };
    code_program(&c, &p, &of);
    const qn_code entry = { text.data, text.n };
    if (!c.bad)
        qn_cache_put(cache, &kept->key, &entry);
    qn_arena_free(arena);
}
