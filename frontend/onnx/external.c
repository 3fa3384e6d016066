/* External data: tensors in files beside the model. A path must lead to a regular file inside the model's folder, also
 * when every symbolic link is followed; offset and length must lie inside the file. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/onnx/import.h"
#include "frontend/onnx/map.h"

struct qn_onnx_external {
    const char *location;
    qn_onnx_mapping mapping;
    struct qn_onnx_external *next;
};

static void unmap(void *object)
{
    qn_onnx_mapping *mapping = object;
    if (mapping->size)
        munmap((void *)(uintptr_t)mapping->data, mapping->size);
}

qn_status qn_onnx_map(const char *path, qn_arena *arena, const qn_loc *loc, qn_diags *diags,
                      qn_onnx_mapping *out)
{
    /* not blocking: a named pipe must not hang the import */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;
    if (fd < 0 || fstat(fd, &status)) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return qn_error(diags, QUERN_ERROR_IO, loc, "cannot open %s: %s", path, strerror(error));
    }
    if (!S_ISREG(status.st_mode)) {
        close(fd);
        return qn_error(diags, QUERN_ERROR_IO, loc, "%s is not a regular file", path);
    }
    *out = (qn_onnx_mapping){ .size = (size_t)status.st_size, .data = (const uint8_t *)"" };
    if (out->size) {
        void *data = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            int error = errno;
            close(fd);
            return qn_error(diags, QUERN_ERROR_IO, loc, "cannot map %s: %s", path, strerror(error));
        }
        out->data = data;
        qn_arena_defer(arena, unmap, qn_arena_copy(arena, out, sizeof *out));
    }
    close(fd);
    return QUERN_OK;
}

/* The file's real path when it lies inside the folder, else NULL. */
static const char *resolve(qn_onnx_import *im, const char *location, const char **out_problem)
{
    *out_problem = "must be a path inside the model's folder";
    if (!*location || *location == '/' || strlen(location) >= PATH_MAX)
        return NULL;
    for (const char *part = location; part; part = strchr(part, '/')) {
        part += *part == '/';
        size_t length = strcspn(part, "/");
        if (length == 2 && !memcmp(part, "..", 2))
            return NULL;
    }
    char folder[PATH_MAX], file[PATH_MAX];
    if (!realpath(im->folder, folder) ||
        !realpath(qn_arena_printf(im->arena, "%s/%s", im->folder, location), file)) {
        *out_problem = strerror(errno);
        return NULL;
    }
    size_t length = strlen(folder);
    if (strcmp(folder, "/") && (strncmp(file, folder, length) || file[length] != '/'))
        return NULL;
    return qn_arena_strdup(im->arena, file);
}

static bool parse_size(const char *text, size_t *out)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    *out = (size_t)value;
    return *text >= '0' && *text <= '9' && !*end && !errno;
}

const uint8_t *qn_onnx_external_bytes(qn_onnx_import *im, const Onnx__Tensor *proto, const qn_loc *loc,
                                      size_t *out_size)
{
    const char *location = NULL, *problem;
    size_t offset = 0, length = 0;
    bool good = true, has_length = false;
    for (size_t i = 0; i < proto->n_external_data; i++) {
        const Onnx__Entry *entry = proto->external_data[i];
        if (!strcmp(entry->key, "location"))
            location = entry->value;
        else if (!strcmp(entry->key, "offset"))
            good &= parse_size(entry->value, &offset);
        else if (!strcmp(entry->key, "length"))
            has_length = true, good &= parse_size(entry->value, &length);
    }
    if (!good || !location) {
        qn_error(im->diags, QUERN_ERROR_MODEL, loc,
                 "external data of tensor %s lacks a location, or its offset or length is not a number",
                 proto->name);
        return NULL;
    }
    if (!im->folder) {
        qn_error(
            im->diags, QUERN_ERROR_UNSUPPORTED, loc,
            "tensor %s has external data, which a model given as bytes cannot have: load it from its file",
            proto->name);
        return NULL;
    }
    struct qn_onnx_external *external = im->externals;
    while (external && strcmp(external->location, location))
        external = external->next;
    if (!external) {
        const char *path = resolve(im, location, &problem);
        if (!path) {
            qn_error(im->diags, QUERN_ERROR_IO, loc, "external data of tensor %s at \"%s\": %s", proto->name,
                     location, problem);
            return NULL;
        }
        external = QN_NEW(im->arena, struct qn_onnx_external);
        external->location = location;
        if (qn_onnx_map(path, im->arena, loc, im->diags, &external->mapping))
            return NULL;
        external->next = im->externals;
        im->externals = external;
    }
    size_t size = external->mapping.size;
    if (!has_length && offset <= size)
        length = size - offset;
    if (offset > size || length > size - offset) {
        qn_error(
            im->diags, QUERN_ERROR_MODEL, loc,
            "external data of tensor %s (offset %zu, length %zu) lies outside of %s, which has %zu bytes",
            proto->name, offset, length, location, size);
        return NULL;
    }
    *out_size = length;
    return external->mapping.data + offset;
}
