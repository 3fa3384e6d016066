"""Two spirals, told apart by a small network: built as text, trained and run by compiled code.

    PYTHONPATH=python python3 examples/python/spirals.py
"""

import numpy as np

import quern

HIDDEN = 48
rng = np.random.default_rng(0)


def layer(i, inputs, outputs, activation):
    """A dense layer as Quern's text: %h{i} -> %h{i + 1}."""
    lines = [
        f"  %p{i} = dot_general %h{i}, %w{i} {{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}}"
        f" : f32[batch, {outputs}]",
        f"  %c{i} = broadcast %b{i} {{axes = [1], dims = [batch, {outputs}]}} : f32[batch, {outputs}]",
        f"  %s{i} = add %p{i}, %c{i} : f32[batch, {outputs}]",
        f"  %h{i + 1} = {activation} %s{i} : f32[batch, {outputs}]" if activation else "",
    ]
    weights = rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).round(4).tolist()
    parameters = [f"%w{i}: f32[{inputs}, {outputs}] param = {weights}", f"%b{i}: f32[{outputs}] param = splat 0"]
    return parameters, "\n".join(line for line in lines if line)


def network(*widths):
    parameters, body = [], []
    for i in range(len(widths) - 1):
        last = i == len(widths) - 2
        new, text = layer(i, widths[i], widths[i + 1], None if last else "tanh")
        parameters += new
        body.append(text)
    signature = ",\n    ".join([f"%h0: f32[batch, {widths[0]}]", *parameters])
    return (f"graph @main({signature}) -> (logits: f32[batch, {widths[-1]}]) {{\n" + "\n".join(body)
            + f"\n  return %s{len(widths) - 2}\n}}\n").encode()


def spirals(n):
    angle = np.sqrt(rng.uniform(0.05, 1, n)) * 3 * np.pi
    label = rng.integers(0, 2, n)
    turn = angle + label * np.pi
    return (np.stack([np.cos(turn), np.sin(turn)], 1) * (angle / 10)[:, None]).astype(np.float32), label


x, y = spirals(1000)
test_x, test_y = spirals(1000)
t = quern.train(network(2, HIDDEN, HIDDEN, 2), loss="cross_entropy", optimizer="adam", learning_rate=0.01)
for step in range(801):
    batch = rng.integers(0, len(x), 256)
    loss = t.step([x[batch]], y[batch])
    if step % 200 == 0:
        right = np.mean(t([test_x])[0].argmax(1) == test_y)
        print(f"step {step:4}: loss {loss:.4f}, {100 * right:.1f}% of the test points right")
