#!/usr/bin/env bash
# The command line: what it prints, writes and refuses, and with which exit status.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
export QUERN_CACHE=$folder/cache
only() { [ "$(ls)" = "$1" ] || fail "expected the files '$1', found '$(ls)'"; }

cat >bias.qn <<'END'
graph @main(%x: f32[batch, 4], %b: f32[4]) -> (sum: f32[batch, 4], last: f32[batch]) {
  %0 = broadcast %b {axes = [1], dims = [batch, 4]} : f32[batch, 4]
  %1 = add %x, %0 : f32[batch, 4]
  %2 = slice %1 {limit = [batch, 4], start = [0, 3], stride = [1, 1]} : f32[batch, 1]
  %3 = reshape %2 {dims = [batch]} : f32[batch]
  return %1, %3
}
END
cat >double.qn <<'END'
graph @main(%x: f32[n]) -> (y: f32[n]) {
  %0 = add %x, %x : f32[n]
  return %0
}
END
cat >large.qn <<'END'
graph @main(%x: f32[256, 256], %w: f32[256, 256]) -> (y: f32[256, 256], e: f32[256, 256]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[256, 256]
  %1 = exp %x : f32[256, 256]
  return %0, %1
}
END

cat >square.qn <<'END'
graph @main(%x: f32[n, n]) -> (y: f32[n, n]) {
  %0 = exp %x : f32[n, n]
  return %0
}
END

cat >turned.qn <<'END'
graph @main(%x: f32[m, n, k]) -> (y: f32[k, n, m]) {
  %0 = transpose %x {perm = [2, 1, 0]} : f32[k, n, m]
  %1 = exp %0 : f32[k, n, m]
  return %1
}
END

cat >products.qn <<'END'
graph @main(%x: f32[64, 256], %w: f32[256, 256], %v: f32[256, 32]) -> (y: f32[64, 32]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 256]
  %1 = dot_general %0, %v {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 32]
  return %1
}
END
cat >products_in_loop.qn <<'END'
graph @main(%x: f32[64, 256], %w: f32[256, 256], %v: f32[256, 32]) -> (y: f32[64, 32]) {
  %s = scan %x, %w {length = [5], n_carried = 1, n_scanned = 0} : f32[64, 256]
    body (%c: f32[64, 256], %u: f32[256, 256]) {
      %0 = dot_general %c, %u {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 256]
      return %0
    }
  %1 = dot_general %s, %v {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 32]
  return %1
}
END

cat >rows.qn <<'END'
graph @main(%x: f32[n, 64], %w: f32[64, 32]) -> (y: f32[n, 32]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[n, 32]
  return %0
}
END

targets=(interp cpu)
for target in "${targets[@]}"; do
    run=("$quern" run --target "$target")
    # random inputs are the same each time; a fixed dimension makes them larger
    expect 0 '^sum f32\[1, 4\] \[.*\]$' "${run[@]}" bias.qn
    expect 0 '^last f32\[3\] ' "${run[@]}" bias.qn --dim batch=3
    "${run[@]}" bias.qn --dim batch=3 --seed 5 -o sum=sum.npy --output=last=last.npy || fail "writing"
    "${run[@]}" bias.qn --dim batch=3 --seed 5 -o all.npz || fail "writing all"
    expect 0 'as expected' "${run[@]}" bias.qn --dim batch=3 --seed 5 --expect all.npz
    expect 0 'as expected' "${run[@]}" bias.qn --dim batch=3 --seed 5 --expect last=last.npy --rtol 0 --atol 0
    expect 1 'elements differ by more than' "${run[@]}" bias.qn --dim batch=3 --seed 6 --expect all.npz
    expect 1 "output 'last' is f32\[2\]; f32\[3\] is expected" "${run[@]}" bias.qn --dim batch=2 --expect last=last.npy
    # files as inputs
    printf 'graph @narrow(%%x: f8e4m3fn[n]) -> (y: i4[n]) {\n%%y = convert %%x {dtype = i4} : i4[n]\nreturn %%y\n}\n' >narrow.qn
    "${run[@]}" narrow.qn --dim n=4 -o four.npy || fail "writing narrow elements"
    expect 0 'as expected' "${run[@]}" narrow.qn --dim n=4 --expect four.npy --rtol 0 --atol 0
    expect 0 '^y i4\[4\] \[0 0 0 0\]' "${run[@]}" narrow.qn -i four.npy # of bits that mean less than 1
    "${run[@]}" double.qn --dim n=4 -o y.npy || fail "writing y"
    expect 0 '^y f32\[4\]' "${run[@]}" double.qn -i y.npy
    expect 0 '^sum f32\[3, 4\]' "${run[@]}" bias.qn --input x=sum.npy --input b=y.npy
    expect 1 "input 'b' \(f32\[4\]\) is missing" "${run[@]}" bias.qn --input x=sum.npy
    expect 1 "input 0 'x' is f32\[3\]; the model takes f32\[batch, 4\]" "${run[@]}" bias.qn -i x=last.npy -i b=y.npy
    expect 1 "no input 'z'; the inputs are: x, b" "${run[@]}" bias.qn -i z=y.npy
    expect 0 '^no pass changes a result: [0-9]+ pass runs' "$quern" opt bias.qn --bisect --input=x=sum.npy --input=b=y.npy
    expect 1 "input 'b' \(f32\[4\]\) is missing: --input=b=FILE" "$quern" opt bias.qn --bisect --input=x=sum.npy
    expect 1 "input 'x' is f32\[3\]; the model takes" "$quern" opt bias.qn --bisect --input=x=last.npy --input=b=y.npy
    expect 1 'which input is y.npy' "${run[@]}" bias.qn -i y.npy
    expect 1 'absent.npy: cannot be read: No such file' "${run[@]}" double.qn -i absent.npy
    expect 1 'not a .npy file' "${run[@]}" double.qn -i bias.qn
    head -c 100 y.npy >cut.npy
    expect 1 'ends inside its header' "${run[@]}" double.qn -i cut.npy
    expect 1 'batch is 3 .* compiled for 1 to 2' "${run[@]}" bias.qn --dim batch=1..2 -i x=sum.npy -i b=y.npy
    expect 1 "no memory for input 'x' of f32\[4294967296, 4294967296\]" "${run[@]}" square.qn --dim n=4294967296
    expect 0 '^y f32\[0, 4294967296, 4294967296\]' "${run[@]}" turned.qn --dim m=4294967296 --dim n=4294967296 --dim k=0
    expect 0 '^y f32\[0, 32\] \[\]' "${run[@]}" rows.qn --dim n=0
    # outputs that cannot be written leave nothing
    mkdir -p read-only && cd read-only || exit 1
    expect 1 '/dev/full: cannot be written: No space left on device' "${run[@]}" ../double.qn -o /dev/full
    expect 1 'no-folder/y.npy: cannot be written: No such file' "${run[@]}" ../double.qn -o no-folder/y.npy
    expect 1 'cannot be written: Is a directory' "${run[@]}" ../double.qn -o ..
    # 16 kB of an array go into no file of 8 kB
    expect 1 'large.npy: cannot be written: (File too large|Input)' bash -c 'ulimit -f 8; "$@"' - "${run[@]}" ../square.qn --dim n=64 -o large.npy
    only ""
    cd ..
    rm -rf read-only sum.npy last.npy all.npz y.npy cut.npy
    expect 1 'the output cannot be written: No space left' bash -c '"$@" >/dev/full' - "${run[@]}" bias.qn
    for option in --help --version help; do
        expect 1 'the output cannot be written: No space left' bash -c '"$@" >/dev/full' - "$quern" $option
    done
done

# models that are none
: >empty.onnx
head -c 3000 /dev/urandom >garbage.onnx
printf 'graph @main(%%x: f32[4]) -> f32[4] {\n  %%0 = sine %%x : f32[4]\n  return %%0\n}\n' >bad.qn
printf '\x08\x0a\x3a\xff\xff\xff\x7f' >cut.onnx
expect 1 'empty.onnx: it is empty' "$quern" run empty.onnx
expect 1 '^quern run: ' "$quern" run garbage.onnx
expect 1 'bad.qn:2:8: ' "$quern" check bad.qn
expect 1 'cut.onnx: ' "$quern" run cut.onnx
expect 1 'absent.onnx: cannot be read: No such file' "$quern" run absent.onnx
expect 1 ': Is a directory' "$quern" run .
expect 1 ': it is a pipe: a model is read from a file' "$quern" run <(cat bias.qn)

printf 'graph @main(%%x: f32[n]) -> (y: f32[m, 2]) {\n  %%0 = reshape %%x {dims = [m, 2]} : f32[m, 2]\n  return %%0\n}\n' >free.qn
for target in "${targets[@]}"; do
    expect 1 "dimension 'm' has no value: no input says it" "$quern" run free.qn --dim n=6 --target $target
done

# usage
expect 0 'quern compile' "$quern"
expect 2 "no command 'fly'" "$quern" fly
expect 2 'which model\?' "$quern" run
expect 2 'no option --inptu: did you mean --input\?' "$quern" run bias.qn --inptu x=y
expect 2 'no option --thread=2: did you mean --threads\?' "$quern" bench bias.qn --thread=2
expect 2 'no option --frobnicate$' "$quern" run bias.qn --frobnicate
expect 2 "no command 'benhc': did you mean 'bench'\?" "$quern" benhc bias.qn
expect 0 '^quern [0-9]' "$quern" --version
expect 2 '--input needs a value' "$quern" run bias.qn --input
expect 2 '--verbose takes no value' "$quern" run bias.qn --verbose=3
expect 2 '--dim batch: write NAME=NUMBER' "$quern" run bias.qn --dim batch
expect 2 '--threads many' "$quern" run bias.qn --threads many
expect 2 "what is 'double.qn'" "$quern" run bias.qn double.qn
expect 1 "no target 'abacus'|target 'abacus'" "$quern" run bias.qn --target abacus
expect 1 "no dimension is called 'bacth'" "$quern" run bias.qn --dim bacth=3
expect 2 '--optimize 3: 1 or 2' "$quern" run bias.qn --optimize 3
expect 1 "no blas 'mkl': auto, none or openblas" "$quern" run bias.qn --blas mkl
expect 1 'a file cannot call OpenBLAS' "$quern" compile bias.qn --blas openblas -o bias.so
expect 1 'OpenBLAS cannot be used: .*/none.so' env QUERN_OPENBLAS="$PWD/none.so" "$quern" run bias.qn --blas openblas
expect 0 '^usage: quern run MODEL' "$quern" run --help
expect 0 'every node is supported; 4 ops: ' "$quern" check bias.qn

# bench, inspect, targets
cat >symbolic.qn <<'END'
graph @main(%x: f32[n, 256], %w: f32[256, 256]) -> (y: f32[n, 256]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[n, 256]
  return %0
}
END
expect 0 '^with n = 1, the least \(--dim NAME=N for others\)$' "$quern" bench symbolic.qn --seconds 0.01
cat >checked.qn <<'END'
graph @main(%x: f32[n], %y: f32[m]) -> (z: f32[m, 2], t: f32[m]) {
  %0 = exp %x : f32[n]
  %1 = reshape %0 {dims = [m, 2]} : f32[m, 2]
  %2 = exp %y : f32[m]
  return %1, %2
}
END
expect 0 'median [0-9.]+ us' "$quern" bench bias.qn --seconds 0.01 --threads 1
expect 0 'us  share' "$quern" bench bias.qn --seconds 0.01 --all
expect 0 '^y|median' "$quern" bench double.qn --seconds 0.01 --target interp
if command -v python3 >/dev/null; then
    "$quern" bench bias.qn --seconds 0.01 --json >bench.json || fail "bench --json"
    python3 -c 'import json; j = json.load(open("bench.json")); assert j["median_s"] >= j["min_s"] > 0 and j["kernels"]' || fail "bench.json"
    # kernels of one name are one row, with the work of all
    "$quern" bench products.qn --seconds 0.01 --json >products.json || fail "bench --json"
    python3 -c 'import json; j = json.load(open("products.json")); n = sum(k["flops"] for k in j["kernels"]); assert n == j["flops"] == 2 * 64 * 256 * (256 + 32), n' || fail "products.json"
    "$quern" bench products_in_loop.qn --seconds 0.01 --json >products.json || fail "bench --json"
    python3 -c 'import json; j = json.load(open("products.json")); n = sum(k["flops"] for k in j["kernels"]); assert n == j["flops"] == 2 * 64 * 256 * (5 * 256 + 32), n' || fail "products_in_loop.qn"
    "$quern" bench large.qn --seconds 0.01 --threads 2 --profile trace.json >/dev/null || fail "bench --profile"
    python3 - <<'END' || fail "trace.json"
import json
events = json.load(open("trace.json"))["traceEvents"]
rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
assert rows[0] == "kernels" and rows[1] == "thread 0" and set(rows) <= {0, 1, 2}, rows
(run,) = [e for e in events if e["name"] == "run"]
kernels = [e for e in events if e["ph"] == "X" and e is not run]
assert kernels and all(e["dur"] >= 0 and 0 <= e["ts"] <= e["ts"] + e["dur"] <= run["dur"] + .01 for e in kernels), kernels
whole = [e for e in kernels if e["tid"] == 0]
product = max(whole, key=lambda e: e["args"].get("GFLOP/s", 0))
assert product["args"]["GFLOP/s"] > 0 and product["args"]["GB/s"] > 0, product
assert 0 < product["args"]["% of peak GFLOP/s"] and 0 < product["args"]["% of peak GB/s"], product
flops = product["args"]["GFLOP/s"] * product["dur"] * 1e3
assert abs(flops / (2 * 256**3) - 1) < .01, flops
for kernel in whole:  # the threads share out its tasks
    parts = [e for e in kernels if e["tid"] > 0 and e["name"] == kernel["name"]]
    assert sum(e["args"]["tasks"] for e in parts) == kernel["args"]["tasks"], (kernel, parts)
    assert all(kernel["ts"] - .01 <= e["ts"] and e["ts"] + e["dur"] <= kernel["ts"] + kernel["dur"] + .01 for e in parts)
END
    # of extents that are symbols nothing is guessed: the dims are told that were measured with
    "$quern" bench symbolic.qn --seconds 0.01 --json >symbolic.json || fail "bench --json"
    python3 -c 'import json; j = json.load(open("symbolic.json")); assert j["dims"] == {"n": 1} and not any(k["flops"] or k["bytes"] for k in j["kernels"]), j' || fail "symbolic.json"
    # each kind of step has its name
    "$quern" inspect checked.qn --format json >checked.json || fail "inspect --format json"
    python3 -c 'import json; e, = json.load(open("checked.json"))["entries"]; assert [s["kind"] for s in e["steps"]] == ["check", "kernel", "kernel"], e' || fail "checked.json"
    "$quern" inspect bias.qn --format json >inspect.json || fail "inspect --format json"
    python3 -c 'import json; e, = json.load(open("inspect.json"))["entries"]; assert e["name"] == "infer" and e["steps"] and e["io"][0]["dims"] == ["batch", 4]' || fail "inspect.json"
fi
expect 1 'no kernels to look at' "$quern" bench double.qn --seconds 0.01 --target interp --profile interp.json
expect 1 'no-folder/trace.json: cannot be written' "$quern" bench double.qn --seconds 0.01 --profile no-folder/trace.json
[ ! -e interp.json ] || fail "interp.json is there"
# perf and gdb see kernels by their names, and gdb who called them
cat >named.qn <<'END'
graph @main(%x: f32[256, 256]) -> (y: f32[256, 256]) {
  %0 = exp %x : f32[256, 256]
  %1 = sub %0, %x : f32[256, 256]
  return %1
}
END
QUERN_JIT_PERF=1 "$quern" run named.qn >/dev/null &
wait $!
mv "/tmp/perf-$!.map" perf.map || fail "no map for perf"
for name in exp_sub model_infer; do
    grep -qE "^[0-9a-f]+ [0-9a-f]+ $name\$" perf.map || fail "perf's map lacks $name: $(cat perf.map)"
done
! grep qn_k_ perf.map || fail "perf's map has symbols of hashes"
if command -v gdb >/dev/null && [ -z "${QUERN_SANITIZE-}" ] && [ "$(uname -m)" = x86_64 ]; then
    said=$(QUERN_JIT_GDB=1 gdb -q -batch -ex 'set breakpoint pending on' -ex 'break exp_sub' -ex run -ex bt \
        --args "$quern" run named.qn --threads 1 2>&1)
    if ! grep -qiE 'ptrace|not permitted' <<<"$said"; then
        for frame in exp_sub launch model_infer quern_main_run; do
            grep -qE "^#[0-9]+ .*\b$frame \(" <<<"$said" || fail "gdb's backtrace lacks $frame: $said"
        done
    fi
fi

# code for a CPU that is named has nothing that this machine lacks, or is refused
cat >half.qn <<'END'
graph @main(%x: f16[8, 64]) -> (y: f16[8, 64]) {
  %0 = add %x, %x : f16[8, 64]
  %1 = mul %0, %x : f16[8, 64]
  return %1
}
END
if [ "$(uname -m)" = x86_64 ]; then
    for cpu in haswell x86-64-v4 sapphirerapids graniterapids; do
        output=$("$quern" run half.qn --cpu $cpu 2>&1)
        grep -qE '^y f16\[8, 64\]|this machine has no ' <<<"$output" || fail "--cpu $cpu: status $?, $output"
    done
fi
expect 2 '--seconds soon' "$quern" bench bias.qn --seconds soon
expect 0 '^workspace ' "$quern" inspect bias.qn
expect 0 'dim +batch = ' "$quern" inspect bias.qn
expect 0 '^digraph model' "$quern" inspect bias.qn --format dot
expect 0 '^program @infer' "$quern" inspect bias.qn --format program
expect 0 '^kernel @' "$quern" inspect bias.qn --format kernels
expect 0 'graph @main' "$quern" inspect bias.qn --format graph
expect 2 "no format 'xml'" "$quern" inspect bias.qn --format xml
# what a shared object says of itself, whatever its file is called
must "$quern" compile bias.qn --dim batch=2..8 --cpu x86-64-v3 -o inspected.so --prefix other
for pattern in '^inspected.so, compiled for x86_64.* x86-64-v3$' '^entry infer' '  input  b f32\[4\]' \
    '  output last f32\[batch\]' '  dim    batch = 2\.\.8' '^workspace [0-9]+ bytes where batch = 2' '^weights 0 bytes$'; do
    expect 0 "$pattern" "$quern" inspect inspected.so
done
expect 0 '"dims": \["batch", 4\]' "$quern" inspect inspected.so --format json
expect 2 'a shared object is code' "$quern" inspect inspected.so --format dot
expect 0 '^last f32\[2\]' "$quern" run inspected.so
expect 1 'cannot be read|too short|invalid ELF' "$quern" inspect <(printf '\177ELF')
must "$quern" compile bias.qn --dim batch=2..8 -o native.so
expect 0 '^native.so, compiled for [^ ,]+ [^ ,]+$' "$quern" inspect native.so
for linked in linked.a linked.o; do
    must "$quern" compile bias.qn --dim batch=2..8 -o $linked
    for command in inspect run; do
        expect 1 "$linked is for a linker: link it into a program, or compile the model to a shared object" "$quern" $command $linked
    done
done
head -c 3000 inspected.so >cut.so
expect 1 'cut.so is cut short: it has 3000 bytes' "$quern" run cut.so
# of one that does not run here what its file says; its symbols are not needed
if command -v aarch64-linux-gnu-gcc >/dev/null; then
    must "$quern" compile bias.qn --dim batch=2..8 --target aarch64-linux-gnu --cpu cortex-a72 -o foreign.so --prefix other
    must aarch64-linux-gnu-strip foreign.so
    [ "$(uname -m)" = aarch64 ] || {
        for pattern in '^foreign.so, compiled for aarch64.* cortex-a72$' 'for another architecture$' '^entry infer' '  input  b f32\[4\]' \
            '  output last f32\[batch\]' '  dim    batch = 2\.\.8' '^weights 0 bytes$'; do
            expect 0 "$pattern" "$quern" inspect foreign.so
        done
        expect 1 'foreign.so cannot run here: .* another architecture' "$quern" run foreign.so
    }
    "$quern" inspect foreign.so --format json >foreign.json || fail "inspect foreign.so --format json"
    python3 -c '
import json
m = json.load(open("foreign.json"))
e, = m["entries"]
assert m["targets"] == [m["target"]] and m["target"].split() == ["aarch64-unknown-linux-gnu", "cortex-a72"], m
assert m["refused"] and e["least_workspace_bytes"] is None and e["io"][0]["dims"] == ["batch", 4], m
assert e["symbols"] == [{"name": "batch", "min": 2, "max": 8, "decided": False}], m' || fail "foreign.json"
    for bytes in 100 1000 3000; do # nothing that the file says is trusted
        head -c $bytes foreign.so >cut.so
        expect 1 'cut.so' "$quern" inspect cut.so
    done
fi
# the cache
expect 0 '^some: 0.0 MB in 0 entries' "$quern" cache --cache some
must "$quern" run double.qn --cache some
expect 0 '^some: 0\.[0-9]+ MB in [1-9][0-9]* entries' "$quern" cache --cache some --trim 1G
expect 0 '"entries": [1-9]' "$quern" cache --cache some --json
expect 0 '"bytes": 0, "entries": 0' "$quern" cache --cache some --clear --json
expect 0 '^there is no cache folder' "$quern" cache --cache ''
expect 2 '--trim little: a number of bytes' "$quern" cache --trim little
expect 1 'cannot be used as cache folder' "$quern" cache --cache /dev/null
# a picture, where there is Graphviz; a message where there is none
if command -v dot >/dev/null; then
    expect 0 '^$' "$quern" inspect bias.qn --dim batch=64 --svg plan.svg
    tail -n 1 plan.svg | grep -q '^</svg>' || fail "plan.svg is not complete"
    expect 0 '^$' "$quern" inspect large.qn --svg large.svg
    cat >two.qn <<'END'
graph @main(%x: f32[64, 64], %w: f32[64, 64]) -> (y: f32[64, 64]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 64]
  %1 = dot_general %0, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 64]
  return %1
}
END
    expect 0 '^$' "$quern" inspect two.qn --svg two.svg
    grep -qE 'fill="#[0-9a-f]{6}" stroke="#888"' two.svg || fail "the memory plan has no colours"
    ! grep -ohE 'fill="[^"]*"' ./*.svg | grep -vE '"(#[0-9a-f]{3}|#[0-9a-f]{6}|[a-z]+)"$' || fail "a colour that SVG 1.1 does not have"
    for text in '>large.qn<' '>[a-z_]*\(matmul\|dot_general\)[a-z_]*<' '>exp<' ': contraction<' ': element by element<' '>f32\[256, 256\]<' 'Memory plan'; do
        grep -q -- "$text" large.svg || fail "large.svg does not say '$text'"
    done
    if command -v python3 >/dev/null; then
        python3 -c 'import sys, xml.etree.ElementTree as t; [t.parse(f) for f in sys.argv[1:]]' plan.svg large.svg || fail "the pictures are no XML"
    fi
    expect 1 'no-folder/plan.svg: cannot be written' "$quern" inspect bias.qn --svg no-folder/plan.svg
fi
mkdir empty
expect 1 "no program 'dot' in PATH" env PATH="$PWD/empty" "$quern" inspect bias.qn --svg without.svg
[ ! -e without.svg ] || fail "without.svg is there"
printf '#!/bin/sh\necho "no such luck" >&2\nexit 3\n' >empty/dot
chmod +x empty/dot
expect 1 'dot failed: no such luck' env PATH="$PWD/empty" "$quern" inspect bias.qn --svg without.svg
expect 0 'a whole run' "$quern" tune bias.qn --seconds 0.01
expect 0 'median [0-9.]+ us' "$quern" bench bias.qn --seconds 0.01 --tune
"$quern" tune bias.qn --seconds 0.01 --json >tuned.json || fail "tune --json"
python3 -c 'import json; *_, run = json.load(open("tuned.json"))["kernels"]; assert run["kernel"] is None and run["before_s"] > 0 and run["after_s"] > 0, run' ||
    fail "tuned.json: $(cat tuned.json)"
expect 2 '--seconds x: a number' "$quern" tune bias.qn --seconds x
expect 1 'tuning measures machine code for this CPU' "$quern" tune bias.qn --target interp
expect 0 '^cpu ' "$quern" targets
expect 2 "what is 'x'" "$quern" targets x
expect 0 '^cuda +there is no GPU here: .*no/libcuda.so' env QUERN_CUDA_LIBRARY=no/libcuda.so "$quern" targets
cat >numbers.qn <<'END_OF_MODEL'
graph @main(%x: f64[2]) -> (none: f64[2], inf: f64[2], less: f64[2], same: bool[2], one: i32[2]) {
  %0 = sub %x, %x : f64[2]
  %1 = div %0, %0 : f64[2]
  %2 = exp %0 : f64[2]
  %3 = div %2, %0 : f64[2]
  %4 = neg %3 : f64[2]
  %5 = compare %0, %0 {direction = eq} : bool[2]
  %6 = convert %2 {dtype = i32} : i32[2]
  return %1, %3, %4, %5, %6
}
END_OF_MODEL
"$quern" run numbers.qn --json >numbers.json || fail "run --json"
python3 -c '
import json
outputs = json.load(open("numbers.json"))["outputs"]
assert outputs[0] == {"name": "none", "dtype": "f64", "dims": [2], "data": ["NaN"] * 2}, outputs
assert [o["data"] for o in outputs[1:]] == [["Infinity"] * 2, ["-Infinity"] * 2, [True] * 2, [1] * 2], outputs' || fail "numbers.json: $(cat numbers.json)"
QUERN_CUDA_LIBRARY=no/libcuda.so "$quern" targets --json >targets.json || fail "targets --json"
"$quern" check bias.qn --dim batch=2..8 --json >good.json || fail "check --json"
expect 0 '^loaded bias.qn in [0-9.]+ ms$' "$quern" check bias.qn -v
"$quern" check bad.qn --json >bad.json && fail "check --json of a model that is refused ends with 0"
"$quern" inspect inspected.so --json >json.json && "$quern" inspect inspected.so --format json | cmp -s - json.json || fail "inspect --json"
python3 -c '
import json
t, good, bad = (json.load(open(f"{name}.json")) for name in ("targets", "good", "bad"))
cpu = t["cpu"]
assert (cpu["name"] is None) != (cpu["missing"] is None) and cpu["threads"] > 0 and cpu["vector_bits"] % 128 == 0, t
assert t["gpus"] == [] and "no/libcuda.so" in t["no_gpu"] and len(t["triples"]) == 2, t
assert good["supported"] is True and good["errors"] == [] and sum(good["ops"].values()) == 4, good
e, = good["entries"]
assert e["io"][0] == {"name": "x", "role": "input", "dtype": "f32", "dims": ["batch", 4]} and e["io"][-1]["role"] == "output", e
assert bad["supported"] is False and bad["n_errors"] == len(bad["errors"]) > 0 and bad["entries"] == [] and bad["ops"] == {}, bad
assert bad["errors"][0]["status"] == "model" and bad["errors"][0]["text"].startswith("bad.qn:2:8: "), bad' || fail "the JSON of targets or check"

[ $n_failed -eq 0 ] || echo "$n_failed failed"
exit $((n_failed > 0))
