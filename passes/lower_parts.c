/* LOOP groups that are different things in parts of an axis: what is put together from several values, or padded.
 *
 *   concatenate of a, b: [512, 8], [512, 8]        if task < 2:  for #0 = 0 to 512 …  y[#0, …] = a[#0, …]
 *                                                  else:         for #0 = 0 to 512 …  y[#0 + 512, …] = b[#0, …]
 *
 * Asked for each element, a bound costs a mask and both sides of it, and what is loaded under a mask can't be transposed in
 * registers. In a part all bounds are known from the extents of its variables. Small parts are gone through one after the other
 * inside the loops over the axes before theirs:
 *
 *   concatenate of 27 of [128, 1, 64]              for #0 = 0 to 128
 *                                                    for #1 = 0 to 64  y[#0, 0, #1] = a[#0, #1]
 *                                                    for #2 = 0 to 64  y[#0, 1, #2] = b[#0, #2] … */
#include "passes/lower.h"

enum {
    LEAST_ELEMENTS = 2048, /* of a part with tasks of its own: below, the code costs more than it gives */
    MOST_TASK_PARTS = 8
};

qn_kvalue *qn_writer_task(qn_writer *w)
{
    return w->task ? w->task : qn_kb_task(&w->b);
}

/* The least number of `var` for which d >= limit, where that depends on var alone; -1 where it does not. */
static int64_t turning_point(qn_writer *r, qn_dim d, qn_dim var, int64_t limit)
{
    qn_dim factor, rest;
    if (!qn_ix_affine(&r->space, d, var, &factor, &rest) || !qn_dim_is_const(factor) || factor->value < 1)
        return -1;
    const int64_t low = limit - rest->min, point = low <= 0 ? 0 : (low + factor->value - 1) / factor->value;
    return point == 0 || factor->value * (point - 1) + rest->max < limit ? point : -1;
}

static bool add_point(qn_parts *parts, int64_t point, int64_t extent)
{
    if (point <= 0 || point >= extent)
        return point >= 0;
    int i = parts->n;
    while (i > 0 && parts->at[i - 1] >= point)
        i--;
    if (i < parts->n && parts->at[i] == point)
        return true;
    if (parts->n == QN_MAX_PARTS - 1)
        return false;
    for (int k = parts->n++; k > i; k--)
        parts->at[k] = parts->at[k - 1];
    parts->at[i] = point;
    return true;
}

/* Parts of one axis; n is 0 if it does not decide all bounds. */
static qn_parts parts_of_axis(qn_writer *r, const qn_nest *nest, const qn_dim *vars, int axis)
{
    const qn_parts none = { 0 };
    qn_parts parts = { .axis = axis };
    if (!qn_dim_is_const(nest->dims[axis]) || nest->whole[axis])
        return none;
    const int64_t extent = nest->dims[axis]->value;
    for (size_t i = 0; i < r->bounds.n; i++) {
        const qn_bound *bound = &r->bounds.items[i];
        if (!qn_dim_is_const(bound->extent) ||
            !add_point(&parts, turning_point(r, bound->d, vars[axis], 0), extent) ||
            !add_point(&parts, turning_point(r, bound->d, vars[axis], bound->extent->value), extent))
            return none;
    }
    if (parts.n == 0)
        return none;
    for (int i = parts.n++; i > 0; i--)
        parts.at[i] = parts.at[i - 1];
    parts.at[0] = 0;
    parts.at[parts.n] = extent;
    return parts;
}

/* No part is small, or no axis (of extent 1). */
static bool worth_tasks(const qn_nest *nest, const qn_parts *parts)
{
    int64_t elements = 1;
    for (int i = 0; i < nest->n; i++)
        if (!qn_dim_is_const(nest->dims[i]) ||
            __builtin_mul_overflow(elements, nest->dims[i]->value, &elements))
            return false;
    const int64_t line = parts->axis == nest->n - 1 ? QN_TRANSPOSE_LANES : 1;
    for (int p = 0; p < parts->n; p++) {
        const int64_t size = parts->at[p + 1] - parts->at[p];
        if (size < 2 || size * (elements / parts->at[parts->n]) < LEAST_ELEMENTS || parts->at[p] % line != 0)
            return false;
    }
    return parts->n <= MOST_TASK_PARTS;
}

qn_parts qn_find_parts(qn_writer *r, const qn_nest *nest, const qn_dim *vars)
{
    qn_parts inner = { 0 };
    const qn_machine *machine = r->lowering->options->machine;
    if (!machine || machine->gpu || r->bounds.n == 0)
        return inner;
    for (int i = 0; i < nest->n; i++) {
        qn_parts parts = parts_of_axis(r, nest, vars, i);
        parts.tasks = parts.n > 0 && worth_tasks(nest, &parts);
        if (parts.tasks)
            return parts;
        if (inner.n == 0)
            inner = parts;
    }
    return inner;
}

void qn_nest_part(qn_lowering *l, qn_nest *nest, const qn_parts *parts, int part)
{
    nest->first[parts->axis] = parts->at[part];
    nest->whole[parts->axis] = nest->dims[parts->axis]->value;
    nest->dims[parts->axis] = qn_dim_const(l->program->dims, parts->at[part + 1] - parts->at[part]);
}
