"""Branches of imported models whose results have other extents or ranks."""

import os
import pathlib
import tempfile
import unittest

import numpy as np

import onnx_models
import programs
import quern
from onnx_models import QUERN, TensorProto, floats, helper, info, ints, model, node, number


class Branches(onnx_models.Checked):
    """Branches whose results have different extents: the extent behind is that of the branch that ran."""

    MASKS = [np.array(m, bool) for m in ([1, 0, 1, 1, 0], [0, 0], [1], [], [1] * 9)]

    @classmethod
    def setUpClass(cls):
        cls.initializers = [ints("zero", 0), ints("last", 1), ints("none"), ints("three", 4, 5, 6), number("trips", 3),
                            number("start", 0), number("true", 1, TensorProto.BOOL),
                            helper.make_tensor("no_pairs", TensorProto.INT64, [0, 2], [])]

    def branch(self, name, nodes, *outputs):
        return helper.make_graph(nodes, name, [], [info(o, None, TensorProto.INT64) for o in outputs])

    def indices(self, name, mask="m"):
        return [node("NonZero", mask, name + "2"), node("Squeeze", name + "2 zero", name)]

    def either(self, then, other, *outputs, condition="c"):
        return helper.make_node("If", [condition], outputs or ["y"], then_branch=then, else_branch=other)

    def of(self, name, source):
        return self.branch(name, [node("Identity", source, name)], name)

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
        behind = [node("Shape", "y", "s"), node("Concat", "y three y", "both", axis=0), node("Mul", "y y", "squares"),
                  node("ReduceSum", "y", "sum", keepdims=0), node("Cast", "m", "numbers", to=TensorProto.INT64),
                  node("Gather", "numbers y", "taken")]
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
        numbers = [node("Cast", "m", "numbers", to=TensorProto.INT64)]
        opposite = [node("Not", "m", "opposite")]
        behind = [node("Concat", "y y", "z", axis=0), node("Shape", "z", "s")]
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
        self.check_all([self.either(self.of("t", "three"), self.branch("e", [inner], "i")), node("Mul", "y y", "z")], ["y", "z"], want,
                       conditions=2)

    def test_results_of_one_extent(self):
        """They have one symbol: what is computed of both fits."""
        pairs = [*self.indices("k"), node("Unsqueeze", "k last", "column"), node("Concat", "column column", "pairs", axis=1)]
        empty = [node("Identity", "none", "e1"), node("Identity", "no_pairs", "e2")]
        def want(m, c):
            y = np.flatnonzero(m)[:0 if c else None]
            return y, np.stack([y, y], 1), 2 * np.stack([y, y], 1)
        m = self.check_all([self.either(self.branch("t", empty, "e1", "e2"), self.branch("e", pairs, "k", "pairs"), "y", "p"),
                            node("Unsqueeze", "y last", "u"), node("Add", "u p", "sum")], ["y", "p", "sum"], want)
        self.assertEqual([o.shape for o in m.outputs], [("branch",), ("branch", 2), ("branch", 2)])

    def test_in_loops(self):
        """An extent of each trip, and a value that grows by that of a branch."""
        body = lambda nodes, carried, shape: helper.make_graph(
            [*nodes, node("Identity", "go", "on")], "body",
            [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("a", shape, TensorProto.INT64)],
            [info("on", [], TensorProto.BOOL), info(carried, shape, TensorProto.INT64)])
        either = self.either(self.of("t", "none"), self.branch("e", self.indices("k"), "k"))
        summed = body([either, node("ReduceSum", "y", "s", keepdims=0), node("Add", "a s", "b")], "b", [])
        self.check_all([helper.make_node("Loop", ["trips", "true", "start"], ["r"], body=summed)], ["r"],
                       lambda m, c: [0 if c else 3 * np.flatnonzero(m).sum()])
        rows = helper.make_graph([node("Cast", "m", "numbers", to=TensorProto.INT64), node("Gather", "numbers y", "row"),
                                  node("Identity", "go", "on")], "body",
                                 [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)],
                                 [info("on", [], TensorProto.BOOL), info("row", None, TensorProto.INT64)])
        for nodes, indices in (([either], lambda m, c: np.flatnonzero(m)[:0 if c else None]),
                               ([*self.indices("y")], lambda m, c: np.flatnonzero(m))):
            self.check_all([*nodes, helper.make_node("Loop", ["trips", "true"], ["r"], body=rows)], ["r"],
                           lambda m, c: [np.ones((3, len(indices(m, c))))])  # what was found before
        grown = body([node("Concat", "a y", "b", axis=0)], "b", [None])
        self.check_all([either, helper.make_node("Loop", ["trips", "true", "none"], ["r"], body=grown)], ["r"],
                       lambda m, c: [np.tile(np.flatnonzero(m), 0 if c else 3)])

    def test_what_is_not_bounded(self):
        """Loops whose values grow, of trips that aren't known, are refused rather than left empty."""
        body = helper.make_graph([*self.indices("k"), node("Concat", "a k", "b", axis=0), node("Identity", "c", "on")], "body",
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

    X = info("x", ["n", 4, "k"])

    def setUp(self):
        self.initializers = [ints("last", -1), ints("zero", 0), ints("one", 1), ints("two", 2), ints("flat", -1), number("trips", 3),
                             number("true", 1, TensorProto.BOOL), number("nothing", 0, TensorProto.FLOAT)]

    def graph(self, op, inputs, output):
        """A branch of one node."""
        return helper.make_graph([node(op, inputs, output)], output, [], [helper.make_empty_tensor_value_info(output)])

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
        text = self.model([self.either("y"), node("Reshape", "y flat", "f"), node("Exp", "f", "z")], {"z": TensorProto.FLOAT})
        self.assertEqual(quern.text(text).count("exponential") + quern.text(text).count(" = exp "), 1)  # behind the branches
        self.check(text, self.calls(), lambda x, p: [np.exp(x.ravel())])

    def test_read_later(self):
        """What lies between, the rank itself, and what does not depend on the branches."""
        nodes = [self.either("y"), node("Exp", "y", "e"), node("Abs", "x", "a"), node("ReduceMax", "a", "m", keepdims=0),
                 node("Mul", "e m", "em"), node("ReduceSum", "em", "s", keepdims=0), node("Shape", "y", "shape"),
                 node("Size", "shape", "rank")]
        self.check(self.model(nodes, {"s": TensorProto.FLOAT, "rank": TensorProto.INT64}), self.calls(),
                   lambda x, p: [(np.exp(x) * abs(x).max()).sum(), 2 if p else 3])

    def test_extents_that_differ(self):
        """One of one rank, but never of one extent."""
        cut = lambda name, to: self.graph("Slice", f"x zero {to} one", name)
        nodes = [self.either("y", then=cut("a", "two"), other=cut("b", "one")), node("Neg", "y", "z")]
        self.check(self.model(nodes, {"z": TensorProto.FLOAT}), self.calls(), lambda x, p: [-x[:, :2 if p else 1]])

    def test_decided_by_a_dimension(self):
        nodes = [node("Shape", "x", "shape"), node("Gather", "shape two", "k"), node("Equal", "k one", "p"), self.either("y"),
                 node("Reshape", "y flat", "f"), node("Neg", "f", "z")]
        self.check(self.model(nodes, {"z": TensorProto.FLOAT}, "x", self.X), [(floats(n, 4, k),) for n in (1, 3) for k in (1, 2, 5)],
                   lambda x: [-x.ravel()])

    def test_two(self):
        """One behind the other, and both at once."""
        wide = self.graph("Unsqueeze", "x last", "wide")
        sums = [node("ReduceSum", "y", "s", keepdims=0), node("ReduceMax", "v", "m", keepdims=0), node("Mul", "s m", "z")]
        product = [node("Flatten", "y", "f", axis=1), node("Reshape", "v flat", "g"), node("ReduceMax", "g", "m", keepdims=0),
                   node("Mul", "f m", "z")]
        for nodes, want in ((sums, lambda x, p, q: [x.sum() * x.max()]), (product, lambda x, p, q: [x[:, :, 0] * x.max()])):
            for other in (None, wide):
                self.check(self.model([self.either("y"), self.either("v", "q", "v", other=other), *nodes], {"z": TensorProto.FLOAT}, "x p q"),
                           self.calls(2), want)

    def test_branches_in_branches(self):
        inner = helper.make_graph([self.either("v", "q", "v")], "inner", [], [info("v", None)])
        text = self.model([self.either("y", then=inner, other=self.graph("Unsqueeze", "x last", "wide")), node("Exp", "y", "e"),
                           node("Reshape", "e flat", "z")], {"z": TensorProto.FLOAT}, "x p q")
        self.check(text, self.calls(2), lambda x, p, q: [np.exp(x.ravel())])

    def test_out_of_a_function(self):
        """The nodes behind a call, and behind a branch that is known to be taken."""
        body = [helper.make_node("Constant", [], ["last"], value=ints("c", -1)), self.either("y")]
        function = helper.make_function("own", "narrow", ["x", "p"], ["y"], body, [helper.make_opsetid("", 18)])
        taken = self.either("y", "true", then=helper.make_graph([self.either("t")], "taken", [], [info("t", None)]))
        behind = [node("Exp", "y", "e"), node("ReduceSum", "e", "z", keepdims=0)]
        for first in (helper.make_node("narrow", ["x", "p"], ["y"], domain="own"), taken):
            self.check(self.model([first, *behind], {"z": TensorProto.FLOAT}, functions=[function]), self.calls(),
                       lambda x, p: [np.exp(x).sum()])

    def test_in_a_loop(self):
        nodes = [self.either("y"), node("ReduceSum", "y", "s", keepdims=0), node("Add", "a s", "b"), node("Identity", "go", "on")]
        body = helper.make_graph(nodes, "body", [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("a", [])],
                                 [info("on", [], TensorProto.BOOL), info("b", [])])
        text = self.model([helper.make_node("Loop", ["trips", "true", "nothing"], ["z"], body=body)], {"z": TensorProto.FLOAT})
        self.check(text, self.calls(), lambda x, p: [3 * x.sum()])

    def test_sequences(self):
        """Of one tensor, or of two."""
        nodes = [self.either("y", then=self.graph("SequenceConstruct", "x x", "two_of_it"), other=self.graph("SequenceConstruct", "x", "one_of_it")),
                 node("ConcatFromSequence", "y", "z", axis=0)]
        self.check(self.model(nodes, {"z": TensorProto.FLOAT}), self.calls(), lambda x, p: [np.concatenate([x, x]) if p else x])

    def test_only_one_branch_fits(self):
        """Where what is behind takes one branch's results alone, a run that chooses the other one ends."""
        self.initializers.append(helper.make_tensor("w", TensorProto.FLOAT, [4, 5], np.arange(20, dtype=np.float32)))
        product = node("Gemm", "y w", "z")
        of_a_dimension = [node("Shape", "x", "shape"), node("Gather", "shape two", "k"), node("Equal", "k one", "p"),
                          self.either("y"), product]
        swapped = self.either("y", then=self.graph("Identity", "x", "whole"), other=self.graph("Squeeze", "x last", "narrow"))
        outer = helper.make_node("If", ["q"], ["r"], then_branch=helper.make_graph([self.either("y"), product], "g", [], [info("z", None)]),
                                 else_branch=helper.make_graph([node("Squeeze", "x last", "s"), node("Gemm", "s w", "o")], "h", [],
                                                               [info("o", None)]))
        w, x = np.arange(20, dtype=np.float32).reshape(4, 5), floats(3, 4, 1)
        for nodes, inputs, shape, good, bad, branch in (
                ([self.either("y"), product], "x p", None, [x, np.array(True)], [x, np.array(False)], "then"),
                ([swapped, product], "x p", None, [x, np.array(False)], [x, np.array(True)], "else"),
                (of_a_dimension, "x", self.X, [x], [floats(3, 4, 2)], None),  # which the squeeze may find out first
                ([outer, node("Neg", "r", "minus"), node("Neg", "minus", "z2")], "x p q", None, [x, np.array(False), np.array(False)],
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
        text = self.model([self.either("y"), node("Neg", "y", "z")], {"z": TensorProto.FLOAT})
        with self.assertRaisesRegex(quern.UnsupportedError, r"output 0 is f32\[n, 4\] in one branch and f32\[n, 4, 1\] in the other"):
            quern.text(text)
        m = quern.compile(text)
        for x, p in self.calls():
            np.testing.assert_array_equal(m([x, p])[0], -x[:, :, 0] if p else -x)

    def test_mistakes(self):
        """Mistakes behind an open choice are the nodes' own; too many at once are refused."""
        text = self.model([self.either("y"), node("Missing", "y", "z")], {"z": TensorProto.FLOAT})
        with self.assertRaisesRegex(quern.UnsupportedError, "Missing.*not supported"):
            quern.text(text)
        text = self.model([self.either("y", other=self.graph("Identity", "nowhere", "b")), node("Neg", "y", "z")], {"z": TensorProto.FLOAT})
        with self.assertRaisesRegex(quern.ModelError, "nowhere"):
            quern.text(text)
        many = 40
        nodes = [self.either(f"y{i}", name=f"b{i}") for i in range(many)] + [node("ReduceSum", f"y{i}", f"s{i}", keepdims=0) for i in range(many)]
        nodes.append(helper.make_node("Sum", [f"s{i}" for i in range(many)], ["z"]))
        with self.assertRaisesRegex(quern.UnsupportedError, "in one branch and .*; both would have more than 20000 nodes"):
            quern.text(self.model(nodes, {"z": TensorProto.FLOAT}))


if __name__ == "__main__":
    unittest.main()
