/* Images: one JIT of LLVM's for the process, one symbol space (JITDylib) an image.
 *
 * Making the JIT costs a millisecond, a symbol space nothing. The C API cannot remove one, so they are emptied and used
 * again. All symbols are looked up when an image is loaded: link errors show then, and finding one later needs no LLVM. */
#include "backends/llvm/jit.h"

#include <llvm-c/LLJIT.h>
#include <llvm-c/LLJITUtils.h>
#include <llvm-c/Orc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/llvm/elf.h"
#include "backends/llvm/target.h"

typedef struct image {
    LLVMOrcJITDylibRef space;
    qn_arena *arena;
    int n;
    struct image_symbol {
        const char *name;
        void *address;
        uint64_t size;
        bool function;
    } *symbols; /* sorted by name */
} image;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static LLVMOrcLLJITRef jit;
static int n_spaces; /* made so far: each needs its own name */
static LLVMOrcJITDylibRef *free_spaces;
static int n_free, free_capacity;

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value && strcmp(value, "0") != 0;
}

/* LLVM reports the cause of an error to the session, and only which symbols it hit to who looked them up. */
static char cause[512];

static void keep_cause(void *user, LLVMErrorRef error)
{
    (void)user;
    char *message = LLVMGetErrorMessage(error);
    if (!cause[0])
        snprintf(cause, sizeof cause, "%s", message);
    LLVMDisposeErrorMessage(message);
}

static qn_status report(LLVMErrorRef error, const char *stage, qn_diags *diags)
{
    if (!error)
        return QUERN_OK;
    char *message = LLVMGetErrorMessage(error);
    qn_status status = qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "loading code: %s: %s%s%s", stage, cause,
                                cause[0] ? ": " : "", message);
    LLVMDisposeErrorMessage(message);
    cause[0] = 0;
    return status;
}

/* ---- the JIT of the process ---- */

static qn_status make_jit(qn_diags *diags)
{
    const qn_llvm_target *host;
    if (jit)
        return QUERN_OK;
    QN_TRY(qn_llvm_target_find(&(qn_target){ .jit = true }, &host, diags));
    LLVMTargetMachineRef machine =
        LLVMCreateTargetMachine(host->llvm, host->triple, host->cpu, host->features, LLVMCodeGenLevelDefault,
                                LLVMRelocPIC, LLVMCodeModelSmall);
    LLVMOrcLLJITBuilderRef builder = LLVMOrcCreateLLJITBuilder();
    LLVMOrcLLJITBuilderSetJITTargetMachineBuilder(
        builder, LLVMOrcJITTargetMachineBuilderCreateFromTargetMachine(machine)); /* takes both */
    QN_TRY(report(LLVMOrcCreateLLJIT(&jit, builder), "making the JIT", diags));
    LLVMOrcExecutionSessionSetErrorReporter(LLVMOrcLLJITGetExecutionSession(jit), keep_cause, NULL);
    if (is_set("QUERN_JIT_GDB"))
        LLVMConsumeError(LLVMOrcLLJITEnableDebugSupport(jit)); /* a convenience: its failure is no error */
    return QUERN_OK;
}

static LLVMOrcJITDylibRef take_space(void)
{
    char name[32];
    if (n_free > 0)
        return free_spaces[--n_free];
    snprintf(name, sizeof name, "image%d", n_spaces++);
    return LLVMOrcExecutionSessionCreateBareJITDylib(LLVMOrcLLJITGetExecutionSession(jit), name);
}

static void return_space(LLVMOrcJITDylibRef space)
{
    LLVMConsumeError(LLVMOrcJITDylibClear(space));
    if (n_free == free_capacity) {
        int capacity = free_capacity ? 2 * free_capacity : 16;
        void *more = realloc(free_spaces, (size_t)capacity * sizeof(LLVMOrcJITDylibRef));
        if (!more)
            return; /* the space is empty; only its name is lost */
        free_spaces = more;
        free_capacity = capacity;
    }
    free_spaces[n_free++] = space;
}

/* ---- symbols ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct image_symbol *)a)->name, ((const struct image_symbol *)b)->name);
}

static void collect_symbols(image *im, int n_objects, const qn_code *objects)
{
    qn_elf_symbol **of = QN_NEW_ARRAY(im->arena, qn_elf_symbol *, n_objects);
    int *counts = QN_NEW_ARRAY(im->arena, int, n_objects), total = 0;
    for (int i = 0; i < n_objects; i++) {
        counts[i] = qn_elf_symbols(&objects[i], im->arena, &of[i]);
        total += counts[i] > 0 ? counts[i] : 0;
    }
    im->symbols = QN_NEW_ARRAY(im->arena, struct image_symbol, total);
    for (int i = 0; i < n_objects; i++)
        for (int j = 0; j < counts[i]; j++)
            if (of[i][j].defined && of[i][j].global)
                im->symbols[im->n++] = (struct image_symbol){ qn_arena_strdup(im->arena, of[i][j].name), NULL,
                                                              of[i][j].size, of[i][j].function };
    qsort(im->symbols, (size_t)im->n, sizeof *im->symbols, by_name);
    int n = 0; /* equal code in two objects is one symbol */
    for (int i = 0; i < im->n; i++)
        if (n == 0 || strcmp(im->symbols[n - 1].name, im->symbols[i].name) != 0)
            im->symbols[n++] = im->symbols[i];
    im->n = n;
}

static struct image_symbol *find(const image *im, const char *name)
{
    struct image_symbol key = { .name = name };
    return bsearch(&key, im->symbols, (size_t)im->n, sizeof *im->symbols, by_name);
}

typedef struct lookup {
    image *im;
    LLVMErrorRef error;
} lookup;

static void on_found(LLVMErrorRef error, LLVMOrcCSymbolMapPairs found, size_t n, void *user)
{
    lookup *l = user;
    l->error = error;
    if (error)
        return;
    for (size_t i = 0; i < n; i++) {
        struct image_symbol *s = find(l->im, LLVMOrcSymbolStringPoolEntryStr(found[i].Name));
        if (s)
            s->address = (void *)(uintptr_t)found[i].Sym.Address;
    }
}

/* Links everything; runs on this thread. */
static qn_status look_up(image *im, qn_diags *diags)
{
    LLVMOrcExecutionSessionRef session = LLVMOrcLLJITGetExecutionSession(jit);
    LLVMOrcCLookupSetElement *wanted = QN_NEW_ARRAY(im->arena, LLVMOrcCLookupSetElement, im->n + 1);
    for (int i = 0; i < im->n; i++)
        wanted[i] = (LLVMOrcCLookupSetElement){ LLVMOrcExecutionSessionIntern(session, im->symbols[i].name),
                                                LLVMOrcSymbolLookupFlagsRequiredSymbol };
    LLVMOrcCJITDylibSearchOrderElement order[] = { { im->space, LLVMOrcJITDylibLookupFlagsMatchAllSymbols },
                                                   { NULL, 0 } };
    lookup l = { .im = im };
    if (im->n > 0)
        LLVMOrcExecutionSessionLookup(session, LLVMOrcLookupKindStatic, order, 1, wanted, (size_t)im->n,
                                      on_found, &l);
    return report(l.error, "linking", diags);
}

static void write_perf_map(const image *im)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    FILE *file = fopen(path, "a");
    if (!file)
        return;
    for (int i = 0; i < im->n; i++)
        if (im->symbols[i].function)
            fprintf(file, "%llx %llx %s\n", (unsigned long long)(uintptr_t)im->symbols[i].address,
                    (unsigned long long)im->symbols[i].size, im->symbols[i].name);
    fclose(file);
}

/* ---- the backend's slots ---- */

static qn_status load_locked(image *im, int n_objects, const qn_code *objects, const char *const *names,
                             qn_diags *diags)
{
    QN_TRY(make_jit(diags));
    im->space = take_space();
    for (int i = 0; i < n_objects; i++) {
        LLVMMemoryBufferRef buffer =
            LLVMCreateMemoryBufferWithMemoryRangeCopy(objects[i].data, objects[i].size, names[i]);
        QN_TRY(report(LLVMOrcLLJITAddObjectFile(jit, im->space, buffer), names[i], diags));
    }
    collect_symbols(im, n_objects, objects);
    QN_TRY(look_up(im, diags));
    if (is_set("QUERN_JIT_PERF"))
        write_perf_map(im);
    return QUERN_OK;
}

qn_status qn_llvm_jit_load(int n_objects, const qn_code *objects, const char *const *names, void **out_image,
                           qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    image *im = QN_NEW(arena, image);
    im->arena = arena;
    pthread_mutex_lock(&lock);
    qn_status status = load_locked(im, n_objects, objects, names, diags);
    pthread_mutex_unlock(&lock);
    if (status) {
        qn_llvm_jit_unload(im);
        im = NULL;
    }
    *out_image = im;
    return status;
}

void *qn_llvm_jit_symbol(void *image_, const char *name)
{
    const struct image_symbol *s = find(image_, name);
    return s ? s->address : NULL;
}

void qn_llvm_jit_unload(void *image_)
{
    image *im = image_;
    if (!im)
        return;
    pthread_mutex_lock(&lock);
    if (im->space)
        return_space(im->space);
    pthread_mutex_unlock(&lock);
    qn_arena_free(im->arena);
}
