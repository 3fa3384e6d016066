/* Numeric facts about i64 scalars: inclusive bounds and a divisor, derived from an instruction's operands when it is made.
 * Sound for every execution; INT64_MIN and INT64_MAX mean unknown. */
#include "ir/kernel_edit.h"

static int64_t magnitude(int64_t a)
{
    return a == INT64_MIN ? (int64_t)1 << 62 : a < 0 ? -a : a;
}

/* gcd(0, a) = a: 0 is a multiple of everything. */
static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* a + b, a - b or a * b, saturated; *overflow is set where it did not fit. */
static int64_t saturated(qn_op fn, int64_t a, int64_t b, bool *overflow)
{
    int64_t r;
    bool over, negative;
    switch (fn) {
    case QN_OP_ADD:
        over = __builtin_add_overflow(a, b, &r);
        negative = a < 0;
        break;
    case QN_OP_SUB:
        over = __builtin_sub_overflow(a, b, &r);
        negative = a < 0;
        break;
    default:
        over = __builtin_mul_overflow(a, b, &r);
        negative = (a < 0) != (b < 0);
        break;
    }
    *overflow = *overflow || over;
    return over ? negative ? INT64_MIN : INT64_MAX : r;
}

static bool unknown_below(int64_t v)
{
    return v == INT64_MIN;
}

static bool unknown_above(int64_t v)
{
    return v == INT64_MAX;
}

/* Infinite ends stay infinite; index arithmetic does not overflow, so a sum that saturates is a valid (wide) bound. */
static void bound_sum(qn_kvalue *v, qn_op fn, const qn_kvalue *x, const qn_kvalue *y, bool index_math)
{
    int64_t y_low = fn == QN_OP_SUB ? y->max : y->min, y_high = fn == QN_OP_SUB ? y->min : y->max;
    bool overflow =
        unknown_below(x->min) || unknown_above(x->max) || unknown_below(y->min) || unknown_above(y->max);
    int64_t low = saturated(fn, x->min, y_low, &overflow), high = saturated(fn, x->max, y_high, &overflow);
    if (overflow && !index_math)
        return;
    bool open_below =
        unknown_below(x->min) || (fn == QN_OP_SUB ? unknown_above(y_low) : unknown_below(y_low));
    bool open_above =
        unknown_above(x->max) || (fn == QN_OP_SUB ? unknown_below(y_high) : unknown_above(y_high));
    v->min = open_below ? INT64_MIN : low;
    v->max = open_above ? INT64_MAX : high;
}

static void bound_product(qn_kvalue *v, const qn_kvalue *x, const qn_kvalue *y, bool index_math)
{
    bool overflow = false;
    int64_t a = saturated(QN_OP_MUL, x->min, y->min, &overflow);
    int64_t b = saturated(QN_OP_MUL, x->min, y->max, &overflow);
    int64_t c = saturated(QN_OP_MUL, x->max, y->min, &overflow);
    int64_t d = saturated(QN_OP_MUL, x->max, y->max, &overflow);
    overflow = overflow || unknown_below(x->min) || unknown_above(x->max) || unknown_below(y->min) ||
               unknown_above(y->max);
    if (overflow && !index_math)
        return;
    v->min = min64(min64(a, b), min64(c, d));
    v->max = max64(max64(a, b), max64(c, d));
    /* An unknown end times something finite is not a bound, unless that something is 0 or keeps the sign. */
    bool x_open = unknown_below(x->min) || unknown_above(x->max);
    bool y_open = unknown_below(y->min) || unknown_above(y->max);
    if ((x_open && !(y->min == 0 && y->max == 0)) || (y_open && !(x->min == 0 && x->max == 0))) {
        if (!(x->min >= 0 && y->min >= 0))
            v->min = INT64_MIN;
        v->max = INT64_MAX;
    }
}

/* What x - y is a multiple of where y is what a division leaves: z + a - z mod n, where the vectors of a loop from a on end. */
static int64_t multiple_of_whole(const qn_kvalue *x, const qn_kvalue *y)
{
    if (!y->inst || y->inst->op != QN_K_BINARY || y->inst->fn != QN_OP_REM || !y->inst->index_math)
        return 1;
    const qn_kvalue *z = y->inst->operands[0];
    const int64_t n = y->inst->operands[1]->multiple;
    if (x == z)
        return n;
    if (!x->inst || x->inst->op != QN_K_BINARY || x->inst->fn != QN_OP_ADD || !x->inst->index_math)
        return 1;
    return x->inst->operands[1] == z   ? gcd(n, x->inst->operands[0]->multiple)
           : x->inst->operands[0] == z ? gcd(n, x->inst->operands[1]->multiple)
                                       : 1;
}

static void bound_binary(qn_kvalue *v, const qn_kinst *inst)
{
    const qn_kvalue *x = inst->operands[0], *y = inst->operands[1];
    int64_t product;
    switch (inst->fn) {
    case QN_OP_ADD:
    case QN_OP_SUB:
        bound_sum(v, inst->fn, x, y, inst->index_math);
        if (inst->index_math)
            v->multiple = gcd(x->multiple, y->multiple);
        if (inst->index_math && inst->fn == QN_OP_SUB)
            v->multiple = max64(v->multiple, multiple_of_whole(x, y));
        break;
    case QN_OP_MUL:
        bound_product(v, x, y, inst->index_math);
        if (inst->index_math)
            v->multiple = __builtin_mul_overflow(x->multiple, y->multiple, &product)
                              ? max64(x->multiple, y->multiple)
                              : product;
        break;
    case QN_OP_DIV:
        if (x->min >= 0 && y->min >= 1) {
            v->min = x->min / y->max;
            v->max = x->max / y->min;
        }
        if (inst->index_math && y->min == y->max && y->min >= 1 && x->multiple % y->min == 0)
            v->multiple = x->multiple / y->min;
        break;
    case QN_OP_REM:
        if (x->min >= 0 && y->min >= 1) {
            v->min = 0;
            v->max = min64(x->max, y->max - 1);
        }
        v->multiple = gcd(x->multiple, y->multiple);
        break;
    case QN_OP_MIN:
        v->min = min64(x->min, y->min);
        v->max = min64(x->max, y->max);
        v->multiple = gcd(x->multiple, y->multiple);
        break;
    case QN_OP_MAX:
        v->min = max64(x->min, y->min);
        v->max = max64(x->max, y->max);
        v->multiple = gcd(x->multiple, y->multiple);
        break;
    case QN_OP_AND:
        if (x->min >= 0 || y->min >= 0) {
            v->min = 0;
            v->max = x->min < 0 ? y->max : y->min < 0 ? x->max : min64(x->max, y->max);
        }
        break;
    case QN_OP_SHIFT_RIGHT:
        if (y->min == y->max && y->min >= 0 && y->min < 64) {
            v->min = unknown_below(x->min) ? INT64_MIN : x->min >> y->min;
            v->max = unknown_above(x->max) ? INT64_MAX : x->max >> y->min;
        }
        break;
    default: break;
    }
}

static void bound_union(qn_kvalue *v, const qn_kvalue *x, const qn_kvalue *y)
{
    v->min = min64(x->min, y->min);
    v->max = max64(x->max, y->max);
    v->multiple = gcd(x->multiple, y->multiple);
}

static void bound_convert(qn_kvalue *v, const qn_kvalue *x)
{
    qn_dtype from = x->type.dtype;
    int bits = 8 * (int)qn_dtype_bytes(from);
    if (from == QUERN_BOOL) {
        v->min = 0;
        v->max = 1;
    } else if (qn_dtype_class_of(from) == QN_CLASS_SIGNED) {
        v->min = INT64_MIN >> (64 - bits);
        v->max = INT64_MAX >> (64 - bits);
    } else if (qn_dtype_class_of(from) == QN_CLASS_UNSIGNED && bits < 64) {
        v->min = 0;
        v->max = INT64_MAX >> (63 - bits);
    }
}

void qn_kinst_bound(const qn_kernel *k, qn_kinst *inst)
{
    if (inst->op == QN_K_IF) {
        for (int i = 0; i < inst->n_results; i++)
            if (qn_k_is_index(&inst->results[i]))
                bound_union(&inst->results[i], inst->blocks[0]->yields[i], inst->blocks[1]->yields[i]);
        return;
    }
    if (inst->n_results != 1 || !qn_k_is_index(&inst->results[0]))
        return;
    qn_kvalue *v = &inst->results[0];
    switch (inst->op) {
    case QN_K_CONST:
        v->min = v->max = inst->imm.i;
        v->multiple = magnitude(inst->imm.i);
        break;
    case QN_K_PARAM:
        v->min = k->param_min[inst->index];
        v->max = k->param_max[inst->index];
        v->multiple = k->param_multiple[inst->index];
        break;
    case QN_K_TASK:
        v->min = 0;
        v->max = QN_TASK_MAX;
        break;
    case QN_K_THREAD:
        v->min = 0;
        v->max = k->gpu_threads - 1;
        break;
    case QN_K_BINARY: bound_binary(v, inst); break;
    case QN_K_SELECT: bound_union(v, inst->operands[1], inst->operands[2]); break;
    case QN_K_CONVERT: bound_convert(v, inst->operands[0]); break;
    default: break;
    }
}

void qn_kfor_bound(qn_kinst *loop)
{
    const qn_kvalue *low = loop->operands[0], *high = loop->operands[1], *step = loop->operands[2];
    qn_kvalue *counter = qn_loop_counter(loop);
    counter->min = low->min;
    counter->max = unknown_above(high->max) || unknown_below(high->max) ? high->max : high->max - 1;
    counter->multiple = gcd(low->multiple, step->multiple);
    int64_t width;
    if (low->min == low->max && step->min == step->max && step->min > 1 && !unknown_above(counter->max) &&
        !__builtin_sub_overflow(counter->max, low->min, &width) && width >= 0)
        counter->max = low->min + width / step->min * step->min;
    if (counter->max < counter->min) /* never runs */
        counter->max = counter->min;
}
