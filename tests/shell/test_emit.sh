#!/usr/bin/env bash
# Compiled models in programs that know nothing of Quern: shared, static, in C and C++, two at once, with states and
# with side weights; and what happens where files cannot be written or nothing can link.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
only() { [ "$(echo $(ls))" = "$*" ] || fail "expected the files '$*', found '$(echo $(ls))'"; }
cc=(cc -std=c11 -Wall -Wextra -Wpedantic -Werror)

truth='0 xor 0 = 0
0 xor 1 = 1
1 xor 0 = 1
1 xor 1 = 0'
cp "$source"/examples/embed/{main.c,xor.qn} .

# ---- the example: shared, archive, object; with the same header

must "$quern" compile xor.qn -o xor.so
must "${cc[@]}" main.c ./xor.so -o shared
must "$quern" compile xor.qn -o xor.a
must "${cc[@]}" main.c xor.a -o archive
must "$quern" compile xor.qn -o xor.o
must "${cc[@]}" main.c xor.o -o object
for program in shared archive object; do
    [ "$(./$program)" = "$truth" ] || fail "$program prints $(./$program)"
done
[ "$(nm -D --defined-only xor.so | awk '{ print $3 }')" = xor_query ] || fail "xor.so exports $(nm -D --defined-only xor.so)"
[ -z "$(nm -u xor.so)" ] || fail "xor.so needs $(nm -u xor.so)"
if readelf -d xor.so | grep -q NEEDED; then fail "xor.so needs a library"; fi
expect 0 '^y f32\[1\]' "$quern" run xor.so

# ---- an ONNX model inside a C program, which says what it takes digits for

must "$quern" compile "$source"/examples/digits/digits.onnx -o digits.so
must "${cc[@]}" -D_GNU_SOURCE "$source"/examples/digits/main.c -I. ./digits.so -o digits
./digits >digits.txt || fail "digits gets more than one of ten digits wrong"
grep -q '^10 of 10 right' digits.txt || fail "digits prints $(tail -n 1 digits.txt)"
rm -f digits digits.*

# ---- C++, and two models in one program, both ways

cat >scale.qn <<'END'
graph @main(%x: f32[3]) -> (y: f32[3]) {
  %c = constant [2, 3, 4] : f32[3]
  %0 = mul %x, %c : f32[3]
  return %0
}
END
cat >two.cc <<'END'
#include "xor.h"
#include "twice.h"
#include <cstdio>
alignas(64) static unsigned char workspace[TWICE_WORKSPACE_BYTES], more[1 << 16];
int main()
{
    float x[TWICE_INPUT_X_ELEMENTS] = { 1, 1, 0.5f }, y[TWICE_OUTPUT_Y_ELEMENTS], z[1];
    twice_io io = { x, y };
    xor_io xio = { x, z, { 1 } };
    if (xor_workspace_bytes(&xio.dims) > (int64_t)sizeof more || twice_infer(&io, workspace, nullptr) ||
        xor_infer(&xio, more, nullptr))
        return 1;
    printf("%g %g %g %g\n", y[0], y[1], y[2], z[0]);
}
END
must "$quern" compile scale.qn -o libscale.so --prefix twice --header twice.h
must "$quern" compile scale.qn -o scale.o --prefix twice --header twice.h
if command -v c++ >/dev/null; then
    must c++ -std=c++11 -Wall -Wextra -Werror two.cc ./xor.so ./libscale.so -o two
    must c++ -std=c++11 -Wall -Wextra -Werror two.cc xor.o scale.o -o two-static
    for program in two two-static; do
        [ "$(./$program)" = "2 3 2 0" ] || fail "$program prints $(./$program)"
    done
fi
# its only model is found under another name; a library without one is none
expect 0 '^y f32' "$quern" run libscale.so
must "${CC:-cc}" -shared -x c /dev/null -o empty.so
expect 1 'no symbol empty_query' "$quern" run empty.so

# ---- names that would end a comment, are words of C or C++, are the header's own, or are alike in upper case

cat >odd.qn <<'END'
dims "n*/ int x; /*": 1..8, m: 1..4

graph @query(%X: f32["n*/ int x; /*", 4], %x: f32[2, 3], %NULL: f32[m], %"a*/b": f32[2], %nullptr: f32[2]) -> ("x\n*/": f32["n*/ int x; /*", 4]) {
  %0 = relu %X : f32["n*/ int x; /*", 4]
  return %0
}
graph @"a*/\nb"(%x: f32[3]) -> (y: f32[3]) {
  %0 = relu %x : f32[3]
  return %0
}
graph @"a__ b"(%x: f32[3]) -> (y: f32[3]) {
  %0 = relu %x : f32[3]
  return %0
}
END
cat >odd.c <<'END'
#include "odd.h"
int main(void)
{
    static float x[8], y[8];
    static const float two[2], more[6];
    odd_query__io io = { .X = x, .x = more, .NULL_ = x, .a__b = two, .nullptr_ = two, .x___ = y, .dims = { 2, 1 } };
    x[0] = 5;
    return odd_query(QUERN_ABI_VERSION)->n_entries != 3 || odd_query_(&io, NULL, NULL) || y[0] != 5 ||
           ODD_QUERY__INPUT_X_2_ELEMENTS != 6;
}
END
must "$quern" compile odd.qn -o odd.so
must "${cc[@]}" odd.c ./odd.so -o odd
must ./odd
command -v c++ >/dev/null && must c++ -std=c++20 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ odd.h

# entries that are called as what the header has for another entry, or alike in upper case
: >alike.qn
for name in same_io same same_dims same_limits same_workspace_bytes same_input_x_elements same_output_y_elements SAME_IO Same; do
    cat >>alike.qn <<END
graph @$name(%x: f32[n], %c: i64[]) -> (y: f32[2, k]) {
  %0 = extent %c {limit = [n], symbol = [k]} : i64[]
  %1 = iota {axis = 1, dims = [2, k], dtype = f32} : f32[2, k]
  return %1
}
END
done
sed 's/^graph @same_io.*/graph @input_x_elements(%x: f32[n], %c: i64[]) -> (y: f32[2, k]) {/; 6,$d' alike.qn >alone.qn
for name in alike alone; do
    sed -i '1i dims n: 0..64, k: 0..50' $name.qn
    must "$quern" compile $name.qn -o $name.so
    must "${cc[@]}" -fsyntax-only -x c $name.h
done

# entries that are called as symbols of the object are
for name in query query_0 weights model; do
    sed "s/@main/@$name/" scale.qn >named.qn
    for cpu in native x86-64-v3,x86-64-v4; do
        [ "$(uname -m)" = x86_64 ] || [ $cpu = native ] || continue
        must "$quern" compile named.qn --cpu $cpu -o named.so
        expect 0 '^y f32\[3\]' "$quern" run named.so
    done
done

# ---- on bare metal: the compiler's own headers are enough, and a linker script says where weights lie

cat >bare.c <<'END'
#include "twice.h"
_Alignas(64) static unsigned char workspace[TWICE_WORKSPACE_BYTES];
int twice(const float *x, float *y)
{
    return twice_infer(&(twice_io){ x, y }, workspace, NULL);
}
END
must "${cc[@]}" -ffreestanding -nostdinc -isystem "$(dirname "$(cc -print-file-name=include/stddef.h)")" -c bare.c -o bare.o
cat >flash.c <<'END'
#include <stdio.h>
#include "twice.h"
int twice(const float *x, float *y);
int main(void)
{
    const float x[3] = { 1, 1, 0.5f };
    float y[3];
    const int status = twice(x, y);
    printf("%d %g %g %g\n", status, y[0], y[1], y[2]);
    return twice_query(QUERN_ABI_VERSION)->weights == (const void *)0x20000000 ? 0 : 1;
}
END
must "$quern" compile scale.qn -o twice.a
must "${cc[@]}" -no-pie flash.c bare.o twice.a \
    -Wl,-T,<(echo 'SECTIONS { .flash 0x20000000 : { *twice.a:twice_weights.o(.rodata) } } INSERT AFTER .bss;') -o flash
expect 0 '^0 2 3 2$' ./flash

# ---- states

cat >count.qn <<'END'
graph @add(%x: f32[2], %total: f32[2] state = [10, 20]) -> (now: f32[2] alias %total) {
  %0 = add %total, %x : f32[2]
  return %0
}
graph @read(%total: f32[2] state = [10, 20]) -> (half: f32[2]) {
  %c = constant splat 0.5 : f32[2]
  %0 = mul %total, %c : f32[2]
  return %0
}
END
cat >count.c <<'END'
#include <stdio.h>
#include "count.h"
static _Alignas(64) unsigned char workspace[COUNT_ADD_WORKSPACE_BYTES + COUNT_READ_WORKSPACE_BYTES];
int main(void)
{
    static count_state state;
    float x[2] = { 1, 2 }, half[2];
    count_add_io add = { .x = x };
    count_read_io read = { .half = half };
    count_init(&state);
    for (int i = 0; i < 3; i++)
        if (count_add(&add, &state, workspace, NULL))
            return 1;
    if (count_read(&read, &state, workspace, NULL))
        return 1;
    printf("%g %g\n", half[0], half[1]);
    return 0;
}
END
must "$quern" compile count.qn -o count.so
must "${cc[@]}" count.c ./count.so -o count
[ "$(./count)" = "6.5 13" ] || fail "count prints $(./count)"

# ---- weights beside the object

must "$quern" compile scale.qn -o side.so --weights side
expect 0 '^y f32\[3\]' "$quern" run side.so
"$quern" run scale.qn --seed 3 -o y.npy && expect 0 'as expected' "$quern" run side.so --seed 3 --expect y.npy
if python3 -c 'import safetensors' 2>/dev/null; then
    must python3 -c 'import safetensors.numpy as s; t = s.load_file("side.so.safetensors"); assert [2, 3, 4] in [list(x) for x in t.values()]'
fi
printf x >>side.so.safetensors
expect 1 'does not belong to side.so' "$quern" run side.so
rm side.so.safetensors
expect 1 'side.so.safetensors: the weights of side.so cannot be read: No such file' "$quern" run side.so

# ---- code to read, and the model as text

must "$quern" compile scale.qn -o scale.ll
grep -q 'define' scale.ll || fail "scale.ll has no functions"
must "$quern" compile scale.qn -o scale.s
grep -q 'twice_query\|scale_query' scale.s || fail "scale.s has no query function"
must "$quern" compile scale.qn -o copy.qn
must cmp <("$quern" opt scale.qn) <("$quern" opt copy.qn)

# ---- other machines

must "$quern" compile xor.qn -o arm.o --target aarch64-unknown-linux-gnu --cpu generic --header ""
readelf -h arm.o | grep -q AArch64 || fail "arm.o is not for AArch64"
must "$quern" compile xor.qn -o old.so --cpu x86-64-v3 --header ""
expect 1 "pdp11" "$quern" compile xor.qn -o pdp.o --target pdp11-dec-unix

# ---- what cannot be written leaves nothing

mkdir empty && cd empty || exit 1
expect 1 'no-folder/x.so: cannot be written' "$quern" compile ../xor.qn -o no-folder/x.so
expect 1 '/dev/full: cannot be written' "$quern" compile ../xor.qn -o /dev/full --emit llvm
expect 1 '/dev/full' "$quern" compile ../xor.qn -o x.so --header /dev/full
expect 1 'no-folder/x.h' "$quern" compile ../xor.qn -o x.so --header no-folder/x.h
expect 1 'no C identifier' "$quern" compile ../xor.qn -o x.so --prefix 3d
expect 1 "cannot emit 'exe'" "$quern" compile ../xor.qn -o x.exe --emit exe
expect 2 'where to' "$quern" compile ../xor.qn
expect 2 'what is x.exe to be' "$quern" compile ../xor.qn -o x.exe
expect 1 'Is a directory' "$quern" compile ../xor.qn -o .. --emit so
expect 1 'linker' env PATH=/nonexistent "$quern" compile ../xor.qn -o x.so
only
if [ "$(id -u)" -ne 0 ]; then
    mkdir -m 555 locked
    expect 1 'locked/x.so: cannot be written: Permission denied' "$quern" compile ../xor.qn -o locked/x.so
    rmdir locked
fi
must env PATH=/nonexistent "$quern" compile ../xor.qn -o x.a # an archive needs no linker
only x.a x.h

# what is no file stays what it is, and what a killed process has left goes
rm -f x.a x.h
mkfifo pipe
expect 1 'pipe: is a device or pipe, into which no object can be linked' "$quern" compile ../xor.qn --emit so -o pipe
[ -p pipe ] || fail "a pipe was replaced"
rm pipe
touch -d yesterday x.so.quern-abcdef
must "$quern" compile ../xor.qn -o x.so
only x.h x.so
[ -x x.so ] || fail "x.so cannot be executed"
cd ..

[ $n_failed -eq 0 ] || echo "$n_failed failed"
exit $((n_failed > 0))
