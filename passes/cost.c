/* Roughly how many vector instructions an element costs. */
#include "passes/passes.h"

int qn_op_cost(qn_op op, qn_dtype dtype)
{
    switch (op) {
    case QN_OP_SQRT:
    case QN_OP_RSQRT:
    case QN_OP_DIV: return 4;
    case QN_OP_REM: return qn_dtype_is_float(dtype) ? 20 : 4;
    case QN_OP_EXP:
    case QN_OP_EXPM1:
    case QN_OP_LOG:
    case QN_OP_LOG1P:
    case QN_OP_SIN:
    case QN_OP_COS:
    case QN_OP_TAN:
    case QN_OP_ASIN:
    case QN_OP_ACOS:
    case QN_OP_ATAN:
    case QN_OP_SINH:
    case QN_OP_COSH:
    case QN_OP_TANH:
    case QN_OP_ASINH:
    case QN_OP_ACOSH:
    case QN_OP_ATANH:
    case QN_OP_ERF:
    case QN_OP_LOGISTIC:
    case QN_OP_GELU:
    case QN_OP_GELU_TANH:
    case QN_OP_SILU:
    case QN_OP_POW:
    case QN_OP_ATAN2:
    case QN_OP_RANDOM_BITS: return 16;
    case QN_OP_GATHER:
    case QN_OP_GATHER_ND:
    case QN_OP_GATHER_ELEMENTS: return 2;
    case QN_OP_IOTA:
    case QN_OP_DIM_VALUE:
    case QN_OP_CONSTANT:
    case QN_OP_STOP_GRADIENT: return 0;
    default: return qn_ops[op].class == QN_ELEMENTWISE ? 1 : 0;
    }
}

int qn_node_cost(const qn_node *node)
{
    return qn_op_cost(node->op, node->results[0].type.dtype);
}
