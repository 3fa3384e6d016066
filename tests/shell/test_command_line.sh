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
for command in compile run bench inspect train check opt; do
    check "no command lists $command" 0 $status "$output" "^quern $command "
done
output=$("$quern" --help 2>/dev/null); check "--help" 0 $? "$output" "^quern compile "
output=$("$quern" nonsense 2>&1 >/dev/null); check "an unknown command" 2 $? "$output" "no command 'nonsense'"
output=$("$quern" opt --help); check "help of a command" 0 $? "$output" "usage: quern opt"
passes=$("$quern" | sed -n 's/.* opt .*--passes=\([a-z,]*\).*/\1/p')
output=$(printf 'graph @f() -> () { return }' | "$quern" opt - --passes="$passes"); check "the usage's passes '$passes'" 0 $? "$output" "graph @f() -> () {"
output=$("$quern" opt 2>&1); check "opt without a file" 2 $? "$output" "which file"
output=$(printf 'graph @f() -> () { return }' | "$quern" opt -); check "opt of standard input" 0 $? "$output" "graph @f() -> () {"
output=$(printf 'graph' | "$quern" opt - 2>&1); check "opt of a broken text" 1 $? "$output" "<stdin>:1:6: expected"
exit $failed
