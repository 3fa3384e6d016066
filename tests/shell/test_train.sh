#!/usr/bin/env bash
# quern train: what it learns, writes and refuses; and the step in a program that knows nothing of Quern.
set -u
. "${QUERN_SOURCE_DIR:?}/tests/shell/common.sh"
differ() { ! cmp -s "$1" "$2" || fail "$1 and $2 are the same"; }

model=$source/examples/digits/untrained.onnx data=$source/examples/digits/digits.npz
train=("$quern" train "$model" --data "$data" --batch 64 --optimizer adam)

# ---- learning: the same bits with one thread, with two, in one go and in two
expect 0 'epoch 3/3: loss .*' "${train[@]}" --epochs 3 --threads 1 -o one.onnx
expect 0 '^trained: loss .*, accuracy 9[0-9]\.' "${train[@]}" --epochs 3 --threads 2 -o two.onnx
same one.onnx two.onnx
differ one.onnx "$model"
[ "$(stat -c %s one.onnx)" = "$(stat -c %s "$model")" ] || fail "one.onnx has another size"
expect 0 'epoch 2/2' "${train[@]}" --epochs 2 --checkpoint c.safetensors
cp c.safetensors after2.safetensors
expect 0 'resumed c.safetensors after 2 epochs' "${train[@]}" --epochs 3 --checkpoint c.safetensors --resume -o three.onnx
same one.onnx three.onnx
expect 0 'epoch 3/3' "${train[@]}" --epochs 3 --seed 1 -o other.onnx
differ one.onnx other.onnx
expect 0 'test loss .*, accuracy' "${train[@]}" --test "$data" --epochs 1 -o tested.onnx
expect 0 'logits|f32\[2, 10\]' "$quern" run one.onnx --dim batch=2
for optimizer in sgd adamw rmsprop adagrad lars lamb; do
    expect 0 'epoch 1/1: loss' "$quern" train "$model" --data "$data" --optimizer $optimizer --epochs 1 \
        --clip-norm 1 --weight-decay 0.01 --schedule cosine --schedule-steps 20 --warmup-steps 2 --ema 0.9 -o o.onnx
done
expect 0 'epoch 1/1: loss' "${train[@]}" --label-smoothing 0.1 --epochs 1 -o smooth.onnx
expect 0 'epoch 1/1: loss' "${train[@]}" --epochs 1 -o sharp.onnx
differ smooth.onnx sharp.onnx
expect 1 'label_smoothing is 1: it must be at least 0 and below 1' "${train[@]}" --label-smoothing 1 -o o.onnx
# a model that says its loss itself: the distance of digits from w, which becomes their mean
cat >distance.qn <<'END'
graph @main(%x: f32[n, 64], %w: f32[64] param) -> (loss: f32[n, 64]) {
  %0 = broadcast %w {axes = [1], dims = [n, 64]} : f32[n, 64]
  %1 = sub %x, %0 : f32[n, 64]
  %2 = mul %1, %1 : f32[n, 64]
  return %2
}
END
expect 0 '^trained: loss 18\.[0-9]*$' "$quern" train distance.qn --data "$data" --loss output --optimizer adam \
    --learning-rate 0.5 --epochs 2 --checkpoint distance.safetensors

# ---- loss scaling: a power of two changes no bit of a float32 model
expect 0 'epoch 3/3' "${train[@]}" --epochs 3 --loss-scale 1024 --loss-scale-steps 20 -o scaled.onnx
same one.onnx scaled.onnx
expect 1 'steps after which a loss_scale above 0' "${train[@]}" --loss-scale-steps 20 -o o.onnx

# ---- less memory: the same model
expect 0 '^train_step: .* of workspace' "${train[@]}" --epochs 3 --remat all -o all.onnx
same one.onnx all.onnx
expect 0 '^train_step: .* of workspace' "${train[@]}" --epochs 1 -v --emit-step plan.so -o o.onnx
expect 0 '^eval: at most .* of workspace' "${train[@]}" --epochs 1 -v -o o.onnx
expect 1 "'infer' needs .* the memory limit is 1.0 kB" "$quern" train "$model" --batch 64 --memory-limit 1K --emit-step plan.so
expect 2 'memory-limit much: a number of bytes' "${train[@]}" --memory-limit much -o o.onnx

# ---- refused: damaged checkpoints, other data; they stay, and so does what was there
head -c 1000 after2.safetensors >cut.safetensors
for damaged in cut.safetensors "$data" "$model"; do
    cp "$damaged" d.safetensors
    expect 1 'damaged|no safetensors' "${train[@]}" --epochs 3 --checkpoint d.safetensors --resume -o d.onnx
    same d.safetensors "$damaged"
done
cp after2.safetensors e.safetensors
printf 'x' | dd of=e.safetensors bs=1 seek=100000 conv=notrunc 2>/dev/null
expect 1 'does not have the hash|do not have the hash' "${train[@]}" --epochs 3 --checkpoint e.safetensors --resume -o d.onnx
expect 1 'made with --batch 64 --seed 0' "${train[@]}" --seed 1 --epochs 3 --checkpoint after2.safetensors --resume -o d.onnx
expect 1 'another optimizer' "${train[@]}" --optimizer sgd --epochs 3 --checkpoint after2.safetensors --resume -o d.onnx
expect 1 'absent.safetensors: cannot be read' "${train[@]}" --checkpoint absent.safetensors --resume
[ ! -e d.onnx ] && [ ! -e absent.safetensors ] || fail "something was written"

# ---- a loss that is no number ends it; the checkpoint from before stays
cp after2.safetensors nan.safetensors
expect 1 'the loss is (NaN|infinite) in epoch [0-9]*, batch [0-9]*: nothing is written' \
    "${train[@]}" --optimizer sgd --learning-rate 1e12 --epochs 4 --checkpoint nan.safetensors -o nan.onnx
same after2.safetensors nan.safetensors
[ ! -e nan.onnx ] || fail "nan.onnx was written"

expect 1 'check-numerics names the node' "${train[@]}" --optimizer sgd --learning-rate 1e12 --epochs 4 -o nan.onnx
expect 1 '(untrained.onnx|loss cross_entropy|optimizer sgd).*: [a-z_]+ gives (NaN|infinite): (output|state)' \
    "${train[@]}" --optimizer sgd --learning-rate 1e12 --epochs 4 -o nan.onnx --check-numerics
[ ! -e nan.onnx ] || fail "nan.onnx was written"

# ---- mistakes
expect 2 'learn from what' "$quern" train "$model"
expect 2 'where to' "$quern" train "$model" --data "$data"
expect 2 'resume goes on from what' "$quern" train "$model" --data "$data" -o x.onnx --resume
expect 2 '--epochs many: a number' "$quern" train "$model" --data "$data" -o x.onnx --epochs many
expect 2 '--learning-rate -1: a number of at least 0' "$quern" train "$model" --data "$data" -o x.onnx --learning-rate -1
expect 1 'momentum is an option of sgd, rmsprop, lars, and not of adam' "${train[@]}" --momentum 0.9 -o x.onnx
expect 1 "untrained.onnx: no dimension is called 'rows'" "${train[@]}" --dim rows=4 -o x.onnx
expect 2 '--beta1 0: a number above 0' "$quern" train "$model" --data "$data" -o x.onnx --beta1 0
expect 1 "there is no optimizer 'sdg': expected sgd" "$quern" train "$model" --data "$data" -o x.onnx --optimizer sdg
for label in 99 -1; do # none of 0 .. 9
    python3 -c "
import numpy, sys
data = dict(numpy.load('$data'))
data['y'][5] = $label
numpy.savez('label.npz', **data)" || break
    expect 1 'cross_entropy\): an index is outside' "$quern" train "$model" --data label.npz -o x.onnx
done
expect 1 'no folder|No such file' "$quern" train "$model" --data "$data" -o absent/x.onnx
expect 1 "no parameter is called 'nothing'" "$quern" train "$model" --data "$data" -o x.onnx --params nothing
expect 1 'too few for a batch of 5000' "$quern" train "$model" --data "$data" -o x.onnx --batch 5000
expect 1 "'target' is f32|is i64\[1797\] in the data" "$quern" train "$model" --data "$data" --loss mse -o x.onnx
echo 'graph @main(%x: f32[batch, 2], %w: f32[2] param = [1, 2]) -> (y: f32[batch, 2]) {
  %0 = broadcast %w {axes = [1], dims = [batch, 2]} : f32[batch, 2]
  %1 = mul %x, %0 : f32[batch, 2]
  return %1
}' >linear.qn
expect 1 'only ONNX models are written back' "$quern" train linear.qn --data "$data" -o x.qn
[ ! -e x.onnx ] && [ ! -e x.qn ] || fail "a mistake wrote a file"

# ---- the step as a shared object, in C with its header
expect 0 '' "$quern" train linear.qn --loss mse --optimizer adam --learning-rate 0.1 --batch 4 --emit-step step.so
cat >main.c <<'END'
#include <stdio.h>
#include "step.h"

static QUERN_ALIGN(64) unsigned char workspace[STEP_TRAIN_STEP_WORKSPACE_BYTES + 1];
static step_state state;

int main(void)
{
    float x[8] = { 1, 1, 2, 1, 3, 2, 1, 4 }, target[8], loss = 0, first = 0;
    step_train_step_io io = { 0 };
    for (int i = 0; i < 8; i++)
        target[i] = 3 * x[i];
    step_init(&state);
    io.x = x;
    io.target = target;
    io.loss = &loss;
    for (int i = 0; i < 200; i++) {
        int status = step_train_step(&io, &state, workspace, NULL);
        if (status)
            return status;
        if (i == 0)
            first = loss;
    }
    printf("%.3f -> %.3f\n", first, loss);
    return !(loss < 0.01f * first);
}
END
if cc -std=c11 -Wall -Wextra -Wpedantic -Werror main.c ./step.so -o program; then
    expect 0 ' -> 0\.0' ./program
    [ -z "$(nm -u step.so)" ] || fail "step.so needs $(nm -u step.so)"
else
    fail "the header does not compile"
fi

# ---- as an archive, by the ending of its name
must "$quern" train linear.qn --loss mse --optimizer adam --learning-rate 0.1 --batch 4 --emit-step step.a
must cc -std=c11 main.c step.a -o archived
expect 0 ' -> 0\.0' ./archived

# ---- the planned memory is what a step takes: to the last line of 64 bytes, and none behind it
expect 0 '' "$quern" train "$model" --optimizer adam --batch 32 --emit-step planned.so
cat >planned.c <<'END'
#include <stdio.h>
#include <string.h>
#include "planned.h"

enum { PLANNED = PLANNED_TRAIN_STEP_WORKSPACE_BYTES, UNTOUCHED = 0xa5 };
static QUERN_ALIGN(64) unsigned char workspace[PLANNED + 4096];
static planned_state state;

int main(void)
{
    static float image[32 * 64];
    int64_t target[32];
    float loss = 0;
    long used = sizeof workspace;
    planned_train_step_io io = { 0 };
    for (int i = 0; i < 32 * 64; i++)
        image[i] = (float)(i * 37 % 101) / 101;
    for (int i = 0; i < 32; i++)
        target[i] = i % 10;
    memset(workspace, UNTOUCHED, sizeof workspace);
    planned_init(&state);
    io.image = image;
    io.target = target;
    io.loss = &loss;
    if (planned_train_step(&io, &state, workspace, NULL))
        return 2;
    while (used > 0 && workspace[used - 1] == UNTOUCHED)
        used--;
    printf("%ld of %d bytes\n", used, PLANNED);
    return used > PLANNED || used <= PLANNED - 64;
}
END
if cc -std=c11 -Wall -Wextra -Wpedantic -Werror planned.c ./planned.so -o planned; then
    expect 0 ' of [0-9]+ bytes' ./planned
else
    fail "the header does not compile"
fi

# ---- the step in parts: gradients of two batches make that of one
sed 's/  return %1/  %2 = dot_general %1, %1 {x_batch = [0], x_contract = [1], y_batch = [0], y_contract = [1]} : f32[batch]\n  %3 = tanh %2 : f32[batch]\n  %4 = broadcast %3 {axes = [0], dims = [batch, 2]} : f32[batch, 2]\n  %5 = add %1, %4 : f32[batch, 2]\n  return %5/' linear.qn >curved.qn
expect 0 '' "$quern" train curved.qn --loss mse --optimizer adam --learning-rate 0.1 --dim batch=1..8 --parts --input-gradients \
    --emit-step parts.so
cat >parts.c <<'END'
#include <math.h>
#include <stdio.h>
#include "parts.h"

enum { ROWS = 8 };
static QUERN_ALIGN(64) unsigned char workspace[1 << 16], memory[2][1 << 12];
static parts_state whole, pieces;

int main(void)
{
    float x[2 * ROWS], target[2 * ROWS], y[2 * ROWS], gx[2 * ROWS], loss, part_loss[2], worst = 0;
    for (int i = 0; i < 2 * ROWS; i++) {
        x[i] = (float)(i % 5) / 4 - 0.3f;
        target[i] = 3 * x[i];
    }
    parts_init(&whole);
    parts_init(&pieces);
    for (int i = 0; i < 20; i++) {
        parts_train_step_io step = { .x = x, .target = target, .loss = &loss, .dims = { ROWS } };
        float sum[2] = { 0, 0 }, share[2] = { 3.0f / ROWS, 5.0f / ROWS };
        parts_forward_io forward[2];
        parts_backward_io backward[2];
        for (int k = 0; k < 2; k++) {
            const int first = k ? 3 : 0, rows = k ? ROWS - 3 : 3;
            forward[k] = (parts_forward_io){ .x = x + 2 * first, .target = target + 2 * first, .y = y + 2 * first,
                                             .loss = &part_loss[k], .dims = { rows } };
            backward[k] = (parts_backward_io){ .grad_loss = &share[k], .x = x + 2 * first, .target = target + 2 * first,
                                               .grad_x = gx + 2 * first, .dims = { rows } };
            if (parts_residual_bytes(&forward[k].dims) > (int64_t)sizeof memory[k])
                return 2;
            parts_residuals(&forward[k], &backward[k], memory[k]);
            if (parts_forward(&forward[k], &pieces, workspace, NULL))
                return 3;
        }
        for (int k = 0; k < 2; k++) {
            float gradient[2];
            backward[k].grad_w = gradient;
            if (parts_backward(&backward[k], &pieces, workspace, NULL))
                return 4;
            sum[0] += gradient[0];
            sum[1] += gradient[1];
        }
        parts_update_io update = { .grad_w = sum };
        if (parts_update(&update, &pieces, workspace, NULL) || parts_train_step(&step, &whole, workspace, NULL))
            return 5;
        for (int k = 0; k < 2; k++)
            worst = fmaxf(worst, fabsf(pieces.w[k] - whole.w[k]));
        worst = fmaxf(worst, fabsf(loss - share[0] * part_loss[0] - share[1] * part_loss[1]));
    }
    printf("w %.3f %.3f, apart by %g\n", whole.w[0], whole.w[1], worst);
    return !(worst < 1e-5f && whole.w[0] > 1.1f && gx[2] != 0);
}
END
if cc -std=c11 -Wall -Wextra -Wpedantic -Werror parts.c ./parts.so -lm -o parts; then
    expect 0 'apart by' ./parts
    [ -z "$(nm -u parts.so)" ] || fail "parts.so needs $(nm -u parts.so)"
else
    fail "the header of the parts does not compile"
fi
expect 2 'are for hosts' "$quern" train linear.qn --parts --data "$data" -o x.onnx
expect 1 'in parts' "$quern" train linear.qn --input-gradients --emit-step x.so
expect 0 '' "$quern" train linear.qn --loss none --parts --batch 4 --emit-step own.so
grep -q 'own_forward_io' own.h && grep -q 'grad_y' own.h && ! grep -q "float \*target" own.h || fail "own.h has a loss"

[ $n_failed -eq 0 ] && echo "all as expected"
exit $((n_failed != 0))
