/* The type rule of each op: what it accepts and gives, and what it says when something doesn't fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/graph.h"

/* Symbols: n, m are 0…1000; p is 2…8; others as parsed. Attributes: "axis=1 dims=[2,n] kind=sum". */
typedef struct row {
    qn_op op;
    const char *operands, *attrs; /* types and attributes, by spaces */
    const char *results;          /* types; NULL: refused */
    const char *message;          /* a part of what is said then */
} row;

static qn_module *module;
static qn_graph *graph;
static bool accepted[QN_N_OPS], refused[QN_N_OPS]; /* seen by a test */

static void start(void)
{
    module = qn_module_new("test");
    graph = qn_function_new(module, "main");
    qn_dim_symbol(module->dims, "n", 0, 1000);
    qn_dim_symbol(module->dims, "m", 0, 1000);
    qn_dim_symbol(module->dims, "p", 2, 8);
}

static int set_up(void **state)
{
    (void)state;
    start();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    qn_module_free(module);
    return 0;
}

static void expect_char(const char **at, char c)
{
    if (**at != c)
        fail_msg("'%c' expected at '%s'", c, *at);
    ++*at;
}

static int parse_dims(const char **at, qn_dim *out)
{
    int n = 0;
    expect_char(at, '[');
    while (**at != ']') {
        if (n > 0)
            expect_char(at, ',');
        out[n] = qn_dim_parse(module->dims, at);
        assert_non_null(out[n++]);
    }
    ++*at;
    return n;
}

static qn_type parse_type(const char **at)
{
    const size_t length = strcspn(*at, "[");
    const qn_dtype dtype = qn_dtype_parse(*at, length);
    assert_int_not_equal(dtype, QUERN_INVALID_DTYPE);
    *at += length;
    qn_dim dims[QN_MAX_RANK];
    const int rank = parse_dims(at, dims);
    return qn_type_make(module, dtype, rank, dims);
}

static int word_of(const char *const *words, int n, const char *at, size_t length)
{
    for (int i = 0; i < n; i++)
        if (strlen(words[i]) == length && memcmp(words[i], at, length) == 0)
            return i;
    fail_msg("no such word: '%s'", at);
    return -1;
}

static qn_attr parse_attr(const char **at)
{
    const size_t name = strcspn(*at, "=");
    const qn_attr_key key = qn_attr_parse(*at, name);
    if (key == QN_N_ATTRS)
        fail_msg("no such attribute: '%s'", *at);
    *at += name + 1;
    qn_attr attr = { .key = key };
    const size_t length = strcspn(*at, " ");
    if (qn_attrs[key].kind == QN_ATTR_KIND_DIMS || qn_attrs[key].kind == QN_ATTR_KIND_INTS) {
        qn_dim dims[40];
        attr.n = parse_dims(at, dims);
        if (qn_attrs[key].kind == QN_ATTR_KIND_DIMS) {
            attr.dims = qn_arena_copy(module->arena, dims, sizeof dims);
            return attr;
        }
        int64_t *ints = QN_NEW_ARRAY(module->arena, int64_t, attr.n);
        for (int i = 0; i < attr.n; i++)
            ints[i] = dims[i]->value;
        attr.ints = ints;
        return attr;
    }
    switch (qn_attrs[key].kind) {
    case QN_ATTR_KIND_FLOAT: attr.f = strtod(*at, NULL); break;
    case QN_ATTR_KIND_DTYPE: attr.i = qn_dtype_parse(*at, length); break;
    case QN_ATTR_KIND_KIND: attr.i = word_of(qn_kind_names, QN_N_KINDS, *at, length); break;
    case QN_ATTR_KIND_DIRECTION: attr.i = word_of(qn_direction_names, 6, *at, length); break;
    case QN_ATTR_KIND_STRING: attr.s = qn_arena_printf(module->arena, "%.*s", (int)length, *at); break;
    default: attr.i = strtoll(*at, NULL, 10); break;
    }
    *at += length;
    return attr;
}

static const char *print_results(const qn_node *node)
{
    const char *text = "";
    for (int i = 0; i < node->n_results; i++)
        text = qn_arena_printf(module->arena, "%s%s%s", text, i ? " " : "",
                               qn_type_print(&node->results[i].type, module->arena));
    return text;
}

/* Results compare as types, so that a row may write dims as it likes. */
static void expect_results(const qn_node *node, const char *results)
{
    const char *at = results;
    for (int i = 0; i < node->n_results; i++, at += *at == ' ') {
        const qn_type want = *at ? parse_type(&at) : (qn_type){ 0 };
        if (!qn_type_equal(&want, &node->results[i].type))
            fail_msg("%s gives %s; expected %s", qn_ops[node->op].name, print_results(node), results);
    }
    if (*at)
        fail_msg("%s gives %s; expected %s", qn_ops[node->op].name, print_results(node), results);
}

static void expect(const qn_node *node, qn_op op, const char *results, const char *message, qn_diags *diags)
{
    const char *said = qn_diags_text(diags, module->arena);
    if (results) {
        if (!node)
            fail_msg("%s is refused: %s", qn_ops[op].name, said);
        expect_results(node, results);
        assert_int_equal(diags->n_errors, 0);
        accepted[op] = true;
        return;
    }
    if (node)
        fail_msg("%s gives %s; expected '%s'", qn_ops[op].name, print_results(node), message);
    if (!strstr(said, message) || strncmp(said, qn_ops[op].name, strlen(qn_ops[op].name)) != 0)
        fail_msg("%s says '%s'; expected '%s'", qn_ops[op].name, said, message);
    assert_int_equal(qn_diags_status(diags), QUERN_ERROR_MODEL);
    assert_int_equal(diags->n_errors, 1);
    refused[op] = true;
}

static void check_row(const row *r)
{
    qn_value *operands[20];
    qn_attr attrs[10];
    int n_operands = 0, n_attrs = 0;
    for (const char *at = r->operands; *at; at += *at == ' ')
        operands[n_operands++] = qn_graph_add_input(graph, NULL, parse_type(&at), QN_ROLE_INPUT);
    for (const char *at = r->attrs; *at; at += *at == ' ')
        attrs[n_attrs++] = parse_attr(&at);
    qn_diags diags;
    qn_diags_init(&diags, module->arena);
    const qn_node *node =
        qn_node_new(graph, NULL, r->op, n_operands, operands, n_attrs, attrs, 0, NULL, NULL, &diags);
    expect(node, r->op, r->results, r->message, &diags);
}

static void check_rows(size_t n, const row *rows)
{
    for (size_t i = 0; i < n; i++)
        check_row(&rows[i]);
}
#define CHECK_ROWS(rows) check_rows(sizeof(rows) / sizeof *(rows), rows)

static void leaves(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_IOTA, "", "axis=1 dims=[2,n] dtype=i64", "i64[2, n]", NULL },
        { QN_OP_IOTA, "", "axis=2 dims=[2,n] dtype=i64", NULL, "axis is 2; expected 0 to 1" },
        { QN_OP_IOTA, "", "axis=0 dims=[] dtype=i64", NULL, "axis is 0; there are no axes" },
        { QN_OP_IOTA, "", "axis=0 dims=[2] dtype=bool", NULL, "the result would be bool" },
        { QN_OP_IOTA, "", "axis=0 dims=[-1] dtype=i64", NULL, "result dim 0 would be -1" },
        { QN_OP_IOTA, "", "axis=0 dims=[n-1001] dtype=i64", NULL, "result dim 0 would be n - 1001" },
        { QN_OP_IOTA, "", "axis=0 dims=[n-2] dtype=i64", "i64[n-2]", NULL },
        { QN_OP_IOTA, "", "axis=0 dims=[1099511627777] dtype=i64", NULL, "expected 0 to 1099511627776" },
        { QN_OP_IOTA, "", "axis=0 dims=[1099511627776,1099511627776] dtype=i64", NULL, "no memory can hold" },
        { QN_OP_IOTA, "", "axis=0 dims=[1099511627776,1099511627776,0] dtype=i64",
          "i64[1099511627776, 1099511627776, 0]", NULL },
        { QN_OP_IOTA, "", "axis=0 dims=[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1] dtype=i64", NULL, "rank 17" },
        { QN_OP_IOTA, "", "axis=0 dims=[2]", NULL, "the attribute dtype is missing" },
        { QN_OP_IOTA, "", "axis=0 dims=[2] dtype=f31", NULL, "dtype has a value that means nothing" },
        { QN_OP_IOTA, "", "axis=0 axis=0 dims=[2] dtype=i64", NULL, "axis is there twice" },
        { QN_OP_IOTA, "", "axis=0 dims=[2] dtype=i64 groups=1", NULL, "no attribute groups" },
        { QN_OP_DIM_VALUE, "", "dims=[2*n] dtype=i64", "i64[]", NULL },
        { QN_OP_DIM_VALUE, "", "dims=[n,m] dtype=i64", NULL, "dims has 2 entries; expected 1" },
        { QN_OP_DIM_VALUE, "", "dims=[n] dtype=f32", NULL, "the result would be f32" },
    };
    CHECK_ROWS(rows);
    const qn_tensor *tensor = qn_tensor_new(module, QUERN_F32, 2, (int64_t[]){ 2, 3 }, NULL);
    for (int good = 0; good < 2; good++) {
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        const qn_attr value = { .key = QN_ATTR_VALUE, .tensor = good ? tensor : NULL };
        const qn_node *node =
            qn_node_new(graph, NULL, QN_OP_CONSTANT, 0, NULL, 1, &value, 0, NULL, NULL, &diags);
        expect(node, QN_OP_CONSTANT, good ? "f32[2, 3]" : NULL, "value has a value that means nothing",
               &diags);
    }
}

/* Rows that every element-wise op of a kind has to pass, by the op table; what is special follows. */
static void elementwise(void **state)
{
    (void)state;
    for (int op = 0; op < QN_N_OPS; op++) {
        const qn_op_info *info = &qn_ops[op];
        if (info->class != QN_ELEMENTWISE || info->attrs[0] || op == QN_OP_SELECT)
            continue;
        const bool two = info->min_operands == 2;
        const char *type = info->dtypes & QN_CLASS_FLOAT ? "f32[p, n]" : "i32[p, n]";
        const char *operands = two ? qn_arena_printf(module->arena, "%s %s", type, type) : type;
        const char *result = op == QN_OP_IS_NAN || op == QN_OP_IS_INF ? "bool[p, n]" : type;
        check_row(&(row){ (qn_op)op, operands, "", result, NULL });
        if (two) {
            const char *other = info->dtypes & QN_CLASS_FLOAT ? "f32[p, m]" : "i32[p, m]";
            check_row(&(row){
                (qn_op)op, qn_arena_printf(module->arena, "%s %s", type, other), "", NULL,
                qn_arena_printf(module->arena, "operand 1 is %.3s[p, m]; expected %.3s[p, n]", type, type) });
            check_row(&(row){ (qn_op)op, qn_arena_printf(module->arena, "%s i16[p, n]", type), "", NULL,
                              "operand 1 is i16[p, n]; expected" });
        }
        check_row(
            &(row){ (qn_op)op, "", "", NULL, two ? "0 operands; expected 2" : "0 operands; expected 1" });
        if (!(info->dtypes & QN_CLASS_BOOL))
            check_row(&(row){ (qn_op)op, two ? "bool[] bool[]" : "bool[]", "", NULL, "operand 0 is bool[]" });
        if (!(info->dtypes & QN_CLASS_FLOAT))
            check_row(&(row){ (qn_op)op, two ? "f64[] f64[]" : "f64[]", "", NULL, "operand 0 is f64[]" });
        if (!(info->dtypes & QN_ANY_INT))
            check_row(&(row){ (qn_op)op, two ? "i64[] i64[]" : "i64[]", "", NULL, "operand 0 is i64[]" });
    }
    static const row rows[] = {
        { QN_OP_CONVERT, "f32[n]", "dtype=bool", "bool[n]", NULL },
        { QN_OP_CONVERT, "f32[n]", "", NULL, "the attribute dtype is missing" },
        { QN_OP_BITCAST, "f32[n]", "dtype=i32", "i32[n]", NULL },
        { QN_OP_BITCAST, "f32[n]", "dtype=i64", NULL, "f32 and i64 have different widths" },
        { QN_OP_BITCAST, "u8[n]", "dtype=bool", NULL, "u8 may hold bits that are no bool" },
        { QN_OP_COMPARE, "f32[n] f32[n]", "direction=lt", "bool[n]", NULL },
        { QN_OP_COMPARE, "f32[n] f32[1]", "direction=lt", NULL, "operand 1 is f32[1]; expected f32[n]" },
        { QN_OP_SELECT, "bool[n] f32[n] f32[n]", "", "f32[n]", NULL },
        { QN_OP_SELECT, "bool[] f32[n] f32[n]", "", NULL, "operand 0 is bool[]; expected bool[n]" },
        { QN_OP_SELECT, "bool[n] f32[n] f16[n]", "", NULL, "operand 2 is f16[n]; expected f32 elements" },
        { QN_OP_SELECT, "i8[n] f32[n] f32[n]", "", NULL, "operand 0 is i8[n]; select takes bool" },
        { QN_OP_GELU_TANH, "f32[n]", "", "f32[n]", NULL },
        { QN_OP_GELU, "f32[n]", "", "f32[n]", NULL },
        { QN_OP_GELU_TANH, "i32[n]", "", NULL, "gelu_tanh" },
        { QN_OP_SHIFT_LEFT, "u8[2] u8[2]", "", "u8[2]", NULL },
        { QN_OP_MAX, "bool[2] bool[2]", "", "bool[2]", NULL },
    };
    CHECK_ROWS(rows);
}

static void movement(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_BROADCAST, "f32[3]", "axes=[1] dims=[n,3,2]", "f32[n, 3, 2]", NULL },
        { QN_OP_BROADCAST, "f32[1,3]", "axes=[0,1] dims=[n,3]", "f32[n, 3]", NULL },
        { QN_OP_BROADCAST, "f32[n]", "axes=[0] dims=[select_one(n,m)]", "f32[select_one(n, m)]", NULL },
        { QN_OP_BROADCAST, "f32[n]", "axes=[0] dims=[5]", "f32[5]", NULL },
        { QN_OP_BROADCAST, "f32[]", "axes=[] dims=[0]", "f32[0]", NULL },
        { QN_OP_BROADCAST, "f32[3]", "axes=[0] dims=[4]", NULL, "its dim 3 can't be repeated to 4" },
        { QN_OP_BROADCAST, "f32[p]", "axes=[0] dims=[n]", NULL, "its dim p can't be repeated to n" },
        { QN_OP_BROADCAST, "f32[3]", "axes=[0] dims=[n]", NULL, "its dim 3 can't be repeated to n" },
        { QN_OP_BROADCAST, "f32[3,3]", "axes=[0,0] dims=[3,3]", NULL, "axes must be distinct" },
        { QN_OP_BROADCAST, "f32[3]", "axes=[] dims=[3]", NULL, "axes has 0 entries; expected one per axis" },
        { QN_OP_BROADCAST, "f32[3]", "axes=[-1] dims=[3]", NULL, "axes has -1; expected 0 to 0" },

        { QN_OP_RESHAPE, "f32[n,6]", "dims=[2*n,3]", "f32[2*n, 3]", NULL },
        { QN_OP_RESHAPE, "f32[n,6]", "dims=[m,3]", "f32[m, 3]", NULL },
        { QN_OP_RESHAPE, "f32[2,6]", "dims=[3,4]", "f32[3, 4]", NULL },
        { QN_OP_RESHAPE, "f32[2,6]", "dims=[13]", NULL, "its elements don't fill f32[13]" },
        { QN_OP_RESHAPE, "f32[n]", "dims=[n+1]", NULL, "its elements don't fill f32[n + 1]" },
        { QN_OP_RESHAPE, "f32[p]", "dims=[9]", NULL, "its elements don't fill f32[9]" },

        { QN_OP_TRANSPOSE, "f32[n,3,m]", "perm=[2,0,1]", "f32[m, n, 3]", NULL },
        { QN_OP_TRANSPOSE, "f32[n,3]", "perm=[1]", NULL, "perm has 1 entries; expected 2" },
        { QN_OP_TRANSPOSE, "f32[n,3]", "perm=[1,1]", NULL, "perm must be distinct" },

        { QN_OP_SLICE, "f32[10,n]", "start=[1,2] limit=[10,n] stride=[2,1]", "f32[5, n-2]", NULL },
        { QN_OP_SLICE, "f32[n]", "start=[0] limit=[min(n,5)] stride=[1]", "f32[min(n, 5)]", NULL },
        { QN_OP_SLICE, "f32[n]", "start=[0] limit=[n] stride=[2]", "f32[floordiv(n + 1, 2)]", NULL },
        { QN_OP_SLICE, "f32[10]", "start=[4] limit=[11] stride=[1]", NULL, "can't be cut from 4 to 11" },
        { QN_OP_SLICE, "f32[n]", "start=[0] limit=[n+1] stride=[1]", NULL, "can't be cut from 0 to n + 1" },
        { QN_OP_SLICE, "f32[n]", "start=[n] limit=[n-1] stride=[1]", NULL, "can't be cut from n to n - 1" },
        { QN_OP_SLICE, "f32[10]", "start=[-1] limit=[3] stride=[1]", NULL, "can't be cut from -1 to 3" },
        { QN_OP_SLICE, "f32[10]", "start=[0] limit=[3] stride=[0]", NULL, "stride 0; expected at least 1" },
        { QN_OP_SLICE, "f32[10]", "start=[0,0] limit=[3] stride=[1]", NULL,
          "start has 2 entries; expected 1" },

        { QN_OP_PAD, "f32[n,4] f32[]", "low=[1,0] high=[m,-1] interior=[0,1]", "f32[n+m+1, 6]", NULL },
        { QN_OP_PAD, "f32[n] f32[]", "low=[0] high=[0] interior=[1]", "f32[max(2*n-1, 0)]", NULL },
        { QN_OP_PAD, "f32[0] f32[]", "low=[0] high=[2] interior=[3]", "f32[2]", NULL },
        { QN_OP_PAD, "f32[4] f32[]", "low=[-5] high=[0] interior=[0]", NULL, "result dim 0 would be -1" },
        { QN_OP_PAD, "f32[4] f64[]", "low=[0] high=[0] interior=[0]", NULL, "operand 1 is f64[]" },
        { QN_OP_PAD, "f32[4] f32[1]", "low=[0] high=[0] interior=[0]", NULL, "expected rank 0" },
        { QN_OP_PAD, "f32[4] f32[]", "low=[0] high=[0] interior=[9223372036854775807]", NULL, "interior" },

        { QN_OP_CONCATENATE, "f32[n,2] f32[m,2] f32[1,2]", "axis=0", "f32[n+m+1, 2]", NULL },
        { QN_OP_CONCATENATE, "f32[n,2] f32[m,3]", "axis=0", NULL,
          "operand 1 is f32[m, 3]; expected f32[m, 2]" },
        { QN_OP_CONCATENATE, "f32[] f32[]", "axis=0", NULL, "there are no axes" },
        { QN_OP_CONCATENATE, "", "axis=0", NULL, "0 operands; expected at least 1" },

        { QN_OP_GATHER_PACKED, "f32[n,2,m,4] f32[n,1,m,4]", "lanes=[0,11,-1,3]", "f32[n, 1, m, 4]", NULL },
        { QN_OP_GATHER_PACKED, "i8[1,2,3]", "lanes=[5,4,3,2,1,0]", "i8[1, 2, 3]", NULL },
        { QN_OP_GATHER_PACKED, "f32[1,2,3]", "lanes=[]", "f32[1, 0, 3]", NULL },
        { QN_OP_GATHER_PACKED, "f32[1,2,3]", "lanes=[0,1]", NULL, "2 lanes don't fill blocks of 3" },
        { QN_OP_GATHER_PACKED, "f32[1,2,3]", "lanes=[0,1,6]", NULL, "lanes has 6; the operands have 6" },
        { QN_OP_GATHER_PACKED, "f32[1,2,3]", "lanes=[0,1,-2]", NULL, "lanes has -2" },
        { QN_OP_GATHER_PACKED, "f32[1,2]", "lanes=[0,1]", NULL, "expected [N, B, spatial…, c]" },
        { QN_OP_GATHER_PACKED, "f32[1,2,n]", "lanes=[0,1]", NULL, "expected [N, B, spatial…, c]" },
        { QN_OP_GATHER_PACKED, "f32[1,n,3]", "lanes=[0,1,2]", NULL, "expected a number of blocks" },
        { QN_OP_GATHER_PACKED, "f32[1,2,5,3] f32[1,2,4,3]", "lanes=[0,1,2]", NULL,
          "operand 1 is f32[1, 2, 4, 3]; expected f32[1, 2, 5, 3]" },
        { QN_OP_GATHER_PACKED, "f32[1,2,3] f16[1,2,3]", "lanes=[0,1,2]", NULL, "operand 1 is f16[1, 2, 3]" },
        { QN_OP_GATHER_PACKED, "", "lanes=[0,1,2]", NULL, "0 operands; expected at least 1" },

        { QN_OP_REVERSE, "f32[n,2]", "axes=[1,0]", "f32[n, 2]", NULL },
        { QN_OP_REVERSE, "f32[n,2]", "axes=[2]", NULL, "axes has 2; expected 0 to 1" },

        { QN_OP_DYNAMIC_SLICE, "f32[n,8] i64[] i64[]", "dims=[1,p]", "f32[1, p]", NULL },
        { QN_OP_DYNAMIC_SLICE, "f32[n,8] i64[] i64[]", "dims=[1,9]", NULL, "a slice of 9 along axis 1" },
        { QN_OP_DYNAMIC_SLICE, "f32[n] i64[]", "dims=[n+1]", NULL, "a slice of n + 1 along axis 0" },
        { QN_OP_DYNAMIC_SLICE, "f32[n,8] i64[]", "dims=[1,1]", NULL,
          "1 start indices; expected one per axis, 2" },
        { QN_OP_DYNAMIC_SLICE, "f32[n] i32[]", "dims=[1]", NULL, "operand 1 is i32[]; expected i64" },
        { QN_OP_DYNAMIC_UPDATE_SLICE, "f32[n,8] f32[1,8] i64[] i64[]", "", "f32[n, 8]", NULL },
        { QN_OP_DYNAMIC_UPDATE_SLICE, "f32[n,8] f32[1,9] i64[] i64[]", "", NULL,
          "a slice of 9 along axis 1" },
        { QN_OP_DYNAMIC_UPDATE_SLICE, "f32[8] i8[1] i64[]", "", NULL, "operand 1 is i8[1]" },
    };
    CHECK_ROWS(rows);
}

static void gathering(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_GATHER, "f32[n,3,4] i32[m,2]", "axis=1", "f32[n, m, 2, 4]", NULL },
        { QN_OP_GATHER, "f32[5] i64[]", "axis=0", "f32[]", NULL },
        { QN_OP_GATHER, "f32[5] i16[]", "axis=0", NULL, "expected i32 or i64 indices" },
        { QN_OP_GATHER, "f32[1,1,1,1,1,1,1,1,1] i64[1,1,1,1,1,1,1,1,1]", "axis=0", NULL, "rank 17" },
        { QN_OP_GATHER_ND, "f32[2,3,4] i64[n,2]", "batch_dims=0", "f32[n, 4]", NULL },
        { QN_OP_GATHER_ND, "f32[n,3,4] i64[n,5,1]", "batch_dims=1", "f32[n, 5, 4]", NULL },
        { QN_OP_GATHER_ND, "f32[2,3] i64[n,3]", "batch_dims=0", NULL, "3 coordinates for f32[2, 3]" },
        { QN_OP_GATHER_ND, "f32[2,3] i64[n,m]", "batch_dims=0", NULL, "expected a constant last dim" },
        { QN_OP_GATHER_ND, "f32[n,3] i64[m,1]", "batch_dims=1", NULL, "batch dim 0 differs" },
        { QN_OP_GATHER_ND, "f32[2] i64[2]", "batch_dims=1", NULL, "batch_dims is 1" },
        { QN_OP_GATHER_ELEMENTS, "f32[n,4] i64[n,9]", "axis=1", "f32[n, 9]", NULL },
        { QN_OP_GATHER_ELEMENTS, "f32[3,4] i64[4,4]", "axis=1", NULL,
          "are larger than f32[3, 4] along axis 0" },
        { QN_OP_SCATTER_ND, "f32[n,3,4] i64[m,1] f32[m,3,4]", "kind=sum", "f32[n, 3, 4]", NULL },
        { QN_OP_SCATTER_ND, "f32[n,3,4] i64[m,1] f32[m,3]", "kind=set", NULL, "expected f32[m, 3, 4]" },
        { QN_OP_SCATTER_ND, "bool[4] i64[2,1] bool[2]", "kind=sum", NULL, "kind sum does not combine bool" },
        { QN_OP_SCATTER_ND, "bool[4] i64[2,1] bool[2]", "kind=max", "bool[4]", NULL },
        { QN_OP_SCATTER_ELEMENTS, "f32[n,4] i64[n,2] f32[n,2]", "axis=1 kind=set", "f32[n, 4]", NULL },
        { QN_OP_SCATTER_ELEMENTS, "f32[n,4] i64[n,2] f32[n,4]", "axis=1 kind=set", NULL,
          "expected f32[n, 2]" },
    };
    CHECK_ROWS(rows);
}

#define WINDOW "window=[1,3] stride=[1,2] dilation=[1,1] low=[0,1] high=[0,1]"

static void reductions(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_REDUCE, "f32[n,3,m]", "axes=[0,2] kind=sum", "f32[3]", NULL },
        { QN_OP_REDUCE, "bool[n]", "axes=[0] kind=max", "bool[]", NULL },
        { QN_OP_REDUCE, "bool[n]", "axes=[0] kind=sum", NULL, "kind sum does not reduce bool[n]" },
        { QN_OP_REDUCE, "f32[n]", "axes=[0] kind=set", NULL, "kind set does not reduce" },
        { QN_OP_REDUCE, "f32[n,m]", "axes=[1,0] kind=sum", NULL, "axes must be distinct and ascending" },
        { QN_OP_ARG_REDUCE, "f32[n,3]", "axis=1 kind=max last=1", "i64[n]", NULL },
        { QN_OP_ARG_REDUCE, "f32[n,3]", "axis=1 kind=sum", NULL, "kind is sum; expected max or min" },
        { QN_OP_ARG_REDUCE, "f32[n,0]", "axis=1 kind=max", NULL, "axis 1 of f32[n, 0] is empty" },
        { QN_OP_REDUCE_WINDOW, "f32[n,10]", "kind=max " WINDOW, "f32[n, 5]", NULL },
        { QN_OP_REDUCE_WINDOW, "f32[2,n]", "kind=max " WINDOW, "f32[2, floordiv(n + 1, 2)]", NULL },
        { QN_OP_REDUCE_WINDOW, "f32[0,10]", "kind=max " WINDOW, "f32[0, 5]", NULL },
        { QN_OP_REDUCE_WINDOW, "f32[2,0]", "kind=max " WINDOW, NULL,
          "along axis 1 the window reaches over 3" },
        { QN_OP_REDUCE_WINDOW, "f32[2,9]", "kind=set " WINDOW, NULL, "kind set" },
        { QN_OP_REDUCE_WINDOW, "f32[9]", "kind=sum window=[0] stride=[1] dilation=[1] low=[0] high=[0]", NULL,
          "window has 0; expected at least 1" },
        { QN_OP_REDUCE_WINDOW, "f32[9]", "kind=sum window=[2] stride=[1] dilation=[1] low=[n] high=[0]", NULL,
          "low has n; expected numbers" },
        { QN_OP_SELECT_AND_SCATTER, "f32[n,10] f32[n,5]", WINDOW, "f32[n, 10]", NULL },
        { QN_OP_SELECT_AND_SCATTER, "f32[n,10] f32[n,6]", WINDOW, NULL, "expected f32[n, 5]" },
        { QN_OP_CUMULATIVE, "f32[n,3]", "axis=0 kind=prod reverse=1", "f32[n, 3]", NULL },
        { QN_OP_CUMULATIVE, "f32[n,3]", "axis=0 kind=set", NULL, "kind set does not accumulate" },
    };
    CHECK_ROWS(rows);
}

#define MATMUL "x_batch=[] y_batch=[] x_contract=[1] y_contract=[0]"
#define BATCHED "x_batch=[0] y_batch=[0] x_contract=[2] y_contract=[1]"
#define CONV1(groups, stride, low, high, x_dilation, w_dilation)                                            \
    "groups=" groups " stride=[" stride "] low=[" low "] high=[" high "] x_dilation=[" x_dilation "] w_dil" \
    "ation=[" w_dilation "]"

/* low = high = padding */
#define PACKED1(groups, channels, stride, padding, w_dilation)                                            \
    "groups=" groups " channels=" channels " stride=[" stride "] low=[" padding "] high=[" padding "] w_" \
    "dilation=[" w_dilation "]"

static void contractions(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_DOT_GENERAL, "f32[n,4] f32[4,m]", MATMUL, "f32[n, m]", NULL },
        { QN_OP_MATMUL_PACKED, "f32[p,n,4] f32[p,3,4,32]", "batch_dims=1 dims=[70]", "f32[p, n, 70]", NULL },
        { QN_OP_MATMUL_PACKED, "f32[p,n,4] f32[3,4,32]", "batch_dims=0 dims=[96]", "f32[p, n, 96]", NULL },
        { QN_OP_MATMUL_PACKED, "f32[n,4] f32[3,4,32]", "batch_dims=0 dims=[97]", NULL,
          "it has no 97 columns" },
        { QN_OP_MATMUL_PACKED, "f32[n,4] f32[3,5,32]", "batch_dims=0 dims=[96]", NULL,
          "expected [batch…, m…, K] and [batch…, panels, K, width]" },
        { QN_OP_DOT_GENERAL, "f32[p,n,4] f32[p,4,m]", BATCHED, "f32[p, n, m]", NULL },
        { QN_OP_DOT_GENERAL, "f16[2,4] f16[4,3]", "dtype=f32 " MATMUL, "f32[2, 3]", NULL },
        { QN_OP_DOT_GENERAL, "i8[2,4] u8[4,3]", "dtype=i32 " MATMUL, "i32[2, 3]", NULL },
        { QN_OP_DOT_GENERAL, "i8[2,4] u8[4,3]", MATMUL, NULL, "operands of i8 and u8 don't give i8" },
        { QN_OP_DOT_GENERAL, "f32[2,4] f32[4,3]", "dtype=f16 " MATMUL, NULL, "f32 and f32 don't give f16" },
        { QN_OP_DOT_GENERAL, "f32[n,m] f32[n,3]", MATMUL, NULL,
          "contracted axes 1 of f32[n, m] and 0 of f32[n, 3] differ" },
        { QN_OP_DOT_GENERAL, "f32[p,n,4] f32[n,4,m]", BATCHED, NULL, "batch axes 0" },
        { QN_OP_DOT_GENERAL, "f32[2,4] f32[4,3]", "x_batch=[1] y_batch=[0] x_contract=[1] y_contract=[0]",
          NULL, "axis 1 is both a batch and a contracted axis" },
        { QN_OP_DOT_GENERAL, "f32[2,4] f32[4,3]", "x_batch=[] y_batch=[] x_contract=[1] y_contract=[]", NULL,
          "1 and 0 contracted axes" },

        { QN_OP_CONVOLUTION, "f32[n,4,32] f32[8,2,3]", CONV1("2", "2", "1", "1", "1", "1"), "f32[n, 8, 16]",
          NULL },
        { QN_OP_CONVOLUTION, "f32[1,4,n] f32[8,4,3]", CONV1("1", "1", "2", "2", "1", "2"), "f32[1, 8, n]",
          NULL },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[8,4,3]", CONV1("1", "1", "2", "2", "2", "1"), "f32[1, 8, 11]",
          NULL },
        { QN_OP_CONVOLUTION, "f32[1,4,0] f32[8,4,3]", CONV1("1", "1", "2", "2", "2", "1"), "f32[1, 8, 2]",
          NULL },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[8,3,3]", CONV1("1", "1", "0", "0", "1", "1"), NULL,
          "channels don't match in 1 group(s)" },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[7,2,3]", CONV1("2", "1", "0", "0", "1", "1"), NULL,
          "don't divide into 2 groups" },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[8,4,3]", CONV1("0", "1", "0", "0", "1", "1"), NULL,
          "groups has 0" },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[8,4,6]", CONV1("1", "1", "0", "0", "1", "1"), NULL,
          "along axis 2 the window reaches over 6 elements" },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[8,4,0]", CONV1("1", "1", "0", "0", "1", "1"), NULL,
          "its window is empty" },
        { QN_OP_CONVOLUTION, "f32[1,4,5] f32[8,4,3]", CONV1("1", "1", "n", "0", "1", "1"), NULL,
          "low has n; expected numbers" },
        { QN_OP_CONVOLUTION, "f32[1,4] f32[8,4]",
          "groups=1 stride=[] low=[] high=[] x_dilation=[] w_dilation=[]", NULL,
          "expected [N, C, spatial…]" },

        { QN_OP_CONV_PACKED, "f32[n,2,32,16] f32[4,1,3,16,8]", PACKED1("2", "16", "2", "1", "1"),
          "f32[n, 4, 16, 8]", NULL },
        { QN_OP_CONV_PACKED, "f32[n,3,32,1] f32[4,3,3,1,16]", PACKED1("1", "3", "1", "0", "2"),
          "f32[n, 4, 28, 16]", NULL },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[2,1,3,1,8]", PACKED1("16", "1", "1", "1", "1"),
          "f32[1, 2, 8, 8]", NULL },
        { QN_OP_CONV_PACKED, "f32[1,1,8,1] f32[2,1,3,1,8]", PACKED1("1", "1", "1", "1", "1"),
          "f32[1, 2, 8, 8]", NULL },
        { QN_OP_CONV_PACKED, "f32[n,2,8,8] f32[4,1,3,4,8]", PACKED1("4", "4", "1", "1", "1"),
          "f32[n, 4, 8, 8]", NULL },
        { QN_OP_CONV_PACKED, "f32[n,3,8,8] f32[4,1,3,12,8]",
          PACKED1("2", "12", "1", "1", "1") " out_channels=15", "f32[n, 4, 8, 8]", NULL },
        { QN_OP_CONV_PACKED, "f32[n,2,32,16] f32[4,2,3,16,8]",
          PACKED1("1", "32", "1", "1", "1") " out_channels=25", "f32[n, 4, 32, 8]", NULL },
        { QN_OP_CONV_PACKED, "f32[n,2,32,16] f32[4,2,3,16,8]",
          PACKED1("1", "32", "1", "1", "1") " out_channels=33", NULL, "it makes no 33 channels" },
        { QN_OP_CONV_PACKED, "f32[n,2,32,16] f32[4,2,3,16,8]",
          PACKED1("1", "32", "1", "1", "1") " out_channels=0", NULL, "out_channels" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[4,1,3,12,8]",
          PACKED1("2", "12", "1", "1", "1") " out_channels=15", NULL, "blocks don't match in 2 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,3,8,8] f32[3,1,3,12,8]",
          PACKED1("2", "12", "1", "1", "1") " out_channels=15", NULL, "blocks don't match in 2 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[2,1,3,2,8]", PACKED1("4", "4", "1", "1", "1"), NULL,
          "blocks don't match in 4 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[1,1,3,1,8]", PACKED1("16", "1", "1", "1", "1"), NULL,
          "blocks don't match in 16 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,9] f32[2,1,3,6,8]", PACKED1("3", "6", "1", "1", "1"), NULL,
          "blocks don't match in 3 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[2,2,3,1,8]", PACKED1("16", "1", "1", "1", "1"), NULL,
          "blocks don't match in 16 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[2,2,3,4,8]", PACKED1("1", "8", "1", "1", "1"), NULL,
          "blocks don't match in 1 group(s)" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[2,2,3,8,8]", PACKED1("1", "17", "1", "1", "1"), NULL,
          "it has no 17 channels" },
        { QN_OP_CONV_PACKED, "f32[1,2,8,8] f32[2,2,11,8,8]", PACKED1("1", "16", "1", "1", "1"), NULL,
          "the window reaches over 11 elements" },
        { QN_OP_CONV_PACKED, "f32[1,2,8] f32[2,2,8,8]",
          "groups=1 channels=1 stride=[] low=[] high=[] w_dilation=[]", NULL,
          "expected [N, B, spatial…, c]" },
        { QN_OP_CONV_WINOGRAD, "f32[n,2,8,9,8] f32[3,6,6,16,16]", "low=[1,1] high=[1,0]",
          "f32[n, 6, 8, 8, 8]", NULL },
        { QN_OP_CONV_WINOGRAD, "f32[1,1,2,3,8] f32[1,4,4,5,8]", "low=[1,0] high=[0,0]", "f32[1, 1, 1, 1, 8]",
          NULL },
        { QN_OP_CONV_WINOGRAD, "f32[1,1,9,9,8] f32[1,5,5,5,8]", "low=[1,1] high=[1,1]", NULL,
          "with t = 4 or 6" },
        { QN_OP_CONV_WINOGRAD, "f32[1,1,9,9,8] f32[1,4,4,5,12]", "low=[1,1] high=[1,1]", NULL,
          "panels are no whole blocks" },
        { QN_OP_CONV_WINOGRAD, "f32[1,1,9,9,8] f32[1,4,4,9,8]", "low=[1,1] high=[1,1]", NULL,
          "it has not so many channels" },
        { QN_OP_CONV_WINOGRAD, "f32[1,1,1,9,8] f32[1,4,4,8,8]", "low=[1,1] high=[0,1]", NULL,
          "the window reaches over 3 elements" },
        { QN_OP_CONV_WINOGRAD, "f32[1,1,n,9,8] f32[1,4,4,8,8]", "low=[0,1] high=[0,1]",
          "f32[1, 1, n - 2, 9, 8]", NULL },
    };
    CHECK_ROWS(rows);
}

static void order_and_random(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_SORT, "f32[n,3] i64[n,3]", "axis=1 descending=1", "f32[n, 3] i64[n, 3]", NULL },
        { QN_OP_SORT, "f32[n,3] i64[n,2]", "axis=1", NULL, "operand 1 is i64[n, 2]; expected i64[n, 3]" },
        { QN_OP_TOP_K, "f32[n,9]", "axis=1 k=[p] largest=1", "f32[n, p] i64[n, p]", NULL },
        { QN_OP_TOP_K, "f32[n,9]", "axis=1 k=[10]", NULL, "k is 10 for f32[n, 9] along axis 1" },
        { QN_OP_TOP_K, "f32[n]", "axis=0 k=[n+1]", NULL, "k is n + 1" },
        { QN_OP_NON_ZERO, "f32[n,3]", "symbol=[count]", "i64[2, count]", NULL },
        { QN_OP_NON_ZERO, "f32[n,3]", "symbol=[count+1]", NULL, "symbol is count + 1; expected a symbol" },
        { QN_OP_EXTENT, "i64[]", "limit=[2*n] symbol=[count]", "i64[]", NULL },
        { QN_OP_EXTENT, "i64[]", "limit=[n] symbol=[7]", NULL, "symbol is 7; expected a symbol" },
        { QN_OP_EXTENT, "i64[]", "limit=[-1] symbol=[count]", NULL, "count, of at most -1, may be negative" },
        { QN_OP_EXTENT, "i64[1]", "limit=[n] symbol=[count]", NULL, "operand 0 is i64[1]; expected" },
        { QN_OP_EXTENT, "i32[]", "limit=[n] symbol=[count]", NULL, "operand 0 is i32[]; expected i64" },
        { QN_OP_REQUIRE, "i64[]", "symbol=[count]", "i64[]", NULL },
        { QN_OP_REQUIRE, "i64[]", "symbol=[1]", NULL, "symbol is 1; expected a symbol that may be 0 and 1" },
        { QN_OP_REQUIRE, "i32[]", "symbol=[count]", NULL, "operand 0 is i32[]; expected i64" },
        { QN_OP_REQUIRE, "i64[1]", "symbol=[count]", NULL, "operand 0 is i64[1]; expected" },
        { QN_OP_SUPPRESS, "f16[b,3,n] f32[b,n,4] i64[] f32[]", "k=[9]", "i64[b, 3, 9]", NULL },
        { QN_OP_SUPPRESS, "f16[b,3,n] f32[b,n,4] i64[] f32[] f16[]", "k=[n] centre=1", "i64[b, 3, n]", NULL },
        { QN_OP_SUPPRESS, "f32[3,n] f32[b,n,4] i64[] f32[]", "k=[9]", NULL,
          "operand 0 is f32[3, n]; expected rank 3" },
        { QN_OP_SUPPRESS, "f32[b,3,n] f32[b,4,n] i64[] f32[]", "k=[9]", NULL,
          "operand 1 is f32[b, 4, n]; expected f32[b, n, 4]" },
        { QN_OP_SUPPRESS, "f32[b,3,n] i32[b,n,4] i64[] i32[]", "k=[9]", NULL,
          "boxes are i32[b, n, 4]; expected floats" },
        { QN_OP_SUPPRESS, "f32[b,3,n] f32[b,n,4] i32[] f32[]", "k=[9]", NULL,
          "operand 2 is i32[]; expected i64" },
        { QN_OP_SUPPRESS, "f32[b,3,n] f32[b,n,4] i64[1] f32[]", "k=[9]", NULL,
          "operand 2 is i64[1]; expected rank 0" },
        { QN_OP_SUPPRESS, "f32[b,3,n] f16[b,n,4] i64[] f32[]", "k=[9]", NULL,
          "operand 3 is f32[]; expected f16" },
        { QN_OP_SUPPRESS, "f16[b,3,n] f32[b,n,4] i64[] f32[] f32[]", "k=[9]", NULL,
          "operand 4 is f32[]; expected f16" },
        { QN_OP_SUPPRESS, "f32[b,3,n] f32[b,n,4] i64[] f32[]", "k=[-1]", NULL, "k is -1" },
        { QN_OP_RANDOM_BITS, "u64[2] u64[]", "dims=[n,4]", "u32[n, 4]", NULL },
        { QN_OP_RANDOM_BITS, "u64[3] u64[]", "dims=[n,4]", NULL, "operand 0 is u64[3]; expected u64[2]" },
        { QN_OP_RANDOM_BITS, "u64[2] u32[]", "dims=[n,4]", NULL, "operand 1 is u32[]; expected u64" },
    };
    CHECK_ROWS(rows);
}

static void composites(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_SOFTMAX, "f32[n,3]", "axis=1", "f32[n, 3]", NULL },
        { QN_OP_SOFTMAX, "f32[n,3]", "axis=-1", NULL, "axis is -1; expected 0 to 1" },
        { QN_OP_LOG_SOFTMAX, "f16[n,3]", "axis=0", "f16[n, 3]", NULL },
        { QN_OP_LOG_SOFTMAX, "i32[n,3]", "axis=0", NULL, "takes floats" },
        { QN_OP_LAYER_NORM, "f32[n,3,4] f32[3,4] f32[3,4]", "axis=1 epsilon=1e-5", "f32[n, 3, 4]", NULL },
        { QN_OP_LAYER_NORM, "f32[n,3,4] f32[4] f32[4]", "axis=1 epsilon=1e-5", NULL, "expected f32[3, 4]" },
        { QN_OP_LAYER_NORM, "f32[n,3]", "axis=1 epsilon=1e-5", NULL, "1 operands; expected 2 to 3" },
        { QN_OP_RMS_NORM, "f32[n,4] f32[4]", "axis=1 epsilon=1e-5", "f32[n, 4]", NULL },
        { QN_OP_RMS_NORM, "f32[n,4] i32[4]", "axis=1 epsilon=1e-5", NULL,
          "operand 1 is i32[4]; expected floats" },
        { QN_OP_GROUP_NORM, "f16[n,6,m] f32[6] f64[6]", "epsilon=1e-5 groups=3", "f16[n, 6, m]", NULL },
        { QN_OP_GROUP_NORM, "f32[n,4*p] f32[4*p] f32[4*p]", "epsilon=1e-5 groups=4", "f32[n, 4*p]", NULL },
        { QN_OP_GROUP_NORM, "f32[n,6] f32[6] f32[6]", "epsilon=1e-5 groups=4", NULL,
          "6 channels don't divide into 4 groups" },
        { QN_OP_GROUP_NORM, "f32[n,p] f32[p] f32[p]", "epsilon=1e-5 groups=2", "f32[n, p]", NULL },
        { QN_OP_GROUP_NORM, "f32[n,6] f32[6] f32[6]", "epsilon=1e-5 groups=0", NULL, "into 0 groups" },
        { QN_OP_GROUP_NORM, "f32[n,6] f32[6] f32[3]", "epsilon=1e-5 groups=3", NULL,
          "operand 2 is f32[3]; expected f32[6]" },
        { QN_OP_GROUP_NORM, "f32[6] f32[6] f32[6]", "epsilon=1e-5 groups=3", NULL,
          "expected [batch, channels, …]" },
        { QN_OP_BATCH_NORM, "f16[n,3,m] f32[3] f32[3] f32[3] f64[3]", "epsilon=1e-5 momentum=0.9",
          "f16[n, 3, m] f32[3] f64[3]", NULL },
        { QN_OP_BATCH_NORM, "f32[n,3] f32[3] f32[2] f32[3] f32[3]", "epsilon=1e-5 momentum=0.9", NULL,
          "operand 2 is f32[2]; expected f32[3]" },
        { QN_OP_BATCH_NORM, "f32[3] f32[3] f32[3] f32[3] f32[3]", "epsilon=1e-5 momentum=0.9", NULL,
          "expected [batch, channels, …]" },
        { QN_OP_DROPOUT, "f32[n,3] u64[2] u64[]", "ratio=0.5 training=1", "f32[n, 3] bool[n, 3]", NULL },
        { QN_OP_DROPOUT, "f32[n,3] u64[2] u64[]", "ratio=1.5", NULL, "ratio is 1.5; expected 0 to 1" },
        { QN_OP_DROPOUT, "f32[n,3] u64[3] u64[]", "ratio=0.5", NULL, "operand 1 is u64[3]" },
        { QN_OP_ATTENTION, "f32[n,8,m,64] f32[n,2,9,64] f32[n,2,9,32]", "scale=0.125 causal=1",
          "f32[n, 8, m, 32]", NULL },
        { QN_OP_ATTENTION, "f32[n,4*p,m,64] f32[n,p,9,64] f32[n,p,9,32] f32[1,1,m,9]", "scale=0.125",
          "f32[n, 4*p, m, 32]", NULL },
        { QN_OP_ATTENTION, "f32[n,8,m,64] f32[n,3,9,64] f32[n,3,9,32]", "scale=0.125", NULL,
          "8 query heads don't divide over 3 key heads" },
        { QN_OP_ATTENTION, "f32[n,8,m,64] f32[n,8,9,64] f32[n,8,8,32]", "scale=0.125", NULL, "operand 2 is" },
        { QN_OP_ATTENTION, "f32[n,8,m,64] f32[n,8,9,64] f32[n,8,9,32] f32[1,1,m,8]", "scale=0.125", NULL,
          "the mask is f32[1, 1, m, 8]" },
        { QN_OP_ATTENTION, "f32[n,8,m,64] f32[n,8,9,64] f32[n,8,9,32] bool[n,1,1,9]", "scale=0.125",
          "f32[n, 8, m, 32]", NULL },
        { QN_OP_ATTENTION, "f32[n,8,m,64] f32[n,8,9,64] f32[n,8,9,32] i32[n,1,1,9]", "scale=0.125", NULL,
          "operand 3 is" },
        { QN_OP_ATTENTION_GRAD, "f32[n,8,m,64] f32[n,2,9,64] f32[n,2,9,32] f32[n,8,m,32] bool[n,1,1,9]",
          "scale=0.125 causal=1", "f32[n, 8, m, 64] f32[n, 2, 9, 64] f32[n, 2, 9, 32]", NULL },
        { QN_OP_ATTENTION_GRAD, "f32[n,8,m,64] f32[n,2,9,64] f32[n,2,9,32] f32[n,8,m,64]", "scale=0.125",
          NULL, "operand 3 is" },
        { QN_OP_ATTENTION_GRAD, "f32[n,8,m,64] f32[n,2,9,64] f32[n,2,9,32] f32[n,8,m,32] f32[1,1,m,8]",
          "scale=0.125", NULL, "the mask is f32[1, 1, m, 8]" },
        { QN_OP_ATTENTION_PACKED, "f32[n,8,m,64] f32[n,2,3,64,32] f32[n,2,70,48]",
          "scale=0.125 dims=[40] heads_last=1", "f32[n, m, 8, 40]", NULL },
        { QN_OP_ATTENTION_PACKED, "f32[n,8,m,64] f32[n,2,3,64,32] f32[n,2,97,48]", "scale=0.125 dims=[40]",
          NULL, "the panels of k, f32[n, 2, 3, 64, 32], don't hold the 97 keys of v" },
        { QN_OP_ATTENTION_PACKED, "f32[n,8,m,64] f32[n,2,3,64,32] f32[n,2,70,48]", "scale=0.125 dims=[49]",
          NULL, "dims is not how many of the 48 columns of v there are" },
        { QN_OP_CROSS_ENTROPY, "f32[n,10] i64[n]", "", "f32[n]", NULL },
        { QN_OP_CROSS_ENTROPY, "f32[n,10] i64[m]", "", NULL, "operand 1 is i64[m]; expected i64[n]" },
        { QN_OP_QUANTIZE, "f32[n,10] f32[] i8[]", "dtype=i8", "i8[n, 10]", NULL },
        { QN_OP_QUANTIZE, "f32[n,10] f32[10] u8[10]", "axis=1 dtype=u8", "u8[n, 10]", NULL },
        { QN_OP_QUANTIZE, "f32[n,10] f32[n,3] u8[n,3]", "axis=1 block=4 dtype=u8", "u8[n, 10]", NULL },
        { QN_OP_QUANTIZE, "f32[n,10] f32[10] i8[10]", "dtype=i8", NULL,
          "operand 1 is f32[10]; expected rank 0" },
        { QN_OP_QUANTIZE, "f32[n,10] f32[] u8[]", "dtype=i8", NULL, "operand 2 is u8[]; expected i8" },
        { QN_OP_QUANTIZE, "f32[n,10] f32[] i8[]", "block=4 dtype=i8", NULL, "block is 4; expected" },
        { QN_OP_QUANTIZE, "f32[n] f32[n] i8[n]", "axis=0 block=0 dtype=i8", NULL, "block is 0; expected" },
        { QN_OP_DEQUANTIZE, "i8[n,10] f16[10] i8[10]", "axis=1", "f16[n, 10]", NULL },
        { QN_OP_DEQUANTIZE, "i8[n,10] i32[] i8[]", "", NULL, "the scale is i32[]; expected floats" },
        { QN_OP_LSTM, "f32[n,m,6] f32[20,6] f32[20,5] f32[20] f32[m,5] f32[m,5]", "",
          "f32[n, m, 5] f32[m, 5] f32[m, 5]", NULL },
        { QN_OP_LSTM, "f32[n,m,6] f32[20,6] f32[20,4] f32[20] f32[m,5] f32[m,5]", "", NULL,
          "operand 2 is f32[20, 4]; expected f32[20, 5]" },
    };
    CHECK_ROWS(rows);
}

/* ---- control: bodies are made of their types; an output is an input of its type, so none is computed ---- */

static qn_graph *body(const char *inputs, const char *outputs)
{
    qn_graph *region = qn_region_new(module);
    for (const char *at = inputs; *at; at += *at == ' ')
        qn_graph_add_input(region, NULL, parse_type(&at), QN_ROLE_INPUT);
    for (const char *at = outputs; *at; at += *at == ' ') {
        const qn_type type = parse_type(&at);
        qn_value *value = QN_NEW(module->arena, qn_value);
        value->type = type;
        qn_graph_add_output(region, value, NULL, -1);
    }
    return region;
}

typedef struct control_row {
    row r;
    const char *bodies[4]; /* inputs and outputs of each region; NULL: no more */
} control_row;

static void control(void **state)
{
    (void)state;
    static const control_row rows[] = {
        { { QN_OP_IF, "bool[] f32[n]", "", "f32[n] i64[]", NULL },
          { "f32[n]", "f32[n] i64[]", "f32[n]", "f32[n] i64[]" } },
        { { QN_OP_IF, "bool[]", "", "", NULL }, { "", "", "", "" } },
        { { QN_OP_IF, "bool[] f32[n]", "", NULL, "result 0 is f32[n] in one branch and f32[m] in the other" },
          { "f32[n]", "f32[n]", "f32[n]", "f32[m]" } },
        { { QN_OP_IF, "bool[] f32[n]", "", NULL,
            "the second region takes f32[m] as value 0; it is given f32[n]" },
          { "f32[n]", "f32[n]", "f32[m]", "f32[n]" } },
        { { QN_OP_IF, "bool[] f32[n]", "", NULL, "the second region gives 0 values; expected 1" },
          { "f32[n]", "f32[n]", "f32[n]", "" } },
        { { QN_OP_IF, "bool[1]", "", NULL, "operand 0 is bool[1]; expected rank 0" }, { "", "", "", "" } },
        { { QN_OP_IF, "bool[]", "", NULL, "1 regions; expected 2" }, { "", "" } },

        { { QN_OP_WHILE, "i64[] f32[n] f32[n]", "n_carried=2", "i64[] f32[n]", NULL },
          { "i64[] f32[n] f32[n]", "bool[]", "i64[] f32[n] f32[n]", "i64[] f32[n]" } },
        { { QN_OP_WHILE, "i64[]", "n_carried=1", NULL, "the condition is i64[]; expected bool[]" },
          { "i64[]", "i64[]", "i64[]", "i64[]" } },
        { { QN_OP_WHILE, "f32[n]", "n_carried=1", NULL,
            "carried value 0 starts as f32[n] and continues as f32[m]" },
          { "f32[n]", "bool[]", "f32[n]", "f32[m]" } },
        { { QN_OP_WHILE, "f32[n]", "n_carried=2", NULL, "n_carried is 2; expected 0 to 1" },
          { "f32[n]", "bool[]", "f32[n]", "f32[n]" } },

        { { QN_OP_SCAN, "f32[3] f32[n,4] f32[7]", "length=[n] n_carried=1 n_scanned=1", "f32[3] i8[n, 5]",
            NULL },
          { "f32[3] f32[4] f32[7]", "f32[3] i8[5]" } },
        { { QN_OP_SCAN, "f32[3]", "length=[4] n_carried=1 n_scanned=0 reverse=1", "f32[3] f32[4, 3] i64[4]",
            NULL },
          { "f32[3]", "f32[3] f32[3] i64[]" } },
        { { QN_OP_SCAN, "f32[m,4]", "length=[n] n_carried=0 n_scanned=1", NULL,
            "operand 0 is f32[m, 4]; expected n slices along axis 0" },
          { "f32[4]", "f32[4]" } },
        { { QN_OP_SCAN, "f32[n,4]", "length=[n] n_carried=0 n_scanned=1", NULL, "it is given f32[4]" },
          { "f32[n,4]", "f32[4]" } },
        { { QN_OP_SCAN, "f32[3]", "length=[n] n_carried=1 n_scanned=0", NULL,
            "the body gives 0 values; 1 are" },
          { "f32[3]", "" } },
        { { QN_OP_SCAN, "f32[]", "length=[n] n_carried=0 n_scanned=1", NULL, "expected n slices" },
          { "f32[]", "" } },
        { { QN_OP_SCAN, "f32[]", "length=[n,n] n_carried=1 n_scanned=0", NULL, "length has 2 entries" },
          { "f32[]", "f32[]" } },
        { { QN_OP_SCAN, "f32[]", "length=[n] n_carried=0 n_scanned=2", NULL,
            "n_scanned is 2; expected 0 to 1" },
          { "f32[]", "f32[]" } },

        { { QN_OP_NEG, "f32[]", "", NULL, "1 regions; expected none" }, { "", "" } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const row *r = &rows[i].r;
        qn_value *operands[8];
        qn_attr attrs[8];
        qn_graph *regions[2];
        int n_operands = 0, n_attrs = 0, n_regions = 0;
        for (const char *at = r->operands; *at; at += *at == ' ')
            operands[n_operands++] = qn_graph_add_input(graph, NULL, parse_type(&at), QN_ROLE_INPUT);
        for (const char *at = r->attrs; *at; at += *at == ' ')
            attrs[n_attrs++] = parse_attr(&at);
        for (int b = 0; b < 4 && rows[i].bodies[b]; b += 2)
            regions[n_regions++] = body(rows[i].bodies[b], rows[i].bodies[b + 1]);
        qn_diags diags;
        qn_diags_init(&diags, module->arena);
        const qn_node *node = qn_node_new(graph, NULL, r->op, n_operands, operands, n_attrs, attrs, n_regions,
                                          regions, NULL, &diags);
        expect(node, r->op, r->results, r->message, &diags);
    }

    qn_graph *callee = qn_function_new(module, "f");
    const char *type = "f32[n]";
    qn_graph_add_output(callee, qn_graph_add_input(callee, "x", parse_type(&type), QN_ROLE_INPUT), "y", -1);
    static const row calls[] = {
        { QN_OP_CALL, "f32[n]", "function=f", "f32[n]", NULL },
        { QN_OP_CALL, "f32[n]", "function=g", NULL, "there is no function @g" },
        { QN_OP_CALL, "f32[m]", "function=f", NULL, "argument 0 is f32[m]; @f takes f32[n]" },
        { QN_OP_CALL, "", "function=f", NULL, "0 arguments; @f takes 1" },
    };
    CHECK_ROWS(calls);
}

static void collectives(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_ALL_REDUCE, "f32[n,3]", "kind=mean", "f32[n, 3]", NULL },
        { QN_OP_ALL_REDUCE, "bool[n]", "kind=max", "bool[n]", NULL },
        { QN_OP_ALL_REDUCE, "bool[n]", "kind=sum", NULL, "kind sum does not combine bool[n]" },
        { QN_OP_ALL_REDUCE, "i32[n]", "kind=mean", NULL, "kind mean does not combine i32[n]" },
        { QN_OP_ALL_REDUCE, "f32[n]", "kind=prod", NULL, "kind is prod; expected sum, mean, max or min" },
        { QN_OP_REDUCE, "f32[n]", "axes=[0] kind=mean", NULL, "kind mean does not reduce f32[n]" },
        { QN_OP_CUMULATIVE, "f32[n]", "axis=0 kind=mean", NULL, "kind mean does not accumulate" },
        { QN_OP_ALL_GATHER, "f32[n,3]", "ranks=4", "f32[4*n, 3]", NULL },
        { QN_OP_ALL_GATHER, "f32[]", "ranks=4", NULL, "a scalar has no axis 0" },
        { QN_OP_ALL_GATHER, "f32[n]", "ranks=0", NULL, "ranks is 0; expected at least 1" },
        { QN_OP_REDUCE_SCATTER, "f32[12,n]", "kind=sum ranks=4", "f32[3, n]", NULL },
        { QN_OP_REDUCE_SCATTER, "f32[10]", "kind=sum ranks=4", NULL,
          "axis 0 of f32[10] is no multiple of 4 ranks" },
        { QN_OP_REDUCE_SCATTER, "f32[n]", "kind=sum ranks=4", NULL,
          "axis 0 of f32[n] is no multiple of 4 ranks" },
        { QN_OP_BROADCAST_RANK, "i64[n]", "root=3", "i64[n]", NULL },
        { QN_OP_BROADCAST_RANK, "i64[n]", "root=-1", NULL, "root is -1" },
        { QN_OP_RANK, "", "", "i64[]", NULL },
        { QN_OP_RANK, "f32[n]", "", NULL, "1 operands; expected 0" },
    };
    CHECK_ROWS(rows);
}

static void text(void **state)
{
    (void)state;
    static const row rows[] = {
        { QN_OP_TEXT_CONCAT, "i64[n,2] i64[n,2]", "", "i64[n, 2]", NULL },
        { QN_OP_TEXT_CONCAT, "i64[n] i64[m]", "", NULL, "operand 1 is i64[m]; expected i64[n]" },
        { QN_OP_TEXT_CONCAT, "i32[n] i32[n]", "", NULL, "operand 0 is i32[n]; expected i64" },
        { QN_OP_TEXT_CASE, "i64[n]", "", "i64[n]", NULL },
        { QN_OP_TEXT_CASE, "i64[n]", "upper=true", "i64[n]", NULL },
        { QN_OP_TEXT_CASE, "u64[n]", "", NULL, "operand 0 is u64[n]; expected i64" },
        { QN_OP_TEXT_COUNT, "i64[n]", "most=-1 separator=-1", "i64[n]", NULL },
        { QN_OP_TEXT_COUNT, "i64[n]", "most=-1 separator=0", NULL,
          "separator is 0; expected -1, or one of the module's 0 strings" },
        { QN_OP_TEXT_SPLIT, "i64[n]", "k=[m] most=1 separator=-1", "i64[n, m]", NULL },
        { QN_OP_TEXT_SPLIT, "i64[n]", "k=[2,3] most=1 separator=-1", NULL, "k has 2 entries; expected 1" },
        { QN_OP_TEXT_SPLIT, "i64[n]", "k=[-1] most=1 separator=-1", NULL, "k is -1; expected 0 or more" },
        { QN_OP_TEXT_SPLIT, "i64[n]", "k=[2] most=1 separator=-2", NULL, "separator is -2" },
        { QN_OP_TEXT_SPLIT, "i64[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "k=[2] most=1 separator=-1", NULL,
          "has no room for another axis" },
        { QN_OP_TEXT_MATCH, "i64[n] u16[2,257]", "", "bool[n]", NULL },
        { QN_OP_TEXT_MATCH, "i64[n] u16[1,257]", "", NULL,
          "the table is u16[1, 257]; expected u16[2 or more, 257]" },
        { QN_OP_TEXT_MATCH, "i64[n] u16[2,256]", "", NULL, "the table is u16[2, 256]" },
        { QN_OP_TEXT_MATCH, "i64[n] i16[2,257]", "", NULL, "operand 1 is i16[2, 257]; expected u16" },
        { QN_OP_TEXT_PARSE, "i64[n]", "dtype=f32", "f32[n]", NULL },
        { QN_OP_TEXT_PARSE, "i64[n]", "dtype=i8", NULL, "dtype is i8; expected i64, u64, f32 or f64" },
        { QN_OP_TEXT_PRINT, "f64[n]", "", "i64[n]", NULL },
        { QN_OP_TEXT_PRINT, "i32[n]", "", NULL, "operand 0 is i32[n]; expected i64, u64, f32 or f64" },
    };
    CHECK_ROWS(rows);
}

static void mistakes_name_the_place(void **state)
{
    (void)state;
    qn_diags diags;
    qn_diags_init(&diags, module->arena);
    const qn_loc loc = { .file = "m.onnx", .node = "/conv1", .op = "Conv, opset 18" };
    assert_null(qn_node_new(graph, NULL, QN_OP_ADD, 0, NULL, 0, NULL, 0, NULL, &loc, &diags));
    assert_string_equal(qn_diags_text(&diags, module->arena),
                        "m.onnx: /conv1 (Conv, opset 18): add: 0 operands; expected 2");
    assert_null(graph->first);
}

/* Runs last: no op is without a case of each sort. */
static void every_op_is_tested(void **state)
{
    (void)state;
    for (int op = 0; op < QN_N_OPS; op++)
        if (!accepted[op] || !refused[op])
            fail_msg("no %s case of %s", accepted[op] ? "bad" : "good", qn_ops[op].name);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(leaves),
        TEST(elementwise),
        TEST(movement),
        TEST(gathering),
        TEST(reductions),
        TEST(contractions),
        TEST(composites),
        TEST(order_and_random),
        TEST(control),
        TEST(collectives),
        TEST(text),
        TEST(mistakes_name_the_place),
        TEST(every_op_is_tested),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
