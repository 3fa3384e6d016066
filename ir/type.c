/* Types of values. */
#include <string.h>

#include "ir/graph.h"

bool qn_type_equal(const qn_type *a, const qn_type *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           (a->rank == 0 || memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims) == 0);
}

bool qn_type_is_static(const qn_type *type)
{
    for (int i = 0; i < type->rank; i++)
        if (!qn_dim_is_const(type->dims[i]))
            return false;
    return true;
}

int64_t qn_type_elements(const qn_type *type)
{
    int64_t n = 1;
    bool overflow = false;
    for (int i = 0; i < type->rank; i++) {
        QN_ASSERT(qn_dim_is_const(type->dims[i]), "the number of elements of a type that is not static");
        if (type->dims[i]->value == 0)
            return 0;
        overflow |= __builtin_mul_overflow(n, type->dims[i]->value, &n);
    }
    return overflow ? INT64_MAX : n;
}

double qn_type_most_elements(const qn_type *type)
{
    double n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= (double)type->dims[i]->max;
    return n;
}

qn_dim qn_type_elements_dim(qn_dims *dims, const qn_type *type)
{
    qn_dim n = qn_dim_const(dims, 1);
    for (int i = 0; i < type->rank; i++)
        n = qn_dim_mul(dims, n, type->dims[i]);
    return n;
}

const char *qn_type_print(const qn_type *type, qn_arena *arena)
{
    const char *text = qn_arena_printf(arena, "%s[", qn_dtype_name(type->dtype));
    for (int i = 0; i < type->rank; i++)
        text = qn_arena_printf(arena, i ? "%s, %s" : "%s%s", text, qn_dim_print(type->dims[i], arena));
    return qn_arena_printf(arena, "%s]", text);
}

qn_type qn_type_make(qn_module *module, qn_dtype dtype, int rank, const qn_dim *dims)
{
    QN_ASSERT(rank >= 0 && rank <= QN_MAX_RANK, "a type of rank %d", rank);
    return (qn_type){ dtype, rank, qn_arena_copy(module->arena, dims, (size_t)rank * sizeof *dims) };
}

qn_type qn_type_static(qn_module *module, qn_dtype dtype, int rank, const int64_t *dims)
{
    qn_dim extents[QN_MAX_RANK];
    QN_ASSERT(rank >= 0 && rank <= QN_MAX_RANK, "a type of rank %d", rank);
    for (int i = 0; i < rank; i++)
        extents[i] = qn_dim_const(module->dims, dims[i]);
    return qn_type_make(module, dtype, rank, extents);
}
