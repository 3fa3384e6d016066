/* A generic caller of compiled models through their tables. */
#include "tests/support/abi_caller.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const size_t dtype_bytes[] = { 0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8 };

enum { MAX_RANK = 16 };

const quern_entry_info *abi_entry(const quern_model_info *model, const char *name)
{
    for (int32_t i = 0; i < model->n_entries; i++)
        if (strcmp(model->entries[i].name, name) == 0)
            return &model->entries[i];
    fail_msg("the model has no entry '%s'", name);
    return NULL;
}

static int64_t elements_of(const quern_entry_info *entry, int32_t buffer, const int64_t *symbols)
{
    int64_t dims[MAX_RANK], n = 1;
    entry->shape(buffer, symbols, dims);
    for (int32_t d = 0; d < entry->buffers[buffer].rank; d++)
        n *= dims[d];
    return n;
}

static void *allocate(size_t bytes)
{
    void *at;
    if (posix_memalign(&at, 64, bytes ? bytes : 1))
        fail_msg("out of memory");
    return memset(at, 0, bytes);
}

abi_call abi_call_new(const quern_model_info *model, const char *name, const int64_t *symbols)
{
    abi_call call = { .entry = abi_entry(model, name) };
    const quern_entry_info *entry = call.entry;
    size_t n = (size_t)entry->n_buffers + (size_t)entry->n_symbols;
    call.io = calloc(n ? n : 1, sizeof *call.io);
    assert_non_null(call.io);
    int64_t *values = abi_symbols(&call);
    for (int32_t i = 0; i < entry->n_symbols; i++)
        if (!entry->symbols[i].decided)
            values[i] = symbols[i];
    if (entry->limits)
        entry->limits(values);
    for (int32_t i = 0; i < entry->n_buffers; i++) {
        const quern_buffer_info *info = &entry->buffers[i];
        if (info->alias >= 0 && info->alias < i) {
            call.io[i] = call.io[info->alias];
            continue;
        }
        size_t bytes = (size_t)elements_of(entry, i, values) * dtype_bytes[info->dtype];
        call.io[i] = allocate(bytes);
        if (info->role == QUERN_STATE && info->initial >= 0)
            memcpy(call.io[i], (const char *)model->weights + info->initial, bytes);
    }
    call.workspace_bytes = entry->workspace_bytes(values);
    assert_true(call.workspace_bytes >= 0);
    call.workspace = allocate((size_t)call.workspace_bytes);
    return call;
}

void abi_call_free(abi_call *call)
{
    for (int32_t i = 0; i < call->entry->n_buffers; i++) {
        int32_t alias = call->entry->buffers[i].alias;
        if (alias < 0 || alias > i)
            free(call->io[i]);
    }
    free(call->workspace);
    free(call->io);
}

static int32_t index_of(const abi_call *call, const char *name)
{
    for (int32_t i = 0; i < call->entry->n_buffers; i++)
        if (strcmp(call->entry->buffers[i].name, name) == 0)
            return i;
    fail_msg("entry '%s' has no buffer '%s'", call->entry->name, name);
    return 0;
}

void *abi_buffer(const abi_call *call, const char *name)
{
    return call->io[index_of(call, name)];
}

int64_t *abi_symbols(const abi_call *call)
{
    return (int64_t *)(void *)(call->io + call->entry->n_buffers);
}

int64_t abi_elements(const abi_call *call, const char *name)
{
    return elements_of(call->entry, index_of(call, name), abi_symbols(call));
}

int abi_run(const abi_call *call, quern_ctx *ctx)
{
    return call->entry->run(call->io, call->workspace, ctx);
}

void abi_reverse_for(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n)
{
    if (pool)
        ++*(int *)pool;
    for (int64_t i = n; i-- > 0;)
        task(arg, i);
}

static void check_entry(const quern_entry_info *entry)
{
    assert_true(entry->size >= sizeof *entry);
    assert_non_null(entry->name);
    assert_non_null(entry->run);
    assert_non_null(entry->workspace_bytes);
    assert_non_null(entry->shape);
    int decided = 0;
    for (int32_t i = 0; i < entry->n_symbols; i++) {
        const quern_symbol_info *s = &entry->symbols[i];
        assert_true(s->size >= sizeof *s);
        assert_non_null(s->name);
        assert_true(s->min <= s->max);
        assert_true(s->decided >= decided); /* they come last */
        decided = s->decided;
    }
    assert_int_equal(entry->limits != NULL, decided);
    for (int32_t i = 0; i < entry->n_buffers; i++) {
        const quern_buffer_info *b = &entry->buffers[i];
        assert_true(b->size >= sizeof *b);
        assert_non_null(b->name);
        assert_non_null(b->text);
        assert_in_range(b->role, QUERN_INPUT, QUERN_STATE);
        assert_in_range(b->dtype, QUERN_BOOL, QUERN_F64);
        assert_in_range(b->rank, 0, MAX_RANK);
        assert_true(b->alias >= -1 && b->alias < entry->n_buffers && b->alias != i);
        for (int32_t d = 0; d < b->rank; d++) {
            assert_true(b->dims[d] >= -1);
            assert_true(b->symbols[d] >= -1 && b->symbols[d] < entry->n_symbols);
            assert_true(b->symbols[d] == -1 || b->dims[d] == -1);
        }
    }
    for (int32_t i = 0; i < entry->n_nodes; i++)
        assert_non_null(entry->node_names[i]);
}

void abi_check_tables(const quern_model_info *model)
{
    assert_non_null(model);
    assert_true(model->size >= offsetof(quern_model_info, strings));
    assert_int_equal(model->abi_version, QUERN_ABI_VERSION);
    assert_non_null(model->name);
    assert_non_null(model->target);
    assert_non_null(model->weights_hash);
    for (int32_t i = 0; i < model->n_entries; i++)
        check_entry(&model->entries[i]);
}
