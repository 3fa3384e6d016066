/* What the files of the text parser share. */
#ifndef QN_FRONTEND_TEXT_PARSER_H
#define QN_FRONTEND_TEXT_PARSER_H

#include "frontend/text/lexer.h"
#include "ir/graph.h"

/* Bounds on what a text may ask for; generous, and small enough that no text exhausts the stack or the memory. */
enum {
    QN_TEXT_MAX_NESTING = 64, /* of regions */
    QN_TEXT_MAX_CALLS = 128   /* of functions waiting for a callee further down */
};
#define QN_TEXT_MAX_SPLAT_BYTES ((size_t)1 << 30) /* all splats of a text together */

/* Texts to pointers. */
typedef struct qn_map_entry {
    const char *key;
    void *value;
} qn_map_entry;
typedef struct qn_map {
    qn_map_entry *slots;
    size_t n, capacity;
} qn_map;
/* The value slot of a key, NULL inside if it is new. The key is kept, not copied. */
void **qn_map_at(qn_map *map, const char *key, qn_arena *arena);
void *qn_map_get(const qn_map *map, const char *key); /* NULL when absent */

/* A `data $label` or the first mention of one. */
typedef struct qn_text_data qn_text_data;

/* A function between its signature and its body. */
typedef enum { QN_BODY_WAITS, QN_BODY_RUNS, QN_BODY_DONE, QN_BODY_FAILED } qn_body_state;
typedef struct qn_text_function {
    qn_graph *graph;
    qn_token name;
    qn_lexer body; /* behind its '{' */
    qn_body_state state;
    int n_outputs;
    qn_type *output_types;
    const char **output_names; /* NULL each where there is none */
    int *output_aliases;
    qn_map scope; /* "%x" to qn_value */
} qn_text_function;

typedef struct qn_parser {
    qn_lexer lexer;
    qn_token token; /* the next one */
    const char *file;
    qn_module *module;
    qn_arena *arena; /* the module's */
    qn_diags *diags;
    qn_map functions; /* name to qn_text_function */
    qn_map data;      /* label to qn_text_data */
    bool data_complete;
    size_t splat_bytes;
    int nesting, calls;
} qn_parser;

/* ---- parser.c ---- */
void qn_parser_next(qn_parser *p);
/* Goes back to (or on at) a place. */
void qn_parser_seek(qn_parser *p, const qn_lexer *place);
/* The lexer as it was before the present token. */
qn_lexer qn_parser_place(const qn_parser *p);
qn_loc qn_parser_loc(const qn_parser *p, const qn_token *token);
/* Reports at `token`; for a bad token what is wrong with that one instead. */
qn_status qn_parser_error(qn_parser *p, const qn_token *token, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "expected WHAT, found '…'" at the present token. */
qn_status qn_parser_expected(qn_parser *p, const char *what);
/* Takes the present token if it is of that kind. */
bool qn_parser_accept(qn_parser *p, qn_token_kind kind);
qn_status qn_parser_expect(qn_parser *p, qn_token_kind kind, const char *what);
bool qn_parser_at_word(const qn_parser *p, const char *word);
bool qn_parser_accept_word(qn_parser *p, const char *word);
qn_input_role qn_parser_accept_role(qn_parser *p); /* "param", "state"; INPUT: neither stands there */
/* The word of `words` (n of them, NULL ones are skipped) nearest to the token, as ", did you mean 'x'?"; "" if none is near. */
const char *qn_parser_suggest(qn_parser *p, const qn_token *token, const char *const *words, int n);

/* `batch: 1..64`: a dimension that nothing mentioned yet, and its range. */
qn_status qn_parse_symbol(qn_parser *p, qn_dim *out_symbol);

/* ---- values.c: types, attributes, tensors ---- */
qn_status qn_parse_type(qn_parser *p, qn_type *out_type);
qn_status qn_parse_dtype(qn_parser *p, qn_dtype *out_dtype);
qn_status qn_parse_dim(qn_parser *p, qn_dim *out_dim);
/* The name of a dimension that nothing mentioned yet. */
qn_status qn_parse_new_symbol(qn_parser *p, qn_dim *out_symbol);
qn_status qn_parse_i64(qn_parser *p, const char *what, int64_t *out_value);
/* A tensor of the given type: `[1, 2]`, `splat 0`, `$label`, x"00ff", perhaps followed by its name. */
qn_status qn_parse_tensor(qn_parser *p, const qn_type *type, const qn_tensor **out_tensor);
/* Goes past a tensor without reading it. */
qn_status qn_parse_skip_tensor(qn_parser *p);
/* `{key = value, …}`; present token: '{'. Sorted by key. */
qn_status qn_parse_attrs(qn_parser *p, qn_op op, int *out_n, qn_attr **out_attrs);
/* `data $label : type = tensor`; present token: `data`. */
qn_status qn_parse_data(qn_parser *p);
/* After the last `data`: every label that was mentioned has contents, and from now on any that is. */
qn_status qn_parse_end_data(qn_parser *p);

/* ---- body.c ---- */
/* The nodes and the return of a function, up to and with its '}', unless that was done for a call. */
qn_status qn_parse_function_body(qn_parser *p, qn_text_function *function);
/* The key of a value token in a scope: numbered and named values don't meet. */
const char *qn_parse_value_key(qn_parser *p, const qn_token *token);

#endif
