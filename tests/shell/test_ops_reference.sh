# docs/ops.md is what ir/ops.def says, and every op is in a text test.
set -u
cd "${QUERN_SOURCE_DIR:?}" || exit 1
failed=0
command -v python3 >/dev/null || exit 77
scripts/make-ops-reference --check || failed=1
for op in $(sed -n 's/^QN_OP([A-Z0-9_]*, "\([a-z0-9_]*\)".*/\1/p' ir/ops.def); do
    if ! grep -qE "(= |^ +)$op\b" tests/text/ops/*.qn; then
        echo "no text test of $op: add it to a file of tests/text/ops"
        failed=1
    fi
done
exit $failed
