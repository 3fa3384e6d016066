#!/usr/bin/env bash
# tests/install/check.sh [BUILD]: installs a build (default build/release) into a temporary prefix and builds a program
# against it, by pkg-config in C and C++ and by CMake's find_package.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:-$root/build/release}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
cmake --install "$build" --prefix "$prefix" >"$work/install.log" || { cat "$work/install.log"; exit 1; }

cat >"$work/main.c" <<'C'
#include <quern.h>
#include <stdio.h>
int main(void) { return puts(quern_version()) < 0; }
C
pkgconfig=$(dirname "$(find "$prefix" -name quern.pc)")
libraries=$(dirname "$pkgconfig")
export PKG_CONFIG_PATH=$pkgconfig
flags() { pkg-config --cflags --libs "$@"; }

echo "pkg-config:"
cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$work/main.c" $(flags quern) -o "$work/by_pkg_config"
LD_LIBRARY_PATH=$libraries "$work/by_pkg_config"

if command -v c++ >/dev/null; then
    echo "C++:"
    cat >"$work/main.cc" <<'C'
#include <quern_tensor.h>
int main()
{
    quern_builder *b = quern_builder_new("main");
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(4)));
    quern_output(b, QUERN_OP(b, "add", "", quern_relu(b, x), x), "y");
    quern_module *module;
    double sum;
    quern_scope *scope = quern_scope_begin();
    quern_tensor *rows = quern_tensor_reshape(quern_tensor_arange(QUERN_F32, 0, 12, 1), QUERN_DIMS(3, 4));
    int wrong = quern_builder_finish(b, &module) ||
                quern_tensor_item(quern_tensor_sum(quern_tensor_max(rows, QUERN_AXES(1), 0), QUERN_ALL_AXES, 0), &sum);
    quern_scope_end(scope);
    quern_module_free(module);
    return wrong || sum != 3 + 7 + 11;
}
C
    c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror "$work/main.cc" $(flags quern) -o "$work/in_cpp"
    LD_LIBRARY_PATH=$libraries "$work/in_cpp"
fi

echo "find_package:"
mkdir "$work/project"
mv "$work/main.c" "$work/project"
cat >"$work/project/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(check LANGUAGES C)
find_package(Quern REQUIRED)
add_executable(by_cmake main.c)
target_link_libraries(by_cmake PRIVATE Quern::quern)
CMAKE
cmake -S "$work/project" -B "$work/project/build" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" >"$work/cmake.log" 2>&1 &&
    cmake --build "$work/project/build" >>"$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; exit 1; }
"$work/project/build/by_cmake"

echo "the runtime, shared and static:"
echo 'int main(void) { return 0; }' >"$work/empty.c"
cc "$work/empty.c" $(flags quern_runtime) -o "$work/runtime"
cc "$work/empty.c" "$libraries/libquern_runtime.a" $(pkg-config --libs-only-l --static quern_runtime | sed 's/-lquern_runtime//') -o "$work/runtime_static"

echo "quern_abi.h alone:"
echo '#include "quern_abi.h"' >"$work/abi.c"
cc -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$prefix/include" "$work/abi.c"
if command -v c++ >/dev/null; then
    c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror -x c++ -fsyntax-only -I"$prefix/include" "$work/abi.c"
fi
echo "the installed executable:"
"$prefix/bin/quern" >/dev/null
