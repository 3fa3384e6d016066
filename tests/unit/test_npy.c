/* .npy and .npz: what is written is read back, what NumPy wrote is read, what is damaged is refused and never trips. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver/npy.h"
#include "driver/output.h"
#include "tests/support/folder.h"

static void write_bytes(const char *path, const void *data, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    fclose(file);
}

static void same_array(const quern_array *a, const quern_array *b, size_t bytes)
{
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->rank, b->rank);
    for (int i = 0; i < a->rank; i++)
        assert_int_equal(a->dims[i], b->dims[i]);
    assert_memory_equal(a->data, b->data, bytes);
}

static void reads_what_it_writes(void **state)
{
    fixture *f = *state;
    int64_t dims[] = { 2, 3, 1 };
    unsigned char data[48];
    for (int i = 0; i < 48; i++)
        data[i] = (unsigned char)(i * 37);
    qn_npy many[QUERN_F64 + 1];
    for (int dtype = QUERN_BOOL; dtype <= QUERN_F64; dtype++) {
        quern_array array = { .dtype = dtype, .rank = dtype % 4, .dims = dims, .data = data };
        many[dtype] = (qn_npy){ .name = quern_dtype_text(dtype), .array = array };
        const char *path = in_folder(f, "one.npy");
        assert_int_equal(qn_npy_write(path, &array, &f->diags), QUERN_OK);
        int n;
        qn_npy *back;
        assert_int_equal(qn_npy_read(path, f->arena, &n, &back, &f->diags), QUERN_OK);
        assert_int_equal(n, 1);
        assert_string_equal(back->name, "");
        same_array(&back->array, &array, back->bytes);
    }
    const char *path = in_folder(f, "many.npz");
    assert_int_equal(qn_npz_write(path, QUERN_F64, many + 1, &f->diags), QUERN_OK);
    int n;
    qn_npy *back;
    assert_int_equal(qn_npy_read(path, f->arena, &n, &back, &f->diags), QUERN_OK);
    assert_int_equal(n, QUERN_F64);
    for (int i = 0; i < n; i++) {
        assert_string_equal(back[i].name, many[i + 1].name);
        same_array(&back[i].array, &many[i + 1].array, back[i].bytes);
    }
    assert_int_equal(f->diags.n_errors, 0);
}

/* The types' names are NumPy's, and a type that it doesn't know is raw bytes. */
static void names_types_as_numpy_does(void **state)
{
    fixture *f = *state;
    static const struct {
        quern_dtype dtype;
        const char *begin;
    } cases[] = { { QUERN_BOOL, "{'descr': '|b1', " },    { QUERN_I8, "{'descr': '|i1', " },
                  { QUERN_U8, "{'descr': '|u1', " },      { QUERN_U64, "{'descr': '<u8', " },
                  { QUERN_F32, "{'descr': '<f4', " },     { QUERN_BF16, "{'descr': '<V2', " },
                  { QUERN_F8E4M3FN, "{'descr': '|V1', " } };
    const int64_t data = 0;
    const char *path = in_folder(f, "one.npy");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64] = "";
        const quern_array array = { .dtype = cases[i].dtype, .data = (void *)&data };
        assert_int_equal(qn_npy_write(path, &array, &f->diags), QUERN_OK);
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        assert_int_equal(fread(text, 1, 10, file), 10); /* what comes before the header */
        assert_int_equal(fread(text, 1, sizeof text - 1, file), sizeof text - 1);
        fclose(file);
        assert_memory_equal(text, cases[i].begin, strlen(cases[i].begin));
    }
}

/* numpy.savez_compressed(a=arange(6, dtype='>i2').reshape(2, 3), f=asfortranarray(arange(6, dtype='f4').reshape(2, 3))) */
static const char by_numpy[] =
    "\120\113\003\004\055\000\000\000\010\000\000\000\041\000\220\274\335\302\377\377\377\377\377\377"
    "\377\377\005\000\024\000\141\056\156\160\171\001\000\020\000\214\000\000\000\000\000\000\000\122"
    "\000\000\000\000\000\000\000\233\354\027\352\033\020\311\310\120\306\120\255\236\222\132\234\134"
    "\244\156\245\240\156\227\151\244\256\243\240\236\226\137\124\122\224\230\027\237\137\224\222\012"
    "\022\167\113\314\051\116\005\212\027\147\044\026\244\002\371\032\106\072\012\306\232\072\012\265"
    "\012\144\003\056\006\006\006\106\006\046\006\146\006\026\006\126\000\120\113\003\004\055\000\000"
    "\000\010\000\000\000\041\000\316\054\340\323\377\377\377\377\377\377\377\377\005\000\024\000\146"
    "\056\156\160\171\001\000\020\000\230\000\000\000\000\000\000\000\126\000\000\000\000\000\000\000"
    "\233\354\027\352\033\020\311\310\120\306\120\255\236\222\132\234\134\244\156\245\240\156\223\146"
    "\242\256\243\240\236\226\137\124\122\224\230\027\237\137\224\222\012\022\017\051\052\115\005\012"
    "\027\147\044\026\244\002\271\032\106\072\012\306\232\072\012\265\012\344\003\056\006\060\160\160"
    "\140\140\150\260\007\142\007\020\207\201\141\201\003\000\120\113\001\002\055\003\055\000\000\000"
    "\010\000\000\000\041\000\220\274\335\302\122\000\000\000\214\000\000\000\005\000\000\000\000\000"
    "\000\000\000\000\000\000\200\001\000\000\000\000\141\056\156\160\171\120\113\001\002\055\003\055"
    "\000\000\000\010\000\000\000\041\000\316\054\340\323\126\000\000\000\230\000\000\000\005\000\000"
    "\000\000\000\000\000\000\000\000\000\200\001\211\000\000\000\146\056\156\160\171\120\113\005\006"
    "\000\000\000\000\002\000\002\000\146\000\000\000\026\001\000\000\000\000";

static void reads_what_numpy_writes(void **state)
{
    fixture *f = *state;
    const char *path = in_folder(f, "numpy.npz");
    write_bytes(path, by_numpy, sizeof by_numpy - 1);
    int n;
    qn_npy *arrays;
    assert_int_equal(qn_npy_read(path, f->arena, &n, &arrays, &f->diags), QUERN_OK);
    assert_int_equal(n, 2);
    assert_string_equal(arrays[0].name, "a");
    same_array(&arrays[0].array,
               &(quern_array){ .dtype = QUERN_I16,
                               .rank = 2,
                               .dims = (int64_t[]){ 2, 3 },
                               .data = (int16_t[]){ 0, 1, 2, 3, 4, 5 } },
               12);
    assert_string_equal(arrays[1].name, "f");
    same_array(&arrays[1].array,
               &(quern_array){ .dtype = QUERN_F32,
                               .rank = 2,
                               .dims = (int64_t[]){ 2, 3 },
                               .data = (float[]){ 0, 1, 2, 3, 4, 5 } },
               24);
}

static void survives_damage(void **state)
{
    fixture *f = *state;
    size_t size = sizeof by_numpy - 1;
    char *copy = malloc(size);
    const char *path = in_folder(f, "damaged.npz");
    int n;
    qn_npy *arrays;
    for (size_t i = 0; i < size; i++) { /* cut off */
        write_bytes(path, by_numpy, i);
        assert_int_not_equal(qn_npy_read(path, f->arena, &n, &arrays, &f->diags), QUERN_OK);
    }
    for (size_t i = 0; i < size; i++) /* one byte wrong: some do not matter */
        for (int bit = 0; bit < 8; bit += 7) {
            memcpy(copy, by_numpy, size);
            copy[i] = (char)(copy[i] ^ 1 << bit);
            write_bytes(path, copy, size);
            (void)!qn_npy_read(path, f->arena, &n, &arrays, &f->diags);
        }
    free(copy);
}

static void refuses_with_reasons(void **state)
{
    fixture *f = *state;
    int n;
    qn_npy *arrays;
    const char *header =
        "\x93NUMPY\1\0\x46\0{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }            \n";
    const char *path = in_folder(f, "complex.npy");
    write_bytes(path, header, 10 + 0x46);
    assert_int_equal(qn_npy_read(path, f->arena, &n, &arrays, &f->diags), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(f->diags.last->text, "elements of type '<c8' are not supported"));
    header = "\x93NUMPY\1\0\x4a\0{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807,)}\n";
    write_bytes(path, header, 10 + 0x4a);
    assert_int_equal(qn_npy_read(path, f->arena, &n, &arrays, &f->diags), QUERN_ERROR_ARGUMENT);
    char archive[sizeof by_numpy - 1]; /* an entry is said to have more bytes than the archive */
    memcpy(archive, by_numpy, sizeof archive);
    char *entry = memmem(archive, sizeof archive, "PK\001\002", 4);
    assert_non_null(entry);
    entry[22] = 1;
    write_bytes(path, archive, sizeof archive);
    assert_int_equal(qn_npy_read(path, f->arena, &n, &arrays, &f->diags), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(f->diags.last->text, "the archive ends inside it"));
    assert_int_equal(qn_npy_read(in_folder(f, "absent.npy"), f->arena, &n, &arrays, &f->diags),
                     QUERN_ERROR_IO);
    assert_int_equal(qn_npy_read(f->folder, f->arena, &n, &arrays, &f->diags), QUERN_ERROR_IO);
}

static void leaves_nothing_behind(void **state)
{
    fixture *f = *state;
    float x = 1;
    quern_array array = { .dtype = QUERN_F32, .rank = 0, .data = &x };
    assert_int_equal(qn_npy_write(in_folder(f, "no/folder.npy"), &array, &f->diags), QUERN_ERROR_IO);
    assert_int_equal(qn_npy_write("/dev/full", &array, &f->diags), QUERN_ERROR_IO);
    assert_non_null(strstr(f->diags.last->text, "No space left on device"));
    assert_int_equal(access("/dev/full", F_OK), 0);
    qn_output output;
    const char *path = in_folder(f, "given-up");
    assert_int_equal(qn_output_open(&output, path, &f->diags), QUERN_OK);
    fputs("half of it", output.file);
    qn_output_discard(&output);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(rmdir(f->folder), 0); /* it is empty */
    assert_int_equal(mkdir(f->folder, 0700), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_what_it_writes, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(names_types_as_numpy_does, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(reads_what_numpy_writes, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(survives_damage, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(refuses_with_reasons, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(leaves_nothing_behind, setup_folder, teardown_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
