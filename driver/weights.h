/* The constants of a set of programs and the initial contents of their states as one stretch of memory: each tensor
 * once, 64-byte aligned, in the order of first use. */
#ifndef QN_DRIVER_WEIGHTS_H
#define QN_DRIVER_WEIGHTS_H

#include <stdio.h>

#include "ir/program.h"

#define QN_WEIGHT_ALIGN 64

typedef struct qn_weight {
    const qn_tensor *tensor;
    int64_t offset;
} qn_weight;

typedef struct qn_weights {
    int n;
    qn_weight *items; /* by offset */
    int64_t bytes;    /* a multiple of QN_WEIGHT_ALIGN */
    char hash[33];    /* XXH3-128 of all bytes; "" until qn_weights_hash */
} qn_weights;

/* Finds equal contents, gives every tensor its place, and writes it into the programs: offsets of WEIGHTS buffers,
 * initial_offset of states, weights_bytes. */
void qn_weights_lay_out(int n_programs, qn_program *const *programs, qn_arena *arena, qn_weights *out);
void qn_weights_hash(qn_weights *weights);
/* `to`: zeroed. Contents that lie in `arena`, and pages of mapped files, are given back one by one: large weights are never
 * there twice. False: of some sampled tensors numbers were lost (qn_tensor_is_lost); then nothing was given back that is in no file. */
QN_MUST_USE bool qn_weights_move(const qn_weights *weights, void *to, qn_arena *arena);
/* Errors show in ferror(file). */
void qn_weights_write(const qn_weights *weights, FILE *file);
/* As a safetensors file whose data begins at a multiple of 64 and is laid out as the weights are; gaps are tensors of
 * bytes called "gap.N". The hash stands in its metadata as "quern_weights". */
void qn_weights_write_safetensors(const qn_weights *weights, FILE *file, qn_arena *arena);
const char *qn_safetensors_dtype(qn_dtype dtype); /* "F32" */
/* As a relocatable ELF object that defines the hidden symbol. False for a triple whose machine it does not know. */
bool qn_weights_write_object(const qn_weights *weights, const char *triple, const char *symbol, FILE *file);

#endif
