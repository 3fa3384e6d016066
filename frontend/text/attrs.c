/* Attributes without a module around them: what quern_op of the C API is given. */
#include <string.h>

#include "frontend/text/parser.h"
#include "frontend/text/text.h"

qn_status qn_text_parse_attrs(const char *text, const char *file, qn_op op, qn_module *module, int *out_n,
                              qn_attr **out_attrs, qn_diags *diags)
{
    qn_arena *arena = module->arena;
    const char *copy = qn_arena_printf(arena, "{%s}", text);
    qn_parser p = { .file = file, .module = module, .arena = arena, .diags = diags };
    /* The brace is ours: columns count from behind it. */
    p.lexer = (qn_lexer){
        .arena = arena, .cursor = copy, .end = copy + strlen(copy), .line_start = copy + 1, .line = 1
    };
    qn_parser_next(&p);
    QN_TRY(qn_parse_attrs(&p, op, out_n, out_attrs));
    if (p.token.kind != QN_TOKEN_END)
        return qn_parser_expected(&p, "the end of the attributes");
    return QUERN_OK;
}
