/* Panels of float32 in 28 bits a number, or of bf16 in 12, without loss. Of a matrix's numbers the top bytes (the sign and seven bits
 * of the exponent) are mostly of a few kinds: a panel [K, width] has a table of 16 of them, and of each number the place in it, in four
 * bits, and the other bytes as they are. Numbers with another top byte stand as 0 there, and with their place in a list of `room`
 * entries.
 *
 *   bytes 0 … 15       the table; its first entry is 0
 *   16 … 19            how many entries the list has
 *   32 …               the list, of entries of 8 bytes: place k * width + column, number, as float32
 *   head … end         for each eight of k, the last filled up with zeros, and each 16 columns (or all, where there are fewer) a block
 *
 * A block is seven planes of 4 bytes a column, so that vectors of any length unpack it by interleaving bytes inside of 16, and read it
 * in order. Planes have columns by four, and of each four rows, which are k:
 *   0        places in the table, [columns / 4, 4 rows, 4]: the lower four bits of rows 0 to 3, the upper ones of 4 to 7
 *   1        the third bytes of rows 0 to 3, likewise
 *   2, 3     the lower two bytes of rows 0 and 1, of rows 2 and 3, [columns / 4, 2 rows, 4]
 *   4 … 6    as 1 … 3, of rows 4 to 7
 * Of bf16, which are the upper two bytes of float32, there are no lower ones: planes 0, 1 and 4 alone.
 *
 * All numbers are little-endian. A panel's size depends on its shape alone. */
#ifndef QN_IR_CONDENSED_H
#define QN_IR_CONDENSED_H

#include "ir/graph.h"

enum {
    QN_CONDENSED_ROWS = 8,     /* of a block */
    QN_CONDENSED_COLUMNS = 16, /* at most */
    QN_CONDENSED_TABLE = 16,   /* bytes */
    QN_CONDENSED_COUNT = 16,   /* where it stands */
    QN_CONDENSED_LIST = 32,    /* where it begins */
    QN_CONDENSED_ENTRY = 8,    /* bytes */
    QN_CONDENSED_PANELS = 16   /* that are made at a time: their rows may be one behind the other */
};

/* What a panel is of. */
typedef struct qn_condensed {
    qn_dtype dtype;
    int64_t k, width;
} qn_condensed;

/* Are there such panels? Places in a list have 32 bits. */
bool qn_condensed_has(qn_condensed c);
/* Entries that a panel's list has room for. */
int64_t qn_condensed_room(qn_condensed c);
/* Of a block. */
int qn_condensed_planes(qn_condensed c);
int64_t qn_condensed_columns(qn_condensed c);
/* Bytes in front of a panel's blocks; of a panel: a multiple of its width. */
int64_t qn_condensed_head(qn_condensed c);
int64_t qn_condensed_bytes(qn_condensed c);
/* Of which numbers is a panel of so many bytes? False: of none. */
bool qn_condensed_of(int64_t k, int64_t width, int64_t bytes, qn_condensed *out);

/* A panel's numbers, of any alignment: its rows, or its columns, `stride` elements apart. */
typedef struct qn_runs {
    const uint8_t *from;
    int64_t n, length, stride;
} qn_runs;

/* Are a panel's numbers, by rows or by columns, alike enough for that? */
bool qn_condensed_takes(qn_condensed c, const qn_runs *panel);
/* Looks at some of its rows, or columns: of how many numbers how many have a top byte that the table lacks which fits these best. */
int64_t qn_condensed_sample(qn_condensed c, const qn_runs *panel, int64_t *out_others);
/* n panels by rows, at most QN_CONDENSED_PANELS, one behind the other. False: too many numbers have other top bytes; those that the
 * lists have no room for are 0 then. */
bool qn_condense(qn_condensed c, int n, const qn_runs *rows, void *to);
/* As float32. Whatever the bytes are: no more than `room` entries are read, and none is beyond the panel. */
void qn_condensed_read(qn_condensed c, const void *from, float *to);

/* What panels [batch…, panels, K, width] would be. */
qn_condensed qn_condensed_panels(const qn_tensor *panels);
/* Such panels as u8 [batch…, panels, bytes / width, width], which are made as they are read. All must be alike enough; or, sampled, it
 * shows when they are read whether they are. */
const qn_tensor *qn_tensor_condensed(qn_module *module, const qn_tensor *panels, bool sampled);
/* The panels of a sampled one; NULL: it is none. */
const qn_tensor *qn_tensor_sampled(const qn_tensor *tensor);
/* Is it one of which numbers were lost when it was read? */
bool qn_tensor_is_lost(const qn_tensor *tensor);
/* Panel number `panel` of all batches: where it lies, or else in `scratch`, which has room for it. Thread-safe. */
qn_runs qn_tensor_panel(const qn_tensor *panels, int64_t panel, bool by_rows, void *scratch);

#endif
