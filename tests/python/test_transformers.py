"""Operators of com.microsoft in transformers, as ONNX Runtime's optimizers and onnxruntime-genai write them: each against its formula
in NumPy, compiled and interpreted."""

import unittest

import numpy as np

import microsoft
import quern
from formulas import attend, causal, close, floats, gelu, gelu_tanh, heads, ints, layer_norm, rms_norm, rng, run, sigmoid, split, turn
from microsoft import helper, numpy_helper, pack_bits


class Fused(unittest.TestCase):
    def test_activations(self):
        x, b = floats(2, 3, 34), floats(34)
        close(run("Gelu", {"x": x}), gelu(x))
        close(run("BiasGelu", {"x": x, "b": b}, ["b"]), gelu(x + b))
        close(run("FastGelu", {"x": x}), gelu_tanh(x))
        close(run("FastGelu", {"x": x, "b": b}, ["b"]), gelu_tanh(x + b))
        for alpha in (1.702, 1.0):
            close(run("QuickGelu", {"x": x}, alpha=alpha), x * sigmoid(alpha * x))
        close(run("BiasSplitGelu", {"x": x, "b": b}), (x + b)[..., :17] * gelu((x + b)[..., 17:]))
        close(run("BiasAdd", {"x": x, "b": b, "s": x[:, ::-1].copy()}), x + b + x[:, ::-1])

    def test_without_elements(self):
        """Constants of none are folded, too."""
        self.assertEqual(run("BiasGelu", {"x": floats(2, 0, 8), "b": floats(8)}, "xb").shape, (2, 0, 8))

    def test_products(self):
        a, b = floats(2, 3, 5, 7), floats(2, 3, 7, 6)
        for ta, tb, alpha in ((0, 0, 1.0), (1, 0, 0.5), (0, 1, 0.5), (1, 1, 1.0)):
            turned = [np.ascontiguousarray(x.swapaxes(2, 3) if t else x) for x, t in ((a, ta), (b, tb))]
            for op in ("FusedMatMul", "TransposeMatMul"):
                close(run(op, dict(zip("ab", turned)), transA=ta, transB=tb, alpha=alpha), alpha * (a @ b))
            moved = [np.ascontiguousarray(np.moveaxis(x, 2, 0)) for x in turned]
            close(run("FusedMatMul", dict(zip("ab", moved)), transA=ta, transB=tb, alpha=alpha, transBatchA=1, transBatchB=1), alpha * (a @ b))
        close(run("FusedMatMulActivation", {"a": a, "b": b}, activation="LeakyRelu", activation_alpha=0.1),
              np.where(a @ b < 0, 0.1 * (a @ b), a @ b))
        close(run("GemmFastGelu", {"a": a[0, 0], "b": b[0, 0], "c": b[0, 0, 0].copy()}, "bc"), gelu_tanh(a[0, 0] @ b[0, 0] + b[0, 0, 0]))

    def test_activations_of_products(self):
        a, b, c = floats(5, 7), floats(6, 7), floats(6)
        y = 0.5 * (a @ b.T) + 2 * c
        for name, f, more in (("", lambda y: y, {}), ("Relu", lambda y: np.maximum(y, 0), {}), ("Tanh", np.tanh, {}),
                              ("Elu", lambda y: np.where(y < 0, 0.7 * np.expm1(y), y), {"activation_alpha": 0.7}),
                              ("HardSigmoid", lambda y: np.clip(0.3 * y + 0.4, 0, 1), {"activation_alpha": 0.3, "activation_beta": 0.4})):
            close(run("FusedGemm", {"a": a, "b": b, "c": c}, "bc", activation=name, transB=1, alpha=0.5, beta=2.0, **more), f(y))
        x, w = floats(1, 2, 5, 6), floats(3, 2, 1, 1)
        y = np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0])
        z = floats(*y.shape)
        for name, f, params in (("Relu", lambda y: np.maximum(y, 0), None), ("Clip", lambda y: np.clip(y, -0.1, 0.6), [-0.1, 0.6]),
                                ("LeakyRelu", lambda y: np.where(y < 0, 0.2 * y, y), [0.2]), ("Sigmoid", sigmoid, None)):
            more = {"activation_params": params} if params else {}
            close(run("FusedConv", {"x": x, "w": w}, "w", activation=name, **more), f(y))
            close(run("FusedConv", {"x": x, "w": w, "b": c[:3], "z": z}, "wb", activation=name, **more), f(y + c[:3, None, None] + z))


class Norms(unittest.TestCase):
    def test_of_sums(self):
        x, scale, beta, bias = floats(2, 5, 16), floats(16), floats(16), floats(16)
        for skip in (floats(2, 5, 16), floats(1, 5, 16), floats(5, 16)):
            for offset, more in ((None, None), (beta, None), (beta, bias)):
                got = run("SkipLayerNormalization", {"x": x, "s": skip, "g": scale, "o": offset, "b": more}, "gob", [0, 3], epsilon=1e-5)
                total = x + skip + (0 if more is None else more)
                close(got[0], layer_norm(total, scale, 0 if offset is None else offset, 1e-5))
                close(got[1], total)
        for more in (None, bias):
            got = run("SkipSimplifiedLayerNormalization", {"x": x[0], "s": skip, "g": scale, "b": more}, "gb", [0, 3])
            total = x[0] + skip + (0 if more is None else more)
            close(got[0], rms_norm(total, scale))
            close(got[1], total)

    def test_under_other_names(self):
        x, scale = floats(2, 5, 16), floats(16)
        close(run("SimplifiedLayerNormalization", {"x": x, "g": scale}, "g", domain="", epsilon=1e-3), rms_norm(x, scale, 1e-3))

    def test_of_groups(self):
        """Channels last and first, behind a sum and in front of silu; float16 with float32 factors."""
        n, c, groups = 2, 12, 3
        gamma, beta, bias = floats(c), floats(c), floats(c)

        def wanted(x, silu):  # channels last
            rows = x.reshape(n, -1, groups, c // groups)
            rows = rows - rows.mean((1, 3), keepdims=True)
            y = (rows / np.sqrt((rows ** 2).mean((1, 3), keepdims=True) + 1e-3)).reshape(x.shape) * gamma + beta
            return y * sigmoid(y) if silu else y

        x = floats(n, 4, 5, c)
        for silu in (0, 1):
            more = {"groups": groups, "activation": silu, "epsilon": 1e-3}
            close(run("GroupNorm", {"x": x, "g": gamma, "o": beta}, "go", **more), wanted(x, silu))
            first = np.moveaxis(run("GroupNorm", {"x": np.moveaxis(x, 3, 1).copy(), "g": gamma, "o": beta}, "go",
                                    channels_last=0, dims={"x": {0: "n", 2: "h"}}, **more), 1, 3)
            close(first, wanted(x, silu))
            half = run("GroupNorm", {"x": x.astype(np.float16), "g": gamma, "o": beta}, "go", **more)
            self.assertEqual(half.dtype, np.float16)
            close(half, wanted(x.astype(np.float16).astype(np.float32), silu), 3e-3)
            for skip in (floats(n, 4, 5, c), floats(n, 1, 1, c), floats(n, c)):
                wide = skip.reshape(n, 1, 1, c) if skip.ndim == 2 else skip
                for b in (None, bias):
                    got = run("SkipGroupNorm", {"x": x, "g": gamma, "o": beta, "s": skip, "b": b}, "gob", 2, **more)
                    total = x + wide + (0 if b is None else b)
                    close(got[0], wanted(total, silu))
                    close(got[1], total)

    def test_of_embeddings(self):
        words, places, segments, scale, beta = floats(30, 16), floats(12, 16), floats(2, 16), floats(16), floats(16)
        numbers = lambda limit, *shape: rng.integers(0, limit, shape).astype(np.int32)
        ids, kinds, mask = numbers(30, 2, 6), numbers(2, 2, 6), numbers(2, 2, 6)
        for at in (None, numbers(12, 2, 6), numbers(12, 1, 6)):
            for with_segments in (False, True):
                got = run("EmbedLayerNormalization",
                          {"i": ids, "k": kinds if with_segments else None, "w": words, "p": places, "s": segments if with_segments else None,
                           "g": scale, "b": beta, "m": mask if with_segments else None, "at": at}, "wpsgb", 3)
                total = words[ids] + places[np.arange(6) if at is None else at] + (segments[kinds] if with_segments else 0)
                close(got[0], layer_norm(total, scale, beta))
                np.testing.assert_array_equal(got[1], mask.sum(1) if with_segments else [0, 0])
                close(got[2], total)


    def test_of_embeddings_in_bytes(self):
        byte = lambda *shape: rng.integers(0, 256, shape).astype(np.uint8)
        tables = {"w": byte(30, 16), "p": byte(12, 16), "s": byte(2, 16), "g": byte(16), "b": byte(16)}
        scales, zeros = rng.uniform(0.005, 0.02, 5).astype(np.float32), byte(5)
        ids, kinds, mask = (rng.integers(0, limit, (2, 6)).astype(np.int32) for limit in (30, 2, 2))
        given = {"i": ids, "k": kinds, **tables, "m": mask, **{f"{k}s": scales[i] for i, k in enumerate(tables)},
                 **{f"{k}z": zeros[i] for i, k in enumerate(tables)}}
        got = run("QEmbedLayerNormalization", given, [k for k in given if k not in "ikm"], 2, epsilon=1e-5)
        w, p, s, g, b = ((x.astype(np.float32) - zeros[i]) * scales[i] for i, x in enumerate(tables.values()))
        close(got[0], layer_norm(w[ids] + p[:6] + s[kinds], g, b, 1e-5), 1e-3)
        np.testing.assert_array_equal(got[1], mask.sum(1))


def masks(batch, queries, keys):
    """Masks in all their forms: an array, and which keys it leaves, [B, 1, S or 1, T]."""
    at = np.arange(keys)
    flat = rng.integers(0, 2, (batch, keys)).astype(np.int32)
    square = rng.integers(0, 2, (batch, queries, keys)).astype(np.int32)
    ends, starts = rng.integers(2, keys, batch), rng.integers(0, 2, batch)
    before = at < ends[:, None]
    yield None, np.ones((1, 1, 1, keys), bool)
    yield flat, flat[:, None, None] > 0
    yield square, square[:, None] > 0
    yield ends.astype(np.int32), before[:, None, None]
    yield np.concatenate([ends, starts]).astype(np.int32), (before & (at >= starts[:, None]))[:, None, None]
    yield np.concatenate([ends, np.arange(2 * batch + 2)]).astype(np.int32), before[:, None, None]


class Attention(unittest.TestCase):
    B, S, H, D = 2, 5, 2, 8

    def test_with_projection(self):
        batch, length, n, size = self.B, self.S, self.H, self.D
        x, w, b = floats(batch, length, 12), floats(12, 3 * n * size) / 3, floats(3 * n * size)
        q, k, v = (heads(part, n) for part in np.split(x @ w + b, 3, 2))
        bias = floats(1, n, length, length)
        for direction in (0, 1):
            order = causal(length, length) if direction else None
            for mask, visible in masks(batch, length, length):
                got = run("Attention", {"x": x, "w": w, "b": b, "m": mask, "past": None, "bias": bias}, "wb", num_heads=n,
                          unidirectional=direction, mask_filter_value=-50.0)
                close(got, attend(q, k, v, bias + np.where(visible, 0, -50), order), 1e-3)
        wide = floats(12, 2 * n * size + 12) / 3
        y = x @ wide
        got = run("Attention", {"x": x, "w": wide}, "w", num_heads=n, qkv_hidden_sizes=[n * size, n * size, 12], scale=0.3)
        close(got, attend(heads(y[..., :16], n), heads(y[..., 16:32], n), heads(y[..., 32:], n), scale=0.3))

    def test_with_past(self):
        batch, length, n, size, before = self.B, self.S, self.H, self.D, 3
        x, w, past = floats(batch, length, 12), floats(12, 3 * n * size) / 3, floats(2, batch, n, before, size)
        q, k, v = (heads(part, n) for part in np.split(x @ w, 3, 2))
        k, v = (np.concatenate([old, new], 2) for old, new in zip(past, (k, v)))
        names = {"x": {0: "batch", 1: "length"}, "past": {1: "batch", 3: "before"}}
        for dims in (None, names):
            for direction in (0, 1):
                got = run("Attention", {"x": x, "w": w, "b": None, "m": None, "past": past}, "w", 2, dims, num_heads=n, unidirectional=direction)
                close(got[0], attend(q, k, v, visible=causal(length, length + before) if direction else None))
                close(got[1], np.stack([k, v]))

    def test_of_bytes(self):
        batch, length, n, size = self.B, self.S, self.H, self.D
        x = rng.integers(0, 256, (batch, length, 12)).astype(np.uint8)
        w = rng.integers(-128, 128, (12, 3 * n * size)).astype(np.int8)
        b, past = floats(3 * n * size), floats(2, batch, n, 3, size)
        mask = rng.integers(0, 2, (batch, length + 3)).astype(np.int32)
        for scale, zero in ((np.array([0.01], np.float32), np.array([3], np.int8)),
                            (rng.uniform(0.005, 0.01, 48).astype(np.float32), rng.integers(-9, 9, 48).astype(np.int8))):
            y = (x.astype(np.float32) - 7) * np.float32(0.02) @ ((w - zero.astype(np.float32)) * scale) + b
            q, k, v = (heads(part, n) for part in np.split(y, 3, 2))
            k, v = (np.concatenate([old, new], 2) for old, new in zip(past, (k, v)))
            got = run("QAttention", {"x": x, "w": w, "b": b, "xs": np.float32(0.02), "ws": scale, "m": mask, "xz": np.uint8(7), "wz": zero,
                                     "past": past}, ["w", "b", "xs", "ws", "xz", "wz"], 2, num_heads=n)
            close(got[0], attend(q, k, v, np.where(mask[:, None, None] > 0, 0, -10000)), 1e-3)
            close(got[1], np.stack([k, v]), 1e-3)

    def test_multi_head(self):
        batch, length, n, size, keys = self.B, self.S, self.H, self.D, 7
        q, k, v, b = floats(batch, length, n * size), floats(batch, keys, n * size), floats(batch, keys, n * 6), floats(n * (2 * size + 6))
        bias = floats(batch, n, length, keys)
        parts = [heads(x + y, n) for x, y in zip((q, k, v), np.split(b, [n * size, 2 * n * size]))]
        for mask, visible in masks(batch, length, keys):
            if mask is None or mask.shape != (2 * batch,):  # which this operator does not have
                got = run("MultiHeadAttention", {"q": q, "k": k, "v": v, "b": b, "m": mask, "bias": bias}, "b", num_heads=n, mask_filter_value=-50.0)
                close(got, attend(*parts, bias + np.where(visible, 0, -50)), 1e-3)
        k, v = floats(batch, n, keys, size), floats(batch, n, keys, 6)
        close(run("MultiHeadAttention", {"q": q, "k": k, "v": v}, num_heads=n, scale=0.2), attend(heads(q, n), k, v, scale=0.2))
        packed = floats(batch, length, n, 3, size)
        close(run("MultiHeadAttention", {"q": packed}, num_heads=n), attend(*np.moveaxis(packed, (3, 1), (0, 3))))
        packed = floats(batch, keys, n, 2, size)
        close(run("MultiHeadAttention", {"q": q, "k": packed}, num_heads=n), attend(heads(q, n), *np.moveaxis(packed, (3, 1), (0, 3))))

    def test_multi_head_with_past(self):
        batch, length, n, size, before = self.B, self.S, self.H, self.D, 3
        q, k, v = (floats(batch, length, n * size) for _ in range(3))
        past = floats(2, batch, n, before, size)
        mask = rng.integers(0, 2, (batch, length + before)).astype(np.int32)
        all_k, all_v = (np.concatenate([old, heads(new, n)], 2) for old, new in zip(past, (k, v)))
        names = {**{x: {0: "batch", 1: "length"} for x in "qkv"}, "m": {0: "batch", 1: "all"}, "pk": {0: "batch", 2: "before"}, "pv": {0: "batch", 2: "before"}}
        for dims in (None, names):
            got = run("MultiHeadAttention", {"q": q, "k": k, "v": v, "b": None, "m": mask, "bias": None, "pk": past[0], "pv": past[1]}, (), 3, dims,
                      num_heads=n, unidirectional=1, mask_filter_value=-50.0)
            close(got[0], attend(heads(q, n), all_k, all_v, np.where(mask[:, None, None] > 0, 0, -50), causal(length, length + before)), 1e-3)
            close(got[1], all_k)
            close(got[2], all_v)

    def test_gradient(self):
        """By way of the composite: of a product with random numbers, against differences."""
        x, w, mask = floats(1, 3, 4), floats(4, 12), ints([1, 1, 0])
        node = helper.make_node("Attention", ["x", "w", "", "m"], ["y"], domain=microsoft.MICROSOFT, num_heads=2)
        r = floats(1, 3, 4)
        nodes = [node, helper.make_node("Mul", ["y", "r"], ["p"]), helper.make_node("ReduceSum", ["p"], ["loss"], keepdims=0)]
        graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, 4])], [helper.make_tensor_value_info("loss", 1, [])],
                                  [numpy_helper.from_array(a, k) for k, a in {"w": w, "m": mask, "r": r}.items()])
        text = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(microsoft.MICROSOFT, 1)]).SerializeToString()
        gradient = np.array(quern.grad(text, "loss", ["x"])([x])[1])

        def loss(x):
            q, k, v = (heads(part, 2) for part in np.split(x.astype(np.float64) @ w, 3, 2))
            return (attend(q, k, v, np.where(mask[:, None, None] > 0, 0, -10000)) * r).sum()

        for i in np.ndindex(*x.shape):
            step = np.zeros(x.shape)
            step[i] = 1e-5
            self.assertAlmostEqual(gradient[i], (loss(x + step) - loss(x - step)) / 2e-5, delta=1e-3)


class States(unittest.TestCase):
    """Operators that carry a state from token to token."""

    def test_convolution(self):
        """In parts the same as whole, in either layout, and with taps apart."""
        w, bias = floats(6, 1, 3), floats(6)
        for last, dilation, function in ((0, 1, "none"), (0, 2, "silu"), (1, 1, "swish"), (1, 3, "none")):
            x, before = floats(2, 6, 9), floats(2, 6, 2 * dilation)
            line = np.concatenate([before, x], 2)
            y = sum(line[:, :, i * dilation:i * dilation + 9] * w[:, 0, i, None] for i in range(3)) + bias[:, None]
            y = y if function == "none" else y * sigmoid(y)
            place = (lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).reshape(2, -1, 2, 3)) if last else (lambda a: a.copy())
            got, state = [], place(before)
            for at, end in ((0, 1), (1, 7), (7, 9)):
                part, state = run("CausalConvWithState", {"x": place(x[:, :, at:end]), "w": w, "b": bias, "s": state}, "wb", 2,
                                  {"x": {0: "batch", 1 if last else 2: "new"}}, activation=function, dilation=dilation, channels_last=last)
                close(state, place(line[:, :, end:end + 2 * dilation]))
                got.append(part)
            close(np.concatenate(got, 1 if last else 2), place(y))
            alone = run("CausalConvWithState", {"x": place(x), "w": w}, "w", dilation=dilation, channels_last=last)
            line = np.concatenate([np.zeros_like(before), x], 2)
            close(alone, place(sum(line[:, :, i * dilation:i * dilation + 9] * w[:, 0, i, None] for i in range(3))))

    def test_linear_attention(self):
        """Heads of queries that share a state, and states that share a query; extents unknown, too."""
        unknown = {name: {i: f"{name}{i}" for i in range(3)} for name in "qkvdb"}
        for n, groups, each, dims in ((4, 2, False, None), (2, 4, False, None), (2, 2, True, None), (2, 2, True, unknown), (4, 2, False, unknown)):
            q, k, v = floats(2, 5, n * 8), floats(2, 5, groups * 8) / 3, floats(2, 5, groups * 6)
            decay, beta = -np.abs(floats(2, 5, groups * (8 if each else 1))), sigmoid(floats(2, 5, groups if n < 4 else 1))
            state = floats(2, groups, 8, 6)
            got, present = run("LinearAttention", {"q": q, "k": k, "v": v, "s": state, "d": decay, "b": beta}, (), 2, dims, q_num_heads=n, kv_num_heads=groups,
                               scale=0.5, update_rule="gated_delta")
            most, want = max(n, groups), []
            for t in range(5):
                row = lambda x, count: x[:, t].reshape(2, count, -1)
                state = state * np.exp(row(decay, groups))[..., None]
                change = row(beta, beta.shape[2]) * (row(v, groups) - np.einsum("bgk,bgkv->bgv", row(k, groups), state))
                state = state + row(k, groups)[..., None] * change[:, :, None]
                want.append(np.einsum("bhk,bhkv->bhv", row(q, n).repeat(most // n, 1), state.repeat(most // groups, 1)) * 0.5)
            close(got, np.stack(want, 1).reshape(2, 5, -1))
            close(present, state)


class Experts(unittest.TestCase):
    """MoE and QMoE: a token is what its best experts make of it, by their shares."""

    COUNT, HIDDEN, INNER = 4, 64, 32

    def want(self, x, scores, best, shares, layers, function):
        """`layers`: of each the weights [experts, rows, columns] and the bias [experts, rows]."""
        y = np.zeros_like(x)
        for t, row in enumerate(x):
            for e in np.argsort(-scores[t], kind="stable")[:best]:
                made = [w[e] @ row + b[e] for w, b in layers[::2]]
                y[t] += shares(scores[t], e) * (layers[1][0][e] @ function(*made) + layers[1][1][e])
        return y

    def share(self, normalized, best):
        def of(scores, e):
            among = np.sort(scores)[::-1][:best] if normalized else scores
            return np.exp(scores[e]) / np.exp(among).sum()
        return of

    def layers(self, fused, third=False):
        shapes = [((1 + fused) * self.INNER, self.HIDDEN), (self.HIDDEN, self.INNER), (self.INNER, self.HIDDEN)][:2 + third]
        return [(floats(self.COUNT, *shape) / 4, floats(self.COUNT, shape[0])) for shape in shapes]

    def test_of_floats(self):
        swiglu = lambda g, l: np.minimum(g, 2) * sigmoid(1.5 * np.minimum(g, 2)) * (np.clip(l, -2, 2) + 1)
        limits = {"activation_alpha": 1.5, "activation_beta": 1.0, "swiglu_limit": 2.0}
        forms = (("relu", {}, lambda y: np.maximum(y, 0)), ("gelu", {}, gelu_tanh), ("silu", {}, lambda y: y * sigmoid(y)), ("identity", {}, lambda y: y),
                 ("swiglu", {"swiglu_fusion": 1, **limits}, lambda y: swiglu(y[::2], y[1::2])),
                 ("swiglu", {"swiglu_fusion": 2, **limits}, lambda y: swiglu(y[:self.INNER], y[self.INNER:])),
                 ("swiglu", limits, swiglu), ("swiglu", {}, lambda g, l: g * sigmoid(g) * l))
        for i, (name, more, function) in enumerate(forms):
            for tokens, best in ((7, 2), (1, 1), (3, 4)):
                with self.subTest(name=name, tokens=tokens, best=best, **more):
                    layers = self.layers("swiglu_fusion" in more, name == "swiglu" and "swiglu_fusion" not in more)
                    x, scores = floats(1, tokens, self.HIDDEN), floats(tokens, self.COUNT)
                    given = {"x": x, "r": scores, **{f"{k}{j}": a for j, layer in enumerate(layers) for k, a in zip("wb", layer)}}
                    constants = [k for k in given if k[0] in "wb"]
                    got = run("MoE", given, constants, 1, {"x": {1: "new"}, "r": {0: "new"}} if i % 2 else None, activation_type=name, k=best,
                              normalize_routing_weights=i % 2, **more)
                    close(got[0], self.want(x[0], scores, best, self.share(i % 2, best), layers, function))

    def test_of_few_bits(self):
        """Scales for blocks or rows, zero points, shares of their own, packed tokens [T, H]. Weights are no larger with more bits."""
        for bits, block, zeros, own, third in ((4, 32, False, False, False), (4, 32, True, True, True), (8, 16, True, False, False), (2, 32, False, False, True),
                                               (4, 0, False, False, False), (4, 0, True, False, False), (8, 0, True, True, True)):
            with self.subTest(bits=bits, block=block, zeros=zeros, own=own):
                layers, given, points = [], {"x": floats(5, self.HIDDEN), "r": floats(5, self.COUNT)}, {}
                for j, (w, bias) in enumerate(self.layers(not third, third)):
                    n, k = w.shape[1:]
                    blocks = k // block if block else 1
                    q = rng.integers(0, 2 ** bits, w.shape).astype(np.uint8)
                    scale = rng.uniform(0.16, 0.8, (self.COUNT, n, blocks)).astype(np.float32) / 2 ** bits
                    zero = rng.integers(0, 2 ** bits, scale.shape).astype(np.uint8) if zeros else np.full(scale.shape, 1 << (bits - 1), np.uint8)
                    spread = lambda a: a.astype(np.float32).repeat(k // blocks, 2)
                    layers.append(((q - spread(zero)) * spread(scale), bias))
                    given |= {f"w{j}": pack_bits(q, bits), f"s{j}": scale if block else scale[:, :, 0], f"b{j}": bias}
                    points[f"z{j}"] = pack_bits(zero if block else zero[:, :, 0], bits) if zeros else None
                if len(layers) == 2:
                    given |= {"w2": None, "s2": None, "b2": None}
                    points["z2"] = None
                given |= points
                weights = rng.uniform(0, 1, (5, self.COUNT)).astype(np.float32)
                given["own"] = weights if own else None
                x, scores = given["x"], given["r"]
                function = (lambda g, l: g * sigmoid(g) * l) if third else lambda y: y[::2] * sigmoid(y[::2]) * y[1::2]
                row_of = {row.tobytes(): i for i, row in enumerate(scores)}
                shares = (lambda row, e: weights[row_of[row.tobytes()], e]) if own else self.share(True, 2)
                got = run("QMoE", given, [k for k in given if k[0] in "wsbz"], 1, {"x": {0: "tokens"}, "r": {0: "tokens"}}, activation_type="swiglu", k=2,
                          swiglu_fusion=0 if third else 1, expert_weight_bits=bits, **({"block_size": block} if block else {}))
                close(got, self.want(x, scores, 2, shares, layers, function))

    def test_of_halves(self):
        layers = self.layers(False)
        x, scores = floats(3, self.HIDDEN).astype(np.float16), floats(3, self.COUNT).astype(np.float16)
        given = {"x": x, "r": scores, **{f"{k}{j}": a.astype(np.float16) for j, layer in enumerate(layers) for k, a in zip("wb", layer)}}
        text = microsoft.model("MoE", *split(given, [k for k in given if k[0] in "wb"]), {"k": 2})
        got = np.array(quern.compile(text)([x, scores])[0])
        self.assertEqual(got.dtype, np.float16)
        wide = [tuple(a.astype(np.float16).astype(np.float32) for a in layer) for layer in layers]
        want = self.want(x.astype(np.float32), scores.astype(np.float32), 2, self.share(False, 2), wide, lambda y: np.maximum(y, 0))
        close(got, want, 2e-2)


class Rotary(unittest.TestCase):
    def test_forms(self):
        n, size, table = 2, 16, floats(2, 20, 8)
        for interleaved in (0, 1):
            for at in (np.array([3]), rng.integers(0, 20, (2, 5))):
                x = floats(2, 5, n * size)
                where = at if at.ndim == 2 else at + np.arange(5)[None]
                given = {"x": x, "p": at, "c": table[0], "s": table[1]}
                pack = lambda y: y.swapaxes(1, 2).reshape(2, 5, -1)
                want = turn(heads(x, n), table[0][where], table[1][where], interleaved)
                close(run("RotaryEmbedding", given, "cs", interleaved=interleaved), pack(want))
                close(run("RotaryEmbedding", {**given, "x": heads(x, n).copy()}, "cs", interleaved=interleaved), want)
                few = {**given, "c": table[0][:, :4].copy(), "s": table[1][:, :4].copy()}
                want = turn(heads(x, n), few["c"][where], few["s"][where], interleaved)
                close(run("RotaryEmbedding", few, "cs", interleaved=interleaved, num_heads=n, rotary_embedding_dim=8), pack(want))


class Tables(unittest.TestCase):
    def test_rows_of_bytes(self):
        for bits, block, width in ((2, 16, 64), (4, 32, 64), (4, 16, 48), (4, 32, 48), (8, 16, 32)):
            blocks = -(-width // block)
            q = rng.integers(0, 1 << bits, (20, width)).astype(np.uint8)
            scale = rng.uniform(0.1, 1, (20, blocks)).astype(np.float32)
            zero = rng.integers(0, 1 << bits, (20, blocks)).astype(np.uint8)
            for ids in (np.array([3, 0, 19, -1]), np.array([[1, 2], [5, 7]], np.int32)):
                for given in (None, zero):
                    got = run("GatherBlockQuantized", {"w": pack_bits(q, bits), "i": ids, "s": scale, "z": None if given is None else pack_bits(zero, bits)},
                              "wsz", bits=bits, block_size=block, quantize_axis=1, gather_axis=0)
                    less = (zero if given is not None else np.full_like(zero, 1 << (bits - 1))).astype(np.float32)
                    each = lambda x: x.repeat(block, 1)[:, :width]
                    close(got, ((q - each(less)) * each(scale))[ids])

    def test_numbers_of_four_bits(self):
        for kind, low in ((21, 0), (22, -8)):
            for shape, axis, along in (((20, 64), 0, 1), ((64, 20), 0, 0), ((64, 20), 1, 0), ((5, 7, 40), 1, 2)):
                w, ids = rng.integers(low, low + 16, shape), np.array([[1, 2], [3, 0]])
                few = [-(-d // 16) if i == along else d for i, d in enumerate(shape)]
                scale = rng.uniform(0.1, 1, few).astype(np.float32)
                node = helper.make_node("GatherBlockQuantized", ["w", "i", "s"], ["y"], domain=microsoft.MICROSOFT, block_size=16, gather_axis=axis,
                                        quantize_axis=along)
                graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("i", 7, ids.shape)], [helper.make_empty_tensor_value_info("y")],
                                          [helper.make_tensor("w", kind, w.shape, w.ravel().tolist()), numpy_helper.from_array(scale, "s")])
                text = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(microsoft.MICROSOFT, 1)])
                want = np.take(w * np.take(scale.repeat(16, along), range(shape[along]), along), ids, axis)
                for target in ("cpu", "interp"):
                    close(np.array(quern.compile(text.SerializeToString(), target=target)([ids])[0]), want)


class Mistakes(microsoft.Mistakes):
    def wrong(self, text, op, given, constants=(), n_outputs=1, **attributes):
        self.refuse(text, op, *split(given, constants), n_outputs, **attributes)

    def test_norms(self):
        x, g = floats(2, 3, 8), floats(8)
        self.wrong("output 1 (mean)", "SkipLayerNormalization", {"x": x, "s": x, "g": g}, n_outputs=2)
        self.wrong("output 2 (inv_std_var)", "SkipSimplifiedLayerNormalization", {"x": x, "s": x, "g": g}, n_outputs=[0, 2])
        self.wrong("gamma and beta rank 1", "SkipLayerNormalization", {"x": x, "s": x, "g": x[0]})
        self.wrong("a higher rank than the input", "SkipSimplifiedLayerNormalization", {"x": x[0], "s": x, "g": g})
        self.wrong("attribute groups be positive", "GroupNorm", {"x": x, "g": g, "o": g})
        self.wrong("8 channels don't divide into 3 groups", "GroupNorm", {"x": x, "g": g, "o": g}, groups=3)
        self.wrong("operand 1 is f32[8]; expected f32[3]", "GroupNorm", {"x": x, "g": g, "o": g}, groups=1, channels_last=0)
        self.wrong("gamma and beta rank 1", "GroupNorm", {"x": x, "g": x[0], "o": g}, groups=2)
        self.wrong("attribute activation = 2", "GroupNorm", {"x": x, "g": g, "o": g}, groups=2, activation=2)
        self.wrong("skip and bias must broadcast to the input", "SkipGroupNorm", {"x": x[:1], "g": g, "o": g, "s": x}, groups=2)
        ids, table = np.zeros((2, 3), np.int32), floats(5, 8)
        self.wrong("input_ids and mask must have rank 2", "EmbedLayerNormalization", {"i": ids[0], "k": None, "w": table, "p": table, "s": None, "g": g, "b": g})
        self.wrong("input 2 must have rank 2", "EmbedLayerNormalization", {"i": ids, "k": None, "w": g, "p": table, "s": None, "g": g, "b": g})

    def test_activations(self):
        self.wrong("activation Foo", "FusedGemm", {"a": floats(2, 3), "b": floats(3, 4)}, activation="Foo")
        self.wrong("rank 1 or more", "BiasSplitGelu", {"x": np.float32(1), "b": np.float32(1)})

    def test_attention(self):
        x, w = floats(2, 3, 8), floats(8, 24)
        wrong = lambda text, given, n_outputs=1, **more: self.wrong(text, "Attention", {"x": x, "w": w, **given}, n_outputs=n_outputs, **more)
        wrong("attribute num_heads must be given", {})
        wrong("not three times those of 3 heads", {}, num_heads=3)
        wrong("qkv_hidden_sizes must be three multiples", {}, num_heads=2, qkv_hidden_sizes=[8, 8, 9])
        wrong("attribute do_rotary = 1", {}, num_heads=2, do_rotary=1)
        wrong("attribute past_present_share_buffer = 1", {}, num_heads=2, past_present_share_buffer=1)
        wrong("must have rank 3, and the weights rank 2", {"x": x[0]}, num_heads=2)
        wrong("past must have rank 5", {"b": None, "m": None, "past": x}, 2, num_heads=2)
        wrong("a mask that is not of integers, or not of rank 1, 2 or 3, in input 3", {"b": None, "m": np.ones((2, 1, 3, 3), np.int32)}, num_heads=2)
        wrong("input 5 must have rank 4", {"b": None, "m": None, "past": None, "bias": x}, num_heads=2)
        wrong("input 6 (past_sequence_length)", {"b": None, "m": None, "past": None, "bias": None, "n": ints(1)}, num_heads=2)
        byte = lambda *shape: np.zeros(shape, np.uint8)
        self.wrong("scale and zero point must be scalars", "QAttention",
                   {"x": byte(2, 3, 8), "w": byte(8, 24), "b": floats(24), "xs": floats(8), "ws": np.float32(1)}, num_heads=2)

    def test_multi_head(self):
        x = floats(2, 3, 8)
        wrong = lambda text, given, n_outputs=1, **more: self.wrong(text, "MultiHeadAttention", {"q": x, **given}, n_outputs=n_outputs, num_heads=2, **more)
        wrong("input 2 (value) is missing", {"k": x})
        wrong("packed inputs must be [batch, length, heads, 3, size]", {})
        wrong("go without inputs 2 (value) and 3 (bias)", {"k": floats(2, 3, 2, 2, 4), "v": x})
        wrong("past_key and past_value must both be given", {"k": x, "v": x, "b": None, "m": None, "bias": None, "pk": floats(2, 2, 1, 4)})
        wrong("where queries and keys differ in number", {"k": floats(2, 5, 8), "v": floats(2, 5, 8)}, unidirectional=1)
        wrong("output 3 (qk)", {"k": x, "v": x}, [0, 3])
        rest = {"k": x, "v": x, "b": None, "m": None, "bias": None, "pk": floats(2, 2, 1, 4), "pv": floats(2, 2, 1, 4)}
        wrong("input 9 (cache_indirection)", {**rest, "n": None, "c": ints([[[0]]])})

    def test_grouped(self):
        q, kv, last, total = floats(2, 3, 64), floats(2, 3, 32), ints(2, 2), np.int32(3)
        given = {"q": q, "k": kv, "v": kv, "pk": None, "pv": None, "last": last, "total": total}
        wrong = lambda text, more, n_outputs=1, **attributes: self.wrong(
            text, "GroupQueryAttention", {**given, **more}, ["total"], n_outputs, **{"num_heads": 4, "kv_num_heads": 2, **attributes})
        wrong("num_heads must be a multiple of kv_num_heads", {}, kv_num_heads=3)
        wrong("attribute kv_num_heads must be given", {}, kv_num_heads=0)
        wrong("key and value may both be left out", {"v": None})
        wrong("past_key and past_value must both be given", {"pk": floats(2, 2, 1, 16)})
        wrong("output 3 (output_qk)", {}, [0, 3])
        wrong("attribute k_quant_type = PER_TENSOR", {}, k_quant_type="PER_TENSOR")
        slide = {"sliding_window_cache": 1, "local_window_size": 4}
        past = {"pk": floats(2, 2, 4, 16), "pv": floats(2, 2, 4, 16)}
        wrong("needs a past of at least local_window_size keys", {}, **slide)
        wrong("needs a past of at least local_window_size keys", {**past, "pk": floats(2, 2, 3, 16)}, **slide)
        wrong("which is positive", past, sliding_window_cache=1)
        wrong("goes without causal = 0", past, causal=0, **slide)
        wrong("at least local_window_size keys", past, sliding_window_cache=1, local_window_size=2 ** 62)
        wrong("input 10 (attention_bias) with sliding_window_cache = 1", {**past, "c": None, "s": None, "at": None, "bias": floats(1, 1, 3, 3)}, **slide)
        rest = {name: None for name in ("c", "s", "at", "bias", "sink", "ks", "vs", "qn", "kn")}
        wrong("input 12 (k_scale)", {**rest, "ks": floats(1)})
        wrong("q_norm_weight and k_norm_weight go together", {**rest, "qn": floats(16)})
        wrong("input 16 (query_seqlens)", {**rest, "n": last})
        wrong("input 7 is missing", {}, do_rotary=1)
        wrong("position_ids must have rank 2", {**rest, "c": floats(9, 8), "s": floats(9, 8), "at": np.array([0, 1])}, do_rotary=1)
        wrong("20 cosines turn 40 elements, and a head has 16", {"c": floats(9, 20), "s": floats(9, 20)}, do_rotary=1)

    def test_experts(self):
        given = {"x": floats(5, 8), "r": floats(5, 4), "w0": floats(4, 6, 8), "b0": None, "w1": floats(4, 8, 6)}
        wrong = lambda text, more={}, **attributes: self.wrong(text, "MoE", {**given, **more}, ["w0", "b0", "w1"], **attributes)
        wrong("attribute activation_type = geglu", activation_type="geglu")
        wrong("attribute k must be between 1 and the number of experts", k=5)
        wrong("attribute swiglu_fusion must be 0, 1 or 2", activation_type="swiglu", swiglu_fusion=3)
        wrong("attribute use_sparse_mixer", use_sparse_mixer=1)
        wrong("input 4 does not have the type or shape", {"w1": floats(4, 8, 5)})
        wrong("input 3 does not have the type or shape", {"b0": floats(4, 5)})
        wrong("weights of rank 3", {"w0": floats(6, 8)})
        self.wrong("input 2 must be a constant", "MoE", given, ["w1"])
        byte = lambda *shape: np.zeros(shape, np.uint8)
        given = {"x": floats(5, 64), "r": floats(5, 4), "w0": byte(4, 32, 32), "s0": floats(4, 32, 2), "b0": None, "w1": byte(4, 64, 16), "s1": floats(4, 64, 1)}
        wrong = lambda text, more={}, **attributes: self.wrong(text, "QMoE", {**given, **more}, [k for k in given if k[0] in "wsbz"],
                                                               **{"block_size": 32, **attributes})
        wrong("weights of 3 bits; 2, 4 and 8 are", expert_weight_bits=3)
        wrong("of another quant_type than int", quant_type="fp4")
        wrong("weights that are prepacked", weights_prepacked=1)
        wrong("weights must not be empty", {"w0": byte(4, 0, 32), "s0": floats(4, 0, 2), "w1": byte(4, 64, 0), "s1": floats(4, 64, 0)})
        wrong("input 3 does not have the type or shape", {"s0": floats(4, 32, 3)})
        wrong("no multiple of a byte and of block_size", block_size=128)
        wrong("input 15", {k: None for k in ("b1", "w2", "s2", "b2", "z0", "z1", "z2", "own")} | {"g": floats(4)})

    def test_states(self):
        x, w = floats(2, 6, 5), floats(6, 1, 3)
        wrong = lambda text, more={}, **attributes: self.wrong(text, "CausalConvWithState", {"x": x, "w": w, **more}, "w", **attributes)
        wrong("attribute ndim other than 1", ndim=2)
        wrong("attribute state_window = 4", state_window=4)
        wrong("attribute state_channels_last", state_channels_last=0)
        wrong("silu, swish or none, and dilation positive", dilation=0)
        wrong("silu, swish or none, and dilation positive", activation="gelu")
        wrong("past_state must have the rank of the input", {"b": None, "s": x[0]})
        q = floats(2, 5, 12)
        wrong = lambda text, **attributes: self.wrong(text, "LinearAttention", {"q": q, "k": q, "v": q}, **{"q_num_heads": 2, "kv_num_heads": 2, **attributes})
        wrong("attribute state_window = 1", state_window=1, update_rule="linear")
        wrong("a multiple of the other", kv_num_heads=3)

    def test_rotary(self):
        x, at, table = floats(2, 3, 32), np.array([0]), floats(9, 8)
        wrong = lambda text, **more: self.wrong(text, "RotaryEmbedding", {"x": x, "p": at, "c": table, "s": table, **more.pop("given", {})}, **more)
        wrong("position_ids be one number or have rank 2", given={"p": np.array([0, 1])})
        wrong("attribute is_packed_batching = 1", is_packed_batching=1)
        wrong("must be known", given={"c": floats(9, 20), "s": floats(9, 20)})

    def test_tables(self):
        w, ids, scale = np.zeros((4, 16), np.uint8), np.array([0]), np.ones((4, 1), np.float32)
        wrong = lambda text, constants="ws", **more: self.wrong(text, "GatherBlockQuantized", {"w": w, "i": ids, "s": scale, **more.pop("given", {})},
                                                                constants, **{"block_size": 32, **more})
        wrong("data of 3 bits; 2, 4 and 8 are", bits=3)
        wrong("block_size must be a power of two", block_size=24)
        wrong("input 0 must be a constant", "s")
        wrong("data that is not of uint8, int4 or uint4", given={"w": w.astype(np.int32)})
        wrong("axis 2 is outside of rank 2", quantize_axis=2)


if __name__ == "__main__":
    unittest.main()
