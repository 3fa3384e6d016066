#!/usr/bin/env bash
# What the libraries export and what they need: libquern.so and libquern_runtime.so export quern_ names only, and the
# runtime depends on nothing but the C library; a host may unload them.
set -u
build=${QUERN_BUILD_DIR:?}
if [ -n "${QUERN_SANITIZE-}" ]; then
    echo "skipped: sanitizers add symbols and libraries of their own"
    exit 77
fi
status=0
for library in libquern.so libquern_runtime.so; do
    foreign=$(nm -D --defined-only "$build/$library" | awk '$3 !~ /^quern_/ { print $3 }')
    if [ -n "$foreign" ]; then
        printf '%s exports names that do not begin with quern_:\n%s\n' "$library" "$foreign"
        status=1
    fi
done
needed=$(readelf -d "$build/libquern_runtime.so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -vE '^(libc|libm|libpthread|libdl|ld-linux[^.]*)\.so')
if [ -n "$needed" ]; then
    printf 'libquern_runtime.so needs more than the C library:\n%s\n' "$needed"
    status=1
fi
# a host may unload the library, and end threads that have used it
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
source=${QUERN_SOURCE_DIR:?}
cat >"$folder/row.qn" <<'END'
graph @main(%x: f32[8, 64]) -> (y: f32[8, 64]) {
  %0 = exp %x : f32[8, 64]
  return %0
}
END
cc -std=gnu11 -Wall -Wextra -Werror -I "$source/include" "$source/tests/shell/unload_host.c" -o "$folder/host" -ldl -lpthread || status=1
said=$("$folder/host" "$build/libquern.so" "$folder/row.qn" 2>&1)
if [ "$said" != unloaded ]; then
    printf 'a host that unloads libquern.so ends with %s: %s\n' $? "$said"
    status=1
fi
exit $status
