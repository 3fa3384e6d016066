/* The relocations that LLVM writes for position-independent code of the small model, of x86-64 and AArch64. */
#include <string.h>

#include "backends/llvm/elf.h"

#ifndef R_X86_64_GOTPCRELX /* in the headers of newer C libraries */
#define R_X86_64_GOTPCRELX 41
#define R_X86_64_REX_GOTPCRELX 42
#endif

static bool fits(int64_t value, int bits)
{
    const int64_t limit = INT64_C(1) << (bits - 1);
    return value >= -limit && value < limit;
}

static void put_32(unsigned char *at, uint32_t value)
{
    memcpy(at, &value, 4);
}

static void put_64(unsigned char *at, uint64_t value)
{
    memcpy(at, &value, 8);
}

static uint64_t page(uint64_t address)
{
    return address & ~UINT64_C(0xfff);
}

/* Puts `value` where `mask` has ones, of which the lowest is bit `shift`. */
static void put_field(unsigned char *at, uint32_t mask, int shift, uint64_t value)
{
    uint32_t word;
    memcpy(&word, at, 4);
    put_32(at, (word & ~mask) | ((uint32_t)(value << shift) & mask));
}

static qn_elf_outcome put_branch(unsigned char *at, int64_t distance)
{
    if (!fits(distance, 28) || distance % 4)
        return QN_ELF_TOO_FAR;
    put_field(at, 0x03ffffff, 0, (uint64_t)distance >> 2);
    return QN_ELF_FINE;
}

static qn_elf_outcome put_page(unsigned char *at, uint64_t to, uint64_t from)
{
    const int64_t pages = (int64_t)(page(to) - page(from)) / 4096;
    if (!fits(pages, 21))
        return QN_ELF_TOO_FAR;
    put_field(at, UINT32_C(3) << 29, 29, (uint64_t)pages & 3);
    put_field(at, UINT32_C(0x7ffff) << 5, 5, (uint64_t)pages >> 2);
    return QN_ELF_FINE;
}

/* Bits 10 to 21: an offset in a page, in units of 1 << scale bytes. */
static qn_elf_outcome put_offset(unsigned char *at, uint64_t to, int scale)
{
    put_field(at, UINT32_C(0xfff) << 10, 10, (to & 0xfff) >> scale);
    return QN_ELF_FINE;
}

static qn_elf_outcome put_distance(unsigned char *at, int64_t distance)
{
    if (!fits(distance, 32))
        return QN_ELF_TOO_FAR;
    put_32(at, (uint32_t)distance);
    return QN_ELF_FINE;
}

static qn_elf_outcome relocate_x86(const qn_elf_fixup *f, uint64_t to, unsigned char *at)
{
    switch (f->type) {
    case R_X86_64_NONE: return QN_ELF_FINE;
    case R_X86_64_64: put_64(at, to); return QN_ELF_FINE;
    case R_X86_64_PC64: put_64(at, to - f->place); return QN_ELF_FINE;
    case R_X86_64_PC32:
    case R_X86_64_PLT32: return put_distance(at, (int64_t)(to - f->place));
    case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX:
    case R_X86_64_REX_GOTPCRELX: return put_distance(at, (int64_t)(f->slot + (uint64_t)f->addend - f->place));
    default: return QN_ELF_UNKNOWN;
    }
}

static qn_elf_outcome relocate_aarch64(const qn_elf_fixup *f, uint64_t to, unsigned char *at)
{
    switch (f->type) {
    case R_AARCH64_NONE: return QN_ELF_FINE;
    case R_AARCH64_ABS64: put_64(at, to); return QN_ELF_FINE;
    case R_AARCH64_PREL64: put_64(at, to - f->place); return QN_ELF_FINE;
    case R_AARCH64_PREL32: return put_distance(at, (int64_t)(to - f->place));
    case R_AARCH64_CALL26:
    case R_AARCH64_JUMP26: return put_branch(at, (int64_t)(to - f->place));
    case R_AARCH64_ADR_PREL_PG_HI21: return put_page(at, to, f->place);
    case R_AARCH64_ADR_GOT_PAGE: return put_page(at, f->slot, f->place);
    case R_AARCH64_ADD_ABS_LO12_NC:
    case R_AARCH64_LDST8_ABS_LO12_NC: return put_offset(at, to, 0);
    case R_AARCH64_LDST16_ABS_LO12_NC: return put_offset(at, to, 1);
    case R_AARCH64_LDST32_ABS_LO12_NC: return put_offset(at, to, 2);
    case R_AARCH64_LDST64_ABS_LO12_NC: return put_offset(at, to, 3);
    case R_AARCH64_LDST128_ABS_LO12_NC: return put_offset(at, to, 4);
    case R_AARCH64_LD64_GOT_LO12_NC: return put_offset(at, f->slot, 3);
    default: return QN_ELF_UNKNOWN;
    }
}

qn_elf_outcome qn_elf_relocate(const qn_elf_fixup *f, unsigned char *at)
{
    const uint64_t to = f->symbol + (uint64_t)f->addend;
    return f->machine == EM_X86_64    ? relocate_x86(f, to, at)
           : f->machine == EM_AARCH64 ? relocate_aarch64(f, to, at)
                                      : QN_ELF_UNKNOWN;
}

size_t qn_elf_relocated_bytes(uint16_t machine, uint32_t type)
{
    if (machine == EM_X86_64)
        return type == R_X86_64_NONE ? 0 : type == R_X86_64_64 || type == R_X86_64_PC64 ? 8 : 4;
    return type == R_AARCH64_NONE ? 0 : type == R_AARCH64_ABS64 || type == R_AARCH64_PREL64 ? 8 : 4;
}

bool qn_elf_needs_slot(uint16_t machine, uint32_t type)
{
    if (machine == EM_X86_64)
        return type == R_X86_64_GOTPCREL || type == R_X86_64_GOTPCRELX || type == R_X86_64_REX_GOTPCRELX;
    return type == R_AARCH64_ADR_GOT_PAGE || type == R_AARCH64_LD64_GOT_LO12_NC;
}
