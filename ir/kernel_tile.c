/* Building tile instructions: the matrix unit of a CPU, see QN_K_TILE_* in kernel.h. */
#include "ir/kernel_edit.h"

static qn_kinst *tile_inst(qn_kbuilder *b, qn_kop op, int n_operands, qn_kvalue *const *operands, int n_tiles,
                           const int *tiles)
{
    qn_kb_emit(b, op, n_operands, operands, qn_ktype_make(QUERN_INVALID_DTYPE, 0));
    qn_kinst *inst = b->block->last;
    inst->n_mask = n_tiles;
    inst->mask = qn_arena_copy(b->kernel->arena, tiles, (size_t)n_tiles * sizeof *tiles);
    return inst;
}

void qn_kb_tile_shape(qn_kbuilder *b, qn_kvalue *const *rows)
{
    tile_inst(b, QN_K_TILE_SHAPE, QN_TILES, rows, 0, NULL);
}

void qn_kb_tile_zero(qn_kbuilder *b, int tile)
{
    tile_inst(b, QN_K_TILE_ZERO, 0, NULL, 1, &tile);
}

void qn_kb_tile_load(qn_kbuilder *b, int tile, qn_kbuffer *buffer, qn_kvalue *index, qn_kvalue *stride)
{
    tile_inst(b, QN_K_TILE_LOAD, 2, (qn_kvalue *[]){ index, stride }, 1, &tile)->buffer = buffer;
}

void qn_kb_tile_store(qn_kbuilder *b, int tile, qn_kbuffer *buffer, qn_kvalue *index, qn_kvalue *stride)
{
    tile_inst(b, QN_K_TILE_STORE, 2, (qn_kvalue *[]){ index, stride }, 1, &tile)->buffer = buffer;
}

void qn_kb_tile_mma(qn_kbuilder *b, int sums, int x, int y, qn_dtype x_type, qn_dtype y_type)
{
    qn_kinst *inst = tile_inst(b, QN_K_TILE_MMA, 0, NULL, 3, (int[]){ sums, x, y });
    inst->tile_type[0] = x_type;
    inst->tile_type[1] = y_type;
}

static bool block_uses_tiles(const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->op == QN_K_TILE_SHAPE)
            return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (block_uses_tiles(inst->blocks[i]))
                return true;
    }
    return false;
}

bool qn_kernel_uses_tiles(const qn_kernel *kernel)
{
    return block_uses_tiles(kernel->body);
}
