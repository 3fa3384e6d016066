/* Samples for training: arrays from .npy and .npz files, cut into batches in a shuffled order. */
#ifndef QN_DRIVER_TRAIN_DATA_H
#define QN_DRIVER_TRAIN_DATA_H

#include "driver/cli.h"

typedef struct qn_train_data {
    int n_buffers;
    const int *buffers;         /* of the entry: its inputs, the target last where the loss has one */
    const quern_array **arrays; /* for each, all samples */
    quern_array *batch;         /* for each, a batch: memory of its own */
    int64_t n_samples;          /* along axis 0 */
    bool whole; /* a sample is a whole batch: arrays have one axis more than the entry's buffers */
    int64_t *order;
} qn_train_data;

/* From arguments "[NAME=]FILE". Arrays are found by the names of the entry's inputs; that of the only input may be called x, that
 * of the target y. An exit status. `batch`: rows of a batch. */
int qn_train_data_read(const qn_cli *cli, const quern_entry_info *entry, int n_files,
                       const char *const *files, bool has_target, int64_t batch, qn_arena *arena,
                       qn_diags *diags, qn_train_data *out);
int64_t qn_train_data_batches(const qn_train_data *data, int64_t batch, bool partial); /* in an epoch */
void qn_train_data_shuffle(qn_train_data *data, uint64_t seed,
                           int64_t epoch); /* the same for the same numbers */
/* Fills data->batch with batch number i of the order; rows of it. */
int64_t qn_train_data_take(qn_train_data *data, int64_t i, int64_t batch);

#endif
