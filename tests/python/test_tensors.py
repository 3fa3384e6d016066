"""Tensors against NumPy: random shapes, data types and layouts; what shares memory; what is refused; the tape."""

import gc
import unittest

import numpy as np

import quern
from quern import Tensor

INTS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, np.float32, np.float64]
TYPES = [np.bool_] + INTS + FLOATS
EXACT = {"add", "subtract", "multiply", "maximum", "minimum"}


def random_array(rng, shape, dtype):
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        x = rng.integers(0, 2, shape)
    elif dtype.kind in "iu":
        x = rng.integers(-20 if dtype.kind == "i" else 0, 21, shape)
    else:
        x = rng.standard_normal(shape) * 3
    return np.asarray(x).astype(dtype)


def random_layout(rng, x):
    """The same elements in memory of another layout: transposed, with gaps, backwards."""
    kind = rng.integers(0, 4)
    if kind == 0 or not x.ndim:
        return x
    if kind == 1:
        return np.ascontiguousarray(x.T).T
    if kind == 2:
        wide = np.zeros(tuple(2 * n + 1 for n in x.shape), x.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
        view[...] = x
        return view
    return np.ascontiguousarray(x[tuple(slice(None, None, -1) for _ in x.shape)])[tuple(slice(None, None, -1) for _ in x.shape)]


def random_shapes(rng, n=2):
    """Shapes that fit each other by NumPy's broadcasting."""
    full = tuple(rng.integers(0 if rng.random() < 0.1 else 1, 6, rng.integers(0, 5)))
    return [tuple(1 if rng.random() < 0.3 else d for d in full[rng.integers(0, len(full) + 1) if rng.random() < 0.4 else 0:])
            for _ in range(n)]


class Case(unittest.TestCase):
    def same(self, ours, theirs, tolerance=0.0, what=""):
        theirs = np.asarray(theirs)
        self.assertEqual(ours.shape, theirs.shape, what)
        self.assertEqual(ours.dtype, theirs.dtype, what)
        a, b = ours.numpy(), theirs
        if a.dtype.kind != "f" or tolerance == 0:
            np.testing.assert_array_equal(a, b, what)
        else:
            step = np.finfo(a.dtype).eps * tolerance
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=step, atol=step, err_msg=what)


class ElementWise(Case):
    BINARY = [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.true_divide),
              ("max", np.maximum), ("min", np.minimum), ("floor_div", np.floor_divide), ("mod", np.mod), ("eq", np.equal),
              ("ne", np.not_equal), ("lt", np.less), ("le", np.less_equal), ("gt", np.greater), ("ge", np.greater_equal),
              ("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)]

    def test_binary(self):
        rng = np.random.default_rng(1)
        for i in range(85):
            name, reference = self.BINARY[i % len(self.BINARY)]
            shapes = random_shapes(rng)
            kinds = TYPES if name not in ("and", "or", "xor") else [np.bool_] + INTS
            types = [kinds[k] for k in rng.integers(0, len(kinds), 2)]
            x, y = (random_layout(rng, random_array(rng, s, t)) for s, t in zip(shapes, types))
            if name == "sub" and x.dtype == y.dtype == bool or len(kinds) < len(TYPES) and np.result_type(x, y).kind == "f":
                continue  # neither has it
            if name in ("div", "floor_div", "mod"):
                y = np.where(y == 0, np.ones_like(y), y)
            if {x.dtype, y.dtype} & {np.dtype(np.uint64)} and name in ("eq", "ne", "lt", "le", "gt", "ge"):
                x, y = abs(x), abs(y)  # NumPy compares these with signed ones exactly, not as f64
            if name in ("floor_div", "mod"):
                with np.errstate(all="ignore"):  # whole numbers: a quotient next to one may round either way
                    x, y = (np.round(v) if v.dtype.kind == "f" else v for v in (x, y))
                    y = np.where(y == 0, np.ones_like(y), y)
            with np.errstate(all="ignore"):
                theirs = reference(x, y)
            ours = Tensor(x).elementwise(name, Tensor(y))
            self.same(ours, theirs, 0 if theirs.dtype.kind != "f" else 1, f"{name} {x.dtype}{x.shape} {y.dtype}{y.shape}")

    def test_unary(self):
        rng = np.random.default_rng(2)
        names = dict(exp=np.exp, log=np.log, sqrt=np.sqrt, tanh=np.tanh, sin=np.sin, cos=np.cos, expm1=np.expm1,
                     log1p=np.log1p, asinh=np.arcsinh, atan=np.arctan)
        exact = dict(neg=np.negative, abs=np.abs, sign=np.sign, square=np.square, floor=np.floor, ceil=np.ceil,
                     trunc=np.trunc, round=np.rint, is_nan=np.isnan)
        for i in range(60):
            table = names if i % 2 else exact
            name = list(table)[i // 2 % len(table)]
            dtype = TYPES[rng.integers(0, len(TYPES))]
            if dtype is np.bool_ and name not in names:
                continue
            if name == "round" and np.dtype(dtype).kind != "f":
                continue  # NumPy's rint makes floats of integers
            x = random_layout(rng, random_array(rng, random_shapes(rng, 1)[0], dtype))
            if name in ("log", "sqrt", "log1p"):
                x = abs(x)
            with np.errstate(all="ignore"):
                theirs = table[name](x)
            self.same(Tensor(x).elementwise(name), theirs, 4 if table is names else 0, f"{name} {x.dtype}{x.shape}")

    def test_numbers_give_way(self):
        ops = (lambda a, b: a + b, lambda a, b: a / b, lambda a, b: b * a, lambda a, b: a < b)
        for i, dtype in enumerate(TYPES):
            x = np.arange(4).astype(dtype)
            for k, number in enumerate((True, 2, 2.5)):
                for op in ops[(i + k) % 2 :: 2]:  # each is a kernel to compile; all data types and numbers meet all ops
                    with np.errstate(all="ignore"):
                        self.same(op(Tensor(x), number), op(x, number), 1, f"{dtype} {number}")
        self.assertEqual((Tensor([0.0]) * -0.0).numpy().tobytes(), (np.array([0.0]) * -0.0).tobytes())

    def test_power_and_shifts(self):
        x = np.arange(1, 6)
        self.same(Tensor(x) ** 3, x**3)
        self.same(2 ** Tensor(x), 2**x)
        self.same(Tensor(x.astype(np.float32)) ** 0.5, x.astype(np.float32) ** np.float32(0.5), 4)
        self.same(Tensor(x) << 2, x << 2)
        self.same(Tensor(-x) >> 1, -x >> 1)

    def test_where(self):
        rng = np.random.default_rng(3)
        for _ in range(15):
            shapes = random_shapes(rng, 3)
            types = [np.bool_] + [TYPES[k] for k in rng.integers(0, len(TYPES), 2)]
            c, x, y = (random_layout(rng, random_array(rng, s, t)) for s, t in zip(shapes, types))
            self.same(Tensor.where(Tensor(c), Tensor(x), Tensor(y)), np.where(c, x, y))

    def test_bfloat16(self):
        ml_dtypes = self.module("ml_dtypes")
        x = np.array([1, 2.5, -3], ml_dtypes.bfloat16)
        y = Tensor(x) * 2
        self.assertEqual(y.dtype, x.dtype)
        np.testing.assert_array_equal(y.numpy(), x * 2)
        self.assertEqual((Tensor(x) + np.ones(3, np.float16)).dtype, np.float32)

    def module(self, name):
        try:
            return __import__(name)
        except ImportError:
            self.skipTest(f"{name} is missing")


class Reductions(Case):
    def test_reductions(self):
        rng = np.random.default_rng(4)
        for i in range(70):
            kind = ["sum", "prod", "mean", "max", "min", "any", "all"][i % 7]
            dtype = TYPES[rng.integers(0, len(TYPES))]
            shape = tuple(rng.integers(1, 6, rng.integers(0, 5)))
            x = random_layout(rng, random_array(rng, shape, dtype))
            axis = None
            if shape and rng.random() < 0.8:
                axis = tuple(int(a) for a in rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)])
                axis = axis[0] - len(shape) if len(axis) == 1 else axis
            keep = bool(rng.integers(0, 2))
            if kind == "prod" and x.dtype.kind == "f":
                x = np.clip(x, -1.5, 1.5)
            with np.errstate(all="ignore"):
                theirs = getattr(np, kind)(x, axis=axis, keepdims=keep)
            if kind == "mean" and x.dtype == np.float16:
                theirs = np.asarray(theirs, np.float16)
            self.same(getattr(Tensor(x), kind)(axis, keep), theirs, 64, f"{kind} {x.dtype}{shape} {axis}")

    def test_along_an_axis(self):
        rng = np.random.default_rng(5)
        for _ in range(15):
            shape = tuple(rng.integers(1, 6, rng.integers(1, 5)))
            x = random_layout(rng, random_array(rng, shape, TYPES[rng.integers(1, len(TYPES))]))
            axis = int(rng.integers(-len(shape), len(shape)))
            self.same(Tensor(x).argmax(axis), x.argmax(axis))
            self.same(Tensor(x).argmin(), x.argmin())
            self.same(Tensor(x).cumsum(axis), x.cumsum(axis), 64)

    def test_no_elements(self):
        x = np.zeros((3, 0), np.float32)
        self.same(Tensor(x).sum(1), x.sum(1))
        self.same(Tensor(x).sum(0), x.sum(0))
        self.same(Tensor(x) + Tensor.ones(1), x + 1)
        self.same(Tensor(x) @ Tensor.zeros(0, 4), np.zeros((3, 4), np.float32))
        with self.assertRaisesRegex(quern.ArgumentError, "no elements"):
            Tensor(x).max()


class Products(Case):
    def test_matmul(self):
        rng = np.random.default_rng(6)
        for _ in range(30):
            m, k, n = rng.integers(1, 9, 3)
            batch = tuple(rng.integers(1, 4, rng.integers(0, 3)))
            some = tuple(1 if rng.random() < 0.3 else d for d in batch[rng.integers(0, len(batch) + 1):])
            left, right = (batch, some) if rng.random() < 0.5 else (some, batch)
            xs, ys = left + (m, k), right + (k, n)
            if rng.random() < 0.15:
                xs = (k,)
            elif rng.random() < 0.15:
                ys = (k,)
            dtype = [np.float32, np.float64, np.int32, np.int64][rng.integers(0, 4)]
            x, y = (random_layout(rng, random_array(rng, s, dtype)) for s in (xs, ys))
            self.same(Tensor(x) @ Tensor(y), x @ y, 200, f"{dtype} {xs} {ys}")

    def test_large(self):
        rng = np.random.default_rng(7)
        x, y = rng.standard_normal((300, 200)).astype(np.float32), rng.standard_normal((150, 200)).astype(np.float32)
        np.testing.assert_allclose((Tensor(x) @ Tensor(y).T).numpy(), x @ y.T, rtol=1e-4, atol=1e-4)


class Indexing(Case):
    X = np.arange(60).reshape(3, 4, 5).astype(np.float32)
    KEYS = [0, -1, (1, 2, 3), slice(None), slice(1, None), slice(None, None, -1), (slice(None), slice(3, 0, -2)), Ellipsis,
            (Ellipsis, 1), (None, 1), (0, None, Ellipsis, None), (slice(0, 0),), (slice(5, 9), 1), (Ellipsis, slice(None, None, 2)),
            (slice(-2, None), Ellipsis, slice(-100, 100))]

    def test_views(self):
        t = Tensor(self.X)
        for key in self.KEYS:
            view = t[key]
            self.same(view, self.X[key], what=str(key))
            self.assertEqual(view.storage_ptr(), t.storage_ptr())
            if view.size and view.ndim:
                self.assertEqual(view.data_ptr(), self.X[key].__array_interface__["data"][0])

    def test_writing_to_views(self):
        for key in self.KEYS:
            theirs = self.X.copy()
            ours = Tensor(self.X.copy())
            value = np.random.default_rng(0).standard_normal(theirs[key].shape[-1:]).astype(np.float64)
            address = ours.data_ptr()
            ours[key] = Tensor(value)
            theirs[key] = value
            ours[key] += 1
            theirs[key] += 1
            self.same(ours, theirs, what=str(key))
            self.assertEqual(ours.data_ptr(), address)

    def test_arrays_and_masks(self):
        t, x = Tensor(self.X), self.X
        for key in ([0, 2], np.array([[1, 0], [2, -1]]), (slice(None), [3, 3, 0]), (1, [0, 1]), (slice(None), slice(1, 3), [4, 0]),
                    x > 30, x[:, :, 0] > 10, np.array([True, False, True]), (np.array([True, False, True]), slice(1, 3))):
            self.same(t[key if not isinstance(key, np.ndarray) else Tensor(key)], x[key], what=str(key))
        self.same(t[(x < 0)], x[x < 0])
        self.same(t[[]], x[np.array([], int)])

    def test_writing_by_arrays_and_masks(self):
        rng = np.random.default_rng(8)
        keys = [[0, 2], (slice(None), [3, 1]), (1, [0, 1]), (Ellipsis, [4, 0]), self.X > 30, self.X[:, :, 0] > 10,
                np.array([True, False, True]), (slice(None, None, -1), slice(None), [1, 2])]
        for key in keys:
            ours, theirs = Tensor(self.X.copy()), self.X.copy()
            address = ours.data_ptr()
            for value in (7.5, rng.standard_normal(theirs[key].shape).astype(np.float32)):
                ours[key] = value
                theirs[key] = value
                self.same(ours, theirs, what=str(key))
            self.assertEqual(ours.data_ptr(), address)

    def test_by_name(self):
        rng = np.random.default_rng(9)
        for _ in range(15):
            shape = tuple(rng.integers(1, 6, rng.integers(1, 4)))
            x = random_layout(rng, random_array(rng, shape, TYPES[rng.integers(0, len(TYPES))]))
            axis = int(rng.integers(-len(shape), len(shape)))
            n = shape[axis]
            some = rng.integers(-n, n, tuple(rng.integers(0, 4, rng.integers(0, 3))))
            self.same(Tensor(x).index_select(axis, some), np.take(x, some, axis, mode="wrap"))
            dims = list(shape)
            dims[axis] = int(rng.integers(1, 5))
            along = rng.integers(0, n, dims)
            self.same(Tensor(x).gather(axis, along), np.take_along_axis(x, along, axis))
            mask = random_array(rng, shape[: rng.integers(1, len(shape) + 1)], np.bool_)
            self.same(Tensor(x).masked_select(mask), x[mask])

    def test_concatenate(self):
        rng = np.random.default_rng(10)
        for i in range(10):
            shape = list(rng.integers(1, 5, rng.integers(1, 4)))
            axis = int(rng.integers(0, len(shape)))
            parts = []
            for _ in range(rng.integers(1, 6) if i else 100):
                shape[axis] = rng.integers(0, 4)
                parts.append(random_layout(rng, random_array(rng, tuple(shape), TYPES[rng.integers(1, len(TYPES))])))
            self.same(Tensor.concatenate([Tensor(p) for p in parts], axis - len(shape)), np.concatenate(parts, axis))

    def test_making(self):
        self.same(Tensor.arange(5), np.arange(5))
        self.same(Tensor.arange(1, 2, 0.25), np.arange(1, 2, 0.25, np.float32))
        self.same(Tensor.arange(9, 0, -2, dtype=np.int16), np.arange(9, 0, -2, np.int16))
        self.same(Tensor.zeros(2, 3), np.zeros((2, 3), np.float32))
        self.same(Tensor.ones((2, 0, 3), dtype=np.int8), np.ones((2, 0, 3), np.int8))
        self.same(Tensor.full((2, 2), 2.5, np.float64), np.full((2, 2), 2.5))
        self.same(Tensor.eye(4, dtype=np.int32), np.eye(4, dtype=np.int32))
        a, b = Tensor.randn(1000, 50, seed=3), Tensor.randn(50000, seed=3)
        np.testing.assert_array_equal(a.numpy().ravel(), b.numpy())
        self.assertLess(abs(a.numpy().mean()), 0.02)
        self.assertLess(abs(a.numpy().std() - 1), 0.02)
        u = Tensor.uniform(1000, seed=1, dtype=np.float64).numpy()
        self.assertTrue(0 <= u.min() < 0.01 < 0.99 < u.max() < 1)


class Memory(Case):
    def test_numpy_both_ways(self):
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        t = Tensor(x)
        self.assertEqual(t.data_ptr(), x.ctypes.data)
        self.assertTrue(np.shares_memory(t.numpy(), x))
        self.assertTrue(np.shares_memory(np.asarray(t.T), x))
        t[1, 2] = 50
        self.assertEqual(x[1, 2], 50)
        self.assertEqual(Tensor(x.T[::-1]).strides, (-1, 3))
        self.assertTrue(np.shares_memory(np.from_dlpack(t), x))
        self.assertEqual(Tensor([[1, 2], [3, 4]]).dtype, np.int64)

    def test_dlpack(self):
        try:
            import torch
        except ImportError:
            self.skipTest("PyTorch is missing")
        theirs = torch.arange(6, dtype=torch.float32).reshape(2, 3)
        ours = Tensor(theirs)
        self.assertEqual(ours.data_ptr(), theirs.data_ptr())
        self.assertEqual(torch.from_dlpack(ours).data_ptr(), theirs.data_ptr())

    def test_memory_lives_as_long_as_it_is_used(self):
        view = Tensor(np.arange(100000, dtype=np.float64))[::2]
        array = (view + 1).numpy()
        gc.collect()
        np.testing.assert_array_equal(view.numpy(), np.arange(0, 100000, 2))
        np.testing.assert_array_equal(array, np.arange(1, 100001, 2))
        import quern._tensor as module

        before = len(module._kept)
        del view
        gc.collect()
        self.assertEqual(len(module._kept), before - 1)

    def test_in_place(self):
        x, y = Tensor.ones(3, 4), Tensor.arange(4)
        address = x.data_ptr()
        z = x
        x[:] = x + y
        x += y
        x *= 2
        x.elementwise("sub", 1.5, out=x)
        self.assertIs(x, z)
        self.assertEqual(x.data_ptr(), address)
        np.testing.assert_array_equal(x.numpy(), np.tile((1 + 2 * np.arange(4)) * 2 - 1.5, (3, 1)))
        self.assertNotEqual((x + y).data_ptr(), address)

    def test_numpys_operators_leave_it_to_ours(self):
        x = np.arange(3, dtype=np.float32)
        self.assertIsInstance(x + Tensor(x), Tensor)
        self.assertIsInstance(np.float32(2) * Tensor(x), Tensor)
        np.testing.assert_array_equal((x @ Tensor(x)).numpy(), 5)

    def test_text_and_numbers(self):
        self.assertEqual(repr(Tensor(np.array([1, 2], np.int32))), "Tensor([1, 2], int32)")
        self.assertEqual(float(Tensor.full((1, 1), 2.5)), 2.5)
        self.assertEqual([int(v) for v in Tensor.arange(3)], [0, 1, 2])
        self.assertEqual([10, 20, 30][Tensor.arange(3)[1]], 20)


class Tapes(Case):
    def setUp(self):
        rng = np.random.default_rng(11)
        self.x = Tensor(rng.standard_normal((20, 3)).astype(np.float32))
        self.y = Tensor(rng.standard_normal((20, 2)).astype(np.float32))
        self.w = Tensor(rng.standard_normal((3, 2)).astype(np.float32))

    def loss(self, w):
        return ((self.x @ w - self.y) ** 2).mean()

    def test_gradient(self):
        with quern.Tape() as tape:
            (g,) = tape.gradient(self.loss(self.w), [self.w])
        x, y, w = self.x.numpy(), self.y.numpy(), self.w.numpy()
        np.testing.assert_allclose(g.numpy(), 2 * x.T @ (x @ w - y) / y.size, rtol=1e-4, atol=1e-5)

    def test_a_step_does_it_again(self):
        address = self.w.data_ptr()
        start = self.w.numpy().copy()
        with quern.Tape() as tape:
            loss = self.loss(self.w)
            (g,) = tape.gradient(loss, [self.w])
            self.w -= 0.1 * g
        step = tape.compile(loss)
        del tape
        gc.collect()
        x, y, w = self.x.numpy(), self.y.numpy(), start.astype(np.float64)
        for i in range(30):
            error = x @ w - y
            if i:
                step()
            np.testing.assert_allclose(float(loss), (error**2).mean(), rtol=1e-5)
            w -= 0.1 * 2 * x.T @ error / y.size
            np.testing.assert_allclose(self.w.numpy(), w, rtol=1e-4, atol=1e-5)
        self.assertEqual(self.w.data_ptr(), address)
        self.y[:] = 0  # the step reads what is there now
        step()
        np.testing.assert_allclose(float(loss), ((x @ w) ** 2).mean(), rtol=1e-4)

    def test_views_and_writing_in_place(self):
        for seed in range(8):
            with self.subTest(seed=seed):
                self.random_program(seed)

    def random_program(self, seed):
        """Views, writes through them, and reads of what they changed; the step from another start gives NumPy's."""
        rng = np.random.default_rng(seed)
        start = rng.standard_normal((4, 5))
        moves = rng.integers(0, 7, 8)
        keys = [tuple(int(v) for v in rng.integers(0, 4, 2)) for _ in moves]

        def program(x, where, cat):
            total = x * 0
            for move, (i, j) in zip(moves, keys):
                if move == 0:
                    x[i] = x[j] * 2 + 1
                elif move == 1:
                    x[:, i] += x[:, j]
                elif move == 2:
                    x[::-1, 1::2] = x[:, :4:2] * 0.5
                elif move == 3:
                    v = x.T
                    v[j] -= total[i].sum()
                elif move == 4:
                    total = total + x
                elif move == 5:
                    x[:2] = cat([x[2:3], x[i:i + 1]])
                else:
                    x[...] = where(x > 0, x, x * 0.1)
            return total + x

        ours = Tensor(start.copy())
        with quern.Tape() as tape:
            result = program(ours, Tensor.where, Tensor.concatenate)
        step = tape.compile(result)
        theirs = start.copy()
        expected = program(theirs, np.where, np.concatenate)
        for _ in range(3):
            np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)
            expected = program(theirs, np.where, np.concatenate)
            step()

    def test_gradients_through_views(self):
        x = np.random.default_rng(12).standard_normal((4, 6))

        def f(t, tanh):
            y = t * 1.5
            y[1:3] = tanh(t[::2, ::-1]) * 2
            y[:, 0] *= t[:, 5]
            return (y.T[1:, ::2] ** 2).sum() + (y[3] * t[0]).sum()

        t = Tensor(x.copy())
        row = t[2]
        with quern.Tape() as tape:
            g, part = tape.gradient(f(t, Tensor.tanh), [t, row])
        expected = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            near = [x.copy(), x.copy()]
            near[0][at] += 1e-6
            near[1][at] -= 1e-6
            expected[at] = (f(near[0], np.tanh) - f(near[1], np.tanh)) / 2e-6
        np.testing.assert_allclose(g.numpy(), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(part.numpy(), g.numpy()[2])

    def test_second_derivative(self):
        x = Tensor(np.array([0.5, -1.0, 2.0]))
        with quern.Tape() as tape:
            (first,) = tape.gradient((x**4).sum(), [x])
            (second,) = tape.gradient(first.sum(), [x])
        np.testing.assert_allclose(first.numpy(), 4 * x.numpy() ** 3, rtol=1e-12)
        np.testing.assert_allclose(second.numpy(), 12 * x.numpy() ** 2, rtol=1e-12)

    def test_recording_the_same_again(self):
        w = Tensor(np.ones((3, 2), np.float32))
        before = float(self.loss(w))
        for _ in range(50):
            with quern.Tape() as tape:
                (g,) = tape.gradient(self.loss(w), [w])
            w -= 0.2 * g
        self.assertLess(float(self.loss(w)), before)

    def test_what_is_made_on_the_tape_is_made_again(self):
        with quern.Tape() as tape:
            total = Tensor.zeros(2)
            for i in range(2):
                total += self.y[i]
        expected = total.numpy().copy()
        tape.compile(total)()
        np.testing.assert_array_equal(total.numpy(), expected)

    def test_mistakes(self):
        with quern.Tape() as tape:
            a = self.x.sum(0)
            total = a.sum()
            with self.assertRaisesRegex(quern.Error, "decides by its contents"):
                self.x[self.x > 0]
            with self.assertRaisesRegex(quern.Error, "is recording already"):
                quern.Tape().__enter__()
        with self.assertRaisesRegex(quern.Error, "one floating-point number"):
            tape.gradient(a, [self.x])
        with self.assertRaisesRegex(quern.Error, "nothing of tensor 0, f32\\[3, 2\\]"):
            tape.gradient(total, [self.w])
        with self.assertRaisesRegex(quern.Error, "no result"):
            tape.compile()
        self.assertIn("reduce", tape.text(a))
        with self.assertRaisesRegex(quern.Error, "records once"):
            tape.__enter__()
        for call in (lambda t: t.gradient(total, [self.x]), lambda t: t.compile(total), lambda t: t.text(total)):
            with self.assertRaisesRegex(quern.Error, "recorded nothing: `with tape:`"):
                call(quern.Tape())


class Mistakes(unittest.TestCase):
    def test_mistakes(self):
        x = Tensor.zeros(3, 4)
        for text, call in [
            ("add: the dims of float32|f32\\[3, 4\\] and f32\\[3\\] do not fit", lambda: x + Tensor.zeros(3)),
            ("index 3 is out of range for axis 0", lambda: x[3]),
            ("3 indices for a tensor of rank 2", lambda: x[0, 0, 0]),
            ("index_select: an index is out of range", lambda: x[[0, 7]]),
            ("put: an index is out of range", lambda: x.__setitem__([0, 7], 1)),
            ("the mask is bool\\[3, 3\\]", lambda: x[Tensor.zeros(3, 3) == 0]),
            ("one array or mask", lambda: x[[0], [1]]),
            ("cannot be repeated", lambda: x.__setitem__(0, np.zeros(3))),
            ("cannot be written to i64", lambda: Tensor.arange(3).__iadd__(0.5)),
            ("do not fit", lambda: x @ x),
            ("no axis 2", lambda: x.sum(2)),
            ("differ in more than axis 0", lambda: Tensor.concatenate([x, x.T])),
            ("indices are of i64 or i32|only integers", lambda: x.gather(0, x)),
            ("complex", lambda: Tensor(np.zeros(2, complex))),
            ("no single value", lambda: float(x)),
            ("no op 'nand'", lambda: x.elementwise("nand", x)),
            ("softmax", lambda: Tensor.op("softmax", x, axis=5)),
        ]:
            with self.subTest(text), self.assertRaisesRegex((quern.Error, TypeError), text):
                call()
        np.testing.assert_array_equal(x.numpy(), 0)
        for key, error in ((3, IndexError), ([0, 7], IndexError), ("a", TypeError), (slice("a"), TypeError)):
            with self.assertRaises(error):
                x[key]

    def test_ops_by_name(self):
        x = Tensor(np.array([[0.0, 1.0], [2.0, 2.0]], np.float32))
        np.testing.assert_allclose(Tensor.op("softmax", x, axis=1).sum(1).numpy(), [1, 1], rtol=1e-6)


if __name__ == "__main__":
    unittest.main()
