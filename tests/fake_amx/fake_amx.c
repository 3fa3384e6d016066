/* An emulator of AMX's instructions, in the process that runs them: it is loaded by LD_PRELOAD or dlopen. A machine without AMX
 * raises SIGILL at each of them; the handler does what Intel's manual says that it does, to tiles of the thread, and steps over
 * it. Linux refuses the permission there: a filter of system calls turns the request into SIGSYS, whose handler grants it.
 *
 * What AMX would refuse (a tile that has no shape, shapes that don't fit, tiles before the permission) is said and ends the
 * process. A machine that has AMX is left alone.
 *
 * Objects ask the CPU itself whether it has AMX, which no one can answer for it. In a copy of such an object a test replaces the
 * instructions that ask by invalid ones, which the handler answers:
 *   cpuid 0f a2 by 0f 04; xgetbv 0f 01 d0 by 0f 0a 90 */
#include "fake_amx.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, CONFIG_BYTES = 64 };
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };              /* of arch_prctl */
enum { HAS_AMX = 1 << 22 | 1 << 24 | 1 << 25, LEAF_FEATURES = 7 }; /* bf16, tiles, int8: of edx */
enum { SAVES_TILES = 1 << 17 | 1 << 18 };                          /* of XCR0 */

/* As sttilecfg stores it. */
typedef struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[TILES], more_bytes[TILES];
    uint8_t rows[TILES], more_rows[TILES];
} config;

static _Thread_local config shape;
static _Thread_local uint8_t tiles[TILES][ROWS][ROW_BYTES];
static atomic_bool permitted;
static atomic_long n_instructions;
static struct sigaction before;
static int how;

int fake_amx(void)
{
    return how;
}

long fake_amx_instructions(void)
{
    return n_instructions;
}

static void refuse(const char *why)
{
    fprintf(stderr, "fake_amx: %s\n", why);
    abort();
}

static void demand(bool condition, const char *why)
{
    if (!condition)
        refuse(why);
}

/* ---- what instructions do ---- */

static void release(void)
{
    memset(&shape, 0, sizeof shape);
    memset(tiles, 0, sizeof tiles);
}

static void load_config(const uint8_t *at)
{
    static const config none;
    config c;
    memcpy(&c, at, sizeof c);
    release();
    if (c.palette == 0)
        return;
    demand(c.palette == 1, "ldtilecfg: unknown palette");
    demand(c.start_row == 0,
           "ldtilecfg: begins in the middle"); /* which only an interruption may leave behind */
    demand(memcmp(c.reserved, none.reserved, sizeof c.reserved) == 0 &&
               memcmp(c.more_bytes, none.more_bytes, sizeof c.more_bytes) == 0 &&
               memcmp(c.more_rows, none.more_rows, sizeof c.more_rows) == 0,
           "ldtilecfg: reserved bytes are not 0");
    for (int t = 0; t < TILES; t++)
        demand(c.rows[t] <= ROWS && c.row_bytes[t] <= ROW_BYTES && !c.rows[t] == !c.row_bytes[t],
               "ldtilecfg: a tile of a wrong shape");
    shape = c;
}

static void demand_tile(int t)
{
    demand(shape.palette == 1, "a tile is used, but there is no configuration");
    demand(t < TILES && shape.rows[t] > 0, "a tile without rows is used");
}

static void zero(int t)
{
    demand_tile(t);
    memset(tiles[t], 0, sizeof tiles[t]);
}

static void load_tile(int t, const uint8_t *at, int64_t stride)
{
    zero(t);
    for (int r = 0; r < shape.rows[t]; r++)
        memcpy(tiles[t][r], at + r * stride, shape.row_bytes[t]);
}

static void store_tile(int t, uint8_t *at, int64_t stride)
{
    demand_tile(t);
    for (int r = 0; r < shape.rows[t]; r++)
        memcpy(at + r * stride, tiles[t][r], shape.row_bytes[t]);
}

static void demand_product(int sum, int x, int y)
{
    demand_tile(sum);
    demand_tile(x);
    demand_tile(y);
    demand(sum != x && sum != y && x != y, "a product with one tile twice");
    demand(shape.row_bytes[sum] % 4 == 0 && shape.row_bytes[x] % 4 == 0, "a product of parts of four bytes");
    demand(shape.rows[sum] == shape.rows[x] && shape.row_bytes[sum] == shape.row_bytes[y] &&
               shape.row_bytes[x] == 4 * shape.rows[y],
           "a product of tiles whose shapes don't fit");
}

static float widened(uint16_t bits)
{
    float value;
    memcpy(&value, &(uint32_t){ (uint32_t)bits << 16 }, sizeof value);
    return value;
}

/* Sums of the even and of the odd products of a row apart, then both to what was there. */
__attribute__((noinline, target("fma"))) static void multiply_halves(int sum, int x, int y)
{
    const int n = shape.row_bytes[sum] / 2;
    for (int r = 0; r < shape.rows[sum]; r++) {
        float sums[ROW_BYTES / 2] = { 0 }, row[ROW_BYTES / 4];
        uint16_t left[ROW_BYTES / 2], right[ROW_BYTES / 2];
        memcpy(left, tiles[x][r], sizeof left);
        for (int k = 0; k < shape.row_bytes[x] / 4; k++) {
            memcpy(right, tiles[y][k], sizeof right);
            for (int j = 0; j < n; j++)
                sums[j] = __builtin_fmaf(widened(left[2 * k + j % 2]), widened(right[j]), sums[j]);
        }
        memcpy(row, tiles[sum][r], sizeof row);
        for (int j = 0; j < n / 2; j++)
            row[j] += sums[2 * j] + sums[2 * j + 1];
        memcpy(tiles[sum][r], row, sizeof row);
    }
}

static void tdpbf16ps(int sum, int x, int y)
{
    demand_product(sum, x, y);
    enum { ROUND_TO_EVEN_AND_FLUSH_BOTH_WAYS = 0x9fc0 };
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(ROUND_TO_EVEN_AND_FLUSH_BOTH_WAYS);
    multiply_halves(sum, x, y);
    _mm_setcsr(mode);
}

static int32_t number(uint8_t byte, bool is_signed)
{
    return is_signed ? (int8_t)byte : byte;
}

/* tdpbssd, tdpbsud, tdpbusd and tdpbuud. Sums wrap around. */
static void multiply_bytes(int sum, int x, int y, bool x_signed, bool y_signed)
{
    demand_product(sum, x, y);
    for (int r = 0; r < shape.rows[sum]; r++) {
        uint32_t row[ROW_BYTES / 4];
        memcpy(row, tiles[sum][r], sizeof row);
        for (int k = 0; k < shape.row_bytes[x]; k++)
            for (int j = 0; j < shape.row_bytes[sum] / 4; j++)
                row[j] += (uint32_t)(number(tiles[x][r][k], x_signed) *
                                     number(tiles[y][k / 4][4 * j + k % 4], y_signed));
        memcpy(tiles[sum][r], row, sizeof row);
    }
}

/* ---- decoding ---- */

static int64_t general_register(const ucontext_t *c, int number)
{
    static const int places[] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
    return c->uc_mcontext.gregs[places[number]];
}

/* A memory operand: where it begins, the index register's part apart, which is the stride of a tile's rows. */
typedef struct place {
    int64_t base, index;
    bool has_sib;
} place;

/* Reads the bytes from ModRM on. Where the instruction ends. x and b: what the VEX prefix adds to registers' numbers. */
static const uint8_t *find_place(const ucontext_t *c, const uint8_t *at, int x, int b, place *out)
{
    const int mod = *at >> 6, rm = *at & 7;
    int base = rm, bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    at++;
    *out = (place){ .has_sib = rm == 4 };
    if (out->has_sib) {
        const int index = (*at >> 3 & 7) + x, scale = *at >> 6;
        base = *at++ & 7;
        if (index != 4)
            out->index = (int64_t)((uint64_t)general_register(c, index) << scale);
    }
    const bool no_base = mod == 0 && base == 5;
    int32_t offset = 0;
    if (no_base)
        bytes = 4;
    memcpy(&offset, at, (size_t)bytes);
    at += bytes;
    out->base = bytes == 1 ? (int8_t)offset : offset;
    if (!no_base)
        out->base += general_register(c, base + b);
    else if (!out->has_sib) /* from the next instruction on */
        out->base += (int64_t)(uintptr_t)at;
    return at;
}

/* Does what one instruction of AMX says. Where the next one begins; NULL: it is another one. */
static const uint8_t *step(const ucontext_t *c, const uint8_t *at)
{
    enum { VEX = 0xc4, MAP_0F38 = 2, W_AND_L = 0x84 }; /* the latter are 0 in all of these */
    enum { NONE, P66, PF3, PF2, REGISTERS };
#define INSTRUCTION(opcode, form) ((opcode) << 3 | (form))
    if (at[0] != VEX || (at[1] & 0x1f) != MAP_0F38 || at[2] & W_AND_L ||
        (at[3] != 0x49 && at[3] != 0x4b && at[3] != 0x5c && at[3] != 0x5e))
        return NULL;
    const int form = (at[2] & 3) + (at[4] >> 6 == 3 ? REGISTERS : 0);
    const int reg = at[4] >> 3 & 7, rm = at[4] & 7, third = ~(at[2] >> 3) & 15; /* tiles, of which 8 are */
    const uint8_t *end = at + 5;
    place p = { .base = 0 };
    if (form < REGISTERS)
        end = find_place(c, at + 4, at[1] & 0x40 ? 0 : 8, at[1] & 0x20 ? 0 : 8, &p);
    uint8_t *rows = (uint8_t *)(uintptr_t)p.base, *block = (uint8_t *)(uintptr_t)(p.base + p.index);
    demand(permitted, "an instruction of AMX, but the system was not asked for the permission");
    demand(at[3] != 0x4b || p.has_sib, "a tile's address has no index");
    switch (INSTRUCTION(at[3], form)) {
    case INSTRUCTION(0x49, NONE): load_config(block); break;
    case INSTRUCTION(0x49, P66): memcpy(block, &shape, sizeof shape); break;
    case INSTRUCTION(0x49, REGISTERS + NONE): release(); break;
    case INSTRUCTION(0x49, REGISTERS + PF2): zero(reg); break;
    case INSTRUCTION(0x4b, PF2): /* tileloadd, and tileloaddt1 */
    case INSTRUCTION(0x4b, P66): load_tile(reg, rows, p.index); break;
    case INSTRUCTION(0x4b, PF3): store_tile(reg, rows, p.index); break;
    case INSTRUCTION(0x5c, REGISTERS + PF3): tdpbf16ps(reg, rm, third); break;
    case INSTRUCTION(0x5e, REGISTERS + PF2): multiply_bytes(reg, rm, third, true, true); break;
    case INSTRUCTION(0x5e, REGISTERS + PF3): multiply_bytes(reg, rm, third, true, false); break;
    case INSTRUCTION(0x5e, REGISTERS + P66): multiply_bytes(reg, rm, third, false, true); break;
    case INSTRUCTION(0x5e, REGISTERS + NONE): multiply_bytes(reg, rm, third, false, false); break;
    default: return NULL;
    }
    n_instructions++;
    return end;
}

/* A question to the CPU that a test has replaced, answered as if it had AMX. Where the next instruction begins, or NULL. */
static const uint8_t *answer(ucontext_t *c, const uint8_t *at)
{
    greg_t *r = c->uc_mcontext.gregs;
    if (at[0] != 0x0f || (at[1] != 0x04 && at[1] != 0x0a))
        return NULL;
    unsigned words[4];
    const unsigned leaf = (unsigned)r[REG_RAX], part = (unsigned)r[REG_RCX];
    if (at[1] == 0x0a) {
        __asm__ volatile("xgetbv" : "=a"(words[0]), "=d"(words[3]) : "c"(part));
        r[REG_RAX] = words[0] | SAVES_TILES;
        r[REG_RDX] = words[3];
        return at + 3;
    }
    __cpuid_count(leaf, part, words[0], words[1], words[2], words[3]);
    if (leaf == LEAF_FEATURES && part == 0)
        words[3] |= HAS_AMX;
    r[REG_RAX] = words[0];
    r[REG_RBX] = words[1];
    r[REG_RCX] = words[2];
    r[REG_RDX] = words[3];
    return at + 2;
}

/* ---- signals ---- */

/* All instructions of AMX that follow each other, since a signal costs more than most of them. */
static void on_illegal(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    ucontext_t *c = context;
    const uint8_t *at = (const uint8_t *)(uintptr_t)c->uc_mcontext.gregs[REG_RIP], *next = answer(c, at);
    if (!next)
        next = step(c, at);
    if (!next) { /* raised once more, without this handler */
        sigaction(SIGILL, &before, NULL);
        return;
    }
    for (at = next; (next = step(c, at));)
        at = next;
    c->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)at;
}

static void on_request(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    permitted = true;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = 0;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), struct sigaction *old)
{
    const struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER };
    struct sigaction found;
    if (!sigaction(number, NULL, &found) && found.sa_sigaction != handler &&
        !sigaction(number, &action, NULL))
        *old = found;
}

void fake_amx_take_signals(void)
{
    static struct sigaction ignored;
    if (how == FAKE_AMX_EMULATED) {
        handle(SIGILL, on_illegal, &before);
        handle(SIGSYS, on_request, &ignored);
    }
}

/* Requests for tiles raise SIGSYS, in all threads; other system calls stay what they are. */
static bool filter_requests(void)
{
#define LOAD(member) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define UNLESS(value, skipped) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skipped)
    struct sock_filter filter[] = {
        LOAD(nr),
        UNLESS(SYS_arch_prctl, 5),
        LOAD(args[0]),
        UNLESS(REQUEST_PERMISSION, 3),
        LOAD(args[1]),
        UNLESS(TILE_DATA, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

__attribute__((constructor)) static void begin(void)
{
    unsigned a, b, c, d;
    if (__get_cpuid_count(LEAF_FEATURES, 0, &a, &b, &c, &d) && (d & HAS_AMX) == HAS_AMX &&
        syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0)
        how = FAKE_AMX_REAL;
    else if (__builtin_cpu_supports("fma") && filter_requests())
        how = FAKE_AMX_EMULATED;
    fake_amx_take_signals();
}

#else

int fake_amx(void)
{
    return FAKE_AMX_NONE;
}

void fake_amx_take_signals(void) {}

long fake_amx_instructions(void)
{
    return 0;
}

#endif
