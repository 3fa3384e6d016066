"""Lengths that imported models compute: of loops that count, and of what a run decides."""

import os
import pathlib
import tempfile
import unittest

import numpy as np
import onnx

import onnx_models
import programs
import quern
from onnx_models import QUERN, TensorProto, floats, helper, info, ints, model, node, number, numpy_helper, sequence


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


class GrowingLoops(onnx_models.Checked):
    """Values that a trip appends a piece to, as PyTorch's exporter writes masks and keypoints of each object."""

    def text(self, nodes, carried, extra=(), go="on", starts=(), trips="n"):
        """Over rows of x: the body has row i as `row`. carried: (name, what follows it, start) triples."""
        body = [node("Gather", "x i", "row"), node("Identity", "yes" if go == "on" else go, "ok"), *nodes]
        inputs = [info("i", [], TensorProto.INT64), info("g", [], TensorProto.BOOL), *(info(c, None) for c, _, _ in carried)]
        outputs = [info("ok", [], TensorProto.BOOL), *(info(c, None) for _, c, _ in carried), *(info(e, None) for e in extra)]
        loop = helper.make_node("Loop", [trips, "yes", *(s for _, _, s in carried)], [f"y{k}" for k in range(len(carried) + len(extra))],
                                body=helper.make_graph(body, "body", inputs, outputs))
        outer = [node("Shape", "x", "shape", end=1), node("Squeeze", "shape", "n"), loop]
        constants = [helper.make_tensor("yes", TensorProto.BOOL, [], [True]), ints("zero", 0), ints("one", 1), ints("last", -1),
                     number("limit", 3, TensorProto.FLOAT), helper.make_tensor("nothing", TensorProto.FLOAT, [], [0]),
                     *(numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in starts)]
        return model(outer, [info("x", ["rows", 3])], [info(f"y{k}", None) for k in range(len(carried) + len(extra))], constants)

    ROWS = [(np.arange(3 * n, dtype=np.float32).reshape(n, 3),) for n in (4, 1, 0)]

    def test_axes(self):
        for axis, start in ((0, (0, 3)), (0, (2, 3)), (1, (3, 0)), (-1, (3, 2))):
            for convert in [], [node("Cast", "c", "c1", to=TensorProto.FLOAT)]:
                nodes = [node("Unsqueeze", "row last" if axis else "row zero", "piece"), *convert,
                         node("Concat", "c1 piece" if convert else "c piece", "c2", axis=axis)]
                self.check(self.text(nodes, [("c", "c2", "s")], starts=[("s", start)]), self.ROWS,
                           lambda x: [np.concatenate([np.ones(start, np.float32), x.T if axis else x], axis)])

    def test_beside_others(self):
        """Two that grow around one that doesn't, and a stacked output."""
        nodes = [node("Unsqueeze", "row zero", "piece"), node("Concat", "a piece", "a2", axis=0), node("Add", "b row", "b2"),
                 node("Identity", "b2", "seen"), node("Concat", "piece piece", "two", axis=0), node("Concat", "c two", "c2", axis=0)]
        carried = [("a", "a2", "none"), ("b", "b2", "start"), ("c", "c2", "some")]
        self.check(self.text(nodes, carried, ["seen"], starts=[("none", (0, 3)), ("start", (3,)), ("some", (1, 3))]), self.ROWS,
                   lambda x: [x, 1 + x.sum(0), np.concatenate([np.ones((1, 3), np.float32), x.repeat(2, 0)]), 1 + x.cumsum(0)])

    def test_until(self):
        """It ends behind the first row whose sum is not below 3."""
        nodes = [node("ReduceSum", "row", "sum", keepdims=0), node("Less", "sum limit", "less"), node("Identity", "less", "ok"),
                 node("Unsqueeze", "row zero", "piece"), node("Concat", "c piece", "c2", axis=0)]
        text = self.text(nodes, [("c", "c2", "s")], go="yes", starts=[("s", (0, 3))])
        m = onnx.ModelProto.FromString(text)
        body = next(n for n in m.graph.node if n.op_type == "Loop").attribute[0].g
        del body.node[1]  # the condition that stays true
        calls = [(np.array(rows, np.float32),) for rows in ([[0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], [[9, 0, 0], [0, 0, 0]], [[0, 0, 0]])]
        self.check(m.SerializeToString(), calls, lambda x: [x[:next((i + 1 for i, r in enumerate(x.sum(1)) if r >= 3), len(x))]])

    def test_extents_of_trips(self):
        """Each row's first elements, as many as one of them says, and zeros; the last one has one name however often the body is read."""
        nodes = [node("Gather", "row last", "count"), node("Cast", "count", "k", to=TensorProto.INT64), node("Slice", "row zero k", "head"),
                 node("Shape", "row", "all"), node("Sub", "all k", "rest"), node("Expand", "nothing rest", "tail"),
                 node("Concat", "head tail", "whole", axis=0), node("Unsqueeze", "whole zero", "piece"), node("Concat", "c piece", "c2", axis=0)]
        text = self.text(nodes, [("c", "c2", "s")], starts=[("s", (0, 3))])
        calls = [(np.array(rows, np.float32),) for rows in ([[5, 6, 1], [7, 8, 0], [3, 4, 3], [1, 2, 2]], [[4, 4, 2]], np.zeros((0, 3)))]
        want = lambda x: [np.where(np.arange(3) < x[:, 2:], x, 0).astype(np.float32)]
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "m.onnx").write_bytes(text)
            with self.assertRaisesRegex(quern.Error, r"--dim length_2=0\.\.1000"):
                quern.compile_file(os.path.join(folder, "m.onnx"), os.path.join(folder, "m.so"))
        self.check(text, calls, want, dims={"length_2": (0, 3)})

    def test_read_again(self):
        """A value whose sum goes on is no list of pieces."""
        nodes = [node("Unsqueeze", "row zero", "piece"), node("ReduceSum", "c zero", "sum", keepdims=1), node("Add", "sum piece", "next"),
                 node("Concat", "c next", "c2", axis=0)]
        text, x = self.text(nodes, [("c", "c2", "s")], starts=[("s", (0, 3))]), self.ROWS[0][0]
        want = np.zeros((0, 3), np.float32)
        for row in x:
            want = np.concatenate([want, want.sum(0, keepdims=True) + row])
        np.testing.assert_array_equal(quern.compile(text)([x])[0], want)  # spelled out for 4 rows
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "m.onnx").write_bytes(text)
            with self.assertRaisesRegex(quern.Error, "carried value 0 starts as f32.0, 3. and continues as f32.1, 3"):
                quern.compile_file(os.path.join(folder, "m.onnx"), os.path.join(folder, "m.so"))


class Lengths(onnx_models.Checked):
    """Numbers that a model computes and uses as extents."""

    def test_bound_of_a_mask(self):
        """At most as many as the mask has elements; computed twice, and with arithmetic, it is one symbol."""
        nodes = [node("Cast", "mask", "i", to=TensorProto.INT64), node("ReduceSum", "i", "n", keepdims=0),
                 node("Range", "zero n one", "steps"), node("ReduceSum", "i axis", "again", keepdims=1),
                 node("Expand", "x again", "wide"), node("Add", "again one", "more"),
                 node("ConstantOfShape", "more", "zeros"), node("Cast", "steps", "f", to=TensorProto.FLOAT),
                 node("Add", "wide f", "y")]
        text = model(nodes, [info("mask", ["k"], TensorProto.BOOL), info("x", [1])], [info("y", None), info("zeros", None)],
                     [number("zero", 0), number("one", 1), ints("axis", 0)])
        self.assertEqual(quern.text(text).count("= extent "), 1)
        self.assertIn("f32[length + 1]", quern.text(text))
        calls = [(np.array(mask, bool), np.array([2], np.float32)) for mask in ([1, 0, 1], [0, 0], [1] * 40, [])]
        self.check(text, calls, lambda mask, x: (x + np.arange(mask.sum(), dtype=np.float32), np.zeros(mask.sum() + 1, np.float32)))

    def lengths(self):
        nodes = [node("ReduceMax", "lengths", "n", keepdims=0), node("Range", "zero n one", "y")]
        return model(nodes, [info("lengths", [3], TensorProto.INT64)], [info("y", None, TensorProto.INT64)],
                     [number("zero", 0), number("one", 1)])

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
        largest = [node("Clip", "x nothing", "c"), node("Cast", "c", "d", to=TensorProto.INT64),
                   node("ReduceSum", "d last", "sums", keepdims=0), node("ReduceMax", "sums", "n", keepdims=0),
                   node("Range", "zero n one", "steps")]
        known = [number("zero", 0), number("one", 1), ints("first", 0), ints("last", 1),
                 number("nothing", 0, TensorProto.FLOAT)]
        row = [node("Squeeze", "d first", "row"), node("Max", "row zero", "r"), node("ReduceSum", "r first", "m"),
               node("ConstantOfShape", "m", "zeros"), node("Add", "zeros f", "y")]
        floated = node("Cast", "steps", "f", to=TensorProto.FLOAT)
        model_of = lambda nodes, rows: model([*largest, floated, *nodes], [info("x", [rows, "t"])], [info("y", None)], known)
        text = model_of(row, 1)
        self.assertEqual(quern.text(text, dims={"length": (0, 50)}).count("= extent "), 1)
        calls = [(np.array([x], np.float32),) for x in ([1, 3, -2, 2], [0], [-1, -2])]
        self.check(text, calls, lambda x: [np.arange(np.maximum(x, 0).sum(), dtype=np.float32)], dims={"length": (0, 50)})
        other = [node("ReduceProd", "d last", "p", keepdims=0), node("ConstantOfShape", "p", "zeros"), node("Add", "zeros f", "y")]
        for nodes, rows in (([node("Gather", "d zero", "taken", axis=0), node("ReduceSum", "taken first", "m"),
                              node("ConstantOfShape", "m", "zeros"), node("Add", "zeros f", "y")], 2), (other, 1)):
            with self.assertRaisesRegex(quern.UnsupportedError, "length_1"):
                quern.text(model_of(nodes, rows), dims={"length": (0, 50)})

    def test_ranges_to_negative_numbers(self):
        """They are empty; where the number is an extent beside, it has one symbol, and must not be negative."""
        first, wide = node("Range", "zero n one", "steps"), node("Expand", "x n1", "wide")
        largest = [node("ReduceMax", "lengths", "n", keepdims=0), node("Reshape", "n shape", "n1")]
        both = node("Add", "steps wide", "y")
        known = [number("zero", 0), number("one", 1), ints("shape", 1)]
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
        text = model([node("Slice", "x from to axes", "y"), node("Abs", "y", "z")],
                     [info("x", ["h", "w"]), info("from", [2], TensorProto.INT64), info("to", [2], TensorProto.INT64)],
                     [info("y", None), info("z", None)], [ints("axes", 1, 0)])
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
        nodes = [node("Cast", "mask", "i", to=TensorProto.INT64), node("ReduceSum", "i axis", "n", keepdims=1),
                 node("Slice", "x n end axis", "y"), node("Relu", "y", "z")]
        text = model(nodes, [info("mask", ["k"], TensorProto.BOOL), info("x", ["k", 3])], [info("y", None), info("z", None)],
                     [ints("axis", 0), ints("end", 2**63 - 1)])
        self.check(text, [(np.arange(5) < n, floats(5, 3)) for n in (0, 2, 5)],
                   lambda mask, x: (x[mask.sum():], np.maximum(x[mask.sum():], 0)))

    def test_ranges(self):
        for dtype, kind in ((np.int64, TensorProto.INT64), (np.int32, TensorProto.INT32), (np.float32, TensorProto.FLOAT)):
            nodes = [node("Add", f"{name} none", name + "2") for name in ("from", "to", "by")]
            text = model(nodes + [node("Range", "from2 to2 by2", "y")], [info(name, [], kind) for name in ("from", "to", "by")],
                         [info("y", None, kind)], [number("none", 0, kind)])
            calls = [(0, 7, 1), (3, 3, 2), (3, 10, 3), (10, -2, -5), (5, 9, -1), (-3, 4, 7), (1, 2, 100)]
            self.check(text, [tuple(map(dtype, call)) for call in calls], lambda a, b, by: [np.arange(a, b, by, dtype)],
                       dims={"length": (0, 20)})

    def repeats(self, axis, shape, rows="t", merged=None, minus=(-1,)):
        """What PyTorch's exporter writes for repeat_interleave of x [b, t, c] along `axis`."""
        body = [node("SequenceAt", "numbers i", "k"), node("SequenceAt", "rows i", "row"),
                node("Unsqueeze", "row behind", "apart"), node("Concat", " ".join(shape), "shape", axis=0),
                node("Shape", "shape", "rank"), node("ConstantOfShape", "rank", "ones", value=ints("one", 1)),
                node("Mul", "ones minus", "unknown"), node("Equal", "shape unknown", "is"),
                node("Where", "is ones shape", "to"), node("Expand", "apart to", "wide"),
                node("Reshape", "wide merged", "flat"), node("SequenceInsert", "before flat", "after"),
                node("Cast", "true", "on", to=TensorProto.BOOL)]
        sequence = lambda name: helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
        graph = helper.make_graph(body, "body", [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), sequence("before")],
                                  [info("on", [], TensorProto.BOOL), sequence("after")],
                                  [ints("behind", axis + 1), ints("minus", *minus), ints("one", 1), ints("two", 2),
                                   ints("three", 3), ints("merged", *(merged or [-1 if k == axis else (2, 0, 3)[k] for k in range(3)]))])
        nodes = [node("Shape", "n", "trips"), node("ConstantOfShape", "trips", "by", value=ints("one", 1)),
                 node("SplitToSequence", "n by", "numbers", axis=0), node("SplitToSequence", "x by", "rows", axis=axis),
                 node("SequenceEmpty", "", "none"), node("Loop", "trips true none", "pieces", body=graph),
                 node("ConcatFromSequence", "pieces", "y", axis=axis)]
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
            nodes = [node("Concat", "x a", "xa", axis=0), node("Concat", "x b", "xb", axis=0), node("Gather", "xa one", "p"),
                     node("Gather", "xb one", "q"), node(op, "p q", "n"), node("Range", "zero n one", "y")]
            text = model(nodes, [info("x", [1], TensorProto.INT64)], [info("y", None, TensorProto.INT64)],
                         [ints("a", a), ints("b", b), number("zero", 0), number("one", 1)])
            with self.assertRaisesRegex(quern.UnsupportedError, "nothing bounds it"):
                quern.text(text)

    def test_inside_of_branches(self):
        """What a branch computes is an extent in that branch."""
        sum_of = lambda name: [node("ReduceSum", "i", name + "n", keepdims=0), node("Range", f"zero {name}n one", name + "r")]
        then = helper.make_graph(sum_of("a") + [node("ReduceSum", "ar", "as", keepdims=0)], "then", [], [info("as", None, TensorProto.INT64)])
        other = helper.make_graph(sum_of("b") + [node("ReduceMax", "br", "bs", keepdims=0)], "else", [], [info("bs", None, TensorProto.INT64)])
        text = model([node("Cast", "mask", "i", to=TensorProto.INT64), node("If", "p", "y", then_branch=then, else_branch=other)],
                     [info("mask", ["k"], TensorProto.BOOL), info("p", [], TensorProto.BOOL)], [info("y", None, TensorProto.INT64)],
                     [number("zero", 0), number("one", 1)])
        mask = np.array([1, 1, 0, 1, 1], bool)
        self.check(text, [(mask, np.bool_(p)) for p in (True, False)], lambda mask, p: [np.int64(6 if p else 3)])


if __name__ == "__main__":
    unittest.main()
