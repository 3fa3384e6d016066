"""sort and top_k: machine code against NumPy's stable order and, to the bit, against the interpreter."""

import platform
import unittest

import numpy as np

import quern

DTYPES = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16,
          "i32": np.int32, "u32": np.uint32, "i64": np.int64, "u64": np.uint64, "bool": np.bool_}


def top_k(name, dims, axis, k, largest, dim=None, symbols=""):
    """Text of a top_k along the axis; `dim` names its extent, and `symbols` the input that k is an extent of."""
    x = [str(d) for d in dims]
    x[axis] = dim or x[axis]
    y = [*x]
    y[axis] = str(k)
    x, y = ", ".join(x), ", ".join(y)
    other = f", %y: f32[{symbols}]" if symbols else ""
    return f"""graph @top(%x: {name}[{x}]{other}) -> ({name}[{y}], i64[{y}]) {{
  %v, %i = top_k %x {{axis = {axis}, k = [{k}], largest = {str(largest).lower()}}} : {name}[{y}], i64[{y}]
  return %v, %i
}}
""".encode()


def sort(name, dims, axis, descending):
    dims = ", ".join(map(str, dims))
    return f"""graph @sorted(%x: {name}[{dims}], %y: i64[{dims}]) -> ({name}[{dims}], i64[{dims}]) {{
  %v, %i = sort %x, %y {{axis = {axis}, descending = {str(descending).lower()}}} : {name}[{dims}], i64[{dims}]
  return %v, %i
}}
""".encode()


def samples(rng, dtype, shape):
    """Ties, and of floats NaN of several kinds, infinities, zeros of both signs, numbers below the smallest normal one."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < .5
    if dtype.kind != "f":
        most = np.iinfo(dtype)
        return np.where(rng.random(shape) < .5, rng.integers(max(most.min, -3), 4, shape).astype(dtype),
                        rng.integers(most.min, most.max, shape, dtype=dtype, endpoint=True))
    x = np.where(rng.random(shape) < .5, rng.integers(-3, 4, shape), rng.standard_normal(shape)).astype(dtype)
    for special in (np.nan, -np.nan, np.inf, -np.inf, 0., -0., np.finfo(dtype).smallest_subnormal, -np.finfo(dtype).smallest_subnormal):
        x[rng.random(shape) < .04] = special
    x = x.view(f"u{dtype.itemsize}")
    x[np.isnan(x.view(dtype)) & (rng.random(shape) < .5)] ^= 1
    return x.view(dtype)


def order(x, axis, largest):
    """The stable order, NaN above all numbers: as ranks, which may be turned."""
    ranks = np.unique(np.where(x == 0, np.abs(x), x) if x.dtype.kind == "f" else x, return_inverse=True)[1].reshape(x.shape)
    if x.dtype.kind == "f":
        ranks[np.isnan(x)] = x.size
    return np.argsort(-ranks if largest else ranks, axis=axis, kind="stable")


class Order(unittest.TestCase):
    def expect(self, got, x, at, axis):
        np.testing.assert_array_equal(got[1], at)
        self.assertEqual(np.asarray(got[0]).tobytes(), np.take_along_axis(x, at, axis).tobytes())

    def check(self, text, inputs, axis, k, largest, targets=("cpu", "interp"), **options):
        x = inputs[0]
        at = np.take(order(x, axis, largest), np.arange(k), axis)
        for target in targets:
            with self.subTest(target=target, text=text, extent=x.shape[axis], k=k):
                self.expect(quern.compile(text, target=target, **options)(inputs), x, at, axis)

    def test_dtypes(self):
        rng = np.random.default_rng(1)
        for name, dtype in DTYPES.items():
            for largest in (False, True):
                x = samples(rng, dtype, (3, 300))
                self.check(top_k(name, x.shape, 1, 5, largest), [x], 1, 5, largest)
                numbers = np.broadcast_to(np.arange(300), x.shape).copy()
                self.check(sort(name, x.shape, 1, largest), [x, numbers], 1, 300, largest)

    def test_bfloat16(self):
        rng = np.random.default_rng(2)
        x = samples(rng, np.float32, (2, 400))
        text = """graph @top(%x: f32[2, 400]) -> i64[2, 9] {
  %b = convert %x {dtype = bf16} : bf16[2, 400]
  %v, %i = top_k %b {axis = 1, k = [9], largest = true} : bf16[2, 9], i64[2, 9]
  return %i
}
""".encode()
        got, want = (quern.compile(text, target=t)([x])[0] for t in ("cpu", "interp"))
        np.testing.assert_array_equal(got, want)

    def test_extents(self):
        """Around whole groups and powers of two; few, half and all of the line; the last sorted first, so that all are taken."""
        rng = np.random.default_rng(3)
        for n in (1, 8, 9, 63, 64, 65, 127, 129, 200, 513, 1025, 9000):
            for k in sorted({0, 1, min(n, 16), n // 2, n}):
                largest = bool(rng.integers(2))
                x = samples(rng, np.float32, (2, n))
                if rng.integers(2):
                    x = np.take_along_axis(x, order(x, 1, not largest), 1)
                self.check(top_k("f32", x.shape, 1, k, largest), [x], 1, k, largest, targets=("cpu",))

    def test_64_bits(self):
        """Ranges that 32 bits have, just not, and many times; where few are wanted also ties of what tells keys apart, up to all of the line."""
        rng = np.random.default_rng(6)
        for n in (1, 70, 700, 9000):
            lines = [rng.integers(-50, 50, n), rng.integers(0, 2**32, n) - 2**31, rng.integers(-2**63, 2**63 - 1, n),
                     rng.integers(0, 2, n) * 2**40 + rng.integers(0, 50, n), np.full(n, -7)]
            for line, most in zip(lines[1:2] * 2, (2**32 - 1, 2**32)):
                line = line.copy()
                line[n // 2], line[0] = np.int64(-2**31) + most, -2**31
                lines.append(line)
            lines.append(np.where(np.arange(n) == n // 3, 2**62, lines[0]))  # of all others 32 bits tell nothing
            x = np.stack(lines).astype(np.int64)
            for k in sorted({1, min(n, 16), n}):
                for largest in (False, True):
                    self.check(top_k("i64", x.shape, 1, k, largest), [x], 1, k, largest, targets=("cpu",))
                    y = samples(rng, np.float64, (2, n))
                    self.check(top_k("f64", y.shape, 1, k, largest), [y], 1, k, largest, targets=("cpu",))
            z = (x.astype(np.uint64) << np.uint64(1)) | np.uint64(1)
            self.check(top_k("u64", z.shape, 1, min(n, 5), True), [z], 1, min(n, 5), True, targets=("cpu",))

    def test_axes(self):
        rng = np.random.default_rng(4)
        for axis in range(3):
            for n in (20, 700):
                shape = [3, 4, 2]
                shape[axis] = n
                x = samples(rng, np.float32, shape)
                self.check(top_k("f32", shape, axis, 7, True), [x], axis, 7, True)
        self.check(top_k("f32", (5, 0, 9), 2, 3, False), [np.zeros((5, 0, 9), np.float32)], 2, 3, False)

    def test_symbols(self):
        rng = np.random.default_rng(5)
        few = quern.compile(top_k("f32", (2, 0), 1, 6, False, "n"))
        some = quern.compile(top_k("f32", (2, 0), 1, "m", True, "n", "m"))
        for n in (6, 7, 64, 65, 130, 1000, 20000):
            x = samples(rng, np.float32, (2, n))
            self.expect(few([x]), x, order(x, 1, False)[:, :6], 1)
            for k in (0, 1, n // 2, n):
                self.expect(some([x, np.zeros(k, np.float32)]), x, order(x, 1, True)[:, :k], 1)
        for model, inputs in ((few, [np.zeros((2, 5), np.float32)]),
                              (some, [np.zeros((2, 5), np.float32), np.zeros(6, np.float32)])):
            with self.assertRaises(quern.Error):
                model(inputs)

    def test_threads(self):
        rng = np.random.default_rng(6)
        x = samples(rng, np.float32, (300, 3000))
        for k in (10, 3000):
            text = top_k("f32", x.shape, 1, k, True)
            one, two = ([np.asarray(y).tobytes() for y in quern.compile(text, threads=n)([x])] for n in (1, 2))
            self.assertEqual(one, two)
            self.check(text, [x], 1, k, True, targets=("cpu",), threads=2)

    @unittest.skipUnless(platform.machine() == "x86_64", "names of x86's levels")
    def test_smaller_vectors(self):
        rng = np.random.default_rng(7)
        x = samples(rng, np.float32, (2, 900))
        for k in (4, 900):
            self.check(top_k("f32", x.shape, 1, k, True), [x], 1, k, True, targets=("cpu",), cpu="x86-64-v3")


if __name__ == "__main__":
    unittest.main()
