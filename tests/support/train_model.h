/* Models that learn, and their sessions by names of entries and buffers. What fails fails the test. */
#ifndef QN_TESTS_TRAIN_MODEL_H
#define QN_TESTS_TRAIN_MODEL_H

#include "quern.h"

/* Mean squared error, SGD of a rate of 0.1 */
extern const quern_train_options sgd;

quern_module *load_module(const void *data, size_t size);
/* Takes the module. */
quern_model *train_model(quern_module *module, const quern_train_options *options, const char *target,
                         int threads);
/* The owner's states, if one is given. */
quern_session *session_of(quern_model *model, const char *entry, quern_session *owner);

/* -1 if there is none of this name. */
int buffer_of(quern_model *model, const char *entry, const char *name);
const float *floats_of(quern_session *session, quern_model *model, const char *entry, const char *name);
void bind_buffer(quern_session *session, quern_model *model, const char *entry, const char *name, int rank,
                 const int64_t *dims, void *data, int dtype);

#endif
