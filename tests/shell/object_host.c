/* Runs the first entry of a compiled model with nothing of Quern but its ABI: built for the machine that the model was
 * compiled for, with -DQUERY=NAME_query where the model is linked in.
 *
 *   object_host FOLDER [MODEL.so NAME_query]
 *
 * Symbols are 5, or as near to it as they may be. Inputs get numbers that are the same everywhere; they and the outputs are
 * written as FOLDER/in_NAME.npy and FOLDER/out_NAME.npy. The last line says what the model was compiled for. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quern_abi.h"

enum { MOST_BUFFERS = 64, MOST_SYMBOLS = 16, MOST_RANK = 16, SYMBOL = 5 };

static const struct {
    const char *numpy;
    size_t bytes;
} dtypes[] = { [QUERN_BOOL] = { "|b1", 1 }, [QUERN_I8] = { "|i1", 1 },  [QUERN_I16] = { "<i2", 2 },
               [QUERN_I32] = { "<i4", 4 },  [QUERN_I64] = { "<i8", 8 }, [QUERN_U8] = { "|u1", 1 },
               [QUERN_U16] = { "<u2", 2 },  [QUERN_U32] = { "<u4", 4 }, [QUERN_U64] = { "<u8", 8 },
               [QUERN_F16] = { "<f2", 2 },  [QUERN_F32] = { "<f4", 4 }, [QUERN_F64] = { "<f8", 8 } };

static void must(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "object_host: %s\n", what);
        exit(1);
    }
}

/* -1 … 1 for floats, 0 … 3 for integers. */
static void fill(int dtype, size_t n, void *data)
{
    unsigned state = 12345;
    memset(data, 0, n * dtypes[dtype].bytes);
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        const unsigned high = state >> 16;
        unsigned char *integer = (unsigned char *)data + i * dtypes[dtype].bytes;
        switch (dtype) {
        case QUERN_F32: ((float *)data)[i] = (float)high / 32768 - 1; break;
        case QUERN_F64: ((double *)data)[i] = (double)high / 32768 - 1; break;
        case QUERN_F16: ((uint16_t *)data)[i] = (uint16_t)((high & 0x83ff) | 0x3800); break; /* +-0.5 … 1 */
        case QUERN_BOOL: integer[0] = high & 1; break;
        default: integer[0] = high & 3; break; /* the lowest byte: machines are little-endian */
        }
    }
}

static size_t elements(int rank, const int64_t *dims)
{
    size_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= (size_t)dims[i];
    return n;
}

static void write_npy(const char *folder, const char *kind, const quern_buffer_info *b, const int64_t *dims,
                      const void *data)
{
    char path[512], header[512] = "";
    int n = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (",
                     dtypes[b->dtype].numpy);
    for (int i = 0; i < b->rank; i++)
        n += snprintf(header + n, sizeof header - (size_t)n, "%lld,", (long long)dims[i]);
    n += snprintf(header + n, sizeof header - (size_t)n, "), }");
    while ((n + 11) % 64 != 0)
        header[n++] = ' ';
    header[n++] = '\n';
    snprintf(path, sizeof path, "%s/%s_%s.npy", folder, kind, b->name);
    FILE *f = fopen(path, "wb");
    const unsigned char start[] = {
        0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)n, (unsigned char)(n >> 8)
    };
    must(f != NULL, path);
    fwrite(start, 1, sizeof start, f);
    fwrite(header, 1, (size_t)n, f);
    fwrite(data, dtypes[b->dtype].bytes, elements(b->rank, dims), f);
    must(fclose(f) == 0, path);
}

#ifdef QUERY
const quern_model_info *QUERY(uint32_t version);
#endif

static const quern_model_info *find_model(int argc, char **argv)
{
#ifdef QUERY
    (void)argc, (void)argv;
    return QUERY(QUERN_ABI_VERSION);
#else
    must(argc == 4, "FOLDER MODEL.so NAME_query");
    void *object = dlopen(argv[2], RTLD_NOW);
    must(object != NULL, dlerror());
    quern_query_fn query;
    *(void **)&query = dlsym(object, argv[3]);
    must(query != NULL, argv[3]);
    return query(QUERN_ABI_VERSION);
#endif
}

int main(int argc, char **argv)
{
    must(argc > 1, "FOLDER");
    const quern_model_info *model = find_model(argc, argv);
    must(model != NULL, "the model knows another version");
    const quern_entry_info *e = &model->entries[0];
    must(e->n_buffers <= MOST_BUFFERS && e->n_symbols <= MOST_SYMBOLS, "too many buffers or symbols");
    union {
        void *buffer;
        int64_t symbol;
    } io[MOST_BUFFERS + MOST_SYMBOLS];
    int64_t symbols[MOST_SYMBOLS], dims[MOST_RANK];
    for (int i = 0; i < e->n_symbols; i++)
        symbols[i] = SYMBOL < e->symbols[i].min ? e->symbols[i].min : SYMBOL;
    if (e->limits)
        e->limits(symbols);
    for (int i = 0; i < e->n_symbols; i++)
        io[e->n_buffers + i].symbol = symbols[i];
    for (int i = 0; i < e->n_buffers; i++) {
        const quern_buffer_info *b = &e->buffers[i];
        must(b->role != QUERN_STATE && dtypes[b->dtype].bytes > 0, "no states, and data types of NumPy only");
        e->shape(i, symbols, dims);
        const size_t n = elements(b->rank, dims);
        io[i].buffer = aligned_alloc(64, n * dtypes[b->dtype].bytes / 64 * 64 + 64);
        must(io[i].buffer != NULL, "out of memory");
        if (b->role == QUERN_INPUT) {
            fill(b->dtype, n, io[i].buffer);
            write_npy(argv[1], "in", b, dims, io[i].buffer);
        }
    }
    void *workspace = aligned_alloc(64, (size_t)e->workspace_bytes(symbols) + 64);
    const int status = e->run(io, workspace, NULL);
    if (status) {
        fprintf(stderr, "object_host: the entry gives status %d\n", status);
        if (model->lacks)
            fprintf(stderr, "%s: this machine has no %s\n", model->target, model->lacks);
        return 1;
    }
    for (int i = 0; i < e->n_symbols; i++) /* those that the run decides are known now */
        symbols[i] = io[e->n_buffers + i].symbol;
    for (int i = 0; i < e->n_buffers; i++) {
        e->shape(i, symbols, dims);
        if (e->buffers[i].role == QUERN_OUTPUT)
            write_npy(argv[1], "out", &e->buffers[i], dims, io[i].buffer);
    }
    printf("%s\n", model->target);
    return 0;
}
