/* See lowered.h. */
#include "tests/support/lowered.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "tests/support/eval.h"

const qn_machine lowered_machine = { LOWERED_AVX2, .masked = true };
const qn_machine lowered_machines[LOWERED_MACHINES] = { { LOWERED_AVX512 },
                                                        { LOWERED_AVX2 },
                                                        { LOWERED_AARCH64 } };
const qn_machine lowered_aarch64 = { LOWERED_AARCH64, .dot4_signs = QN_SIGNS_SAME };
const qn_machine lowered_byte_machines[LOWERED_BYTE_MACHINES] = {
    { LOWERED_AVX512, .dot4 = true },
    { LOWERED_AVX512, .dot4 = true, .tiles = true },
    { LOWERED_AVX2 },
    { LOWERED_AARCH64, .dot4_signs = QN_SIGNS_SAME },
    { LOWERED_AARCH64, .dot4 = true, .dot4_signs = QN_SIGNS_SAME },
    { LOWERED_AARCH64, .dot4 = true, .dot4_signs = QN_SIGNS_ANY },
    { LOWERED_AARCH64, .dot4 = true, .dot4_signs = QN_SIGNS_ANY, .dot2 = true, .mmla = true },
};

enum { GUARD = 64, POISON = 0xd5 };

static size_t bytes_of(const qn_array *a)
{
    size_t n = qn_dtype_bytes(a->dtype);
    for (int i = 0; i < a->rank; i++)
        n *= (size_t)a->dims[i];
    return n;
}

/* Poisoned, with a guard on both sides, at a multiple of 64. */
static char *guarded(size_t bytes)
{
    char *memory = aligned_alloc(64, (bytes + 2 * GUARD + 63) / 64 * 64);
    assert_non_null(memory);
    memset(memory, POISON, bytes + 2 * GUARD);
    return memory + GUARD;
}

static void release(char *data, size_t bytes, const char *what)
{
    for (size_t i = 0; i < GUARD; i++)
        if ((unsigned char)data[-1 - (ptrdiff_t)i] != POISON || (unsigned char)data[bytes + i] != POISON)
            fail_msg("%s: written outside of its %zu bytes", what, bytes);
    free(data - GUARD);
}

/* As the driver does: each constant at a multiple of 64. */
static char *lay_out_weights(qn_program *p)
{
    int64_t bytes = 0;
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_WEIGHTS) {
            p->buffers[i].offset = qn_dim_const(p->dims, bytes);
            bytes += ((int64_t)p->buffers[i].tensor->bytes + 63) / 64 * 64;
        }
    p->weights_bytes = bytes;
    char *weights = guarded((size_t)bytes);
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_WEIGHTS)
            memcpy(weights + p->buffers[i].offset->value, qn_tensor_data(p->buffers[i].tensor),
                   p->buffers[i].tensor->bytes);
    return weights;
}

typedef struct memory {
    char **io; /* pointers, then symbols */
    size_t *bytes;
    int64_t *symbols;
} memory;

static memory bind(const qn_program *p, const qn_graph *graph, const qn_array *inputs, const int64_t *symbols,
                   qn_arena *arena)
{
    const int n_symbols = qn_dims_symbol_count(p->dims);
    memory m = { .io = qn_arena_alloc(arena, (size_t)p->n_io * sizeof(char *) + (size_t)n_symbols * 8),
                 .bytes = QN_NEW_ARRAY(arena, size_t, p->n_io) };
    m.symbols = (int64_t *)(void *)(m.io + p->n_io);
    /* the program has a table of its own: by name */
    for (int i = 0; i < n_symbols; i++) {
        const qn_dim symbol = qn_dim_find_symbol(graph->module->dims, qn_dims_symbol_at(p->dims, i)->name);
        m.symbols[i] = i < p->n_entry_symbols ? symbols[symbol->symbol]
                                              : qn_dim_eval(p->limits[i - p->n_entry_symbols], m.symbols);
    }
    for (int i = 0; i < p->n_io; i++) {
        m.bytes[i] = qn_dtype_bytes(p->io[i].type.dtype);
        for (int d = 0; d < p->io[i].type.rank; d++)
            m.bytes[i] *= (size_t)qn_dim_eval(p->io[i].type.dims[d], m.symbols);
        m.io[i] = guarded(m.bytes[i]);
        if (i < graph->n_inputs)
            memcpy(m.io[i], inputs[i].data, m.bytes[i]);
    }
    return m;
}

static void read_outputs(const qn_program *p, const qn_graph *graph, const memory *m, qn_array *outputs,
                         qn_arena *arena)
{
    for (int i = 0, next = graph->n_inputs; i < graph->n_outputs; i++) {
        const int alias = graph->aliases ? graph->aliases[i] : -1;
        const int io = alias >= 0 && p->io[alias].role == QUERN_STATE ? alias : next++;
        const qn_type *type = &p->io[io].type;
        outputs[i] = (qn_array){ .dtype = type->dtype, .rank = type->rank };
        for (int d = 0; d < type->rank; d++)
            outputs[i].dims[d] = qn_dim_eval(type->dims[d], m->symbols);
        outputs[i].data = qn_arena_copy(arena, m->io[io], bytes_of(&outputs[i]));
    }
}

qn_status program_run(qn_program *p, const qn_graph *graph, const qn_array *inputs, const int64_t *symbols,
                      qn_array *outputs, qn_arena *arena, qn_diags *diags)
{
    char *weights = lay_out_weights(p);
    QN_TRY(qn_program_verify(p, diags));
    memory m = bind(p, graph, inputs, symbols, arena);
    const size_t workspace_bytes = (size_t)qn_dim_eval(p->arena_bytes, m.symbols);
    char *workspace = guarded(workspace_bytes);
    const qn_status status = qn_interp_program(p, m.io, workspace, weights, NULL, diags);
    if (!status)
        read_outputs(p, graph, &m, outputs, arena);
    for (int i = 0; i < p->n_io; i++)
        release(m.io[i], m.bytes[i], p->io[i].name);
    release(workspace, workspace_bytes, "workspace");
    release(weights, (size_t)p->weights_bytes, "weights");
    return status;
}

qn_status lowered_run(qn_graph *graph, bool passes, const qn_pass_options *options, const qn_array *inputs,
                      const int64_t *symbols, qn_array *outputs, qn_program **out_program, qn_arena *arena,
                      qn_diags *diags)
{
    const qn_pass_hooks hooks = { .verify_each = true };
    qn_program *p;
    if (passes)
        QN_TRY(qn_run_passes(graph, NULL, options, &hooks, diags));
    QN_TRY(qn_lower(graph, options, arena, &p, diags));
    QN_TRY(qn_memplan(p, diags));
    if (getenv("QUERN_PRINT"))
        fprintf(stderr, "%s%s", qn_graph_print(graph, arena), qn_program_print(p, arena));
    if (out_program)
        *out_program = p;
    return program_run(p, graph, inputs, symbols, outputs, arena, diags);
}

static double tolerance_of(qn_dtype dtype)
{
    switch (dtype) {
    case QUERN_F64: return 1e-9;
    case QUERN_F32: return 2e-4;
    case QUERN_F16: return 2e-2;
    case QUERN_BF16: return 1e-1;
    default: return 0;
    }
}

int lowered_count(const qn_graph *graph, qn_op op)
{
    int n = 0;
    QN_FOR_NODES (graph, node) {
        n += node->op == op;
        for (int i = 0; i < node->n_regions; i++)
            n += lowered_count(node->regions[i], op);
    }
    return n;
}

/* As exact as the least exact float of the graph: an f64 may have been made from an f16. */
double lowered_tolerance(const qn_graph *graph)
{
    double tolerance = 0;
    for (int i = 0; i < graph->n_inputs; i++)
        tolerance = fmax(tolerance, tolerance_of(graph->inputs[i]->type.dtype));
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_results; i++)
            tolerance = fmax(tolerance, tolerance_of(node->results[i].type.dtype));
    return tolerance;
}

void lowered_compare(const char *what, qn_graph *graph, const qn_pass_options *options,
                     const qn_array *inputs, const int64_t *symbols)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_array *expected = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    qn_array *found = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    const char *before = qn_graph_print(graph, arena);
    const double tolerance = lowered_tolerance(graph);
    qn_program *p = NULL;
    if (qn_interp_run(graph, inputs, expected, arena, &diags))
        fail_msg("%s: the interpreter says: %s\n%s", what, qn_diags_text(&diags, arena), before);
    const qn_status status = lowered_run(graph, true, options, inputs, symbols, found, &p, arena, &diags);
    if (status)
        fail_msg("%s: %s\n%s", what, qn_diags_text(&diags, arena), before);
    for (int i = 0; i < graph->n_outputs; i++) {
        const char *name = qn_arena_printf(arena, "%s, output %d of\n%s", what, i, before);
        expect_near(name, &found[i], &expected[i], qn_dtype_is_float(expected[i].dtype) ? tolerance : 0);
    }
    qn_arena_free(arena);
}

qn_graph *lowered_parsed(const char *name, const char *text, qn_array *inputs, qn_arena *arena)
{
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module;
    if (qn_text_parse(text, strlen(text), name, &module, &diags))
        fail_msg("%s", qn_diags_text(&diags, arena));
    qn_graph *graph = module->functions[0];
    for (int k = 0; k < graph->n_inputs; k++) {
        const qn_type *type = &graph->inputs[k]->type;
        int64_t n = 1;
        inputs[k].dtype = type->dtype;
        inputs[k].rank = type->rank;
        for (int i = 0; i < type->rank; i++)
            n *= inputs[k].dims[i] = type->dims[i]->value;
        float *data = qn_arena_calloc(arena, (size_t)n, sizeof *data);
        for (int64_t i = 0; i < n; i++)
            data[i] = (float)(i + 1000000 * k);
        inputs[k].data = data;
    }
    return graph;
}

void lowered_compare_text(const char *name, const char *text, const qn_pass_options *options)
{
    enum { MOST_INPUTS = 4 };
    qn_arena *arena = qn_arena_new();
    qn_array inputs[MOST_INPUTS];
    qn_graph *graph = lowered_parsed(name, text, inputs, arena);
    lowered_compare(name, graph, options, inputs, NULL);
    qn_module_free(graph->module);
    qn_arena_free(arena);
}
