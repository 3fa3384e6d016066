/* quern.h: arrays from NumPy's files. */
#include <string.h>

#include "driver/api.h"
#include "driver/npy.h"

struct quern_arrays {
    qn_arena *arena;
    int n;
    qn_npy *items;
};

int quern_arrays_read(const char *path, quern_arrays **out)
{
    qn_call call;
    *out = NULL;
    qn_call_begin(&call);
    qn_arena *arena = qn_arena_new();
    int n = 0;
    qn_npy *items = NULL;
    qn_status status = qn_call_need(&call, path, "quern_arrays_read", "path");
    if (!status)
        status = qn_npy_read(path, arena, &n, &items, &call.diags);
    if (!status) {
        quern_arrays *arrays = qn_arena_alloc(arena, sizeof *arrays);
        *arrays = (quern_arrays){ .arena = arena, .n = n, .items = items };
        *out = arrays;
    } else {
        qn_arena_free(arena);
    }
    return qn_call_end(&call, status);
}

const quern_array *quern_arrays_find(const quern_arrays *arrays, const char *name)
{
    for (int i = 0; i < arrays->n; i++)
        if (strcmp(arrays->items[i].name, name) == 0)
            return &arrays->items[i].array;
    return NULL;
}

void quern_arrays_free(quern_arrays *arrays)
{
    if (arrays)
        qn_arena_free(arrays->arena);
}
