/* Philox 4x32-10, a counter-based generator: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#include "backends/interp/interp.h"

static void philox_round(uint32_t counter[4], const uint32_t key[2])
{
    const uint64_t a = (uint64_t)0xd2511f53 * counter[0], b = (uint64_t)0xcd9e8d57 * counter[2];
    const uint32_t next[4] = { (uint32_t)(b >> 32) ^ counter[1] ^ key[0], (uint32_t)b,
                               (uint32_t)(a >> 32) ^ counter[3] ^ key[1], (uint32_t)a };
    for (int i = 0; i < 4; i++)
        counter[i] = next[i];
}

void qn_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t k[2] = { key[0], key[1] };
    for (int i = 0; i < 4; i++)
        out[i] = counter[i];
    for (int round = 0; round < 10; round++) {
        philox_round(out, k);
        k[0] += 0x9e3779b9;
        k[1] += 0xbb67ae85;
    }
}

/* Key word 0 is Philox's key; key word 1 is the upper half of its counter, the block number the lower. */
qn_status qn_eval_random_bits(qn_eval *e)
{
    const uint64_t *words = e->x[0].data;
    const uint64_t offset = *(const uint64_t *)e->x[1].data;
    const uint32_t key[2] = { (uint32_t)words[0], (uint32_t)(words[0] >> 32) };
    uint32_t *r = e->y[0].data, block[4];
    for (int64_t i = 0, n = qn_array_elements(&e->y[0]); i < n; i++) {
        if (i % 4 == 0) {
            const uint64_t at = offset + (uint64_t)i / 4;
            const uint32_t counter[4] = { (uint32_t)at, (uint32_t)(at >> 32), (uint32_t)words[1],
                                          (uint32_t)(words[1] >> 32) };
            qn_philox(counter, key, block);
        }
        r[i] = block[i % 4];
    }
    return QUERN_OK;
}
