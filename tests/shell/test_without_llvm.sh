#!/usr/bin/env bash
# LLVM is opened when code is generated: a process whose kernels are all in the cache runs without it, one that has to generate
# code says what is missing, and the interpreter never asks.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"

cat >model.qn <<'END'
graph @main(%x: f32[batch, 64], %w: f32[64, 64]) -> (y: f32[batch, 64]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[batch, 64]
  %1 = exp %0 : f32[batch, 64]
  return %1
}
END
without() { QUERN_LLVM=/nowhere/libLLVM.so "$@"; }
# opened COMMAND...: the number of times that the dynamic linker speaks of libLLVM.
opened() { LD_DEBUG=files "$@" 2>&1 >/dev/null | grep -c libLLVM; }

what='generating code needs LLVM [0-9]+, which cannot be used: /nowhere/libLLVM.so: cannot open.*QUERN_LLVM.*libLLVM.so'
expect 1 "$what" without "$quern" run model.qn --dim batch=3
[ "$(grep -c 'generating code' <<<"$(without "$quern" run model.qn --dim batch=3 2>&1)")" -eq 1 ] ||
    fail "what is missing is said more than once"
expect 1 "$what" without "$quern" compile model.qn -o model.so
expect 0 '^y f32' without "$quern" run model.qn --dim batch=3 --target interp
expect 0 'cpu .*only what is in the cache: generating code needs LLVM' without "$quern" targets

[ "$(opened "$quern" run model.qn --dim batch=3)" -gt 0 ] || fail "code is made, but LLVM was not opened"
"$quern" run model.qn --dim batch=3 >first 2>&1 || fail "$(cat first)"
[ "$(opened "$quern" run model.qn --dim batch=3)" -eq 0 ] || fail "all is in the cache, but LLVM was opened"
without "$quern" run model.qn --dim batch=3 >second 2>&1 || fail "$(cat second)"
same first second
# A CPU by its name: what LLVM says of it is kept as well.
[ "$(uname -m)" = x86_64 ] && cpu=x86-64-v3 || cpu=generic
expect 1 "$what" without "$quern" run model.qn --dim batch=3 --cpu "$cpu"
"$quern" run model.qn --dim batch=3 --cpu "$cpu" >first 2>&1 || fail "$(cat first)"
without "$quern" run model.qn --dim batch=3 --cpu "$cpu" >second 2>&1 || fail "$(cat second)"
same first second
# A copy is the same build, whenever it was made.
cp "$quern" copy && touch -d 2001-01-01 copy
"$quern" run model.qn --dim batch=3 >first 2>&1 || fail "$(cat first)"
without ./copy run model.qn --dim batch=3 >second 2>&1 || fail "$(cat second)"
same first second

# Another LLVM makes other code, even by the same name: its file says so.
used=$(LD_DEBUG=files "$quern" run model.qn --dim batch=4 2>&1 >/dev/null | sed -n 's/.*file=\([^ ]*libLLVM[^ ]*\).*dynamically loaded.*/\1/p' | head -n 1)
[ -e "$used" ] || fail "which LLVM is opened: '$used'"
cp "$used" libLLVM.so && touch -d 2001-01-01 libLLVM.so
other() { QUERN_LLVM=$PWD/libLLVM.so "$@"; }
[ "$(opened other "$quern" run model.qn --dim batch=3)" -gt 0 ] || fail "code of another LLVM was taken"
[ "$(opened other "$quern" run model.qn --dim batch=3)" -eq 0 ] || fail "code of the same LLVM was not found"
[ "$(opened "$quern" run model.qn --dim batch=3)" -eq 0 ] || fail "code of the first LLVM was not found"
# Where it is gone, what the one before made is still found.
rm libLLVM.so
other "$quern" run model.qn --dim batch=3 >second 2>&1 || fail "$(cat second)"
same first second

[ $n_failed -eq 0 ]
