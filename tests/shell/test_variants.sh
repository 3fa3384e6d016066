#!/usr/bin/env bash
# Objects with code for several CPUs: this machine gets the best that it can run, an emulated one that has less gets less, one that
# has too little a status; all with the interpreter's results. Without qemu-user only this machine is tried.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
if [ "$(uname -m)" != x86_64 ]; then
    echo "skipped: for x86-64"
    exit 77
fi
emulated() { command -v qemu-x86_64 >/dev/null; }
has() { grep -qw "$1" /proc/cpuinfo; }

levels=x86-64-v3,x86-64-v4,sapphirerapids
here=x86-64-v3
if has avx512bw && has avx512dq && has avx512vl && has avx512cd; then here='x86-64-v4 $'; fi
if has amx_bf16 && has avx512_bf16; then here='.*amx-bf16'; fi
model=$source/examples/digits/digits.onnx
cc=(cc -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror)
must "${cc[@]}" -I "$source/include" "$source/tests/shell/object_host.c" -o host -ldl

# runs CPU COMMAND...: what it says it was compiled for; its results are the interpreter's
runs()
{
    local cpu=$1 output
    shift
    rm -rf out && mkdir out
    output=$("$@" 2>&1) || fail "'$*': $output"
    grep -qE "^x86_64-.* $cpu" <<<"$output" || fail "'$*' ran code for: $output"
    expect 0 'as expected' "$quern" run "$model" --target interp --input image=out/in_image.npy --expect logits=out/out_logits.npy
}

# ---- shared object and archive

must "$quern" compile "$model" --cpu $levels -o digits.so
[ "$(nm -D --defined-only digits.so | awk '{ print $3 }')" = digits_query ] || fail "digits.so exports more than its query function"
[ -z "$(nm -u digits.so)" ] || fail "digits.so needs $(nm -u digits.so)"
runs "$here" ./host out ./digits.so digits_query
must "$quern" compile "$model" --cpu $levels -o digits.a
must "${cc[@]}" -I "$source/include" -DQUERY=digits_query "$source/tests/shell/object_host.c" digits.a -static -o linked
runs "$here" ./linked out
expect 0 'logits' "$quern" run digits.so
expect 0 "^digits.so, compiled for x86_64.* x86-64-v3, x86-64-v4, x86-64-v4 .*amx-bf16; here ${here% \$}" "$quern" inspect digits.so
if emulated; then
    runs 'x86-64-v3 $' qemu-x86_64 -cpu Haswell ./host out ./digits.so digits_query
    runs 'x86-64-v3 $' qemu-x86_64 -cpu Haswell ./linked out
    expect 1 'status 9' qemu-x86_64 -cpu Nehalem ./linked out
    [ -n "${QUERN_SANITIZE-}" ] || # a sanitizer's memory is too large for the emulator
        expect 1 'digits.so cannot run here: it was compiled for x86_64-.* x86-64-v3, and this machine has no AVX2, FMA or F16C' \
            qemu-x86_64 -cpu Nehalem "$quern" run digits.so
fi

[ -n "${QUERN_SANITIZE-}" ] || ! emulated ||
    expect 0 '^digits.so, compiled for .*amx-bf16$' qemu-x86_64 -cpu Nehalem "$quern" inspect digits.so

# ---- one CPU is compared with the machine, too

# refused CPU LACKS: an object for it says so on an emulated Haswell
refused()
{
    must "$quern" compile "$model" --cpu "$1" -o digits.so
    emulated || return
    expect 1 "x86_64-.* $1: this machine has no $2" \
        qemu-x86_64 -cpu Haswell ./host out ./digits.so digits_query
    [ -n "${QUERN_SANITIZE-}" ] ||
        expect 1 "digits.so cannot run here: it was compiled for x86_64-.* $1, and this machine has no $2" \
            qemu-x86_64 -cpu Haswell "$quern" run digits.so
}
refused skylake-avx512 'AVX-512'
refused sapphirerapids 'AVX-512'
refused alderlake AVX_VNNI
if ! has avx_vnni; then # its file says what it is all the same
    expect 0 'digits.so cannot run here.* AVX_VNNI' "$quern" inspect digits.so
    expect 0 '  input  image f32\[batch, 64\]' "$quern" inspect digits.so
fi
if has avx512bw; then refused native 'AVX-512'; fi
must "$quern" compile "$model" --cpu haswell -o digits.so
runs 'haswell $' ./host out ./digits.so digits_query
if emulated; then
    runs 'haswell $' qemu-x86_64 -cpu Haswell ./host out ./digits.so digits_query
    expect 1 'this machine has no AVX2, FMA or F16C' qemu-x86_64 -cpu Nehalem ./host out ./digits.so digits_query
fi
must "$quern" compile "$model" -o digits.so # this machine's has all that it needs
runs '.*' ./host out ./digits.so digits_query

# ---- equal weights are there once; states and weights beside the object serve all

bytes() { stat -c %s "$1"; }
for cpus in x86-64-v3 x86-64-v4 x86-64-v4,znver4 x86-64-v3,x86-64-v4,znver4; do
    must "$quern" compile "$model" --cpu $cpus --weights side -o "$cpus.so" --prefix digits
done
[ "$(bytes x86-64-v4,znver4.so.safetensors)" = "$(bytes x86-64-v4.so.safetensors)" ] ||
    fail "the same weights are there twice"
[ "$(bytes x86-64-v3,x86-64-v4,znver4.so.safetensors)" -le \
    $(($(bytes x86-64-v3.so.safetensors) + $(bytes x86-64-v4.so.safetensors))) ] || fail "too many weights"
cp x86-64-v3,x86-64-v4,znver4.so digits.so && cp x86-64-v3,x86-64-v4,znver4.so.safetensors digits.so.safetensors
expect 0 'logits' "$quern" run digits.so

cat >count.qn <<'END_OF_MODEL'
graph @add(%x: f32[40], %total: f32[40] state = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]) -> (now: f32[40] alias %total) {
  %0 = exp %x : f32[40]
  %1 = add %total, %0 : f32[40]
  return %1
}
END_OF_MODEL
cat >count.c <<'END_OF_PROGRAM'
#include <stdio.h>
#include "count.h"
static _Alignas(64) unsigned char workspace[COUNT_WORKSPACE_BYTES];
int main(void)
{
    static count_state state;
    float x[40] = { 0 };
    count_io io = { .x = x };
    count_init(&state);
    if (count_add(&io, &state, workspace, NULL))
        return 1;
    printf("%g %g\n", state.total[0], state.total[39]);
    return 0;
}
END_OF_PROGRAM
must "$quern" compile count.qn --cpu $levels -o count.o
must "${cc[@]}" count.c count.o -static -o count
[ "$(./count)" = "2 41" ] || fail "count prints $(./count)"
if emulated; then
    [ "$(qemu-x86_64 -cpu Haswell ./count 2>/dev/null)" = "2 41" ] || fail "count prints something else with less vectors"
fi

# ---- what a user may get wrong

expect 1 "a list of CPUs cannot have 'haswell' there: it takes some of x86-64-v3, .*, in this order" \
    "$quern" compile "$model" --cpu x86-64-v3,haswell -o x.so
expect 1 "cannot have 'x86-64-v3' there" "$quern" compile "$model" --cpu x86-64-v4,x86-64-v3 -o x.so
expect 1 "cannot have '' there" "$quern" compile "$model" --cpu x86-64-v4, -o x.so
expect 1 'a list of CPUs .* is for shared objects, archives and objects' \
    "$quern" compile "$model" --cpu $levels -o x.ll
expect 1 "cannot have 'x86-64-v4' there: it takes some of generic" \
    "$quern" compile "$model" --target aarch64-linux-gnu --cpu generic,x86-64-v4 -o x.so
expect 1 "a list of CPUs .* is for files" "$quern" run "$model" --cpu $levels

[ $n_failed -eq 0 ] && echo "all is as expected"
exit $((n_failed > 0))
