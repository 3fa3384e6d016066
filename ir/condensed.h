/* Panels of float32 in 28 bits a number, without loss. Of a matrix's numbers the top bytes (the sign and seven bits of the exponent)
 * are mostly of a few kinds: a panel [K, width] has a table of 16 of them, and of each number the place in it, in four bits, and the
 * other three bytes as they are. Numbers with another top byte stand as 0 there, and with their place in a list of `room` entries.
 *
 *   bytes 0 … 15       the table; its first entry is 0
 *   16 … 19            how many entries the list has
 *   32 …               the list, of entries of 8 bytes: place k * width + column, number
 *   head … end         for each eight of k, the last filled up with zeros, and each 16 columns (or all, where there are fewer) a block
 *
 * A block is seven planes of 4 bytes a column, so that vectors of any length unpack it by interleaving bytes inside of 16, and read it
 * in order. Planes have columns by four, and of each four rows, which are k:
 *   0        places in the table, [columns / 4, 4 rows, 4]: the lower four bits of rows 0 to 3, the upper ones of 4 to 7
 *   1        the third bytes of rows 0 to 3, likewise
 *   2, 3     the lower two bytes of rows 0 and 1, of rows 2 and 3, [columns / 4, 2 rows, 4]
 *   4 … 6    as 1 … 3, of rows 4 to 7
 *
 * All numbers are little-endian. A panel's size depends on its shape alone. */
#ifndef QN_IR_CONDENSED_H
#define QN_IR_CONDENSED_H

#include "ir/graph.h"

enum {
    QN_CONDENSED_ROWS = 8,     /* of a block */
    QN_CONDENSED_COLUMNS = 16, /* at most */
    QN_CONDENSED_PLANES = 7,
    QN_CONDENSED_TABLE = 16, /* bytes */
    QN_CONDENSED_COUNT = 16, /* where it stands */
    QN_CONDENSED_LIST = 32,  /* where it begins */
    QN_CONDENSED_ENTRY = 8   /* bytes */
};

/* Are there such panels? Places in a list have 32 bits. */
bool qn_condensed_has(int64_t k, int64_t width);
/* Entries that a panel's list has room for. */
int64_t qn_condensed_room(int64_t k, int64_t width);
/* Bytes in front of a panel's blocks; of a panel: a multiple of its width. */
int64_t qn_condensed_head(int64_t k, int64_t width);
int64_t qn_condensed_bytes(int64_t k, int64_t width);
/* A panel's numbers, of any alignment: its rows, or its columns, `stride` elements apart. */
typedef struct qn_runs {
    const uint8_t *from;
    int64_t n, length, stride;
} qn_runs;

/* Are a panel's numbers, by rows or by columns, alike enough for that? */
bool qn_condensed_takes(const qn_runs *panel, int64_t k, int64_t width);
/* Looks at some of its rows, or columns: of how many numbers how many have a top byte that the table lacks which fits these best. */
int64_t qn_condensed_sample(const qn_runs *panel, int64_t *out_others);
/* By rows. False: too many numbers have other top bytes; those that the list has no room for are 0 then. */
bool qn_condense(const qn_runs *rows, int64_t k, int64_t width, void *to);
/* Whatever the bytes are: no more than `room` entries are read, and none is beyond the panel. */
void qn_condensed_read(const void *from, int64_t k, int64_t width, float *to);

/* Panels f32 [batch…, panels, K, width] as u8 [batch…, panels, bytes / width, width], which are made as they are read. All must be alike
 * enough; or, sampled, it shows when they are read whether they are. */
const qn_tensor *qn_tensor_condensed(qn_module *module, const qn_tensor *panels, bool sampled);
/* The panels f32 of a sampled one; NULL: it is none. */
const qn_tensor *qn_tensor_sampled(const qn_tensor *tensor);
/* Is it one of which numbers were lost when it was read? */
bool qn_tensor_is_lost(const qn_tensor *tensor);
/* Panel number `panel` of all batches: where it lies, or else in `scratch`, k * width float32. Thread-safe. */
qn_runs qn_tensor_panel(const qn_tensor *panels, int64_t panel, bool by_rows, float *scratch);

#endif
