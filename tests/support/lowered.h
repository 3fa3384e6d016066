/* Runs graphs the long way: passes, lowering, memory plan, and the program in the kernel interpreter. */
#ifndef QN_TESTS_LOWERED_H
#define QN_TESTS_LOWERED_H

#include "backends/backend.h"

/* Fields of machines to lower for, to which a test adds what it is about; an AArch64 multiplies by lanes. */
#define LOWERED_AVX512                                                                       \
    .vector_bytes = 64, .vector_registers = 32, .fma = true, .masked = true, .lookup = true, \
    .l1_bytes = 32768, .l2_bytes = 1 << 20
#define LOWERED_AVX2 \
    .vector_bytes = 32, .vector_registers = 16, .fma = true, .l1_bytes = 32768, .l2_bytes = 1 << 18
#define LOWERED_AARCH64                                                                          \
    .vector_bytes = 16, .vector_registers = 32, .fma = true, .by_lane = true, .l1_bytes = 32768, \
    .l2_bytes = 1 << 20
enum { LOWERED_MACHINES = 3 };
extern const qn_machine lowered_machines[LOWERED_MACHINES]; /* these, with the longest vectors first */
/* One with vectors, for tests of something else. */
extern const qn_machine lowered_machine;
/* Some that multiply bytes: by an instruction, by a matrix unit too, with AVX2 alone, and on AArch64 without, with sdot, with
 * usdot and with smmla. */
enum { LOWERED_BYTE_MACHINES = 7 };
/* Without instructions for bytes. */
extern const qn_machine lowered_aarch64;
extern const qn_machine lowered_byte_machines[LOWERED_BYTE_MACHINES];

/* Changes `graph` by the standard passes, or by none when `passes` is false. `symbols` are the values of the module's
 * symbols; states are copied, their new contents are the outputs that replace them. Fails the test when something is
 * written outside of the buffers. out_program may be NULL. */
qn_status lowered_run(qn_graph *graph, bool passes, const qn_pass_options *options, const qn_array *inputs,
                      const int64_t *symbols, qn_array *outputs, qn_program **out_program, qn_arena *arena,
                      qn_diags *diags);

/* The first function of a text, of static shapes, and float32 inputs for it of which no two are the same. Mistakes fail the test. */
qn_graph *lowered_parsed(const char *name, const char *text, qn_array *inputs, qn_arena *arena);

/* Only the last part: a program that was made from the graph. */
qn_status program_run(qn_program *program, const qn_graph *graph, const qn_array *inputs,
                      const int64_t *symbols, qn_array *outputs, qn_arena *arena, qn_diags *diags);

/* Nodes of that op, those in regions among them. */
int lowered_count(const qn_graph *graph, qn_op op);

/* How far outputs of floats may lie apart: by the narrowest float in the graph. */
double lowered_tolerance(const qn_graph *graph);

/* Interprets the graph, then runs it lowered, and fails the test unless all outputs agree; `what` names the case. */
void lowered_compare(const char *what, qn_graph *graph, const qn_pass_options *options,
                     const qn_array *inputs, const int64_t *symbols);

/* The same of such a text and such inputs as lowered_parsed has. */
void lowered_compare_text(const char *name, const char *text, const qn_pass_options *options);

#endif
