/* The disk cache of compiled kernels. What is in it gets executed, so the folder must be the user's alone: mode 0700
 * and owned by them, and so must every entry. Any thread and any number of processes may use one folder.
 *
 * It does not grow without end: when a cache that was written to is closed and has more than its limit, the entries that were
 * not used for longest are removed until the others have 7/8 of it. The limit is $QUERN_CACHE_LIMIT in bytes, or with K, M or G
 * behind in units of 1024, 1024^2, 1024^3 of them; 1 GiB where it is not set; 0 is none. */
#ifndef QN_DRIVER_CACHE_H
#define QN_DRIVER_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/backend.h"

typedef struct qn_cache {
    int folder;           /* file descriptor; -1: no cache, and every lookup misses */
    int64_t limit;        /* bytes of all entries together; 0: none */
    atomic_llong written; /* bytes, since it was opened */
} qn_cache;

typedef struct qn_cache_key {
    unsigned char bytes[16];
} qn_cache_key;

/* folder: NULL for $QUERN_CACHE, else quern/ in the user's cache folder (made where missing); "": none. A folder that
 * was named but cannot be used is an error; the default one is done without then. */
QN_MUST_USE qn_status qn_cache_open(qn_cache *cache, const char *folder, qn_diags *diags);
void qn_cache_close(qn_cache *cache);
/* What closing does, now. */
void qn_cache_trim(const qn_cache *cache);
/* Where the entries have more than `limit` bytes: removes those that were not used for longest until they have `most`. The bytes
 * that are left, and how many entries. */
int64_t qn_cache_keep(const qn_cache *cache, int64_t limit, int64_t most, int64_t *out_n);
/* The folder that is meant; "": none. */
const char *qn_cache_folder(const char *folder, qn_arena *arena);

/* XXH3-128 of the texts, each with its length: those that the code depends on. */
qn_cache_key qn_cache_key_of(int n, const char *const *texts);
/* 32 hexadecimal digits and a zero byte. */
void qn_cache_key_text(const qn_cache_key *key, char out[33]);

/* False where there is no entry, or a damaged one (which is removed): then `out` is as before. */
bool qn_cache_get(const qn_cache *cache, const qn_cache_key *key, qn_arena *arena, qn_code *out);
/* False where it could not be written: the next compilation makes it again. */
bool qn_cache_put(qn_cache *cache, const qn_cache_key *key, const qn_code *code);

/* "1000", "500M", "2G": a number of bytes, from 0. */
bool qn_read_bytes(const char *text, int64_t *out);

#endif
