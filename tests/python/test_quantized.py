"""Operators of com.microsoft in quantized models, as ONNX Runtime's quantizer writes them: each against its formula in NumPy, compiled
and interpreted."""

import unittest

import numpy as np

import microsoft
import quern
from microsoft import pack_bits, run


def dequantize(x, scale, zero):
    return (x.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def quantize(x, scale, zero, dtype):
    limits = np.iinfo(dtype)
    return np.clip(np.round(x / np.float32(scale)) + int(zero), limits.min, limits.max).astype(dtype)


def scalar(x, dtype=np.float32):
    return np.array(x, dtype)


class Between(unittest.TestCase):
    """Bytes in, bytes out, numbers in between."""

    def check(self, op, f, shapes, dtype=np.uint8, zeros=True, **attributes):
        rng = np.random.default_rng(len(op))
        inputs, constants, order, numbers = {}, {}, [], []
        for i, shape in enumerate(shapes):
            limits = np.iinfo(dtype)
            x = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
            scale, zero = 0.01 * (i + 1), (100 if dtype == np.uint8 else -20) * zeros
            inputs[f"x{i}"] = x
            constants[f"s{i}"] = scalar(scale)
            order += [f"x{i}", f"s{i}"]
            if zeros:
                constants[f"z{i}"] = scalar(zero, dtype)
            order.append(f"z{i}" if zeros else "")
            numbers.append(dequantize(x, scale, zero))
        constants |= {"ys": scalar(0.02), "yz": scalar(7, dtype)}
        constants["order"] = order + ["ys"] + (["yz"] if zeros else [])
        got = run(op, inputs, constants, **attributes)
        want = quantize(f(*numbers), 0.02, 7 if zeros else 0, dtype)
        self.assertEqual(got.dtype, want.dtype)
        self.assertEqual(got.shape, want.shape)
        self.assertLessEqual(np.abs(got.astype(int) - want.astype(int)).max(), 1)

    def test_add_and_multiply(self):
        for dtype in (np.uint8, np.int8):
            for zeros in (True, False):
                self.check("QLinearAdd", np.add, [(2, 3, 40), (3, 1)], dtype, zeros)
                self.check("QLinearMul", np.multiply, [(5, 33), (33,)], dtype, zeros)

    def test_functions(self):
        self.check("QLinearSigmoid", lambda x: 1 / (1 + np.exp(-x)), [(3, 50)])
        self.check("QLinearLeakyRelu", lambda x: np.where(x < 0, np.float32(0.3) * x, x), [(3, 50)], np.int8, alpha=0.3)

    def test_softmax(self):
        def softmax(x, axes):
            e = np.exp(x - x.max(axes, keepdims=True))
            return e / e.sum(axes, keepdims=True)
        self.check("QLinearSoftmax", lambda x: softmax(x, -1), [(2, 3, 4)], opset=13)
        self.check("QLinearSoftmax", lambda x: softmax(x, 1), [(2, 3, 4)], opset=13, axis=1)
        self.check("QLinearSoftmax", lambda x: softmax(x, (1, 2)), [(2, 3, 4)], opset=12, axis=1)

    def test_means(self):
        self.check("QLinearReduceMean", lambda x: x.mean((1,), keepdims=True), [(2, 9, 4)], axes=[1], keepdims=1)
        for dtype in (np.uint8, np.int8):
            self.check("QLinearGlobalAveragePool", lambda x: x.mean((2, 3), keepdims=True), [(2, 8, 5, 6)], dtype)
        self.check("QLinearGlobalAveragePool", lambda x: x.mean((1, 2), keepdims=True), [(2, 5, 6, 8)], channels_last=1)
        pool = lambda x: x.reshape(1, 4, 3, 2, 5, 2).mean((3, 5))
        self.check("QLinearAveragePool", pool, [(1, 4, 6, 10)], kernel_shape=[2, 2], strides=[2, 2])
        self.check("QLinearAveragePool", lambda x: np.moveaxis(pool(np.moveaxis(x, 3, 1)), 1, 3), [(1, 6, 10, 4)],
                   kernel_shape=[2, 2], strides=[2, 2], channels_last=1)

    def test_concat(self):
        rng = np.random.default_rng(5)
        a, b = (rng.integers(0, 256, s).astype(np.uint8) for s in ((2, 3), (2, 5)))
        got = run("QLinearConcat", {"a": a, "b": b},
                  {"ys": scalar(0.03), "yz": scalar(9, np.uint8), "sa": scalar(0.02), "za": scalar(3, np.uint8),
                   "sb": scalar(0.05), "zb": scalar(200, np.uint8), "order": "ys yz a sa za b sb zb".split()}, axis=1)
        want = np.concatenate([dequantize(a, 0.02, 3), dequantize(b, 0.05, 200)], 1)
        self.assertLessEqual(np.abs(got.astype(int) - quantize(want, 0.03, 9, np.uint8)).max(), 1)

    def test_where(self):
        rng = np.random.default_rng(6)
        a, b = (rng.integers(-128, 128, (3, 7)).astype(np.int8) for _ in range(2))
        c = rng.integers(0, 2, (3, 7)).astype(bool)
        got = run("QLinearWhere", {"c": c, "a": a, "b": b},
                  {"sa": scalar(0.02), "za": scalar(3, np.int8), "sb": scalar(0.05), "zb": scalar(-7, np.int8),
                   "ys": scalar(0.04), "yz": scalar(1, np.int8), "order": "c a sa za b sb zb ys yz".split()})
        want = np.where(c, dequantize(a, 0.02, 3), dequantize(b, 0.05, -7))
        self.assertLessEqual(np.abs(got.astype(int) - quantize(want, 0.04, 1, np.int8)).max(), 1)

    def test_microsoft_quantize(self):
        x = np.linspace(-3, 3, 50, dtype=np.float32)
        got = run("QuantizeLinear", {"x": x}, {"s": scalar(0.0001), "z": scalar(30000, np.uint16), "order": ["x", "s", "z"]})
        np.testing.assert_array_equal(got, quantize(x, 0.0001, 30000, np.uint16))
        back = run("DequantizeLinear", {"x": got}, {"s": scalar(0.0001), "z": scalar(30000, np.uint16), "order": ["x", "s", "z"]})
        np.testing.assert_allclose(back, dequantize(got, 0.0001, 30000), rtol=1e-6)


class Products(unittest.TestCase):
    def test_qgemm(self):
        rng = np.random.default_rng(7)
        m, k, n = 5, 64, 48
        a = rng.integers(0, 256, (m, k)).astype(np.uint8)
        b = rng.integers(-128, 128, (n, k)).astype(np.int8)
        scale, zero = rng.uniform(0.001, 0.01, n).astype(np.float32), rng.integers(-9, 9, n).astype(np.int8)
        c = rng.integers(-30000, 30000, n).astype(np.int32)
        sums = (a.astype(int) - 77) @ (b.T.astype(int) - zero) + c
        numbers = np.float32(2) * sums.astype(np.float32) * (np.float32(0.02) * scale)
        constants = {"as": scalar(0.02), "az": scalar(77, np.uint8), "b": b, "bs": scale, "bz": zero, "c": c,
                     "ys": scalar(1.5), "yz": scalar(120, np.uint8), "order": "a as az b bs bz c ys yz".split()}
        got = run("QGemm", {"a": a}, constants, transB=1, alpha=2.0)
        self.assertLessEqual(np.abs(got.astype(int) - quantize(numbers, 1.5, 120, np.uint8)).max(), 1)
        constants["order"] = constants["order"][:7]  # without the result's scale it is float
        got = run("QGemm", {"a": np.ascontiguousarray(a.T)}, constants, transA=1, transB=1, alpha=2.0)
        np.testing.assert_allclose(got, numbers, rtol=1e-5, atol=1e-3)

    def test_products_of_floats_and_bytes(self):
        rng = np.random.default_rng(8)
        x = rng.normal(size=(2, 3, 64)).astype(np.float32)
        w = rng.integers(-128, 128, (64, 32)).astype(np.int8)
        scale, bias = rng.uniform(0.001, 0.01, 32).astype(np.float32), rng.normal(size=32).astype(np.float32)
        low, high = min(x.min(), 0), max(x.max(), 0)
        s = np.float32((high - low) / 255)
        zero = np.round(-low / s)
        bytes_ = quantize(x, s, zero, np.uint8)
        want = (bytes_.astype(int) - int(zero)) @ w.astype(int) * (s * scale) + bias
        got = run("DynamicQuantizeMatMul", {"x": x}, {"w": w, "ws": scale, "b": bias, "order": ["x", "w", "ws", "", "b"]})
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        got = run("MatMulIntegerToFloat", {"x": bytes_},
                  {"w": w, "xs": s, "ws": scale, "xz": scalar(zero, np.uint8), "b": bias, "order": "x w xs ws xz".split() + ["", "b"]})
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

    def test_matmul_nbits_of_halves(self):
        """Sums of float32, rounded once."""
        rng = np.random.default_rng(13)
        n, k, block = 288, 256, 32
        q = rng.integers(0, 16, (n, k // block, block)).astype(np.uint8)
        scale = rng.uniform(0.01, 0.02, (n, k // block)).astype(np.float16)
        bias = rng.normal(size=n).astype(np.float16)
        w = ((q - np.float32(8)) * scale[..., None].astype(np.float32)).reshape(n, k)
        constants = {"w": pack_bits(q, 4), "s": scale, "b": bias, "order": ["x", "w", "s", "", "", "b"]}
        for rows in (1, 9):
            x = rng.normal(size=(rows, k)).astype(np.float16)
            text = microsoft.model("MatMulNBits", {"x": x}, constants, {"K": k, "N": n, "bits": 4, "block_size": block})
            for target in ("cpu", "interp"):
                got = np.array(quern.compile(text, target=target)([x])[0])
                self.assertEqual(got.dtype, np.float16)
                np.testing.assert_allclose(got.astype(np.float32), x.astype(np.float32) @ w.T + bias, rtol=1e-3, atol=1e-3)

    def test_matmul_nbits_of_rows_that_a_run_knows(self):
        """Few are multiplied by four bits or bytes, more by what they stand for."""
        rng = np.random.default_rng(12)
        for bits, n, k, block, zeros in ((4, 288, 256, 32, True), (8, 288, 256, 32, True), (8, 270, 256, 16, False), (8, 100, 1024, 128, False)):
            q = rng.integers(0, 1 << bits, (n, k // block, block)).astype(np.uint8)
            scale = (rng.uniform(0.16, 0.32, (n, k // block)) / (1 << bits)).astype(np.float32)
            zero = rng.integers(0, 1 << bits, (n, k // block)).astype(np.uint8) if zeros else np.full((n, k // block), 1 << (bits - 1), np.uint8)
            w = ((q - zero[..., None].astype(np.float32)) * scale[..., None]).reshape(n, k)
            constants = {"w": pack_bits(q, bits), "s": scale, "z": pack_bits(zero, bits), "order": "x w s z".split()[:3 + zeros]}
            x = rng.normal(size=(2, 70, k)).astype(np.float32)
            text = microsoft.model("MatMulNBits", {"x": x}, constants if zeros else {key: v for key, v in constants.items() if key != "z"},
                                   {"K": k, "N": n, "bits": bits, "block_size": block}, dims={"x": {0: "batch", 1: "length"}})
            for options in ({}, {"threads": 2}, {"math": "strict"}, {"precision": "bf16"}, {"precision": "int8"}, {"precision": "int4"}, {"target": "interp"}):
                run_of = quern.compile(text, **options)
                error = {"int4": 0.2, "int8": 0.02, "bf16": 0.02}.get(options.get("precision"), 1e-5)
                for rows in (x[:1, :1], x[:, :2], x[:1, :5], x):
                    with self.subTest(bits=bits, block=block, options=options, rows=rows.shape):
                        want = rows @ w.T
                        self.assertLess(np.abs(np.array(run_of([rows.copy()])[0]) - want).max() / np.abs(want).max(), error)

    def test_matmul_nbits_of_rows_as_bytes(self):
        """accuracy_level 4: rows may be rounded to bytes, as ONNX Runtime does; not in strict math."""
        rng = np.random.default_rng(13)
        for bits, n, k, block, zeros in ((4, 288, 256, 32, False), (4, 100, 1024, 64, True), (4, 270, 512, 128, True),
                                         (8, 288, 256, 32, False), (8, 100, 1024, 64, True)):
            q = rng.integers(0, 1 << bits, (n, k // block, block)).astype(np.uint8)
            scale = (rng.uniform(0.16, 0.32, (n, k // block)) / (1 << bits)).astype(np.float32)
            zero = rng.integers(0, 1 << bits, (n, k // block)).astype(np.uint8) if zeros else np.full((n, k // block), 1 << (bits - 1), np.uint8)
            w = ((q - zero[..., None].astype(np.float32)) * scale[..., None]).reshape(n, k)
            constants = {"w": pack_bits(q, bits), "s": scale, "order": "x w s".split() + ["z"] * zeros}
            if zeros:
                constants["z"] = pack_bits(zero, bits)
            x = rng.normal(size=(97, k)).astype(np.float32)
            text = microsoft.model("MatMulNBits", {"x": x}, constants, {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4},
                                   dims={"x": {0: "rows"}})
            run_of, two, strict = (quern.compile(text, **options) for options in ({"threads": 1}, {"threads": 2}, {"math": "strict"}))
            for rows in (x[:1], x[:3], x[:8], x):
                want = rows @ w.T
                got = np.array(run_of([rows])[0])
                self.assertLess(np.abs(got - want).max() / np.abs(want).max(), 0.02)
                self.assertFalse(np.allclose(got, want, rtol=1e-5, atol=1e-5))
                far = rows.copy()
                far[:, :block], far[:, 5] = 0, 1e4  # takes nothing from other blocks
                rest = rows[:, block:] @ w[:, block:].T
                apart = np.array(run_of([far])[0]) - far[:, :block] @ w[:, :block].T
                self.assertLess(np.abs(apart - rest).max() / np.abs(rest).max(), 0.02)
                np.testing.assert_array_equal(got, np.array(two([rows])[0]))
                np.testing.assert_allclose(np.array(strict([rows])[0]), want, rtol=1e-4, atol=1e-4)

    def test_matmul_nbits(self):
        rng = np.random.default_rng(9)
        for bits, block, k, n, zeros in ((4, 32, 96, 40, None), (4, 32, 96, 40, "whole"), (4, 16, 100, 24, "float"), (4, 128, 256, 288, "whole"),
                                         (8, 32, 64, 33, None), (8, 64, 100, 17, "whole"), (2, 16, 48, 20, None), (2, 32, 80, 20, "whole")):
            with self.subTest(bits=bits, block=block, k=k, zeros=zeros):
                blocks = -(-k // block)
                q = rng.integers(0, 1 << bits, (n, blocks, block)).astype(np.uint8)
                scale = rng.uniform(0.01, 0.02, (n, blocks)).astype(np.float32)
                zero = np.full((n, blocks), 1 << (bits - 1), np.float32)
                constants = {"w": pack_bits(q, bits), "s": scale, "b": rng.normal(size=n).astype(np.float32)}
                if zeros == "whole":
                    whole = rng.integers(0, 1 << bits, (n, blocks)).astype(np.uint8)
                    zero, constants["z"] = whole.astype(np.float32), pack_bits(whole, bits)
                elif zeros:
                    zero = constants["z"] = rng.uniform(0, 1 << bits, (n, blocks)).astype(np.float32)
                w = ((q - zero[..., None]) * scale[..., None]).reshape(n, -1)[:, :k]
                x = rng.normal(size=(2, k)).astype(np.float32)
                for bias in (False, True):
                    order = ["x", "w", "s", "z" if zeros else ""] + (["", "b"] if bias else [])
                    got = run("MatMulNBits", {"x": x}, {**{c: v for c, v in constants.items() if bias or c != "b"}, "order": order},
                              K=k, N=n, bits=bits, block_size=block)
                    np.testing.assert_allclose(got, x @ w.T + (constants["b"] if bias else 0), rtol=1e-4, atol=1e-4)


class Recurrent(unittest.TestCase):
    def dynamic(self, x, w, scale, zero):
        """x, quantized by its range, times bytes."""
        low, high = min(x.min(), 0), max(x.max(), 0)
        s = np.float32((high - low) / 255)
        z = np.round(-low / s) if s else np.float32(0)
        q = np.clip(np.round(x / s) + z, 0, 255) - z if s else x
        return q @ (w.astype(int) - zero.astype(int)) * (s * scale)

    def lstm(self, x, w, ws, wz, r, rs, rz, b, h, c):
        sigmoid = lambda v: 1 / (1 + np.exp(-v))
        xw, out = self.dynamic(x, w, ws, wz) + b.reshape(2, -1).sum(0), []
        for step in xw:
            i, o, f, g = np.split(step + self.dynamic(h, r, rs, rz), 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        return np.array(out), h, c

    def test_dynamic_quantize_lstm(self):
        rng = np.random.default_rng(10)
        steps, batch, size, hidden = 5, 2, 40, 32
        for dtype, each, both in ((np.int8, True, False), (np.uint8, False, True)):
            dirs, limits = 1 + both, np.iinfo(dtype)
            shape = (dirs, 4 * hidden) if each else (dirs,)
            x = rng.normal(size=(steps, batch, size)).astype(np.float32)
            w, r = (rng.integers(limits.min, limits.max + 1, (dirs, k, 4 * hidden)).astype(dtype) for k in (size, hidden))
            ws, rs = (rng.uniform(0.0005, 0.002, shape).astype(np.float32) for _ in range(2))
            wz, rz = (rng.integers(*((-5, 5) if dtype == np.int8 else (120, 136)), shape).astype(dtype) for _ in range(2))
            b = rng.normal(size=(dirs, 8 * hidden)).astype(np.float32)
            h, c = (rng.normal(size=(dirs, batch, hidden)).astype(np.float32) for _ in range(2))
            constants = {"w": w, "r": r, "b": b, "ws": ws, "wz": wz, "rs": rs, "rz": rz,
                         "order": ["x", "w", "r", "b", "", "h", "c", "", "ws", "wz", "rs", "rz"]}
            got = run("DynamicQuantizeLSTM", {"x": x, "h": h, "c": c}, constants, 3, hidden_size=hidden,
                      direction="bidirectional" if both else "forward")
            for d in range(dirs):
                y, last, cell = self.lstm(x[::-1] if d else x, w[d], ws[d], wz[d], r[d], rs[d], rz[d], b[d], h[d], c[d])
                np.testing.assert_allclose(got[0][:, d], y[::-1] if d else y, atol=1e-2)
                np.testing.assert_allclose(got[1][d], last, atol=1e-2)
                np.testing.assert_allclose(got[2][d], cell, atol=2e-2)


class Mistakes(microsoft.Mistakes):
    def test_messages(self):
        a = np.zeros((4, 64), np.uint8)
        x = np.zeros((4, 64), np.float32)
        s, z = scalar(1), scalar(0, np.uint8)
        self.refuse("inputs 1 and 2 must be scalars", "QLinearAdd", {"a": a},
                    {"v": np.ones(64, np.float32), "z": z, "s": s, "order": "a v z a s z s z".split()})
        self.refuse("three inputs for each part", "QLinearConcat", {"a": a}, {"s": s, "z": z, "order": "s z a s".split()}, axis=0)
        self.refuse("rank 3 or more", "QLinearAveragePool", {"a": a}, {"s": s, "z": z, "order": "a s z s z".split()}, kernel_shape=[2, 2],
                    channels_last=1)
        self.refuse("A and B must have rank 2", "QGemm", {"a": np.zeros((1, 4, 64), np.uint8)},
                    {"s": s, "z": z, "b": np.zeros((64, 8), np.int8), "bz": scalar(0, np.int8), "order": "a s z b s bz".split()})
        self.refuse("C must be int32", "QGemm", {"a": a},
                    {"s": s, "z": z, "b": np.zeros((64, 8), np.int8), "bz": scalar(0, np.int8), "c": np.zeros(8, np.uint8),
                     "order": "a s z b s bz c".split()})
        self.refuse("scale and zero point of A must be scalars", "MatMulIntegerToFloat", {"a": a},
                    {"b": np.zeros((64, 8), np.int8), "v": np.ones(4, np.float32), "s": s, "order": "a b v s".split()})
        w = np.zeros((1, 64, 128), np.int8)
        self.refuse("the weights do not fit 4 gates of hidden size 32", "DynamicQuantizeLSTM", {"x": np.zeros((3, 1, 64), np.float32)},
                    {"w": w, "r": w[:, :32], "v": np.ones((1, 100), np.float32), "z": np.zeros(1, np.int8), "s": np.ones(1, np.float32),
                     "order": ["x", "w", "r", "", "", "", "", "", "v", "z", "s", "z"]}, hidden_size=32)
        w, scales = np.zeros((8, 2, 16), np.uint8), np.ones((8, 2), np.float32)
        good = {"K": 64, "N": 8, "bits": 4, "block_size": 32}
        self.refuse("weights of 3 bits; 2, 4 and 8 are", "MatMulNBits", {"x": x}, {"w": w, "s": scales, "order": "x w s".split()},
                    **{**good, "bits": 3})
        self.refuse("a power of two", "MatMulNBits", {"x": x}, {"w": w, "s": scales, "order": "x w s".split()}, **{**good, "block_size": 24})
        self.refuse("has 256 bytes where N, K, bits and block_size ask for 512", "MatMulNBits", {"x": x},
                    {"w": w, "s": scales, "order": "x w s".split()}, **{**good, "N": 16})
        self.refuse("input 1 must be a constant of uint8", "MatMulNBits", {"x": x, "w": w}, {"s": scales, "order": "x w s".split()}, **good)
        self.refuse("A must be of floats", "MatMulNBits", {"x": x.astype(np.int32)}, {"w": w, "s": scales, "order": "x w s".split()}, **good)
        self.refuse("g_idx", "MatMulNBits", {"x": x}, {"w": w, "s": scales, "g": np.zeros(64, np.int32), "order": ["x", "w", "s", "", "g"]}, **good)


if __name__ == "__main__":
    unittest.main()
