/* Schedules: the numbers by which templates go over their work. They change how fast a kernel is and in which order it adds, not
 * what it computes. A template states what its cost model takes for a site, which is a kernel and its shape; where better was
 * measured for the site on such a machine (driver/tune.h), it gets that. Templates make what they get possible: any numbers give
 * right code. They never depend on the number of threads. */
#ifndef QN_PASSES_SCHEDULE_H
#define QN_PASSES_SCHEDULE_H

#include "passes/pass.h"

#define QN_KNOBS(X)                                                                                          \
    X(TRANSFORM, "transform") /* convolutions of 3 x 3: 1 direct, 4 and 6: Winograd's from so large tiles */ \
    X(VECTORS, "vectors")     /* convolutions: blocks of output channels side by side */                     \
    X(SHARED, "shared")       /* Winograd: 1 each task transforms its inputs, 2 a kernel of its own */       \
    X(ROWS, "rows")           /* products: of a register tile */                                             \
    X(DEPTH, "depth")         /* products: of k in a pass over a task's tiles */                             \
    X(TILES, "tiles")         /* of a task: tiles of rows, lines of a map, pieces of Winograd's tiles */     \
    X(PANELS, "panels")       /* of a task: panels of columns or of output channels */                       \
    X(AHEAD,                                                                                                 \
      "ahead") /* products of one row: bytes fetched before they are needed; on a matrix unit, besides panels: 1
                                 nothing, 2 the lines that results go to, 4 rows too */

typedef enum qn_knob {
#define X(knob, name) QN_KNOB_##knob,
    QN_KNOBS(X)
#undef X
        QN_N_KNOBS
} qn_knob;

typedef struct qn_schedule {
    int64_t knobs[QN_N_KNOBS]; /* 0: not for this template */
} qn_schedule;

struct qn_schedule_book {
    /* What was measured for the site; false: nothing. */
    bool (*find)(void *user, const char *site, qn_schedule *out);
    /* Told of each site, of the node (or NULL) whose kernel it is, and of what it was given; or NULL. */
    void (*note)(void *user, const char *site, const char *node, const qn_schedule *schedule);
    void *user;
};

enum { QN_SITE_SIZE = 224 };
/* "KERNEL f32 1x64x784x512": `?` for what is no number. */
void qn_schedule_site(const char *kernel, qn_dtype dtype, int n, const qn_dim *dims, char out[QN_SITE_SIZE]);

/* What was measured for the site; all 0 where nothing was. */
qn_schedule qn_schedule_find(const qn_pass_options *options, const char *site);
/* The number of that knob, from 1 to `most`; `modelled` where it has none. */
int64_t qn_schedule_get(const qn_schedule *schedule, qn_knob knob, int64_t modelled, int64_t most);
/* Says what the site's kernel, which is that of `node`, was given. */
void qn_schedule_note(const qn_pass_options *options, const char *site, const qn_node *node,
                      qn_schedule given);

/* "rows=12 depth=768": the knobs that are not 0. */
const char *qn_schedule_print(const qn_schedule *schedule, qn_arena *arena);
bool qn_schedule_parse(const char *text, qn_schedule *out);

#endif
