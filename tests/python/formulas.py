"""What operators of com.microsoft in transformers compute, in NumPy, and how tests ask Quern for it."""

import math

import numpy as np

import microsoft

rng = np.random.default_rng(11)


def floats(*shape):
    return rng.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int32)


def split(given, constants):
    """Arrays by name in the node's order, None where one is left out: those of the model's inputs, and its constants."""
    order = [k if v is not None else "" for k, v in given.items()]
    while not order[-1]:
        order.pop()
    there = {k: v for k, v in given.items() if v is not None}
    return ({k: v for k, v in there.items() if k not in constants},
            {**{k: v for k, v in there.items() if k in constants}, "order": order})


def run(op, given, constants=(), n_outputs=1, dims=None, domain=microsoft.MICROSOFT, **attributes):
    return microsoft.run(op, *split(given, constants), n_outputs, dims, domain, **attributes)


def close(got, want, tolerance=1e-4):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# ---- formulas ----

def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, scale, offset=0, epsilon=1e-12):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + epsilon) * scale + offset


def rms_norm(x, scale, epsilon=1e-12):
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon) * scale


def heads(x, n):
    """[B, S, n * D] -> [B, n, S, D]"""
    return x.reshape(*x.shape[:2], n, -1).swapaxes(1, 2)


def attend(q, k, v, bias=0, visible=None, scale=None, cap=0, sink=None):
    """Of [B, H, S, D], [B, G, T, D], [B, G, T, E]: [B, S, H * E]. `visible` […, S, T]: where it is false the weight is 0."""
    k, v = (x.repeat(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.swapaxes(2, 3) * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    scores = (cap * np.tanh(scores / cap) if cap else scores) + bias
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    e = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e30))
    more = 0 if sink is None else np.exp(sink[:, None, None] - np.maximum(scores.max(-1, keepdims=True), -1e30))
    y = e / (e.sum(-1, keepdims=True) + more) @ v
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)


def causal(queries, keys):
    return np.arange(keys) <= np.arange(queries)[:, None] + keys - queries


def turn(x, cosine, sine, interleaved):
    """x [B, H, S, D] by the angles of [B, S, half]."""
    half, cosine, sine = cosine.shape[-1], cosine[:, None], sine[:, None]
    y = x.copy()
    re, im = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    y[..., re] = cosine * x[..., re] - sine * x[..., im]
    y[..., im] = sine * x[..., re] + cosine * x[..., im]
    return y
