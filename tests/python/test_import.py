"""What imported models leave to the call, the order of their nodes, and what they may not ask for."""

import os
import pathlib
import resource
import subprocess
import tempfile
import unittest

import numpy as np

import programs
import quern
from onnx_models import QUERN, TensorProto, floats, helper, info, model, numpy_helper


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


class Products(unittest.TestCase):
    def check(self, nodes, expected, x, shapes):
        for shape in shapes:
            got, = quern.compile(model(nodes, [info("x", shape)], [info("y", None)]))([x])
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)

    def test_second_factor_is_read_again(self):
        for n in (3, 16, 64, 96, 130):
            x = floats(n, n) / np.float32(n**0.5)
            nodes = [helper.make_node("MatMul", ["x", "x"], ["p"]), helper.make_node("Add", ["p", "x"], ["y"])]
            self.check(nodes, x @ x + x, x, ([n, n], ["n", "n"]))

    def test_attention_to_its_own_queries(self):
        for n, width in ((12, 64), (40, 16), (40, 32), (40, 64), (600, 64)):
            x = floats(2, n, width) / 2
            scores = np.exp(x @ x.transpose(0, 2, 1))
            nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["x", "t"], ["s"]),
                     helper.make_node("Softmax", ["s"], ["w"]), helper.make_node("MatMul", ["w", "x"], ["y"])]
            self.check(nodes, scores / scores.sum(-1, keepdims=True) @ x, x, ([2, n, width], ["b", "n", width]))


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


class Movement(unittest.TestCase):
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
