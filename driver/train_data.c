/* Samples for training: see train_data.h. */
#include "driver/train_data.h"

#include <inttypes.h>
#include <string.h>

#include "driver/shuffle.h"
#include "driver/tensors.h"
#include "runtime/model.h"

typedef struct source {
    const char *name; /* given with the file, or in the archive; "" */
    const quern_array *array;
} source;

typedef qn_vec(source) sources;

static int read_files(const qn_cli *cli, int n_files, const char *const *files, qn_arena *arena,
                      qn_diags *diags, sources *out)
{
    for (int i = 0; i < n_files; i++) {
        const char *name = NULL, *path = files[i];
        int n;
        qn_npy *arrays;
        if (!qn_cli_split(files[i], arena, &name, &path))
            path = files[i];
        if (qn_npy_read(path, arena, &n, &arrays, diags))
            return qn_cli_fail_diags(cli, diags);
        if (name && n != 1)
            return qn_cli_fail(cli, "%s has %d arrays; NAME=FILE takes a file of one", path, n);
        for (int k = 0; k < n; k++) {
            const source s = { name ? name : arrays[k].name, &arrays[k].array };
            qn_vec_push(arena, out, s);
        }
    }
    return QN_EXIT_OK;
}

/* The array called `name`, or like one of the other names (which may be NULL). */
static const quern_array *find_array(const sources *all, const char *name, const char *second,
                                     const char *third)
{
    const char *const names[] = { name, second, third };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; names[k] && i < all->n; i++)
            if (strcmp(all->items[i].name, names[k]) == 0)
                return all->items[i].array;
    return NULL;
}

/* The array in the dtype that the model takes: integers become floats, and widths change. NULL where floats would be cut off. */
static const quern_array *in_dtype(const quern_array *array, qn_dtype dtype, qn_arena *arena)
{
    const qn_dtype from = (qn_dtype)array->dtype;
    const bool to_float = qn_dtype_is_float(dtype), is_float = qn_dtype_is_float(from);
    if (from == dtype)
        return array;
    if ((is_float && !to_float) ||
        (qn_dtype_is_stored(dtype) && from != QUERN_U8)) /* bytes: .npy has no names */
        return NULL;
    int64_t n = 1;
    for (int axis = 0; axis < array->rank; axis++)
        n *= array->dims[axis];
    const size_t size = qn_dtype_bytes(dtype), from_size = qn_dtype_bytes(from);
    char *data = qn_arena_alloc(arena, (size_t)n * size + 1);
    for (int64_t i = 0; i < n; i++) {
        qn_scalar value = qn_scalar_load(from, (const char *)array->data + (size_t)i * from_size);
        if (to_float && !is_float)
            value.f = from == QUERN_U64 ? (double)(uint64_t)value.i : (double)value.i;
        qn_scalar_store(dtype, value, data + (size_t)i * size);
    }
    quern_array *converted = qn_arena_copy(arena, array, sizeof *array);
    converted->dtype = dtype;
    converted->data = data;
    return converted;
}

int qn_batch_axis_of(int n, const qn_batch_axis *axes, const char *name)
{
    int axis = 0;
    for (int i = 0; i < n; i++)
        if (!axes[i].name || strcmp(axes[i].name, name) == 0)
            axis = axes[i].axis;
    return axis;
}

/* Does the array hold samples of the buffer, along the axis? *out_whole: each a whole batch of it, along the first. */
static bool fits(const quern_array *array, const quern_buffer_info *info, int along, int64_t batch,
                 bool *out_whole)
{
    *out_whole = array->rank == info->rank + 1;
    if ((!*out_whole && (array->rank != info->rank || array->rank <= along)) || array->rank < 1)
        return false;
    for (int axis = 0; axis < info->rank; axis++) {
        const int64_t dim = info->dims[axis];
        if (!*out_whole && axis == along && (dim < 0 || dim == batch))
            continue;
        if (dim >= 0 && dim != array->dims[axis + *out_whole])
            return false;
    }
    return true;
}

static int add_array(const qn_cli *cli, const quern_entry_info *entry, int k, const quern_array *array,
                     int64_t batch, qn_arena *arena, qn_train_data *out)
{
    const quern_buffer_info *info = qn_buffer_at(entry, out->buffers[k]);
    bool whole;
    if (!array)
        return qn_cli_fail(cli, "the data has no '%s' (%s): expected arrays called %s", info->name,
                           info->text, qn_entry_names(entry, QUERN_INPUT, arena));
    const quern_array *converted = in_dtype(array, (qn_dtype)info->dtype, arena);
    int along = out->axes[k];
    if (!converted || !fits(array, info, along, batch, &whole) || (k > 0 && whole != out->whole))
        return qn_cli_fail(
            cli, "'%s' is %s in the data; the model takes %s in batches of %" PRId64 " along axis %d",
            info->name, qn_array_type(array, arena), info->text, batch, along);
    if (whole)
        out->axes[k] = along = 0;
    if (k > 0 && array->dims[along] != out->n_samples)
        return qn_cli_fail(cli, "'%s' has %" PRId64 " samples in the data, and what is before it %" PRId64,
                           info->name, array->dims[along], out->n_samples);
    out->whole = whole;
    out->n_samples = array->dims[along];
    out->arrays[k] = array = converted;
    const int rank = whole ? array->rank - 1 : array->rank;
    int64_t *dims = QN_NEW_ARRAY(arena, int64_t, rank);
    size_t bytes = quern_dtype_size(array->dtype);
    for (int axis = 0; axis < rank; axis++) {
        dims[axis] = array->dims[axis + whole];
        if (axis == along && !whole)
            dims[axis] = batch;
        bytes *= (size_t)dims[axis];
    }
    out->batch[k] = (quern_array){
        .dtype = array->dtype, .rank = rank, .dims = dims, .data = qn_arena_alloc(arena, bytes + 1)
    };
    return QN_EXIT_OK;
}

int qn_train_data_read(const qn_cli *cli, const quern_entry_info *entry, int n_files,
                       const char *const *files, bool has_target, int64_t batch, int n_axes,
                       const qn_batch_axis *axes, qn_arena *arena, qn_diags *diags, qn_train_data *out)
{
    sources all = { 0 };
    int status = read_files(cli, n_files, files, arena, diags, &all);
    const int n = qn_entry_count(entry, QUERN_INPUT);
    int *buffers = QN_NEW_ARRAY(arena, int, n);
    *out = (qn_train_data){ .n_buffers = n,
                            .buffers = buffers,
                            .arrays = QN_NEW_ARRAY(arena, const quern_array *, n),
                            .axes = QN_NEW_ARRAY(arena, int, n),
                            .batch = QN_NEW_ARRAY(arena, quern_array, n) };
    for (int k = 0; k < n && !status; k++) {
        const bool target = has_target && k == n - 1;
        buffers[k] = qn_entry_buffer(entry, QUERN_INPUT, k);
        const char *other = target ? "y" : n == 1 + has_target ? "x" : NULL;
        const char *name = qn_buffer_at(entry, buffers[k])->name;
        const quern_array *array =
            find_array(&all, name, qn_arena_printf(arena, target ? "target" : "in_%d", k), other);
        out->axes[k] = qn_batch_axis_of(n_axes, axes, name);
        status = add_array(cli, entry, k, array, batch, arena, out);
    }
    if (status)
        return status;
    if (qn_train_data_batches(out, batch, true) < 1)
        return qn_cli_fail(cli, "the data has no samples");
    out->order = QN_NEW_ARRAY(arena, int64_t, out->n_samples);
    for (int64_t i = 0; i < out->n_samples; i++)
        out->order[i] = i;
    return QN_EXIT_OK;
}

int64_t qn_train_data_batches(const qn_train_data *data, int64_t batch, bool partial)
{
    const int64_t rows = data->whole ? 1 : batch;
    return (data->n_samples + (partial ? rows - 1 : 0)) / rows;
}

void qn_train_data_shuffle(qn_train_data *data, uint64_t seed, int64_t epoch)
{
    qn_random_order(data->n_samples, data->order, seed, (uint64_t)epoch);
}

int64_t qn_train_data_take(qn_train_data *data, int64_t i, int64_t batch)
{
    const int64_t rows = data->whole ? 1 : batch, first = i * rows;
    const int64_t n = data->n_samples - first < rows ? data->n_samples - first : rows;
    for (int k = 0; k < data->n_buffers; k++) {
        qn_samples_take(data->arrays[k], data->axes[k], &data->order[first], n, data->batch[k].data);
        if (!data->whole)
            ((int64_t *)data->batch[k].dims)[data->axes[k]] = n;
    }
    return data->whole ? 1 : n;
}
