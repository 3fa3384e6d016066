"""Models by the code for AMX, which tests/fake_amx runs on machines without it. Where all numbers are small multiples of 1/8,
which bfloat16 holds and whose sums float32 holds, the bits are those of float32; those of bytes are always VNNI's."""

import ctypes
import os
import pathlib
import tempfile
import unittest

import numpy as np

import quern

CPU, WITHOUT = "sapphirerapids", "znver4"
if "QUERN_FAKE_AMX" not in os.environ:
    raise unittest.SkipTest("QUERN_FAKE_AMX is not the emulator that the tests build")
amx = ctypes.CDLL(os.environ["QUERN_FAKE_AMX"])
amx.fake_amx_instructions.restype = ctypes.c_long
EMULATED = 1
if not amx.fake_amx():
    raise unittest.SkipTest("AMX cannot be emulated here")
try:
    quern.compile(b"graph @f(%x: f32[1]) -> f32[1] {\n  return %x\n}\n", cpu=CPU)
except quern.Error as e:
    raise unittest.SkipTest(str(e))


class Graph:
    """A graph as text, node by node, and what it is called with."""

    def __init__(self, symbols=""):
        self.head, self.lines, self.inputs, self.arrays, self.shapes = symbols, [], [], [], {}

    def declare(self, name, dims, role="", dtype="f32"):
        self.inputs.append(f"{name}: {dtype}{text_of(dims)}{role}")
        self.shapes[name] = dims
        return name

    def input(self, array, dims=None):
        """An input; `dims` are its declared ones, which may be symbols."""
        self.arrays.append(array)
        return self.declare(f"%x{len(self.inputs)}", list(dims or array.shape))

    def parameter(self, array):
        return self.declare(f"%p{len(self.inputs)}", list(array.shape), f" param = {literal(array)}")

    def constant(self, array):
        return self.op(f"constant {literal(array)}", array.shape)

    def op(self, text, dims):
        name = f"%{len(self.lines)}"
        self.lines.append(f"  {name} = {text} : f32{text_of(dims)}")
        self.shapes[name] = list(dims)
        return name

    def map(self, op, *operands):
        return self.op(f"{op} {', '.join(operands)}", self.shapes[operands[0]])

    def spread(self, x, axes, dims):
        return self.op(f"broadcast {x} {{axes = {axes}, dims = {text_of(dims)}}}", dims)

    def number(self, value, dims):
        return self.spread(self.op(f"constant {value}", []), [], dims)

    def product(self, x, y, batch=0, x_axis=None, y_axis=None):
        """Of the last axis of x by the first behind those of a batch of y, unless others are named."""
        xs, ys, axes = self.shapes[x], self.shapes[y], list(range(batch))
        x_axis, y_axis = len(xs) - 1 if x_axis is None else x_axis, batch if y_axis is None else y_axis
        left = [d for i, d in enumerate(xs) if i != x_axis]
        right = [d for i, d in enumerate(ys) if i != y_axis and i >= batch]
        return self.op(f"dot_general {x}, {y} {{x_batch = {axes}, x_contract = [{x_axis}], y_batch = {axes}, y_contract = [{y_axis}]}}",
                       left + right)

    def transpose(self, x, order):
        return self.op(f"transpose {x} {{perm = {order}}}", [self.shapes[x][i] for i in order])

    def reshape(self, x, dims):
        return self.op(f"reshape {x} {{dims = {text_of(dims)}}}", dims)

    def convolution(self, x, w, stride=(1, 1), low=(0, 0), high=(0, 0)):
        (n, _, *extents), (channels, _, *window) = self.shapes[x], self.shapes[w]
        out = [(e + a + b - k) // s + 1 for e, a, b, k, s in zip(extents, low, high, window, stride)]
        return self.op(f"convolution {x}, {w} {{stride = {list(stride)}, low = {list(low)}, high = {list(high)}, x_dilation = [1, 1], "
                       "w_dilation = [1, 1], groups = 1}", [n, channels, *out])

    def text(self, result):
        dims = text_of(self.shapes[result])
        return "\n".join([*([self.head] if self.head else []), f"graph @main({', '.join(self.inputs)}) -> (y: f32{dims}) {{", *self.lines,
                          f"  return {result}", "}", ""]).encode()


def text_of(dims):
    return "[" + ", ".join(map(str, dims)) + "]"


def literal(array):
    return 'x"' + np.ascontiguousarray(array, "<f4").tobytes().hex() + '"' if array.ndim else repr(float(array))


def eighths(rng, *shape):
    return (rng.integers(-8, 9, shape) / 8).astype(np.float32)


def normal(rng, *shape, scale=1.0):
    return (scale * rng.normal(size=shape)).astype(np.float32)


class Amx(unittest.TestCase):
    def run_on(self, cpu, text, arrays, precision, threads=1):
        return quern.compile(text, cpu=cpu, precision=precision, threads=threads)(arrays)[0]

    def by_amx(self, text, arrays, precision):
        """With one thread and with two, which gives the same bits; AMX must be used."""
        before = amx.fake_amx_instructions()
        one = self.run_on(CPU, text, arrays, precision)
        if amx.fake_amx() == EMULATED:
            self.assertGreater(amx.fake_amx_instructions(), before)
        np.testing.assert_array_equal(self.run_on(CPU, text, arrays, precision, 2), one)
        return one

    def assert_same(self, text, arrays, precision):
        """The bits of float32, or of other instructions for bytes."""
        want = self.run_on(WITHOUT, text, arrays, "f32" if precision == "bf16" else precision)
        np.testing.assert_array_equal(self.by_amx(text, arrays, precision), want)

    def assert_close(self, text, arrays, precision, bound):
        """What the interpreter gives, within a part of the largest number."""
        want = quern.compile(text, target="interp")(arrays)[0]
        error = np.abs(self.by_amx(text, arrays, precision) - want).max() / np.abs(want).max()
        self.assertLess(error, bound)
        return error


def epilogue(g, x, bias, kind):
    """What follows a product: nothing, a bias of the last axis, then a function, then a sum with what else there is."""
    dims = g.shapes[x]
    if kind > 0:
        x = g.map("add", x, g.spread(bias, [len(dims) - 1], dims))
    if kind > 1:
        x = g.map("tanh", x)
    return g.map("mul", x, x) if kind > 2 else x


class Products(Amx):
    def test_any_shape(self):
        """Rows that are known or a symbol, both sides turned or not, batches, right sides that are constants or not, sums that end with a
        step of the unit or not."""
        rng = np.random.default_rng(1)
        for i in range(24):
            precision, step = (("bf16", 32), ("int8", 64))[i % 2]
            m, n, k = int(rng.integers(8, 120)), int(rng.integers(16, 150)), step * int(rng.integers(1, 6))
            if precision == "bf16" and k > 2 * step:
                k -= int(rng.integers(step))
            while m * n * k < 2 ** 18:
                m, n = m + 7, n + 9
            batch = [[], [2], [2, 3]][rng.integers(3)] if precision == "bf16" else []
            turned, other_turned, known, fixed = rng.integers(2, size=4)
            symbolic = not known and not batch and not turned
            with self.subTest(precision=precision, m=m, n=n, k=k, batch=batch, turned=turned, other=other_turned, symbolic=symbolic):
                g = Graph("dims rows: 1..500" if symbolic else "")
                x = g.input(eighths(rng, *batch, *((k, m) if turned else (m, k))), ["rows", k] if symbolic else None)
                right = eighths(rng, *batch, *((n, k) if other_turned else (k, n)))
                y = g.constant(right) if fixed or precision == "int8" else g.input(right)
                bias, at = g.input(eighths(rng, n)), len(batch)
                r = g.product(x, y, at, at + (0 if turned else 1), at + (1 if other_turned else 0))
                self.assert_same(g.text(epilogue(g, r, bias, int(rng.integers(4)))), g.arrays, precision)

    def test_any_number_of_rows(self):
        """All that blocks of 32 rows leave, with one model for all of them."""
        rng = np.random.default_rng(2)
        for precision, k in ("bf16", 96), ("int8", 128):
            g = Graph("dims rows: 0..200")
            x = g.input(eighths(rng, 8, k), ["rows", k])
            r = g.product(x, g.constant(eighths(rng, k, 50)))
            text = g.text(g.map("add", r, r))
            models = [quern.compile(text, cpu=cpu, precision=p, threads=2)
                      for cpu, p in ((CPU, precision), (WITHOUT, "f32" if precision == "bf16" else precision))]
            for rows in 0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65, 200:
                given = [eighths(rng, rows, k)]
                np.testing.assert_array_equal(*(model(given)[0] for model in models), err_msg=f"{precision}, {rows} rows")

    def test_any_numbers(self):
        """Not only those that are exact: within what rounding 96 factors costs."""
        rng = np.random.default_rng(3)
        for precision, bound in ("bf16", 0.01), ("int8", 0.02):
            g = Graph()
            r = g.product(g.input(normal(rng, 50, 192)), g.constant(normal(rng, 192, 70)))
            self.assertGreater(self.assert_close(g.text(r), g.arrays, precision, bound), 1e-5)

    def test_bytes(self):
        """Of each sign, as models with integers multiply them."""
        rng = np.random.default_rng(10)
        for left in np.uint8, np.int8:
            for right in np.uint8, np.int8:
                x, y = (rng.integers(0, 256, size).astype(np.uint8).view(t) for size, t in (((45, 128), left), ((128, 70), right)))
                names = ["u8" if t is np.uint8 else "i8" for t in (left, right)]
                text = f"""graph @main(%x: {names[0]}[45, 128]) -> i32[45, 70] {{
  %y = constant x"{y.tobytes().hex()}" : {names[1]}[128, 70]
  %r = dot_general %x, %y {{dtype = i32, x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}} : i32[45, 70]
  return %r
}}
"""
                np.testing.assert_array_equal(self.by_amx(text.encode(), [x], "f32"), x.astype(np.int32) @ y.astype(np.int32), str(names))

    def test_special_numbers(self):
        """NaN and infinity stay in their row; numbers below 2^-126 count as 0."""
        rng = np.random.default_rng(4)
        x = eighths(rng, 40, 96)
        x[3, 7], x[20, 5], x[21], x[30, 2] = np.nan, np.inf, 1e-39, -np.inf
        g = Graph()
        text = g.text(g.product(g.input(x), g.constant(np.abs(eighths(rng, 96, 80)) + np.float32(0.125))))
        y, clean = self.by_amx(text, [x], "bf16"), np.delete(x, [3, 20, 21, 30], 0)
        want = quern.compile(text, target="interp")([x])[0]
        self.assertTrue(np.isnan(y[3]).all() and (y[20] == np.inf).all() and (y[30] == -np.inf).all() and (y[21] == 0).all())
        self.assertEqual(len(clean), 36)
        np.testing.assert_array_equal(np.delete(y, [3, 20, 21, 30], 0), np.delete(want, [3, 20, 21, 30], 0))


class RandomGraphs(Amx):
    """Products among other ops, each followed by rounding to small whole numbers, so that all stays exact."""

    def graph(self, rng, precision):
        step = 32 if precision == "bf16" else 64
        widths = [step, 2 * step, 3 * step]
        rows = int(rng.integers(60, 140))
        symbolic = bool(rng.integers(2))
        m = "rows" if symbolic else rows
        g = Graph("dims rows: 8..500" if symbolic else "")
        values = [g.input(eighths(rng, rows, w), [m, w]) for w in widths[:2]]

        def take(like=None):
            fit = [v for v in values if like is None or g.shapes[v] == g.shapes[like]]
            return fit[rng.integers(len(fit))]

        for _ in range(int(rng.integers(4, 10))):
            x = take()
            k, kind = g.shapes[x][1], int(rng.integers(6))
            if kind < 3:
                w = eighths(rng, k, widths[rng.integers(3)])
                y = g.constant(w) if kind or precision == "int8" else g.input(w)
                y = g.product(x, y) if kind < 2 else g.product(x, g.transpose(y, [1, 0]), y_axis=1)
            elif kind == 3:
                y = g.map(("add", "max", "mul")[rng.integers(3)], x, take(x))
            elif kind == 4 and k > step:
                y = g.op(f"slice {x} {{limit = [{m}, {k}], start = [0, {step}], stride = [1, 1]}}", [m, k - step])
            else:
                y = g.map("neg", x)
            dims = g.shapes[y]
            y = g.map("floor", g.map("max", g.map("min", y, g.number(5.0, dims)), g.number(-6.0, dims)))
            values.append(y)
        # what no other depends on counts as well
        y = values[-1]
        for other in values[2:-1]:
            if g.shapes[other] == g.shapes[y]:
                y = g.map("add", y, other)
        w = widths[1]
        return g, g.product(y, g.constant(eighths(rng, g.shapes[y][1], w)))

    def test_same_bits(self):
        for seed in range(12):
            precision = ("bf16", "int8")[seed % 2]
            with self.subTest(seed=seed, precision=precision):
                g, result = self.graph(np.random.default_rng(seed), precision)
                self.assert_same(g.text(result), g.arrays, precision)


class Convolutions(Amx):
    def test_any_shape(self):
        """Exact in bfloat16 but for Winograd's method, by which the reference computes some; bytes to the bit."""
        rng = np.random.default_rng(5)
        for i in range(12):
            precision, least = (("bf16", 32), ("int8", 64))[i % 2]
            n, c, k = int(rng.integers(1, 3)), int(rng.integers(least, least + 70)), int(rng.integers(least, least + 70))
            extents, window = rng.integers(6, 26, 2), [(1, 1), (3, 3), (1, 3), (5, 5), (3, 1), (2, 2)][i // 2 % 6]
            stride, low, high = rng.integers(1, 3, 2), [int(rng.integers(w)) for w in window], [int(rng.integers(w)) for w in window]
            if window == (1, 1) and precision == "int8":
                stride = [1, 1]  # else too few products for each number to quantize it
            with self.subTest(precision=precision, n=n, c=c, k=k, extents=extents, window=window, stride=stride, low=low, high=high):
                g = Graph()
                x, w = g.input(eighths(rng, n, c, *map(int, extents))), g.constant(eighths(rng, k, c, *window))
                y = g.convolution(x, w, [int(s) for s in stride], low, high)
                y = g.map("add", y, g.spread(g.input(eighths(rng, k)), [1], g.shapes[y]))
                y = g.map("tanh", y) if i % 3 == 0 else y
                if precision == "bf16":
                    self.assert_close(g.text(y), g.arrays, precision, 1e-6)
                else:
                    self.assert_same(g.text(y), g.arrays, precision)


class Networks(Amx):
    def encoder(self, rng, rows, width, heads, layers):
        """A transformer's encoder over `rows` tokens."""
        g = Graph()
        x = g.input(normal(rng, rows, width))
        weights = lambda a, b: g.constant(normal(rng, a, b, scale=a ** -0.5))
        norm = lambda x: g.op(f"layer_norm {x}, {g.constant(np.ones(width, np.float32))}, {g.constant(normal(rng, width, scale=0.1))} "
                              "{axis = 1, epsilon = 1e-05}", [rows, width])
        split = lambda x: g.transpose(g.reshape(x, [1, rows, heads, width // heads]), [0, 2, 1, 3])
        for _ in range(layers):
            q, k, v = (split(g.product(x, weights(width, width))) for _ in range(3))
            mixed = g.op(f"attention {q}, {k}, {v} {{scale = {(width // heads) ** -0.5}}}", g.shapes[q])
            mixed = g.reshape(g.transpose(mixed, [0, 2, 1, 3]), [rows, width])
            x = norm(g.map("add", x, g.product(mixed, weights(width, width))))
            inner = g.map("gelu", g.product(x, weights(width, 4 * width)))
            x = norm(g.map("add", x, g.product(inner, weights(4 * width, width))))
        return g.text(x), g.arrays

    def test_encoder(self):
        text, arrays = self.encoder(np.random.default_rng(6), 45, 128, 4, 2)
        self.assert_close(text, arrays, "bf16", 0.03)
        self.assert_close(text, arrays, "int8", 0.03)
        self.assert_same(text, arrays, "int8")

    def residual(self, rng, few, many):
        """Residual blocks, one with fewer places and more channels, the mean of each channel, and classes."""
        g = Graph()
        relu = lambda x: g.map("max", x, g.number(0.0, g.shapes[x]))

        def conv(x, channels, window, stride):
            c, p = g.shapes[x][1], window // 2
            w = g.constant(normal(rng, channels, c, window, window, scale=(2 / (c * window ** 2)) ** 0.5))
            y = g.convolution(x, w, (stride, stride), (p, p), (p, p))
            return g.map("add", y, g.spread(g.constant(normal(rng, channels, scale=0.1)), [1], g.shapes[y]))

        x = relu(conv(g.input(normal(rng, 2, 3, 40, 36)), few, 7, 2))
        for channels, stride in (few, 1), (many, 2):
            y = conv(relu(conv(x, channels, 3, stride)), channels, 3, 1)
            x = relu(g.map("add", y, x if stride == 1 else conv(x, channels, 1, stride)))
        total = g.op(f"reduce {x} {{axes = [2, 3], kind = sum}}", g.shapes[x][:2])
        return g.text(g.product(total, g.constant(normal(rng, g.shapes[total][1], 10)))), g.arrays

    def test_residual_network(self):
        text, arrays = self.residual(np.random.default_rng(7), 40, 72)
        self.assert_close(text, arrays, "bf16", 0.03)
        text, arrays = self.residual(np.random.default_rng(7), 64, 100)
        self.assert_close(text, arrays, "int8", 0.03)

    def test_training(self):
        """Steps of two layers, forward and backward by AMX: they learn as by float32, the same for any number of threads."""
        rng = np.random.default_rng(8)
        g = Graph()
        dims = [64, 96, 160, 32]
        x = g.declare("%x", [dims[0], dims[1]])
        hidden = g.map("tanh", g.product(x, g.parameter(normal(rng, *dims[1:3], scale=0.1))))
        text = g.text(g.product(hidden, g.parameter(normal(rng, *dims[2:], scale=0.1))))
        batches = [(normal(rng, *dims[:2]), rng.integers(0, dims[3], dims[0])) for _ in range(3)]

        def losses(precision, cpu, threads):
            t = quern.train(text, "cross_entropy", "sgd", 0.5, precision=precision, cpu=cpu, threads=threads)
            return [t.step([x], target) for _ in range(4) for x, target in batches], t.parameters
        before = amx.fake_amx_instructions()
        one, parameters = losses("bf16", CPU, 1)
        if amx.fake_amx() == EMULATED:
            self.assertGreater(amx.fake_amx_instructions() - before, 12 * 5 * 8)
        two, same = losses("bf16", CPU, 2)
        self.assertEqual(one, two)
        for key, value in parameters.items():
            np.testing.assert_array_equal(value, same[key])
        want, _ = losses("f32", CPU, 1)
        np.testing.assert_allclose(one, want, rtol=0.01)
        self.assertNotEqual(one, want)
        self.assertLess(one[-1], one[0])


class Objects(Amx):
    """Objects for several CPUs ask this one what it has. What they ask with is replaced by what the emulator answers."""

    def test_the_best_is_chosen(self):
        rng = np.random.default_rng(9)
        g = Graph()
        text = g.text(g.product(g.input(eighths(rng, 40, 96)), g.constant(eighths(rng, 96, 80))))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.so"
            quern.compile_file(text, path, cpu=f"x86-64-v4,{CPU}", precision="bf16", prefix="model")
            if amx.fake_amx() == EMULATED:
                self.assertNotIn("amx", quern.load(path).target)
                code = path.read_bytes()
                cpuid, xgetbv = b"\x0f\xa2", b"\x0f\x01\xd0"
                self.assertEqual((code.count(cpuid), code.count(xgetbv)), (5, 1))
                path = pathlib.Path(folder) / "with_amx.so"
                path.write_bytes(code.replace(cpuid, b"\x0f\x04").replace(xgetbv, b"\x0f\x0a\x90"))
            before = amx.fake_amx_instructions()
            model = quern.load(path, "model")
            self.assertIn("+amx-bf16", model.target)
            np.testing.assert_array_equal(model(g.arrays)[0], self.run_on(WITHOUT, text, g.arrays, "f32"))
            self.assertEqual(amx.fake_amx_instructions() > before, amx.fake_amx() == EMULATED)


if __name__ == "__main__":
    unittest.main()
