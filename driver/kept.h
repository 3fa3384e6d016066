/* Kept programs: what lowering made of a graph, in the cache, so that a model that was compiled before is not lowered again. A kept
 * program has everything but the bodies of its kernels, whose objects are in the cache under the keys that are kept with it. */
#ifndef QN_DRIVER_KEPT_H
#define QN_DRIVER_KEPT_H

#include "driver/cache.h"
#include "ir/program.h"
#include "passes/pass.h"

typedef struct qn_kept {
    qn_cache_key key;
    const qn_graph *graph;
    int n_constants;
    const qn_tensor *const *constants; /* of the graph, before lowering orders it */
} qn_kept;

/* Of a graph that the passes are done with. The key is of all that lowering can know of it, which is its text, and of constants
 * their types, the value where all elements have one, the contents of integers that indices are checked by (passes/bounds.h), and
 * which have the same contents; `settings`: on what else it depends. False where there are calls left. */
bool qn_kept_of(const qn_graph *graph, const qn_pass_options *options, const char *settings, qn_arena *arena,
                qn_kept *out);
/* False where there is none, or one that cannot be read. Its kernels have no bodies; *out_keys has the key of each. Offsets in
 * the weights are not set. */
bool qn_kept_get(const qn_cache *cache, const qn_kept *kept, qn_arena *arena, qn_program **out,
                 qn_cache_key **out_keys);
/* Per constant: were numbers of it lost when it was written, now or (as a note in the cache says) by an earlier process? NULL: of none.
 * What is new goes to the note. */
const bool *qn_kept_lost(qn_cache *cache, const qn_kept *kept, qn_arena *arena);
void qn_kept_put(qn_cache *cache, const qn_kept *kept, const qn_program *program, const qn_cache_key *keys);

#endif
