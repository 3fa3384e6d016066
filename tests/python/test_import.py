"""What imported models leave to the call: dimensions that operators need to know, shapes, the lengths of sequences."""

import os
import pathlib
import resource
import subprocess
import tempfile
import unittest

import numpy as np

import programs
import quern

try:
    from onnx import TensorProto, helper, numpy_helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")


QUERN = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release")) / "quern"


def floats(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def info(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), opset=20):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


def correlated(x, w):
    """Conv without padding, by windows."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w)


class Dimensions(unittest.TestCase):
    def setUp(self):
        self.conv = model([helper.make_node("Conv", ["x", "w"], ["y"])],
                          [info("x", ["n", 2, "h", "h"]), info("w", [3, 2, "k", "k"])], [info("y", None)])

    def test_kernel(self):
        m = quern.compile(self.conv)
        for n, h, k in ((1, 7, 3), (2, 9, 2), (1, 7, 3)):
            x, w = floats(n, 2, h, h), floats(3, 2, k, k)
            np.testing.assert_allclose(m([x, w])[0], correlated(x, w), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(m({"w": w, "x": x})[0], correlated(x, w), rtol=1e-5, atol=1e-5)
        self.assertEqual(len(m._models), 2)  # one per kernel, for images of any size

    def test_many_at_once(self):
        """A size of (a0 + a1 + …) * (b0 + b1 + …): 256 terms are the most, and what is made of them is said, too."""
        def total(n):
            nodes = [helper.make_node("Shape", [f"x{i}"], [f"s{i}"]) for i in range(n)]
            nodes += [helper.make_node("Add", [f"t{i - 1}" if i > 1 else "s0", f"s{i}"], [f"t{i}"]) for i in range(1, n)]
            nodes += [helper.make_node("Expand", ["one", f"t{n - 1}"], ["e"]), helper.make_node("Mul", ["e", "two"], ["y"])]
            return model(nodes, [info("one", [1, 1]), info("two", [1]), *(info(f"x{i}", [f"a{i}", f"b{i}"]) for i in range(n))],
                         [info("y", None)])

        one, two = np.ones((1, 1), np.float32), np.full(1, 2, np.float32)
        y, = quern.compile(total(16))([one, two, *(np.zeros((1, 2), np.float32) for _ in range(16))])
        np.testing.assert_array_equal(y, np.full((16, 32), 2, np.float32))
        with self.assertRaisesRegex(quern.Error, "would be a sum of more than 256 terms: fix some of the dimensions"):
            quern.text(total(17))
        many = [info(f"x{i}", [f"n{i}"]) for i in range(400)]
        with self.assertRaisesRegex(quern.Error, "too large, or a sum of more than 256 terms: then fix some"):
            quern.text(model([helper.make_node("Concat", [i.name for i in many], ["y"], axis=0)], many, [info("y", None)]))

    def test_inferred_beside_none(self):
        """-1 is found from what is not copied, so a batch of 0 rows leaves it known; beside a 0 of allowzero it isn't."""
        def reshape(shape, to, **attributes):
            to = helper.make_tensor("to", TensorProto.INT64, [len(to)], to)
            return model([helper.make_node("Reshape", ["x", "to"], ["y"], **attributes)], [info("x", shape)], [info("y", None)], [to])

        for shape, to, given, expected in ((["n", 4], [0, -1], (0, 4), (0, 4)), ([0, 4], [0, -1], (0, 4), (0, 4)),
                                           ([0, 6, 4], [0, -1, 3], (0, 6, 4), (0, 8, 3)), ([2, 0, 4], [-1, 0, 2], (2, 0, 4), (4, 0, 2)),
                                           ([0, 4], [-1, 2], (0, 4), (0, 2)), ([0, 4], [2, -1], (0, 4), (2, 0))):
            self.assertEqual(quern.compile(reshape(shape, to))([np.zeros(given, np.float32)])[0].shape, expected)
        for shape in ([0, 4], ["n", 4]):
            with self.assertRaisesRegex(quern.ModelError, "the -1 in the shape is undetermined, as another element is 0"):
                quern.text(reshape(shape, [0, -1], allowzero=1))

    def test_said_to_be(self):
        m = quern.compile(self.conv, dims={"k": (1, 3)})
        x = floats(1, 2, 8, 8)
        np.testing.assert_allclose(m([x, floats(3, 2, 3, 3)])[0], correlated(x, floats(3, 2, 3, 3)), rtol=1e-5, atol=1e-5)
        with self.assertRaisesRegex(quern.OutOfRangeError, "dimension k is 4, and was said to be 1 to 3"):
            m([x, floats(3, 2, 4, 4)])
        with self.assertRaisesRegex(quern.ArgumentError, "input 'w' is missing"):
            m({"x": x})
        with self.assertRaisesRegex(quern.ArgumentError, "input 'w' has 1 dimensions, and the model needs its 3th"):
            m([x, floats(3)])
        self.assertIsInstance(quern.compile(self.conv, dims={"k": 2}), quern.Model)

    def test_message(self):
        with self.assertRaisesRegex(quern.UnsupportedError, "the kernel's extents must be constant .*; it would do to fix k"):
            quern.text(self.conv)

    def test_contents_of_shapes(self):
        """Numbers computed from dimensions in a way that no expression says."""
        nodes = [helper.make_node("Shape", ["x"], ["s"], start=0, end=1), helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
                 helper.make_node("Sqrt", ["f"], ["r"]), helper.make_node("Cast", ["r"], ["i"], to=TensorProto.INT64),
                 helper.make_node("Concat", ["i", "rest"], ["to"], axis=0), helper.make_node("Reshape", ["x", "to"], ["y"])]
        rest = helper.make_tensor("rest", TensorProto.INT64, [1], [-1])
        m = quern.compile(model(nodes, [info("x", ["n", "m"])], [info("y", None)], [rest]))
        for n in (16, 9):
            x = floats(n, 4)
            np.testing.assert_array_equal(m(x)[0], x.reshape(int(n ** .5), -1))

    def test_fitting_only_when_known(self):
        """Once an extent has to be known anyway, what else does not fit as a symbol is known too."""
        m = quern.compile(model([helper.make_node("RNN", ["x", "w", "r"], ["", "y"])],
                                [info("x", ["t", "b", "i"]), info("w", [1, "g", "i"]), info("r", [1, "g", "h"])], [info("y", None)]))
        x, w, r = floats(3, 2, 4), floats(1, 5, 4), floats(1, 5, 5)
        h = np.zeros((2, 5), np.float32)
        for step in x:
            h = np.tanh(step @ w[0].T + h @ r[0].T)
        np.testing.assert_allclose(m([x, w, r])[0][0], h, rtol=1e-4, atol=1e-5)
        with self.assertRaisesRegex(quern.ModelError, "the weights do not fit 1 gates of hidden size 6"):
            m([x, w, floats(1, 5, 6)])

    def test_boxes_with_names_of_their_own(self):
        """What NonMaxSuppression reads of boxes and of scores is as many, whatever the file calls it."""
        number = lambda name, dtype, value: helper.make_tensor(name, dtype, [], [value])
        m = quern.compile(model([helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["y"])],
                                [info("boxes", ["a", "b", "c"]), info("scores", ["d", "e", "f"])], [info("y", [None, 3], TensorProto.INT64)],
                                [number("most", TensorProto.INT64, 5), number("overlap", TensorProto.FLOAT, .5)]))
        boxes = np.array([[[0, 0, 1, 1], [0, .1, 1, 1.1], [2, 2, 3, 3]]], np.float32)
        y = m([boxes, np.array([[[.9, .8, .7], [.1, .3, .2]]], np.float32)])[0]
        np.testing.assert_array_equal(y, [[0, 0, 0], [0, 0, 2], [0, 1, 1], [0, 1, 2]])

    def test_branches_for_other_shapes(self):
        """A branch that these shapes don't fit may be the one that is not taken: the condition is asked for."""
        number = lambda name, value: helper.make_tensor(name, TensorProto.INT64, [], [value])
        branch = lambda w: helper.make_graph([helper.make_node("MatMul", ["x", w], [w + "y"])], w, [], [info(w + "y", None)])
        weights = {name: floats(rows, 2) for name, rows in (("wide", 16), ("narrow", 8))}
        m = quern.compile(model([helper.make_node("Equal", ["rate", "fast"], ["c"]),
                                 helper.make_node("If", ["c"], ["y"], then_branch=branch("wide"), else_branch=branch("narrow"))],
                                [info("x", [None, None]), info("rate", [], TensorProto.INT64)], [info("y", None)],
                                [number("fast", 16000), *(helper.make_tensor(k, TensorProto.FLOAT, w.shape, w) for k, w in weights.items())]))
        for rate, w in ((16000, "wide"), (8000, "narrow")):
            x = floats(3, len(weights[w]))
            np.testing.assert_allclose(m([x, np.int64(rate)])[0], x @ weights[w], rtol=1e-5, atol=1e-5)
        with self.assertRaisesRegex(quern.ArgumentError, "the model takes f32.x_0, 16."):
            m([floats(3, 8), np.int64(16000)])
        said = quern.compile(m._source[1][0], constants={"rate": 8000})
        self.assertIsInstance(said, quern.Model)
        np.testing.assert_allclose(said([floats(2, 8), np.int64(16000)])[0], floats(2, 8) @ weights["narrow"], rtol=1e-5, atol=1e-5)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "m.onnx")
            with open(path, "wb") as f:
                f.write(m._source[1][0])
            quern.compile_file(path, os.path.join(folder, "m.so"), constants={"rate": 16000})
            y, = quern.load(os.path.join(folder, "m.so"))([floats(2, 16), np.int64(0)])
            np.testing.assert_allclose(y, floats(2, 16) @ weights["wide"], rtol=1e-5, atol=1e-5)
            check = lambda *constant: programs.run([str(QUERN), "check", path, "--constant", *constant])
            self.assertEqual(check("rate=16000").returncode, 0)
            for constant, message in (("rate=[16000]", "the contents given for input \"rate\" do not fit i64[]"), ("rate=16e3", "do not fit i64[]"),
                                      ("rate=true", "do not fit i64[]"), ("rate=16000,8000", "write NAME=NUMBER, NAME=[NUMBER, …] or NAME=true"),
                                      ("rate=[16000", "write NAME="), ("rate=", "write NAME="), ("=1", "write NAME=")):
                with self.subTest(constant):
                    self.assertIn(message, check(constant).stderr)
            self.assertIn("no input is called 'rat'", check("rate=8000", "--constant", "rat=8000").stderr)
        with self.assertRaisesRegex(quern.ArgumentError, "Quern's text says what is constant"):
            quern.text(b"graph @main(%x: f32[2]) -> (f32[2]) {\n  return %x\n}\n", constants={"x": floats(2)})

    def test_numbers_given_in_another_type(self):
        """A command line has whole numbers and float32; whole ones are of every type that has them."""
        for dtype, kind, fits, other in ((np.int32, TensorProto.INT32, -7, 2**31), (np.uint8, TensorProto.UINT8, 255, -1),
                                         (np.uint64, TensorProto.UINT64, 7, -1), (np.float16, TensorProto.FLOAT16, 2048, 2049),
                                         (np.float32, TensorProto.FLOAT, -2**24, 2**24 + 1), (np.float64, TensorProto.DOUBLE, 2**53, 2**53 + 1)):
            text = model([helper.make_node("Mul", ["x", "by"], ["y"])], [info("x", [2], kind), info("by", [1], kind)], [info("y", None, kind)])
            y, = quern.compile(text, constants={"by": np.array([fits])})([np.ones(2, dtype), np.zeros(1, dtype)])
            np.testing.assert_array_equal(y, np.full(2, fits, dtype))
            self.assertEqual(y.dtype, dtype)
            with self.assertRaisesRegex(quern.ArgumentError, 'the contents given for input "by" do not fit'):
                quern.text(text, constants={"by": np.array([other])})

    def test_states_say_the_batch(self):
        """A state of one row makes the batch one, and a state with a batch of its own is of the same."""
        for op, rows in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
            for said in (1, "other"):
                w, r = floats(1, rows * 5, 4), floats(1, rows * 5, 5)
                m = quern.compile(model([helper.make_node(op, ["x", "w", "r", "", "", "h"], ["y"], hidden_size=5)],
                                        [info("x", ["t", "b", 4]), info("h", [1, said, 5])], [info("y", None)],
                                        [helper.make_tensor("w", TensorProto.FLOAT, w.shape, w), helper.make_tensor("r", TensorProto.FLOAT, r.shape, r)]))
                self.assertEqual(m.outputs[0].shape, ("t", 1, 1 if said == 1 else "b", 5))
                y, = m([floats(3, 1, 4), floats(1, 1, 5)])
                self.assertEqual(y.shape, (3, 1, 1, 5))

    def test_squeezed(self):
        """Which axes go without being listed is known once the extents are."""
        m = quern.compile(model([helper.make_node("Squeeze", ["x"], ["y"])], [info("x", ["n", 1, "m"])], [info("y", None)]))
        for n, k in ((1, 4), (3, 1), (3, 4)):
            np.testing.assert_array_equal(m([floats(n, 1, k)])[0], floats(n, 1, k).squeeze())

    def test_question_marks(self):
        """"?" is no name: extents that are written so differ."""
        m = quern.compile(model([helper.make_node("Relu", ["x"], ["y"])], [info("x", ["?", 3, "?"])], [info("y", ["?", 3, "?"])]))
        self.assertEqual(m.inputs[0].shape, ("x_0", 3, "x_2"))
        np.testing.assert_array_equal(m([floats(2, 3, 4)])[0], np.maximum(floats(2, 3, 4), 0))

    def test_branches_of_convolutions(self):
        """In a branch, an extent may be below 0 for inputs that don't get there."""
        w = helper.make_tensor("w", TensorProto.FLOAT, [16, 16, 3], floats(16, 16, 3).ravel())
        b = helper.make_tensor("b", TensorProto.FLOAT, [16], floats(16))
        nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "w", "b"], ["r"], pads=[1, 1])]
        plain = [helper.make_node("ReduceSum", ["r", "axis"], ["y"], keepdims=0)]
        axis = helper.make_tensor("axis", TensorProto.INT64, [1], [2])
        rows = helper.make_graph([helper.make_node("ReduceSum", ["x", "axis"], ["z"], keepdims=0)], "rows", [], [info("z", None)])
        x, yes = floats(2, 16, 9), np.array(True)
        m = quern.compile(model([helper.make_node("If", ["c"], ["o"], then_branch=helper.make_graph(nodes + plain, "b", [], [info("y", None)]),
                                                  else_branch=rows)],
                                [info("x", ["n", 16, "s"]), info("c", [], TensorProto.BOOL)], [info("o", None)], [w, b, axis]))
        want, = quern.compile(model(nodes + plain, [info("x", [2, 16, 9])], [info("y", None)], [w, b, axis]))([x])
        np.testing.assert_allclose(m([x, yes])[0], want, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(m([x[:, :, :1], np.array(False)])[0], x[:, :, 0], rtol=1e-5)

    def test_places_of_multiples(self):
        """Buffers of n (floordiv(s, 160) - 3) elements are known not to overlap, though the product of both ranges reaches below 0."""
        w = helper.make_tensor("w", TensorProto.FLOAT, [17, 1, 512], floats(17, 1, 512).ravel())
        nodes = [helper.make_node("Conv", ["x", "w"], ["a"], strides=[160]), helper.make_node("Neg", ["x"], ["n"]),
                 helper.make_node("Conv", ["n", "w"], ["b"], strides=[160]), helper.make_node("Mul", ["a", "b"], ["p"]),
                 helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 1]), helper.make_node("Softmax", ["t"], ["u"], axis=1),
                 helper.make_node("ReduceMax", ["u"], ["most"], keepdims=0), helper.make_node("Div", ["u", "most"], ["y"])]
        m = quern.compile(model(nodes, [info("x", ["n", 1, "s"])], [info("y", None)], [w]))
        x = floats(2, 1, 1000)
        want, = quern.compile(model(nodes, [info("x", [2, 1, 1000])], [info("y", None)], [w]), target="interp")([x])
        np.testing.assert_allclose(m([x])[0], want, rtol=1e-4, atol=1e-5)

    def test_tiles(self):
        """Transposed convolutions whose kernels are as large as their strides: each element becomes a tile."""
        for c, o, kernel, groups in ((5, 1, (2, 2), 1), (6, 3, (4,), 1), (6, 4, (2, 3), 2), (3, 24, (4, 4), 1), (4, 2, (1, 5), 1), (4, 6, (3, 2, 2), 2),
                                     (8, 16, (8,), 4)):
            n = len(kernel)
            x, w, b = floats(2, c, *range(3, 3 + n)), floats(c, o // groups, *kernel), floats(o)
            parts = []
            for g in range(groups):
                xg, wg = (a[g * c // groups:(g + 1) * c // groups] for a in (x.swapaxes(0, 1), w))
                y = np.tensordot(xg, wg, (0, 0))  # n, spatial…, o, kernel…
                order = [0, 1 + n, *(i for k in range(n) for i in (1 + k, 2 + n + k))]
                parts.append(y.transpose(order).reshape(2, o // groups, *(s * k for s, k in zip(x.shape[2:], kernel))))
            want = np.concatenate(parts, 1) + b.reshape(-1, *[1] * n)
            node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], strides=list(kernel), group=groups)
            weights = [helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.ravel()), helper.make_tensor("b", TensorProto.FLOAT, [o], b)]
            for shape in (list(x.shape), ["n", c, *(f"s{i}" for i in range(n))]):
                for target in ("cpu", "interp"):
                    with self.subTest(kernel=kernel, shape=shape, target=target):
                        m = quern.compile(model([node], [info("x", shape)], [info("y", None)], weights), target=target)
                        np.testing.assert_allclose(m([x])[0], want, rtol=1e-4, atol=1e-5)

    def test_equal_at_run_time(self):
        """Extents that are never 1 in the range said and equal for some sizes: pyramids, whose levels are scaled up and added."""
        pool = lambda x, y, k: helper.make_node("MaxPool", [x], [y], kernel_shape=[k], strides=[k], ceil_mode=1)
        scales = helper.make_tensor("scales", TensorProto.FLOAT, [3], [1, 1, 2])
        pyramid = model([pool("x", "a", 2), pool("a", "b", 2), helper.make_node("Resize", ["b", "", "scales"], ["c"], mode="nearest"),
                         helper.make_node("Add", ["a", "c"], ["y"])], [info("x", [1, 3, "s"])], [info("y", None)], [scales])
        for target in "cpu", "interp":
            m = quern.compile(pyramid, dims={"s": (8, 64)}, target=target)
            for s in 8, 15, 64:
                x = floats(1, 3, 64)[:, :, :s]
                a = np.stack([x[:, :, i:i + 2].max(2) for i in range(0, s, 2)], 2)
                b = np.stack([x[:, :, i:i + 4].max(2) for i in range(0, s, 4)], 2)
                np.testing.assert_array_equal(m([x])[0], a + b.repeat(2, 2))
            with self.assertRaisesRegex(quern.Error, "equal|reshape of 15 elements to 18"):
                m([floats(1, 3, 10)])

    def test_ceil_mode(self):
        """Windows over what is left, of any image; one after the other they are a workspace that can be said."""
        def pooled(x, k, s, p, of):
            """By the definition: a window starts within x or its padding at the start."""
            h = x.shape[-1]
            starts = [i * s - p for i in range(-(-(h + 2 * p - k) // s) + 1) if i * s < h + p]
            return np.stack([of(x[..., max(i, 0):max(min(i + k, h), 0)], i, min(i + k, h + p)) for i in starts], -1)

        most = lambda x, *_: x.max(-1)
        for k, s, p in (3, 2, 0), (3, 2, 1), (2, 2, 0), (2, 3, 0), (3, 3, 1), (5, 2, 2):
            for op, own, of in (("MaxPool", 0, most), ("AveragePool", 0, lambda x, *_: x.mean(-1)),
                                ("AveragePool", 1, lambda x, start, end: x.sum(-1) / (end - start))):
                a = {} if op == "MaxPool" else {"count_include_pad": own}
                m = quern.compile(model([helper.make_node(op, ["x"], ["y"], kernel_shape=[k], strides=[s], pads=[p, p],
                                                          ceil_mode=1, **a)], [info("x", [1, 2, "h"])], [info("y", None)]))
                for h in range(5, 13):
                    x = floats(1, 2, 12)[..., :h]
                    np.testing.assert_allclose(m([x])[0], pooled(x, k, s, p, of), rtol=1e-5, err_msg=f"{op} {k} {s} {p} {own} {h}")
        pool = lambda x, y: helper.make_node("MaxPool", [x], [y], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        conv = lambda x, w, y: helper.make_node("Conv", [x, w], [y], pads=[1, 1, 1, 1])
        nodes, names = [conv("x", "w0", "c0")], ["w0"]
        for i in range(3):
            fire = [pool(f"c{i}", f"p{i}"), helper.make_node("Conv", [f"p{i}", f"s{i}"], [f"q{i}"]), helper.make_node("Relu", [f"q{i}"], [f"r{i}"]),
                    helper.make_node("Conv", [f"r{i}", f"e{i}"], [f"a{i}"]), conv(f"r{i}", f"f{i}", f"b{i}"),
                    helper.make_node("Concat", [f"a{i}", f"b{i}"], [f"c{i + 1}"], axis=1)]
            nodes, names = nodes + fire, names + [f"s{i}", f"e{i}", f"f{i}"]
        shapes = {"w0": (64, 3, 3, 3)} | {f"s{i}": (16, 64, 1, 1) for i in range(3)} | {f"e{i}": (32, 16, 1, 1) for i in range(3)}
        weights = [numpy_helper.from_array(0.2 * floats(*shapes.get(n, (32, 16, 3, 3))), n) for n in names]
        given = info("x", ["b", 3, "h", "w"])
        m = quern.compile(model(nodes, [given], [info("c3", None)], weights))
        for shape in (1, 3, 33, 40), (2, 3, 64, 23):
            x = floats(*shape)
            fixed = quern.compile(model(nodes, [given], [info("c3", None)], weights), dims=dict(zip("bhw", (shape[0], *shape[2:]))))
            np.testing.assert_allclose(m([x])[0], fixed([x])[0], rtol=1e-4, atol=1e-4)

    def test_windows_in_the_padding(self):
        """Of one place, and of several: what is in the padding alone is the least number."""
        for kernel, pads in ([1, 3], [1, 1, 1, 1]), ([3, 1], [0, 0, 0, 2]), ([1, 1], [0, 0, 2, 0]), ([3, 1], [1, 1, 1, 0]):
            pool = model([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=kernel, pads=pads)],
                         [info("x", [1, 2, "h", "w"])], [info("y", None)])
            for math in "default", "strict":
                m = quern.compile(pool, math=math)
                for h, w in (4, 7), (3, 40):
                    x = floats(1, 2, h, w)
                    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=-np.inf)
                    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
                    np.testing.assert_array_equal(m([x])[0], windows.max((-1, -2)), err_msg=f"{kernel} {pads} {math} {h}")

    def test_attention_under_a_mask_of_equal_extents(self):
        """Only the run says that rows and columns of the table are as many as there are queries and keys."""
        nodes = [helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), helper.make_node("MatMul", ["q", "kt"], ["s"]),
                 helper.make_node("Shape", ["q"], ["t"], start=2, end=3),
                 helper.make_node("Concat", ["t", "t"], ["tt"], axis=0),
                 helper.make_node("Slice", ["table", "zeros", "tt", "axes"], ["bias"]), helper.make_node("Add", ["s", "bias"], ["z"]),
                 helper.make_node("Softmax", ["z"], ["p"]), helper.make_node("MatMul", ["p", "v"], ["y"])]
        table = floats(16, 16)
        m = quern.compile(model(nodes, [info(name, ["n", 2, "t", 8]) for name in "qkv"], [info("y", None)],
                                [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.zeros(2, np.int64), "zeros"),
                                 numpy_helper.from_array(np.arange(2), "axes")]))
        for t in (1, 5, 16):
            q, k, v = (floats(3, 2, t, 8) for _ in range(3))
            p = np.exp(q @ k.swapaxes(2, 3) + table[:t, :t])
            np.testing.assert_allclose(m([q, k, v])[0], p / p.sum(-1, keepdims=True) @ v, rtol=1e-4, atol=1e-5)
        with self.assertRaises(quern.Error):
            m([floats(1, 2, 17, 8)] * 3)

    def test_mistakes_stay(self):
        """What no dimension would change is refused at once."""
        with self.assertRaises(quern.UnsupportedError):
            quern.compile(model([helper.make_node("NoSuch", ["x"], ["y"])], [info("x", ["n"])], [info("y", None)]))
        with self.assertRaises(quern.ModelError):
            quern.compile(model([helper.make_node("MatMul", ["x", "x"], ["y"])], [info("x", ["n", 3, 4])], [info("y", None)]))


class Order(unittest.TestCase):
    """Converters append nodes that make inputs of earlier ones."""

    def test_nodes(self):
        branch = lambda x: helper.make_graph([helper.make_node("Neg", [x], [x + "n"])], x, [], [info(x + "n", None)])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b")), helper.make_node("Exp", ["a"], ["b"]),
                 helper.make_node("Add", ["h", "h"], ["a"]), helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT),
                 helper.make_node("Not", ["d"], ["c"])]
        m = quern.compile(model(nodes, [info("x", ["n"], TensorProto.FLOAT16), info("d", [], TensorProto.BOOL)], [info("y", None)]))
        x = floats(5).astype(np.float16)
        np.testing.assert_allclose(m([x, np.array(False)])[0], -2 * x.astype(np.float32), rtol=1e-6)
        np.testing.assert_allclose(m([x, np.array(True)])[0], -np.exp(2 * x.astype(np.float32)), rtol=1e-5)

    def test_many(self):
        """Deeper than a stack of calls would be."""
        nodes = [helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(20000)]
        end = helper.make_node("Add", ["x20000", "x0"], ["y"])
        m = quern.compile(model([end, *nodes[::-1]], [info("x0", [2])], [info("y", None)]))
        np.testing.assert_array_equal(m([floats(2)])[0], 2 * floats(2))

    def test_circle(self):
        with self.assertRaisesRegex(quern.ModelError, 'input "b" is not defined before this node'):
            quern.text(model([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])],
                             [info("x", [2])], [info("b", None)]))


def sequence(name, shape=None, optional=False, sequence=True):
    """Of floats."""
    of = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
    of = helper.make_sequence_type_proto(of) if sequence else of
    return helper.make_value_info(name, helper.make_optional_type_proto(of) if optional else of)


def arrays_equal(test, got, want):
    test.assertEqual(len(got), len(want))
    for g, w in zip(got, want):
        np.testing.assert_array_equal(g, w)


class Sequences(unittest.TestCase):
    def setUp(self):
        """y: s with x at its front; n: how many; all: the elements that they have in common axes, one behind the other."""
        zero = helper.make_tensor("zero", TensorProto.INT64, [], [0])
        self.model = model([helper.make_node("SequenceInsert", ["s", "x", "zero"], ["y"]), helper.make_node("SequenceLength", ["y"], ["n"]),
                            helper.make_node("ConcatFromSequence", ["y"], ["all"], axis=0)],
                           [info("x", ["r", 2]), sequence("s", [None, 2])], [info("all", None), sequence("y"), info("n", [], TensorProto.INT64)],
                           [zero])

    def check(self, m, x, parts, by_name=False):
        everything, y, n = m({"s": parts, "x": x} if by_name else [x, parts])
        np.testing.assert_array_equal(everything, np.concatenate([x, *parts]))
        arrays_equal(self, y, [x, *parts])
        self.assertEqual(n, len(parts) + 1)

    def test_length_of_the_call(self):
        for target in "cpu", "interp":
            m = quern.compile(self.model, target=target)
            for parts in ([floats(2, 2), floats(3, 2)], [], [floats(1, 2)]):
                self.check(m, floats(4, 2), parts)
                self.check(m, floats(1, 2), parts, by_name=True)
            self.assertEqual(len(m._models), 3)  # for each list of shapes, whatever x is

    def test_length_said(self):
        m = quern.compile(self.model, shapes={"s": [("k", 2), (1, 2)]})
        self.assertIsInstance(m, quern.Model)
        self.assertEqual([i.name for i in m.inputs], ["x", "s_0", "s_1"])
        self.assertEqual([(o.name, o.shape) for o in m.outputs][1:-1], [("y_0", ("r", 2)), ("y_1", ("k", 2)), ("y_2", (1, 2))])
        for k in 3, 5:
            self.check(m, floats(2, 2), [floats(k, 2), floats(1, 2)])
        session = m.bind([floats(2, 2), [floats(3, 2), floats(1, 2)]])
        session.run()
        arrays_equal(self, session.outputs[1], [floats(2, 2), floats(3, 2), floats(1, 2)])
        out = [np.empty((6, 2), np.float32), [np.empty((n, 2), np.float32) for n in (2, 3, 1)], np.empty((), np.int64)]
        m([floats(2, 2), [floats(3, 2), floats(1, 2)]], out=out)
        arrays_equal(self, out[1], [floats(2, 2), floats(3, 2), floats(1, 2)])
        for given, message in (([floats(2, 2), [floats(3, 2)]], "input 's' was said to be a sequence of 2, not 1"),
                               ([floats(2, 2), floats(3, 2)], "input 's' is a sequence: a list of 2 arrays"),
                               ([floats(2, 2)], r"the model has 2 inputs \(x, s\)"), ({"t": []}, "the model has no input 't'"), ({"x": floats(2, 2)}, "input 's' is missing")):
            with self.assertRaisesRegex(quern.ArgumentError, message):
                m(given)

    def test_dimension_of_a_sequence(self):
        """An operator has to know it: the shapes of the sequence that it is called with are taken."""
        nodes = [helper.make_node("SequenceAt", ["s", "zero"], ["w"]), helper.make_node("Conv", ["x", "w"], ["y"])]
        text = model(nodes, [info("x", ["n", 3, 8, 8]), sequence("s")], [info("y", None)], [helper.make_tensor("zero", TensorProto.INT64, [], [0])])
        m = quern.compile(text, shapes={"s": [(2, 3, "k", "k"), ("p",)]})
        for k in 3, 2:
            for given in ([floats(1, 3, 8, 8), [floats(2, 3, k, k), floats(5)]], {"s": [floats(2, 3, k, k), floats(5)], "x": floats(1, 3, 8, 8)}):
                self.assertEqual(m(given)[0].shape, (1, 2, 9 - k, 9 - k))
        for given, message in (({"x": floats(1, 3, 8, 8)}, "input 's' is missing"), ([floats(1, 3, 8, 8)], "input 's' is missing"),
                               (None, "not NoneType")):
            with self.assertRaisesRegex(quern.ArgumentError, message):
                m(given)

    def test_too_many_outputs(self):
        """A small file that would have a billion."""
        n = 300
        nodes = [helper.make_node("SequenceConstruct", ["x"] * n, ["s"])] + [helper.make_node("Identity", ["s"], [f"o{i}"]) for i in range(n)]
        with self.assertRaisesRegex(quern.UnsupportedError, "output .o218. is a sequence of 300; the outputs may have 65536 tensors"):
            quern.compile(model(nodes, [info("x", [1])], [sequence(f"o{i}") for i in range(n)]))

    def test_shapes_that_do_not_fit(self):
        for shapes, message in (({"s": [(1, 3)]}, r"input .s. can't have the shape \(\[1, 3\]\); the model says \[\?, 2\]"),
                                ({"s": (1, 2)}, r"it is a sequence: write \(\["), ({"s": [], "q": None}, "no input is called 'q'"),
                                ({"s": "([1, 2]"}, "it is a sequence"), ({"s": [], "x": (1, 3)}, r"says \[r, 2\]"),
                                ({"s": [], "x": (1, 2, 3)}, r"says \[r, 2\]"), ({"s": None}, "it is a sequence"),
                                ({"s": "([-1, 2])"}, "can't have"), ({"s": [], "x": "[r, 2"}, "can't have"),
                                ({"s": [], "x": "[r, 2] 3"}, "it is a tensor"), ({"s": [], "x": ()}, "can't have"),
                                ({"s": 3}, "3 is no shape"), ({"s": [2, 3]}, "2 is no shape")):
            with self.assertRaisesRegex(quern.ArgumentError, message):
                quern.compile(self.model, shapes=shapes)
        with self.assertRaisesRegex(quern.UnsupportedError, r"input .s. is a sequence; it must be known of which shapes \(as in --shape"):
            quern.text(self.model)

    def test_names_said(self):
        """A dimension that a shape names, or fixes, is that everywhere."""
        two = model([helper.make_node("Add", ["x", "z"], ["y"])], [info("x", ["a", "b"]), info("z", ["a", "b"])], [info("y", None)])
        self.assertIn("(%x: f32[3, n], %z: f32[3, n])", quern.text(two, shapes={"x": (3, "n")}))
        bare = model([helper.make_node("Relu", ["x"], ["y"])], [info("x", None)], [info("y", None)])
        self.assertIn("(%x: f32[n, n + 1])", quern.text(bare, shapes={"x": ("n", "n + 1")}))
        m = quern.compile(bare)
        for x in (floats(3), floats(2, 2), floats()):
            np.testing.assert_array_equal(m([x])[0], np.maximum(x, 0))

    def test_optionals(self):
        text = model([helper.make_node("OptionalHasElement", ["o"], ["has"]), helper.make_node("Identity", ["o"], ["same"])],
                     [sequence("o", [None], optional=True, sequence=False)],
                     [info("has", [], TensorProto.BOOL), sequence("same", optional=True, sequence=False)])
        m = quern.compile(text)
        for value in (floats(3), None, floats(4)):
            for given in ([value], {"o": value}):
                has, same = m(given)
                self.assertEqual(has, value is not None)
                np.testing.assert_array_equal(same, value) if value is not None else self.assertIsNone(same)
        m = quern.compile(text, shapes={"o": None})
        self.assertEqual(m.inputs, [])
        for nothing in ({}, {"o": None}, [None]):
            self.assertIsNone(m(nothing)[1])
        with self.assertRaisesRegex(quern.ArgumentError, "input 'o' was said to have no value"):
            m([floats(2)])
        got = quern.compile(model([helper.make_node("OptionalGetElement", ["o"], ["y"])], [sequence("o", optional=True)], [sequence("y")]))
        arrays_equal(self, got([[floats(1), floats(2, 3)]])[0], [floats(1), floats(2, 3)])

    def test_branches(self):
        """Sequences of different lengths: which branch is taken has to be known."""
        branch = lambda *names: helper.make_graph([helper.make_node("SequenceConstruct", names, ["s"])], "b", [], [sequence("s")])
        m = quern.compile(model([helper.make_node("If", ["c"], ["y"], then_branch=branch("x"), else_branch=branch("x", "x"))],
                                [info("c", [], TensorProto.BOOL), info("x", ["n"])], [sequence("y")]))
        arrays_equal(self, m([np.array(True), floats(3)])[0], [floats(3)])
        arrays_equal(self, m([np.array(False), floats(4)])[0], [floats(4)] * 2)

    def test_names_are_kept_apart(self):
        m = quern.compile(model([helper.make_node("SequenceConstruct", ["x", "y_0"], ["y"])], [info("x", [1]), info("y_0", [2])], [sequence("y")]))
        self.assertEqual([o.name for o in m.outputs], ["y_0_", "y_1"])

    def test_command(self):
        with tempfile.TemporaryDirectory() as folder:
            path = lambda name: os.path.join(folder, name)
            with open(path("m.onnx"), "wb") as f:
                f.write(self.model)
            for name, x in (("x", floats(2, 2)), ("a", floats(1, 2)), ("b", floats(3, 2))):
                np.save(path(name + ".npy"), x)
            run = programs.run([str(QUERN), "run", path("m.onnx"), "--shape", "s=([n, 2], [m, 2])", "--input", "x=" + path("x.npy"), "--input",
                                "s_0=" + path("a.npy"), "--input", "s_1=" + path("b.npy"), "--output", "y_2=" + path("y.npy")])
            self.assertEqual(run.returncode, 0, run.stderr)
            np.testing.assert_array_equal(np.load(path("y.npy")), floats(3, 2))
            run = programs.run([str(QUERN), "inspect", path("m.onnx"), "--shape", "s"])
            self.assertIn("--shape s: write NAME=SHAPE", run.stderr)
            quern.compile_file(self.model, path("m.so"), shapes={"s": [(1, 2)]})
            arrays_equal(self, quern.load(path("m.so"))([floats(2, 2), floats(1, 2)])[1:-1], [floats(2, 2), floats(1, 2)])


class CountedLoops(unittest.TestCase):
    """Loops without a bound whose condition counts, as those of TensorFlow, have as many trips as the limit says."""

    def loop(self, conditions, start="first", step=1, most=2**63 - 1):
        """Sums rows of x one by one, and gives the sums so far. conditions: (counter of the body, limit) pairs."""
        nodes = [helper.make_node("Gather", ["x", "i"], ["row"], axis=0), helper.make_node("Add", ["s", "row"], ["sum"]),
                 helper.make_node("Identity", ["sum"], ["seen"]), helper.make_node("Add", ["k", "step"], ["next"]),
                 helper.make_node("Add", ["one", "i"], ["trip"])]
        terms = [f"c{i}" for i in range(len(conditions))]
        nodes += [helper.make_node("Less", list(c), [t]) for c, t in zip(conditions, terms)]
        nodes += [helper.make_node("And", terms, ["go"]) if len(terms) == 2 else helper.make_node("Identity", terms, ["go"])]
        body = helper.make_graph(nodes, "body", [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL),
                                                 info("k", [], TensorProto.INT64), info("s", None)],
                                 [info("go", [], TensorProto.BOOL), info("next", [], TensorProto.INT64), info("sum", None), info("seen", None)])
        number = lambda name, value: helper.make_tensor(name, TensorProto.INT64, [], [value])
        outer = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
                 helper.make_node("Gather", ["shape", "one"], ["m"], axis=0), helper.make_node("Less", ["zero", "n"], ["first"]),
                 helper.make_node("ReduceSum", ["x", "axes"], ["start"], keepdims=0), helper.make_node("Sub", ["start", "start"], ["s0"]),
                 helper.make_node("Loop", ["most", start, "zero", "s0"], ["k1", "s1", "sums"], body=body)]
        return model(outer, [info("x", ["n", "m"])], [info("sums", None), info("k1", [], TensorProto.INT64)],
                     [number("zero", 0), number("one", 1), number("step", step), number("most", most), number("four", 4),
                      helper.make_tensor("axes", TensorProto.INT64, [1], [0]), helper.make_tensor("yes", TensorProto.BOOL, [], [True])])

    def check(self, text, shapes, trips, shape, step=1):
        for target in "cpu", "interp":
            m = quern.compile(text, target=target)
            self.assertEqual(m.outputs[0].shape, shape)
            for n, k in shapes:
                x = floats(n, k)
                sums, count = m([x])
                np.testing.assert_allclose(sums, np.cumsum(x, 0)[:trips(n, k)], rtol=1e-5, atol=1e-5)
                self.assertEqual(count, step * trips(n, k))

    def test_counter(self):
        self.check(self.loop([("next", "n")]), [(5, 2), (1, 3), (0, 2)], lambda n, m: n, ("n", "m"))

    def test_trips(self):
        self.check(self.loop([("trip", "n")]), [(5, 2), (0, 2)], lambda n, m: n, ("n", "m"))

    def test_steps(self):
        self.check(self.loop([("next", "n")], step=2), [(5, 2), (6, 2), (0, 1)], lambda n, m: (n + 1) // 2, ("floordiv(n + 1, 2)", "m"), 2)

    def test_bound(self):
        self.check(self.loop([("next", "n")], most=3), [(5, 2), (2, 2)], lambda n, m: min(n, 3), ("min(3, n)", "m"))

    def test_begins_anyway(self):
        self.check(self.loop([("next", "n")], start="yes"), [(5, 2), (1, 2)], lambda n, m: n, ("max(1, n)", "m"))

    def test_two_counters(self):
        text = self.loop([("next", "n"), ("trip", "four")], start="yes")
        self.check(text, [(5, 2), (3, 2)], lambda n, m: min(n, 4), ("min(4, max(1, n))", "m"))

    def test_other_start(self):
        """The loop begins for another reason than it goes on: not counted, and so refused where rows are stacked."""
        with self.assertRaisesRegex(quern.UnsupportedError, "the contents of input 0 must be known"):
            quern.text(self.loop([("next", "m")]))

    def test_resize_of_opset_11(self):
        nodes = [helper.make_node("Resize", ["x", "none", "none", "to"], ["y"], mode="nearest", nearest_mode="floor",
                                  coordinate_transformation_mode="tf_half_pixel_for_nn")]
        to = helper.make_tensor("to", TensorProto.INT64, [4], [1, 1, 4, 7])
        none = helper.make_tensor("none", TensorProto.FLOAT, [0], [])
        rows, columns = [0, 1, 3, 4], [0, 0, 1, 1, 1, 2, 2]
        for shape in ([1, 1, 5, 3], [1, 1, "h", "w"]):
            x = floats(1, 1, 5, 3)
            got, = quern.compile(model(nodes, [info("x", shape)], [info("y", None)], [to, none], opset=11))([x])
            np.testing.assert_array_equal(got[0, 0], x[0, 0][rows][:, columns])

    def test_resize_of_many(self):
        """More elements than there are tables for: indices and weights are computed."""
        n, m = 1000, 700_001
        to = helper.make_tensor("to", TensorProto.INT64, [3], [1, 2, m])
        x = floats(1, 2, n)
        at = (np.arange(m) + 0.5) / (m / n) - 0.5
        linear = np.stack([np.interp(at, np.arange(n), row) for row in x[0].astype(np.float64)])
        nearest = x[0][:, np.clip(np.ceil(at - 0.5), 0, n - 1).astype(int)]
        for mode, expected in (("linear", linear), ("nearest", nearest)):
            nodes = [helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode=mode)]
            got, = quern.compile(model(nodes, [info("x", [1, 2, n])], [info("y", None)], [to]))([x])
            np.testing.assert_allclose(got[0], expected, atol=1e-6)

    def test_resize_antialias(self):
        """The filter is as wide as the scale is small: few taps are a sum, many one reduction, along any axis."""
        def kernel(mode, x):
            x = np.abs(x)
            if mode == "linear":
                return np.maximum(0, 1 - x)
            a = -0.75
            return np.where(x <= 1, ((a + 2) * x - (a + 3)) * x * x + 1, np.where(x < 2, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a, 0))

        def weights(mode, n, m):
            """Of m sums of n elements; what lies beyond an edge counts to the element there."""
            w, scale = np.zeros((m, n)), m / n
            for i in range(m):
                at = (i + 0.5) / scale - 0.5
                taps = np.arange(np.floor(at - 2 / scale) - 1, np.ceil(at + 2 / scale) + 2)
                np.add.at(w[i], np.clip(taps, 0, n - 1).astype(int), kernel(mode, (taps - at) * min(scale, 1)))
            return w / w.sum(1, keepdims=True)

        to = lambda *sizes: helper.make_tensor("to", TensorProto.INT64, [4], sizes)
        for mode in ("linear", "cubic"):
            node = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode=mode, antialias=1)
            for n, m in (((50, 37), (23, 40)), ((90, 130), (3, 9)), ((5, 200), (1, 1))):
                h, w = weights(mode, n[0], m[0]), weights(mode, n[1], m[1])
                for axes, batch, dtype in (("nchw", "b", np.float32), ("nhwc", 2, np.float32), ("nhwc", 2, np.float16), ("nchw", 2, np.float64)):
                    sizes = {"n": 2, "c": 3, "h": n[0], "w": n[1]}
                    x = floats(*(sizes[a] for a in axes)).astype(dtype)
                    expected = np.einsum(f"{axes},yh,xw->{axes.replace('h', 'y').replace('w', 'x')}", x.astype(np.float64), h, w)
                    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                    text = model([node], [info("x", [batch, *x.shape[1:]], kind)], [info("y", None, kind)], [to(*expected.shape)])
                    one, two = (quern.compile(text, threads=threads)([x])[0] for threads in (1, 2))
                    np.testing.assert_array_equal(one, two)
                    atol = {np.float32: 2e-6, np.float16: 4e-3, np.float64: 1e-13}[dtype]
                    np.testing.assert_allclose(one, expected, atol=atol, rtol=atol, err_msg=f"{mode} {n} {m} {axes} {dtype}")

    def test_resize_of_integers(self):
        """Their sums are rounded, the halves to even numbers, and end where the dtype does."""
        x = np.array([[0, 255, 0, 255, 255, 0, 9, 10]], np.float32)
        to = helper.make_tensor("to", TensorProto.INT64, [2], [1, 16])
        for dtype in (np.uint8, np.int8, np.int32, np.int64):
            kind, moved = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), (x - 128 * (dtype == np.int8)).astype(dtype)
            for mode in ("linear", "cubic"):
                node = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode=mode)
                for columns in (8, "n"):
                    of = lambda kind: model([node], [info("x", [1, columns], kind)], [info("y", None, kind)], [to])
                    real, = quern.compile(of(TensorProto.FLOAT))([moved.astype(np.float32)])
                    got, = quern.compile(of(kind))([moved])
                    self.assertEqual(got.dtype, dtype)
                    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
                    np.testing.assert_array_equal(got, np.clip(np.round(real.astype(np.float64)), least, most))

    @staticmethod
    def pixel(image, y, x):
        """Between four pixels of [C, H, W], those outside being 0."""
        y0, x0, sum = int(np.floor(y)), int(np.floor(x)), 0
        for j, i in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
            if 0 <= j < image.shape[1] and 0 <= i < image.shape[2]:
                sum = sum + (1 - abs(y - j)) * (1 - abs(x - i)) * image[:, j, i]
        return sum + np.zeros(image.shape[0])

    def test_regions_of_images(self):
        """RoiAlign: each region from the image that it names, at whichever place of the batch."""
        rng = np.random.default_rng(7)
        x = rng.standard_normal((3, 5, 12, 17)).astype(np.float32)
        corner = rng.uniform(0, 5, (9, 2))
        regions = np.concatenate([corner, corner + rng.uniform(2, 6, (9, 2))], 1).astype(np.float32)
        which = rng.integers(0, 3, 9)
        node = helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], output_height=2, output_width=3, sampling_ratio=2,
                                coordinate_transformation_mode="output_half_pixel")
        want = np.zeros((9, 5, 2, 3))
        for r, (left, top, right, bottom) in enumerate(regions):
            for j in range(4):
                for i in range(6):
                    want[r, :, j // 2, i // 2] += self.pixel(x[which[r]], top + (bottom - top) * (j + .5) / 4,
                                                             left + (right - left) * (i + .5) / 6) / 4
        for batch in (3, "n"):
            graph = model([node], [info("x", [batch, 5, 12, 17]), info("r", ["m", 4]), info("i", ["m"], TensorProto.INT64)], [info("y", None)])
            for target in ("cpu", "interp"):
                got, = quern.compile(graph, target=target)([x, regions, which])
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    def test_places_in_wide_images(self):
        """Pixels beyond number 2048 of a row of float16, which has no numbers for all of them."""
        f16 = TensorProto.FLOAT16
        x = np.random.default_rng(9).standard_normal((1, 2, 1, 2100)).astype(np.float16)
        for width in (2050, 2052, 2100):
            image, still = x[..., :width], np.zeros((1, 2, 1, width), np.float16)
            ones = numpy_helper.from_array(np.eye(2, dtype=np.float16).reshape(2, 2, 1, 1), "w")
            graph = model([helper.make_node("DeformConv", ["x", "w", "o"], ["y"])],
                          [info("x", image.shape, f16), info("o", still.shape, f16)], [info("y", None, f16)], [ones], 22)
            regions, which = np.array([[width - 4 - width % 4, 0, width - width % 4, 1]], np.float16), np.zeros(1, np.int64)
            align = model([helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], output_height=1, output_width=4, sampling_ratio=1,
                                            coordinate_transformation_mode="half_pixel")],
                          [info("x", image.shape, f16), info("r", [1, 4], f16), info("i", [1], TensorProto.INT64)],
                          [info("y", None, f16)], [], 22)
            for target in ("cpu", "interp"):
                np.testing.assert_array_equal(quern.compile(graph, target=target)([image, still])[0], image)
                got, = quern.compile(align, target=target)([image, regions, which])
                first = width - 4 - width % 4
                np.testing.assert_array_equal(got, image[..., first:first + 4])

    def test_deformed_groups(self):
        """DeformConv: groups of channels, and of offsets, that are not the same."""
        rng = np.random.default_rng(8)
        for groups, shifts in ((1, 1), (4, 2), (2, 4), (1, 2)):
            x, o, m, w, c = (rng.standard_normal(shape).astype(np.float32) for shape in (
                (2, 8, 6, 7), (2, 18 * shifts, 6, 7), (2, 9 * shifts, 6, 7), (12, 8 // groups, 3, 3), (12,)))
            node = helper.make_node("DeformConv", ["x", "w", "o", "b", "m"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, group=groups,
                                    offset_group=shifts)
            want = np.zeros((2, 12, 6, 7)) + c[:, None, None]
            for n, y, z, k in np.ndindex(2, 6, 7, 9):
                column = np.concatenate([self.pixel(part, y + k // 3 - 1 + o[n, 18 * s + 2 * k, y, z], z + k % 3 - 1 + o[n, 18 * s + 2 * k + 1, y, z])
                                         * m[n, 9 * s + k, y, z] for s, part in enumerate(np.split(x[n], shifts))])
                for g in range(groups):
                    rows = slice(12 // groups * g, 12 // groups * (g + 1))
                    want[n, rows, y, z] += w[rows, :, k // 3, k % 3] @ np.split(column, groups)[g]
            graph = model([node], [info("x", x.shape), info("o", o.shape), info("m", m.shape)], [info("y", None)],
                          [numpy_helper.from_array(w, "w"), numpy_helper.from_array(c, "b")], 19)
            got, = quern.compile(graph)([x, o, m])
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)

    def test_scatter(self):
        """Indices repeat along the axis: updates are made in order, in as many tasks as other axes give."""
        rng = np.random.default_rng(0)
        reductions = {"none": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
        for axis, shape in ((1, (70, 900)), (0, (900, 70)), (1, (9, 300, 21)), (0, (5000,))):
            x, u = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
            index = rng.integers(-shape[axis], shape[axis], shape)
            where = list(np.indices(shape))
            where[axis] = index
            for reduction, function in reductions.items():
                expected = x.copy()
                if function is None:
                    for at in np.ndindex(shape):
                        expected[tuple(w[at] for w in where)] = u[at]
                else:
                    function.at(expected, tuple(where), u)
                for dims in (shape, [f"d{i}" for i in range(len(shape))]):
                    text = model([helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=axis, reduction=reduction)],
                                 [info("x", dims), info("i", dims, TensorProto.INT64), info("u", dims)], [info("y", None)])
                    one, two = (quern.compile(text, threads=threads)([x, index, u])[0] for threads in (1, 2))
                    np.testing.assert_array_equal(one, two)
                    np.testing.assert_array_equal(one, expected, err_msg=f"{axis} {shape} {reduction} {dims}")


class Lengths(unittest.TestCase):
    """Numbers that a model computes and uses as extents."""

    @staticmethod
    def node(op, inputs, output, **attributes):
        return helper.make_node(op, inputs.split(), [output], **attributes)

    @staticmethod
    def ints(name, *values):
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    @staticmethod
    def number(name, value, dtype=TensorProto.INT64):
        return helper.make_tensor(name, dtype, [], [value])

    def check(self, text, calls, want, **options):
        m = quern.compile(text, **options)
        self.assertIsInstance(m, quern.Model)
        slow = quern.compile(text, target="interp", **options)
        for call in calls:
            for got, one in zip(m(list(call)), want(*call), strict=True):
                np.testing.assert_array_equal(got, one)
                self.assertEqual(got.dtype, one.dtype)
            for got, one in zip(slow(list(call)), want(*call), strict=True):
                np.testing.assert_array_equal(got, one)
        return m

    def test_bound_of_a_mask(self):
        """At most as many as the mask has elements; computed twice, and with arithmetic, it is one symbol."""
        nodes = [self.node("Cast", "mask", "i", to=TensorProto.INT64), self.node("ReduceSum", "i", "n", keepdims=0),
                 self.node("Range", "zero n one", "steps"), self.node("ReduceSum", "i axis", "again", keepdims=1),
                 self.node("Expand", "x again", "wide"), self.node("Add", "again one", "more"),
                 self.node("ConstantOfShape", "more", "zeros"), self.node("Cast", "steps", "f", to=TensorProto.FLOAT),
                 self.node("Add", "wide f", "y")]
        text = model(nodes, [info("mask", ["k"], TensorProto.BOOL), info("x", [1])], [info("y", None), info("zeros", None)],
                     [self.number("zero", 0), self.number("one", 1), self.ints("axis", 0)])
        self.assertEqual(quern.text(text).count("= extent "), 1)
        self.assertIn("f32[length + 1]", quern.text(text))
        calls = [(np.array(mask, bool), np.array([2], np.float32)) for mask in ([1, 0, 1], [0, 0], [1] * 40, [])]
        self.check(text, calls, lambda mask, x: (x + np.arange(mask.sum(), dtype=np.float32), np.zeros(mask.sum() + 1, np.float32)))

    def lengths(self):
        nodes = [self.node("ReduceMax", "lengths", "n", keepdims=0), self.node("Range", "zero n one", "y")]
        return model(nodes, [info("lengths", [3], TensorProto.INT64)], [info("y", None, TensorProto.INT64)],
                     [self.number("zero", 0), self.number("one", 1)])

    def test_bound_that_is_given(self):
        text = self.lengths()
        with self.assertRaisesRegex(quern.UnsupportedError, r"nothing bounds it: give .* dimension length \(--dim length=0..1000\)"):
            quern.text(text)
        m = self.check(text, [np.array([v], np.int64) for v in ([1, 4, 2], [0, 0, 0], [10, 1, 1])], lambda v: [np.arange(v.max())],
                       dims={"length": (0, 10)})
        for largest in (11, 2**40, 2**63 - 1):
            with self.assertRaisesRegex(quern.ArgumentError, f"length is {largest} here; the model was compiled for 0 to 10"):
                m(np.array([largest, 0, 0], np.int64))
        with self.assertRaisesRegex(quern.ArgumentError, r"for 0 to 10 \(--dim length=0\.\.N says how far it may go\)"):
            m(np.array([11, 0, 0], np.int64))
        self.assertEqual(m(np.array([-3, -4, -5], np.int64))[0].shape, (0,))
        with self.assertRaisesRegex(quern.ArgumentError, "length is 1 here; the model was compiled for 2 to 10"):
            quern.compile(text, dims={"length": (2, 10)})(np.ones(3, np.int64))
        self.assertIsInstance(quern.compile(text), quern.SpecializedModel)

    def test_sums_of_the_same(self):
        """The largest of one sum, and the sum of a row of what is clamped: one symbol for both; not for another row, nor another sum."""
        largest = [self.node("Clip", "x nothing", "c"), self.node("Cast", "c", "d", to=TensorProto.INT64),
                   self.node("ReduceSum", "d last", "sums", keepdims=0), self.node("ReduceMax", "sums", "n", keepdims=0),
                   self.node("Range", "zero n one", "steps")]
        known = [self.number("zero", 0), self.number("one", 1), self.ints("first", 0), self.ints("last", 1),
                 self.number("nothing", 0, TensorProto.FLOAT)]
        row = [self.node("Squeeze", "d first", "row"), self.node("Max", "row zero", "r"), self.node("ReduceSum", "r first", "m"),
               self.node("ConstantOfShape", "m", "zeros"), self.node("Add", "zeros f", "y")]
        floated = self.node("Cast", "steps", "f", to=TensorProto.FLOAT)
        model_of = lambda nodes, rows: model([*largest, floated, *nodes], [info("x", [rows, "t"])], [info("y", None)], known)
        text = model_of(row, 1)
        self.assertEqual(quern.text(text, dims={"length": (0, 50)}).count("= extent "), 1)
        calls = [(np.array([x], np.float32),) for x in ([1, 3, -2, 2], [0], [-1, -2])]
        self.check(text, calls, lambda x: [np.arange(np.maximum(x, 0).sum(), dtype=np.float32)], dims={"length": (0, 50)})
        other = [self.node("ReduceProd", "d last", "p", keepdims=0), self.node("ConstantOfShape", "p", "zeros"), self.node("Add", "zeros f", "y")]
        for nodes, rows in (([self.node("Gather", "d zero", "taken", axis=0), self.node("ReduceSum", "taken first", "m"),
                              self.node("ConstantOfShape", "m", "zeros"), self.node("Add", "zeros f", "y")], 2), (other, 1)):
            with self.assertRaisesRegex(quern.UnsupportedError, "length_1"):
                quern.text(model_of(nodes, rows), dims={"length": (0, 50)})

    def test_ranges_to_negative_numbers(self):
        """They are empty; where the number is an extent beside, it has one symbol, and must not be negative."""
        first, wide = self.node("Range", "zero n one", "steps"), self.node("Expand", "x n1", "wide")
        largest = [self.node("ReduceMax", "lengths", "n", keepdims=0), self.node("Reshape", "n shape", "n1")]
        both = self.node("Add", "steps wide", "y")
        known = [self.number("zero", 0), self.number("one", 1), self.ints("shape", 1)]
        inputs = [info("lengths", [3], TensorProto.INT64), info("x", [1], TensorProto.INT64)]
        x = np.array([5])
        calls = [(np.array(v), x) for v in ([1, 4, 2], [-1, 0, -2])]
        for nodes in ([first, wide], [wide, first]):
            text = model([*largest, *nodes, both], inputs, [info("y", None, TensorProto.INT64)], known)
            m = self.check(text, calls, lambda v, x: [np.arange(v.max()) + 5], dims={"length": (0, 10)})
            for target in ("cpu", "interp"):
                m = quern.compile(text, target=target, dims={"length": (0, 10)})
                with self.assertRaisesRegex(quern.ArgumentError, "a length must not be negative.*what is required does not hold|length is -3 here"):
                    m([np.array([-3, -5, -9]), x])
        text = model([*largest, first], inputs[:1], [info("steps", None, TensorProto.INT64)], known)
        self.check(text, [(np.array([v, v - 1, v - 2]),) for v in (3, 0, -1, -2**62)], lambda v: [np.arange(v.max())], dims={"length": (0, 10)})

    def test_command(self):
        with tempfile.TemporaryDirectory() as folder:
            path = lambda name: os.path.join(folder, name)
            pathlib.Path(path("m.onnx")).write_bytes(self.lengths())
            np.save(path("v.npy"), np.array([1, 9, 3]))
            compiled = programs.run([str(QUERN), "compile", path("m.onnx"), "--dim", "length=0..8", "-o", path("m.so")])
            self.assertEqual(compiled.returncode, 0, compiled.stderr)
            run = programs.run([str(QUERN), "run", path("m.so"), "-i", path("v.npy")])
            self.assertEqual(run.returncode, 1)
            self.assertIn("length is 9 here; the model was compiled for 0 to 8", run.stderr)
            self.assertIn("int64_t length;", pathlib.Path(path("m.h")).read_text())

    def test_slices(self):
        """Bounds that count from either end, lie outside, or leave nothing."""
        text = model([self.node("Slice", "x from to axes", "y"), self.node("Abs", "y", "z")],
                     [info("x", ["h", "w"]), info("from", [2], TensorProto.INT64), info("to", [2], TensorProto.INT64)],
                     [info("y", None), info("z", None)], [self.ints("axes", 1, 0)])
        x = floats(7, 9)
        bounds = [((0, 0), (9, 7)), ((2, 1), (5, 3)), ((-4, -3), (-1, 100)), ((5, 3), (2, 3)), ((-100, 6), (2**62, -1)), ((100, 0), (101, 1))]
        cut = lambda x, a, b: x[a[1]:b[1], a[0]:b[0]]
        self.check(text, [(x, np.array(a), np.array(b)) for a, b in bounds], lambda x, a, b: (cut(x, a, b), abs(cut(x, a, b))))

    def test_from_the_end(self):
        """x[-n:] begins at the end, not at the start, also where n is only known to be an extent."""
        count = [helper.make_node("Shape", ["w"], ["s"], start=0, end=1), helper.make_node("Neg", ["s"], ["e"])]
        none = numpy_helper.from_array(np.zeros(1, np.int64), "none")
        many = numpy_helper.from_array(np.full(1, 2**63 - 1), "many")
        for bounds, slices in ((["e", "many"], lambda x, n: x[-n:]), (["none", "e"], lambda x, n: x[:-n])):
            for shape in ["m"], ["n"]:
                m = quern.compile(model([*count, helper.make_node("Slice", ["x", *bounds], ["y"])],
                                        [info("x", shape), info("w", ["n"])], [info("y", None)], [none, many]))
                for n, of in ((1, 1), (3, 3), *(((2, 7), (9, 4)) if shape == ["m"] else ((0, 0),))):
                    x = floats(of)
                    np.testing.assert_array_equal(m([x, np.zeros(n, np.float32)])[0], slices(x, n))

    def test_rest(self):
        """What is left behind a count is less where that is more; the caller's memory has to do for both."""
        nodes = [self.node("Cast", "mask", "i", to=TensorProto.INT64), self.node("ReduceSum", "i axis", "n", keepdims=1),
                 self.node("Slice", "x n end axis", "y"), self.node("Relu", "y", "z")]
        text = model(nodes, [info("mask", ["k"], TensorProto.BOOL), info("x", ["k", 3])], [info("y", None), info("z", None)],
                     [self.ints("axis", 0), self.ints("end", 2**63 - 1)])
        self.check(text, [(np.arange(5) < n, floats(5, 3)) for n in (0, 2, 5)],
                   lambda mask, x: (x[mask.sum():], np.maximum(x[mask.sum():], 0)))

    def test_ranges(self):
        for dtype, kind in ((np.int64, TensorProto.INT64), (np.int32, TensorProto.INT32), (np.float32, TensorProto.FLOAT)):
            nodes = [self.node("Add", f"{name} none", name + "2") for name in ("from", "to", "by")]
            text = model(nodes + [self.node("Range", "from2 to2 by2", "y")], [info(name, [], kind) for name in ("from", "to", "by")],
                         [info("y", None, kind)], [self.number("none", 0, kind)])
            calls = [(0, 7, 1), (3, 3, 2), (3, 10, 3), (10, -2, -5), (5, 9, -1), (-3, 4, 7), (1, 2, 100)]
            self.check(text, [tuple(map(dtype, call)) for call in calls], lambda a, b, by: [np.arange(a, b, by, dtype)],
                       dims={"length": (0, 20)})

    def repeats(self, axis, shape, rows="t", merged=None, minus=(-1,)):
        """What PyTorch's exporter writes for repeat_interleave of x [b, t, c] along `axis`."""
        body = [self.node("SequenceAt", "numbers i", "k"), self.node("SequenceAt", "rows i", "row"),
                self.node("Unsqueeze", "row behind", "apart"), self.node("Concat", " ".join(shape), "shape", axis=0),
                self.node("Shape", "shape", "rank"), self.node("ConstantOfShape", "rank", "ones", value=self.ints("one", 1)),
                self.node("Mul", "ones minus", "unknown"), self.node("Equal", "shape unknown", "is"),
                self.node("Where", "is ones shape", "to"), self.node("Expand", "apart to", "wide"),
                self.node("Reshape", "wide merged", "flat"), self.node("SequenceInsert", "before flat", "after"),
                self.node("Cast", "true", "on", to=TensorProto.BOOL)]
        sequence = lambda name: helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
        graph = helper.make_graph(body, "body", [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), sequence("before")],
                                  [info("on", [], TensorProto.BOOL), sequence("after")],
                                  [self.ints("behind", axis + 1), self.ints("minus", *minus), self.ints("one", 1), self.ints("two", 2),
                                   self.ints("three", 3), self.ints("merged", *(merged or [-1 if k == axis else (2, 0, 3)[k] for k in range(3)]))])
        nodes = [self.node("Shape", "n", "trips"), self.node("ConstantOfShape", "trips", "by", value=self.ints("one", 1)),
                 self.node("SplitToSequence", "n by", "numbers", axis=0), self.node("SplitToSequence", "x by", "rows", axis=axis),
                 self.node("SequenceEmpty", "", "none"), self.node("Loop", "trips true none", "pieces", body=graph),
                 self.node("ConcatFromSequence", "pieces", "y", axis=axis)]
        nodes[4].ClearField("input")
        return model(nodes, [info("x", [2, rows, 3]), info("n", [rows], TensorProto.INT64)], [info("y", None)],
                     [helper.make_tensor("true", TensorProto.BOOL, [], [True])])

    def test_repeated_rows(self):
        text = self.repeats(1, ["two", "one", "k", "three"], merged=[2, -1, 3])
        self.assertIn("gather", quern.text(text, dims={"length": (0, 40)}))
        calls = [(floats(2, len(n), 3), np.array(n, np.int64)) for n in ([2, 0, 1], [0], [], [1, 9, 30], [0, 0, 0, 0, 7])]
        m = self.check(text, calls, lambda x, n: [np.repeat(x, n, axis=1)], dims={"length": (0, 40)})
        with self.assertRaisesRegex(quern.ArgumentError, "length is 41 here; the model was compiled for 0 to 40"):
            m([floats(2, 2, 3), np.array([40, 1])])
        np.testing.assert_array_equal(m([floats(2, 2, 3), np.array([-5, 2])])[0], floats(2, 2, 3)[:, [1, 1]])

    def test_other_loops_are_no_repeats(self):
        for shape, merged in ((["two", "k", "one", "three"], [2, -1, 3]), (["two", "one", "k", "three"], [2, 3, -1])):
            with self.assertRaises(quern.Error):
                quern.text(self.repeats(1, shape, merged=merged), dims={"length": (0, 40)})
        for minus in ((-2,), (2,), (-1,) * 8):  # what stands for an extent of 1 is another number, or not a number
            with self.assertRaises(quern.Error):
                quern.text(self.repeats(1, ["two", "one", "k", "three"], merged=[2, -1, 3], minus=minus), dims={"length": (0, 40)})

    def test_numbers_that_overflow(self):
        """Elements that are known of lists that aren't: what is made of giant ones is no extent."""
        giant, most = -2**63, 2**63 - 1
        for op, a, b in (("Div", giant, -1), ("Add", most, most), ("Sub", giant, most), ("Mul", 2**62, 4)):
            nodes = [self.node("Concat", "x a", "xa", axis=0), self.node("Concat", "x b", "xb", axis=0), self.node("Gather", "xa one", "p"),
                     self.node("Gather", "xb one", "q"), self.node(op, "p q", "n"), self.node("Range", "zero n one", "y")]
            text = model(nodes, [info("x", [1], TensorProto.INT64)], [info("y", None, TensorProto.INT64)],
                         [self.ints("a", a), self.ints("b", b), self.number("zero", 0), self.number("one", 1)])
            with self.assertRaisesRegex(quern.UnsupportedError, "nothing bounds it"):
                quern.text(text)

    def test_inside_of_branches(self):
        """What a branch computes is an extent in that branch."""
        sum_of = lambda name: [self.node("ReduceSum", "i", name + "n", keepdims=0), self.node("Range", f"zero {name}n one", name + "r")]
        then = helper.make_graph(sum_of("a") + [self.node("ReduceSum", "ar", "as", keepdims=0)], "then", [], [info("as", None, TensorProto.INT64)])
        other = helper.make_graph(sum_of("b") + [self.node("ReduceMax", "br", "bs", keepdims=0)], "else", [], [info("bs", None, TensorProto.INT64)])
        text = model([self.node("Cast", "mask", "i", to=TensorProto.INT64), self.node("If", "p", "y", then_branch=then, else_branch=other)],
                     [info("mask", ["k"], TensorProto.BOOL), info("p", [], TensorProto.BOOL)], [info("y", None, TensorProto.INT64)],
                     [self.number("zero", 0), self.number("one", 1)])
        mask = np.array([1, 1, 0, 1, 1], bool)
        self.check(text, [(mask, np.bool_(p)) for p in (True, False)], lambda mask, p: [np.int64(6 if p else 3)])


class Branches(unittest.TestCase):
    """Branches whose results have different extents: the extent behind is that of the branch that ran."""

    node, check = staticmethod(Lengths.node), Lengths.check
    MASKS = [np.array(m, bool) for m in ([1, 0, 1, 1, 0], [0, 0], [1], [], [1] * 9)]

    @classmethod
    def setUpClass(cls):
        ints, number = Lengths.ints, Lengths.number
        cls.initializers = [ints("zero", 0), ints("last", 1), ints("none"), ints("three", 4, 5, 6), number("trips", 3),
                            number("start", 0), number("true", 1, TensorProto.BOOL),
                            helper.make_tensor("no_pairs", TensorProto.INT64, [0, 2], [])]

    def branch(self, name, nodes, *outputs):
        return helper.make_graph(nodes, name, [], [info(o, None, TensorProto.INT64) for o in outputs])

    def indices(self, name, mask="m"):
        return [self.node("NonZero", mask, name + "2"), self.node("Squeeze", name + "2 zero", name)]

    def either(self, then, other, *outputs, condition="c"):
        return helper.make_node("If", [condition], outputs or ["y"], then_branch=then, else_branch=other)

    def of(self, name, source):
        return self.branch(name, [self.node("Identity", source, name)], name)

    def check_all(self, nodes, outputs, want, conditions=1, nodes_before=(), **options):
        """want: of the mask and of whether then the first branch is taken, what the outputs are. On the JIT, the interpreter, as an object."""
        inputs = [info("m", ["n"], TensorProto.BOOL), *(info(c, [], TensorProto.BOOL) for c in "cd"[:conditions])]
        text = model([*nodes_before, *nodes], inputs, [info(o, None, TensorProto.INT64) for o in outputs], self.initializers)
        calls = [(m, *(np.array(bool(bits >> i & 1)) for i in range(conditions))) for m in self.MASKS for bits in range(1 << conditions)]
        wanted = lambda *call: [np.asarray(w, np.int64) for w in want(*call)]
        m = self.check(text, calls, wanted, **options)
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "m.onnx").write_bytes(text)
            quern.compile_file(os.path.join(folder, "m.onnx"), os.path.join(folder, "m.so"), **options)
            loaded = quern.load(os.path.join(folder, "m.so"))
            for call in calls:
                for got, one in zip(loaded(list(call)), wanted(*call), strict=True):
                    np.testing.assert_array_equal(got, one)
        return m

    def test_nothing_or_indices(self):
        """As torchvision.ops.batched_nms is traced."""
        indices = lambda mask: np.flatnonzero(mask)
        behind = [self.node("Shape", "y", "s"), self.node("Concat", "y three y", "both", axis=0), self.node("Mul", "y y", "squares"),
                  self.node("ReduceSum", "y", "sum", keepdims=0), self.node("Cast", "m", "numbers", to=TensorProto.INT64),
                  self.node("Gather", "numbers y", "taken")]
        def want(y, mask):
            return y, [len(y)], np.concatenate([y, [4, 5, 6], y]), y * y, y.sum(), mask[y]
        outputs = ["y", "s", "both", "squares", "sum", "taken"]
        nothing = np.zeros(0, np.int64)
        m = self.check_all([self.either(self.of("t", "none"), self.branch("e", self.indices("k"), "k")), *behind], outputs,
                           lambda m, c: want(nothing if c else indices(m), m))
        self.assertEqual(m.outputs[0].shape, ("branch",))
        self.check_all([self.either(self.branch("t", self.indices("k"), "k"), self.of("e", "none")), *behind], outputs,
                       lambda m, c: want(indices(m) if c else nothing, m))

    def test_other_pairs(self):
        numbers = [self.node("Cast", "m", "numbers", to=TensorProto.INT64)]
        opposite = [self.node("Not", "m", "opposite")]
        behind = [self.node("Concat", "y y", "z", axis=0), self.node("Shape", "z", "s")]
        three = np.array([4, 5, 6])
        for then, other, ones in (
                (self.of("t", "three"), self.of("e", "numbers"), lambda m, c: three if c else m),
                (self.of("t", "numbers"), self.of("e", "none"), lambda m, c: m if c else []),
                (self.branch("t", self.indices("k"), "k"), self.of("e", "numbers"), lambda m, c: np.flatnonzero(m) if c else m),
                (self.of("t", "three"), self.branch("e", self.indices("k"), "k"), lambda m, c: three if c else np.flatnonzero(m)),
                (self.branch("t", self.indices("k"), "k"), self.branch("e", self.indices("l", "opposite"), "l"),
                 lambda m, c: np.flatnonzero(m if c else ~m))):
            with self.subTest(then=then.output[0].name, other=other.output[0].name):
                def want(m, c):
                    y = np.asarray(ones(m, c))
                    return y, np.concatenate([y, y]), [2 * len(y)]
                self.check_all([self.either(then, other), *behind], ["y", "z", "s"], want, nodes_before=numbers + opposite)

    def test_branches_in_branches(self):
        inner = self.either(self.of("t2", "none"), self.branch("e2", self.indices("k"), "k"), "i", condition="d")
        def want(m, c, d):
            y = np.array([4, 5, 6]) if c else np.zeros(0) if d else np.flatnonzero(m)
            return y, y * y
        self.check_all([self.either(self.of("t", "three"), self.branch("e", [inner], "i")), self.node("Mul", "y y", "z")], ["y", "z"], want,
                       conditions=2)

    def test_results_of_one_extent(self):
        """They have one symbol: what is computed of both fits."""
        pairs = [*self.indices("k"), self.node("Unsqueeze", "k last", "column"), self.node("Concat", "column column", "pairs", axis=1)]
        empty = [self.node("Identity", "none", "e1"), self.node("Identity", "no_pairs", "e2")]
        def want(m, c):
            y = np.flatnonzero(m)[:0 if c else None]
            return y, np.stack([y, y], 1), 2 * np.stack([y, y], 1)
        m = self.check_all([self.either(self.branch("t", empty, "e1", "e2"), self.branch("e", pairs, "k", "pairs"), "y", "p"),
                            self.node("Unsqueeze", "y last", "u"), self.node("Add", "u p", "sum")], ["y", "p", "sum"], want)
        self.assertEqual([o.shape for o in m.outputs], [("branch",), ("branch", 2), ("branch", 2)])

    def test_in_loops(self):
        """An extent of each trip, and a value that grows by that of a branch."""
        body = lambda nodes, carried, shape: helper.make_graph(
            [*nodes, self.node("Identity", "go", "on")], "body",
            [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("a", shape, TensorProto.INT64)],
            [info("on", [], TensorProto.BOOL), info(carried, shape, TensorProto.INT64)])
        either = self.either(self.of("t", "none"), self.branch("e", self.indices("k"), "k"))
        summed = body([either, self.node("ReduceSum", "y", "s", keepdims=0), self.node("Add", "a s", "b")], "b", [])
        self.check_all([helper.make_node("Loop", ["trips", "true", "start"], ["r"], body=summed)], ["r"],
                       lambda m, c: [0 if c else 3 * np.flatnonzero(m).sum()])
        rows = helper.make_graph([self.node("Cast", "m", "numbers", to=TensorProto.INT64), self.node("Gather", "numbers y", "row"),
                                  self.node("Identity", "go", "on")], "body",
                                 [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)],
                                 [info("on", [], TensorProto.BOOL), info("row", None, TensorProto.INT64)])
        for nodes, indices in (([either], lambda m, c: np.flatnonzero(m)[:0 if c else None]),
                               ([*self.indices("y")], lambda m, c: np.flatnonzero(m))):
            self.check_all([*nodes, helper.make_node("Loop", ["trips", "true"], ["r"], body=rows)], ["r"],
                           lambda m, c: [np.ones((3, len(indices(m, c))))])  # what was found before
        grown = body([self.node("Concat", "a y", "b", axis=0)], "b", [None])
        self.check_all([either, helper.make_node("Loop", ["trips", "true", "none"], ["r"], body=grown)], ["r"],
                       lambda m, c: [np.tile(np.flatnonzero(m), 0 if c else 3)])

    def test_what_is_not_bounded(self):
        """Loops whose values grow, of trips that aren't known, are refused rather than left empty."""
        body = helper.make_graph([*self.indices("k"), self.node("Concat", "a k", "b", axis=0), self.node("Identity", "c", "on")], "body",
                                 [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("a", [None], TensorProto.INT64)],
                                 [info("on", [], TensorProto.BOOL), info("b", [None], TensorProto.INT64)])
        text = model([helper.make_node("Loop", ["trips", "true", "none"], ["r"], body=body)],
                     [info("m", ["n"], TensorProto.BOOL), info("c", [], TensorProto.BOOL)], [info("r", None, TensorProto.INT64)],
                     self.initializers)
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "m.onnx").write_bytes(text)
            with self.assertRaisesRegex(quern.Error, "its values change shape"):
                quern.compile_file(os.path.join(folder, "m.onnx"), os.path.join(folder, "m.so"))


class Ranks(unittest.TestCase):
    """Branches whose results have different ranks, or are sequences: what reads them is in both branches, until it gives one type."""

    node = staticmethod(Lengths.node)
    X = info("x", ["n", 4, "k"])

    def setUp(self):
        ints, number = Lengths.ints, Lengths.number
        self.initializers = [ints("last", -1), ints("zero", 0), ints("one", 1), ints("two", 2), ints("flat", -1), number("trips", 3),
                             number("true", 1, TensorProto.BOOL), number("nothing", 0, TensorProto.FLOAT)]

    def graph(self, op, inputs, output):
        """A branch of one node."""
        return helper.make_graph([self.node(op, inputs, output)], output, [], [helper.make_empty_tensor_value_info(output)])

    def either(self, output, p="p", name="", then=None, other=None):
        """x without its last axis, or x."""
        return helper.make_node("If", [p], [output], then_branch=then or self.graph("Squeeze", "x last", name + "then"),
                                else_branch=other or self.graph("Identity", "x", name + "else"))

    def model(self, nodes, outputs, inputs="x p", x=None, **more):
        known = {"x": x or info("x", ["n", 4, 1]), **{name: info(name, [], TensorProto.BOOL) for name in "pq"}}
        graph = helper.make_graph(nodes, "g", [known[name] for name in inputs.split()], [info(name, None, dtype) for name, dtype in outputs.items()],
                                  self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)], **more).SerializeToString()

    def check(self, text, calls, want):
        """On the JIT, the interpreter, and as an object."""
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "m.onnx").write_bytes(text)
            quern.compile_file(os.path.join(folder, "m.onnx"), os.path.join(folder, "m.so"))
            models = [quern.compile(text), quern.compile(text, target="interp"), quern.load(os.path.join(folder, "m.so"))]
            for m in models:
                self.assertIsInstance(m, quern.Model)
                for call in calls:
                    for got, one in zip(m(list(call)), want(*call), strict=True):
                        self.assertEqual(got.shape, np.shape(one))
                        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5)

    def calls(self, n_flags=1, k=1):
        return [(floats(n, 4, k), *(np.array(bool(bits >> i & 1)) for i in range(n_flags))) for n in (1, 3, 6) for bits in range(1 << n_flags)]

    def test_flattened(self):
        text = self.model([self.either("y"), self.node("Reshape", "y flat", "f"), self.node("Exp", "f", "z")], {"z": TensorProto.FLOAT})
        self.assertEqual(quern.text(text).count("exponential") + quern.text(text).count(" = exp "), 1)  # behind the branches
        self.check(text, self.calls(), lambda x, p: [np.exp(x.ravel())])

    def test_read_later(self):
        """What lies between, the rank itself, and what does not depend on the branches."""
        nodes = [self.either("y"), self.node("Exp", "y", "e"), self.node("Abs", "x", "a"), self.node("ReduceMax", "a", "m", keepdims=0),
                 self.node("Mul", "e m", "em"), self.node("ReduceSum", "em", "s", keepdims=0), self.node("Shape", "y", "shape"),
                 self.node("Size", "shape", "rank")]
        self.check(self.model(nodes, {"s": TensorProto.FLOAT, "rank": TensorProto.INT64}), self.calls(),
                   lambda x, p: [(np.exp(x) * abs(x).max()).sum(), 2 if p else 3])

    def test_extents_that_differ(self):
        """One of one rank, but never of one extent."""
        cut = lambda name, to: self.graph("Slice", f"x zero {to} one", name)
        nodes = [self.either("y", then=cut("a", "two"), other=cut("b", "one")), self.node("Neg", "y", "z")]
        self.check(self.model(nodes, {"z": TensorProto.FLOAT}), self.calls(), lambda x, p: [-x[:, :2 if p else 1]])

    def test_decided_by_a_dimension(self):
        nodes = [self.node("Shape", "x", "shape"), self.node("Gather", "shape two", "k"), self.node("Equal", "k one", "p"), self.either("y"),
                 self.node("Reshape", "y flat", "f"), self.node("Neg", "f", "z")]
        self.check(self.model(nodes, {"z": TensorProto.FLOAT}, "x", self.X), [(floats(n, 4, k),) for n in (1, 3) for k in (1, 2, 5)],
                   lambda x: [-x.ravel()])

    def test_two(self):
        """One behind the other, and both at once."""
        wide = self.graph("Unsqueeze", "x last", "wide")
        sums = [self.node("ReduceSum", "y", "s", keepdims=0), self.node("ReduceMax", "v", "m", keepdims=0), self.node("Mul", "s m", "z")]
        product = [self.node("Flatten", "y", "f", axis=1), self.node("Reshape", "v flat", "g"), self.node("ReduceMax", "g", "m", keepdims=0),
                   self.node("Mul", "f m", "z")]
        for nodes, want in ((sums, lambda x, p, q: [x.sum() * x.max()]), (product, lambda x, p, q: [x[:, :, 0] * x.max()])):
            for other in (None, wide):
                self.check(self.model([self.either("y"), self.either("v", "q", "v", other=other), *nodes], {"z": TensorProto.FLOAT}, "x p q"),
                           self.calls(2), want)

    def test_branches_in_branches(self):
        inner = helper.make_graph([self.either("v", "q", "v")], "inner", [], [info("v", None)])
        text = self.model([self.either("y", then=inner, other=self.graph("Unsqueeze", "x last", "wide")), self.node("Exp", "y", "e"),
                           self.node("Reshape", "e flat", "z")], {"z": TensorProto.FLOAT}, "x p q")
        self.check(text, self.calls(2), lambda x, p, q: [np.exp(x.ravel())])

    def test_out_of_a_function(self):
        """The nodes behind a call, and behind a branch that is known to be taken."""
        body = [helper.make_node("Constant", [], ["last"], value=Lengths.ints("c", -1)), self.either("y")]
        function = helper.make_function("own", "narrow", ["x", "p"], ["y"], body, [helper.make_opsetid("", 18)])
        taken = self.either("y", "true", then=helper.make_graph([self.either("t")], "taken", [], [info("t", None)]))
        behind = [self.node("Exp", "y", "e"), self.node("ReduceSum", "e", "z", keepdims=0)]
        for first in (helper.make_node("narrow", ["x", "p"], ["y"], domain="own"), taken):
            self.check(self.model([first, *behind], {"z": TensorProto.FLOAT}, functions=[function]), self.calls(),
                       lambda x, p: [np.exp(x).sum()])

    def test_in_a_loop(self):
        nodes = [self.either("y"), self.node("ReduceSum", "y", "s", keepdims=0), self.node("Add", "a s", "b"), self.node("Identity", "go", "on")]
        body = helper.make_graph(nodes, "body", [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("a", [])],
                                 [info("on", [], TensorProto.BOOL), info("b", [])])
        text = self.model([helper.make_node("Loop", ["trips", "true", "nothing"], ["z"], body=body)], {"z": TensorProto.FLOAT})
        self.check(text, self.calls(), lambda x, p: [3 * x.sum()])

    def test_sequences(self):
        """Of one tensor, or of two."""
        nodes = [self.either("y", then=self.graph("SequenceConstruct", "x x", "two_of_it"), other=self.graph("SequenceConstruct", "x", "one_of_it")),
                 self.node("ConcatFromSequence", "y", "z", axis=0)]
        self.check(self.model(nodes, {"z": TensorProto.FLOAT}), self.calls(), lambda x, p: [np.concatenate([x, x]) if p else x])

    def test_only_one_branch_fits(self):
        """Where what is behind takes one branch's results alone, a run that chooses the other one ends."""
        self.initializers.append(helper.make_tensor("w", TensorProto.FLOAT, [4, 5], np.arange(20, dtype=np.float32)))
        product = self.node("Gemm", "y w", "z")
        of_a_dimension = [self.node("Shape", "x", "shape"), self.node("Gather", "shape two", "k"), self.node("Equal", "k one", "p"),
                          self.either("y"), product]
        swapped = self.either("y", then=self.graph("Identity", "x", "whole"), other=self.graph("Squeeze", "x last", "narrow"))
        outer = helper.make_node("If", ["q"], ["r"], then_branch=helper.make_graph([self.either("y"), product], "g", [], [info("z", None)]),
                                 else_branch=helper.make_graph([self.node("Squeeze", "x last", "s"), self.node("Gemm", "s w", "o")], "h", [],
                                                               [info("o", None)]))
        w, x = np.arange(20, dtype=np.float32).reshape(4, 5), floats(3, 4, 1)
        for nodes, inputs, shape, good, bad, branch in (
                ([self.either("y"), product], "x p", None, [x, np.array(True)], [x, np.array(False)], "then"),
                ([swapped, product], "x p", None, [x, np.array(False)], [x, np.array(True)], "else"),
                (of_a_dimension, "x", self.X, [x], [floats(3, 4, 2)], None),  # which the squeeze may find out first
                ([outer, self.node("Neg", "r", "minus"), self.node("Neg", "minus", "z2")], "x p q", None, [x, np.array(False), np.array(False)],
                 [x, np.array(False), np.array(True)], "then")):
            text = self.model(nodes, {nodes[-1].output[0]: TensorProto.FLOAT}, inputs, shape)
            self.check(text, [good], lambda x, *flags: [x[:, :, 0] @ w])
            for target in ("cpu", "interp"):
                message = f"If.*only its {branch or 'then'} branch fits what is behind it.*what is required does not hold" + (
                    "" if branch else "|they have to be equal")
                with self.assertRaisesRegex(quern.ArgumentError, message):
                    quern.compile(text, target=target)(bad)
        with tempfile.TemporaryDirectory() as folder:
            path = lambda name: os.path.join(folder, name)
            pathlib.Path(path("m.onnx")).write_bytes(self.model(of_a_dimension, {"z": TensorProto.FLOAT}, "x", self.X))
            self.assertEqual(programs.run([str(QUERN), "compile", path("m.onnx"), "-o", path("m.so")]).returncode, 0)
            for k, status in (1, 0), (2, 1):
                np.save(path("x.npy"), floats(2, 4, k))
                run = programs.run([str(QUERN), "run", path("m.so"), "-i", path("x.npy")])
                self.assertEqual(run.returncode, status, run.stderr)
            self.assertIn("they have to be equal", run.stderr)

    def test_undecided(self):
        """The model's own output: Python compiles per value, the others refuse."""
        text = self.model([self.either("y"), self.node("Neg", "y", "z")], {"z": TensorProto.FLOAT})
        with self.assertRaisesRegex(quern.UnsupportedError, r"output 0 is f32\[n, 4\] in one branch and f32\[n, 4, 1\] in the other"):
            quern.text(text)
        m = quern.compile(text)
        for x, p in self.calls():
            np.testing.assert_array_equal(m([x, p])[0], -x[:, :, 0] if p else -x)

    def test_mistakes(self):
        """Mistakes behind an open choice are the nodes' own; too many at once are refused."""
        text = self.model([self.either("y"), self.node("Missing", "y", "z")], {"z": TensorProto.FLOAT})
        with self.assertRaisesRegex(quern.UnsupportedError, "Missing.*not supported"):
            quern.text(text)
        text = self.model([self.either("y", other=self.graph("Identity", "nowhere", "b")), self.node("Neg", "y", "z")], {"z": TensorProto.FLOAT})
        with self.assertRaisesRegex(quern.ModelError, "nowhere"):
            quern.text(text)
        many = 40
        nodes = [self.either(f"y{i}", name=f"b{i}") for i in range(many)] + [self.node("ReduceSum", f"y{i}", f"s{i}", keepdims=0) for i in range(many)]
        nodes.append(helper.make_node("Sum", [f"s{i}" for i in range(many)], ["z"]))
        with self.assertRaisesRegex(quern.UnsupportedError, "in one branch and .*; both would have more than 20000 nodes"):
            quern.text(self.model(nodes, {"z": TensorProto.FLOAT}))


class Reshapes(unittest.TestCase):
    def test_shift(self):
        """Relative positions, as Transformer-XL and Conformer turn them: padded, read in rows of another length, and cut."""
        ints = lambda name, *values: numpy_helper.from_array(np.array(values, np.int64), name)
        most = 2**63 - 1
        for length in "t", "floordiv":  # an extent of the call's, and one that is computed
            short = helper.make_node("Slice", ["x", "zero", "end", "two", *(["two"] if length != "t" else [])], ["s"])
            nodes = [short, helper.make_node("MatMul", ["s", "w"], ["p"]), helper.make_node("Shape", ["s"], ["b"], start=0, end=2),
                     helper.make_node("Shape", ["s"], ["t"], start=2, end=3), helper.make_node("Mul", ["t", "two"], ["tt"]),
                     helper.make_node("Sub", ["tt", "one"], ["m"]), helper.make_node("Slice", ["p", "zero", "m", "three"], ["q"]),
                     helper.make_node("Pad", ["q", "pads"], ["d"]), helper.make_node("Concat", ["b", "minus", "t"], ["turned"], axis=0),
                     helper.make_node("Reshape", ["d", "turned"], ["r"]), helper.make_node("Slice", ["r", "one", "end", "two"], ["c"]),
                     helper.make_node("Shape", ["q"], ["back"]), helper.make_node("Reshape", ["c", "back"], ["e"]),
                     helper.make_node("Slice", ["e", "zero", "t", "three"], ["f"]), helper.make_node("Tanh", ["f"], ["y"])]
            w = floats(8, 80)
            m = quern.compile(model(nodes, [info("x", ["n", 2, "t", 8])], [info("y", None)],
                                    [numpy_helper.from_array(w, "w"), ints("zero", 0), ints("one", 1), ints("two", 2), ints("three", 3),
                                     ints("end", most), ints("minus", -1), ints("pads", 0, 0, 0, 1, 0, 0, 0, 0)]))
            for n, t in (1, 1), (3, 2), (2, 17), (1, 40):
                x = floats(n, 2, t, 8)
                p = (x if length == "t" else x[:, :, ::2]) @ w
                rows = np.arange(p.shape[2])
                expected = np.tanh(p[:, :, rows[:, None], p.shape[2] - 1 - rows[:, None] + rows])
                np.testing.assert_allclose(m([x])[0], expected, rtol=1e-5, atol=1e-5)

    def test_of_nothing_in_branches(self):
        """That there is nothing is checked, in a branch too, if that is the one that runs."""
        text = b"""dims n: 0..9
graph @main(%p: bool[], %x: f32[n]) -> (y: f32[0]) {
  %y = if %p, %x : f32[0]
    then (%0: f32[n]) {
      %1 = reshape %0 {dims = [0]} : f32[0]
      return %1
    }
    else (%0: f32[n]) {
      %1 = constant [] : f32[0]
      return %1
    }
  return %y
}
"""
        for target in ({}, {"target": "interp"}):
            m = quern.compile(text, **target)
            self.assertEqual(m([np.array(True), floats(0)])[0].shape, (0,))
            self.assertEqual(m([np.array(False), floats(3)])[0].shape, (0,))
            with self.assertRaisesRegex(quern.Error, "reshape of"):
                m([np.array(True), floats(3)])


MOST = 64 << 20


@unittest.skipIf(os.environ.get("QUERN_SANITIZE"), "sanitizers take memory of their own")
class Refusals(unittest.TestCase):
    """What asks for giant results is refused, or is a graph, before anything of that size is made: in MOST bytes."""

    def check(self, op, inputs, constants, status, pattern, opset=20, **attributes):
        initializers = [helper.make_tensor(name, TensorProto.INT64 if np.asarray(v).dtype == np.int64 else TensorProto.FLOAT,
                                           np.shape(v), np.ravel(v)) for name, v in constants.items()]
        names = [name for name in attributes.pop("order", [*inputs, *constants])]
        text = model([helper.make_node(op, names, ["y"], **attributes)], [info(n, s, *t) for n, (s, *t) in inputs.items()],
                     [info("y", None, attributes.get("to", TensorProto.FLOAT))], initializers, opset)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "m.onnx")
            pathlib.Path(path).write_bytes(text)
            process = subprocess.run([str(QUERN), "check", path], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST)),
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(process.returncode, status, process.stdout)
        self.assertRegex(process.stdout, pattern)

    def test_resize(self):
        order = ["x", "", "", "to"]
        for mode in ("nearest", "linear", "cubic"):
            self.check("Resize", {"x": ([3] * 16,)}, {"to": np.full(16, 1_000_003)}, 1, "Resize#0.*larger than any memory", order=order, mode=mode)
            self.check("Resize", {"x": ([1, 1, 3, 3],)}, {"to": np.array([1, 1, 1 << 23, 1 << 23])}, 0, "every node is supported", order=order,
                       mode=mode)
        self.check("Resize", {"x": ([3] * 4 + [5000] * 8,)}, {"to": np.array([3] * 4 + [4500] * 8)}, 1, "larger than any memory", order=order,
                   mode="cubic", antialias=1)
        for extent, to in ((0, 5), (3, (1 << 63) - 1)):
            self.check("Resize", {"x": ([extent, 1],)}, {"to": np.array([to, 5])}, 1, "axis 0 cannot be resized to that", order=order,
                       mode="linear", keep_aspect_ratio_policy="not_smaller")
        self.check("Resize", {"x": ([3 * 10**10],)}, {"s": np.full(1, 1e-10, np.float32)}, 1, "with 8192 taps", order=["x", "", "s"],
                   mode="cubic", antialias=1)
        self.check("Upsample", {"x": ([100] * 8,)}, {"s": np.full(8, 10000.5, np.float32)}, 1, "larger than any memory", opset=9, mode="linear")

    def test_others(self):
        giant = np.array([1 << 40, 1 << 40])
        self.check("Tile", {"x": ([3, 3],)}, {"n": giant}, 1, "Tile#0")
        self.check("Expand", {"x": ([1, 1],)}, {"n": giant}, 1, "Expand#0")
        self.check("ConstantOfShape", {}, {"n": giant}, 1, "ConstantOfShape#0")
        for mode in ("constant", "reflect", "edge", "wrap"):
            self.check("Pad", {"x": ([3, 3],)}, {"n": np.array([1 << 40, 0, 1 << 41, 0])}, 1, "Pad#0", mode=mode)
        self.check("OneHot", {"x": ([1000], TensorProto.INT64)}, {"n": np.int64(1 << 62), "v": np.array([0, 1], np.float32)}, 1, "OneHot#0")
        self.check("RoiAlign", {"x": ([1, 3, 64, 64],), "r": ([5, 4],), "i": ([5], TensorProto.INT64)}, {}, 1, "RoiAlign#0",
                   output_height=1 << 40, output_width=1 << 40, sampling_ratio=64)
        self.check("Range", {}, {"a": np.float32(0), "b": np.float32(1e30), "c": np.float32(1e-20)}, 1, "Range#0")


if __name__ == "__main__":
    unittest.main()
