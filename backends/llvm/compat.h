/* LLVM's C headers and the only place that knows LLVM's version: 19 to 22. What differs between them is a function
 * here, with the newest version's meaning. */
#ifndef QN_BACKENDS_LLVM_COMPAT_H
#define QN_BACKENDS_LLVM_COMPAT_H

#include <llvm-c/Analysis.h>
#include <llvm-c/Core.h>
#include <llvm-c/Error.h>
#include <llvm-c/ErrorHandling.h>
#include <llvm-c/Support.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm/Config/llvm-config.h>

#if LLVM_VERSION_MAJOR < 19 || LLVM_VERSION_MAJOR > 22
#error "Quern knows LLVM 19 to 22"
#endif

/* From here on a call of one of LLVM's functions is one through a table of pointers that qn_llvm_open fills: cmake/llvm_calls.cmake
 * writes this header, which has a pointer and a macro for each function that is called in these folders. */
#include "llvm_calls.h"

/* Where the alignment of the memory intrinsics llvm.masked.{load,store,gather,scatter} is said: on the address since 22,
 * as an operand behind it before. */
#define QN_LLVM_ALIGN_IS_ATTRIBUTE (LLVM_VERSION_MAJOR >= 22)

/* On AArch64: is a sum of products of signed and unsigned bytes made one instruction, where the CPU has it? */
#define QN_LLVM_FINDS_USDOT (LLVM_VERSION_MAJOR >= 22)

/* What all threads of a block wait at. */
#define QN_LLVM_GPU_BARRIER \
    (LLVM_VERSION_MAJOR >= 21 ? "llvm.nvvm.barrier.cta.sync.aligned.all" : "llvm.nvvm.barrier0")
#define QN_LLVM_GPU_BARRIER_HAS_NUMBER (LLVM_VERSION_MAJOR >= 21)

#define QN_LLVM_VERSION LLVM_VERSION_STRING

#endif
