/* The arithmetic of collectives: element by element, in the order of the ranks, whichever rank does it. So results don't
 * depend on how elements are split over ranks, nor on what they are sent together with. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/dist/dist.h"
#include "runtime/dtypes.h"

/* ---- requests ---- */

static const char *const kinds[] = { "all_reduce", "all_gather", "reduce_scatter", "broadcast" };
static const char *const combines[] = { "sum", "mean", "max", "min" };

size_t qn_dist_size(int64_t dtype)
{
    return qn_dtype_known(dtype) ? qn_dtypes[dtype].bytes : 0;
}

static bool combining(const qn_request *r)
{
    return r->kind == QN_ALL_REDUCE || r->kind == QN_REDUCE_SCATTER;
}

/* "all_reduce of 12 f32 (sum)" */
static void say(const qn_request *r, char *out, size_t size)
{
    char how[32] = "";
    if (combining(r))
        snprintf(how, sizeof how, " (%s)", combines[r->how]);
    else if (r->kind == QN_BROADCAST)
        snprintf(how, sizeof how, " from rank %lld", (long long)r->how);
    snprintf(out, size, "%s of %lld %s%s", kinds[r->kind], (long long)r->n, qn_dtypes[r->dtype].text, how);
}

static bool is_float(int64_t dtype)
{
    return dtype == QUERN_F16 || dtype == QUERN_BF16 || dtype == QUERN_F32 || dtype == QUERN_F64;
}

bool qn_dist_sound(const qn_request *r, int ranks, char *out)
{
    if (r->kind == QN_LEAVE)
        return true;
    const size_t bytes = qn_dist_size(r->dtype);
    const bool extreme = r->how == QUERN_COMBINE_MAX || r->how == QUERN_COMBINE_MIN;
    if (!bytes)
        snprintf(out, QN_DIST_TEXT, "%s: there is no data type %lld", kinds[r->kind], (long long)r->dtype);
    else if (r->n < 0 || r->n > PTRDIFF_MAX / (int64_t)bytes / ranks)
        snprintf(out, QN_DIST_TEXT, "%s: %lld elements", kinds[r->kind], (long long)r->n);
    else if (combining(r) && (r->how < QUERN_COMBINE_SUM || r->how > QUERN_COMBINE_MIN))
        snprintf(out, QN_DIST_TEXT, "%s: %lld is no way to combine (quern_combine)", kinds[r->kind],
                 (long long)r->how);
    else if (combining(r) && (r->dtype > QUERN_F64 || (r->dtype == QUERN_BOOL && !extreme) ||
                              (r->how == QUERN_COMBINE_MEAN && !is_float(r->dtype))))
        snprintf(out, QN_DIST_TEXT, "%s: %s does not combine %s", kinds[r->kind], combines[r->how],
                 qn_dtypes[r->dtype].text);
    else if (r->kind == QN_BROADCAST && (r->how < 0 || r->how >= ranks))
        snprintf(out, QN_DIST_TEXT, "broadcast from rank %lld of %d", (long long)r->how, ranks);
    else
        return true;
    return false;
}

bool qn_dist_agree(const qn_request *requests, int ranks, char *out)
{
    int left = 0, last = 0;
    for (int i = 0; i < ranks; i++)
        if (requests[i].kind == QN_LEAVE) {
            left++;
            last = i;
        }
    if (left > 0 && left < ranks) {
        snprintf(out, QN_DIST_TEXT, "rank %d has left", last);
        return false;
    }
    for (int i = 1; i < ranks; i++)
        if (memcmp(&requests[i], &requests[0], sizeof *requests) != 0) {
            char first[QN_DIST_TEXT / 4], other[QN_DIST_TEXT / 4];
            say(&requests[0], first, sizeof first);
            say(&requests[i], other, sizeof other);
            snprintf(out, QN_DIST_TEXT, "ranks have to ask for the same: rank 0 for %s, rank %d for %s",
                     first, i, other);
            return false;
        }
    return true;
}

/* ---- floats of 16 bits ---- */

__extension__ typedef _Float16 half;

static double from_f16(uint16_t bits)
{
    half h;
    memcpy(&h, &bits, sizeof h);
    return (double)h;
}

static uint16_t to_f16(double x)
{
    const half h = (half)x;
    uint16_t bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}

static double from_bf16(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &wide, sizeof f);
    return f;
}

/* Rounded once, to nearest even: by way of a float that is rounded to odd, whose last bit so says that something was cut off. */
static uint16_t to_bf16(double x)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (isnan(x))
        return (uint16_t)(bits >> 16 | 0x40);
    if (isfinite(f) && (double)f != x) {
        if (fabs((double)f) > fabs(x))
            bits--; /* towards zero */
        bits |= 1;
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- combining ---- */

enum { BLOCK = 512 };

/* NaN where either is. */
static double most(double a, double b)
{
    return a > b || isnan(a) ? a : b;
}

static double least(double a, double b)
{
    return a < b || isnan(a) ? a : b;
}

#define EACH(expression)            \
    for (int64_t i = 0; i < n; i++) \
    acc[i] = (expression)

/* Elements of a float type, converted by `load` and `store`. */
#define FLOATS(type, load, store)                     \
    do {                                              \
        double acc[BLOCK];                            \
        for (int r = 0; r < ranks; r++) {             \
            const type *x = (const type *)in[r] + at; \
            if (r == 0)                               \
                EACH(load(x[i]));                     \
            else if (how == QUERN_COMBINE_MAX)        \
                EACH(most(acc[i], load(x[i])));       \
            else if (how == QUERN_COMBINE_MIN)        \
                EACH(least(acc[i], load(x[i])));      \
            else                                      \
                EACH(acc[i] + load(x[i]));            \
        }                                             \
        if (how == QUERN_COMBINE_MEAN)                \
            EACH(acc[i] / ranks);                     \
        for (int64_t i = 0; i < n; i++)               \
            ((type *)out)[at + i] = store(acc[i]);    \
    } while (0)

/* Sums are made in the unsigned type, where they wrap. */
#define INTEGERS(type, wrapping)                                           \
    do {                                                                   \
        type acc[BLOCK];                                                   \
        for (int r = 0; r < ranks; r++) {                                  \
            const type *x = (const type *)in[r] + at;                      \
            if (r == 0)                                                    \
                EACH(x[i]);                                                \
            else if (how == QUERN_COMBINE_MAX)                             \
                EACH(acc[i] > x[i] ? acc[i] : x[i]);                       \
            else if (how == QUERN_COMBINE_MIN)                             \
                EACH(acc[i] < x[i] ? acc[i] : x[i]);                       \
            else                                                           \
                EACH((type)(wrapping)((wrapping)acc[i] + (wrapping)x[i])); \
        }                                                                  \
        memcpy((type *)out + at, acc, (size_t)n * sizeof(type));           \
    } while (0)

#define AS_DOUBLE(x) ((double)(x))
#define AS_FLOAT(x) ((float)(x))

static void combine_block(int64_t dtype, int64_t how, int ranks, const void *const *in, void *out, int64_t at,
                          int64_t n)
{
    switch (dtype) {
    case QUERN_F16: FLOATS(uint16_t, from_f16, to_f16); return;
    case QUERN_BF16: FLOATS(uint16_t, from_bf16, to_bf16); return;
    case QUERN_F32: FLOATS(float, AS_DOUBLE, AS_FLOAT); return;
    case QUERN_F64: FLOATS(double, AS_DOUBLE, AS_DOUBLE); return;
    case QUERN_BOOL:
    case QUERN_U8: INTEGERS(uint8_t, unsigned); return;
    case QUERN_I8: INTEGERS(int8_t, unsigned); return;
    case QUERN_U16: INTEGERS(uint16_t, unsigned); return;
    case QUERN_I16: INTEGERS(int16_t, unsigned); return;
    case QUERN_U32: INTEGERS(uint32_t, uint32_t); return;
    case QUERN_I32: INTEGERS(int32_t, uint32_t); return;
    case QUERN_U64: INTEGERS(uint64_t, uint64_t); return;
    default: INTEGERS(int64_t, uint64_t); return;
    }
}

void qn_dist_combine(int64_t dtype, int64_t how, int ranks, const void *const *in, void *out, int64_t n)
{
    for (int64_t at = 0; at < n; at += BLOCK)
        combine_block(dtype, how, ranks, in, out, at, n - at < BLOCK ? n - at : BLOCK);
}
