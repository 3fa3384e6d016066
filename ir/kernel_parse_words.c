/* The words of the text form of kernels: names, numbers, types, choices. */
#include <ctype.h>
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_parse.h"
#include "ir/literal.h"

void qn_kp_fail(qn_kparser *p, const char *format, ...)
{
    if (p->failed)
        return;
    p->failed = true;
    va_list args;
    va_start(args, format);
    qn_loc loc = { .file = p->file, .line = p->line, .column = (int)(p->at - p->line_start) + 1 };
    qn_error(p->diags, QUERN_ERROR_MODEL, &loc, "%s", qn_arena_vprintf(p->arena, format, args));
    va_end(args);
}

void qn_kp_skip(qn_kparser *p)
{
    for (;;) {
        if (*p->at == '\n') {
            p->line++;
            p->line_start = ++p->at;
        } else if (*p->at == ' ' || *p->at == '\t' || *p->at == '\r') {
            p->at++;
        } else if (*p->at == '#') {
            p->at += strcspn(p->at, "\n");
        } else {
            return;
        }
    }
}

static bool is_word_char(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '.';
}

qn_kword qn_kp_peek(qn_kparser *p)
{
    qn_kp_skip(p);
    qn_kword w = { p->at, 0 };
    while (is_word_char(w.at[w.n]))
        w.n++;
    return w;
}

bool qn_kp_word_is(qn_kword w, const char *text)
{
    return strlen(text) == w.n && !memcmp(w.at, text, w.n);
}

bool qn_kp_accept(qn_kparser *p, const char *text)
{
    qn_kp_skip(p);
    size_t n = strlen(text);
    if (p->failed || strncmp(p->at, text, n) || (is_word_char(text[n - 1]) && is_word_char(p->at[n])))
        return false;
    p->at += n;
    return true;
}

void qn_kp_expect(qn_kparser *p, const char *text)
{
    if (!qn_kp_accept(p, text))
        qn_kp_fail(p, "expected '%s'", text);
}

qn_kword qn_kp_word(qn_kparser *p, const char *what)
{
    qn_kword w = qn_kp_peek(p);
    if (w.n == 0)
        qn_kp_fail(p, "expected %s", what);
    p->at += w.n;
    return w;
}

qn_kword qn_kp_name(qn_kparser *p)
{
    qn_kp_expect(p, "%");
    if (!is_word_char(*p->at))
        qn_kp_fail(p, "expected a name after '%%'");
    return qn_kp_word(p, "a name");
}

qn_scalar qn_kp_literal(qn_kparser *p, qn_dtype dtype)
{
    unsigned char bytes[8] = { 0 };
    qn_kp_skip(p);
    size_t n = 0;
    while (is_word_char(p->at[n]) ||
           ((p->at[n] == '-' || p->at[n] == '+') && (n == 0 || p->at[n - 1] == 'e' || p->at[n - 1] == 'E')))
        n++;
    if (p->failed || n == 0 || !qn_literal_parse(dtype, p->at, n, bytes)) {
        qn_kp_fail(p, "expected a constant of %s", qn_dtype_name(dtype));
        return (qn_scalar){ .i = 0 };
    }
    p->at += n;
    return qn_scalar_load(dtype, bytes);
}

int64_t qn_kp_int(qn_kparser *p, int64_t min, int64_t max)
{
    int64_t v = qn_kp_literal(p, QUERN_I64).i;
    if (v < min || v > max)
        qn_kp_fail(p, "%lld is not between %lld and %lld", (long long)v, (long long)min, (long long)max);
    return p->failed ? min : v;
}

bool qn_kp_parse_type(qn_kword w, qn_ktype *out)
{
    size_t n = w.n;
    int lanes = 1;
    const char *x = memchr(w.at, 'x', w.n);
    if (x) {
        n = (size_t)(x - w.at);
        lanes = 0;
        for (const char *c = x + 1; c < w.at + w.n; c++) {
            if (!isdigit((unsigned char)*c) || lanes > 64)
                return false;
            lanes = lanes * 10 + (*c - '0');
        }
    }
    qn_dtype dtype = qn_dtype_parse(w.at, n);
    if (dtype == QUERN_INVALID_DTYPE || qn_dtype_is_stored(dtype) || lanes < 1 || lanes > 64 ||
        (lanes & (lanes - 1)))
        return false;
    *out = qn_ktype_make(dtype, lanes);
    return true;
}

qn_ktype qn_kp_type(qn_kparser *p)
{
    qn_ktype type = { QUERN_I64, 1 };
    qn_kword w = qn_kp_word(p, "a type");
    if (!p->failed && !qn_kp_parse_type(w, &type))
        qn_kp_fail(p, "'%.*s' is no type: a dtype, or a dtype with lanes as in f32x16", (int)w.n, w.at);
    return p->failed ? qn_ktype_make(QUERN_I64, 1) : type;
}

int qn_kp_choice(qn_kparser *p, const char *what, const char *const *choices, int n)
{
    qn_kword w = qn_kp_word(p, what);
    for (int i = 0; i < n && !p->failed; i++)
        if (qn_kp_word_is(w, choices[i]))
            return i;
    qn_kp_fail(p, "'%.*s' is no %s", (int)w.n, w.at, what);
    return 0;
}

qn_dtype qn_kp_dtype(qn_kparser *p)
{
    qn_kword w = qn_kp_word(p, "a dtype");
    qn_dtype dtype = p->failed ? QUERN_I64 : qn_dtype_parse(w.at, w.n);
    if (dtype == QUERN_INVALID_DTYPE || qn_dtype_is_stored(dtype))
        qn_kp_fail(p, "'%.*s' is no dtype of kernels", (int)w.n, w.at);
    return p->failed ? QUERN_I64 : dtype;
}
