/* Samples for training: arrays from .npy and .npz files, cut into batches in a shuffled order. */
#ifndef QN_DRIVER_TRAIN_DATA_H
#define QN_DRIVER_TRAIN_DATA_H

#include "driver/cli.h"

/* Along which axis the samples of an array lie: of the input called `name`, or of all (NULL). */
typedef struct qn_batch_axis {
    const char *name;
    int axis;
} qn_batch_axis;

/* What the last of these says of an input: 0 where none does. */
int qn_batch_axis_of(int n, const qn_batch_axis *axes, const char *name);

typedef struct qn_train_data {
    int n_buffers;
    const int *buffers;         /* of the entry: its inputs, the target last where the loss has one */
    const quern_array **arrays; /* for each, all samples */
    quern_array *batch;         /* for each, a batch: memory of its own */
    int *axes;                  /* for each, along which samples lie */
    int64_t n_samples;
    bool whole; /* a sample is a whole batch: arrays have one axis more than the entry's buffers */
    int64_t *order;
} qn_train_data;

/* From arguments "[NAME=]FILE". Arrays are found by the names of the entry's inputs; that of the only input may be called x, that
 * of the target y. An exit status. `batch`: rows of a batch. */
int qn_train_data_read(const qn_cli *cli, const quern_entry_info *entry, int n_files,
                       const char *const *files, bool has_target, int64_t batch, int n_axes,
                       const qn_batch_axis *axes, qn_arena *arena, qn_diags *diags, qn_train_data *out);
int64_t qn_train_data_batches(const qn_train_data *data, int64_t batch, bool partial); /* in an epoch */
void qn_train_data_shuffle(qn_train_data *data, uint64_t seed,
                           int64_t epoch); /* the same for the same numbers */
/* Fills data->batch with batch number i of the order; rows of it. */
int64_t qn_train_data_take(qn_train_data *data, int64_t i, int64_t batch);

#endif
