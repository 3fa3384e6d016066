/* Models: opening shared objects, looking things up in their tables, and the shared thread pools. */
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/error.h"
#include "runtime/model.h"
#include "runtime/pool.h"

const quern_entry_info *qn_entry_at(const quern_model_info *info, int i)
{
    return (const void *)((const char *)info->entries + (size_t)i * info->entries->size);
}

const quern_buffer_info *qn_buffer_at(const quern_entry_info *entry, int i)
{
    return (const void *)((const char *)entry->buffers + (size_t)i * entry->buffers->size);
}

const quern_symbol_info *qn_symbol_at(const quern_entry_info *entry, int i)
{
    return (const void *)((const char *)entry->symbols + (size_t)i * entry->symbols->size);
}

const quern_model_info *quern_model_describe(const quern_model *model)
{
    return model->info;
}

const quern_entry_info *quern_model_entry(const quern_model *model, const char *name)
{
    for (int i = 0; i < model->info->n_entries; i++) {
        const quern_entry_info *entry = qn_entry_at(model->info, i);
        if (!name || strcmp(entry->name, name) == 0)
            return entry;
    }
    return NULL;
}

void quern_model_free(quern_model *model)
{
    if (!model)
        return;
    if (model->around)
        model->around->release(model->around);
    model->release(model);
}

/* ---- thread pools that models share ---- */

static pthread_mutex_t pools_lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared_pool {
    quern_pool *pool;
    int threads, users;
} pools[QN_POOL_MAX_THREADS + 1]; /* by number of threads */

quern_pool *qn_pool_borrow(int threads)
{
    if (threads <= 0)
        threads = qn_usable_threads();
    if (threads > QN_POOL_MAX_THREADS)
        threads = QN_POOL_MAX_THREADS;
    if (threads == 1)
        return NULL;
    pthread_mutex_lock(&pools_lock);
    struct shared_pool *entry = &pools[threads];
    if (!entry->pool)
        entry->pool = quern_pool_new(threads);
    if (entry->pool)
        entry->users++;
    quern_pool *pool = entry->pool;
    pthread_mutex_unlock(&pools_lock);
    return pool;
}

void qn_pool_return(quern_pool *pool)
{
    if (!pool)
        return;
    quern_pool *unused = NULL;
    pthread_mutex_lock(&pools_lock);
    for (int i = 0; i <= QN_POOL_MAX_THREADS; i++)
        if (pools[i].pool == pool && --pools[i].users == 0) {
            unused = pool;
            pools[i].pool = NULL;
        }
    pthread_mutex_unlock(&pools_lock);
    quern_pool_free(unused);
}

/* ---- shared objects ---- */

void qn_prefix_from_path(const char *path, char *out, size_t size)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t length = strcspn(name, ".");
    size_t n = 0;
    if ((length == 0 || isdigit((unsigned char)name[0])) && n + 1 < size)
        out[n++] = 'm';
    for (size_t i = 0; i < length && n + 1 < size; i++)
        out[n++] = isalnum((unsigned char)name[i]) ? name[i] : '_';
    out[n] = '\0';
}

/* A file that is open, by the name that it was given and how that is spelled. The dynamic loader takes a library of a name that it
 * has already for the same one. So a file that was replaced while the old one is open is asked for with "./" more in its path. */
typedef struct named {
    struct named *next;
    dev_t device;
    ino_t file;
    int dots, users;
    char path[];
} named;

static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static named *names;

static bool is_spelled(const char *path, int dots)
{
    for (const named *n = names; n; n = n->next)
        if (n->dots == dots && strcmp(n->path, path) == 0)
            return true;
    return false;
}

/* NULL: no memory. */
static named *take_name(const char *path, const struct stat *st)
{
    pthread_mutex_lock(&names_lock);
    named *n = names;
    while (n && (n->device != st->st_dev || n->file != st->st_ino || strcmp(n->path, path) != 0))
        n = n->next;
    if (n) {
        n->users++;
    } else if ((n = malloc(sizeof *n + strlen(path) + 1))) {
        *n = (named){ .next = names, .device = st->st_dev, .file = st->st_ino, .users = 1 };
        strcpy(n->path, path);
        while (is_spelled(path, n->dots))
            n->dots++;
        names = n;
    }
    pthread_mutex_unlock(&names_lock);
    return n;
}

static void drop_name(named *name)
{
    pthread_mutex_lock(&names_lock);
    if (name && --name->users == 0) {
        named **at = &names;
        while (*at != name)
            at = &(*at)->next;
        *at = name->next;
        free(name);
    }
    pthread_mutex_unlock(&names_lock);
}

typedef struct opened {
    named *name;
    void *library;
    void *mapped; /* side file */
    size_t mapped_bytes;
} opened;

static void close_opened(opened *o)
{
    if (o && o->mapped)
        munmap(o->mapped, o->mapped_bytes);
    if (o && o->library)
        dlclose(o->library);
    if (o)
        drop_name(o->name);
    free(o);
}

static void release_opened(quern_model *model)
{
    close_opened(model->owner);
    free(model);
}

/* Maps the weights that lie beside the object, in <path>.safetensors: one stretch of data, in the layout of the object,
 * named by a hash in the file's metadata. */
static int map_side_file(quern_model *model, opened *o, const char *object_path)
{
    char *path = NULL;
    if (asprintf(&path, "%s.safetensors", object_path) < 0)
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    int status = QUERN_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        status = qn_fail(QUERN_ERROR_IO, "%s: the weights of %s cannot be read: %s", path, object_path,
                         strerror(errno));
    } else if (st.st_size < 8) {
        status = qn_fail(QUERN_ERROR_IO, "%s is too short to be a safetensors file", path);
    } else {
        o->mapped_bytes = (size_t)st.st_size;
        o->mapped = mmap(NULL, o->mapped_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (o->mapped == MAP_FAILED) {
            o->mapped = NULL;
            status = qn_fail(QUERN_ERROR_IO, "%s cannot be mapped: %s", path, strerror(errno));
        }
    }
    if (fd >= 0)
        close(fd);
    if (!status) {
        uint64_t header;
        memcpy(&header, o->mapped, sizeof header);
        const char *text = (const char *)o->mapped + 8;
        const char *hash = model->info->weights_hash;
        if (header > o->mapped_bytes - 8 || (header + 8) % 64 ||
            o->mapped_bytes - 8 - header != (uint64_t)model->info->weights_bytes || !hash ||
            !memmem(text, header, hash, strlen(hash)))
            status = qn_fail(
                QUERN_ERROR_IO,
                "%s does not belong to %s: compile the model again, or bring the file that was made with it",
                path, object_path);
        else
            model->weights = text + header;
    }
    free(path);
    return status;
}

#define QUERY "_query"

/* The name of the one function NAME_query that a library has; NULL where it has none or several. */
static const char *only_query(void *library)
{
    struct link_map *map;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL, *found = NULL;
    const uint32_t *hash =
        NULL; /* DT_GNU_HASH: buckets, symbols before the first that is hashed, words of the filter */
    if (dlinfo(library, RTLD_DI_LINKMAP, &map))
        return NULL;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        /* the loader has added the base, but for musl's */
        const void *at = (const void *)(d->d_un.d_ptr + (d->d_un.d_ptr < map->l_addr ? map->l_addr : 0));
        if (d->d_tag == DT_SYMTAB)
            symbols = at;
        else if (d->d_tag == DT_STRTAB)
            names = at;
        else if (d->d_tag == DT_GNU_HASH)
            hash = at;
    }
    if (!symbols || !names || !hash)
        return NULL;
    const uint32_t *buckets = hash + 4 + hash[2] * (sizeof(ElfW(Addr)) / sizeof *hash),
                   *chains = buckets + hash[0];
    for (uint32_t b = 0; b < hash[0]; b++) {
        bool more = buckets[b] >= hash[1];
        for (uint32_t i = buckets[b]; more; i++) {
            const char *name = names + symbols[i].st_name;
            const size_t length = strlen(name);
            if (length > strlen(QUERY) && strcmp(name + length - strlen(QUERY), QUERY) == 0) {
                if (found)
                    return NULL;
                found = name;
            }
            more = !(chains[i - hash[1]] & 1);
        }
    }
    return found;
}

/* What the dynamic loader doesn't say of an object for another architecture. */
static bool is_foreign(const char *path)
{
    ElfW(Ehdr) theirs = { 0 }, ours = { 0 };
    FILE *f = fopen(path, "rbe"), *self = fopen("/proc/self/exe", "rbe");
    const bool known = f && self && fread(&theirs, sizeof theirs, 1, f) == 1 &&
                       fread(&ours, sizeof ours, 1, self) == 1 &&
                       memcmp(theirs.e_ident, ELFMAG, SELFMAG) == 0;
    if (f)
        fclose(f);
    if (self)
        fclose(self);
    return known && theirs.e_machine != ours.e_machine;
}

/* An archive, or an object file that is not linked yet? */
static bool is_for_linker(const char *path)
{
    static const char archive[] = "!<arch>\n";
    ElfW(Ehdr) start = { 0 };
    FILE *f = fopen(path, "rbe");
    const bool known = f && fread(&start, sizeof start, 1, f) == 1;
    if (f)
        fclose(f);
    return known && (memcmp(&start, archive, sizeof archive - 1) == 0 ||
                     (memcmp(start.e_ident, ELFMAG, SELFMAG) == 0 && start.e_type == ET_REL));
}

/* How long the file of a shared object has to be for what is loaded of it; 0: that can't be said. The loader maps what the object
 * says, and a process that reads behind the end of a file is ended. */
static uint64_t loaded_bytes(const char *path)
{
    ElfW(Ehdr) header;
    ElfW(Phdr) segment;
    uint64_t most = 0, end;
    FILE *f = fopen(path, "rbe");
    bool read = f && fread(&header, sizeof header, 1, f) == 1 &&
                memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_phentsize == sizeof segment &&
                header.e_phoff <= INT64_MAX && !fseeko(f, (off_t)header.e_phoff, SEEK_SET);
    for (int i = 0; read && i < header.e_phnum; i++) {
        read = fread(&segment, sizeof segment, 1, f) == 1;
        if (read && segment.p_type == PT_LOAD) {
            if (__builtin_add_overflow((uint64_t)segment.p_offset, (uint64_t)segment.p_filesz, &end))
                end = UINT64_MAX;
            most = end > most ? end : most;
        }
    }
    if (f)
        fclose(f);
    return most;
}

static int find_info(const char *path, const char *prefix, opened *o, const quern_model_info **out)
{
    struct stat st;
    char *spelled = NULL;
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    const bool there = !stat(path, &st);
    if (there && !(o->name = take_name(path, &st)))
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    if (there && S_ISREG(st.st_mode) && is_for_linker(path))
        return qn_fail(
            QUERN_ERROR_MODEL,
            "%s is for a linker: link it into a program, or compile the model to a shared object (.so)",
            path);
    if (there && S_ISREG(st.st_mode) && loaded_bytes(path) > (uint64_t)st.st_size)
        return qn_fail(QUERN_ERROR_IO, "%s is cut short: it has %lld bytes", path, (long long)st.st_size);
    /* A name without a slash would be looked for in the system's folders. */
    const int dots = o->name ? o->name->dots : 0;
    if (asprintf(&spelled, "%.*s%*s%s", (int)(file - path), path, 2 * (dots + !slash), "", file) < 0)
        return qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    for (int i = 0; i < dots + !slash; i++)
        memcpy(spelled + (file - path) + 2 * i, "./", 2);
    o->library = dlopen(spelled, RTLD_NOW | RTLD_LOCAL);
    free(spelled);
    if (!o->library && is_foreign(path))
        return qn_fail(QUERN_ERROR_DEVICE, "%s cannot run here: it was compiled for another architecture",
                       path);
    if (!o->library)
        return qn_fail(QUERN_ERROR_IO, "%s", dlerror());
    char symbol[512];
    if (prefix)
        snprintf(symbol, sizeof symbol - strlen(QUERY), "%s", prefix);
    else
        qn_prefix_from_path(path, symbol, sizeof symbol - strlen(QUERY));
    strcat(symbol, QUERY);
    quern_query_fn query = NULL;
    *(void **)&query = dlsym(o->library, symbol);
    const char *only = query || prefix ? NULL : only_query(o->library);
    if (only)
        *(void **)&query = dlsym(o->library, only);
    if (!query)
        return qn_fail(QUERN_ERROR_MODEL,
                       "%s has no symbol %s: give the prefix it was compiled with, if it is a model of Quern",
                       path, symbol);
    const quern_model_info *info = query(QUERN_ABI_VERSION);
    if (!info || info->abi_version != QUERN_ABI_VERSION || info->n_entries < 1)
        return qn_fail(QUERN_ERROR_UNSUPPORTED, "%s was made for another version of Quern's ABI than %u",
                       path, QUERN_ABI_VERSION);
    if (info->size >= offsetof(quern_model_info, lacks) + sizeof info->lacks && info->lacks)
        return qn_fail(QUERN_ERROR_DEVICE,
                       "%s cannot run here: it was compiled for %s, and this machine has no %s", path,
                       info->target, info->lacks);
    *out = info;
    return QUERN_OK;
}

int quern_model_open(const char *path, const char *prefix, quern_model **out)
{
    *out = NULL;
    if (!path)
        return qn_fail(QUERN_ERROR_ARGUMENT, "quern_model_open: path is NULL");
    quern_model *model = calloc(1, sizeof *model);
    opened *o = calloc(1, sizeof *o);
    int status = model && o ? QUERN_OK : qn_fail(QUERN_ERROR_MEMORY, "out of memory");
    if (!status)
        status = find_info(path, prefix, o, &model->info);
    if (!status && !model->info->weights && model->info->weights_bytes > 0)
        status = map_side_file(model, o, path);
    if (status) {
        close_opened(o);
        free(model);
        return status;
    }
    model->owner = o;
    model->release = release_opened;
    *out = model;
    return QUERN_OK;
}
