/* Tensor data manipulation: what an introduction to tensors shows, with what each operation costs in memory.
 *
 * Each line says name, type, memory and values. `view` looks at the memory of another tensor, `new N` has N bytes of its own,
 * `in place` wrote to the memory that was there: all three are checked by address. tensors.py prints the same lines from
 * Python and compares the values with NumPy's; tests/python/test_systems.py compares the two. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "quern_tensor.h"

typedef enum memory { NEW, VIEW, IN_PLACE } memory;

static int n_wrong;

static void *storage(const quern_tensor *x)
{
    return quern_tensor_storage(x, NULL, NULL);
}

static void print_values(const quern_tensor *x)
{
    quern_tensor *flat = quern_tensor_reshape(x, QUERN_DIMS(-1));
    for (int64_t i = 0; flat && i < quern_tensor_elements(flat); i++) {
        double value;
        if (quern_tensor_item(quern_tensor_select(flat, 0, i), &value) == QUERN_OK)
            printf(" %.6g", value);
    }
}

/* `of`: the tensor whose memory x looks at, or must not look at. */
static quern_tensor *show(const char *name, quern_tensor *x, memory kind, const quern_tensor *of)
{
    if (!x) {
        fprintf(stderr, "%s: %s\n", name, quern_last_error());
        exit(1);
    }
    size_t bytes;
    quern_tensor_storage(x, &bytes, NULL);
    printf("%-24s %s[", name, quern_dtype_text(quern_tensor_dtype(x)));
    for (int i = 0; i < quern_tensor_rank(x); i++)
        printf("%s%lld", i ? ", " : "", (long long)quern_tensor_dims(x)[i]);
    if (kind == NEW)
        printf("] new %zu:", bytes);
    else
        printf("] %s:", kind == VIEW ? "view" : "in place");
    print_values(x);
    bool same = of && storage(x) == storage(of);
    bool right = kind == NEW    ? !same && bytes == (size_t)quern_tensor_elements(x) *
                                                        quern_dtype_size(quern_tensor_dtype(x))
                 : kind == VIEW ? same
                                : same && quern_tensor_data(x) == quern_tensor_data(of);
    n_wrong += !right;
    puts(right ? "" : "  WRONG: its memory is not that");
    return x;
}

/* After a call that writes to x. */
static void wrote(const char *name, int status, quern_tensor *x, const void *address)
{
    if (status || quern_tensor_data(x) != address) {
        fprintf(stderr, "%s: %s\n", name, status ? quern_last_error() : "the address has changed");
        exit(1);
    }
    show(name, x, IN_PLACE, x);
}

static quern_tensor *indices(int rank, const int64_t *dims, const int64_t *values)
{
    return quern_tensor_from(&(quern_array){ QUERN_I64, rank, dims, (void *)values });
}

static void making(void)
{
    show("arange", quern_tensor_arange(QUERN_F32, 0, 12, 1), NEW, NULL);
    show("zeros", quern_tensor_new(QUERN_F32, QUERN_DIMS(2, 3)), NEW, NULL);
    show("ones", quern_tensor_full(QUERN_F32, QUERN_DIMS(2, 3), 1), NEW, NULL);
    show("full", quern_tensor_full(QUERN_I32, QUERN_DIMS(2, 2), 7), NEW, NULL);
    show("eye", quern_tensor_eye(QUERN_F32, 3), NEW, NULL);
    show("randn", quern_tensor_randn(QUERN_F32, QUERN_DIMS(3), 1), NEW, NULL);
    show("uniform", quern_tensor_uniform(QUERN_F64, QUERN_DIMS(3), 1), NEW, NULL);
    float ours[] = { 2, 1, 4, 3 };
    quern_tensor *x =
        quern_tensor_wrap(&(quern_array){ QUERN_F32, 2, (const int64_t[]){ 2, 2 }, ours }, NULL, NULL, NULL);
    if (quern_tensor_data(x) != ours)
        n_wrong++;
    show("the program's memory", x, VIEW, x);
}

static void viewing(quern_tensor *x)
{
    show("reshape", quern_tensor_reshape(x, QUERN_DIMS(2, 6)), VIEW, x);
    show("reshape, one dim open", quern_tensor_reshape(x, QUERN_DIMS(-1, 3)), VIEW, x);
    quern_tensor *turned = show("transpose", quern_tensor_transpose(x, NULL), VIEW, x);
    show("transpose, row-major", quern_tensor_contiguous(turned), NEW, x);
    show("row", quern_tensor_select(x, 0, 1), VIEW, x);
    show("last row", quern_tensor_select(x, 0, -1), VIEW, x);
    show("column", quern_tensor_select(x, 1, 1), VIEW, x);
    show("rows 1 to 3", quern_tensor_slice(x, 0, 1, 3, 1), VIEW, x);
    show("every second column", quern_tensor_slice(x, 1, QUERN_ALL, QUERN_ALL, 2), VIEW, x);
    show("backwards", quern_tensor_slice(x, 0, QUERN_ALL, QUERN_ALL, -1), VIEW, x);
    show("repeated", quern_tensor_broadcast(quern_tensor_select(x, 0, 0), QUERN_DIMS(2, 4)), VIEW, x);
    show("copy", quern_tensor_copy(x), NEW, x);
    show("convert", quern_tensor_convert(x, QUERN_I64), NEW, x);
}

static void computing(quern_tensor *x, quern_tensor *y)
{
    show("x + y", quern_tensor_add(x, y), NEW, x);
    show("x - y", quern_tensor_sub(x, y), NEW, x);
    show("x * y", quern_tensor_mul(x, y), NEW, x);
    show("x / y", quern_tensor_div(x, y), NEW, x);
    show("x ** y", quern_tensor_pow(x, y), NEW, x);
    show("exp(-x)", quern_tensor_exp(quern_tensor_neg(x)), NEW, x);
    show("x == y", quern_tensor_equal(x, y), NEW, x);
    show("x > 5", quern_tensor_less(QUERN_WHOLE(5), x), NEW, x);
    show("where", quern_tensor_where(quern_tensor_less(x, y), x, y), NEW, x);
    quern_tensor *column = quern_tensor_arange(QUERN_F32, 0, 3, 1),
                 *row = quern_tensor_arange(QUERN_F32, 0, 2, 1);
    show("column + row", quern_tensor_add(quern_tensor_reshape(column, QUERN_DIMS(3, 1)), row), NEW, column);
    show("sum", quern_tensor_sum(x, QUERN_ALL_AXES, 0), NEW, x);
    show("sum of columns", quern_tensor_sum(x, QUERN_AXES(0), 0), NEW, x);
    show("mean of rows", quern_tensor_mean(x, QUERN_AXES(1), 1), NEW, x);
    show("max", quern_tensor_max(x, QUERN_ALL_AXES, 0), NEW, x);
    show("where rows are greatest", quern_tensor_arg("max", x, 1), NEW, x);
    show("running sums", quern_tensor_cumulative("sum", x, 1), NEW, x);
    show("x @ y transposed", quern_tensor_matmul(x, quern_tensor_transpose(y, NULL)), NEW, x);
}

static void choosing(quern_tensor *x, quern_tensor *y)
{
    const quern_tensor *both[] = { x, y };
    show("concatenate rows", quern_tensor_concatenate(2, both, 0), NEW, x);
    show("concatenate columns", quern_tensor_concatenate(2, both, 1), NEW, x);
    show("index_select rows",
         quern_tensor_index_select(x, 0, indices(QUERN_DIMS(2), (const int64_t[]){ 2, 0 })), NEW, x);
    show("index_select columns",
         quern_tensor_index_select(x, 1, indices(QUERN_DIMS(2), (const int64_t[]){ -1, 0 })), NEW, x);
    show("gather", quern_tensor_gather(x, 1, indices(QUERN_DIMS(3, 1), (const int64_t[]){ 3, 0, 2 })), NEW,
         x);
    show("masked_select", quern_tensor_masked_select(x, quern_tensor_less(QUERN_WHOLE(5), x)), NEW, x);
}

static void writing(quern_tensor *x, quern_tensor *y)
{
    const void *address = quern_tensor_data(x);
    wrote("x[:] = x + y", quern_tensor_assign(x, quern_tensor_add(x, y)), x, address);
    show("x += y", quern_tensor_elementwise("add", x, y, x), IN_PLACE, x);
    wrote("x[1] = 9", quern_tensor_assign(quern_tensor_select(x, 0, 1), QUERN_WHOLE(9)), x, address);
    wrote("x[0:2, :] = 12", quern_tensor_assign(quern_tensor_slice(x, 0, 0, 2, 1), QUERN_WHOLE(12)), x,
          address);
    quern_tensor *columns = indices(QUERN_DIMS(2), (const int64_t[]){ 3, 1 });
    wrote("x[:, [3, 1]] = [5, 6]", quern_tensor_put(x, 1, columns, quern_tensor_arange(QUERN_F32, 5, 7, 1)),
          x, address);
    quern_tensor *front = quern_tensor_slice(x, 1, 0, -1, 1),
                 *behind = quern_tensor_slice(x, 1, 1, QUERN_ALL, 1);
    wrote("x[:, 1:] = x[:, :-1]", quern_tensor_assign(behind, front), x, address);
}

/* Nothing moves between devices by itself. */
static void on_a_gpu(quern_tensor *x, quern_tensor *y)
{
    if (quern_device_count() == 0) {
        puts("on a GPU                 there is none here");
        return;
    }
    quern_tensor *there = show("to a GPU", quern_tensor_to(x, "cuda"), NEW, x);
    quern_tensor *y_there =
        show("transposed, to a GPU", quern_tensor_to(quern_tensor_transpose(y, NULL), "cuda"), NEW, y);
    show("where it is already", quern_tensor_to(there, "cuda"), VIEW, there);
    show("column, there", quern_tensor_select(there, 1, 1), VIEW, there);
    show("x @ y transposed, there", quern_tensor_matmul(there, y_there), NEW, there);
    show("x += 2.5, there", quern_tensor_elementwise("add", there, QUERN_REAL(2.5), there), IN_PLACE, there);
    show("back", quern_tensor_to(there, "cpu"), NEW, there);
}

int main(void)
{
    quern_scope *scope = quern_scope_begin();
    quern_tensor *x = quern_tensor_reshape(quern_tensor_arange(QUERN_F32, 0, 12, 1), QUERN_DIMS(3, 4));
    const float given[] = { 2, 1, 4, 3, 1, 2, 3, 4, 4, 3, 2, 1 };
    quern_tensor *y =
        quern_tensor_from(&(quern_array){ QUERN_F32, 2, (const int64_t[]){ 3, 4 }, (void *)given });
    making();
    viewing(x);
    computing(x, y);
    choosing(x, y);
    writing(x, y);
    on_a_gpu(x, y);
    quern_scope_end(scope);
    return n_wrong != 0;
}
