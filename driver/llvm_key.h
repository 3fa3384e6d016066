/* Which LLVM makes code, as text for keys of the cache. It is not opened for that: its file is looked at. */
#ifndef QN_DRIVER_LLVM_KEY_H
#define QN_DRIVER_LLVM_KEY_H

#include "driver/cache.h"

/* Size and time of the file; where there is none, as on a machine that has what was compiled elsewhere or before, those of the file
 * that last made code for this cache; "" where none did. */
const char *qn_llvm_key(const qn_cache *cache, qn_arena *arena);

/* Code was made for this cache: keeps whose. */
void qn_llvm_keep(const qn_cache *cache, qn_arena *arena);

#endif
