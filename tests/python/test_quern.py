"""The Python module: compiling, calling, binding, and what it refuses."""

import copy
import gc
import os
import pickle
import platform
import tempfile
import threading
import unittest

import numpy as np

import quern

TARGETS = ["interp", "cpu"]

BIAS = b"""graph @bias(%x: f32[batch, 4], %b: f32[4]) -> (sum: f32[batch, 4], last: f32[batch]) {
  %0 = broadcast %b {axes = [1], dims = [batch, 4]} : f32[batch, 4]
  %1 = add %x, %0 : f32[batch, 4]
  %2 = slice %1 {limit = [batch, 4], start = [0, 3], stride = [1, 1]} : f32[batch, 1]
  %3 = reshape %2 {dims = [batch]} : f32[batch]
  return %1, %3
}
"""
X = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([10, 20, 30, 40], np.float32)

COUNTER = b"""graph @count(%x: f32[], %total: f32[] state) -> (next: f32[] alias %total, twice: f32[]) {
  %0 = add %total, %x : f32[]
  %1 = add %0, %0 : f32[]
  return %0, %1
}
"""

POSITIVE = b"""graph @where(%x: f32[n]) -> i64[1, count] {
  %0 = non_zero %x {symbol = [count]} : i64[1, count]
  return %0
}
"""

# As many steps as a number says, at most twice the elements of x.
STEPS = b"""dims n: 1..64, count: 1..
graph @steps(%x: f32[n], %c: i64[]) -> (f32[count], f32[]) {
  %0 = extent %c {limit = [2*n], symbol = [count]} : i64[]
  %1 = iota {axis = 0, dims = [count], dtype = f32} : f32[count]
  %2 = sort %1 {axis = 0, descending = true} : f32[count]
  %3 = reduce %x {axes = [0], kind = sum} : f32[]
  return %2, %3
}
"""

# Right where n is m or one of them is 1; where y has n elements; where m is at most n. The last one when k ones are m.
FITTING = {
    "broadcast": b"""graph @f(%x: f32[n], %y: f32[m]) -> f32[select_one(m, n)] {
      %0 = broadcast %x {axes = [0], dims = [select_one(m, n)]} : f32[select_one(m, n)]
      %1 = broadcast %y {axes = [0], dims = [select_one(m, n)]} : f32[select_one(m, n)]
      %2 = add %0, %1 : f32[select_one(m, n)]
      return %2
    }""",
    "reshape": b"""graph @f(%x: f32[n], %y: f32[m, 2]) -> f32[n] {
      %0 = reshape %y {dims = [n]} : f32[n]
      %1 = add %x, %0 : f32[n]
      return %1
    }""",
    "slice": b"""graph @f(%x: f32[n], %y: f32[m]) -> f32[m] {
      %0 = slice %x {limit = [m], start = [0], stride = [1]} : f32[m]
      %1 = add %0, %y : f32[m]
      return %1
    }""",
    "found": b"""graph @f(%x: f32[n], %y: f32[m]) -> i64[m] {
      %0 = non_zero %x {symbol = [k]} : i64[1, k]
      %1 = reshape %0 {dims = [m]} : i64[m]
      %2 = add %1, %1 : i64[m]
      return %2
    }""",
    "window": b"""graph @f(%x: f32[n]) -> f32[] {
      %0 = reduce_window %x {dilation = [1], high = [0], kind = sum, low = [0], stride = [1], window = [3]} : f32[n - 2]
      %1 = sort %0 {axis = 0, descending = false} : f32[n - 2]
      %2 = reduce %1 {axes = [0], kind = sum} : f32[]
      return %2
    }""",
}
PARTS = {
    "dynamic_slice %x, %s, %s {dims = [m, 2]} : f32[m, 2]": lambda x, u: x[:len(u), :2],
    "dynamic_update_slice %x, %u, %s, %s : f32[n, 3]": lambda x, u: np.vstack([np.hstack([u, x[:len(u), 2:]]), x[len(u):]]),
    "gather_elements %x, %i {axis = 1} : f32[m, 2]": lambda x, u: x[:len(u), [0, 0]],
    "scatter_elements %x, %i, %u {axis = 1, kind = max} : f32[n, 3]": lambda x, u: np.vstack(
        [np.hstack([np.maximum(x[:len(u), :1], u.max(1, keepdims=True)), x[:len(u), 1:]]), x[len(u):]]),
}


def for_targets(test):
    def run(self):
        for target in TARGETS:
            with self.subTest(target=target):
                test(self, target)

    return run


class Calls(unittest.TestCase):
    @for_targets
    def test_lists_and_dicts(self, target):
        m = quern.compile(BIAS, target=target)
        for inputs in ([X, B], (X, B), {"x": X, "b": B}):
            total, last = m(inputs)
            np.testing.assert_array_equal(total, X + B)
            np.testing.assert_array_equal(last, (X + B)[:, 3])
        self.assertEqual(m([X[:1], B])[0].shape, (1, 4))  # another batch

    @for_targets
    def test_signature(self, target):
        m = quern.compile(BIAS, target=target)
        self.assertEqual(m.inputs, [("x", np.float32, ("batch", 4)), ("b", np.float32, (4,))])
        self.assertEqual([s.name for s in m.outputs], ["sum", "last"])
        self.assertEqual(m.entries, ["bias"])
        self.assertIn("x: float32['batch', 4]", repr(m))

    @for_targets
    def test_results_are_the_callers(self, target):
        m = quern.compile(BIAS, target=target)
        first = m([X, B])[0]
        kept = first.copy()
        second = m([X + 1, B])[0]
        np.testing.assert_array_equal(first, kept)
        self.assertFalse(np.shares_memory(first, second))

    def test_memory_of_large_results(self):
        """Comes from arrays that nobody has any more; those that someone has, or a part of, keep theirs."""
        model = quern.compile(b"graph @f(%x: f32[n]) -> f32[n] {\n  %0 = add %x, %x : f32[n]\n  return %0\n}\n")
        x = np.arange(3 << 20, dtype=np.float32)
        at = lambda y: y.__array_interface__["data"][0]
        first, second = model([x])[0], model([x + 1])[0]
        self.assertNotEqual(at(first), at(second))
        np.testing.assert_array_equal(first, 2 * x)
        np.testing.assert_array_equal(second, 2 * x + 2)
        self.assertTrue(first.flags.writeable and first.flags.c_contiguous and at(first) % 64 == 0)
        where, part = at(second), second[::2]
        del second
        third = model([x])[0]
        self.assertNotEqual(at(third), where)
        np.testing.assert_array_equal(part, (2 * x + 2)[::2])
        del part
        self.assertEqual(at(model([x[:-5]])[0]), where)
        fewer = model([x[:1 << 20]])[0]  # of less than half of it
        self.assertNotEqual(at(fewer), where)
        many = [model([x])[0] for _ in range(12)]
        self.assertEqual(len({at(y) for y in many}), 12)
        gathered = []
        threads = [threading.Thread(target=lambda i=i: gathered.extend(np.array_equal(model([x + i])[0], 2 * (x + i)) for _ in range(8))) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(gathered, [True] * 24)

    @for_targets
    def test_out(self, target):
        m = quern.compile(BIAS, target=target)
        out = [np.empty((3, 4), np.float32), np.empty(3, np.float32)]
        result = m([X, B], out=out)
        self.assertIs(result[0], out[0])
        np.testing.assert_array_equal(out[0], X + B)
        for wrong in ([out[0]], [out[0].T, out[1]], [out[0], np.empty(4, np.float32)], [out[0], np.empty(3)]):
            with self.assertRaises(quern.ArgumentError):
                m([X, B], out=wrong)
        np.testing.assert_array_equal(m([X, B])[1], (X + B)[:, 3])

    @for_targets
    def test_strided_foreign_and_plain_inputs(self, target):
        m = quern.compile(BIAS, target=target)
        wide = np.arange(24, dtype=np.float32).reshape(3, 8)[:, ::2]
        np.testing.assert_array_equal(m([wide, B])[0], wide + B)
        np.testing.assert_array_equal(m([np.asfortranarray(X), B])[0], X + B)
        np.testing.assert_array_equal(m([X.astype(">f4"), B])[0], X + B)
        unaligned = np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 4)
        np.testing.assert_array_equal(m([unaligned, B])[0], X + B)
        np.testing.assert_array_equal(m([X, [10, 20, 30, 40]])[0], X + B)
        read_only = X.copy()
        read_only.flags.writeable = False
        np.testing.assert_array_equal(m([read_only, B])[0], X + B)

        class Foreign:  # as a tensor of another library
            def __dlpack__(self, **arguments):
                return X.__dlpack__(**arguments)

            def __dlpack_device__(self):
                return X.__dlpack_device__()

        np.testing.assert_array_equal(m([Foreign(), B])[0], X + B)

    @for_targets
    def test_wrong_inputs(self, target):
        m = quern.compile(BIAS, target=target)
        for inputs, message in [
            ([X], "takes 2 inputs"),
            ([X, B, B], "takes 2 inputs"),
            ([X[:, :3], B], r"input 0 'x' is f32\[3, 3\]; the model takes f32\[batch, 4\]"),
            ([X.astype(np.float64), B], r"input 0 'x' is f64\[3, 4\]"),
            ([X[0], B], r"input 0 'x' is f32\[4\]"),
            ([X, None], "input 'b' is None"),
            ([X, X], r"input 1 'b' is f32\[3, 4\]"),
            ([X, np.array(["a"])], "not supported"),
            ({"x": X, "c": B}, "no input 'c'"),
            ({"x": X}, "input 'b' is missing"),
            ([X, "text"], "not an array"),
            (3, "a list of arrays or a dict of them by name, not int"),
        ]:
            with self.assertRaisesRegex(quern.ArgumentError, message):
                m(inputs)
        with self.assertRaises(ValueError):  # an ArgumentError is one
            m([X])
        np.testing.assert_array_equal(m([X, B])[0], X + B)

    @for_targets
    def test_extents_that_the_run_finds(self, target):
        try:
            m = quern.compile(POSITIVE, target=target)
        except quern.UnsupportedError as error:
            self.skipTest(str(error))
        for x in ([0, 1, 0, 2], [0, 0], [5, 5, 5]):
            np.testing.assert_array_equal(m([np.array(x, np.float32)])[0], [np.nonzero(x)[0]])
        out = np.empty((1, 3), np.int64)
        m([np.array([1, 0, 1], np.float32)], out=[out] if target != "interp" else None)
        for room in (3, 8) if target == "cpu" else ():  # the front of what is given, in its memory
            out = np.full((1, room), -1)
            got, = m([np.array([1, 0, 1], np.float32)], out=[out])
            self.assertEqual((got.tolist(), out.ravel()[:2].tolist()), ([[0, 2]], [0, 2]))
            self.assertTrue(np.shares_memory(got, out))
            whole, = m([np.ones(room, np.float32)], out=[out])
            self.assertIs(whole, out)
        s = m.bind([np.array([1, 0, 1], np.float32)])
        s.run()
        self.assertEqual(s.outputs[0].shape, (1, 2))
        with self.assertRaisesRegex(quern.ArgumentError, "input 0 'x'.* is not bound"):
            m.session().run()

    @for_targets
    def test_extents_that_are_computed(self, target):
        try:
            m = quern.compile(STEPS, target=target)
        except quern.UnsupportedError as error:
            self.skipTest(str(error))
        x = np.ones(3, np.float32)
        for count in (1, 4, 6):
            got = m([x, np.int64(count)])
            np.testing.assert_array_equal(got[0], np.arange(count)[::-1])
            for wrong in (0, 7, -1, 2**40, -(2**63), 2**63 - 1):
                with self.assertRaisesRegex(quern.ArgumentError, rf"count is {wrong} here; .* for 1 to 6(\Z| \(--dim)"):
                    m([x, np.int64(wrong)])
        s = m.bind([x, np.int64(9)])
        self.assertRaisesRegex(quern.ArgumentError, "count is 9 here", s.run)
        np.testing.assert_array_equal(m([np.ones(5, np.float32), np.int64(9)])[0], np.arange(9)[::-1])

    @for_targets
    def test_extents_have_to_fit(self, target):
        ones = lambda *dims: np.ones(dims, np.float32)
        m = {name: quern.compile(text, target=target) for name, text in FITTING.items()}
        for n, k in ((4, 4), (4, 1), (1, 4), (1, 1), (0, 0), (0, 1)):
            self.assertEqual(m["broadcast"]([ones(n), ones(k)])[0].shape, (n if k == 1 else k,))
        for n, k in ((4, 3), (3, 4), (2, 4), (4, 0)):
            with self.assertRaisesRegex(quern.ArgumentError, "it has to be 1 or equal"):
                m["broadcast"]([ones(n), ones(k)])
        self.assertEqual(m["reshape"]([ones(6), ones(3, 2)])[0].shape, (6,))
        for n, k in ((5, 3), (7, 3), (0, 3)):
            with self.assertRaisesRegex(quern.ArgumentError, "reshape"):
                m["reshape"]([ones(n), ones(k, 2)])
        self.assertEqual(m["slice"]([ones(5), ones(3)])[0].shape, (3,))
        with self.assertRaisesRegex(quern.ArgumentError, "of axis 0, whose extent is"):
            m["slice"]([ones(3), ones(5)])
        for n in (2, 3, 5):
            self.assertEqual(m["window"]([ones(n)])[0], 3 * (n - 2))
        for n in (0, 1):
            with self.assertRaisesRegex(quern.ArgumentError, "axis 0 would have .* elements"):
                m["window"]([ones(n)])
        x = np.array([0, 2, 0, 3], np.float32)
        np.testing.assert_array_equal(m["found"]([x, ones(2)])[0], [2, 6])
        for k in (1, 3):
            with self.assertRaisesRegex(quern.ArgumentError, "reshape"):
                m["found"]([x, ones(k)])

    @for_targets
    def test_parts_have_to_fit(self, target):
        for text, want in PARTS.items():
            text = f"graph @f(%x: f32[n, 3], %u: f32[m, 2], %i: i64[m, 2], %s: i64[]) -> {text.split(' : ')[1]} {{ %0 = {text} return %0 }}"
            m = quern.compile(text.encode(), target=target)
            array = lambda rows, columns: np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
            call = lambda n, k: m([array(n, 3), array(k, 2), np.zeros((k, 2), np.int64), np.int64(0)])[0]
            for n, k in ((4, 4), (4, 3), (1, 0)):
                np.testing.assert_array_equal(call(n, k), want(array(n, 3), array(k, 2)), err_msg=text)
            for n, k in ((3, 4), (0, 1), (4, 70000)):
                with self.assertRaisesRegex(quern.ArgumentError, "axis 0"):
                    call(n, k)

    @for_targets
    def test_dims(self, target):
        m = quern.compile(BIAS, target=target, dims={"batch": 2})
        self.assertEqual(m.inputs[0].shape, (2, 4))
        with self.assertRaisesRegex(quern.ArgumentError, r"takes f32\[2, 4\]"):
            m([X, B])
        m = quern.compile(BIAS, target=target, dims={"batch": (1, 2)})
        with self.assertRaisesRegex(quern.ArgumentError, "batch is 3 by input 0 'x'; the model was compiled for 1 to 2"):
            m([X, B])
        for dims in ({"other": 2}, {"batch": -1}, {"batch": (3, 2)}):
            with self.assertRaises(quern.ArgumentError):
                quern.compile(BIAS, target=target, dims=dims)

    @for_targets
    def test_threads(self, target):
        m = quern.compile(BIAS, target=target)
        wrong = []

        def work(k):
            for _ in range(50):
                if not np.array_equal(m([X * k, B])[0], X * k + B):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(wrong, [])


class Sessions(unittest.TestCase):
    @for_targets
    def test_bind(self, target):
        x = X.copy()
        s = quern.compile(BIAS, target=target).bind([x, B])
        s.run()
        outputs = s.outputs
        np.testing.assert_array_equal(outputs[0], x + B)
        x += 1  # read in place, written in place
        s.run()
        np.testing.assert_array_equal(outputs[0], x + B)
        self.assertIs(s.outputs, outputs)
        s.bind({"x": x[:2]})
        s.run()
        np.testing.assert_array_equal(s.outputs[0], x[:2] + B)
        mine = [np.empty((2, 4), np.float32), np.empty(2, np.float32)]
        s.bind_outputs(mine)
        s.run()
        np.testing.assert_array_equal(mine[0], x[:2] + B)
        self.assertIs(s.outputs[0], mine[0])

    @for_targets
    def test_outputs_outlive_the_session(self, target):
        s = quern.compile(BIAS, target=target).bind([X, B])
        s.run()
        total = s.outputs[0]
        del s
        gc.collect()
        np.testing.assert_array_equal(total, X + B)

    @for_targets
    def test_states(self, target):
        m = quern.compile(COUNTER, target=target)
        s = m.bind([np.float32(3)])
        for i in range(1, 4):
            s.run()
            self.assertEqual(float(s.outputs[0]), 6 * i)
        self.assertEqual(float(s.states["total"]), 9)
        s.states["total"][...] = 1
        s.run()
        self.assertEqual(float(s.outputs[0]), 8)
        other = m.session()
        other.share_states(s)
        other.bind([np.float32(1)])
        other.run()
        self.assertEqual(float(s.states["total"]), 5)
        self.assertEqual(float(m([np.float32(1)])[0]), 2)  # a call starts anew


# Rows of softmax, its logarithm, and what of it doesn't see the sum.
EXPS = b"""graph @main(%x: f32[40, 37]) -> (s: f32[40, 37], l: f32[40, 37], e: f32[40, 37]) {
  %0 = reduce %x {axes = [1], kind = max} : f32[40]
  %1 = broadcast %0 {axes = [0], dims = [40, 37]} : f32[40, 37]
  %2 = sub %x, %1 : f32[40, 37]
  %3 = exp %2 : f32[40, 37]
  %4 = reduce %3 {axes = [1], kind = sum} : f32[40]
  %5 = broadcast %4 {axes = [0], dims = [40, 37]} : f32[40, 37]
  %6 = div %3, %5 : f32[40, 37]
  %7 = log %5 : f32[40, 37]
  %8 = sub %2, %7 : f32[40, 37]
  return %6, %8, %3
}
"""


class Exponentials(unittest.TestCase):
    def test_numbers_that_are_none(self):
        x = np.random.default_rng(3).normal(0, 30, (40, 37)).astype(np.float32)
        x[3, 5] = x[5] = x[7, 36] = np.nan
        x[9, 2] = x[11] = x[13, 1:] = -np.inf
        x[15, 4] = x[17, 0] = x[17, 9] = np.inf
        x[19] = -np.inf
        x[19, 36] = np.nan
        x[21] = [3e38 if i % 2 else -3e38 for i in range(37)]
        whole, alone = quern.compile(EXPS), quern.compile(EXPS.replace(b", e: f32[40, 37]", b"").replace(b", %3\n}", b"\n}"))
        expected = quern.compile(EXPS, target="interp")([x])
        for got in (whole([x]), alone([x])):
            for y, z in zip(got, expected):
                np.testing.assert_allclose(y, z, rtol=2e-6, atol=1e-6)  # NaN where NaN is

    def test_behind_a_long_chain(self):
        """Each link reads the one before twice: the compiler may not follow all ways back through 40 of them."""
        links = "".join(f"%m{i} = mul %c{i}, %c{i} : f32[40, 37]\n%c{i + 1} = sub %m{i}, %c{i} : f32[40, 37]\n" for i in range(40))
        text = EXPS.decode().replace("%0 = reduce %x", "%c0 = abs %x : f32[40, 37]\n" + links + "%0 = reduce %c40")
        text = text.replace("sub %x,", "sub %c40,")
        x = np.random.default_rng(5).uniform(0, 1, (40, 37)).astype(np.float32)
        for y, z in zip(quern.compile(text.encode())([x]), quern.compile(text.encode(), target="interp")([x])):
            np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)


LINEAR = b"""graph @main(%x: f32[batch, 2], %w: f32[2, 1] param = splat 0.5, %b: f32[1] param = splat 0) -> (y: f32[batch, 1]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[batch, 1]
  %1 = broadcast %b {axes = [1], dims = [batch, 1]} : f32[batch, 1]
  %2 = add %0, %1 : f32[batch, 1]
  return %2
}
"""


class Training(unittest.TestCase):
    @for_targets
    def test_learns(self, target):
        x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
        y = x @ np.array([[2], [-3]], np.float32) + 1
        for optimizer, rate in ("sgd", 0.1), ("adam", 0.1):
            try:
                t = quern.train(LINEAR, loss="mse", optimizer=optimizer, learning_rate=rate, target=target)
            except quern.Error as error:
                if "no CPU code for pow" not in str(error):
                    raise
                continue
            w, b = np.full((2, 1), 0.5, np.float32), np.zeros(1, np.float32)
            self.assertAlmostEqual(t.step([x], y), float(np.mean((x @ w + b - y) ** 2)), places=5)
            for _ in range(300):
                loss = t.step({"x": x}, y)
            self.assertLess(loss, 1e-4)
            np.testing.assert_allclose(t.parameters["w"], [[2], [-3]], atol=0.02)
            np.testing.assert_allclose(t([x])[0], y, atol=0.05)
            self.assertEqual(set(t.parameters), {"w", "b"})
            t.parameters["b"][...] = 100
            self.assertGreater(t.step([x], y), 1000)

    @for_targets
    def test_matches_by_hand(self, target):
        t = quern.train(LINEAR, loss="mse", optimizer="sgd", learning_rate=0.5, momentum=0.9, target=target)
        x, y = np.array([[1, 2]], np.float32), np.array([[4]], np.float32)
        w, b, vw, vb = np.array([[0.5], [0.5]]), np.array([0.0]), 0, 0
        for _ in range(3):
            error = x @ w + b - y
            self.assertAlmostEqual(t.step([x], y) / float(error[0, 0] ** 2), 1, places=4)
            vw, vb = 0.9 * vw + 2 * x.T @ error, 0.9 * vb + 2 * error[0]
            w, b = w - 0.5 * vw, b - 0.5 * vb
        np.testing.assert_allclose(t.parameters["w"], w, rtol=1e-4)

    def test_refuses(self):
        for change, message in [({"loss": "hinge"}, "loss 'hinge'"), ({"optimizer": "lion"}, "optimizer 'lion'"),
                                ({"learning_rate": 0}, "learning_rate")]:
            with self.assertRaisesRegex(quern.Error, message):
                quern.train(LINEAR, **{"loss": "mse", "optimizer": "sgd", "learning_rate": 1, "target": "interp", **change})


class Files(unittest.TestCase):
    @unittest.skipUnless(platform.machine() == "x86_64", "for x86-64")
    def test_compile_file_for_several_cpus(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "bias.so")
            quern.compile_file(BIAS, path, cpu="x86-64-v3,x86-64-v4")
            model = quern.load(path)
            self.assertRegex(model.target, r"^x86_64-.* x86-64-v[34] $")
            np.testing.assert_array_equal(model([X, X[0]])[0], X + X[0])
        with self.assertRaisesRegex(quern.ArgumentError, "a list of CPUs .* is for files"):
            quern.compile(BIAS, cpu="x86-64-v3,x86-64-v4")

    def test_compile_file_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "bias.so")
            quern.compile_file(BIAS, path)
            self.assertEqual(sorted(os.listdir(folder)), ["bias.h", "bias.so"])
            m = quern.load(path)
            np.testing.assert_array_equal(m([X, B])[0], X + B)
            self.assertEqual(m.inputs[0].shape, ("batch", 4))
            for name, start in ("bias.a", b"!<arch>"), ("bias.o", b"\x7fELF"), ("bias.qn", b"dims"), ("bias.bin", b"\x7fELF"):
                quern.compile_file(BIAS, os.path.join(folder, name), header="")         # by the ending; else an object to load
                with open(os.path.join(folder, name), "rb") as file:
                    self.assertTrue(file.read().startswith(start), name)
            quern.compile_file(COUNTER, os.path.join(folder, "side.so"), weights="side", header="", prefix="p")
            s = quern.load(os.path.join(folder, "side.so"), prefix="p").bind([np.float32(2)])
            s.run()
            self.assertEqual(float(s.states["total"]), 2)
            with self.assertRaises(quern.ModelError):
                quern.load(path, prefix="other")
            with self.assertRaises(quern.FileError):
                quern.compile_file(BIAS, os.path.join(folder, "no", "bias.so"))
        with self.assertRaises(quern.FileError):
            quern.load("/does/not/exist.so")


class Compiling(unittest.TestCase):
    def test_sources(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "bias.qn")
            with open(path, "wb") as file:
                file.write(BIAS)

            class Path:
                def __fspath__(self):
                    return path

            for source in (path, Path(), BIAS, bytearray(BIAS), memoryview(BIAS)):
                np.testing.assert_array_equal(quern.compile(source, target="interp")([X, B])[0], X + B)
        with self.assertRaises(TypeError):
            quern.compile(7)

    def test_refuses(self):
        for model, error, message in [
            (b"", quern.ModelError, "empty"),
            (b"\x08\x07\xff\xff\xff", quern.ModelError, ""),
            (b"graph @f(", quern.ModelError, r"\(memory\):1:10"),
            (os.urandom(4096), quern.ModelError, ""),
            ("/does/not/exist.onnx", quern.FileError, "/does/not/exist.onnx"),
            ("/", quern.FileError, ""),
        ]:
            with self.assertRaisesRegex(error, message):
                quern.compile(model, target="interp")
        with self.assertRaises(OSError):
            quern.compile("/does/not/exist.onnx", target="interp")
        with self.assertRaises(TypeError):
            quern.compile(BIAS, traget="interp")
        with self.assertRaises(quern.Error):
            quern.compile(BIAS, target="abacus")

    def test_no_fusion(self):
        root = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "digits")
        x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
        for name in "digits.onnx", "untrained.onnx":
            path = os.path.join(root, name)
            fused, apart = (quern.compile(path, optimize=n)([x])[0] for n in (2, 1))
            np.testing.assert_allclose(apart, fused, rtol=1e-5, atol=1e-6)
            step = [quern.train(path, "cross_entropy", "adam", 0.01, optimize=n) for n in (2, 1)]
            y = np.arange(5)
            losses = np.array([[t.step([x], y) for _ in range(5)] for t in step])
            np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    def test_long_chains_of_reductions(self):
        text = "graph @main(%x0: f32[3, 5]) -> (y: f32[3, 5]) {\n"
        for i in range(70):
            text += f"""  %s{i} = reduce %x{i} {{axes = [1], kind = max}} : f32[3]
  %b{i} = broadcast %s{i} {{axes = [0], dims = [3, 5]}} : f32[3, 5]
  %d{i} = sub %b{i}, %x{i} : f32[3, 5]
  %x{i + 1} = tanh %d{i} : f32[3, 5]
"""
        text += "  return %x70\n}\n"
        x = np.random.default_rng(5).normal(size=(3, 5)).astype(np.float32)
        results = [quern.compile(text.encode(), target=target)([x])[0] for target in ("interp", "cpu")]
        np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)

    def test_blas(self):
        product = b"""graph @product(%x: f64[n, 64], %y: f64[64, 48]) -> f64[n, 48] {
  %0 = dot_general %x, %y {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f64[n, 48]
  return %0
}
"""
        rng = np.random.default_rng(4)
        x, y = rng.standard_normal((300, 64)), rng.standard_normal((64, 48))
        for blas in None, "auto", "none", "openblas":
            try:
                results = [quern.compile(product, blas=blas, threads=n)([x, y])[0] for n in (1, 2)]
            except quern.FileError as e:
                self.assertIn("OpenBLAS cannot be used", str(e))  # it isn't installed
                self.assertEqual(blas, "openblas")
                continue
            np.testing.assert_allclose(results[0], x @ y, rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(results[0], results[1])
        with self.assertRaisesRegex(quern.ArgumentError, "no blas 'mkl'"):
            quern.compile(product, blas="mkl")

    def test_a_file_that_is_replaced(self):
        source = "graph @f(%x: f32[n]) -> (y: f32[n]) {{\n%0 = {} %x : f32[n]\nreturn %0\n}}"
        x = np.array([1, 4], np.float32)
        with tempfile.TemporaryDirectory() as folder:
            for path in os.path.join(folder, "hot.so"), "hot.so":  # the second without a folder
                before = os.getcwd()
                os.chdir(folder)
                try:
                    models = []
                    for op in "neg", "abs", "sqrt":
                        quern.compile_file(source.format(op).encode(), path)
                        models += [quern.load(path), quern.load(path)]
                    for model, y in zip(models, [-x, -x, x, x, np.sqrt(x), np.sqrt(x)]):
                        np.testing.assert_array_equal(model([x])[0], y)
                    del models, model
                    gc.collect()
                    self.assertEqual(quern.load(path)([x])[0].tolist(), [1, 2])
                finally:
                    os.chdir(before)

    def test_pickling(self):
        model = quern.compile(BIAS, dims={"batch": (1, 8)}, threads=1, compile_threads=1)
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again([X, B])[0], X + B)
        with self.assertRaisesRegex(quern.ArgumentError, "compiled for 1 to 8"):
            again([np.zeros((9, 4), np.float32), B])
        self.assertIs(copy.deepcopy([model])[0], model)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "bias.so")
            quern.compile_file(BIAS, path)
            os.rename(path, os.path.join(folder, "v2.so"))
            loaded = pickle.loads(pickle.dumps(quern.load(os.path.join(folder, "v2.so"))))
            np.testing.assert_array_equal(loaded([X, B])[0], X + B)
        for other in model.bind([X, B]), quern.grad(b"graph @f(%x: f32[]) -> (y: f32[]) {\n%0 = exp %x : f32[]\nreturn %0\n}", "y", ["x"]):
            for attempt in pickle.dumps, copy.deepcopy:
                if attempt is pickle.dumps or isinstance(other, quern.Session):
                    with self.assertRaisesRegex(TypeError, "cannot be copied or pickled"):
                        attempt(other)

    def test_cache(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(quern.trim_cache(-1, folder), (0, 0))
            quern.compile(BIAS, cache=folder)
            size, entries = quern.trim_cache(-1, folder)
            self.assertTrue(size > 0 and entries > 0)
            self.assertEqual(quern.trim_cache(size, folder), (size, entries))
            self.assertEqual(quern.trim_cache(cache=folder), (0, 0))
            with self.assertRaisesRegex(quern.FileError, "cannot be used as cache folder"):
                quern.trim_cache(cache="/dev/null")

    def test_text(self):
        text = quern.text(BIAS)
        self.assertIn("@bias", text)
        self.assertEqual(quern.text(text.encode()), text)
        self.assertIn("f32[2, 4]", quern.text(BIAS, dims={"batch": 2}))

    def test_version(self):
        self.assertRegex(quern.version, r"^\d+\.\d+\.\d+$")


if __name__ == "__main__":
    unittest.main()
