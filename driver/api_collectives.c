/* quern.h: collectives in a graph. The ops go along axis 0: another axis becomes the first and goes back. */
#include "driver/api_builder.h"

static const struct {
    int combine;
    qn_kind kind;
} kinds[] = { { QUERN_COMBINE_SUM, QN_SUM },
              { QUERN_COMBINE_MEAN, QN_MEAN },
              { QUERN_COMBINE_MAX, QN_KIND_MAX },
              { QUERN_COMBINE_MIN, QN_KIND_MIN } };

/* False after a report. */
static bool find_kind(quern_builder *b, const char *call, int combine, qn_kind *out)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].combine == combine) {
            *out = kinds[i].kind;
            return true;
        }
    qn_build_fail(b, call, "there is no way %d to combine: see quern_combine", combine);
    return false;
}

/* x with axis `axis` first, or that undone. */
static qn_value *axis_first(quern_builder *b, qn_value *x, int axis, bool undo)
{
    int64_t perm[QN_MAX_RANK];
    for (int i = 0; x && i < x->type.rank; i++)
        if (undo)
            perm[i] = i < axis ? i + 1 : i == axis ? 0 : i;
        else
            perm[i] = i == 0 ? axis : i <= axis ? i - 1 : i;
    return x ? qn_b_transpose(&b->build, x, perm) : NULL;
}

quern_value *quern_all_reduce(quern_builder *b, quern_value *x, int combine)
{
    qn_kind kind;
    if (!qn_build_begin(b, "quern_all_reduce", 1, &x) || !find_kind(b, "quern_all_reduce", combine, &kind))
        return NULL;
    return qn_out(qn_b_all_reduce(&b->build, kind, qn_in(x)));
}

quern_value *quern_all_gather(quern_builder *b, quern_value *x, int axis, int ranks)
{
    if (!qn_build_begin(b, "quern_all_gather", 1, &x) ||
        (axis = qn_build_axis(b, "quern_all_gather", x, axis)) < 0)
        return NULL;
    qn_value *all = qn_b_all_gather(&b->build, axis_first(b, qn_in(x), axis, false), ranks);
    return qn_out(axis_first(b, all, axis, true));
}

quern_value *quern_reduce_scatter(quern_builder *b, quern_value *x, int combine, int axis, int ranks)
{
    static const char call[] = "quern_reduce_scatter";
    qn_kind kind;
    if (!qn_build_begin(b, call, 1, &x) || !find_kind(b, call, combine, &kind) ||
        (axis = qn_build_axis(b, call, x, axis)) < 0)
        return NULL;
    qn_value *part = qn_b_reduce_scatter(&b->build, kind, axis_first(b, qn_in(x), axis, false), ranks);
    return qn_out(axis_first(b, part, axis, true));
}

quern_value *quern_broadcast_rank(quern_builder *b, quern_value *x, int root)
{
    if (!qn_build_begin(b, "quern_broadcast_rank", 1, &x))
        return NULL;
    return qn_out(qn_b_broadcast_rank(&b->build, qn_in(x), root));
}

quern_value *quern_rank(quern_builder *b)
{
    return qn_build_begin(b, "quern_rank", 0, NULL) ? qn_out(qn_b_rank(&b->build)) : NULL;
}
