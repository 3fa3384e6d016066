"""Narrow types (int4 … float8): arrays in and out, machine code against the interpreter, and against ml_dtypes where it is there."""

import unittest

import numpy as np

import quern

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

NAMES = {"i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2", "f8e4m3fn": "float8_e4m3fn", "f8e4m3fnuz": "float8_e4m3fnuz",
         "f8e5m2": "float8_e5m2", "f8e5m2fnuz": "float8_e5m2fnuz", "f4e2m1": "float4_e2m1fn", "f8e8m0": "float8_e8m0fnu"}
WIDE = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "i8": np.int8, "u8": np.uint8, "i64": np.int64,
        "u32": np.uint32, "bool": np.bool_}


def convert(x, source, to, target="cpu"):
    model = quern.compile(f"""graph @convert(%x: {source}[n]) -> {to}[n] {{
  %r = convert %x {{dtype = {to}}} : {to}[n]
  return %r
}}
""".encode(), target=target)
    return model([x])[0]


def both(x, source, to):
    """The bits that machine code and the interpreter give."""
    return (bits(convert(x, source, to, target)) for target in ("cpu", "interp"))


def bits(x):
    return x.view(np.uint8) if x.dtype.itemsize == 1 else x


def samples(dtype, rng):
    """Numbers of every size, each with neighbours and in both signs, and sums of two powers of two: the ties."""
    if np.dtype(dtype).kind != "f":
        return rng.integers(0, 256, 4096).astype(dtype)
    x = np.concatenate([np.ldexp(1 + rng.random(3000), rng.integers(-20, 20, 3000)),
                        (np.ldexp(1.0, np.arange(-20, 20))[:, None] * (1 + np.arange(32) / 32)).ravel(),
                        [0, np.inf, np.nan, 1e-30, 3e38, 448, 464, 465, 240, 248, 57344, 61440, 6, 7]])
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    return np.concatenate([x, -x, np.nextafter(x, dtype(0)), np.nextafter(x, dtype(np.inf))])


class Narrow(unittest.TestCase):
    def test_machine_code_and_interpreter(self):
        rng = np.random.default_rng(1)
        every = np.arange(256, dtype=np.uint8)
        for name in NAMES:
            for other, dtype in WIDE.items():
                with self.subTest(narrow=name, other=other):
                    np.testing.assert_array_equal(*both(every, name, other))
                    np.testing.assert_array_equal(*both(samples(dtype, rng), other, name))
            for other in NAMES:
                if other != name:
                    np.testing.assert_array_equal(*both(every, name, other))

    def test_types_of_arrays(self):
        """Those of ml_dtypes, or the bits where it does not know the type."""
        for name, numpy_name in NAMES.items():
            model = quern.compile(f"graph @same(%x: {name}[n]) -> {name}[n] {{\n  return %x\n}}\n".encode())
            expected = np.dtype(getattr(ml_dtypes, numpy_name, np.uint8))
            self.assertEqual(model.inputs[0].dtype, expected)
            x = np.arange(4, dtype=np.uint8)
            for array in (x, x.view(expected), x.view("V1")):
                y = model([array])[0]
                self.assertEqual(y.dtype, expected)
                np.testing.assert_array_equal(y.view(np.uint8), x)
            with self.assertRaises(quern.Error):
                model([np.zeros(4, np.int16)])

    @unittest.skipUnless(ml_dtypes, "ml_dtypes is missing")
    def test_against_ml_dtypes(self):
        rng = np.random.default_rng(2)
        for name, numpy_name in NAMES.items():
            if not hasattr(ml_dtypes, numpy_name):
                continue
            dtype = np.dtype(getattr(ml_dtypes, numpy_name))
            every = np.arange(16 if name == "f4e2m1" else 256, dtype=np.uint8).view(dtype)
            for other in ("f32", "f64", "f16"):
                wide = WIDE[other]
                with self.subTest(narrow=name, other=other), np.errstate(all="ignore"):
                    np.testing.assert_array_equal(convert(every, name, other), every.astype(wide))
                    x = samples(wide, rng)
                    if name == "f8e8m0":
                        x = x[(x >= 2.0**-127) & np.isfinite(x)]  # below, ONNX says NaN
                    elif name in ("i4", "u4", "i2", "u2"):
                        info = ml_dtypes.iinfo(dtype)
                        x = np.clip(np.nan_to_num(x), float(info.min), float(info.max))  # beyond, ml_dtypes wraps
                    elif name == "f4e2m1":
                        x = x[~np.isnan(x)]
                    if other == "f64":
                        x = x.astype(np.float32).astype(wide)  # from others ml_dtypes rounds twice
                    np.testing.assert_array_equal(bits(convert(x, other, name)), bits(x.astype(dtype)))

    def test_tensors(self):
        x = quern.Tensor(np.array([0.3, -1000, 2], np.float32))
        for name, expected in (("float8_e4m3fn", [0.3125, np.nan, 2]), ("int4", [0, -8, 2])):
            if not hasattr(ml_dtypes, name):
                continue
            y = x.astype(getattr(ml_dtypes, name))
            self.assertEqual(y.dtype, np.dtype(getattr(ml_dtypes, name)))
            np.testing.assert_array_equal(y.astype(np.float32).numpy(), expected)
            np.testing.assert_array_equal(y[::-1].astype(np.float32).numpy(), expected[::-1])
            self.assertEqual(y[2].item(), 2)
            with self.assertRaisesRegex(quern.Error, "convert it first"):
                (y + y).numpy()


if __name__ == "__main__":
    unittest.main()
