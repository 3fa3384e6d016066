/* Atomic output files: see output.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "driver/output.h"

static qn_status io_error(qn_diags *diags, const char *path, const char *what)
{
    return qn_error(diags, QUERN_ERROR_IO, NULL, "%s: cannot be %s: %s", *path ? path : "''", what,
                    strerror(errno));
}

/* Bits that a new file gets: 0666 less the umask. Reading the umask means setting it, which other threads would see. */
static mode_t new_file_mode(void)
{
    mode_t mask = 022;
    FILE *f = fopen("/proc/self/status", "re");
    char line[128];
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "Umask:", 6) == 0)
            mask = (mode_t)strtoul(line + 6, NULL, 8);
    if (f)
        fclose(f);
    return 0666 & ~mask;
}

#define MARK ".quern-" /* between a file's name and what mkostemp makes of six X */
enum { MARKED = sizeof MARK - 1 + 6 };

/* Whoever writes a temporary file holds a lock on it, which goes with the process. One of ours that nobody holds is what was
 * left of a process that was killed; one that is new may not be locked yet. */
static bool is_left_over(int folder, const char *name, int *out_fd)
{
    enum { SECONDS = 10 };
    struct stat st;
    *out_fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    return *out_fd >= 0 && !fstat(*out_fd, &st) && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
           time(NULL) - st.st_mtim.tv_sec > SECONDS && !flock(*out_fd, LOCK_EX | LOCK_NB);
}

static void remove_left_overs(const char *path, qn_arena *arena)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const size_t length = strlen(name);
    DIR *folder = opendir(slash ? qn_arena_printf(arena, "%.*s", (int)(slash + 1 - path), path) : ".");
    for (struct dirent *d; folder && (d = readdir(folder));) {
        int fd;
        if (strlen(d->d_name) != length + MARKED || memcmp(d->d_name, name, length) != 0 ||
            memcmp(d->d_name + length, MARK, sizeof MARK - 1) != 0)
            continue;
        if (is_left_over(dirfd(folder), d->d_name, &fd))
            unlinkat(dirfd(folder), d->d_name, 0);
        if (fd >= 0)
            close(fd);
    }
    if (folder)
        closedir(folder);
}

qn_status qn_output_reserve(qn_output *output, const char *path, qn_diags *diags)
{
    struct stat st;
    *output = (qn_output){ .path = path, .temporary = path };
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        if (!S_ISDIR(st.st_mode))
            return QUERN_OK; /* a device or pipe is written in place */
        errno = EISDIR;
        return io_error(diags, path, "written");
    }
    remove_left_overs(path, diags->arena);
    char *temporary = qn_arena_printf(diags->arena, "%s" MARK "XXXXXX", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0) {
        output->temporary = NULL;
        return io_error(diags, path, "written");
    }
    fchmod(fd, new_file_mode());
    flock(fd, LOCK_EX | LOCK_NB);
    output->temporary = temporary;
    output->lock = fdopen(fd, "wb");
    if (!output->lock) {
        close(fd);
        qn_output_discard(output);
        return io_error(diags, path, "written");
    }
    return QUERN_OK;
}

qn_status qn_output_open(qn_output *output, const char *path, qn_diags *diags)
{
    QN_TRY(qn_output_reserve(output, path, diags));
    output->file = fopen(output->temporary, "wbe");
    if (output->file)
        return QUERN_OK;
    io_error(diags, path, "written");
    qn_output_discard(output);
    return QUERN_ERROR_IO;
}

static void unlock(qn_output *output)
{
    if (output->lock)
        fclose(output->lock);
    output->lock = NULL;
}

void qn_output_discard(qn_output *output)
{
    if (output->file)
        fclose(output->file);
    if (output->temporary && output->temporary != output->path)
        unlink(output->temporary);
    unlock(output);
    output->file = NULL;
    output->temporary = NULL;
}

static qn_status give_up(qn_output *output, int error, qn_diags *diags)
{
    qn_output_discard(output);
    errno = error;
    return io_error(diags, output->path, "written");
}

qn_status qn_output_close(qn_output *output, qn_diags *diags)
{
    int error = 0;
    if (!output->file)
        return QUERN_OK;
    if (fflush(output->file))
        error = errno;
    else if (ferror(output->file))
        error = EIO;
    if (fclose(output->file) && !error)
        error = errno;
    output->file = NULL;
    return error ? give_up(output, error, diags) : QUERN_OK;
}

qn_status qn_output_commit(qn_output *output, qn_diags *diags)
{
    QN_TRY(qn_output_close(output, diags));
    if (output->temporary != output->path && rename(output->temporary, output->path))
        return give_up(output, errno, diags);
    unlock(output);
    output->temporary = NULL;
    return QUERN_OK;
}

qn_status qn_read_file(const char *path, qn_arena *arena, char **out, size_t *out_size, qn_diags *diags)
{
    FILE *f = fopen(path, "rbe");
    struct stat st;
    if (!f)
        return io_error(diags, path, "read");
    if (fstat(fileno(f), &st) || S_ISDIR(st.st_mode)) {
        if (S_ISDIR(st.st_mode))
            errno = EISDIR;
        fclose(f);
        return io_error(diags, path, "read");
    }
    size_t capacity = st.st_size > 0 ? (size_t)st.st_size + 1 : 65536, n = 0;
    char *data = malloc(capacity);
    while (data) {
        n += fread(data + n, 1, capacity - n, f);
        if (n < capacity)
            break;
        char *larger = realloc(data, capacity *= 2);
        if (!larger)
            free(data);
        data = larger;
    }
    bool failed = data && ferror(f);
    int read_errno = errno;
    fclose(f);
    if (!data)
        return qn_error(diags, QUERN_ERROR_MEMORY, NULL, "%s: no memory to read it", path);
    errno = read_errno;
    if (failed) {
        free(data);
        return io_error(diags, path, "read");
    }
    data[n] = '\0';
    qn_arena_defer(arena, free, data);
    *out = data;
    *out_size = n;
    return QUERN_OK;
}

/* Bytes of the character that begins there; 0: that is no UTF-8. */
static int utf8_bytes(const unsigned char *at)
{
    const int n = *at < 0x80 ? 1 : *at >= 0xf0 ? 4 : *at >= 0xe0 ? 3 : 2;
    uint32_t code = n == 1 ? *at : *at & (0x7fu >> n);
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    if (n > 1 && (*at < 0xc2 || *at > 0xf4))
        return 0;
    for (int i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (at[i] & 0x3f);
    }
    return code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : n;
}

void qn_json_string(const char *text, FILE *to)
{
    putc('"', to);
    for (const unsigned char *at = (const unsigned char *)(text ? text : ""); *at;) {
        const int n = utf8_bytes(at);
        if (n == 0)
            fprintf(to, "\\udc%02x", *at);
        else if (*at < 0x20)
            fprintf(to, "\\u%04x", *at);
        else
            fprintf(to, "%s%.*s", *at == '"' || *at == '\\' ? "\\" : "", n, (const char *)at);
        at += n ? n : 1;
    }
    putc('"', to);
}

void qn_json_string_or_null(const char *text, FILE *to)
{
    if (text)
        qn_json_string(text, to);
    else
        fputs("null", to);
}
