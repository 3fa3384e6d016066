/* Single kernels through the CPU backend. */
#include "tests/support/jit_kernel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void must(qn_status status, qn_diags *diags)
{
    if (status)
        fail_msg("%s", qn_diags_text(diags, diags->arena));
}

jit_kernel jit_kernel_new(const qn_kernel *kernel, const char *cpu)
{
    qn_arena *arena = qn_arena_new();
    qn_target target = { .cpu = cpu, .jit = true };
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
