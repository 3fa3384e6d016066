# What the tests of this folder share: a folder of their own with a cache of kernels, where they run, and their checks. A test
# ends with [ $n_failed -eq 0 ].
source=${QUERN_SOURCE_DIR:?} quern=${QUERN_BUILD_DIR:?}/quern
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
export QUERN_CACHE=$folder/.cache
cd "$folder" || exit 1
n_failed=0

fail() { echo "FAILED: $*"; n_failed=$((n_failed + 1)); }
# must COMMAND...: it has to succeed.
must() { local output; output=$("$@" 2>&1) || fail "'$*' failed: $output"; }
# expect STATUS PATTERN COMMAND...: runs it; stdout and stderr together must match the (extended) pattern.
expect()
{
    local wanted=$1 pattern=$2 output status
    shift 2
    output=$("$@" 2>&1)
    status=$?
    [ $status -eq "$wanted" ] || fail "'$*' ended with $status instead of $wanted: $output"
    grep -qE -- "$pattern" <<<"$output" || fail "'$*' does not say '$pattern' but: $output"
}
same() { cmp -s "$1" "$2" || fail "$1 and $2 differ"; }
