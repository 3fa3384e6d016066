/* From objects to a file that others link or load. */
#ifndef QN_BACKENDS_LLVM_LINK_H
#define QN_BACKENDS_LLVM_LINK_H

#include "backends/backend.h"

typedef enum qn_link_kind {
    QN_LINK_SHARED,  /* a shared object that exports one symbol and needs nothing */
    QN_LINK_ARCHIVE, /* a static library; no linker is run */
    QN_LINK_OBJECT   /* one relocatable object */
} qn_link_kind;

/* An object: in memory, or a file when `path` is set. `name` is what it is called in an archive. */
typedef struct qn_link_input {
    const char *name;
    qn_code code;
    const char *path;
} qn_link_input;

/* Writes `path`; on an error nothing is left there. `exported` is the symbol that a shared object
 * shows. Linkers, the first that is found: cc, ld.lld, ld; for another machine ld.lld, aarch64-linux-gnu-gcc; QUERN_LINKER names
 * another one of those. They are run without a shell; what they say is in the diagnostic. triple NULL: the host's. */
QN_MUST_USE qn_status qn_link(qn_link_kind kind, const char *path, const char *exported, const char *triple,
                              int n_inputs, const qn_link_input *inputs, qn_diags *diags);

#endif
