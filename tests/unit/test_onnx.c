/* The ONNX importer: what it makes of models, and what it says of broken ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "frontend/onnx/onnx.h"
#include "tests/support/onnx_writer.h"

/* One import: the bytes live as long as the module. */
typedef struct import {
    onnx_bytes bytes;
    qn_arena *arena;
    qn_diags diags;
    qn_module *module;
    qn_status status;
    const char *text; /* messages, or the printed function */
} import;

static import load(onnx_bytes bytes, const qn_onnx_options *options)
{
import it = {.bytes = bytes, .arena = qn_arena_new() };
    qn_diags_init(&it.diags, it.arena);
    it.status = qn_onnx_load_bytes(bytes.data, bytes.n, "m.onnx", options, &it.module, &it.diags);
    it.text = qn_diags_text(&it.diags, it.arena);
    if (!it.status) {
        if (qn_verify(it.module, &it.diags))
            fail_msg("%s", qn_diags_text(&it.diags, it.arena));
        it.text = qn_graph_print(it.module->functions[0], it.arena);
    } else {
        assert_null(it.module);
    }
    return it;
}

static void drop(import *it)
{
    if (it->module)
        qn_module_free(it->module);
    qn_arena_free(it->arena);
    free(it->bytes.data);
}

static void assert_has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in:\n%s", part, text);
}

static void assert_lacks(const char *text, const char *part)
{
    if (strstr(text, part))
        fail_msg("\"%s\" is in:\n%s", part, text);
}

/* Imports a graph of opset 18, expects that status and that text, and frees everything. */
static void expect(onnx_bytes *graph, qn_status status, const char *part)
{
import it = load(onnx_model(graph, 18), NULL);
    if (it.status != status)
        fail_msg("status %d: %s", it.status, it.text);
    assert_has(it.text, part);
    drop(&it);
}

static void gemm_contracts_without_transposing(void **state)
{
    (void)state;
    onnx_bytes g = { 0 }, node = onnx_node("Gemm", "x w b", "y");
    float w[6] = { 1, 2, 3, 4, 5, 6 }, b[2] = { 7, 8 };
    onnx_input(&g, "x", ONNX_FLOAT, "batch,3");
    onnx_initializer(&g, "w", ONNX_FLOAT, 2, (int64_t[]){ 2, 3 }, w);
    onnx_initializer(&g, "b", ONNX_FLOAT, 1, (int64_t[]){ 2 }, b);
    onnx_attr_int(&node, "transB", 1);
    onnx_put_node(&g, &node);
    onnx_output(&g, "y", ONNX_FLOAT);
import it = load(onnx_model(& g, 18), NULL);
    assert_int_equal(it.status, QUERN_OK);
    assert_has(it.text, "x_contract = [1], y_batch = [], y_contract = [1]");
    assert_has(it.text, "(y: f32[batch, 2])");
    assert_lacks(it.text, "transpose");
    drop(&it);
}

/* Shape -> Gather, Slice -> Mul -> Concat -> Reshape leaves a reshape to an expression. */
static void shape_arithmetic_vanishes(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "batch,seq,12");
    onnx_ints(&g, "zero", 1, (int64_t[]){ 0 });
    onnx_ints(&g, "one", 1, (int64_t[]){ 1 });
    onnx_ints(&g, "two", 1, (int64_t[]){ 2 });
    onnx_ints(&g, "minus", 1, (int64_t[]){ -1 });
    onnx_simple(&g, "Shape", "x", "s");
    onnx_simple(&g, "Gather", "s zero", "n");
    onnx_simple(&g, "Slice", "s one two zero", "t");
    onnx_simple(&g, "Mul", "n t", "nt");
    onnx_bytes concat = onnx_node("Concat", "nt two minus", "shape");
    onnx_attr_int(&concat, "axis", 0);
    onnx_put_node(&g, &concat);
    onnx_simple(&g, "Reshape", "x shape", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
import it = load(onnx_model(& g, 18), NULL);
    assert_int_equal(it.status, QUERN_OK);
    assert_has(it.text, "reshape %x {dims = [batch*seq, 2, 6]}");
    assert_lacks(it.text, "dim_value");
    assert_lacks(it.text, "constant");
    drop(&it);
}

/* A shape that is used as a tensor is built from its expressions. */
static void shape_becomes_a_tensor(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "batch,7");
    onnx_simple(&g, "Shape", "x", "y");
    onnx_output(&g, "y", ONNX_INT64);
    expect(&g, QUERN_OK, "concatenate");
}

static void large_weights_stay_where_they_are(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    int64_t dims[2] = { 128, 256 };
    float *w = calloc(128 * 256, sizeof *w);
    w[12345] = 42;
    onnx_input(&g, "x", ONNX_FLOAT, "4,128");
    onnx_initializer(&g, "w", ONNX_FLOAT, 2, dims, w);
    free(w);
    onnx_simple(&g, "MatMul", "x w", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
import it = load(onnx_model(& g, 18), NULL);
    assert_int_equal(it.status, QUERN_OK);
    int found = 0;
    QN_FOR_NODES (it.module->functions[0], node) {
        if (node->op != QN_OP_CONSTANT)
            continue;
        const qn_tensor *t = qn_attr_tensor(node, QN_ATTR_VALUE);
        const unsigned char *data = t->data;
        float value;
        assert_true(data >= it.bytes.data && data + t->bytes <= it.bytes.data + it.bytes.n);
        memcpy(&value, data + (size_t)4 * 12345, 4);
        assert_true(value == 42);
        assert_string_equal(t->name, "w");
        found++;
    }
    assert_int_equal(found, 1);
    drop(&it);
}

static void all_unsupported_nodes_are_reported(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_bytes first = onnx_node("Frobnicate", "x", "a");
    onnx_put_string(&first, 3, "/layer1/odd");
    onnx_put_node(&g, &first);
    onnx_simple(&g, "Relu", "a", "b");
    onnx_bytes second = onnx_node("Attract", "b x", "y");
    onnx_put_string(&second, 7, "com.example");
    onnx_put_node(&g, &second);
    onnx_output(&g, "y", ONNX_FLOAT);
import it = load(onnx_model(& g, 18), NULL);
    assert_int_equal(it.status, QUERN_ERROR_UNSUPPORTED);
    assert_int_equal(it.diags.n_errors, 2);
    assert_has(it.text, "m.onnx: /layer1/odd (Frobnicate, opset 18): ");
    assert_has(it.text, "(inputs: f32[2])");
    assert_has(it.text, "com.example.Attract");
    drop(&it);
}

static onnx_bytes reshape_by_input(void)
{
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2,6");
    onnx_input(&g, "shape", ONNX_INT64, "2");
    onnx_simple(&g, "Reshape", "x shape", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    return onnx_model(&g, 18);
}

/* Weights that are an input: the kernel's extents are dimensions of it. */
static onnx_bytes convolution_by_input(void)
{
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "1,2,n,n");
    onnx_input(&g, "w", ONNX_FLOAT, "4,2,k,3");
    onnx_simple(&g, "Conv", "x w", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    return onnx_model(&g, 18);
}

/* An operator that needs the value of a dimension names it, with where it is; fixed, the model loads. */
static void dims_can_be_needed(void **state)
{
    (void)state;
    qn_onnx_needs needs = { 0 };
    qn_onnx_options options = { .needs = &needs };
import it = load(convolution_by_input(), & options);
    assert_int_equal(it.status, QUERN_ERROR_UNSUPPORTED);
    assert_has(it.text, "it would do to fix k");
    assert_int_equal(needs.n_dims, 1);
    assert_string_equal(needs.dims[0], "k");
    assert_string_equal(needs.dim_names[0], "w");
    assert_int_equal(needs.dim_inputs[0], 1);
    assert_int_equal(needs.dim_axes[0], 2);
    drop(&it);
    options.every_dim = true;
    it = load(convolution_by_input(), &options);
    assert_int_equal(needs.n_dims, 2);
    assert_string_equal(needs.dims[0], "n");
    assert_int_equal(needs.dim_axes[0], 2);
    drop(&it);
    const quern_dim_range k = { "k", 3, 3 };
    options.n_dims = 1;
    options.dims = &k;
    it = load(convolution_by_input(), &options);
    assert_int_equal(it.status, QUERN_OK);
    assert_has(it.text, "(y: f32[1, 4, n - 2, n - 2])");
    assert_int_equal(needs.n_dims, 0);
    drop(&it);
}

/* An operator that needs an input's contents names the input; given them, the model loads, with the same inputs. */
static void inputs_can_be_constants(void **state)
{
    (void)state;
    qn_onnx_needs needs = { 0 };
    qn_onnx_options options = { .needs = &needs };
import it = load(reshape_by_input(), & options);
    assert_int_equal(it.status, QUERN_ERROR_UNSUPPORTED);
    assert_int_equal(needs.n, 1);
    assert_string_equal(needs.names[0], "shape");
    drop(&it);
    int64_t shape[2] = { 3, -1 }, dims[1] = { 2 };
    qn_onnx_constant constant = { "shape", { QUERN_I64, 1, dims, shape } };
    options.n_constants = 1;
    options.constants = &constant;
    it = load(reshape_by_input(), &options);
    assert_int_equal(it.status, QUERN_OK);
    assert_has(it.text, "(y: f32[3, 4])");
    assert_int_equal(it.module->functions[0]->n_inputs, 2);
    drop(&it);
    dims[0] = 3;
    it = load(reshape_by_input(), &options);
    assert_int_equal(it.status, QUERN_ERROR_ARGUMENT);
    drop(&it);
}

static void dims_can_be_fixed_and_bounded(void **state)
{
    (void)state;
    quern_dim_range ranges[2] = { { "n", 5, 5 }, { "x_1", 2, 9 } };
    qn_onnx_options options = { .n_dims = 2, .dims = ranges };
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "n,?,n + 1");
    onnx_simple(&g, "Relu", "x", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
import it = load(onnx_model(& g, 18), & options);
    assert_int_equal(it.status, QUERN_OK);
    qn_dim d = it.module->functions[0]->inputs[0]->type.dims[1];
    assert_has(it.text, "%x: f32[5, x_1");
    assert_int_equal(d->min, 2);
    assert_int_equal(d->max, 9);
    drop(&it);
    ranges[0].max = 4;
    it = load((onnx_bytes){ 0 }, &options);
    assert_int_equal(it.status, QUERN_ERROR_ARGUMENT);
    drop(&it);
}

/* ---- broken models ---- */

static void garbage_is_refused(void **state)
{
    (void)state;
    static const char *const inputs[] = { "",
                                          "\x3a",
                                          "\x3a\x7f",
                                          "hello world",
                                          "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                                          "\x3a\x04\x0a\x02\x0a\x7f",
                                          "\x0b\x0c" };
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        onnx_bytes bytes = { 0 };
        bytes.n = strlen(inputs[i]);
        bytes.data = malloc(bytes.n + 1);
        memcpy(bytes.data, inputs[i], bytes.n);
import it = load(bytes, NULL);
        assert_int_equal(it.status, QUERN_ERROR_MODEL);
        assert_has(it.text, "this is not an ONNX model");
        drop(&it);
    }
}

/* Every prefix of a good model, and every byte of it changed, gives a status; under the sanitizers nothing else. */
static void damage_is_survived(void **state)
{
    (void)state;
    onnx_bytes model = reshape_by_input();
    for (size_t n = 0; n < model.n; n++) {
        onnx_bytes part = { malloc(n + 1), n, n };
        memcpy(part.data, model.data, n);
import it = load(part, NULL);
        assert_int_not_equal(it.status, QUERN_ERROR_INTERNAL);
        drop(&it);
        for (int bit = 0; bit < 8; bit++) {
            onnx_bytes changed = { malloc(model.n), model.n, model.n };
            memcpy(changed.data, model.data, model.n);
            changed.data[n] ^= (unsigned char)(1 << bit);
            it = load(changed, NULL);
            assert_int_not_equal(it.status, QUERN_ERROR_INTERNAL);
            drop(&it);
        }
    }
    free(model.data);
}

static void names_are_checked(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_simple(&g, "Add", "x b", "a"); /* a cycle */
    onnx_simple(&g, "Add", "x a", "b");
    onnx_output(&g, "b", ONNX_FLOAT);
    expect(&g, QUERN_ERROR_MODEL, "input \"b\" is not defined before this node");

    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_simple(&g, "Relu", "x", "a");
    onnx_simple(&g, "Relu", "x", "a");
    onnx_output(&g, "a", ONNX_FLOAT);
    expect(&g, QUERN_ERROR_MODEL, "the name \"a\" is defined twice");

    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_output(&g, "y", ONNX_FLOAT);
    expect(&g, QUERN_ERROR_MODEL, "the graph's output \"y\" is computed by no node");

    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_simple(&g, "Add", "x", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
    expect(&g, QUERN_ERROR_MODEL, "input 1 is missing");
}

static void types_are_checked(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_input(&g, "i", ONNX_INT64, "2");
    onnx_simple(&g, "Add", "x i", "y");
    onnx_output(&g, "y", ONNX_FLOAT);
import it = load(onnx_model(& g, 18), NULL);
    assert_int_not_equal(it.status, QUERN_OK);
    assert_has(it.text, "Add#0");
    drop(&it);

    onnx_input(&g, "x", ONNX_FLOAT, "2,3");
    onnx_simple(&g, "Relu", "x", "y");
    onnx_output(&g, "y", ONNX_INT64);
    expect(&g, QUERN_ERROR_MODEL, "declared as int64 and computed as float");

    onnx_input(&g, "x", 14, "2"); /* complex64 */
    onnx_output(&g, "x", 14);
    expect(&g, QUERN_ERROR_UNSUPPORTED, "data type complex64");

    onnx_input(&g, "x", 8, "2"); /* strings */
    onnx_simple(&g, "Identity", "x", "y");
    onnx_output(&g, "y", ONNX_INT64);
    expect(&g, QUERN_ERROR_MODEL, "declared as int64 and computed as string");

    onnx_input(&g, "x", ONNX_FLOAT, NULL);
    onnx_output(&g, "x", ONNX_FLOAT);
    expect(&g, QUERN_ERROR_UNSUPPORTED, "no shape");

    onnx_input(&g, "x", ONNX_FLOAT, "9000000000000000000");
    onnx_output(&g, "x", ONNX_FLOAT);
    expect(&g, QUERN_ERROR_MODEL, "too large");
}

static void tensors_are_checked(void **state)
{
    (void)state;
    float data[2] = { 1, 2 };
    static const struct {
        int64_t dims[2];
        const char *text;
    } cases[] = { { { 2, 3 }, "8 bytes of data where its dimensions ask for 24" },
                  { { -1, 2 }, "negative dimension" },
                  { { INT64_MAX, INT64_MAX }, "too large" },
                  { { 1 << 30, 1 << 30 }, "too large" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        onnx_bytes g = { 0 }, t = onnx_tensor("w", ONNX_FLOAT, 2, cases[i].dims, data, sizeof data);
        onnx_put_message(&g, 5, &t);
        onnx_output(&g, "w", ONNX_FLOAT);
        expect(&g, QUERN_ERROR_MODEL, cases[i].text);
    }
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    onnx_bytes g = { 0 };
    onnx_input(&g, "x", ONNX_FLOAT, "2");
    for (int i = 0; i < 2000; i++) {
        onnx_bytes outer = { 0 }, node = onnx_node("If", "c", "y");
        onnx_attr_graph(&node, "then_branch", &g);
        onnx_put_node(&outer, &node);
        g = outer;
    }
    expect(&g, QUERN_ERROR_MODEL, "nested too deeply");
}

static onnx_bytes function(const char *name, const char *op, const char *domain)
{
    onnx_bytes f = { 0 }, node = onnx_node(op, "a", "b"), again = onnx_node(op, "b", "c"), id = { 0 };
    onnx_put_string(&node, 7, domain);
    onnx_put_string(&again, 7, domain);
    onnx_put_string(&f, 1, name);
    onnx_put_string(&f, 4, "a");
    onnx_put_string(&f, 5, "c");
    onnx_put_message(&f, 7, &node);
    onnx_put_message(&f, 7, &again);
    onnx_put_int(&id, 2, 18);
    onnx_put_message(&f, 9, &id);
    onnx_put_string(&f, 10, "f");
    return f;
}

static onnx_bytes call_function(const char *name)
{
    onnx_bytes g = { 0 }, call = onnx_node(name, "x", "y");
    onnx_put_string(&call, 7, "f");
    onnx_input(&g, "x", ONNX_FLOAT, "2");
    onnx_put_node(&g, &call);
    onnx_output(&g, "y", ONNX_FLOAT);
    return onnx_model(&g, 18);
}

static void functions_are_inlined(void **state)
{
    (void)state;
    onnx_bytes model = call_function("Twice"), f = function("Twice", "Relu", "");
    onnx_put_message(&model, 25, &f);
import it = load(model, NULL);
    assert_int_equal(it.status, QUERN_OK);
    int n = 0;
    QN_FOR_NODES (it.module->functions[0], node)
        n += node->op == QN_OP_RELU;
    assert_int_equal(n, 2);
    drop(&it);
}

static void recursion_is_bounded(void **state)
{
    (void)state;
    onnx_bytes model = call_function("Self"), f = function("Self", "Self", "f");
    onnx_put_message(&model, 25, &f);
import it = load(model, NULL);
    assert_int_equal(it.status, QUERN_ERROR_MODEL);
    assert_has(it.text, "nested more than 64 deep");
    drop(&it);
}

/* 2^40 nodes out of 40 functions */
static void inlining_is_bounded(void **state)
{
    (void)state;
    onnx_bytes model = call_function("F0");
    for (int i = 0; i < 40; i++) {
        char name[8], next[8];
        snprintf(name, sizeof name, "F%d", i);
        snprintf(next, sizeof next, "F%d", i + 1);
        onnx_bytes f = i == 39 ? function(name, "Relu", "") : function(name, next, "f");
        onnx_put_message(&model, 25, &f);
    }
import it = load(model, NULL);
    assert_int_equal(it.status, QUERN_ERROR_UNSUPPORTED);
    assert_has(it.text, "more than 1000000 nodes");
    drop(&it);
}

/* ---- files ---- */

/* A model whose initializer of two floats is external data. */
static void write_external(const char *path, const char *location, const char *offset, const char *length)
{
    static const char *const keys[3] = { "location", "offset", "length" };
    const char *values[3] = { location, offset, length };
    onnx_bytes g = { 0 }, t = { 0 };
    onnx_put_int(&t, 1, 2);
    onnx_put_int(&t, 2, ONNX_FLOAT);
    onnx_put_string(&t, 8, "w");
    for (int i = 0; i < 3; i++) {
        onnx_bytes entry = { 0 };
        onnx_put_string(&entry, 1, keys[i]);
        onnx_put_string(&entry, 2, values[i]);
        onnx_put_message(&t, 13, &entry);
    }
    onnx_put_int(&t, 14, 1);
    onnx_put_message(&g, 5, &t);
    onnx_output(&g, "w", ONNX_FLOAT);
    onnx_bytes model = onnx_model(&g, 18);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(model.data, 1, model.n, file), model.n);
    fclose(file);
    free(model.data);
}

static void external_data_stays_in_the_folder(void **state)
{
    (void)state;
    char folder[] = "/tmp/quern-onnx-XXXXXX", sub[64], model[128], inside[128], outside[128], link_path[128];
    assert_non_null(mkdtemp(folder));
    snprintf(sub, sizeof sub, "%s/m", folder);
    assert_int_equal(mkdir(sub, 0700), 0);
    snprintf(model, sizeof model, "%s/m.onnx", sub);
    snprintf(inside, sizeof inside, "%s/w.bin", sub);
    snprintf(outside, sizeof outside, "%s/out.bin", folder);
    snprintf(link_path, sizeof link_path, "%s/link.bin", sub);
    const char *const files[2] = { inside, outside };
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(files[i], "wb");
        assert_non_null(file);
        float data[4] = { 1, 2, 3, 4 };
        assert_int_equal(fwrite(data, sizeof *data, 4, file), 4);
        fclose(file);
    }
    assert_int_equal(symlink(outside, link_path), 0);
    const struct {
        const char *location, *offset, *length;
        qn_status status;
        const char *text;
    } cases[] = { { "w.bin", "4", "8", QUERN_OK, "[2, 3]" },
                  { "./w.bin", "8", "8", QUERN_OK, "[3, 4]" },
                  { "../out.bin", "0", "8", QUERN_ERROR_IO, "inside the model's folder" },
                  { outside, "0", "8", QUERN_ERROR_IO, "inside the model's folder" },
                  { "link.bin", "0", "8", QUERN_ERROR_IO, "inside the model's folder" },
                  { "no.bin", "0", "8", QUERN_ERROR_IO, "No such file" },
                  { ".", "0", "8", QUERN_ERROR_IO, "" },
                  { "w.bin", "12", "8", QUERN_ERROR_MODEL, "lies outside" },
                  { "w.bin", "18446744073709551615", "8", QUERN_ERROR_MODEL, "lies outside" },
                  { "w.bin", "0", "4", QUERN_ERROR_MODEL, "4 bytes of data" },
                  { "w.bin", "-1", "8", QUERN_ERROR_MODEL, "not a number" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_external(model, cases[i].location, cases[i].offset, cases[i].length);
import it = {.arena = qn_arena_new() };
        qn_diags_init(&it.diags, it.arena);
        it.status = qn_onnx_load(model, NULL, &it.module, &it.diags);
        it.text = it.status ? qn_diags_text(&it.diags, it.arena)
                            : qn_graph_print(it.module->functions[0], it.arena);
        if (it.status != cases[i].status)
            fail_msg("case %zu: status %d: %s", i, it.status, it.text);
        assert_has(it.text, cases[i].text);
        drop(&it);
    }
    unlink(link_path), unlink(outside), unlink(inside), unlink(model), rmdir(sub), rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_contracts_without_transposing),
        cmocka_unit_test(shape_arithmetic_vanishes),
        cmocka_unit_test(shape_becomes_a_tensor),
        cmocka_unit_test(large_weights_stay_where_they_are),
        cmocka_unit_test(all_unsupported_nodes_are_reported),
        cmocka_unit_test(inputs_can_be_constants),
        cmocka_unit_test(dims_can_be_needed),
        cmocka_unit_test(dims_can_be_fixed_and_bounded),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(damage_is_survived),
        cmocka_unit_test(names_are_checked),
        cmocka_unit_test(types_are_checked),
        cmocka_unit_test(tensors_are_checked),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(functions_are_inlined),
        cmocka_unit_test(recursion_is_bounded),
        cmocka_unit_test(inlining_is_bounded),
        cmocka_unit_test(external_data_stays_in_the_folder),
    };
    return cmocka_run_group_tests_name("onnx", tests, NULL, NULL);
}
