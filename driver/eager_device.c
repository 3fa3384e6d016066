/* Tensors on GPUs: between host and device, and copies there.
 *
 * What lies row-major in the same way on both sides is one copy of the driver. Any other copy on a device is a kernel of the
 * kernel IR with the strides as parameters, one for each number of axes and size of element:
 *
 *   kernel @copy(%x: u32 in, %y: u32 out; %total, %x0, %y0, %n.0, %xs.0, %ys.0, %n.1, %xs.1, %ys.1) {
 *     for %e = task * 2048 to min(task * 2048 + 2048, %total) vector         spread over the threads of a block
 *       i.1 = e mod %n.1; i.0 = e / %n.1
 *       %y[%y0 + i.0 * ys.0 + i.1 * ys.1] = %x[%x0 + i.0 * xs.0 + i.1 * xs.1]
 *
 * From one device to another, and where the host's side is no block of memory, by way of a row-major copy. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/nvptx/ptx.h"
#include "driver/api.h"
#include "driver/compile.h"
#include "driver/tape.h"
#include "ir/kernel.h"
#include "runtime/error.h"
#include "runtime/session.h"

enum { BLOCK_ELEMENTS = 2048, FIXED_PARAMS = 3 };

typedef struct copy_kernel {
    struct copy_kernel *next;
    qn_device *device;
    size_t size;
    int n_axes, threads;
    qn_cuda *cuda; /* with the code */
    void *function;
    qn_cuda_address args; /* no node has failed */
} copy_kernel;

/* ---- the kernel ---- */

static qn_kernel *write_kernel(qn_arena *arena, size_t size, int n_axes)
{
    static const qn_dtype dtypes[] = { [1] = QUERN_U8, [2] = QUERN_U16, [4] = QUERN_U32, [8] = QUERN_U64 };
    const int64_t most = QN_DIM_MAX_VALUE;
    qn_kernel *k = qn_kernel_new(arena, "copy");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", dtypes[size], true, false, (int)size);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", dtypes[size], false, true, (int)size);
    qn_kvalue *total = qn_kernel_add_param(k, "total", 1, most, 1);
    qn_kvalue *from = qn_kernel_add_param(k, "x0", 0, most, 1),
              *to = qn_kernel_add_param(k, "y0", 0, most, 1);
    qn_kvalue *n[QN_TENSOR_MAX_RANK], *from_step[QN_TENSOR_MAX_RANK], *to_step[QN_TENSOR_MAX_RANK];
    for (int i = 0; i < n_axes; i++) {
        n[i] = qn_kernel_add_param(k, "n", 1, most, 1);
        from_step[i] = qn_kernel_add_param(k, "xs", -most, most, 1);
        to_step[i] = qn_kernel_add_param(k, "ys", -most, most, 1);
    }
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *block = qn_kb_index(&b, BLOCK_ELEMENTS), *low = qn_kb_imul(&b, qn_kb_task(&b), block);
    qn_kinst *loop = qn_kb_for(&b, low, qn_kb_imin(&b, qn_kb_iadd(&b, low, block), total), qn_kb_index(&b, 1),
                               QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *rest = loop->blocks[0]->arguments;
    for (int i = n_axes - 1; i >= 0; i--) {
        qn_kvalue *at = i ? qn_kb_imod(&b, rest, n[i]) : rest;
        rest = i ? qn_kb_idiv(&b, rest, n[i]) : NULL;
        from = qn_kb_iadd(&b, from, qn_kb_imul(&b, at, from_step[i]));
        to = qn_kb_iadd(&b, to, qn_kb_imul(&b, at, to_step[i]));
    }
    qn_kb_store(&b, y, to, qn_kb_load(&b, x, from, 1), NULL);
    qn_kb_end_for(&b, loop, NULL);
    return k;
}

static qn_status write_code(copy_kernel *c, const char *symbol, qn_arena *arena, const char **out,
                            qn_diags *diags)
{
    const qn_target target = { .cpu = qn_arena_printf(arena, "sm_%d", qn_cuda_arch(c->cuda)) };
    qn_machine machine;
    qn_code code;
    QN_TRY(qn_backend_nvptx.describe(&target, arena, &machine, diags));
    qn_kernel *k = write_kernel(arena, c->size, c->n_axes);
    QN_TRY(qn_kernel_verify(k, diags));
    qn_kernel_simplify(k);
    qn_kernel_legalize(k, &machine);
    qn_kernel_simplify(k);
    qn_kernel_gpu_map(k);
    QN_TRY(qn_kernel_verify(k, diags));
    QN_TRY(qn_backend_nvptx.emit_kernel(k, symbol, &target, QN_MATH_DEFAULT, QN_EMIT_OBJECT, arena, &code,
                                        diags));
    c->threads = k->gpu_threads;
    *out = qn_ptx_join(1, &code, arena);
    return QUERN_OK;
}

static int load(copy_kernel *c)
{
    static const char symbol[] = "qn_copy";
    const int64_t none = -1;
    const char *ptx = NULL;
    qn_call call;
    int status = qn_cuda_open(c->device->number, &c->cuda);
    if (status)
        return status;
    qn_call_begin(&call);
    qn_status made = write_code(c, symbol, call.arena, &ptx, &call.diags);
    if (!made)
        status = qn_cuda_load(c->cuda, ptx);
    if (!made && !status)
        status = qn_cuda_function(c->cuda, symbol, &c->function);
    if (!made && !status)
        status = qn_cuda_alloc(c->cuda, sizeof none, &c->args);
    if (!made && !status)
        status = qn_cuda_to_device(c->cuda, c->args, &none, sizeof none);
    if (made)
        return qn_call_end(&call, made);
    qn_arena_free(call.arena);
    return status;
}

/* Under the lock; NULL with a message. */
static copy_kernel *kernel_of(qn_device *device, size_t size, int n_axes)
{
    static copy_kernel *kernels; /* that live as long as the process */
    for (copy_kernel *c = kernels; c; c = c->next)
        if (c->device == device && c->size == size && c->n_axes == n_axes)
            return c;
    copy_kernel *c = calloc(1, sizeof *c);
    QN_ASSERT(c, "out of memory");
    *c = (copy_kernel){ .device = device, .size = size, .n_axes = n_axes };
    if (load(c)) {
        qn_cuda_close(c->cuda);
        free(c);
        return NULL;
    }
    c->next = kernels;
    kernels = c;
    return c;
}

static bool copy_strided(quern_tensor *to, const quern_tensor *from, int n, const qn_copy_axis *axes)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const int64_t size = (int64_t)quern_dtype_size(to->dtype);
    const char *from_low, *to_low, *high;
    qn_tensor_span(from, &from_low, &high);
    qn_tensor_span(to, &to_low, &high);
    int64_t args[2 + FIXED_PARAMS + 3 * QN_TENSOR_MAX_RANK] = {
        (int64_t)(intptr_t)from_low,    (int64_t)(intptr_t)to_low,  to->elements,
        (from->data - from_low) / size, (to->data - to_low) / size,
    };
    memcpy(args + 2 + FIXED_PARAMS, axes, (size_t)n * sizeof *axes);
    pthread_mutex_lock(&lock);
    copy_kernel *c = kernel_of(to->storage->device, (size_t)size, n);
    bool done = c && !qn_cuda_launch(c->cuda, c->function, c->args, 2 + FIXED_PARAMS + 3 * n, args,
                                     (to->elements - 1) / BLOCK_ELEMENTS + 1, c->threads);
    pthread_mutex_unlock(&lock);
    return done;
}

/* ---- copies ---- */

/* One block of memory to another of the same bytes, on whatever sides. */
static bool copy_bytes(quern_tensor *to, const quern_tensor *from)
{
    qn_device *there = to->storage->device, *here = from->storage->device;
    const qn_cuda_address to_at = (uintptr_t)to->data, from_at = (uintptr_t)from->data;
    const size_t bytes = (size_t)to->elements * quern_dtype_size(to->dtype);
    return !(there == here ? qn_cuda_copy(there->cuda, to_at, from_at, bytes)
             : !here       ? qn_cuda_to_device(there->cuda, to_at, from->data, bytes)
             : !there      ? qn_cuda_to_host(here->cuda, to->data, from_at, bytes)
                           : qn_cuda_copy_between(there->cuda, to_at, here->cuda, from_at, bytes));
}

bool qn_eager_copy_on_device(quern_tensor *to, const quern_tensor *from)
{
    qn_device *there = to->storage->device, *here = from->storage->device;
    qn_copy_axis axes[QN_TENSOR_MAX_RANK];
    if (to->elements == 0)
        return true;
    int n = qn_copy_axes(to, from, axes);
    if (n == 0 || (n == 1 && axes[0].from == 1 && axes[0].to == 1))
        return copy_bytes(to, from);
    if (there == here)
        return copy_strided(to, from, n, axes);
    /* Row-major on this side, across, and to its places on that side. */
    quern_tensor *packed = quern_tensor_is_contiguous(from) ? NULL : qn_eager_compact(from);
    quern_tensor *landed =
        quern_tensor_is_contiguous(to) ? NULL : qn_tensor_make_on(there, to->dtype, to->rank, to->dims);
    bool done = (packed || quern_tensor_is_contiguous(from)) && (landed || quern_tensor_is_contiguous(to)) &&
                copy_bytes(landed ? landed : to, packed ? packed : from) &&
                (!landed || qn_eager_copy_plainly(to, landed));
    quern_tensor_free(packed);
    quern_tensor_free(landed);
    return done;
}

int quern_session_states_to(quern_session *s, const char *name)
{
    qn_device *device;
    int status = s ? qn_device_find("quern_session_states_to", name, &device) : QUERN_ERROR_ARGUMENT;
    for (int i = 0; !status && i < s->n_buffers; i++) {
        quern_array array;
        const qn_slot *slot = &s->slots[i];
        if (slot->info->role != QUERN_STATE || (slot->tensor && slot->tensor->storage->device == device))
            continue;
        status = quern_session_get(s, i, &array);
        quern_tensor *now = status ? NULL : quern_tensor_retain(slot->tensor);
        if (!status && !now)
            now = qn_tensor_wrapped(&array);
        quern_tensor *there = now ? qn_eager_copy_to(device, now) : NULL;
        if (!status)
            status = there ? quern_session_bind_tensor(s, i, there) : quern_last_status();
        quern_tensor_free(there);
        quern_tensor_free(now);
    }
    return status;
}

static bool zeros_are_recorded(quern_tensor *x)
{
    quern_tensor *zero = qn_tensor_number(QUERN_BOOL, 0, 0);
    bool done = zero && qn_eager_assign(x, zero) == QUERN_OK;
    quern_tensor_free(zero);
    return done;
}

quern_tensor *quern_tensor_new_on(const char *name, int dtype, int rank, const int64_t *dims)
{
    qn_device *device;
    if (qn_device_find("quern_tensor_new_on", name, &device))
        return NULL;
    if (!device)
        return quern_tensor_new(dtype, rank, dims);
    quern_tensor *x = qn_tape_may_use(device) ? qn_tensor_make_on(device, dtype, rank, dims) : NULL;
    if (x && !(qn_tape_active() ? zeros_are_recorded(x)
                                : !qn_cuda_clear(device->cuda, (uintptr_t)x->data, x->storage->bytes))) {
        quern_tensor_free(x);
        return NULL;
    }
    return qn_tensor_give(x);
}

quern_tensor *quern_tensor_to(quern_tensor *x, const char *name)
{
    qn_device *device;
    if (!x || qn_device_find("quern_tensor_to", name, &device))
        return NULL;
    return qn_tensor_give(x->storage->device == device ? quern_tensor_retain(x)
                                                       : qn_eager_copy_to(device, x));
}
