#!/usr/bin/env bash
# Code for GPUs from the command line: PTX files, and runs, with a driver that writes down what is asked of it.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
has() { grep -qE -- "$2" "$1" || fail "$1 does not have '$2': $(head -50 "$1")"; }
cp "$source"/examples/embed/xor.qn .

# ---- files

expect 0 '^$' "$quern" compile xor.qn --target nvptx64 --gpu sm_90 -o xor.ptx
has xor.ptx '^// program @infer \{'
has xor.ptx '^//   call 1 "dot_general"'
has xor.ptx '^// kernel 1 qn_k_[0-9a-f]+ threads 256'
has xor.ptx '^\.target sm_90$'
[ "$(grep -c '^\.version' xor.ptx)" = 1 ] || fail "xor.ptx says its version several times"
[ "$(grep -c '\.visible \.entry' xor.ptx)" = 2 ] || fail "xor.ptx has not two kernels"
[ -s xor.ptx.safetensors ] || fail "the weights are missing"
if command -v ptxas >/dev/null; then
    expect 0 '^$' ptxas -arch=sm_90 -o xor.cubin xor.ptx
else
    echo "xor.ptx is not assembled: there is no ptxas on the path"
fi
expect 0 '^$' "$quern" compile xor.qn --target nvptx64 --gpu sm_80 -o old.ptx
has old.ptx '^\.target sm_80$'
expect 1 "'so' is code for a CPU" "$quern" compile xor.qn --target nvptx64 -o xor.so
expect 1 "'ptx' is code for a GPU: --target nvptx64" "$quern" compile xor.qn -o x.ptx
expect 1 "GPU 'sm_999' is unknown" "$quern" compile xor.qn --target nvptx64 --gpu sm_999 -o x.ptx
[ ! -e x.ptx ] || fail "x.ptx is left"

# Products of bfloat16 by the matrix unit, which a T4 doesn't have for them.
cat >product.qn <<'EOF'
graph @main(%x: f32[64, 64], %y: f32[64, 72]) -> f32[64, 72] {
  %0 = dot_general %x, %y {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 72]
  return %0
}
EOF
expect 0 '^$' "$quern" compile product.qn --target nvptx64 --gpu sm_90 --precision bf16 -o unit.ptx
has unit.ptx 'mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.bf16\.bf16\.f32'
has unit.ptx 'ldmatrix\.sync\.aligned'
for more in '--gpu sm_75 --precision bf16' '--gpu sm_90'; do
    # shellcheck disable=SC2086
    expect 0 '^$' "$quern" compile product.qn --target nvptx64 $more -o plain.ptx
    grep -q 'mma\.sync' plain.ptx && fail "there is an mma with $more"
    has plain.ptx 'fma\.rn\.f32'
done

# ---- no GPU

export QUERN_CUDA_LIBRARY=$folder/no/libcuda.so.1
expect 1 'there is no GPU here: libcuda.so.1 could not be opened \(.+\); use --target cpu' \
    "$quern" run xor.qn --target cuda

# ---- a driver of our own (tests/fake_cuda), whose kernels run as the PTX says

export QUERN_CUDA_LIBRARY=$QUERN_FAKE_CUDA FAKE_CUDA_LOG=$folder/log
FAKE_CUDA_DEVICES=0 expect 1 'there is no GPU here: the driver finds none; use --target cpu' \
    "$quern" run xor.qn --target cuda
FAKE_CUDA_DEVICES=2 expect 0 '^cuda:1 .*\(sm_[0-9]+\)$' "$quern" targets
FAKE_CUDA_DEVICES=2 expect 0 '"gpus": \[\{"target": "cuda:0", "gpu": "sm_[0-9]+"\}, .*"no_gpu": null' "$quern" targets --json
rm -f log
expect 0 'y f32\[600\]' "$quern" run xor.qn --target cuda --dim batch=600
[ "$(tr '\n' ';' < log)" = "module;alloc 128;in 128;alloc 12544;in 8;in 4800;launch blocks 3 threads 256;\
launch blocks 2 threads 256;out 2400;free;free;unload;release;" ] || fail "the calls are: $(cat log)"
QUERN_LLVM=/nowhere/libLLVM.so expect 0 'y f32\[600\]' "$quern" run xor.qn --target cuda --dim batch=600
expect 0 '' "$quern" run xor.qn --dim batch=600 --output y=y.npy
for backwards in "" 1; do
    FAKE_CUDA_BACKWARDS=$backwards expect 0 '' "$quern" run xor.qn --target cuda --dim batch=600 --expect y=y.npy
done
FAKE_CUDA_DEVICES=2 expect 0 '' "$quern" run xor.qn --target cuda:1 --dim batch=600 --expect y=y.npy
expect 1 'there is no GPU 1 here: the driver finds 1, from cuda:0; use --target cpu' "$quern" run xor.qn --target cuda:1
expect 1 "there is no target 'cudas'" "$quern" run xor.qn --target cudas

expect 0 '' "$quern" run product.qn --output f.npy
expect 0 '' "$quern" run product.qn --target cuda --expect f.npy
expect 0 '' "$quern" run product.qn --target cuda --precision bf16 --expect f.npy --atol 0.2

# The first row of x is where %i says: with a check that may fail.
cat >row.qn <<'EOF'
graph @main(%x: f32[4, 3], %i: i64[2]) -> f32[2, 3] {
  %y = gather %x, %i {axis = 0} : f32[2, 3]
  return %y
}
EOF
expect 0 'f32\[2, 3\]' "$quern" run row.qn --target cuda
FAKE_CUDA_FAIL=0 expect 1 'an index is out of range' "$quern" run row.qn --target cuda

# More buffers than a kernel has parameters: they lie in the device's memory.
names=$(seq -f '%%x%g' -s ', ' 520)
cat >many.qn <<EOF
graph @main($(seq -f '%%x%g: f32[4]' -s ', ' 520)) -> f32[2080] {
  %y = concatenate $names {axis = 0} : f32[2080]
  return %y
}
EOF
rm -f log
expect 0 '' "$quern" run many.qn --output many.npy
expect 0 'as expected' "$quern" run many.qn --target cuda --expect many.npy
has log '^in 4168$'

# Training: the states are on the GPU from the first step to the last, however many there are.
cat >distance.qn <<'EOF'
graph @main(%x: f32[n, 64], %w: f32[64] param) -> (loss: f32[n, 64]) {
  %0 = broadcast %w {axes = [1], dims = [n, 64]} : f32[n, 64]
  %1 = sub %x, %0 : f32[n, 64]
  %2 = mul %1, %1 : f32[n, 64]
  return %2
}
EOF
distance=("$quern" train distance.qn --data "$source/examples/digits/digits.npz" --batch 64 --loss output --optimizer adam
    --learning-rate 0.5 --checkpoint distance.safetensors)
expect 0 '^trained: loss 18\.[0-9]*$' "${distance[@]}" --epochs 2
for epochs in 1 2; do
    rm -f log
    expect 0 "epoch $epochs/$epochs: loss" "${distance[@]}" --epochs $epochs --target cuda
    grep -c '^in 256$' log >states$epochs
done
expect 0 '^trained: loss 18\.[0-9]*$' "${distance[@]}" --epochs 2 --target cuda --resume
[ $(($(cat states2) - $(cat states1))) -lt 10 ] || fail "states are copied in steps: $(cat states1) and $(cat states2) times"

[ $n_failed -eq 0 ] && echo "all is as expected"
exit $((n_failed > 0))
