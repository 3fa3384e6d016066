#!/usr/bin/env bash
# quern train --data-parallel as ranks of mpirun: the numbers of one rank with the whole batch, the same bits in every run, one
# rank that prints and writes.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
[ -e "$QUERN_BUILD_DIR/libquern_mpi.so" ] && mpirun --version >/dev/null 2>&1 || { echo "no MPI here"; exit 77; }
export QUERN_MPI=$QUERN_BUILD_DIR/libquern_mpi.so ASAN_OPTIONS=detect_leaks=0
ranks() { local n=$1; shift; timeout 60 mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$n" "$@"; }

model=$source/examples/digits/untrained.onnx data=$source/examples/digits/digits.npz
train=("$quern" train "$model" --data "$data" --batch 60 --optimizer adam --threads 1)

expect 0 'epoch 2/2: loss' "${train[@]}" --epochs 2 -o alone.onnx
alone=$("${train[@]}" --epochs 2 -o alone.onnx)
expect 0 'epoch 2/2: loss' ranks 2 "${train[@]}" --data-parallel --epochs 2 -o two.onnx
two=$(ranks 2 "${train[@]}" --data-parallel --epochs 2 -o again.onnx 2>&1)
same two.onnx again.onnx
four=$(ranks 4 "${train[@]}" --data-parallel --bucket-bytes 1000 --epochs 2 -o four.onnx 2>&1)
one=$("${train[@]}" --data-parallel --epochs 2 -o one.onnx 2>&1) # without mpirun
same alone.onnx one.onnx
for said in "$two" "$four" "$one"; do
    [ "$(grep -c 'epoch 1/2: loss' <<<"$said")" = 1 ] || fail "not one rank prints: $said"
    python3 - "$alone" "$said" <<'END' || fail "other losses: $alone; $said"
import re, sys
alone, ranks = ([float(x) for x in re.findall(r"loss ([0-9.e-]+)", text)] for text in sys.argv[1:])
assert len(alone) == len(ranks) == 3 and all(abs(a - b) <= 2e-4 * a for a, b in zip(alone, ranks)), (alone, ranks)
END
done

# ---- in one go and in two
expect 0 'epoch 1/1' ranks 2 "${train[@]}" --data-parallel --epochs 1 --checkpoint c.safetensors
expect 0 'resumed c.safetensors after 1 epochs' ranks 2 "${train[@]}" --data-parallel --epochs 2 --checkpoint c.safetensors --resume -o resumed.onnx
same two.onnx resumed.onnx

# ---- mistakes: a message, and an end
expect 1 'a batch of 60 does not go into 7 equal parts, one for each rank' ranks 7 "${train[@]}" --data-parallel -o o.onnx
cp "$model" bad.safetensors
expect 1 'bad.safetensors' ranks 2 "${train[@]}" --data-parallel --epochs 2 --checkpoint bad.safetensors --resume
# One rank alone has them: all end, none waits.
cat >each <<'END'
#!/bin/sh
# each DIRECTORY COMMAND...: the command, in which DATA is DIRECTORY and the rank's number
data=$1/${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}.npz
shift
for word; do
    shift
    [ "$word" = DATA ] && word=$data
    set -- "$@" "$word"
done
exec "$@"
END
chmod +x each
mkdir -p missing shorter labels
python3 - "$data" <<'END' || fail "no NumPy?"
import sys
import numpy as np
data = dict(np.load(sys.argv[1]))
np.savez("missing/0.npz", **data)
for folder in "shorter", "labels":
    np.savez(folder + "/0.npz", **data)
np.savez("shorter/1.npz", **{name: x[:-120] for name, x in data.items()})
name = min(data, key=lambda name: data[name].ndim) # the labels
bad = dict(data)
bad[name] = bad[name].copy()
bad[name][-40:] = 10
np.savez("labels/1.npz", **bad)
END
each=("$quern" train "$model" --data DATA --batch 60 --optimizer adam --threads 1 --data-parallel --epochs 2 -o o.onnx)
expect 1 'missing/1.npz' ranks 2 ./each missing "${each[@]}"
expect 1 'has [0-9]+ samples for rank [01], and from [0-9]+ to [0-9]+ for all' ranks 2 ./each shorter "${each[@]}"
expect 1 'index' ranks 2 ./each labels "${each[@]}"
expect 2 'are for --data-parallel' "${train[@]}" --sync-batch-norm -o o.onnx
QUERN_MPI=/nowhere/libquern_mpi.so expect 1 'no MPI here: /nowhere/libquern_mpi.so' "${train[@]}" --data-parallel -o o.onnx

[ $n_failed -eq 0 ]
