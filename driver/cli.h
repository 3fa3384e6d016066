/* What the commands share: options, messages, loading, progress. */
#ifndef QN_DRIVER_CLI_H
#define QN_DRIVER_CLI_H

#include <stdbool.h>

#include "driver/api.h"
#include "driver/compile.h"
#include "driver/npy.h"
#include "quern.h"

enum { QN_EXIT_OK, QN_EXIT_FAILED, QN_EXIT_USAGE };

/* An option of a command: --name VALUE, --name=VALUE, and -x VALUE where it has a letter. */
typedef struct qn_cli_option {
    const char *name;
    char letter;       /* 0: none */
    const char *value; /* what the value is called; NULL: the option takes none */
    const char *help;
} qn_cli_option;

enum { QN_CLI_MAX_DIMS = 64, QN_CLI_MAX_NAME = 128, QN_CLI_MAX_CONSTANTS = 16, QN_CLI_MAX_ELEMENTS = 16 };

/* What an input of the model is known to hold. */
typedef struct qn_cli_constant {
    char name[QN_CLI_MAX_NAME];
    int64_t n;
    union {
        int64_t ints[QN_CLI_MAX_ELEMENTS];
        float floats[QN_CLI_MAX_ELEMENTS];
        bool truth;
    } data;
} qn_cli_constant;

/* The options that all commands on models take; each uses those that mean something to it. */
typedef struct qn_cli {
    const char *command;          /* "run" */
    const char *synopsis;         /* "MODEL [options]" */
    const qn_cli_option *options; /* of the command itself; the end has a NULL name */
    bool no_common;               /* takes none of the common ones */
    const char *model;
    int n_dims, n_shapes, n_constants;
    quern_dim_range dims[QN_CLI_MAX_DIMS];
    quern_shape shapes[QN_CLI_MAX_DIMS];
    char dim_names[QN_CLI_MAX_DIMS][QN_CLI_MAX_NAME], shape_names[QN_CLI_MAX_DIMS][QN_CLI_MAX_NAME];
    quern_known_input constants[QN_CLI_MAX_CONSTANTS];
    qn_cli_constant constant_values[QN_CLI_MAX_CONSTANTS];
    quern_compile_options compile;
    bool verbose;
    /* Called for the command's own options (index into `options`) and for arguments without a dash after the first
     * (index -1). Gives an exit status. */
    int (*accept)(void *user, int option, const char *value);
    void *user;
} qn_cli;

/* Reads the arguments. Not QN_EXIT_OK: exit with *out_exit. */
bool qn_cli_read(qn_cli *cli, int argc, char **argv, int *out_exit);
/* "quern run: …" on stderr, then the short usage. Gives QN_EXIT_USAGE. */
int qn_cli_usage(const qn_cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "quern run: …" on stderr: QN_EXIT_FAILED. `call` versions say quern_last_error, or the diagnostics. */
int qn_cli_fail(const qn_cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
int qn_cli_fail_api(const qn_cli *cli);
int qn_cli_fail_diags(const qn_cli *cli, const qn_diags *diags);
/* QN_EXIT_OK, or a failure where stdout could not be written. */
int qn_cli_finish(const qn_cli *cli);

/* Loads and compiles cli->model for this process; a shared object is opened. NULL and *out_exit on a failure. The module is kept
 * for the caller where it has strings, to be freed (else NULL); out_module may be NULL. */
quern_model *qn_cli_model(qn_cli *cli, quern_module **out_module, int *out_exit);
/* Is the file compiled code? That it is a shared object, quern_model_open sees to. */
bool qn_cli_is_object(const char *path);
/* Only loads, with the options that were given. */
quern_load_options qn_cli_load_options(const qn_cli *cli);
quern_module *qn_cli_module(qn_cli *cli, int *out_exit);

/* Compiles a module for this process, or writes it to files, and says how much workspace the entries need where that was
 * planned by --remat or --memory-limit, or with -v. */
int qn_cli_compile(qn_cli *cli, quern_module *module, quern_model **out);
int qn_cli_emit(qn_cli *cli, quern_module *module, const quern_emit_options *emit, const char *path,
                qn_compile_times *out_times); /* the module is changed */

/* "name=value" split at the first '='; false where there is none or the name is empty. In `arena`. */
bool qn_cli_split(const char *text, qn_arena *arena, const char **out_name, const char **out_value);
bool qn_cli_number(const char *text, long low, long high, long *out);
bool qn_cli_real(const char *text, double *out);

/* The progress line, on stderr where that is a terminal, of work that takes longer than a moment. */
void qn_cli_progress(void *cli, const char *what, int done, int total);
void qn_cli_progress_end(qn_cli *cli);

#endif
