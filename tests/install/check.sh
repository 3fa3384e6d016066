#!/usr/bin/env bash
# tests/install/check.sh [BUILD]: installs a build (default build/release) into a temporary prefix and builds a program
# against it, once by pkg-config and once by CMake's find_package. Exit status 77 means skipped.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:-$root/build/release}" && pwd)

if [ ! -e "$root/include/quern.h" ] || ! nm -D --defined-only "$build/libquern.so" | grep -q ' quern_version$'; then
    echo "skipped: libquern.so has no quern_version yet"
    exit 77
fi
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

if [ -e "$prefix/include/quern_abi.h" ]; then
    echo "quern_abi.h alone:"
    echo '#include "quern_abi.h"' >"$work/abi.c"
    cc -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$prefix/include" "$work/abi.c"
    if command -v c++ >/dev/null; then
        c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -x c++ -fsyntax-only -I"$prefix/include" "$work/abi.c"
    fi
fi
echo "the installed executable:"
"$prefix/bin/quern" >/dev/null
