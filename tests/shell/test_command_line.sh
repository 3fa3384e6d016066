# The commands as a whole: usage lines, unknown commands, exit statuses.
set -u
quern=${QUERN_BUILD_DIR:?}/quern
failed=0
check() # WHAT EXPECTED-STATUS ACTUAL-STATUS TEXT PATTERN
{
    if [ "$3" -ne "$2" ] || ! grep -q -e "$5" <<<"$4"; then
        printf 'FAILED: %s: status %s (expected %s), output:\n%s\n' "$1" "$3" "$2" "$4"
        failed=1
    fi
}
output=$("$quern" 2>/dev/null); status=$?
for command in compile run bench inspect train check cache targets opt; do
    check "no command lists $command" 0 $status "$output" "^quern $command "
done
output=$("$quern" --help 2>/dev/null); check "--help" 0 $? "$output" "^quern compile "
check "the usage tells the exit statuses" 0 $? "$output" "^exit status: 0 done, 1 failed"
version=$(sed -n 's/^project(Quern VERSION \([0-9.]*\).*/\1/p' "${QUERN_SOURCE_DIR:?}/CMakeLists.txt")
for argument in --version -V version; do
    output=$("$quern" $argument); check "$argument" 0 $? "$output" "^quern $version\$"
done
for arguments in "help inspect" "inspect --help" "inspect -h"; do
    output=$("$quern" $arguments); check "$arguments" 0 $? "$output" "^usage: quern inspect MODEL"
done
output=$("$quern" help inspekt 2>&1); check "help of an unknown command" 2 $? "$output" "did you mean 'inspect'"
# the man page names every command and every variable; completion knows commands, options and values
page=$(cat "${QUERN_SOURCE_DIR}/docs/quern.1")
for command in $("$quern" | sed -n 's/^quern \([a-z]*\) .*/\1/p'); do
    check "the man page has $command" 0 0 "$page" "^\.B $command\$"
done
for variable in $(grep -rhoE '(getenv|is_set)\("QUERN_[A-Z_]+' "${QUERN_SOURCE_DIR}"/{driver,runtime,backends,passes,frontend} --include=*.c | grep -oE 'QUERN_.*' | sort -u); do
    check "the man page has $variable" 0 0 "$page" "^\.B $variable\$"
done
completed() # WORDS...: what is offered for the last
{
    COMP_WORDS=("$quern" "$@") COMP_CWORD=$# COMPREPLY=()
    _quern
    echo "${COMPREPLY[*]}"
}
. "${QUERN_SOURCE_DIR}/scripts/completion.bash"
check "completion of a command" 0 0 "$(completed ins)" '^inspect$'
check "completion of an option" 0 0 "$(completed run model.onnx --exp)" '^--expect$'
check "completion of a common option" 0 0 "$(completed inspect --check)" '^--check-numerics$'
check "completion of a value" 0 0 "$(completed compile model.onnx --precision b)" '^bf16$'
output=$("$quern" nonsense 2>&1 >/dev/null); check "an unknown command" 2 $? "$output" "no command 'nonsense'"
output=$("$quern" opt --help); check "help of a command" 0 $? "$output" "usage: quern opt"
passes=$("$quern" | sed -n 's/.* opt .*--passes=\([a-z,]*\).*/\1/p')
output=$(printf 'graph @f() -> () { return }' | "$quern" opt - --passes="$passes"); check "the usage's passes '$passes'" 0 $? "$output" "graph @f() -> () {"
output=$("$quern" opt 2>&1); check "opt without a file" 2 $? "$output" "which file"
output=$(printf 'graph @f() -> () { return }' | "$quern" opt -); check "opt of standard input" 0 $? "$output" "graph @f() -> () {"
output=$(printf 'graph' | "$quern" opt - 2>&1); check "opt of a broken text" 1 $? "$output" "<stdin>:1:6: expected"
exit $failed
