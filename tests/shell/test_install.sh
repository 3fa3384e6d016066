#!/usr/bin/env bash
# What `cmake --install` leaves: a prefix that can be moved, which CMake, pkg-config and a compiler alone find, and a library of
# a model that a project builds with itself.
set -u
if [ -n "${QUERN_SANITIZE-}" ] || ! command -v ninja >/dev/null; then
    echo "skipped: it needs ninja, and a build without sanitizers"
    exit 77
fi
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"

must cmake --install "$QUERN_BUILD_DIR" --prefix "$folder/first"
mv first prefix
export LD_LIBRARY_PATH=$folder/prefix/lib
for file in bin/quern include/quern.h include/quern_abi.h lib/libquern_runtime.a share/man/man1/quern.1 \
    share/bash-completion/completions/quern share/doc/Quern/LICENSE; do
    [ -e "prefix/$file" ] || fail "$file is not installed"
done
for library in libquern libquern_runtime; do
    readelf -d "prefix/lib/$library.so" | grep -q "SONAME.*\[$library\.so\.[0-9]*\]" || fail "$library.so has no SONAME"
done

cat >twice.qn <<'END'
graph @main(%x: f32[n]) -> (y: f32[n]) {
  %0 = add %x, %x : f32[n]
  return %0
}
END
cat >host.c <<'END'
#include <quern.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    (void)argc;
    quern_model *model;
    if (quern_model_open(argv[1], NULL, &model)) {
        puts(quern_last_error());
        return 1;
    }
    printf("%s %s\n", quern_version(), quern_model_describe(model)->name);
    quern_model_free(model);
}
END
cat >embedded.c <<'END'
#include "my_twice.h"
#include <stdio.h>
int main(void)
{
    float x[2] = { 1, 2 }, y[2];
    my_twice_io io = { .x = x, .y = y, .dims = { 2 } };
    int status = my_twice_infer(&io, NULL, NULL);
    printf("%d %g %g\n", status, y[0], y[1]);
}
END
cat >CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.25)
project(consumer C)
find_package(Quern 0.1 REQUIRED)
add_executable(with_compiler host.c)
target_link_libraries(with_compiler PRIVATE Quern::quern)
add_executable(with_runtime host.c)
target_link_libraries(with_runtime PRIVATE Quern::runtime)
add_executable(with_static_runtime host.c)
target_link_libraries(with_static_runtime PRIVATE Quern::runtime_static)
quern_add_model(my-twice twice.qn PREFIX my_twice OPTIONS --dim n=1..8)
add_executable(embedded embedded.c)
target_link_libraries(embedded PRIVATE my-twice)
END
must prefix/bin/quern compile twice.qn -o twice.so
must cmake -S . -B build -G Ninja -DCMAKE_PREFIX_PATH="$folder/prefix"
must cmake --build build
version=$(prefix/bin/quern --version)
for program in with_compiler with_runtime with_static_runtime; do
    expect 0 "^${version#quern } twice\$" "build/$program" ./twice.so
done
expect 0 '^0 2 4$' build/embedded
must touch twice.qn
cmake --build build | grep -q 'Compiling .*/twice.qn' || fail "the model is not compiled again after a change"
sed -i 's/PREFIX my_twice/PREFIXES my_twice/' CMakeLists.txt
expect 1 "quern_add_model\(my-twice\): what is 'PREFIXES" cmake -S . -B wrong -G Ninja -DCMAKE_PREFIX_PATH="$folder/prefix"

if command -v pkg-config >/dev/null; then
    export PKG_CONFIG_PATH=$folder/prefix/lib/pkgconfig
    for package in quern quern_runtime; do
        # shellcheck disable=SC2046
        must cc host.c $(pkg-config --cflags --libs $package) -o host
        expect 0 "^${version#quern } twice\$" ./host ./twice.so
    done
fi
[ $n_failed -eq 0 ]
