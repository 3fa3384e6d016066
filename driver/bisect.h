/* Which run of a pass changes a result: what `quern opt --bisect` does. The reference interpreter runs a module after its
 * first n pass runs, and a binary search over n finds the run that makes the difference. */
#ifndef QN_DRIVER_BISECT_H
#define QN_DRIVER_BISECT_H

#include "backends/backend.h"

typedef struct qn_bisection {
    const qn_module *module; /* copies of it go through the passes */
    /* Runs the passes over one function, asking hooks->enabled before each. */
    qn_status (*run_passes)(void *user, qn_graph *function, const qn_pass_hooks *hooks, qn_diags *diags);
    /* Those that are not left out anyway; NULL: all. */
    bool (*enabled)(void *user, const qn_pass *pass, int occurrence);
    void *user;
    qn_array **inputs; /* per function; NULL: its results are not looked at */
    /* What a float may differ by, as part of the largest value of its output; below 0: by the least exact dtype of the
     * function. Other dtypes are compared to the bit. */
    double tolerance;
} qn_bisection;

typedef struct qn_culprit {
    const qn_pass *pass; /* NULL: results are the same after all of them */
    int occurrence;      /* as qn_pass_hooks.enabled counts, from 0 in each function */
    const char *function;
    int run, n_runs; /* the how manieth pass run of all functions, from 1, of how many */
    /* Why: the verifier, a pass or the interpreter complains of something, or NULL: the results differ. */
    const char *problem;
    /* The output that differs most, as part of its bound; NULL: none differs at all. */
    const char *output, *output_function;
    bool other_shape; /* its dtype or dims are others: no numbers, then */
    double largest, relative;
} qn_culprit;

/* Texts are in `arena`. An error when the module cannot be run as it is. */
QN_MUST_USE qn_status qn_bisect(const qn_bisection *bisection, qn_arena *arena, qn_culprit *out,
                                qn_diags *diags);

/* Inputs for qn_bisection: from the files ("NAME=FILE.npy", "FILE.npz" with the names of inputs or in_0, in_1, …) for the first
 * function; with none given random ones for all functions, with a small extent of its own for each symbol. States have their
 * initial contents where these are known. */
QN_MUST_USE qn_status qn_bisect_inputs(const qn_module *module, int n_files, const char *const *files,
                                       qn_arena *arena, qn_array ***out, qn_diags *diags);

#endif
