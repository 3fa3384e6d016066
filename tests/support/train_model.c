/* See train_model.h. */
#include "tests/support/train_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/ok.h"

quern_module *load_module(const void *data, size_t size)
{
    quern_module *module;
    ok(quern_load_bytes(data, size, NULL, &module));
    return module;
}

quern_model *train_model(quern_module *module, const quern_train_options *options, const char *target,
                         int threads)
{
    quern_model *model = NULL;
    const quern_compile_options compile = {
        .size = sizeof compile, .target = target, .threads = threads, .cache = ""
    };
    if (quern_make_training(module, options) || quern_compile(module, &compile, &model))
        fail_msg("%s", quern_last_error());
    quern_module_free(module);
    return model;
}

quern_session *session_of(quern_model *model, const char *entry, quern_session *owner)
{
    quern_session *session;
    if (quern_session_new(model, entry, &session) || (owner && quern_session_share_states(session, owner)))
        fail_msg("%s", quern_last_error());
    return session;
}

int buffer_of(quern_model *model, const char *entry, const char *name)
{
    const quern_entry_info *info = quern_model_entry(model, entry);
    for (int i = 0; i < info->n_buffers; i++)
        if (strcmp(info->buffers[i].name, name) == 0)
            return i;
    return -1;
}

const float *floats_of(quern_session *session, quern_model *model, const char *entry, const char *name)
{
    quern_array array;
    const int buffer = buffer_of(model, entry, name);
    if (buffer < 0)
        fail_msg("%s has no %s", entry, name);
    assert_int_equal(quern_session_get(session, buffer, &array), QUERN_OK);
    return array.data;
}

void bind_buffer(quern_session *session, quern_model *model, const char *entry, const char *name, int rank,
                 const int64_t *dims, void *data, int dtype)
{
    const quern_array array = { .dtype = dtype, .rank = rank, .dims = dims, .data = data };
    ok(quern_session_bind(session, buffer_of(model, entry, name), &array));
}

const quern_train_options sgd = {
    .size = sizeof sgd, .loss = "mse", .optimizer = "sgd", .learning_rate = 0.1, .seed = 5
};
