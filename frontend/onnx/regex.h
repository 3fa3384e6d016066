/* Regular expressions of RE2's syntax as tables that go from state to state by bytes of UTF-8. */
#ifndef QN_FRONTEND_ONNX_REGEX_H
#define QN_FRONTEND_ONNX_REGEX_H

#include <stdint.h>

#include "ir/arena.h"

typedef struct qn_regex_table {
    int64_t n_states; /* the first matches nothing, the second is where a string begins */
    const uint16_t
        *rows; /* of each state QN_TEXT_COLUMNS: the next one for each byte, then whether it matches */
} qn_regex_table;

/* NULL, or what is wrong with the pattern or is not supported. The table says whether the whole string matches. */
const char *qn_regex_compile(const char *pattern, qn_arena *arena, qn_regex_table *out);

#endif
