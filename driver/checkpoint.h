/* States of a session in files: checkpoints, and trained models. */
#ifndef QN_DRIVER_CHECKPOINT_H
#define QN_DRIVER_CHECKPOINT_H

#include <stdbool.h>

#include "ir/diag.h"
#include "quern.h"

/* All states of n sessions by name as a safetensors file, with the note and a hash of everything in its metadata. Atomic. */
QN_MUST_USE qn_status qn_checkpoint_save(int n, quern_session *const *sessions, const char *path,
                                         const char *note, qn_diags *diags);
/* All states from such a file, or, with an error, none: a damaged file or one of another model is refused. The note is in the arena
 * of the diagnostics. */
QN_MUST_USE qn_status qn_checkpoint_restore(int n, quern_session *const *sessions, const char *path,
                                            const char **out_note, qn_diags *diags);
/* See quern_session_write_onnx. */
QN_MUST_USE qn_status qn_write_onnx(quern_session *session, const char *from, const char *to, bool averages,
                                    qn_diags *diags);

#endif
