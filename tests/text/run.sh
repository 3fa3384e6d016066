#!/usr/bin/env bash
# tests/text/run.sh FILE: runs the "# RUN:" lines of a text test, in order; each must succeed.
#
# In a line, %s is the file, %S its folder, %t a temporary path of this test; a trailing backslash continues it on the
# next RUN line. `quern` is the one of the build folder ($QUERN_BUILD_DIR, else build/release), `FileCheck` LLVM's,
# `not CMD` succeeds where CMD fails with an ordinary exit status (a crash stays a failure).
set -u
file=$(realpath -- "${1:?usage: tests/text/run.sh FILE}") || exit 2
root=$(cd "$(dirname "$0")/../.." && pwd)
PATH=${QUERN_BUILD_DIR:-$root/build/release}:$PATH

filecheck=
for candidate in "${QUERN_LLVM_BINDIR:-/nonexistent}/FileCheck" FileCheck-22 FileCheck-21 FileCheck-20 FileCheck-19 FileCheck; do
    if command -v "$candidate" >/dev/null; then
        filecheck=$candidate
        break
    fi
done
if [ -z "$filecheck" ]; then
    echo "$0: FileCheck was not found (Debian and Ubuntu: apt-get install llvm-22-tools)" >&2
    exit 1
fi
FileCheck() { "$filecheck" --dump-input=fail "$@"; }
not()
{
    "$@"
    local status=$?
    if [ $status -ge 126 ]; then
        echo "not: '$*' ended with status $status: a crash or a missing command, not an ordinary failure" >&2
        return 1
    fi
    [ $status -ne 0 ]
}

temporary=$(mktemp -d) || exit 2
trap 'rm -rf "$temporary"' EXIT
n_run=0
continued=
while IFS= read -r line; do
    line=$continued$line
    if [ "${line: -1}" = "\\" ]; then
        continued="${line%\\} "
        continue
    fi
    continued=
    n_run=$((n_run + 1))
    command=${line//%s/"'$file'"}
    command=${command//%S/"'$(dirname "$file")'"}
    command=${command//%t/"'$temporary/t'"}
    (set -o pipefail; eval "$command") </dev/null
    status=$?
    if [ $status -ne 0 ]; then
        printf '%s: RUN line %d failed with status %d:\n  %s\n' "$file" "$n_run" "$status" "$line" >&2
        exit 1
    fi
done < <(sed -n 's/^#[[:space:]]*RUN:[[:space:]]*//p' "$file")
if [ -n "$continued" ] || [ $n_run -eq 0 ]; then
    echo "$file: no RUN line, or the last one is continued" >&2
    exit 1
fi
