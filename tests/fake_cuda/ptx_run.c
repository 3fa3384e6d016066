/* A kernel, one thread after the other: see ptx.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptx_module.h"

/* ---- numbers ---- */

static uint64_t low_bits(uint64_t x, int bits)
{
    return bits >= 64 ? x : x & (((uint64_t)1 << bits) - 1);
}

static int64_t extended(uint64_t x, int bits)
{
    return bits >= 64 ? (int64_t)x : (int64_t)(x << (64 - bits)) >> (64 - bits);
}

/* The value of a float of any type, which a double holds. */
static double to_double(uint64_t x, type t)
{
    if (t.bits == 64) {
        double d;
        memcpy(&d, &x, sizeof d);
        return d;
    }
    uint32_t bits = (uint32_t)x;
    if (t.kind == 'B')
        bits <<= 16;
    if (t.bits == 16 && t.kind == 'f') {
        int exponent = (int)(bits >> 10 & 31);
        double fraction = (double)(bits & 1023) / 1024;
        double value = exponent == 31 ? (bits & 1023 ? NAN : INFINITY)
                       : exponent     ? ldexp(1 + fraction, exponent - 15)
                                      : ldexp(fraction, -14);
        return bits & 0x8000 ? -value : value;
    }
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rounds to a float with so many bits of fraction and this least exponent, to nearest even. */
static double rounded(double x, int fraction, int least)
{
    int exponent;
    if (x == 0 || !isfinite(x))
        return x;
    frexp(x, &exponent);
    exponent = exponent - 1 < least ? least : exponent - 1;
    return ldexp(nearbyint(ldexp(x, fraction - exponent)), exponent - fraction);
}

static uint64_t from_double(double x, type t)
{
    if (t.bits == 64) {
        uint64_t bits;
        memcpy(&bits, &x, sizeof bits);
        return bits;
    }
    if (t.bits == 32 || t.kind == 'B') {
        float f = (float)(t.kind == 'B' ? rounded(x, 7, -126) : x);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        if (t.kind == 'B')
            return isnan(x) ? 0x7fff : bits >> 16;
        return isnan(x) ? 0x7fffffff : bits;
    }
    const uint64_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x))
        return 0x7fff;
    x = fabs(rounded(x, 10, -14));
    if (x >= 65536)
        return sign | 0x7c00;
    if (x < ldexp(1, -14))
        return sign | (uint64_t)ldexp(x, 24);
    int exponent;
    double m = frexp(x, &exponent);
    return sign | (uint64_t)(exponent + 14) << 10 | (uint64_t)ldexp(2 * m - 1, 10);
}

static bool is_float(type t)
{
    return t.kind == 'f' || t.kind == 'B';
}

/* One operation on floats, rounded once: f32 in float, narrower ones in double, which is wide enough. */
static double compute(const inst *i, double a, double b, double c)
{
    const bool single = i->type.bits == 32;
    const float fa = (float)a, fb = (float)b, fc = (float)c;
    switch (i->op) {
    case ADD: return single ? (double)(fa + fb) : a + b;
    case SUB: return single ? (double)(fa - fb) : a - b;
    case MUL: return single ? (double)(fa * fb) : a * b;
    case DIV: return single ? (double)(fa / fb) : a / b;
    case FMA:
    case MAD: return single ? (double)fmaf(fa, fb, fc) : fma(a, b, c);
    case SQRT: return single ? (double)sqrtf(fa) : sqrt(a);
    case RCP: return single ? (double)(1 / fa) : 1 / a;
    case MIN:
    case MAX:
        if (isnan(a) || isnan(b))
            return i->nan || (isnan(a) && isnan(b)) ? NAN : isnan(a) ? b : a;
        if (a == b)
            return (i->op == MIN) == (signbit(a) != 0) ? a : b;
        return (i->op == MIN) == (a < b) ? a : b;
    default: return NAN;
    }
}

static double to_whole(double x, rounding how)
{
    switch (how) {
    case TO_NEAREST: return nearbyint(x);
    case TO_ZERO: return trunc(x);
    case DOWN: return floor(x);
    default: return ceil(x);
    }
}

static uint64_t convert(const inst *i, uint64_t x)
{
    const type to = i->type, from = i->from;
    if (is_float(from)) {
        double value = to_double(x, from);
        if (is_float(to)) {
            value = i->to_integer ? to_whole(value, i->rounding) : value;
            if (i->sat)
                value = isnan(value) ? 0 : fmin(fmax(value, 0), 1);
            return from_double(value, to);
        }
        value = to_whole(value, i->rounding); /* and as near as the type has it; NaN: 0 */
        if (isnan(value))
            return 0;
        const double end = ldexp(1, to.kind == 's' ? to.bits - 1 : to.bits);
        if (to.kind == 's')
            return value >= end   ? (uint64_t)(((uint64_t)1 << (to.bits - 1)) - 1)
                   : value < -end ? (uint64_t)extended((uint64_t)1 << (to.bits - 1), to.bits)
                                  : (uint64_t)(int64_t)value;
        return value <= 0 ? 0 : value >= end ? low_bits(UINT64_MAX, to.bits) : (uint64_t)value;
    }
    if (is_float(to)) {
        if (from.kind == 's')
            return to.bits == 32 ? from_double((double)(float)extended(x, from.bits), to)
                                 : from_double((double)extended(x, from.bits), to);
        return to.bits == 32 ? from_double((double)(float)low_bits(x, from.bits), to)
                             : from_double((double)low_bits(x, from.bits), to);
    }
    return from.kind == 's' ? (uint64_t)extended(x, from.bits) : low_bits(x, from.bits);
}

static bool compare(const char *how, uint64_t x, uint64_t y, type t)
{
    int order; /* -1, 0, 1; 2: a NaN */
    if (is_float(t)) {
        double a = to_double(x, t), b = to_double(y, t);
        order = isnan(a) || isnan(b) ? 2 : (a > b) - (a < b);
    } else if (t.kind == 's') {
        int64_t a = extended(x, t.bits), b = extended(y, t.bits);
        order = (a > b) - (a < b);
    } else {
        uint64_t a = low_bits(x, t.bits), b = low_bits(y, t.bits);
        order = (a > b) - (a < b);
    }
    if (strcmp(how, "num") == 0)
        return order != 2;
    if (strcmp(how, "nan") == 0)
        return order == 2;
    if (order == 2)
        return strlen(how) == 3; /* equ, neu, … */
    switch (how[0] << 8 | how[1]) {
    case 'e' << 8 | 'q': return order == 0;
    case 'n' << 8 | 'e': return order != 0;
    case 'l' << 8 | 't':
    case 'l' << 8 | 'o': return order < 0;
    case 'l' << 8 | 'e':
    case 'l' << 8 | 's': return order <= 0;
    case 'g' << 8 | 't':
    case 'h' << 8 | 'i': return order > 0;
    default: return order >= 0;
    }
}

static uint64_t integer(const inst *i, uint64_t x, uint64_t y, uint64_t z)
{
    const int bits = i->type.bits;
    const bool is_signed = i->type.kind == 's';
    const uint64_t a = low_bits(x, bits), b = low_bits(y, bits);
    const int64_t sa = extended(x, bits), sb = extended(y, bits);
    switch (i->op) {
    case ADD: return a + b;
    case SUB: return a - b;
    case MUL:
    case MAD: {
        __uint128_t product = is_signed ? (__uint128_t)((__int128_t)sa * sb) : (__uint128_t)a * b;
        uint64_t part = (uint64_t)(i->high ? product >> bits : product);
        return i->op == MAD ? part + z : part;
    }
    case DIV:
        if (b == 0)
            return UINT64_MAX; /* whatever */
        return is_signed ? (uint64_t)(sb == -1 ? (int64_t)(0 - (uint64_t)sa) : sa / sb) : a / b;
    case REM:
        if (b == 0)
            return UINT64_MAX;
        return is_signed ? (uint64_t)(sb == -1 ? 0 : sa % sb) : a % b;
    case MIN: return is_signed ? (uint64_t)(sa < sb ? sa : sb) : a < b ? a : b;
    case MAX: return is_signed ? (uint64_t)(sa > sb ? sa : sb) : a > b ? a : b;
    case AND: return a & b;
    case OR: return a | b;
    case XOR: return a ^ b;
    case SHL: return (uint32_t)y >= (unsigned)bits ? 0 : a << (uint32_t)y;
    case SHR: {
        const unsigned by = (uint32_t)y >= (unsigned)bits ? (unsigned)bits : (uint32_t)y;
        return is_signed ? (uint64_t)(sa >> (by > 63 ? 63 : by)) : by > 63 ? 0 : a >> by;
    }
    case BFE: { /* signed: filled with the field's own sign */
        const unsigned at = (unsigned)y & 255, n = (unsigned)z & 255;
        const uint64_t field = at > 63 ? 0 : a >> at;
        return n == 0      ? 0
               : is_signed ? (uint64_t)extended(field, n > 63 ? 64 : (int)n)
                           : low_bits(field, (int)n);
    }
    default: return 0;
    }
}

static uint64_t permuted(uint64_t x, uint64_t y, uint64_t selector)
{
    const uint64_t both = low_bits(x, 32) | y << 32;
    uint64_t result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned pick = (unsigned)(selector >> (4 * i)) & 15;
        uint64_t byte = both >> (8 * (pick & 7)) & 255;
        if (pick & 8)
            byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}

static bool tested(const inst *i, uint64_t x)
{
    const double value = to_double(x, i->type);
    switch (i->compare[0]) {
    case 'f': return isfinite(value);
    case 'i': return isinf(value);
    case 's': return fpclassify(value) == FP_SUBNORMAL;
    default:
        return strcmp(i->compare, "notanum") == 0  ? isnan(value)
               : strcmp(i->compare, "number") == 0 ? !isnan(value)
                                                   : isnormal(value);
    }
}

/* ---- running ---- */

typedef struct thread {
    int number, at;
    bool done, waits; /* for the others of its warp */
    uint64_t *regs;
    unsigned char *local;
} thread;

typedef struct block {
    const ptx_kernel *k;
    unsigned number;
    int n_threads;
    const uint64_t *params;
    unsigned char *shared;
    void *(*reach)(uint64_t, size_t);
    char *error;
    bool failed;
} block;

static uint64_t stop(block *b, const thread *t, const char *what, uint64_t address)
{
    if (!b->failed)
        snprintf(b->error, ERROR_BYTES, "%s, line %d, block %u, thread %d: %s %#llx", b->k->name,
                 b->k->code[t->at].line, b->number, t->number, what, (unsigned long long)address);
    b->failed = true;
    return 0;
}

static void *memory(block *b, thread *t, const inst *i, uint64_t address, size_t bytes)
{
    const uint64_t at = OFFSET_OF(address);
    space where = i->space;
    if (where == GENERIC)
        where = SPACE_OF(address) == SHARED_AT ? SHARED : SPACE_OF(address) == LOCAL_AT ? LOCAL : GLOBAL;
    void *found = NULL;
    if (address % bytes) {
        stop(b, t, "an address is not aligned:", address);
        return NULL;
    }
    if (where == SHARED)
        found = at + bytes <= b->k->shared_bytes ? b->shared + at : NULL;
    else if (where == LOCAL)
        found = at + bytes <= b->k->local_bytes ? t->local + at : NULL;
    else if (SPACE_OF(address) == GLOBAL_AT)
        found = at + bytes <= b->k->module->global_bytes ? b->k->module->globals + at : NULL;
    else
        found = b->reach(address, bytes);
    if (!found)
        stop(b, t, "there is no memory at", address);
    return found;
}

static uint64_t value(block *b, const thread *t, const operand *x)
{
    switch (x->kind) {
    case REGISTER: return t->regs[x->reg];
    case IMMEDIATE: return x->value;
    case SPECIAL: return x->reg == 0 ? (uint64_t)t->number : x->reg == 1 ? b->number : (uint64_t)b->n_threads;
    default: return stop(b, t, "an operand is no value", 0);
    }
}

static void set(const block *b, thread *t, const operand *x, uint64_t to)
{
    (void)b;
    if (x->kind == REGISTER)
        t->regs[x->reg] = to;
}

static uint64_t part(const thread *t, const operand *vector, int i)
{
    return vector->parts[i] == NUMBER ? vector->values[i] : t->regs[vector->parts[i]];
}

static void transfer(block *b, thread *t, const inst *i)
{
    const operand *at = &i->x[i->op == ST ? 0 : 1], *what = &i->x[i->op == ST ? 1 : 0];
    const size_t size = (size_t)i->type.bits / 8;
    const uint64_t address = at->value + (at->reg >= 0 ? t->regs[at->reg] : 0);
    if (i->space == PARAM) {
        set(b, t, what, b->params[address / 8]);
        return;
    }
    char *data = memory(b, t, i, address, size * (size_t)(i->n_vector ? i->n_vector : 1));
    for (int k = 0; data && k < (i->n_vector ? i->n_vector : 1); k++) {
        uint64_t bits = 0;
        const int reg = i->n_vector ? what->parts[k] : -1;
        if (i->op == ST) {
            bits = i->n_vector ? part(t, what, k) : value(b, t, what);
            memcpy(data + (size_t)k * size, &bits, size);
            continue;
        }
        memcpy(&bits, data + (size_t)k * size, size);
        if (i->type.kind == 's')
            bits = (uint64_t)extended(bits, i->type.bits);
        if (!i->n_vector)
            set(b, t, what, bits);
        else if (reg >= 0)
            t->regs[reg] = bits;
    }
}

/* mov: also from and to the parts of a register */
static void move(block *b, thread *t, const inst *i)
{
    const operand *to = &i->x[0], *from = &i->x[1];
    uint64_t bits = 0;
    if (from->kind == VECTOR)
        for (int k = 0; k < from->n; k++)
            bits |= low_bits(part(t, from, k), i->type.bits / from->n) << (k * i->type.bits / from->n);
    else
        bits = value(b, t, from);
    if (to->kind != VECTOR)
        set(b, t, to, bits);
    else
        for (int k = 0; k < to->n; k++)
            if (to->parts[k] >= 0)
                t->regs[to->parts[k]] = low_bits(bits >> (k * i->type.bits / to->n), i->type.bits / to->n);
}

static uint64_t evaluate(block *b, const thread *t, const inst *i)
{
    uint64_t v[3] = { 0, 0, 0 };
    for (int k = 1; k < i->n && k < 4; k++)
        v[k - 1] = value(b, t, &i->x[k]);
    const type f = i->type;
    switch (i->op) {
    case SELP: return v[2] & 1 ? v[0] : v[1];
    case SETP: {
        bool holds = compare(i->compare, v[0], v[1], f);
        return !i->with[0]         ? holds
               : i->with[0] == 'a' ? holds && v[2]
               : i->with[0] == 'o' ? holds || v[2]
                                   : holds != (v[2] != 0);
    }
    case SET:
        return compare(i->compare, v[0], v[1], i->from) ? (is_float(f) ? from_double(1, f) : UINT64_MAX) : 0;
    case TESTP: return tested(i, v[0]);
    case CVT: return convert(i, v[0]);
    case CVTA:
        return i->space == SHARED  ? i->to_space ? OFFSET_OF(v[0]) : v[0] | SHARED_AT
               : i->space == LOCAL ? i->to_space ? OFFSET_OF(v[0]) : v[0] | LOCAL_AT
                                   : v[0];
    case COPYSIGN: { /* the sign of the first, the rest of the second */
        const uint64_t sign = (uint64_t)1 << (f.bits - 1);
        return (v[0] & sign) | (v[1] & (sign - 1));
    }
    case NEG: return is_float(f) ? v[0] ^ (uint64_t)1 << (f.bits - 1) : 0 - v[0];
    case ABS: return is_float(f) ? low_bits(v[0], f.bits - 1) : extended(v[0], f.bits) < 0 ? 0 - v[0] : v[0];
    case NOT: return f.kind == 'p' ? !v[0] : ~v[0];
    case POPC: return (uint64_t)__builtin_popcountll(low_bits(v[0], f.bits));
    case CLZ: {
        const uint64_t bits = low_bits(v[0], f.bits);
        return (uint64_t)(bits ? __builtin_clzll(bits) - (64 - f.bits) : f.bits);
    }
    case SHF: { /* of the second and the first, as 64 bits */
        const uint64_t both = low_bits(v[0], 32) | v[1] << 32, n = (uint32_t)v[2];
        const int by = (int)(i->clamp ? n > 32 ? 32 : n : n & 31);
        return i->left ? both << by >> 32 : both >> by;
    }
    case PRMT: return permuted(v[0], v[1], v[2]);
    case BFE: return integer(i, v[0], v[1], v[2]);
    default: break;
    }
    if (is_float(f))
        return from_double(compute(i, to_double(v[0], f), to_double(v[1], f), to_double(v[2], f)), f);
    return integer(i, v[0], v[1], v[2]);
}

/* ---- what the threads of a warp do together ---- */

enum { WARP = 32, TILE = 8 };

/* Where a thread's registers have element [row][column] of a tile of 8 x 8 16-bit elements, or of two registers of f32. */
static uint64_t *in_tile(thread *warp, const operand *x, int number, int row, int column)
{
    return &warp[4 * row + column / 2].regs[x->parts[number]];
}

static void load_tiles(block *b, thread *warp, const inst *i)
{
    for (int row = 0; row < WARP && !b->failed; row++) {
        thread *t = &warp[row];
        uint16_t bits[TILE];
        const uint64_t at = i->x[1].value + (i->x[1].reg >= 0 ? t->regs[i->x[1].reg] : 0);
        void *data = memory(b, t, i, at, sizeof bits);
        if (!data)
            return;
        memcpy(bits, data, sizeof bits);
        for (int k = 0; k < TILE; k++) {
            const int in_row = i->turned ? k : row % TILE, column = i->turned ? row % TILE : k;
            uint64_t *to = in_tile(warp, &i->x[0], row / TILE, in_row, column);
            const int shift = 16 * (column % 2);
            *to = (*to & ~((uint64_t)0xffff << shift)) | (uint64_t)bits[k] << shift;
        }
    }
}

static double multiplied(thread *warp, const inst *i, int operand, int number, int row, int column)
{
    return to_double(*in_tile(warp, &i->x[operand], number, row, column) >> (16 * (column % 2)) & 0xffff,
                     i->from);
}

static void multiply_tiles(thread *warp, const inst *i)
{
    for (int row = 0; row < 2 * TILE; row++)
        for (int column = 0; column < TILE; column++) {
            const int half = row / TILE, part = 2 * half + column % 2;
            double sum = to_double(*in_tile(warp, &i->x[3], part, row % TILE, column), i->type);
            for (int k = 0; k < 2 * TILE; k++)
                sum += multiplied(warp, i, 1, k / TILE * 2 + half, row % TILE, k % TILE) *
                       multiplied(warp, i, 2, k / TILE, column, k % TILE);
            *in_tile(warp, &i->x[0], part, row % TILE, column) = from_double((float)sum, i->type);
        }
}

/* shfl d, a, b, c, members: c is 31 and members are all, as the code generator has it */
static void exchange(block *b, thread *warp, const inst *i)
{
    uint64_t x[WARP];
    for (int k = 0; k < WARP; k++)
        x[k] = value(b, &warp[k], &i->x[1]);
    for (int k = 0; k < WARP; k++) {
        const int other = (int)value(b, &warp[k], &i->x[2]);
        if (value(b, &warp[k], &i->x[3]) != WARP - 1 ||
            low_bits(value(b, &warp[k], &i->x[4]), 32) != UINT32_MAX)
            stop(b, &warp[k], "a shfl of part of a warp", 0);
        set(b, &warp[k], &i->x[0], low_bits(x[(i->turned ? k ^ other : other) & (WARP - 1)], 32));
    }
}

/* false: the warp waits for nothing but the block, or is at its end. */
static bool run_together(block *b, thread *warp, int n)
{
    int waiting = 0;
    for (int k = 0; k < n; k++)
        waiting += warp[k].waits;
    if (waiting == 0 || b->failed)
        return false;
    const inst *i = &b->k->code[warp[0].at];
    for (int k = 0; k < n; k++)
        if (waiting != WARP || warp[k].at != warp[0].at || i->guard >= 0) {
            stop(b, &warp[k], "a warp is not together", 0);
            return false;
        }
    if (i->op == LDMATRIX)
        load_tiles(b, warp, i);
    else if (i->op == SHFL)
        exchange(b, warp, i);
    else
        multiply_tiles(warp, i);
    for (int k = 0; k < n; k++) {
        warp[k].waits = false;
        warp[k].at++;
    }
    return true;
}

/* To the next barrier, to what its warp does together, or the end. */
static void run_thread(block *b, thread *t)
{
    for (long steps = 0; !b->failed; t->at++) {
        const inst *i = &b->k->code[t->at];
        if (t->at == b->k->n || ++steps > 1L << 30) {
            t->at = t->at == b->k->n ? t->at - 1 : t->at;
            stop(b, t, "does not end", 0);
            return;
        }
        if (i->guard >= 0 && !(t->regs[i->guard] & 1) != i->negated)
            continue;
        switch (i->op) {
        case RET: t->done = true; return;
        case BAR: t->at++; return;
        case LDMATRIX:
        case SHFL:
        case MMA: t->waits = true; return;
        case BRA: t->at = i->x[0].reg - 1; break;
        case LD:
        case ST: transfer(b, t, i); break;
        case MOV: move(b, t, i); break;
        default: set(b, t, &i->x[0], evaluate(b, t, i)); break;
        }
    }
}

bool ptx_run(const ptx_kernel *k, unsigned number, int n_threads, bool backwards, const uint64_t *params,
             void *(*reach)(uint64_t address, size_t bytes), char *error)
{
    block b = {
        .k = k, .number = number, .n_threads = n_threads, .params = params, .reach = reach, .error = error
    };
    thread *threads = calloc((size_t)n_threads, sizeof *threads);
    static uint64_t
        *regs; /* one block runs at a time; fresh memory each time would cost more than the block */
    static size_t room;
    if ((size_t)n_threads * (size_t)(k->n_regs + 1) > room) {
        room = (size_t)n_threads * (size_t)(k->n_regs + 1);
        free(regs);
        regs = calloc(room, sizeof *regs);
    }
    unsigned char *local = calloc((size_t)n_threads, k->local_bytes + 1);
    b.shared = malloc(k->shared_bytes + 1);
    memset(b.shared, 0xa5, k->shared_bytes + 1); /* it holds anything */
    for (int i = 0; i < n_threads; i++)
        threads[i] = (thread){ .number = i,
                               .regs = regs + (size_t)i * (size_t)k->n_regs,
                               .local = local + (size_t)i * k->local_bytes };
    for (int left = n_threads; left > 0 && !b.failed;) {
        left = 0;
        for (int w = 0; w < n_threads; w += WARP) {
            thread *warp = &threads[backwards ? (n_threads - 1 - w) / WARP * WARP : w];
            const int n = n_threads - (int)(warp - threads) < WARP ? n_threads - (int)(warp - threads) : WARP;
            do
                for (int i = 0; i < n; i++) {
                    thread *t = &warp[backwards ? n - 1 - i : i];
                    if (!t->done)
                        run_thread(&b, t);
                }
            while (run_together(&b, warp, n));
            for (int i = 0; i < n; i++)
                left += !warp[i].done;
        }
    }
    free(b.shared);
    free(local);
    free(threads);
    return !b.failed;
}
