/* Strings. There are none in the IR: a tensor of strings is one of their numbers (i64) in a table of the module, of all strings
 * that the model has. A host numbers strings of its inputs that are not in the table from the table's end on; where there are ops on
 * text (text.c), the table of a run does. */
#include <string.h>

#include "frontend/onnx/import.h"

/* ---- the table ---- */

static uint64_t hash_bytes(const uint8_t *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* Where the string's number plus one is, or would be. */
static int *slot_of(qn_onnx_import *im, const char *text, size_t length)
{
    const size_t mask = (size_t)im->string_capacity - 1;
    size_t at = (size_t)hash_bytes((const uint8_t *)text, length) & mask;
    while (im->string_slots[at]) {
        const char *other = im->module->strings.items[im->string_slots[at] - 1];
        if (strlen(other) == length && !memcmp(other, text, length))
            break;
        at = (at + 1) & mask;
    }
    return &im->string_slots[at];
}

static void grow_slots(qn_onnx_import *im)
{
    im->string_capacity = im->string_capacity ? im->string_capacity * 2 : 64;
    im->string_slots = QN_NEW_ARRAY(im->arena, int, im->string_capacity);
    for (size_t i = 0; i < im->module->strings.n; i++)
        *slot_of(im, im->module->strings.items[i], strlen(im->module->strings.items[i])) = (int)i + 1;
}

/* The number of a string; -1 after a report. */
static int64_t number_of(qn_onnx_import *im, const ProtobufCBinaryData *s, const qn_loc *loc)
{
    qn_module *m = im->module;
    if (s->len && memchr(s->data, 0, s->len)) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, loc, "a string with a byte of zero in it");
        return -1;
    }
    const char *text = s->len ? (const char *)s->data : "";
    if (m->strings.n * 2 >= (size_t)im->string_capacity)
        grow_slots(im);
    int *slot = slot_of(im, text, s->len);
    if (!*slot) {
        qn_vec_push(m->arena, &m->strings,
                    (const char *)qn_arena_printf(m->arena, "%.*s", (int)s->len, text));
        *slot = (int)m->strings.n;
    }
    return *slot - 1;
}

static const int64_t *numbers_of(qn_onnx_import *im, size_t n, const ProtobufCBinaryData *strings,
                                 const qn_loc *loc)
{
    int64_t *numbers = QN_NEW_ARRAY(im->arena, int64_t, n ? n : 1);
    for (size_t i = 0; i < n; i++)
        if ((numbers[i] = number_of(im, &strings[i], loc)) < 0)
            return NULL;
    return numbers;
}

const qn_tensor *qn_onnx_string_tensor(qn_onnx_import *im, const Onnx__Tensor *proto, const qn_loc *loc)
{
    int64_t n = 1;
    for (size_t i = 0; i < proto->n_dims && i <= QN_MAX_RANK; i++)
        if (proto->dims[i] < 0 || __builtin_mul_overflow(n, proto->dims[i], &n))
            n = -1;
    if (proto->n_dims > QN_MAX_RANK || n < 0 || (size_t)n != proto->n_string_data) {
        qn_error(im->diags, QUERN_ERROR_MODEL, loc, "tensor %s has %zu strings, which do not fit its shape",
                 proto->name, proto->n_string_data);
        return NULL;
    }
    const int64_t *numbers = numbers_of(im, proto->n_string_data, proto->string_data, loc);
    return numbers ? qn_onnx_tensor_of(im, QUERN_I64, (int)proto->n_dims, proto->dims, numbers) : NULL;
}

const int64_t *qn_onnx_attr_strings(qn_onnx_node *n, const char *name, int *out_n)
{
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__STRINGS);
    *out_n = a ? (int)a->n_strings : 0;
    return a ? numbers_of(n->im, a->n_strings, a->strings, &n->b.loc) : NULL;
}

int64_t qn_onnx_string_number(qn_onnx_node *n, const char *text)
{
    const ProtobufCBinaryData s = { .len = strlen(text), .data = (uint8_t *)(uintptr_t)text };
    return number_of(n->im, &s, &n->b.loc);
}

int64_t qn_onnx_attr_string_number(qn_onnx_node *n, const char *name, const char *fallback)
{
    return qn_onnx_string_number(n, qn_onnx_attr_string(n, name, fallback));
}

/* ---- which operators take them ---- */

bool qn_onnx_is_strings(const qn_onnx_value *v)
{
    bool strings = v->strings;
    for (int i = 0; i < v->n_items && !strings; i++)
        strings = qn_onnx_is_strings(v->items[i]);
    return strings;
}

/* MOVES: the results are strings as well; LOOKS: they are not, or the operator says so itself. */
enum { REFUSED, MOVES, LOOKS };

static int what_of(const char *op)
{
    static const char *const moves[] = { "Identity",       "Reshape",   "Flatten", "Squeeze",
                                         "Unsqueeze",      "Transpose", "Concat",  "Slice",
                                         "Split",          "Expand",    "Tile",    "Gather",
                                         "GatherElements", "GatherND",  "Where",   "ArrayFeatureExtractor" };
    static const char *const looks[] = { "Shape",
                                         "Size",
                                         "Equal",
                                         "CategoryMapper",
                                         "LabelEncoder",
                                         "OneHotEncoder",
                                         "TfIdfVectorizer",
                                         "StringConcat",
                                         "StringSplit",
                                         "StringNormalizer",
                                         "RegexFullMatch",
                                         "SequenceConstruct",
                                         "SequenceInsert",
                                         "SequenceErase",
                                         "SequenceLength",
                                         "SequenceAt",
                                         "Optional",
                                         "OptionalGetElement",
                                         "OptionalHasElement" };
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++)
        if (!strcmp(moves[i], op))
            return MOVES;
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++)
        if (!strcmp(looks[i], op))
            return LOOKS;
    return REFUSED;
}

static bool takes_strings(const qn_onnx_node *n)
{
    for (int i = 0; i < n->n_in; i++)
        if (qn_onnx_is_strings(n->in[i]))
            return true;
    return false;
}

/* Is it a Cast from or to strings? *out_to: the data type. */
static bool casts(qn_onnx_node *n, const qn_onnx_op *op, int *out_to)
{
    if (!strcmp(op->name, "Cast"))
        *out_to = (int)qn_onnx_attr_int(n, "to", 0);
    else if (!strcmp(op->name, "CastLike") && n->n_in == 2 && n->in[1]->kind == QN_ONNX_TENSOR)
        *out_to = n->in[1]->strings ? QN_ONNX_STRING : (int)qn_onnx_dtype_elem(n->in[1]->type.dtype);
    else
        return false;
    return *out_to == QN_ONNX_STRING || (n->n_in > 0 && n->in[0]->strings);
}

void qn_onnx_import_node(qn_onnx_node *n, const qn_onnx_op *op)
{
    int to;
    if (casts(n, op, &to)) {
        qn_onnx_cast_text(n, to);
        return;
    }
    const int what = takes_strings(n) ? what_of(op->name) : LOOKS;
    if (what == REFUSED) {
        qn_onnx_unsupported(n, "this operator is not supported on strings, which are numbers here");
        return;
    }
    op->import(n);
    for (int i = 0; what == MOVES && i < n->n_out; i++)
        if (n->out[i])
            n->out[i]->strings |= n->out[i]->kind == QN_ONNX_TENSOR;
}

void qn_onnx_out_strings(qn_onnx_node *n, int i, qn_value *numbers)
{
    qn_onnx_out(n, i, numbers);
    if (numbers && i < n->n_out && n->out[i])
        n->out[i]->strings = true;
}
