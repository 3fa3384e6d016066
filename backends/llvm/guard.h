/* LLVM ends the process on what it calls a fatal error ("Cannot select: …"). Under a guard it comes back as a message.
 *
 * Process-wide: the handler is installed by the first guard. Errors on threads without a guard end the process as ever. */
#ifndef QN_BACKENDS_LLVM_GUARD_H
#define QN_BACKENDS_LLVM_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* Runs body(user). False after a fatal error, with LLVM's words in `message`: what the body made of LLVM's (context,
 * module, target machine) must then be left alone, not disposed of. Not nested. */
bool qn_llvm_guarded(void (*body)(void *user), void *user, char *message, size_t message_size);

#endif
