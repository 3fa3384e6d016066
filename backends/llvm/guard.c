/* Survives LLVM's fatal errors: the handler jumps out of LLVM, which never continues. */
#include "backends/llvm/guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>

#include "backends/llvm/compat.h"
#include "ir/diag.h"

typedef struct guard {
    jmp_buf back;
    char *message;
    size_t message_size;
} guard;

static _Thread_local guard *current;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

static void on_fatal_error(const char *reason)
{
    guard *g = current;
    if (!g) {
        fprintf(stderr, "LLVM: %s\n", reason);
        return; /* LLVM ends the process */
    }
    snprintf(g->message, g->message_size, "%s", reason);
    longjmp(g->back, 1);
}

static void install(void)
{
    LLVMInstallFatalErrorHandler(on_fatal_error);
}

bool qn_llvm_guarded(void (*body)(void *user), void *user, char *message, size_t message_size)
{
    guard g = { .message = message, .message_size = message_size };
    pthread_once(&installed, install);
    QN_ASSERT(!current, "a guard inside a guard");
    current = &g;
    bool finished = setjmp(g.back) == 0;
    if (finished)
        body(user);
    current = NULL;
    return finished;
}
