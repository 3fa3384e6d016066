/* What runs compute of strings: QUERN_TEXT_* of quern_abi.h. Strings are UTF-8; bytes that are none stay what they are. */
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/case_map.h"
#include "runtime/strings.h"

#define TRY(call)                \
    do {                         \
        const int try_ = (call); \
        if (try_)                \
            return try_;         \
    } while (0)

/* ---- UTF-8 ---- */

/* The character at `at`, and how many bytes it has; a byte that begins none: -1, of 1 byte. */
static int32_t decode(const char *at, const char *end, int *out_bytes)
{
    const unsigned char *b = (const unsigned char *)at;
    const int n = b[0] < 0x80 ? 1 : b[0] < 0xC2 ? 0 : b[0] < 0xE0 ? 2 : b[0] < 0xF0 ? 3 : b[0] < 0xF5 ? 4 : 0;
    static const int32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    *out_bytes = 1;
    if (n == 0 || end - at < n)
        return -1;
    int32_t c = n == 1 ? b[0] : b[0] & (0x7F >> n);
    for (int i = 1; i < n; i++) {
        if ((b[i] & 0xC0) != 0x80)
            return -1;
        c = c << 6 | (b[i] & 0x3F);
    }
    if (c < least[n] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
        return -1;
    *out_bytes = n;
    return c;
}

static char *encode(char *to, int32_t c)
{
    const int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const int mark[] = { 0, 0, 0xC0, 0xE0, 0xF0 };
    for (int i = n - 1; i > 0; i--, c >>= 6)
        to[i] = (char)(0x80 | (c & 0x3F));
    to[0] = (char)(mark[n] | c);
    return to + n;
}

static bool is_white(int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

/* ---- putting together ---- */

static int concatenate(quern_strings *s, qn_text x, qn_text y, int64_t *out)
{
    qn_text_buffer *b;
    TRY(qn_strings_scratch(s, x.length + y.length + 1, &b));
    if (x.length)
        memcpy(b->data, x.at, x.length);
    if (y.length)
        memcpy(b->data + x.length, y.at, y.length);
    return qn_strings_put(s, (qn_text){ b->data, x.length + y.length }, out);
}

static int32_t in_case(int32_t c, bool upper)
{
    if (c < 0x80)
        return upper ? (c >= 'a' && c <= 'z' ? c - 32 : c) : c >= 'A' && c <= 'Z' ? c + 32 : c;
    const qn_case_range *ranges = upper ? qn_to_upper : qn_to_lower;
    const size_t n = upper ? sizeof qn_to_upper / sizeof *ranges : sizeof qn_to_lower / sizeof *ranges;
    const uint32_t u = (uint32_t)c;
    for (size_t i = 0; i < n && ranges[i].first <= u; i++)
        if (u <= ranges[i].last && (u - ranges[i].first) % ranges[i].every == 0)
            return c + ranges[i].distance;
    return c;
}

static int change_case(quern_strings *s, qn_text x, bool upper, int64_t *out)
{
    qn_text_buffer *b;
    TRY(qn_strings_scratch(s, 2 * x.length + 1, &b)); /* a letter of two bytes may become one of three */
    char *to = b->data;
    int n;
    for (const char *at = x.at, *end = x.at + x.length; at < end; at += n) {
        const int32_t c = decode(at, end, &n);
        if (c < 0)
            *to++ = *at;
        else
            to = encode(to, in_case(c, upper));
    }
    return qn_strings_put(s, (qn_text){ b->data, (size_t)(to - b->data) }, out);
}

/* ---- taking apart ---- */

typedef struct splitter {
    qn_text separator; /* empty: runs of white space */
    int64_t most;      /* splits that are left; negative: any number */
    const char *at, *end;
    bool ended;
} splitter;

static int begin_split(quern_strings *s, qn_text x, int64_t separator, int64_t most, splitter *out)
{
    *out = (splitter){ .most = most, .at = x.at, .end = x.at + x.length };
    return separator < 0 ? QUERN_OK : qn_strings_get(s, separator, &out->separator);
}

/* The first character from `at` on that is white space, or is none; and how many bytes it has. */
static const char *find_white(const char *at, const char *end, bool white, int *out_bytes)
{
    *out_bytes = 0;
    while (at < end && is_white(decode(at, end, out_bytes)) != white)
        at += *out_bytes;
    return at;
}

static bool next_piece(splitter *p, qn_text *out)
{
    int bytes;
    if (!p->separator.length)
        p->at = find_white(p->at, p->end, false, &bytes);
    if (p->ended || (!p->separator.length && p->at == p->end))
        return false;
    const char *to = NULL;
    if (p->most != 0 && p->separator.length)
        to = memmem(p->at, (size_t)(p->end - p->at), p->separator.at, p->separator.length);
    else if (p->most != 0)
        to = find_white(p->at, p->end, true, &bytes);
    *out = (qn_text){ p->at, (size_t)((to ? to : p->end) - p->at) };
    p->ended = !to; /* behind the last separator there is an empty piece */
    p->at = to ? to + p->separator.length : p->end;
    p->most -= p->most > 0;
    return true;
}

static int count_pieces(quern_strings *s, qn_text x, const int64_t *args, int64_t *out)
{
    splitter p;
    qn_text piece;
    TRY(begin_split(s, x, args[0], args[1], &p));
    for (*out = 0; next_piece(&p, &piece);)
        ++*out;
    return QUERN_OK;
}

static int split(quern_strings *s, qn_text x, const int64_t *args, int64_t *out)
{
    const int64_t k = args[2];
    splitter p;
    qn_text piece;
    TRY(begin_split(s, x, args[0], args[1], &p));
    for (int64_t i = 0; i < k; i++) {
        if (!next_piece(&p, &piece))
            piece = (qn_text){ "", 0 };
        TRY(qn_strings_put(s, piece, &out[i]));
    }
    return QUERN_OK;
}

/* ---- matching ---- */

enum { COLUMNS = 257 };

static int match(quern_strings *s, qn_text x, const uint16_t *table, int64_t states, uint8_t *out)
{
    int64_t state = 1;
    for (size_t i = 0; i < x.length && state > 0 && state < states; i++)
        state = table[state * COLUMNS + (unsigned char)x.at[i]];
    if (state < 0 || state >= states)
        return qn_strings_fail(s, QUERN_ERROR_INDEX, "a table of %lld states leads to state %lld",
                               (long long)states, (long long)state);
    *out = state > 0 && table[state * COLUMNS + COLUMNS - 1] == 1;
    return QUERN_OK;
}

/* ---- numbers ---- */

static const char *skip_digits(const char *at, bool *any)
{
    while (*at >= '0' && *at <= '9') {
        at++;
        *any = true;
    }
    return at;
}

/* Behind what strtod reads and a model may have: decimal, "INF", "NaN"; NULL: there is none. *out_whole: without a point or an exponent. */
static const char *skip_number(const char *at, bool *out_whole)
{
    bool any = false, power = true;
    *out_whole = false;
    at += *at == '+' || *at == '-';
    if (!strncasecmp(at, "inf", 3) || !strncasecmp(at, "nan", 3))
        return at + (strncasecmp(at, "infinity", 8) ? 3 : 8);
    at = skip_digits(at, &any);
    *out_whole = any && *at != '.' && *at != 'e' && *at != 'E';
    if (*at == '.')
        at = skip_digits(at + 1, &any);
    if (any && (*at == 'e' || *at == 'E')) {
        at++;
        at += *at == '+' || *at == '-';
        power = false;
        at = skip_digits(at, &power);
    }
    return any && power ? at : NULL;
}

static int64_t whole_of(double x)
{
    return !(x == x) ? 0 : x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (int64_t)x;
}

static uint64_t unsigned_of(double x)
{
    return x >= 0x1p64 ? UINT64_MAX : x >= 0x1p63 ? (uint64_t)x : (uint64_t)whole_of(x);
}

static int parse(quern_strings *s, qn_text x, int64_t dtype, void *out)
{
    int bytes;
    bool whole;
    const char *end = x.at + x.length, *at = find_white(x.at, end, false, &bytes);
    const char *behind = skip_number(at, &whole);
    if (!behind || find_white(behind, end, false, &bytes) != end)
        return qn_strings_fail(s, QUERN_ERROR_ARGUMENT, "\"%.100s\" is no number", x.at);
    errno = 0;
    if (dtype == QUERN_F32) {
        *(float *)out = strtof(at, NULL);
    } else if (dtype == QUERN_F64) {
        *(double *)out = strtod(at, NULL);
    } else if (dtype == QUERN_I64) {
        const int64_t value = whole ? strtoll(at, NULL, 10) : 0;
        *(int64_t *)out = whole && !errno ? value : whole_of(strtod(at, NULL));
    } else {
        const uint64_t value = !whole       ? 0
                               : *at == '-' ? (uint64_t)strtoll(at, NULL, 10)
                                            : strtoull(at, NULL, 10);
        *(uint64_t *)out = whole && !errno ? value : unsigned_of(strtod(at, NULL));
    }
    return QUERN_OK;
}

/* The fewest digits that are this number again: 0.1, 1e-05, 16777216.0, 1e+16. */
static size_t print_float(char *to, size_t size, double x, bool single)
{
    char digits[32], text[32];
    if (isnan(x) || isinf(x))
        return (size_t)snprintf(to, size, "%s", isnan(x) ? "NaN" : x > 0 ? "INF" : "-INF");
    int n = 0;
    do
        snprintf(text, sizeof text, "%.*e", n++, x);
    while (n < 17 && (single ? strtof(text, NULL) != (float)x : strtod(text, NULL) != x));
    const int power = atoi(strchr(text, 'e') + 1); /* d.ddde+dd */
    if (x != 0 && (power < -4 || power >= 16))
        return (size_t)snprintf(to, size, "%s", text);
    const int behind = n - 1 - power; /* digits behind the point */
    if (behind >= 1)
        return (size_t)snprintf(to, size, "%.*f", behind, x);
    /* whole: the digits, then zeros, since %f would show more of a float than the fewest */
    const bool negative = text[0] == '-';
    digits[0] = text[negative];
    memcpy(digits + 1, text + negative + (n > 1 ? 2 : 1), (size_t)n - 1);
    return (size_t)snprintf(to, size, "%s%.*s%.*s.0", negative ? "-" : "", n, digits, power + 1 - n,
                            "0000000000000000");
}

static int print(quern_strings *s, const void *x, int64_t i, int64_t dtype, int64_t *out)
{
    char text[64];
    size_t n;
    if (dtype == QUERN_F32)
        n = print_float(text, sizeof text, (double)((const float *)x)[i], true);
    else if (dtype == QUERN_F64)
        n = print_float(text, sizeof text, ((const double *)x)[i], false);
    else if (dtype == QUERN_I64)
        n = (size_t)snprintf(text, sizeof text, "%" PRId64, ((const int64_t *)x)[i]);
    else
        n = (size_t)snprintf(text, sizeof text, "%" PRIu64, ((const uint64_t *)x)[i]);
    return qn_strings_put(s, (qn_text){ text, n }, out);
}

/* ---- all elements ---- */

static void *buffer(int64_t address)
{
    return (void *)(uintptr_t)address;
}

static int compute(quern_strings *s, int32_t what, const int64_t *args)
{
    static const int n_buffers[] = { 0, 3, 2, 2, 2, 3, 2, 2 };
    if (what < QUERN_TEXT_CONCAT || what > QUERN_TEXT_PRINT)
        return qn_strings_fail(s, QUERN_ERROR_UNSUPPORTED,
                               "the model asks for operation %d of strings: it is newer", (int)what);
    const int last = n_buffers[what] - 1;
    const int64_t *x = buffer(args[0]), *more = args + last + 2;
    const int64_t n = args[last + 1];
    int64_t *out = buffer(args[last]);
    qn_text a = { 0 }, b;
    for (int64_t i = 0; i < n; i++) {
        if (what != QUERN_TEXT_PRINT)
            TRY(qn_strings_get(s, x[i], &a));
        switch (what) {
        case QUERN_TEXT_CONCAT:
            TRY(qn_strings_get(s, ((const int64_t *)buffer(args[1]))[i], &b));
            TRY(concatenate(s, a, b, &out[i]));
            break;
        case QUERN_TEXT_CASE: TRY(change_case(s, a, more[0] != 0, &out[i])); break;
        case QUERN_TEXT_COUNT: TRY(count_pieces(s, a, more, &out[i])); break;
        case QUERN_TEXT_SPLIT: TRY(split(s, a, more, out + i * more[2])); break;
        case QUERN_TEXT_MATCH: TRY(match(s, a, buffer(args[1]), more[0], (uint8_t *)out + i)); break;
        case QUERN_TEXT_PARSE:
            TRY(parse(s, a, more[0], (char *)out + i * (more[0] == QUERN_F32 ? 4 : 8)));
            break;
        default: TRY(print(s, x, i, more[0], &out[i]));
        }
    }
    return QUERN_OK;
}

/* With a point as decimal point, whatever the host has set. */
int qn_text_compute(quern_strings *s, int32_t what, const int64_t *args)
{
    if (what != QUERN_TEXT_PARSE && what != QUERN_TEXT_PRINT)
        return compute(s, what, args);
    const locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (!plain)
        return qn_strings_fail(s, QUERN_ERROR_MEMORY, "no memory for a locale");
    const locale_t before = uselocale(plain);
    const int status = compute(s, what, args);
    uselocale(before);
    freelocale(plain);
    return status;
}
