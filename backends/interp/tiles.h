/* The matrix unit of the kernel interpreter: QN_K_TILE_* of ir/kernel.h. */
#ifndef QN_BACKENDS_INTERP_TILES_H
#define QN_BACKENDS_INTERP_TILES_H

#include "ir/kernel.h"

typedef struct qn_tiles {
    int64_t rows[QN_TILES];
    unsigned char bytes[QN_TILES][QN_TILE_ROWS][QN_TILE_BYTES];
} qn_tiles;

/* NULL, or what is wrong. `at`: LOAD and STORE, the address of row 0; row_bytes from it to the next. SHAPE: rows. */
const char *qn_tiles_run(qn_tiles *tiles, const qn_kinst *inst, unsigned char *at, int64_t row_bytes,
                         const int64_t *rows);

#endif
