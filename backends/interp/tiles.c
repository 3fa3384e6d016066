/* Tile instructions, element by element. */
#include "backends/interp/tiles.h"

#include <string.h>

static double element(const qn_tiles *t, int tile, int64_t row, int64_t i, qn_dtype dtype)
{
    const qn_scalar s = qn_scalar_load(dtype, t->bytes[tile][row] + i * (int64_t)qn_dtype_bytes(dtype));
    return qn_dtype_is_float(dtype) ? s.f : (double)s.i;
}

/* Products of bytes, and sums of them within a row of 64, are exact in double. */
static void multiply(qn_tiles *t, const qn_kinst *inst)
{
    const int sums = inst->mask[0], x = inst->mask[1], y = inst->mask[2];
    const qn_dtype x_type = inst->tile_type[0], y_type = inst->tile_type[1];
    const qn_dtype type = x_type == QUERN_BF16 ? QUERN_F32 : QUERN_I32;
    const int64_t group = 4 / (int64_t)qn_dtype_bytes(y_type);
    for (int64_t i = 0; i < t->rows[sums]; i++)
        for (int64_t j = 0; j < QN_TILE_BYTES / 4; j++) {
            double sum = 0;
            for (int64_t k = 0; k < t->rows[y] * group; k++)
                sum += element(t, x, i, k, x_type) * element(t, y, k / group, j * group + k % group, y_type);
            unsigned char *at = t->bytes[sums][i] + 4 * j;
            qn_scalar s = qn_scalar_load(type, at);
            if (type == QUERN_F32)
                s.f += sum;
            else
                s.i = (int32_t)((uint32_t)s.i + (uint32_t)(int64_t)sum);
            qn_scalar_store(type, s, at);
        }
}

const char *qn_tiles_run(qn_tiles *t, const qn_kinst *inst, unsigned char *at, int64_t row_bytes,
                         const int64_t *rows)
{
    if (inst->op == QN_K_TILE_SHAPE) {
        memset(t, 0, sizeof *t);
        for (int i = 0; i < QN_TILES; i++) {
            if (rows[i] < 0 || rows[i] > QN_TILE_ROWS)
                return "a tile has 0 to 16 rows";
            t->rows[i] = rows[i];
        }
        return NULL;
    }
    for (int i = 0; i < inst->n_mask; i++)
        if (t->rows[inst->mask[i]] == 0)
            return "a tile without rows is used";
    const int tile = inst->mask[0];
    switch (inst->op) {
    case QN_K_TILE_ZERO: memset(t->bytes[tile], 0, sizeof t->bytes[tile]); return NULL;
    case QN_K_TILE_LOAD:
        for (int64_t r = 0; r < t->rows[tile]; r++)
            memcpy(t->bytes[tile][r], at + r * row_bytes, QN_TILE_BYTES);
        return NULL;
    case QN_K_TILE_STORE:
        for (int64_t r = 0; r < t->rows[tile]; r++)
            memcpy(at + r * row_bytes, t->bytes[tile][r], QN_TILE_BYTES);
        return NULL;
    default:
        if (t->rows[inst->mask[1]] != t->rows[tile])
            return "x has not as many rows as the sums";
        multiply(t, inst);
        return NULL;
    }
}
