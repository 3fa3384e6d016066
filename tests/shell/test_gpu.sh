#!/usr/bin/env bash
# Code for GPUs from the command line: PTX files, and runs, with a driver that only writes down what is asked of it.
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

# ---- no GPU

export QUERN_CUDA_LIBRARY=$folder/no/libcuda.so.1
expect 1 'there is no GPU here: libcuda.so.1 could not be opened \(.+\); use --target cpu' \
    "$quern" run xor.qn --target cuda

# ---- a GPU that runs nothing

cc -shared -fPIC -o libfake.so "$source"/tests/shell/fake_cuda.c || fail "cc"
export QUERN_CUDA_LIBRARY=$folder/libfake.so FAKE_CUDA_LOG=$folder/log
FAKE_CUDA_NONE=1 expect 1 'there is no GPU here: the driver finds none; use --target cpu' \
    "$quern" run xor.qn --target cuda
rm -f log
expect 0 'y f32\[600\]' "$quern" run xor.qn --target cuda --dim batch=600
[ "$(sed 's/qn_k_.*//' log | tr '\n' ';')" = \
    "module;alloc 128;alloc 12544;launch blocks 3 threads 256 ;launch blocks 2 threads 256 ;free;free;unload;release;" ] ||
    fail "the calls are: $(cat log)"
FAKE_CUDA_FAIL=0 expect 1 'an index is out of range' "$quern" run xor.qn --target cuda --dim batch=600

[ $n_failed -eq 0 ] && echo "all is as expected"
exit $((n_failed > 0))
