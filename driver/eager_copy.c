/* Copies between any two layouts: kernels with the strides as parameters, written in the kernel IR.
 *
 *   kernel @copy(%x: u32 in, %y: u32 out; %chunk, %x0, %y0, %n.0, %xs.0, %ys.0, %n.1, %xs.1, %ys.1) {
 *     for %i = task * chunk to min(task * chunk + chunk, %n.0)
 *       for %j = 0 to %n.1 vector
 *         %y[%y0 + i * ys.0 + j * ys.1] = %x[%x0 + i * xs.0 + j * xs.1]
 *
 * One kernel for each number of axes, size of element, and whether the inner strides are 1. Axes that lie as one in both are
 * one. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "driver/tape.h"
#include "ir/kernel.h"
#include "runtime/error.h"

typedef void copy_fn(int64_t *args, int64_t task);

typedef struct copy_kernel {
    copy_fn *_Atomic run; /* NULL: not made yet */
    void *image;          /* loaded for as long as the process lives */
} copy_kernel;

typedef qn_copy_axis axis;

/* ---- the kernel ---- */

typedef enum inner {
    STEPS,
    ROWS,
    REPEATS,
    N_INNER
} inner; /* strides of the last axis: any; both 1; from 0, to 1 */

static qn_kernel *write_kernel(qn_arena *arena, size_t size, int n_axes, inner kind)
{
    static const qn_dtype dtypes[] = { [1] = QUERN_U8, [2] = QUERN_U16, [4] = QUERN_U32, [8] = QUERN_U64 };
    const int64_t most = QN_DIM_MAX_VALUE;
    qn_kernel *k = qn_kernel_new(arena, "copy");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", dtypes[size], true, false, (int)size);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", dtypes[size], false, true, (int)size);
    qn_kvalue *chunk = qn_kernel_add_param(k, "chunk", 1, most, 1);
    qn_kvalue *from = qn_kernel_add_param(k, "x0", 0, most, 1),
              *to = qn_kernel_add_param(k, "y0", 0, most, 1);
    qn_kvalue *n[QN_TENSOR_MAX_RANK], *from_step[QN_TENSOR_MAX_RANK], *to_step[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < n_axes; i++) {
        n[i] = qn_kernel_add_param(k, "n", 0, most, 1);
        from_step[i] = qn_kernel_add_param(k, "xs", -most, most, 1);
        to_step[i] = qn_kernel_add_param(k, "ys", -most, most, 1);
    }
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *one = qn_kb_index(&b, 1), *zero = qn_kb_index(&b, 0);
    qn_kinst *loops[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < n_axes; i++) {
        qn_kvalue *low = i ? zero : qn_kb_imul(&b, qn_kb_task(&b), chunk);
        qn_kvalue *high = i ? n[i] : qn_kb_imin(&b, qn_kb_iadd(&b, low, chunk), n[0]);
        const bool last = i == n_axes - 1;
        loops[i] = qn_kb_for(&b, low, high, one, last && kind != STEPS ? QN_TAG_VECTOR : QN_TAG_SERIAL, 0,
                             NULL, NULL);
        qn_kvalue *at = loops[i]->blocks[0]->arguments;
        qn_kvalue *from_at = !last || kind == STEPS ? qn_kb_imul(&b, at, from_step[i])
                             : kind == ROWS         ? at
                                                    : zero;
        from = qn_kb_iadd(&b, from, from_at);
        to = qn_kb_iadd(&b, to, last && kind != STEPS ? at : qn_kb_imul(&b, at, to_step[i]));
    }
    qn_kb_store(&b, y, to, qn_kb_load(&b, x, from, 1), NULL);
    for (int i = n_axes - 1; i >= 0; i--)
        qn_kb_end_for(&b, loops[i], NULL);
    return k;
}

static qn_status compile(size_t size, int n_axes, inner kind, qn_arena *arena, copy_kernel *out,
                         qn_diags *diags)
{
    qn_settings settings;
    const char *symbol;
    qn_machine machine;
    qn_code code;
    copy_fn *run;
    QN_TRY(qn_settings_from(NULL, &settings, diags));
    settings.target.jit = true;
    const qn_backend *backend = settings.backend;
    QN_TRY(backend->describe(&settings.target, arena, &machine, diags));
    qn_kernel *k = write_kernel(arena, size, n_axes, kind);
    QN_TRY(qn_kernel_verify(k, diags));
    qn_kernel_simplify(k);
    qn_kernel_vectorize(k, &machine);
    qn_kernel_legalize(k, &machine);
    qn_kernel_simplify(k);
    QN_TRY(qn_compile_kernel(k, &machine, &settings, arena, &symbol, &code, diags));
    QN_TRY(backend->load(1, &code, &(const char *){ k->name }, &out->image, diags));
    *(void **)&run = backend->symbol(out->image, symbol);
    if (!run)
        return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "the kernel of a copy has no code");
    atomic_store(&out->run, run);
    return QUERN_OK;
}

static copy_fn *kernel_of(size_t size, int n_axes, inner kind)
{
    static copy_kernel kernels[9][QN_TENSOR_MAX_RANK + 1][N_INNER];
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
    copy_kernel *kernel = &kernels[size][n_axes][kind];
    if (!atomic_load(&kernel->run)) {
        pthread_mutex_lock(&making);
        qn_call call;
        qn_call_begin(&call);
        (void)!qn_call_end(&call, atomic_load(&kernel->run)
                                      ? QUERN_OK
                                      : compile(size, n_axes, kind, call.arena, kernel, &call.diags));
        pthread_mutex_unlock(&making);
    }
    return atomic_load(&kernel->run);
}

/* ---- axes ---- */

static int64_t magnitude(int64_t stride)
{
    return stride < 0 ? -stride : stride;
}

int qn_copy_axes(const quern_tensor *to, const quern_tensor *from, axis *out)
{
    int n = 0;
    for (int i = 0; i < to->rank; i++) {
        if (to->dims[i] == 1)
            continue;
        axis a = { to->dims[i], from->strides[i], to->strides[i] };
        int at = n++;
        for (; at > 0 && magnitude(out[at - 1].to) < magnitude(a.to); at--)
            out[at] = out[at - 1];
        out[at] = a;
    }
    int kept = n > 0;
    for (int i = 1; i < n; i++) {
        axis *outer = &out[kept - 1];
        if (outer->from == out[i].from * out[i].n && outer->to == out[i].to * out[i].n)
            *outer = (axis){ outer->n * out[i].n, out[i].from, out[i].to };
        else
            out[kept++] = out[i];
    }
    return kept;
}

/* ---- copying ---- */

/* Elements a task copies, at least. */
#define TASK_ELEMENTS (1 << 15)

static bool copy_elements(quern_tensor *to, const quern_tensor *from)
{
    axis axes[QN_TENSOR_MAX_RANK];
    const size_t size = quern_dtype_size(to->dtype);
    int n = qn_copy_axes(to, from, axes);
    if (to->elements == 0)
        return true;
    if (n == 0 || (n == 1 && axes[0].from == 1 && axes[0].to == 1)) {
        memcpy(to->data, from->data, (size_t)to->elements * size);
        return true;
    }
    const axis *last = &axes[n - 1];
    inner kind = last->to != 1 ? STEPS : last->from == 1 ? ROWS : last->from == 0 ? REPEATS : STEPS;
    copy_fn *copy = kernel_of(size, n, kind);
    if (!copy)
        return false;
    const char *from_low, *to_low, *high;
    qn_tensor_span(from, &from_low, &high);
    qn_tensor_span(to, &to_low, &high);
    int64_t rows = TASK_ELEMENTS / (to->elements / axes[0].n) + 1;
    int64_t args[6 + 3 * QN_TENSOR_MAX_RANK] = { -1,
                                                 (int64_t)(intptr_t)from_low,
                                                 (int64_t)(intptr_t)to_low,
                                                 rows,
                                                 (from->data - from_low) / (int64_t)size,
                                                 (to->data - to_low) / (int64_t)size };
    memcpy(args + 6, axes, (size_t)n * sizeof *axes);
    int64_t tasks = (axes[0].n - 1) / rows + 1;
    if (tasks > 1 && qn_eager_pool())
        quern_pool_parallel_for(qn_eager_pool(), (void (*)(void *, int64_t))copy, args, tasks);
    else
        for (int64_t i = 0; i < tasks; i++)
            copy(args, i);
    return true;
}

bool qn_eager_copy_plainly(quern_tensor *to, const quern_tensor *from)
{
    return to->storage->device || from->storage->device ? qn_eager_copy_on_device(to, from)
                                                        : copy_elements(to, from);
}

bool qn_eager_copy(quern_tensor *to, const quern_tensor *from)
{
    return qn_tape_may_use(to->storage->device) && qn_tape_may_use(from->storage->device) &&
           qn_tape_will_write(to) && qn_eager_copy_plainly(to, from) &&
           (!qn_tape_active() || qn_tape_record_copy(to, from));
}

quern_tensor *qn_eager_compact(const quern_tensor *x)
{
    return qn_eager_copy_to(x->storage->device, x);
}

quern_tensor *qn_eager_copy_to(qn_device *device, const quern_tensor *x)
{
    quern_tensor *y = qn_tensor_make_on(device, x->dtype, x->rank, x->dims);
    if (y && !qn_eager_copy(y, x)) {
        quern_tensor_free(y);
        return NULL;
    }
    return y;
}

/* x in the dims of target, as a view; NULL with a message where it does not fit. */
static quern_tensor *fitted(const quern_tensor *target, const quern_tensor *x)
{
    char from[256], to[256];
    int64_t strides[QN_TENSOR_MAX_RANK];
    const int more = x->rank - target->rank; /* axes in front that must be 1 long */
    bool fits = true;
    for (int i = 0; i < more; i++)
        fits &= x->dims[i] == 1;
    for (int i = 0; i < target->rank; i++) {
        int axis = i + more;
        strides[i] = axis >= 0 && x->dims[axis] == target->dims[i] ? x->strides[axis] : 0;
        fits &= axis < 0 || x->dims[axis] == target->dims[i] || x->dims[axis] == 1;
    }
    if (fits)
        return qn_tensor_view(x, x->data, target->rank, target->dims, strides);
    qn_fail(QUERN_ERROR_ARGUMENT, "quern_tensor_assign: %s cannot be repeated to %s", qn_tensor_text(x, from),
            qn_tensor_text(target, to));
    return NULL;
}

static bool overlap(const quern_tensor *x, const quern_tensor *y)
{
    const char *x_low, *x_high, *y_low, *y_high;
    qn_tensor_span(x, &x_low, &x_high);
    qn_tensor_span(y, &y_low, &y_high);
    return x_low < y_high && y_low < x_high;
}

int qn_eager_assign(quern_tensor *target, const quern_tensor *x)
{
    char text[256];
    if (qn_tensor_repeats(target))
        return qn_fail(QUERN_ERROR_ARGUMENT,
                       "quern_tensor_assign: %s repeats elements (a stride is 0): copy it to write to it",
                       qn_tensor_text(target, text));
    quern_tensor *own = NULL, *view = NULL;
    if (x->data == target->data && x->dtype == target->dtype &&
        qn_tensor_same_dims(x, target->rank, target->dims) &&
        memcmp(x->strides, target->strides, (size_t)x->rank * sizeof *x->strides) == 0)
        return QUERN_OK; /* what x[…] += y assigns last */
    if (x->dtype != target->dtype)
        x = own = qn_eager_convert(x, target->dtype, NULL);
    else if (overlap(target, x))
        x = own = qn_eager_compact(x);
    if (x)
        view = fitted(target, x);
    bool done = view && qn_eager_copy(target, view);
    quern_tensor_free(view);
    quern_tensor_free(own);
    return done ? QUERN_OK : QUERN_ERROR_ARGUMENT;
}

/* ---- the public calls ---- */

int quern_tensor_assign(quern_tensor *target, const quern_tensor *x)
{
    return target && x ? qn_eager_assign(target, x) : QUERN_ERROR_ARGUMENT;
}

quern_tensor *quern_tensor_copy(const quern_tensor *x)
{
    return x ? qn_tensor_give(qn_eager_compact(x)) : NULL;
}

quern_tensor *quern_tensor_contiguous(quern_tensor *x)
{
    if (!x)
        return NULL;
    return qn_tensor_give(quern_tensor_is_contiguous(x) ? quern_tensor_retain(x) : qn_eager_compact(x));
}

quern_tensor *quern_tensor_reshape(const quern_tensor *x, int rank, const int64_t *dims)
{
    int64_t filled[QN_TENSOR_MAX_RANK];
    if (!x || !qn_tensor_fill_dims(x, rank, dims, filled))
        return NULL;
    quern_tensor *view = qn_tensor_reshaped(x, rank, filled);
    if (view)
        return qn_tensor_give(view);
    quern_tensor *copy = qn_eager_compact(x);
    view = copy ? qn_tensor_reshaped(copy, rank, filled) : NULL;
    quern_tensor_free(copy);
    return qn_tensor_give(view);
}
