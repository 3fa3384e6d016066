/* Splits the text form into tokens. */
#include "frontend/text/lexer.h"

#include <stdbool.h>
#include <string.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* By table: contents of large constants are megabytes of these. */
const signed char qn_hex_digits[256] = {
    ['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
    ['A'] = 11, ['B'] = 12, ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16,
};

qn_lexer qn_lexer_of(const char *text, size_t length, qn_arena *arena)
{
    char *copy = qn_arena_alloc(arena, length + 1);
    memcpy(copy, text, length);
    return (qn_lexer){ .arena = arena, .cursor = copy, .end = copy + length, .line_start = copy, .line = 1 };
}

void qn_lexer_advance(qn_lexer *lexer, const char *cursor)
{
    const char *newline;
    while ((newline = memchr(lexer->cursor, '\n', (size_t)(cursor - lexer->cursor)))) {
        lexer->line++;
        lexer->line_start = lexer->cursor = newline + 1;
    }
    lexer->cursor = cursor;
}

/* White space and comments: from # to the end of the line. */
static void skip_blanks(qn_lexer *lexer)
{
    const char *c = lexer->cursor;
    for (;; c++) {
        if (*c == '#')
            while (c < lexer->end && *c != '\n')
                c++;
        if (c == lexer->end || (*c != ' ' && *c != '\t' && *c != '\r' && *c != '\n'))
            break;
    }
    qn_lexer_advance(lexer, c);
}

static void bad(qn_token *token, const char *why)
{
    token->kind = QN_TOKEN_BAD;
    token->text = why;
    token->length = strlen(why);
}

/* Reads from the opening quote on; gives the place behind the closing one. */
static const char *lex_string(qn_lexer *lexer, const char *c, qn_token *token)
{
    const char *close = c + 1;
    while (close < lexer->end && *close != '"' && *close != '\n')
        close += *close == '\\' && close + 1 < lexer->end ? 2 : 1;
    if (close >= lexer->end || *close != '"') {
        bad(token, "this string has no closing '\"' in its line");
        return lexer->end;
    }
    char *to = qn_arena_alloc(lexer->arena, (size_t)(close - c));
    token->text = to;
    for (c++; c < close; c++) {
        char out = *c;
        if (out == '\\') {
            switch (*++c) {
            case 'n': out = '\n'; break;
            case 't': out = '\t'; break;
            case '"':
            case '\\': out = *c; break;
            case 'x':
                if (close - c > 2 && qn_hex_digit(c[1]) >= 0 && qn_hex_digit(c[2]) >= 0) {
                    out = (char)(qn_hex_digit(c[1]) * 16 + qn_hex_digit(c[2]));
                    c += 2;
                    break;
                }
                /* fall through */
            default: bad(token, "unknown escape; these are known: \\\" \\\\ \\n \\t \\xHH"); return close + 1;
            }
        }
        if (out == 0) {
            bad(token, "a string can't hold a NUL");
            return close + 1;
        }
        *to++ = out;
    }
    *to = 0;
    token->length = (size_t)(to - token->text);
    return close + 1;
}

static const char *lex_bytes(const char *c, qn_token *token)
{
    token->text = c;
    while (qn_hex_digit(*c) >= 0)
        c++;
    token->length = (size_t)(c - token->text);
    if (*c != '"')
        bad(token, "the bytes of x\"…\" are pairs of hexadecimal digits, up to a '\"'");
    else if (token->length % 2)
        bad(token, "x\"…\" has an odd number of hexadecimal digits");
    return *c == '"' ? c + 1 : c;
}

static const char *lex_number(const char *c)
{
    if (*c == '-' || *c == '+')
        c++;
    if (c[0] == '0' && c[1] == 'x') {
        for (c += 2; qn_hex_digit(*c) >= 0; c++)
            ;
        return c;
    }
    if (strncmp(c, "inf", 3) == 0)
        return c + 3;
    while (is_digit(*c))
        c++;
    if (*c == '.' && c[1] != '.')
        for (c++; is_digit(*c); c++)
            ;
    if (*c == 'e' || *c == 'E') {
        const char *exponent = c + 1 + (c[1] == '-' || c[1] == '+');
        if (is_digit(*exponent))
            for (c = exponent; is_digit(*c); c++)
                ;
    }
    return c;
}

/* What follows % @ $: letters, digits, _ . / or a string. */
static const char *lex_name(qn_lexer *lexer, const char *c, qn_token *token)
{
    if (*c == '"' && token->kind != QN_TOKEN_LABEL)
        return lex_string(lexer, c, token);
    const char *start = c;
    bool only_digits = true;
    while (is_letter(*c) || is_digit(*c) || *c == '.' || *c == '/') {
        only_digits = only_digits && is_digit(*c);
        c++;
    }
    if (c == start) {
        bad(token, "a name is missing here");
        return c;
    }
    if (only_digits && token->kind == QN_TOKEN_VALUE)
        token->kind = QN_TOKEN_NUMBERED;
    char *copy = qn_arena_alloc(lexer->arena, (size_t)(c - start) + 1);
    memcpy(copy, start, (size_t)(c - start));
    token->text = copy;
    token->length = (size_t)(c - start);
    return c;
}

static qn_token_kind punctuation(char c)
{
    switch (c) {
    case '(': return QN_TOKEN_LPAREN;
    case ')': return QN_TOKEN_RPAREN;
    case '[': return QN_TOKEN_LBRACKET;
    case ']': return QN_TOKEN_RBRACKET;
    case '{': return QN_TOKEN_LBRACE;
    case '}': return QN_TOKEN_RBRACE;
    case ',': return QN_TOKEN_COMMA;
    case ':': return QN_TOKEN_COLON;
    case '=': return QN_TOKEN_EQUALS;
    case ';': return QN_TOKEN_SEMICOLON;
    case '%': return QN_TOKEN_VALUE;
    case '@': return QN_TOKEN_FUNCTION;
    case '$': return QN_TOKEN_LABEL;
    case '+':
    case '-':
    case '*': return QN_TOKEN_OPERATOR;
    default: return QN_TOKEN_BAD;
    }
}

qn_token qn_lexer_next(qn_lexer *lexer)
{
    skip_blanks(lexer);
    const char *c = lexer->cursor;
    qn_token token = {
        .text = c, .start = c, .line = lexer->line, .column = (int)(c - lexer->line_start) + 1
    };
    if (c == lexer->end) {
        token.kind = QN_TOKEN_END;
    } else if (*c == 'x' && c[1] == '"') {
        token.kind = QN_TOKEN_BYTES;
        c = lex_bytes(c + 2, &token);
    } else if (is_letter(*c)) {
        token.kind = QN_TOKEN_WORD;
        while (is_letter(*c) || is_digit(*c) || (*c == '.' && c[1] != '.'))
            c++;
        token.length = (size_t)(c - token.text);
    } else if (*c == '"') {
        token.kind = QN_TOKEN_STRING;
        c = lex_string(lexer, c, &token);
    } else if (c[0] == '-' && c[1] == '>') {
        token.kind = QN_TOKEN_ARROW;
        c += 2;
    } else if (c[0] == '.' && c[1] == '.') {
        token.kind = QN_TOKEN_RANGE;
        c += 2;
    } else if (is_digit(*c) || ((*c == '-' || *c == '+') && (is_digit(c[1]) || c[1] == '.' || c[1] == 'i'))) {
        token.kind = QN_TOKEN_NUMBER;
        c = lex_number(c);
        token.length = (size_t)(c - token.text);
    } else {
        token.kind = punctuation(*c++);
        if (token.kind == QN_TOKEN_BAD)
            bad(&token, "this character has no meaning here");
        else if (token.kind == QN_TOKEN_VALUE || token.kind == QN_TOKEN_FUNCTION ||
                 token.kind == QN_TOKEN_LABEL)
            c = lex_name(lexer, c, &token);
    }
    token.end = c;
    lexer->cursor = c; /* no token contains a newline */
    return token;
}
