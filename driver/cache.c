/* The disk cache: see cache.h. An entry is a file named by its key: a header with magic, key, length and hash of the
 * contents, then the contents. Written under another name and renamed, so a reader sees all of it or nothing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "driver/cache.h"

typedef struct entry_header {
    char magic[8];
    unsigned char key[16], hash[16]; /* hash: XXH3-128 of the contents, canonical */
    uint64_t length;
} entry_header;

#define DEFAULT_LIMIT ((int64_t)1 << 30)
enum {
    STALE =
        3600 /* seconds: what was used so long ago is marked as used again; unfinished files this old are left over */
};

static const char entry_magic[8] = { 'Q', 'N', 'C', 'A', 'C', 'H', 'E', '1' };

/* ---- the folder ---- */

/* Makes it and the folders above it. */
static int make_folders(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return -1;
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(copy, 0700) && errno != EEXIST) {
            free(copy);
            return -1;
        }
        *slash = '/';
    }
    int failed = mkdir(copy, 0700) && errno != EEXIST;
    free(copy);
    return failed ? -1 : 0;
}

static const char *default_folder(qn_arena *arena)
{
    const char *base = getenv("XDG_CACHE_HOME");
    if (base && base[0] == '/')
        return qn_arena_printf(arena, "%s/quern", base);
    const char *home = getenv("HOME");
    return home && home[0] == '/' ? qn_arena_printf(arena, "%s/.cache/quern", home) : NULL;
}

/* "1000000", "512M" */
bool qn_read_bytes(const char *text, int64_t *out)
{
    static const char units[] = "KMG";
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    if (end == text || errno || n < 0 || (*end && (!unit || end[1])))
        return false;
    return !__builtin_mul_overflow(n, unit ? (int64_t)1024 << (10 * (unit - units)) : 1, out);
}

const char *qn_cache_folder(const char *folder, qn_arena *arena)
{
    folder = folder ? folder : getenv("QUERN_CACHE");
    folder = folder ? folder : default_folder(arena);
    return folder ? folder : "";
}

qn_status qn_cache_open(qn_cache *cache, const char *folder, qn_diags *diags)
{
    *cache = (qn_cache){ .folder = -1, .limit = DEFAULT_LIMIT };
    const char *limit = getenv("QUERN_CACHE_LIMIT");
    if (limit && !qn_read_bytes(limit, &cache->limit))
        return qn_error(
            diags, QUERN_ERROR_ARGUMENT, NULL,
            "QUERN_CACHE_LIMIT cannot be '%s': a number of bytes, or one with K, M or G behind it", limit);
    const bool named = folder || getenv("QUERN_CACHE");
    folder = qn_cache_folder(folder, diags->arena);
    if (!folder[0])
        return QUERN_OK;
    int fd = make_folders(folder) ? -1 : open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        if (!named)
            return QUERN_OK;
        return qn_error(diags, QUERN_ERROR_IO, NULL, "%s: cannot be used as cache folder: %s", folder,
                        strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) || st.st_uid != geteuid() || (st.st_mode & 077) != 0) {
        close(fd);
        if (!named)
            return QUERN_OK;
        return qn_error(
            diags, QUERN_ERROR_IO, NULL,
            "%s: cannot be used as cache folder: what lies in it is executed, so it must be yours and "
            "nobody else's (mode 0700)",
            folder);
    }
    cache->folder = fd;
    return QUERN_OK;
}

/* Bytes of all entries: a number in a file, to which `bytes` are added, or which they are where the entries were just counted.
 * Looking through a folder of many takes longer than most compilations. INT64_MAX where nobody has counted; too many where entries
 * were replaced or found damaged, until the next count. */
static int64_t total(const qn_cache *cache, int64_t bytes, bool counted)
{
    int64_t sum = INT64_MAX;
    const int fd = openat(cache->folder, "total", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return sum;
    if (!flock(fd, LOCK_EX)) {
        const bool known = pread(fd, &sum, sizeof sum, 0) == (ssize_t)sizeof sum && sum >= 0;
        sum = counted ? bytes : !known || sum > INT64_MAX - bytes ? INT64_MAX : sum + bytes;
        if (pwrite(fd, &sum, sizeof sum, 0) != (ssize_t)sizeof sum)
            sum = INT64_MAX;
    }
    close(fd);
    return sum;
}

void qn_cache_close(qn_cache *cache)
{
    if (cache->folder >= 0) {
        if (cache->written > 0 && total(cache, cache->written, false) > cache->limit)
            qn_cache_trim(cache);
        close(cache->folder);
    }
    cache->folder = -1;
}

/* ---- keys ---- */

qn_cache_key qn_cache_key_of(int n, const char *const *texts)
{
    XXH3_state_t *state = XXH3_createState();
    QN_ASSERT(state, "out of memory");
    XXH3_128bits_reset(state);
    for (int i = 0; i < n; i++) {
        uint64_t length = strlen(texts[i]);
        XXH3_128bits_update(state, &length, sizeof length);
        XXH3_128bits_update(state, texts[i], length);
    }
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    qn_cache_key key;
    memcpy(key.bytes, canonical.digest, sizeof key.bytes);
    return key;
}

void qn_cache_key_text(const qn_cache_key *key, char out[33])
{
    for (int i = 0; i < 16; i++)
        sprintf(out + 2 * i, "%02x", key->bytes[i]);
}

/* ---- entries ---- */

static void hash_contents(const void *data, size_t size, unsigned char out[16])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, size));
    memcpy(out, canonical.digest, 16);
}

static bool read_all(int fd, void *to, size_t n)
{
    for (char *at = to; n;) {
        ssize_t got = read(fd, at, n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *from, size_t n)
{
    for (const char *at = from; n;) {
        ssize_t put = write(fd, at, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        at += put;
        n -= (size_t)put;
    }
    return true;
}

static bool read_entry(int fd, const qn_cache_key *key, qn_arena *arena, qn_code *out)
{
    struct stat st;
    entry_header header;
    unsigned char hash[16];
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022) != 0 ||
        !read_all(fd, &header, sizeof header))
        return false;
    if (memcmp(header.magic, entry_magic, sizeof entry_magic) != 0 ||
        memcmp(header.key, key->bytes, sizeof key->bytes) != 0 ||
        (uint64_t)st.st_size != sizeof header + header.length)
        return false;
    const qn_code found = { qn_arena_alloc(arena, header.length), header.length };
    if (!read_all(fd, found.data, found.size))
        return false;
    hash_contents(found.data, found.size, hash);
    if (memcmp(hash, header.hash, sizeof hash) != 0)
        return false;
    *out = found;
    return true;
}

/* An entry's time of change is when it was last used, to the hour. */
static void mark_used(int fd)
{
    struct stat st;
    if (fstat(fd, &st) == 0 && time(NULL) - st.st_mtime >= STALE && futimens(fd, NULL))
        return; /* it seems less used than it is */
}

bool qn_cache_get(const qn_cache *cache, const qn_cache_key *key, qn_arena *arena, qn_code *out)
{
    if (cache->folder < 0)
        return false;
    char name[33];
    qn_cache_key_text(key, name);
    int fd = openat(cache->folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool found = read_entry(fd, key, arena, out);
    if (found)
        mark_used(fd);
    close(fd);
    if (!found)
        unlinkat(cache->folder, name, 0);
    return found;
}

bool qn_cache_put(qn_cache *cache, const qn_cache_key *key, const qn_code *code)
{
    static _Atomic unsigned counter;
    if (cache->folder < 0)
        return false;
    char name[33], temporary[96];
    qn_cache_key_text(key, name);
    snprintf(temporary, sizeof temporary, "%s.%ld.%u", name, (long)getpid(), counter++);
    int fd = openat(cache->folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    entry_header header = { .length = code->size };
    memcpy(header.magic, entry_magic, sizeof entry_magic);
    memcpy(header.key, key->bytes, sizeof key->bytes);
    hash_contents(code->data, code->size, header.hash);
    bool written = write_all(fd, &header, sizeof header) && write_all(fd, code->data, code->size);
    written &= close(fd) == 0;
    if (!written || renameat(cache->folder, temporary, cache->folder, name)) {
        unlinkat(cache->folder, temporary, 0);
        return false;
    }
    cache->written += (long long)(sizeof header + code->size);
    return true;
}

/* ---- the limit ---- */

typedef struct file {
    char name[33];
    int64_t bytes;
    struct timespec used;
} file;

static int by_use(const void *x, const void *y)
{
    const file *a = x, *b = y;
    if (a->used.tv_sec != b->used.tv_sec)
        return a->used.tv_sec < b->used.tv_sec ? -1 : 1;
    if (a->used.tv_nsec != b->used.tv_nsec)
        return a->used.tv_nsec < b->used.tv_nsec ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Names of entries are 32 hexadecimal digits; of those that are being written, more behind them. Others are not ours. */
static bool is_ours(const char *name)
{
    return strspn(name, "0123456789abcdef") == 32 && (!name[32] || name[32] == '.');
}

/* The entries. Unfinished files of processes that are gone are removed on the way. */
static file *list_entries(const qn_cache *cache, DIR *folder, qn_arena *arena, size_t *out_n,
                          int64_t *out_bytes)
{
    qn_vec(file) files = { 0 };
    *out_bytes = 0;
    for (struct dirent *d; (d = readdir(folder));) {
        struct stat st;
        if (!is_ours(d->d_name) || fstatat(cache->folder, d->d_name, &st, AT_SYMLINK_NOFOLLOW) ||
            !S_ISREG(st.st_mode))
            continue;
        if (d->d_name[32]) {
            if (time(NULL) - st.st_mtime >= STALE)
                unlinkat(cache->folder, d->d_name, 0);
            continue;
        }
        file f = { .bytes = st.st_size, .used = st.st_mtim };
        memcpy(f.name, d->d_name, sizeof f.name);
        *out_bytes += f.bytes;
        qn_vec_push(arena, &files, f);
    }
    *out_n = files.n;
    return files.items;
}

int64_t qn_cache_keep(const qn_cache *cache, int64_t limit, int64_t most, int64_t *out_n)
{
    int fd = cache->folder < 0 ? -1 : openat(cache->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    *out_n = 0;
    if (!folder) {
        if (fd >= 0)
            close(fd);
        return 0;
    }
    qn_arena *arena = qn_arena_new();
    size_t n, first = 0;
    int64_t bytes;
    file *files = list_entries(cache, folder, arena, &n, &bytes);
    closedir(folder);
    if (bytes > limit) {
        qsort(files, n, sizeof *files, by_use);
        for (; first < n && bytes > most; first++) {
            unlinkat(cache->folder, files[first].name, 0);
            bytes -= files[first].bytes;
        }
    }
    total(cache, bytes, true);
    qn_arena_free(arena);
    *out_n = (int64_t)(n - first);
    return bytes;
}

void qn_cache_trim(const qn_cache *cache)
{
    int64_t n;
    /* A part more than there has to go, or each compilation from now on would look through the folder. */
    if (cache->limit > 0)
        qn_cache_keep(cache, cache->limit, cache->limit - cache->limit / 8, &n);
}
