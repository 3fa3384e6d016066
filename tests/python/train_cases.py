"""The small problems on which optimizers, schedules and losses are compared with PyTorch: train_reference.json has its
numbers (scripts/make-train-reference). Everything follows from formulas, so that both sides start alike."""
import numpy as np

ROWS, INPUTS, HIDDEN, OUTPUTS, BATCHES, STEPS = 8, 5, 7, 3, 3, 12
LOSSES = ("cross_entropy", "mse", "huber", "bce", "bce_with_logits")


def wave(n, phase, scale):
    return (scale * np.sin(np.arange(n, dtype=np.float64) * 1.7 + phase)).astype(np.float32)


def weights():
    return {"w1": wave(INPUTS * HIDDEN, 1, 0.6).reshape(INPUTS, HIDDEN), "b1": wave(HIDDEN, 2, 0.1),
            "w2": wave(HIDDEN * OUTPUTS, 3, 0.5).reshape(HIDDEN, OUTPUTS), "b2": wave(OUTPUTS, 4, 0.1)}


def batch(loss, i):
    x = wave(ROWS * INPUTS, 5 + i, 1.0).reshape(ROWS, INPUTS)
    y = wave(ROWS * OUTPUTS, 9 + i, 1.5).reshape(ROWS, OUTPUTS)
    if loss == "cross_entropy":
        return x, y.argmax(1)
    return x, y if loss in ("mse", "huber") else (y > 0).astype(np.float32)


def numbers(a):
    return str(a.tolist())


def model(loss):
    """tanh(x w1 + b1) w2 + b2; of bce its logistic."""
    w, dims = weights(), "{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}"
    params = ", ".join(f"%{k}: f32{list(v.shape)} param = {numbers(v)}" for k, v in w.items())
    return f"""graph @main(%x: f32[{ROWS}, {INPUTS}], {params}) -> (y: f32[{ROWS}, {OUTPUTS}]) {{
  %0 = dot_general %x, %w1 {dims} : f32[{ROWS}, {HIDDEN}]
  %1 = broadcast %b1 {{axes = [1], dims = [{ROWS}, {HIDDEN}]}} : f32[{ROWS}, {HIDDEN}]
  %2 = add %0, %1 : f32[{ROWS}, {HIDDEN}]
  %3 = tanh %2 : f32[{ROWS}, {HIDDEN}]
  %4 = dot_general %3, %w2 {dims} : f32[{ROWS}, {OUTPUTS}]
  %5 = broadcast %b2 {{axes = [1], dims = [{ROWS}, {OUTPUTS}]}} : f32[{ROWS}, {OUTPUTS}]
  %z = add %4, %5 : f32[{ROWS}, {OUTPUTS}]
  %p = logistic %z : f32[{ROWS}, {OUTPUTS}]
  return {"%p" if loss == "bce" else "%z"}
}}
""".encode()


# name: options of quern.train
CASES = {
    "sgd": dict(optimizer="sgd", learning_rate=0.1),
    "sgd momentum": dict(optimizer="sgd", learning_rate=0.05, momentum=0.9),
    "sgd nesterov": dict(optimizer="sgd", learning_rate=0.05, momentum=0.9, nesterov=True),
    "sgd decay": dict(optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.1),
    "adam": dict(optimizer="adam", learning_rate=0.01),
    "adam decay": dict(optimizer="adam", learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1),
    "adamw": dict(optimizer="adamw", learning_rate=0.01, weight_decay=0.1),
    "rmsprop": dict(optimizer="rmsprop", learning_rate=0.01),
    "rmsprop momentum": dict(optimizer="rmsprop", learning_rate=0.01, alpha=0.9, momentum=0.5, weight_decay=0.01),
    "adagrad": dict(optimizer="adagrad", learning_rate=0.05, weight_decay=0.01),
    "lars": dict(optimizer="lars", learning_rate=10.0, momentum=0.9, weight_decay=0.01),
    "lamb": dict(optimizer="lamb", learning_rate=0.02, weight_decay=0.01),
    "warm-up": dict(optimizer="sgd", learning_rate=0.1, warmup_steps=4),
    "cosine": dict(optimizer="sgd", learning_rate=0.1, schedule="cosine", schedule_steps=10, schedule_factor=0.1),
    "warm-up, cosine": dict(optimizer="adamw", learning_rate=0.02, weight_decay=0.1, schedule="cosine", warmup_steps=3,
                            schedule_steps=6),
    "linear": dict(optimizer="sgd", learning_rate=0.1, schedule="linear", schedule_steps=8),
    "step": dict(optimizer="sgd", learning_rate=0.1, schedule="step", schedule_steps=3, schedule_factor=0.5),
    "clip": dict(optimizer="sgd", learning_rate=0.1, clip_norm=0.2),
    "clip adam": dict(optimizer="adam", learning_rate=0.01, clip_norm=0.1, weight_decay=0.1),
    "ema": dict(optimizer="sgd", learning_rate=0.1, ema=0.8),
    **{"loss " + loss: dict(optimizer="sgd", learning_rate=0.1, loss=loss) for loss in LOSSES},
    "loss cross_entropy 0.2": dict(optimizer="sgd", learning_rate=0.1, loss="cross_entropy", label_smoothing=0.2),
    "loss huber 0.3": dict(optimizer="sgd", learning_rate=0.1, loss="huber", huber_delta=0.3),
}
