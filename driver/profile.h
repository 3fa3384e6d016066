/* One run of a session as a trace for Perfetto and Chrome: what each kernel took, and what each thread did of it. */
#ifndef QN_DRIVER_PROFILE_H
#define QN_DRIVER_PROFILE_H

#include "driver/compile.h"

/* What the machine reaches with the session's threads, a second; 0: unknown. */
typedef struct qn_peaks {
    double flops, bytes;
    int threads;
} qn_peaks;

/* Runs the session a few times more and writes the trace of the fastest to `path`, atomically. In it: a row of kernels with their
 * tasks, GFLOP/s and GB/s (where `notes`, which may be NULL, know the cost) and how much of the peak that is, and a row a
 * thread with its part of each kernel, from its first task to its last. The session's context is as before afterwards. For one
 * thread at a time, as a run is. */
QN_MUST_USE qn_status qn_profile(quern_session *session, const qn_model_notes *notes, const qn_peaks *peaks,
                                 const char *path, qn_arena *arena, qn_diags *diags);

#endif
