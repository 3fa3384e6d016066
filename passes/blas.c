/* The template for products of matrices that a library does: one step, by itself, with its tasks spread over blocks of the
 * result. What follows element by element is a kernel of its own.
 *
 *   dot_general %x: f32[batch, 784], %w: f32[784, 10]
 *   library sgemm (%0, %1, %2; 1, batch, 10, 784, 0, 0, 128, 512) tasks floordiv(batch + 127, 128)
 *
 * Operands have to lie as the library reads them: batch axes first, then free and contracted ones in either order. */
#include "passes/lower.h"

enum {
    TASK_ROWS = 128,          /* so many pay for the library's copy of the other side */
    TASK_COLUMNS = 512,       /* where there is no more than one block of rows */
    LEAST_WORK = 32 * 32 * 32 /* below it a loop with what follows inside is as good */
};

/* Are the lists of axes, one behind the other, all axes in order? */
static bool in_order(int n_a, const int64_t *a, int n_b, const int64_t *b, int n_c, const int64_t *c)
{
    int64_t next = 0;
    bool yes = true;
    for (int i = 0; i < n_a; i++)
        yes &= a[i] == next++;
    for (int i = 0; i < n_b; i++)
        yes &= b[i] == next++;
    for (int i = 0; i < n_c; i++)
        yes &= c[i] == next++;
    return yes;
}

/* Free axes before contracted ones? For x that is how it lies, for y transposed. */
static bool free_first(const qn_dot_side *s)
{
    return in_order(s->n_batch, s->batch, s->n_free, s->free, s->n_contract, s->contract);
}

static bool contract_first(const qn_dot_side *s)
{
    return in_order(s->n_batch, s->batch, s->n_contract, s->contract, s->n_free, s->free);
}

/* Is there a template for it that is as fast as a library? */
static bool is_tuned(const qn_node *node, const qn_machine *machine)
{
    return node->results[0].type.dtype == QUERN_F32 && machine && machine->vector_bytes >= 32 && machine->fma;
}

/* Multiplications, at most. */
static double work(const qn_node *node, const qn_dot_side *x)
{
    double n = 1;
    for (int i = 0; i < node->results[0].type.rank; i++)
        n *= (double)node->results[0].type.dims[i]->max;
    for (int i = 0; i < x->n_contract; i++)
        n *= (double)node->operands[0]->type.dims[x->contract[i]]->max;
    return n;
}

bool qn_blas_takes(const qn_node *node, const qn_pass_options *options)
{
    if (options->blas == QN_BLAS_NEVER || options->math == QN_MATH_STRICT || node->op != QN_OP_DOT_GENERAL)
        return false;
    const qn_dtype dtype = node->results[0].type.dtype;
    if ((dtype != QUERN_F32 && dtype != QUERN_F64) || node->operands[0]->type.dtype != dtype ||
        node->operands[1]->type.dtype != dtype)
        return false;
    const qn_dot_side x = qn_dot_side_of(node, 0), y = qn_dot_side_of(node, 1);
    if (options->blas == QN_BLAS_WHERE_UNTUNED &&
        (is_tuned(node, options->machine) || work(node, &x) < LEAST_WORK))
        return false;
    return (free_first(&x) || contract_first(&x)) && (free_first(&y) || contract_first(&y)) &&
           (!options->has_blas || options->has_blas());
}

static bool matches(const qn_group *group, const qn_pass_options *options)
{
    return group->kind == QN_GROUP_CONTRACTION && group->n_nodes == 1 && qn_blas_takes(group->root, options);
}

/* The product of some extents, in the program's dims. */
static qn_dim extent(const qn_lowering *l, const qn_type *type, int n, const int64_t *axes)
{
    qn_dims *dims = l->program->dims;
    qn_dim product = qn_dim_const(dims, 1);
    for (int i = 0; i < n; i++)
        product = qn_dim_mul(dims, product, qn_lower_dim(l, type->dims[axes[i]]));
    return product;
}

static qn_status lower(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    qn_dims *dims = l->program->dims;
    const qn_dot_side x = qn_dot_side_of(node, 0), y = qn_dot_side_of(node, 1);
    const qn_type *x_type = &node->operands[0]->type, *y_type = &node->operands[1]->type;
    int *buffers = QN_NEW_ARRAY(l->arena, int, 3);
    for (int i = 0; i < 2; i++)
        buffers[i] = qn_lower_buffer(l, node->operands[i]);
    buffers[2] = qn_lower_buffer(l, &node->results[0]);
    qn_dim *params = QN_NEW_ARRAY(l->arena, qn_dim, QN_GEMM_PARAMS);
    params[QN_GEMM_BATCH] = extent(l, x_type, x.n_batch, x.batch);
    params[QN_GEMM_M] = extent(l, x_type, x.n_free, x.free);
    params[QN_GEMM_N] = extent(l, y_type, y.n_free, y.free);
    params[QN_GEMM_K] = extent(l, x_type, x.n_contract, x.contract);
    params[QN_GEMM_X_TRANSPOSED] = qn_dim_const(dims, !free_first(&x));
    params[QN_GEMM_Y_TRANSPOSED] = qn_dim_const(dims, !contract_first(&y));
    const bool few_rows = params[QN_GEMM_M]->max <= TASK_ROWS;
    params[QN_GEMM_ROWS] = qn_dim_const(dims, TASK_ROWS);
    params[QN_GEMM_COLUMNS] = qn_dim_const(dims, few_rows ? TASK_COLUMNS : INT32_MAX);
    qn_step *step = qn_steps_add(l->program, l->steps, QN_STEP_LIBRARY);
    step->library = node->results[0].type.dtype == QUERN_F64 ? QN_LIBRARY_DGEMM : QN_LIBRARY_SGEMM;
    step->name = qn_libraries[step->library].name;
    if (node->loc.node)
        step->name = qn_arena_printf(l->arena, "%s %s", step->name, node->loc.node);
    step->n_buffers = 3;
    step->buffers = buffers;
    step->n_params = QN_GEMM_PARAMS;
    step->params = params;
    step->tasks = qn_gemm_tasks(dims, params);
    return QUERN_OK;
}

const qn_template qn_template_blas = { .name = "blas", .matches = matches, .lower = lower };
