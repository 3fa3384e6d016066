/* Tensors from nothing, values of tensors, and ops by their name. */
#include <math.h>
#include <string.h>

#include "driver/api.h"
#include "driver/tape.h"
#include "frontend/text/text.h"
#include "ir/narrow.h"
#include "runtime/error.h"

/* ---- filled ---- */

/* A tensor of these dims to be filled, as operand 0 of the call: its contents are not read, but its axes say to the kernel
 * how much there is to fill. `n_axes` of them: 1 for all together, or each. */
static quern_tensor *add_target(qn_eager_call *call, int rank, const int64_t *dims, int n_axes)
{
    static const uint8_t axes[] = { 0, 1 };
    quern_tensor *target = qn_tensor_make(call->dtype, rank, dims, false); /* checks dtype and dims */
    if (!target)
        return NULL;
    call->elementwise = true; /* the result replaces it */
    for (int i = 0; i < n_axes; i++)
        qn_eager_symbol(call, n_axes == 1 ? target->elements : dims[i]);
    qn_eager_add(call, target, n_axes, axes);
    call->x[0].extent = true;
    return target;
}

static quern_tensor *make(qn_eager_build build, int dtype, int rank, const int64_t *dims, int n_axes, int n,
                          const double *numbers)
{
    qn_eager_call call = { .name = "new tensor", .build = build, .dtype = dtype };
    quern_tensor *target = add_target(&call, rank, dims, n_axes), *scalars[2] = { NULL, NULL };
    if (!target)
        return NULL;
    for (int i = 0; i < n; i++) {
        scalars[i] = qn_tensor_number(QUERN_F64, numbers[i], 0);
        qn_eager_add(&call, scalars[i], 0, NULL);
    }
    quern_tensor *made = qn_eager_run(&call, rank, dims, target);
    quern_tensor_free(target);
    for (int i = 0; i < n; i++)
        quern_tensor_free(scalars[i]);
    return qn_tensor_give(made);
}

static qn_value *build_full(qn_builder *b, const qn_eager_call *call, qn_value *const *x, const qn_dim *dims)
{
    return qn_b_broadcast_to(b, qn_b_convert(b, (qn_dtype)call->dtype, x[1]), 1, dims);
}

quern_tensor *quern_tensor_full(int dtype, int rank, const int64_t *dims, double value)
{
    return make(build_full, dtype, rank, dims, 1, 1, &value);
}

quern_tensor *quern_tensor_new(int dtype, int rank, const int64_t *dims)
{
    if (qn_tape_active())
        return quern_tensor_full(dtype, rank, dims, 0);
    return qn_tensor_give(qn_tensor_make(dtype, rank, dims, true));
}

/* start + i step, in f64, or exactly in i64 where both are whole. */
static qn_value *build_arange(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                              const qn_dim *dims)
{
    qn_dtype dtype = qn_is_real((qn_dtype)call->dtype) ? QUERN_F64 : QUERN_I64;
    qn_type type = qn_type_make(b->graph->module, dtype, 1, dims);
    qn_value *start = qn_b_broadcast_to(b, qn_b_convert(b, dtype, x[1]), 1, dims);
    qn_value *step = qn_b_broadcast_to(b, qn_b_convert(b, dtype, x[2]), 1, dims);
    qn_value *far = qn_b_binary(b, QN_OP_MUL, qn_b_iota(b, &type, 0), step);
    return qn_b_binary(b, QN_OP_ADD, start, far);
}

quern_tensor *quern_tensor_arange(int dtype, double start, double stop, double step)
{
    double count = ceil((stop - start) / step);
    if (!(count < 0x1p40) || step == 0) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_arange: from %g to %g by %g has no end", start, stop,
                step);
        return NULL;
    }
    int64_t n = count > 0 ? (int64_t)count : 0;
    return make(build_arange, dtype, 1, &n, 1, 2, (double[]){ start, step });
}

static qn_value *build_eye(qn_builder *b, const qn_eager_call *call, qn_value *const *x, const qn_dim *dims)
{
    (void)call, (void)x;
    qn_type type = qn_type_make(b->graph->module, QUERN_I64, 2, dims);
    return qn_b_compare(b, QN_EQ, qn_b_iota(b, &type, 0), qn_b_iota(b, &type, 1));
}

quern_tensor *quern_tensor_eye(int dtype, int64_t n)
{
    return make(build_eye, dtype, 2, (const int64_t[]){ n, n }, 2, 0, NULL);
}

/* ---- random ---- */

static qn_value *build_random(qn_builder *b, const qn_eager_call *call, qn_value *const *x,
                              const qn_dim *dims)
{
    const qn_dim one[] = { qn_dim_const(qn_b_dims(b), 1) };
    qn_type type = qn_type_make(b->graph->module, (qn_dtype)call->dtype, 1, dims);
    qn_value *zero = qn_b_scalar_int(b, QUERN_U64, 0);
    qn_value *halves[] = { qn_b_reshape(b, x[1], 1, one), qn_b_reshape(b, zero, 1, one) };
    qn_value *key = qn_b_concatenate(b, 2, halves, 0);
    return call->attrs[0] ? qn_b_random_normal(b, key, zero, &type)
                          : qn_b_random_uniform(b, key, zero, &type);
}

static quern_tensor *random_tensor(const char *name, bool normal, int dtype, int rank, const int64_t *dims,
                                   uint64_t seed)
{
    if (dtype != QUERN_F32 && dtype != QUERN_F64) {
        qn_fail(QUERN_ERROR_ARGUMENT, "%s: random numbers are of f32 or f64, not %s", name,
                quern_dtype_text(dtype));
        return NULL;
    }
    qn_eager_call call = {
        .name = name, .build = build_random, .n_attrs = 1, .attrs = { normal }, .dtype = dtype
    };
    quern_tensor *target = add_target(&call, rank, dims, 1), *made = NULL;
    quern_tensor *key = qn_tensor_make(QUERN_U64, 0, NULL, false);
    if (target && key) {
        memcpy(key->data, &seed, sizeof seed);
        qn_eager_add(&call, key, 0, NULL);
        made = qn_eager_run(&call, rank, dims, target);
    }
    quern_tensor_free(target);
    quern_tensor_free(key);
    return qn_tensor_give(made);
}

quern_tensor *quern_tensor_uniform(int dtype, int rank, const int64_t *dims, uint64_t seed)
{
    return random_tensor("quern_tensor_uniform", false, dtype, rank, dims, seed);
}

quern_tensor *quern_tensor_randn(int dtype, int rank, const int64_t *dims, uint64_t seed)
{
    return random_tensor("quern_tensor_randn", true, dtype, rank, dims, seed);
}

/* ---- values ---- */

int quern_tensor_item(const quern_tensor *x, double *out)
{
    char text[256];
    if (!x)
        return QUERN_ERROR_ARGUMENT;
    if (x->elements != 1)
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_item: %s has %lld elements, not one",
                       qn_tensor_text(x, text), (long long)x->elements);
    const bool is_float = qn_dtype_is_float((qn_dtype)x->dtype);
    char bytes[8];
    if (x->storage->device) {
        int status =
            qn_cuda_to_host(x->storage->device->cuda, bytes, (uintptr_t)x->data, quern_dtype_size(x->dtype));
        if (status)
            return status;
    }
    qn_scalar value = qn_scalar_load((qn_dtype)x->dtype, x->storage->device ? bytes : x->data);
    *out = is_float                                 ? value.f
           : qn_dtype_is_stored((qn_dtype)x->dtype) ? qn_narrow_value((qn_dtype)x->dtype, (uint8_t)value.i)
           : x->dtype == QUERN_U64                  ? (double)(uint64_t)value.i
                                                    : (double)value.i;
    return QUERN_OK;
}

/* ---- any op ---- */

/* Symbols of equal extents are one: ops want equal dims to be the same. */
static void add_shared(qn_eager_call *call, const quern_tensor *x)
{
    uint8_t axes[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < x->rank; i++) {
        int s = 0;
        while (s < call->n_symbols && call->symbols[s] != x->dims[i])
            s++;
        axes[i] = (uint8_t)(s < call->n_symbols ? s : qn_eager_symbol(call, x->dims[i]));
    }
    qn_eager_add(call, x, x->rank, axes);
}

static qn_value *build_op(qn_builder *b, const qn_eager_call *call, qn_value *const *x, const qn_dim *dims)
{
    (void)dims;
    const qn_op op = (qn_op)call->attrs[0];
    int n_attrs = 0;
    qn_attr *attrs = NULL;
    if (qn_text_parse_attrs(call->text, call->name, op, b->graph->module, &n_attrs, &attrs, b->diags))
        return NULL;
    qn_node *node = qn_node_new(b->graph, NULL, op, call->n, x, n_attrs, attrs, 0, NULL, &b->loc, b->diags);
    return node && node->n_results ? &node->results[0] : NULL;
}

quern_tensor *quern_tensor_op(const char *name, int n, const quern_tensor *const *operands,
                              const char *attributes)
{
    qn_op op = name ? qn_op_parse(name, strlen(name)) : QN_N_OPS;
    if (op == QN_N_OPS || op == QN_OP_IF || op == QN_OP_WHILE || op == QN_OP_SCAN || op == QN_OP_CALL) {
        qn_fail(QUERN_ERROR_ARGUMENT,
                "quern_tensor_op: '%s' is no op without regions (docs/ops.md lists them)", name ? name : "");
        return NULL;
    }
    const int most = qn_ops[op].max_operands < 0 ? QN_EAGER_OPERANDS : qn_ops[op].max_operands;
    if (n < qn_ops[op].min_operands || n > most || (attributes && strlen(attributes) > 200)) {
        qn_fail(QUERN_ERROR_ARGUMENT,
                "quern_tensor_op: %s takes %d to %d operands and up to 200 letters of attributes", name,
                qn_ops[op].min_operands, most);
        return NULL;
    }
    qn_eager_call call = { .name = qn_ops[op].name, .build = build_op, .n_attrs = 1, .attrs = { op } };
    call.text = attributes ? attributes : "";
    call.fixed = true;
    int axes = 0;
    for (int i = 0; i < n; i++) {
        if (!operands[i])
            return NULL;
        axes += operands[i]->rank;
    }
    if (axes > QN_EAGER_SYMBOLS) {
        qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_op: the operands have %d axes in all; at most %d", axes,
                QN_EAGER_SYMBOLS);
        return NULL;
    }
    for (int i = 0; i < n; i++)
        add_shared(&call, operands[i]);
    return qn_tensor_give(qn_eager_run_as_found(&call));
}
