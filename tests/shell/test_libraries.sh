#!/usr/bin/env bash
# What the libraries export and what they need: libquern.so and libquern_runtime.so export quern_ names only, and the
# runtime depends on nothing but the C library.
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
exit $status
