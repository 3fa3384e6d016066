/* Single kernels through the CPU backend. */
#include "tests/support/jit_kernel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "ir/kernel_eval.h"

qn_kernel *kernel_parsed(const char *text, qn_arena *arena)
{
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_kernel *k = qn_kernel_parse(text, "test", arena, &diags);
    if (!k)
        fail_msg("%s", qn_diags_text(&diags, arena));
    return k;
}

static void must(qn_status status, qn_diags *diags)
{
    if (status)
        fail_msg("%s", qn_diags_text(diags, diags->arena));
}

jit_kernel jit_kernel_new(const qn_kernel *kernel, const char *cpu)
{
    qn_arena *arena = qn_arena_new();
    const char *space = cpu ? strchr(cpu, ' ') : NULL;
    qn_target target = { .cpu = space ? qn_arena_printf(arena, "%.*s", (int)(space - cpu), cpu) : cpu,
                         .features = space ? space + 1 : NULL,
                         .jit = true };
    const char *symbol = "kernel";
    qn_diags diags;
    qn_code code;
    jit_kernel made;
    qn_diags_init(&diags, arena);
    must(qn_backend_cpu.emit_kernel(kernel, symbol, &target, QN_MATH_DEFAULT, QN_EMIT_OBJECT, arena, &code,
                                    &diags),
         &diags);
    must(qn_backend_cpu.load(1, &code, &symbol, &made.image, &diags), &diags);
    void *address = qn_backend_cpu.symbol(made.image, symbol);
    assert_non_null(address);
    memcpy(&made.run, &address, sizeof address);
    qn_arena_free(arena);
    return made;
}

void jit_kernel_free(jit_kernel *kernel)
{
    qn_backend_cpu.unload(kernel->image);
}

const char *kernel_text(const qn_kernel *kernel, const qn_target *target, qn_emit emit, qn_arena *arena)
{
    qn_diags diags;
    qn_code code;
    qn_diags_init(&diags, arena);
    must(qn_backend_cpu.emit_kernel(kernel, "kernel", target, QN_MATH_DEFAULT, emit, arena, &code, &diags),
         &diags);
    return code.data;
}

void kernel_uses(const char *text, size_t n, const cpu_code *cases)
{
    for (size_t i = 0; i < n; i++) {
        qn_arena *arena = qn_arena_new();
        const qn_target target = { .triple = cases[i].triple, .cpu = cases[i].cpu };
        const char *code = kernel_text(kernel_parsed(text, arena), &target, QN_EMIT_ASSEMBLY, arena);
        if (!strstr(code, cases[i].has) || strstr(code, cases[i].has_not))
            fail_msg("%s: wanted %s and no %s in\n%s", cases[i].cpu, cases[i].has, cases[i].has_not, code);
        qn_arena_free(arena);
    }
}

/* ---- comparison with the interpreter ---- */

typedef struct guarded {
    char *pages;
    size_t n_pages, bytes;
    void *data; /* ends where the last page begins, which nobody may touch */
} guarded;

static guarded guarded_new(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = bytes / page + 2;
    char *pages = mmap(NULL, n * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(pages != MAP_FAILED);
    assert_int_equal(mprotect(pages + (n - 1) * page, page, PROT_NONE), 0);
    return (guarded){ pages, n * page, bytes, pages + (n - 1) * page - bytes };
}

static uint64_t random_bits(void)
{
    static uint64_t state = 0x853c49e6748fea9b;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state ^ state >> 31;
}

static void fill(const qn_kbuffer *buffer, int64_t n, char *data)
{
    size_t size = qn_dtype_bytes(buffer->dtype);
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = random_bits();
        qn_scalar v;
        if (qn_dtype_is_float(buffer->dtype) && bits % 4)
            v = qn_keval_normal(buffer->dtype, (qn_scalar){ .f = (double)(int64_t)bits * 0x1p-60 });
        else if (buffer->dtype == QUERN_BOOL || (buffer->dtype == QUERN_I64 && !buffer->written))
            v.i = (int64_t)(bits >> 20) % (buffer->dtype == QUERN_BOOL ? 2 : 8);
        else
            v = qn_scalar_load(buffer->dtype, &bits);
        qn_scalar_store(buffer->dtype, v, data + (size_t)i * size);
    }
}

void kernel_compare(const qn_kernel *kernel, const int64_t *elements, const int64_t *params, int64_t tasks,
                    const char *cpu)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    int n = kernel->n_buffers;
    guarded *memory[2];
    int64_t *args[2];
    for (int run = 0; run < 2; run++) {
        memory[run] = QN_NEW_ARRAY(arena, guarded, n);
        args[run] = QN_NEW_ARRAY(arena, int64_t, 1 + n + kernel->n_params);
        args[run][0] = -1;
        for (int i = 0; i < n; i++) {
            const qn_kbuffer *buffer = kernel->buffers[i];
            memory[run][i] = guarded_new((size_t)elements[i] * qn_dtype_bytes(buffer->dtype));
            if (run == 0)
                fill(buffer, elements[i], memory[run][i].data);
            else
                memcpy(memory[1][i].data, memory[0][i].data, memory[1][i].bytes);
            args[run][1 + i] = (int64_t)memory[run][i].data;
        }
        for (int i = 0; i < kernel->n_params; i++)
            args[run][1 + n + i] = params[i];
    }
    must(qn_interp_kernel(kernel, args[0], tasks, &diags), &diags);
    jit_kernel code = jit_kernel_new(kernel, cpu);
    for (int64_t task = 0; task < tasks; task++)
        code.run(args[1], task);
    for (int i = 0; i < n; i++) {
        qn_dtype dtype = kernel->buffers[i]->dtype;
        size_t size = qn_dtype_bytes(dtype);
        for (int64_t j = 0; j < elements[i]; j++) {
            qn_scalar want = qn_scalar_load(dtype, (char *)memory[0][i].data + (size_t)j * size);
            qn_scalar got = qn_scalar_load(dtype, (char *)memory[1][i].data + (size_t)j * size);
            if (!qn_keval_same(dtype, want, got))
                fail_msg("%s[%lld] is %g (%lld) instead of %g (%lld) on %s after\n%s",
                         kernel->buffers[i]->name, (long long)j, got.f, (long long)got.i, want.f,
                         (long long)want.i, cpu ? cpu : "native", qn_kernel_print(kernel, arena));
        }
        for (int run = 0; run < 2; run++)
            munmap(memory[run][i].pages, memory[run][i].n_pages);
    }
    assert_int_equal(args[0][0], args[1][0]);
    jit_kernel_free(&code);
    qn_arena_free(arena);
}
