/* Scalars to text and back. */
#include "ir/literal.h"

#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ir/narrow.h"

/* Decimal points are points, whatever the host program's locale is. */
typedef struct locale_scope {
    locale_t c, before;
} locale_scope;

static locale_scope c_locale_begin(void)
{
    locale_scope scope = { .c = newlocale(LC_ALL_MASK, "C", (locale_t)0) };
    if (scope.c)
        scope.before = uselocale(scope.c);
    return scope;
}

static void c_locale_end(locale_scope scope)
{
    if (scope.c) {
        uselocale(scope.before);
        freelocale(scope.c);
    }
}

typedef struct float_layout {
    int mantissa_bits; /* stored */
    int sure_digits;   /* every normal value with so many decimal digits survives text -> value -> text */
} float_layout;

static float_layout layout_of(qn_dtype dtype)
{
    switch (dtype) {
    case QUERN_F16: return (float_layout){ 10, 3 };
    case QUERN_BF16: return (float_layout){ 7, 2 };
    case QUERN_F32: return (float_layout){ 23, 6 };
    default: return (float_layout){ 52, 15 };
    }
}

static uint64_t load_bits(qn_dtype dtype, const void *at)
{
    uint64_t bits = 0;
    uint8_t b1;
    uint16_t b2;
    uint32_t b4;
    switch (qn_dtype_bytes(dtype)) {
    case 1: memcpy(&b1, at, 1), bits = b1; break;
    case 2: memcpy(&b2, at, 2), bits = b2; break;
    case 4: memcpy(&b4, at, 4), bits = b4; break;
    default: memcpy(&bits, at, 8); break;
    }
    return bits;
}

static void store_bits(qn_dtype dtype, uint64_t bits, void *at)
{
    uint8_t b1 = (uint8_t)bits;
    uint16_t b2 = (uint16_t)bits;
    uint32_t b4 = (uint32_t)bits;
    switch (qn_dtype_bytes(dtype)) {
    case 1: memcpy(at, &b1, 1); break;
    case 2: memcpy(at, &b2, 2); break;
    case 4: memcpy(at, &b4, 4); break;
    default: memcpy(at, &bits, 8); break;
    }
}

/* The quiet NaN that `nan` stands for: sign clear, exponent all ones, only the top bit of the mantissa. */
static uint64_t nan_bits(qn_dtype dtype)
{
    if (qn_dtype_is_stored(dtype))
        return qn_narrow_of(dtype)->nan;
    int width = (int)qn_dtype_bytes(dtype) * 8, mantissa = layout_of(dtype).mantissa_bits;
    uint64_t exponent = (((uint64_t)1 << (width - 1 - mantissa)) - 1) << mantissa;
    return exponent | ((uint64_t)1 << (mantissa - 1));
}

static double load_float(qn_dtype dtype, const void *at)
{
    return qn_dtype_is_stored(dtype) ? qn_narrow_value(dtype, (uint8_t)load_bits(dtype, at))
                                     : qn_scalar_load(dtype, at).f;
}

static void store_float(qn_dtype dtype, double value, void *at)
{
    if (qn_dtype_is_stored(dtype))
        store_bits(dtype, qn_narrow_from_float(dtype, value), at);
    else
        qn_scalar_store(dtype, (qn_scalar){ .f = value }, at);
}

static bool reads_back(qn_dtype dtype, const char *text, uint64_t bits)
{
    unsigned char again[8];
    store_float(dtype, strtod(text, NULL), again);
    return load_bits(dtype, again) == bits;
}

static int print_float(qn_dtype dtype, const void *at, char *out)
{
    double value = load_float(dtype, at);
    uint64_t bits = load_bits(dtype, at);
    if (isnan(value)) {
        if (bits == nan_bits(dtype))
            return snprintf(out, QN_LITERAL_MAX, "nan");
        return snprintf(out, QN_LITERAL_MAX, "0x%0*" PRIx64, (int)qn_dtype_bytes(dtype) * 2, bits);
    }
    if (isinf(value))
        return snprintf(out, QN_LITERAL_MAX, value < 0 ? "-inf" : "inf");
    if (fabs(value) < 1e7 && value == trunc(value))
        return snprintf(out, QN_LITERAL_MAX, "%.0f", value); /* no decimal point: the same in every locale */
    float_layout layout = layout_of(dtype);
    const bool normal = !qn_dtype_is_stored(dtype) && (bits & nan_bits(dtype)) >> layout.mantissa_bits;
    locale_scope scope = c_locale_begin();
    int length = 0;
    /* A subnormal has fewer digits than a normal value is sure of, so those start from one. */
    for (int digits = normal ? layout.sure_digits : 1; digits <= 17; digits++) {
        length = snprintf(out, QN_LITERAL_MAX, "%.*g", digits, value);
        if (reads_back(dtype, out, bits))
            break;
    }
    c_locale_end(scope);
    return length;
}

int qn_literal_print(qn_dtype dtype, const void *at, char out[QN_LITERAL_MAX])
{
    int64_t i;
    if (qn_is_real(dtype))
        return print_float(dtype, at, out);
    if (qn_dtype_is_stored(dtype))
        return snprintf(out, QN_LITERAL_MAX, "%.0f", load_float(dtype, at));
    switch (qn_dtype_class_of(dtype)) {
    case QN_CLASS_BOOL: return snprintf(out, QN_LITERAL_MAX, load_bits(dtype, at) ? "true" : "false");
    case QN_CLASS_UNSIGNED: return snprintf(out, QN_LITERAL_MAX, "%" PRIu64, load_bits(dtype, at));
    default: i = qn_scalar_load(dtype, at).i; return snprintf(out, QN_LITERAL_MAX, "%" PRId64, i);
    }
}

static bool parse_bits(qn_dtype dtype, const char *text, void *at)
{
    size_t digits = strspn(text + 2, "0123456789abcdefABCDEF");
    if (digits == 0 || digits > qn_dtype_bytes(dtype) * 2 || text[2 + digits])
        return false;
    store_bits(dtype, strtoull(text + 2, NULL, 16), at);
    return true;
}

static bool parse_float(qn_dtype dtype, const char *text, void *at)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (strcmp(text, "nan") == 0) {
        store_bits(dtype, nan_bits(dtype), at);
        return true;
    }
    if (text[0] == '0' && text[1] == 'x')
        return parse_bits(dtype, text, at);
    double value;
    if (strcmp(digits, "inf") == 0) {
        value = *text == '-' ? -HUGE_VAL : HUGE_VAL;
    } else {
        /* strtod alone would take white space, hexadecimal floats and nan(...) too. */
        if (!*digits || digits[strspn(digits, "0123456789.eE+-")])
            return false;
        char *end;
        locale_scope scope = c_locale_begin();
        value = strtod(text, &end);
        c_locale_end(scope);
        if (end == text || *end)
            return false;
    }
    store_float(dtype, value, at);
    /* Narrow types that have no infinity, or nothing as large. */
    const double kept = load_float(dtype, at);
    return !qn_dtype_is_stored(dtype) || (!isnan(kept) && isinf(kept) == isinf(value));
}

static bool parse_integer(qn_dtype dtype, const char *text, void *at)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (!*digits || digits[strspn(digits, "0123456789")])
        return false;
    const qn_narrow *narrow = qn_narrow_of(dtype);
    int width = narrow ? narrow->bits : (int)qn_dtype_bytes(dtype) * 8;
    errno = 0;
    if (narrow ? !narrow->sign : qn_dtype_class_of(dtype) == QN_CLASS_UNSIGNED) {
        uint64_t value = strtoull(digits, NULL, 10);
        if (errno || (*text == '-' && value) || (width < 64 && value >> width))
            return false;
        store_bits(dtype, value, at);
        return true;
    }
    int64_t value = strtoll(text, NULL, 10);
    int64_t highest = (int64_t)(UINT64_MAX >> (65 - width)), lowest = -highest - 1;
    if (errno || value < lowest || value > highest)
        return false;
    store_bits(dtype, narrow ? qn_narrow_from_int(dtype, value) : (uint64_t)value, at);
    return true;
}

bool qn_literal_parse(qn_dtype dtype, const char *text, size_t length, void *at)
{
    char *copy, stack[QN_LITERAL_MAX * 2];
    if (memchr(text, 0, length))
        return false;
    copy =
        length < sizeof stack ? stack : malloc(length + 1); /* decimal text may have any number of digits */
    if (!copy)
        return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    bool good;
    if (qn_is_real(dtype)) {
        good = parse_float(dtype, copy, at);
    } else if (qn_dtype_class_of(dtype) == QN_CLASS_BOOL) {
        good = strcmp(copy, "true") == 0 || strcmp(copy, "false") == 0;
        store_bits(dtype, good && copy[0] == 't', at);
    } else {
        good = parse_integer(dtype, copy, at);
    }
    if (copy != stack)
        free(copy);
    return good;
}
