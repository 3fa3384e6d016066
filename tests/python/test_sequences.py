"""Sequences and optionals of imported models, as the call gives them."""

import os
import tempfile
import unittest

import numpy as np

import programs
import quern
from onnx_models import QUERN, TensorProto, floats, helper, info, model, sequence


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


if __name__ == "__main__":
    unittest.main()
