/* The System V form of ar:  "!<arch>\n"  "/" index of symbols  "//" long names  members, each at an even offset. */
#include "backends/llvm/archive.h"

#include <string.h>

#include "backends/llvm/elf.h"

enum { HEADER = 60, MAGIC = 8 };

static uint64_t even(uint64_t n)
{
    return n + n % 2;
}

static void put_header(FILE *file, const char *name, uint64_t size)
{
    fprintf(file, "%-16s%-12d%-6d%-6d%-8o%-10llu`\n", name, 0, 0, 0, 0100644, (unsigned long long)size);
}

static void put_big_endian(FILE *file, uint64_t value)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        putc((int)(value >> shift & 0xff), file);
}

static void put_padding(FILE *file, uint64_t size)
{
    if (size % 2)
        putc('\n', file);
}

typedef struct symbol {
    const char *name;
    int member;
} symbol;

typedef qn_vec(symbol) symbols;

static symbols collect(int n, const qn_archive_member *members, qn_arena *arena)
{
    symbols all = { 0 };
    for (int i = 0; i < n; i++) {
        qn_elf_symbol *of_member;
        int n_symbols = qn_elf_symbols(&members[i].code, arena, &of_member);
        for (int s = 0; s < n_symbols; s++)
            if (of_member[s].defined && of_member[s].global) {
                symbol item = { of_member[s].name, i };
                qn_vec_push(arena, &all, item);
            }
    }
    return all;
}

qn_status qn_archive_write(FILE *file, int n, const qn_archive_member *members, qn_arena *arena,
                           qn_diags *diags)
{
    symbols index = collect(n, members, arena);
    uint64_t names_size = 0, index_size = 4 + 4 * (uint64_t)index.n;
    uint64_t *name_at = QN_NEW_ARRAY(arena, uint64_t, n), *member_at = QN_NEW_ARRAY(arena, uint64_t, n);
    for (int i = 0; i < n; i++) {
        name_at[i] = names_size;
        names_size += strlen(members[i].name) + 2; /* "name/\n" */
    }
    for (size_t i = 0; i < index.n; i++)
        index_size += strlen(index.items[i].name) + 1;
    uint64_t at = MAGIC + HEADER + even(index_size) + HEADER + even(names_size);
    for (int i = 0; i < n; i++) {
        member_at[i] = at;
        at += HEADER + even(members[i].code.size);
    }
    if (n > 0 && member_at[n - 1] > UINT32_MAX)
        return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "a static library cannot index members beyond 4 GB: keep the weights in a side file");

    fputs("!<arch>\n", file);
    put_header(file, "/", index_size);
    put_big_endian(file, index.n);
    for (size_t i = 0; i < index.n; i++)
        put_big_endian(file, member_at[index.items[i].member]);
    for (size_t i = 0; i < index.n; i++)
        fwrite(index.items[i].name, 1, strlen(index.items[i].name) + 1, file);
    put_padding(file, index_size);
    put_header(file, "//", names_size);
    for (int i = 0; i < n; i++)
        fprintf(file, "%s/\n", members[i].name);
    put_padding(file, names_size);
    for (int i = 0; i < n; i++) {
        char name[17];
        snprintf(name, sizeof name, "/%llu", (unsigned long long)name_at[i]);
        put_header(file, name, members[i].code.size);
        fwrite(members[i].code.data, 1, members[i].code.size, file);
        put_padding(file, members[i].code.size);
    }
    return QUERN_OK;
}
