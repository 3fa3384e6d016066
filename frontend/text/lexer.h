/* The tokens of the text form. A lexer is a plain value: a copy of it is a place to come back to. */
#ifndef QN_FRONTEND_TEXT_LEXER_H
#define QN_FRONTEND_TEXT_LEXER_H

#include "ir/arena.h"

typedef enum qn_token_kind {
    QN_TOKEN_END,
    QN_TOKEN_BAD,      /* text: what is wrong with it */
    QN_TOKEN_WORD,     /* graph, f32, loc */
    QN_TOKEN_NUMBER,   /* 12, -1.5e-3, -inf, 0x7fc00001 */
    QN_TOKEN_STRING,   /* "…"; text: what is between the quotes, escapes replaced */
    QN_TOKEN_BYTES,    /* x"00ff"; text: the digits, an even number of them */
    QN_TOKEN_VALUE,    /* %name, %"any name" */
    QN_TOKEN_NUMBERED, /* %12 */
    QN_TOKEN_FUNCTION, /* @name, @"any name" */
    QN_TOKEN_LABEL,    /* $0123456789abcdef */
    QN_TOKEN_ARROW,    /* -> */
    QN_TOKEN_RANGE,    /* .. */
    QN_TOKEN_LPAREN,
    QN_TOKEN_RPAREN,
    QN_TOKEN_LBRACKET,
    QN_TOKEN_RBRACKET,
    QN_TOKEN_LBRACE,
    QN_TOKEN_RBRACE,
    QN_TOKEN_COMMA,
    QN_TOKEN_COLON,
    QN_TOKEN_EQUALS,
    QN_TOKEN_SEMICOLON,
    QN_TOKEN_OPERATOR /* + - * of dimensions, which qn_dim_parse reads */
} qn_token_kind;

typedef struct qn_token {
    qn_token_kind kind;
    const char *text; /* of names and strings: in the arena, with a NUL; else in the input */
    size_t length;
    const char *start, *end; /* in the input */
    int line, column;        /* from 1; the column counts bytes */
} qn_token;

typedef struct qn_lexer {
    qn_arena *arena;
    const char *cursor, *end; /* *end is a NUL */
    const char *line_start;
    int line;
} qn_lexer;

/* The value of a hexadecimal digit plus 1; 0 for anything else. */
extern const signed char qn_hex_digits[256];
static inline int qn_hex_digit(char c)
{
    return qn_hex_digits[(unsigned char)c] - 1; /* -1: no digit */
}

/* At the beginning of a text, of which it makes a copy. */
qn_lexer qn_lexer_of(const char *text, size_t length, qn_arena *arena);
qn_token qn_lexer_next(qn_lexer *lexer);
/* Goes on at `cursor`, somewhere behind the present place. */
void qn_lexer_advance(qn_lexer *lexer, const char *cursor);

#endif
