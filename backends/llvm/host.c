/* See host.h. */
#include "backends/llvm/host.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static pthread_once_t asked = PTHREAD_ONCE_INIT;
static char text[512];

#if defined(__x86_64__)

#include <cpuid.h>

/* Registers that cpuid gives, and XCR0, which says what registers the system saves. */
enum {
    VENDOR_B,
    VENDOR_C,
    VENDOR_D,
    MODEL, /* family, model, stepping */
    LEAF_1_C,
    LEAF_1_D,
    LEAF_7_B,
    LEAF_7_C,
    LEAF_7_D,
    LEAF_7_1_A,
    LEAF_7_1_B,
    LEAF_7_1_C,
    LEAF_7_1_D,
    LEAF_D_1_A,  /* xsave */
    LEAF_14_B,   /* ptwrite */
    LEAF_19_B,   /* key locker */
    LEAF_1E_1_A, /* AMX */
    LEAF_24_B,   /* AVX10 */
    LEAF_80000001_C,
    LEAF_80000001_D,
    LEAF_80000008_B,
    XCR0,
    N_WORDS
};

static uint32_t words[N_WORDS];

enum { YMM = 1 << 1 | 1 << 2, ZMM = YMM | 1 << 5 | 1 << 6 | 1 << 7, TILES = 1 << 17 | 1 << 18 };
enum { OSXSAVE = 27, AVX = 28 }; /* of LEAF_1_C */

static const struct {
    const char *name;
    int word, bit;
    uint32_t saved; /* bits of XCR0 */
} features[] = {
    { "avx2", LEAF_7_B, 5, YMM },
    { "fma", LEAF_1_C, 12, YMM },
    { "f16c", LEAF_1_C, 29, YMM },
    { "avxvnni", LEAF_7_1_A, 4, YMM },
    { "avx512f", LEAF_7_B, 16, ZMM },
    { "avx512bw", LEAF_7_B, 30, ZMM },
    { "avx512vnni", LEAF_7_C, 11, ZMM },
    { "avx512bf16", LEAF_7_1_A, 5, ZMM },
    { "amx-bf16", LEAF_7_D, 22, TILES },
    { "amx-int8", LEAF_7_D, 25, TILES },
    { "avx512fp16", LEAF_7_D, 23, ZMM },
    { "avx512vbmi", LEAF_7_C, 1, ZMM },
    { "avx512vbmi2", LEAF_7_C, 6, ZMM },
    { "gfni", LEAF_7_C, 8, 0 },
    { "avx512bitalg", LEAF_7_C, 12, ZMM },
    { "avx512vpopcntdq", LEAF_7_C, 14, ZMM },
    { "bmi", LEAF_7_B, 3, 0 },
    { "bmi2", LEAF_7_B, 8, 0 },
    { "movbe", LEAF_1_C, 22, 0 },
    { "popcnt", LEAF_1_C, 23, 0 },
    { "lzcnt", LEAF_80000001_C, 5, 0 },
};

/* The registers a, b, c, d of a leaf into words[to[…]]; to -1: not kept. Zeros where there is no such leaf. */
static void ask_leaf(uint32_t leaf, uint32_t part, const int to[4])
{
    uint32_t registers[4] = { 0 };
    if (!__get_cpuid_count(leaf, part, &registers[0], &registers[1], &registers[2], &registers[3]))
        return;
    for (int i = 0; i < 4; i++)
        if (to[i] >= 0)
            words[to[i]] = registers[i];
}

static void ask(void)
{
    ask_leaf(0, 0, (int[]){ -1, VENDOR_B, VENDOR_C, VENDOR_D });
    ask_leaf(1, 0, (int[]){ MODEL, -1, LEAF_1_C, LEAF_1_D });
    ask_leaf(7, 0, (int[]){ -1, LEAF_7_B, LEAF_7_C, LEAF_7_D });
    ask_leaf(7, 1, (int[]){ LEAF_7_1_A, LEAF_7_1_B, LEAF_7_1_C, LEAF_7_1_D });
    ask_leaf(0xd, 1, (int[]){ LEAF_D_1_A, -1, -1, -1 });
    ask_leaf(0x14, 0, (int[]){ -1, LEAF_14_B, -1, -1 });
    ask_leaf(0x19, 0, (int[]){ -1, LEAF_19_B, -1, -1 });
    ask_leaf(0x1e, 1, (int[]){ LEAF_1E_1_A, -1, -1, -1 });
    ask_leaf(0x24, 0, (int[]){ -1, LEAF_24_B, -1, -1 });
    ask_leaf(0x80000001, 0, (int[]){ -1, -1, LEAF_80000001_C, LEAF_80000001_D });
    ask_leaf(0x80000008, 0, (int[]){ -1, LEAF_80000008_B, -1, -1 });
    if (words[LEAF_1_C] >> OSXSAVE & words[LEAF_1_C] >> AVX & 1) {
        uint32_t low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        words[XCR0] = low;
    }
    size_t at = 0;
    for (int i = 0; i < N_WORDS; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%x", i ? "," : "", words[i]);
}

bool qn_host_has(const char *feature)
{
    pthread_once(&asked, ask);
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (strcmp(features[i].name, feature) == 0)
            return words[features[i].word] >> features[i].bit & 1 &&
                   (words[XCR0] & features[i].saved) == features[i].saved;
    return false;
}

bool qn_host_is_zen5(void)
{
    pthread_once(&asked, ask);
    const uint32_t family = (words[MODEL] >> 8 & 0xf) + (words[MODEL] >> 20 & 0xff);
    return words[VENDOR_C] == signature_AMD_ecx && family == 0x1a;
}

#else

#include <sys/auxv.h>

/* What the kernel says that the CPU has, and which it is. */
static void ask(void)
{
    char midr[32] = "";
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1", "r");
    if (file && fscanf(file, "%31s", midr) != 1)
        midr[0] = 0;
    if (file)
        fclose(file);
    snprintf(text, sizeof text, "%s,%lx,%lx", midr, getauxval(AT_HWCAP), getauxval(AT_HWCAP2));
}

bool qn_host_has(const char *feature)
{
    const struct {
        const char *name;
        unsigned long word, bit; /* what AT_HWCAP or AT_HWCAP2 say, and where */
    } features[] = { { "dotprod", getauxval(AT_HWCAP), 20 },
                     { "i8mm", getauxval(AT_HWCAP2), 13 },
                     { "bf16", getauxval(AT_HWCAP2), 14 } };
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (strcmp(features[i].name, feature) == 0)
            return features[i].word >> features[i].bit & 1;
    return false;
}

bool qn_host_is_zen5(void)
{
    return false;
}

#endif

const char *qn_host_text(void)
{
    pthread_once(&asked, ask);
    return text;
}
