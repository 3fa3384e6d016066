#!/usr/bin/env bash
# Models compiled for AArch64, linked by a cross compiler into a C program that knows nothing of Quern, run by an emulator and
# compared with the reference interpreter. Skipped without the cross compiler or the emulator.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
gcc=aarch64-linux-gnu-gcc emulate="qemu-aarch64 -L /usr/aarch64-linux-gnu"
for program in $gcc qemu-aarch64; do
    if ! command -v $program >/dev/null; then
        echo "skipped: $program is missing (Debian and Ubuntu: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        exit 77
    fi
done

# ---- models

cp "$source"/examples/digits/digits.onnx mlp.onnx
cat >conv.qn <<'END_OF_MODEL'
graph @main(%x: f32[2, 3, 18, 15], %w: f32[20, 3, 3, 3], %u: f32[20, 1, 5, 5], %v: f32[9, 20, 3, 3]) -> (y: f32[2, 9, 18, 15]) {
  %0 = convolution %x, %w {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]} : f32[2, 20, 18, 15]
  %1 = relu %0 : f32[2, 20, 18, 15]
  %2 = convolution %1, %u {groups = 20, high = [2, 2], low = [2, 2], stride = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]} : f32[2, 20, 18, 15]
  %3 = convolution %2, %v {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]} : f32[2, 9, 18, 15]
  return %3
}
END_OF_MODEL
cat >softmax.qn <<'END_OF_MODEL'
dims n: 1..
graph @main(%x: f32[n, 301], %scale: f32[301]) -> (y: f32[n, 301], z: f32[n, 301]) {
  %0 = softmax %x {axis = 1} : f32[n, 301]
  %1 = layer_norm %x, %scale {axis = 1, epsilon = 1e-05} : f32[n, 301]
  return %0, %1
}
END_OF_MODEL
cat >attention.qn <<'END_OF_MODEL'
dims s: 1..
graph @main(%q: f32[2, 4, s, 16], %k: f32[2, 2, s, 16], %v: f32[2, 2, s, 16]) -> (y: f32[2, 4, s, 16]) {
  %0 = attention %q, %k, %v {causal = true, scale = 0.25} : f32[2, 4, s, 16]
  return %0
}
END_OF_MODEL
cat >ops.qn <<'END_OF_MODEL'
graph @main(%x: f32[7, 13], %d: f64[9], %h: f16[21], %i: i32[7, 13], %b: u8[37], %p: bool[7, 13], %at: i64[4]) -> (
    e: f32[7, 13], s: f32[7, 13], k: f32[7], l: f64[9], o: f16[21], n: i32[7, 13], m: i32[7, 13], c: u8[37], w: f32[37], g: f32[4, 13], t: f32[7, 13]) {
  %0 = exp %x : f32[7, 13]
  %1 = tanh %0 : f32[7, 13]
  %2 = erf %1 : f32[7, 13]
  %3 = sin %0 : f32[7, 13]
  %4 = reduce %3 {axes = [1], kind = max} : f32[7]
  %5 = log1p %d : f64[9]
  %6 = mul %h, %h : f16[21]
  %7 = sqrt %6 : f16[21]
  %8 = div %i, %i : i32[7, 13]
  %9 = cumulative %i {axis = 1, kind = sum} : i32[7, 13]
  %10 = mul %b, %b : u8[37]
  %11 = convert %b {dtype = f32} : f32[37]
  %12 = gather %x, %at {axis = 0} : f32[4, 13]
  %13 = select %p, %x, %2 : f32[7, 13]
  return %2, %3, %4, %5, %7, %8, %9, %10, %11, %12, %13
}
END_OF_MODEL

# Bytes of both kinds: products by each other, a convolution with a border that is no zero point, what a quantizer writes.
cat >bytes.qn <<'END_OF_MODEL'
graph @main(%a: u8[9, 70], %b: i8[70, 37], %c: i8[9, 70], %d: u8[70, 37], %e: u8[2, 5, 9, 11], %f: i8[24, 5, 3, 3], %g: f32[9, 70]) -> (
    m: i32[9, 37], n: i32[9, 37], o: i32[9, 37], p: i32[9, 37], q: i32[2, 24, 9, 11], r: i8[9, 37]) {
  %0 = constant 83 : u8[]
  %1 = constant 83 : i8[]
  %2 = broadcast %0 {axes = [], dims = [9, 70]} : u8[9, 70]
  %3 = mul %a, %2 : u8[9, 70]
  %4 = broadcast %1 {axes = [], dims = [70, 37]} : i8[70, 37]
  %5 = mul %b, %4 : i8[70, 37]
  %6 = broadcast %1 {axes = [], dims = [9, 70]} : i8[9, 70]
  %7 = mul %c, %6 : i8[9, 70]
  %8 = broadcast %0 {axes = [], dims = [70, 37]} : u8[70, 37]
  %9 = mul %d, %8 : u8[70, 37]
  %10 = dot_general %3, %5 {dtype = i32, x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : i32[9, 37]
  %11 = dot_general %7, %5 {dtype = i32, x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : i32[9, 37]
  %12 = dot_general %3, %9 {dtype = i32, x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : i32[9, 37]
  %13 = dot_general %7, %9 {dtype = i32, x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : i32[9, 37]
  %14 = broadcast %0 {axes = [], dims = [2, 5, 9, 11]} : u8[2, 5, 9, 11]
  %15 = mul %e, %14 : u8[2, 5, 9, 11]
  %16 = convert %15 {dtype = i32} : i32[2, 5, 9, 11]
  %17 = constant 83 : i32[]
  %18 = broadcast %17 {axes = [], dims = [2, 5, 9, 11]} : i32[2, 5, 9, 11]
  %19 = sub %16, %18 : i32[2, 5, 9, 11]
  %20 = broadcast %1 {axes = [], dims = [24, 5, 3, 3]} : i8[24, 5, 3, 3]
  %21 = mul %f, %20 : i8[24, 5, 3, 3]
  %22 = convert %21 {dtype = i32} : i32[24, 5, 3, 3]
  %23 = convolution %19, %22 {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]} : i32[2, 24, 9, 11]
  %24 = constant 0.5 : f32[]
  %25 = constant 3 : i8[]
  %26 = quantize %g, %24, %25 {dtype = i8} : i8[9, 70]
  %27 = dequantize %26, %24, %25 : f32[9, 70]
  %28 = constant 0 : i8[]
  %29 = dequantize %b, %24, %28 : f32[70, 37]
  %30 = dot_general %27, %29 {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[9, 37]
  %31 = quantize %30, %24, %25 {dtype = i8} : i8[9, 37]
  return %10, %11, %12, %13, %23, %31
}
END_OF_MODEL

# Constants that fold computes, and work enough for precision bf16; conversions alone are exact.
cat >pairs.qn <<'END_OF_MODEL'
graph @main(%x: f32[16, 512], %y: f32[1, 16, 20, 20]) -> (p: f32[16, 128], c: f32[1, 32, 16, 16], r: f32[16, 512]) {
  %0 = constant splat 0.37 : f32[512, 128]
  %1 = cumulative %0 {axis = 0, kind = sum} : f32[512, 128]
  %2 = cumulative %1 {axis = 1, kind = sum} : f32[512, 128]
  %3 = sin %2 : f32[512, 128]
  %4 = dot_general %x, %3 {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[16, 128]
  %5 = constant splat 0.73 : f32[32, 16, 5, 5]
  %6 = cumulative %5 {axis = 0, kind = sum} : f32[32, 16, 5, 5]
  %7 = cumulative %6 {axis = 1, kind = sum} : f32[32, 16, 5, 5]
  %8 = cumulative %7 {axis = 3, kind = sum} : f32[32, 16, 5, 5]
  %9 = sin %8 : f32[32, 16, 5, 5]
  %10 = convolution %y, %9 {groups = 1, high = [0, 0], low = [0, 0], stride = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]} : f32[1, 32, 16, 16]
  %11 = convert %x {dtype = bf16} : bf16[16, 512]
  %12 = convert %11 {dtype = f32} : f32[16, 512]
  return %4, %10, %12
}
END_OF_MODEL

# ---- each in an object, an archive or a shared object, with code for one CPU or another

host=("$gcc" -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -I "$source/include" "$source/tests/shell/object_host.c")
must "${host[@]}" -o host -ldl
# check MODEL CPU KIND [PRECISION ATOL]: the same as the interpreter's results
check()
{
    local model=$1 cpu=$2 kind=$3 precision=${4:-f32} atol=${5:-} name=${1%.*} files=() file output
    rm -rf out && mkdir out
    must "$quern" compile "$model" --target aarch64-linux-gnu --cpu "$cpu" --precision "$precision" -o "$name.$kind"
    if [ "$kind" = so ]; then
        [ -z "$(nm -u "$name.so")" ] || fail "$name.so needs $(nm -u "$name.so")"
        output=$($emulate ./host out "./$name.so" "${name}_query" 2>&1) || fail "$model for $cpu: $output"
    else
        must "${host[@]}" -DQUERY="${name}_query" "$name.$kind" -static -o "$name-host"
        output=$($emulate "./$name-host" out 2>&1) || fail "$model for $cpu: $output"
    fi
    grep -q "^aarch64-.* $cpu" <<<"$output" || fail "$name.$kind says that it is for $output"
    for file in out/in_*.npy; do files+=(--input "$(basename "${file#out/in_}" .npy)=$file"); done
    for file in out/out_*.npy; do files+=(--expect "$(basename "${file#out/out_}" .npy)=$file"); done
    expect 0 'as expected' "$quern" run "$model" --target interp ${atol:+--atol "$atol"} "${files[@]}"
}
check mlp.onnx generic o
check mlp.onnx neoverse-n1 so
check conv.qn generic a
check conv.qn cortex-a72 so
check softmax.qn cortex-a72 o
check attention.qn neoverse-n1 o
check attention.qn generic so
for cpu in generic cortex-a76 neoverse-v1; do check bytes.qn $cpu so; done # none, sdot, usdot
check pairs.qn neoverse-n1 so
check pairs.qn neoverse-v1 so
check pairs.qn neoverse-v1 so bf16 0.2
check pairs.qn cortex-a76 so int8 0.5
check pairs.qn neoverse-v1 so int8 0.5
check ops.qn generic so
check ops.qn neoverse-n1 o

# ---- several CPUs in one object: each machine gets the best that it can run

# runs CPU TARGET COMMAND...: on that CPU it says that it was compiled for the target; the same as the interpreter's results
runs()
{
    local machine=$1 target=$2 output files=() file
    shift 2
    rm -rf out && mkdir out
    output=$(qemu-aarch64 -cpu "$machine" -L /usr/aarch64-linux-gnu "$@" 2>&1) || fail "'$*' on $machine: $output"
    grep -q "^aarch64-.* $target$" <<<"$output" || fail "'$*' on $machine ran code for: $output"
    for file in out/in_*.npy; do files+=(--input "$(basename "${file#out/in_}" .npy)=$file"); done
    for file in out/out_*.npy; do files+=(--expect "$(basename "${file#out/out_}" .npy)=$file"); done
    expect 0 'as expected' "$quern" run bytes.qn --target interp "${files[@]}"
}
must "$quern" compile bytes.qn --target aarch64-linux-gnu --cpu generic,neoverse-n1,neoverse-v1 -o bytes.so
[ -z "$(nm -u bytes.so)" ] || fail "bytes.so needs $(nm -u bytes.so)"
must "$quern" compile bytes.qn --target aarch64-linux-gnu --cpu neoverse-n1,neoverse-v1 -o bytes.a
must "${host[@]}" -DQUERY=bytes_query bytes.a -static -o bytes-host
runs cortex-a72 'generic ' ./host out ./bytes.so bytes_query
runs cortex-a76 'generic +dotprod' ./host out ./bytes.so bytes_query
runs max 'generic +dotprod,+i8mm,+bf16' ./host out ./bytes.so bytes_query
runs neoverse-n1 'generic +dotprod' ./bytes-host out
expect 1 'status 9' qemu-aarch64 -cpu cortex-a72 ./bytes-host out
must "$quern" compile bytes.qn --target aarch64-linux-gnu --cpu cortex-a76 -o bytes.so # one CPU is compared, too
expect 1 'status 9' qemu-aarch64 -cpu cortex-a72 -L /usr/aarch64-linux-gnu ./host out ./bytes.so bytes_query
expect 1 "a list of CPUs cannot have 'cortex-a76' there: it takes some of generic, .*, in this order" \
    "$quern" compile bytes.qn --target aarch64-linux-gnu --cpu generic,cortex-a76 -o x.so

# ---- what a user may get wrong

must "$quern" compile conv.qn --target aarch64-linux-gnu --cpu generic -o nothing.a --header ""
expect 1 'native.*name a CPU of .aarch64.*generic' "$quern" compile conv.qn --target aarch64-linux-gnu -o x.so
expect 1 "CPU 'z80' of .* is unknown" "$quern" compile conv.qn --target aarch64-linux-gnu --cpu z80 -o x.so
expect 1 'for aarch64-linux-gnu needs a linker: install ld.lld or aarch64-linux-gnu-gcc' \
    env PATH=/nonexistent "$quern" compile conv.qn --target aarch64-linux-gnu --cpu generic -o x.so
[ ! -e x.so ] || fail "x.so is left"

[ $n_failed -eq 0 ] && echo "all is as expected"
exit $((n_failed > 0))
