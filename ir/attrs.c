/* The tables of ops and attributes, made from ops.def and attrs.def, and the reading of a node's attributes. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "ir/graph.h"

/* The words of ops.def. */
enum {
    COMMUTES = QN_FLAG_COMMUTES,
    EFFECT = QN_FLAG_EFFECT,
    SMOOTH = QN_FLAG_SMOOTH,
    COMPOSITE = QN_FLAG_COMPOSITE,
    BINDS = QN_FLAG_BINDS
};

const qn_op_info qn_ops[QN_N_OPS] = {
#define QN_OP(op, text, class, min, max, results, dtypes, flags, attrs) \
    [QN_OP_##op] = { text, QN_##class, min, max, results, dtypes, flags, attrs },
#include "ir/ops.def"
#undef QN_OP
};

const qn_attr_info qn_attrs[QN_N_ATTRS] = {
#define QN_ATTR(attr, text, kind) [QN_ATTR_##attr] = { text, QN_ATTR_KIND_##kind },
#include "ir/attrs.def"
#undef QN_ATTR
};

const char *const qn_kind_names[QN_N_KINDS] = { "sum", "prod", "max", "min", "set", "mean" };
const char *const qn_direction_names[6] = { "eq", "ne", "lt", "le", "gt", "ge" };

qn_scalar qn_neutral(qn_kind kind, qn_dtype dtype)
{
    const bool is_float = qn_dtype_is_float(dtype), low = kind == QN_KIND_MAX;
    const int bits = 8 * (int)qn_dtype_bytes(dtype);
    switch (kind) {
    case QN_SUM: return is_float ? (qn_scalar){ .f = 0 } : (qn_scalar){ .i = 0 };
    case QN_PROD: return is_float ? (qn_scalar){ .f = 1 } : (qn_scalar){ .i = 1 };
    case QN_KIND_MAX:
    case QN_KIND_MIN:
        if (is_float)
            return (qn_scalar){ .f = low ? -INFINITY : INFINITY };
        if (dtype == QUERN_BOOL)
            return (qn_scalar){ .i = !low };
        if (qn_dtype_class_of(dtype) == QN_CLASS_UNSIGNED)
            return (qn_scalar){ .i = low ? 0 : (int64_t)(UINT64_MAX >> (64 - bits)) };
        return (qn_scalar){ .i = low ? INT64_MIN >> (64 - bits) : INT64_MAX >> (64 - bits) };
    case QN_SET:
    case QN_MEAN:
    case QN_N_KINDS: break;
    }
    QN_UNREACHABLE("no neutral element of %s", qn_kind_names[kind]);
}

qn_op qn_op_parse(const char *name, size_t length)
{
    for (int op = 0; op < QN_N_OPS; op++)
        if (strncmp(qn_ops[op].name, name, length) == 0 && qn_ops[op].name[length] == 0)
            return (qn_op)op;
    return QN_N_OPS;
}

qn_attr_key qn_attr_parse(const char *name, size_t length)
{
    for (int key = 0; key < QN_N_ATTRS; key++)
        if (strncmp(qn_attrs[key].name, name, length) == 0 && qn_attrs[key].name[length] == 0)
            return (qn_attr_key)key;
    return QN_N_ATTRS;
}

_Static_assert(QN_N_ATTRS < 63, "a set of attributes is a 64-bit word, whose top bit says that it is known");
#define KNOWN ((uint64_t)1 << 63)

/* Reads "axis causal? scale". */
static void read_attr_list(qn_op op, uint64_t *out_taken, uint64_t *out_required)
{
    *out_taken = *out_required = 0;
    for (const char *at = qn_ops[op].attrs; *at;) {
        const size_t length = strcspn(at, " ?");
        const qn_attr_key key = qn_attr_parse(at, length);
        QN_ASSERT(key != QN_N_ATTRS, "ops.def: %s takes an unknown attribute '%.*s'", qn_ops[op].name,
                  (int)length, at);
        at += length;
        *out_taken |= (uint64_t)1 << key;
        if (*at == '?')
            at++;
        else
            *out_required |= (uint64_t)1 << key;
        at += strspn(at, " ");
    }
}

uint64_t qn_op_attrs(qn_op op, uint64_t *out_required)
{
    static _Atomic uint64_t taken[QN_N_OPS], required[QN_N_OPS]; /* every thread would store the same */
    uint64_t t = atomic_load_explicit(&taken[op], memory_order_acquire);
    uint64_t r;
    if (t & KNOWN) {
        r = atomic_load_explicit(&required[op], memory_order_relaxed);
    } else {
        read_attr_list(op, &t, &r);
        atomic_store_explicit(&required[op], r, memory_order_relaxed);
        atomic_store_explicit(&taken[op], t | KNOWN, memory_order_release);
    }
    if (out_required)
        *out_required = r;
    return t & ~KNOWN;
}

const qn_attr *qn_attr_find(const qn_node *node, qn_attr_key key)
{
    for (int i = 0; i < node->n_attrs && node->attrs[i].key <= key; i++)
        if (node->attrs[i].key == key)
            return &node->attrs[i];
    return NULL;
}

static const qn_attr *get(const qn_node *node, qn_attr_key key)
{
    const qn_attr *attr = qn_attr_find(node, key);
    QN_ASSERT(attr, "%s without attribute '%s'", qn_ops[node->op].name, qn_attrs[key].name);
    return attr;
}

int64_t qn_attr_int(const qn_node *node, qn_attr_key key)
{
    return get(node, key)->i;
}

int64_t qn_attr_int_or(const qn_node *node, qn_attr_key key, int64_t fallback)
{
    const qn_attr *attr = qn_attr_find(node, key);
    return attr ? attr->i : fallback;
}

double qn_attr_float(const qn_node *node, qn_attr_key key)
{
    return get(node, key)->f;
}

bool qn_attr_bool(const qn_node *node, qn_attr_key key)
{
    return qn_attr_int_or(node, key, 0) != 0;
}

const int64_t *qn_attr_ints(const qn_node *node, qn_attr_key key, int *out_n)
{
    const qn_attr *attr = get(node, key);
    if (out_n)
        *out_n = attr->n;
    return attr->ints;
}

const qn_dim *qn_attr_dims(const qn_node *node, qn_attr_key key, int *out_n)
{
    const qn_attr *attr = get(node, key);
    if (out_n)
        *out_n = attr->n;
    return attr->dims;
}

const qn_tensor *qn_attr_tensor(const qn_node *node, qn_attr_key key)
{
    return get(node, key)->tensor;
}

const char *qn_attr_string(const qn_node *node, qn_attr_key key)
{
    return get(node, key)->s;
}

qn_kind qn_attr_reduce_kind(const qn_node *node)
{
    return (qn_kind)get(node, QN_ATTR_KIND)->i;
}

qn_direction qn_attr_compare_direction(const qn_node *node)
{
    return (qn_direction)get(node, QN_ATTR_DIRECTION)->i;
}

qn_dot_side qn_dot_side_of(const qn_node *node, int operand)
{
    qn_dot_side s = { 0 };
    const int64_t *batch = qn_attr_ints(node, operand ? QN_ATTR_Y_BATCH : QN_ATTR_X_BATCH, &s.n_batch);
    const int64_t *contract =
        qn_attr_ints(node, operand ? QN_ATTR_Y_CONTRACT : QN_ATTR_X_CONTRACT, &s.n_contract);
    bool used[QN_MAX_RANK] = { false };
    for (int i = 0; i < s.n_batch; i++)
        used[s.batch[i] = batch[i]] = true;
    for (int i = 0; i < s.n_contract; i++)
        used[s.contract[i] = contract[i]] = true;
    for (int i = 0; i < node->operands[operand]->type.rank; i++) {
        if (!used[i])
            s.free[s.n_free++] = i;
    }
    return s;
}

int qn_packed_zeros(const qn_node *node)
{
    return node->n_operands > 3 && node->operands[3]->type.dtype == QUERN_U8 ? 3 : 0;
}

int qn_packed_factors(const qn_node *node)
{
    const int last = node->n_operands - 1;
    return last > 2 && last > qn_packed_zeros(node) ? last : 0;
}

static bool equal_tensors(const qn_tensor *a, const qn_tensor *b)
{
    return qn_type_equal(&a->type, &b->type) && qn_tensor_same_bytes(a, b);
}

bool qn_attr_equal(const qn_attr *a, const qn_attr *b)
{
    if (a->key != b->key || a->n != b->n)
        return false;
    switch (qn_attrs[a->key].kind) {
    case QN_ATTR_KIND_FLOAT: return memcmp(&a->f, &b->f, sizeof a->f) == 0;
    case QN_ATTR_KIND_INTS: return a->n == 0 || memcmp(a->ints, b->ints, (size_t)a->n * sizeof *a->ints) == 0;
    case QN_ATTR_KIND_DIMS: /* hash-consed */
        return a->n == 0 || memcmp(a->dims, b->dims, (size_t)a->n * sizeof(qn_dim)) == 0;
    case QN_ATTR_KIND_STRING: return strcmp(a->s, b->s) == 0;
    case QN_ATTR_KIND_TENSOR: return equal_tensors(a->tensor, b->tensor);
    default: return a->i == b->i;
    }
}
