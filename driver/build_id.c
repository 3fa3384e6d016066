#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "driver/build_id.h"
#include "ir/strbuf.h"

typedef struct build_id {
    const unsigned char *bytes; /* NULL: none was found */
    size_t n;
} build_id;

/* In a segment of notes. */
static build_id find_id(const unsigned char *at, const unsigned char *end)
{
    ElfW(Nhdr) note;
    while ((size_t)(end - at) >= sizeof note) {
        memcpy(&note, at, sizeof note);
        const size_t name = sizeof note, id = name + (note.n_namesz + (size_t)3) / 4 * 4,
                     next = id + (note.n_descsz + (size_t)3) / 4 * 4;
        if (next > (size_t)(end - at))
            break;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(at + name, "GNU", 4) == 0)
            return (build_id){ at + id, note.n_descsz };
        at += next;
    }
    return (build_id){ 0 };
}

static bool is_in(const struct dl_phdr_info *object, uintptr_t address)
{
    bool is = false;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &object->dlpi_phdr[i];
        const uintptr_t from = (uintptr_t)object->dlpi_addr + p->p_vaddr;
        is |= p->p_type == PT_LOAD && address >= from && address - from < p->p_memsz;
    }
    return is;
}

/* That of the object which this code is in. */
static int visit_object(struct dl_phdr_info *object, size_t size, void *user)
{
    build_id *out = user;
    (void)size;
    if (!is_in(object, (uintptr_t)&qn_this_build))
        return 0;
    for (int i = 0; i < object->dlpi_phnum && !out->bytes; i++) {
        const ElfW(Phdr) *p = &object->dlpi_phdr[i];
        const unsigned char *from = (const unsigned char *)((uintptr_t)object->dlpi_addr + p->p_vaddr);
        if (p->p_type == PT_NOTE)
            *out = find_id(from, from + p->p_memsz);
    }
    return 1;
}

const char *qn_this_build(qn_arena *arena)
{
    build_id id = { 0 };
    dl_iterate_phdr(visit_object, &id);
    if (id.bytes) {
        qn_strbuf text = { .arena = arena };
        for (size_t i = 0; i < id.n; i++)
            qn_strbuf_printf(&text, "%02x", id.bytes[i]);
        return qn_strbuf_text(&text);
    }
    Dl_info info;
    struct stat st;
    if (!dladdr((void *)(uintptr_t)&qn_this_build, &info) || !info.dli_fname ||
        (stat(info.dli_fname, &st) && stat("/proc/self/exe", &st)))
        return "";
    return qn_arena_printf(arena, "%lld.%lld.%ld", (long long)st.st_size, (long long)st.st_mtim.tv_sec,
                           (long)st.st_mtim.tv_nsec);
}
