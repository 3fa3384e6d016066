/* The text form of modules and graphs beyond what graph.h declares: options, and the parts that other printers share.
 * The grammar is in docs/text-form.md; frontend/text reads it. */
#ifndef QN_IR_PRINT_H
#define QN_IR_PRINT_H

#include "ir/program.h"
#include "ir/strbuf.h"

typedef struct qn_print_options {
    /* Constants of more elements are printed as $hash, unless all their elements are the same; -1: none are. */
    int64_t inline_elements;
    bool
        data; /* end with the contents of what was printed as $hash; without it such a text doesn't parse back */
    bool no_contents; /* constants are only said to be there: nothing of them is read */
} qn_print_options;

#define QN_PRINT_INLINE_ELEMENTS 16
/* Larger tensors of one value are printed as $hash like any other, since a splat costs its reader their full size. */
#define QN_PRINT_MAX_SPLAT_BYTES ((size_t)1 << 28)

/* qn_module_print is this with { QN_PRINT_INLINE_ELEMENTS, true }. */
const char *qn_module_print_as(const qn_module *module, const qn_print_options *options, qn_arena *arena);

/* The dims of the module with their ranges, and one graph. */
const char *qn_graph_print_as(const qn_graph *graph, const qn_print_options *options, qn_arena *arena);

/* qn_program_print is this with { QN_PRINT_INLINE_ELEMENTS, true } and the kernels; without them it doesn't parse back. */
const char *qn_program_print_as(const qn_program *program, const qn_print_options *options, bool kernels,
                                qn_arena *arena);

/* Text being printed: tensors in it may be mentioned by hash, their contents come at its end. */
typedef struct qn_printer {
    qn_strbuf out;
    const qn_print_options *options;
    qn_vec(const qn_tensor *) data; /* printed as $hash, each content once */
} qn_printer;
/* `[1, 2]`, `splat 0`, `$hash`, and its name; not its type. */
void qn_print_tensor(qn_printer *printer, const qn_tensor *tensor);
/* An empty line and the `data` lines of what was printed as $hash, where there are any and the options want them. */
void qn_print_data(qn_printer *printer);
/* `batch: 1..64, n: 0..`: the symbols from number `from` to `to` - 1 with their ranges. */
void qn_print_symbols(qn_printer *printer, const qn_dims *dims, int from, int to);

/* Can a name follow % or @ as it is? Others are quoted: %"onnx::MatMul_7". Digits alone are never a name. */
bool qn_name_is_plain(const char *name);
/* The word in front of region i of an op: "then", "else", "condition", "body". */
const char *qn_region_name(qn_op op, int i);

/* What the values of one graph (not of its regions) are called in text: "%x", "%0", "%\"onnx::Add_3\"". Names that occur
 * twice get a number behind, so each text is another. Values are looked up by address: the graph stays untouched. */
typedef struct qn_names qn_names;
qn_names *qn_names_new(const qn_graph *graph, qn_arena *arena);
const char *qn_names_get(const qn_names *names,
                         const qn_value *value); /* "%?" for a value of another graph */

#endif
