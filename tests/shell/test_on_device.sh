#!/usr/bin/env bash
# examples/on_device: it learns as its README says, in its arena, with an allocator that ends the program.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
cat >trap.c <<'END'
#include <stddef.h>
#include <unistd.h>
void *malloc(size_t n) { (void)n; _exit(99); }
void *calloc(size_t n, size_t size) { (void)n, (void)size; _exit(99); }
void *realloc(void *p, size_t n) { (void)p, (void)n; _exit(99); }
void *aligned_alloc(size_t to, size_t n) { (void)to, (void)n; _exit(99); }
int posix_memalign(void **p, size_t to, size_t n) { (void)p, (void)to, (void)n; _exit(99); }
void free(void *p) { if (p) _exit(99); }
END
echo '#include <stdlib.h>
int main(void) { void *volatile p = malloc(1); return !p; }' >control.c
cc -fno-builtin control.c trap.c -o control || fail "the control does not compile"
./control
[ $? -eq 99 ] || fail "the trap does not catch a malloc"

mkdir digits on_device && cp "$source"/examples/digits/digits.onnx digits && cp "$source"/examples/on_device/* on_device &&
    cd on_device || exit 1
PATH=$(dirname "$quern"):$PATH
eval "$(sed -n '/^quern train/,/emit-step/p' README.md)" || fail "the README's command fails"
cc -std=c11 -O2 -Wall -Wextra -Wpedantic -Werror -c adapt.c || fail "adapt.c does not compile"
cc -fno-builtin adapt.o ../trap.c ./adapt.so -o adapt || fail "it does not link"
output=$(./adapt) || fail "adapt ended with $?: $output"
[ -z "$(nm -u adapt.so)" ] || fail "adapt.so needs $(nm -u adapt.so)"
nm -u adapt.o | grep -E 'alloc|free' && fail "adapt.c allocates"

number() { sed -n "s/.*$1 *\([0-9]*\).*/\1/p" <<<"$output"; }
before=$(number before:) after=$(number after:) arena=$(number arena) static=$(size -A adapt | awk '$1 == ".bss" { print $2 }')
[ "$before" -lt 40 ] && [ "$after" -gt 60 ] || fail "it does not learn: $output"
[ "$(number states)" -eq 71296 ] || fail "README.md has another number of bytes than: $output"
[ "$static" -lt $((arena + 16384)) ] || fail "there are $static bytes of static memory beside the arena: $output"

[ $n_failed -eq 0 ] && echo "all as expected"
exit $((n_failed != 0))
