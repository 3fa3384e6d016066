"""Tree ensembles of ai.onnx.ml against a walk in Python: small and large trees, few rows and many, machine code and interpreter."""

import unittest

import numpy as np

import quern

try:
    import onnx
    from onnx import TensorProto, helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")

ML = "ai.onnx.ml"
MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER"]
INPUT = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE, np.int64: TensorProto.INT64, np.float16: TensorProto.FLOAT16}


class Node:
    """A leaf, until it is split."""

    def __init__(self, rng, targets):
        self.votes = {int(t): float(np.float32(rng.normal())) for t in targets}
        self.children = None

    def split(self, rng, features, modes, targets):
        self.mode, self.feature = str(rng.choice(modes)), int(rng.integers(features))
        self.value, self.missing = float(rng.integers(-3, 4)) / 2, bool(rng.integers(2))
        self.members = sorted({float(m) / 2 for m in rng.integers(-3, 4, 3)})
        self.children = Node(rng, targets), Node(rng, targets)

    def answer(self, x):
        v = x[self.feature]
        holds = {"BRANCH_LEQ": v <= self.value, "BRANCH_LT": v < self.value, "BRANCH_GTE": v >= self.value,
                 "BRANCH_GT": v > self.value, "BRANCH_EQ": v == self.value, "BRANCH_NEQ": v != self.value,
                 "BRANCH_MEMBER": v in self.members}[self.mode]
        return holds or (self.missing and np.isnan(v))

    def leaf(self, x):
        return self if not self.children else self.children[0 if self.answer(x) else 1].leaf(x)


def forest(rng, n, leaves, features, modes, targets, of_one=True, deep=.3):
    trees = []
    for t in range(n):
        own = [t % targets] if of_one else range(targets)
        root = Node(rng, own)
        ends = [root]
        for _ in range(int(rng.integers(leaves[0], leaves[1] + 1)) - 1):
            end = ends.pop(-1 if rng.random() < deep else int(rng.integers(len(ends))))
            end.split(rng, features, modes, own)
            ends += end.children
        trees.append(root)
    return trees


def scores(trees, x, targets, aggregate="SUM"):
    """[rows, targets]; a target that no tree votes for has the sum 0."""
    made = np.zeros((len(x), targets))
    for r, row in enumerate(x):
        votes = [t.leaf(row).votes for t in trees]
        for k in range(targets):
            given = [v[k] for v in votes if k in v]
            made[r, k] = {"SUM": sum, "AVERAGE": lambda g: sum(g) / len(trees), "MIN": min, "MAX": max}[aggregate](given)
    return made


def listed(tree):
    """Nodes from the root on."""
    nodes = [tree]
    for node in nodes:
        nodes += node.children or ()
    return nodes


def model(op, attributes, features, outputs, dtype=np.float32, rows="rows"):
    node = helper.make_node(op, ["x"], [f"y{i}" for i in range(len(outputs))], domain=ML, **attributes)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", INPUT[dtype], [rows, features])],
                              [helper.make_tensor_value_info(f"y{i}", t, None) for i, t in enumerate(outputs)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(ML, 5)]).SerializeToString()


def numbered(trees, prefix, doubles=False):
    """Attributes of TreeEnsembleRegressor and -Classifier. Nodes come in a mixed order, and have odd numbers."""
    a = {f"nodes_{k}": [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
                                    "missing_value_tracks_true")}
    votes = {f"{prefix}_{k}": [] for k in ("treeids", "nodeids", "ids", "weights")}
    for t, tree in enumerate(trees):
        nodes = listed(tree)
        number = {id(node): 7 * i + 3 for i, node in enumerate(nodes)}
        for node in nodes[::-1]:
            leaf = not node.children
            row = (t, number[id(node)], 0, 0., "LEAF", 0, 0, 0) if leaf else \
                (t, number[id(node)], node.feature, node.value, node.mode, number[id(node.children[0])], number[id(node.children[1])],
                 int(node.missing))
            for column, entry in zip(a.values(), row):
                column.append(entry)
            for target, weight in node.votes.items() if leaf else ():
                for column, entry in zip(votes.values(), (t, number[id(node)], target, weight)):
                    column.append(entry)
    a.update(votes)
    for name in ("nodes_values", f"{prefix}_weights") if doubles else ():
        values = a.pop(name)
        a[name + "_as_tensor"] = helper.make_tensor(name, TensorProto.DOUBLE, [len(values)], values)
    return a


def regressor(trees, targets, doubles=False, **more):
    return dict(numbered(trees, "target", doubles), n_targets=targets, **more)


def ensemble(trees, targets, kind=TensorProto.FLOAT, **more):
    """Attributes of TreeEnsemble."""
    a = {f"nodes_{k}": [] for k in ("featureids", "truenodeids", "trueleafs", "falsenodeids", "falseleafs", "missing_value_tracks_true")}
    roots, splits, modes, members, ids, weights = [], [], [], [], [], []
    for tree in trees:
        splitting = [n for n in listed(tree) if n.children]
        ends = [n for n in listed(tree) if not n.children]
        at = {id(n): len(splits) + i for i, n in enumerate(splitting)}
        at.update({id(n): len(ids) + i for i, n in enumerate(ends)})
        roots.append(len(splits))
        if not splitting:  # both ways lead to the leaf
            splits.append(0.)
            modes.append(0)
            for column, entry in zip(a.values(), (0, at[id(tree)], 1, at[id(tree)], 1, 0)):
                column.append(entry)
        for n in splitting:
            yes, no = n.children
            for column, entry in zip(a.values(), (n.feature, at[id(yes)], int(not yes.children), at[id(no)], int(not no.children),
                                                  int(n.missing))):
                column.append(entry)
            splits.append(n.value)
            modes.append(MODES.index(n.mode))
            if n.mode == "BRANCH_MEMBER":
                members += n.members + [np.nan]
        for n in ends:
            (target, weight), = n.votes.items()
            ids.append(target)
            weights.append(weight)
    tensor = lambda name, values: helper.make_tensor(name, kind, [len(values)], values)
    a.update(tree_roots=roots, nodes_splits=tensor("s", splits), nodes_modes=helper.make_tensor("m", TensorProto.UINT8, [len(modes)], modes),
             leaf_targetids=ids, leaf_weights=tensor("w", weights), n_targets=targets, **more)
    if members:
        a["membership_values"] = tensor("v", members)
    return a


def rows(rng, n, features, dtype=np.float32):
    x = rng.integers(-4, 5, (n, features)) / 2
    if dtype != np.int64:
        x[rng.random(x.shape) < .1] = np.nan
        x[rng.random(x.shape) < .03] = np.inf
        x[rng.random(x.shape) < .03] = -np.inf
    return x.astype(dtype)


class Trees(unittest.TestCase):
    def check(self, text, trees, targets, features, aggregate="SUM", dtype=np.float32, out=np.float32, after=lambda y: y, **how):
        compiled = [quern.compile(text, target=t) for t in ("cpu", "interp")]
        rng = np.random.default_rng(features)
        for n in (1, 3, 70):
            x = rows(rng, n, features, dtype)
            want = after(scores(trees, x, targets, aggregate))
            for m in compiled:
                got = m([x])[0]
                self.assertEqual(got.dtype, out)
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

    def test_modes(self):
        """Each mode, missing values either way; trees of one leaf, of a word and of several."""
        rng = np.random.default_rng(0)
        for modes in [[m] for m in MODES[:6]] + [MODES[:6]]:
            for leaves in ((1, 1), (1, 9), (33, 80)):
                trees = forest(rng, 3, leaves, 4, modes, 1)
                self.check(model("TreeEnsembleRegressor", regressor(trees, 1), 4, [TensorProto.FLOAT]), trees, 1, 4)

    def test_large(self):
        """Trees that are walked, alone and beside small ones; deep ones."""
        rng = np.random.default_rng(1)
        for n, leaves, deep in ((2, (600, 700), .1), (2, (120, 150), .9)):
            for more in ([], forest(rng, 5, (2, 30), 5, MODES[:2], 1)):
                trees = forest(rng, n, leaves, 5, MODES[:4], 1, deep=deep) + more
                self.check(model("TreeEnsembleRegressor", regressor(trees, 1), 5, [TensorProto.FLOAT]), trees, 1, 5)

    def test_targets(self):
        """Trees for one target each, and for all."""
        rng = np.random.default_rng(2)
        for of_one in (True, False):
            for leaves in ((2, 40), (400, 500)):
                for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
                    trees = forest(rng, 5, leaves, 3, MODES[:1], 3, of_one)
                    text = model("TreeEnsembleRegressor", regressor(trees, 3, aggregate_function=aggregate), 3, [TensorProto.FLOAT])
                    self.check(text, trees, 3, 3, aggregate)

    def test_many_targets(self):
        rng = np.random.default_rng(12)
        trees = forest(rng, 3, (300, 400), 3, MODES[:1], 20, False)
        self.check(model("TreeEnsembleRegressor", regressor(trees, 20), 3, [TensorProto.FLOAT]), trees, 20, 3)

    def test_types(self):
        rng = np.random.default_rng(3)
        trees = forest(rng, 4, (5, 40), 3, MODES[:6], 1)
        for dtype in (np.float32, np.float64, np.int64):
            for doubles in (False, True):
                text = model("TreeEnsembleRegressor", regressor(trees, 1, doubles), 3, [TensorProto.FLOAT], dtype)
                self.check(text, trees, 1, 3, dtype=dtype)

    def test_double_thresholds(self):
        """Doubles that are one float."""
        tree = Node(np.random.default_rng(0), [0])
        tree.split(np.random.default_rng(0), 1, ["BRANCH_LT"], [0])
        tree.value, tree.missing = 1 + 1e-12, False
        text = model("TreeEnsembleRegressor", regressor([tree], 1, True), 1, [TensorProto.FLOAT], np.float64)
        x = np.array([[1], [1 + 1e-12], [1 + 2e-12]])
        np.testing.assert_allclose(quern.compile(text)([x])[0], scores([tree], x, 1), rtol=1e-6)

    def test_ensemble(self):
        """TreeEnsemble: sets, all data types, aggregates, what comes after."""
        rng = np.random.default_rng(4)
        for dtype, kind in ((np.float32, TensorProto.FLOAT), (np.float64, TensorProto.DOUBLE), (np.float16, TensorProto.FLOAT16)):
            for word, aggregate in enumerate(("AVERAGE", "SUM", "MIN", "MAX")):
                trees = forest(rng, 3, (2, 50), 3, MODES, 2)
                for n in (n for t in trees for n in listed(t)):
                    n.votes = {k: float(np.float16(v)) for k, v in n.votes.items()}
                text = model("TreeEnsemble", ensemble(trees, 2, kind, aggregate_function=word), 3, [kind], dtype)
                self.check(text, trees, 2, 3, aggregate, dtype, dtype,
                           (lambda y: y.astype(np.float16).astype(float)) if dtype == np.float16 else lambda y: y)
        trees = [Node(rng, [0])] + forest(rng, 2, (2, 9), 3, MODES, 1)
        self.check(model("TreeEnsemble", ensemble(trees, 1), 3, [TensorProto.FLOAT]), trees, 1, 3)

    def test_after(self):
        """Base values and post transforms."""
        rng = np.random.default_rng(5)
        trees = forest(rng, 6, (2, 20), 3, MODES[:2], 3)
        base = np.float32([.5, -.25, 2])
        after = {"NONE": lambda y: y, "LOGISTIC": lambda y: 1 / (1 + np.exp(-y)),
                 "SOFTMAX": lambda y: np.exp(y) / np.exp(y).sum(1, keepdims=True)}
        for name, f in after.items():
            text = model("TreeEnsembleRegressor", regressor(trees, 3, base_values=base.tolist(), post_transform=name), 3, [TensorProto.FLOAT])
            self.check(text, trees, 3, 3, after=lambda y: f(y + base))

    def test_classifier(self):
        rng = np.random.default_rng(6)
        x = rows(rng, 50, 4)
        for labels in ([0, 1, 2], [5, -7, 40]):
            trees = forest(rng, 5, (2, 40), 4, MODES[:2], 3, False)
            text = model("TreeEnsembleClassifier", dict(numbered(trees, "class"), classlabels_int64s=labels, post_transform="SOFTMAX"), 4,
                         [TensorProto.INT64, TensorProto.FLOAT])
            got, probabilities = quern.compile(text)([x])
            y = scores(trees, x, 3)
            np.testing.assert_array_equal(got, np.array(labels)[y.argmax(1)])
            np.testing.assert_allclose(probabilities, np.exp(y) / np.exp(y).sum(1, keepdims=True), rtol=2e-5, atol=1e-6)

    def test_two_classes(self):
        """Weights for one of two classes: what is left belongs to the other."""
        rng = np.random.default_rng(7)
        x = rows(rng, 50, 4)
        for positive in (False, True):
            trees = forest(rng, 3, (2, 40), 4, MODES[:2], 1)
            if positive:
                for n in (n for t in trees for n in listed(t)):
                    n.votes = {0: abs(n.votes[0]) / 4}
            y = scores(trees, x, 1)[:, 0]
            for post in ("NONE", "LOGISTIC"):
                text = model("TreeEnsembleClassifier", dict(numbered(trees, "class"), classlabels_int64s=[3, 9], post_transform=post), 4,
                             [TensorProto.INT64, TensorProto.FLOAT])
                got, both = quern.compile(text)([x])
                np.testing.assert_array_equal(got, np.where(y > (.5 if positive else 0), 9, 3))
                want = np.stack([1 - y if positive and post == "NONE" else -y, y], 1)
                want = want if post == "NONE" else 1 / (1 + np.exp(-want))
                np.testing.assert_allclose(both, want, rtol=2e-5, atol=2e-5)

    def test_dimensions(self):
        """Rows that are known, none at all, and features that are not known; every thread count gives the same bits."""
        rng = np.random.default_rng(8)
        trees = forest(rng, 9, (2, 40), 3, MODES[:4], 1)
        for n in (0, 1, 2, 100):
            x = rows(rng, n, 3)
            for shape in ((n, 3), ("rows", 3), ("rows", "features")):
                text = model("TreeEnsembleRegressor", regressor(trees, 1), shape[1], [TensorProto.FLOAT], rows=shape[0])
                got, two = (quern.compile(text, threads=t)([x])[0] for t in (1, 2))
                np.testing.assert_array_equal(got, two)
                np.testing.assert_allclose(got, scores(trees, x, 1).reshape(n, 1), rtol=2e-5, atol=2e-5)
        narrow = quern.compile(model("TreeEnsembleRegressor", regressor(trees, 1), "features", [TensorProto.FLOAT]))
        with self.assertRaises(quern.OutOfRangeError):
            narrow([rows(rng, 20, 1)])

    def test_refused(self):
        rng = np.random.default_rng(9)
        trees = forest(rng, 2, (3, 3), 3, MODES[:1], 1)

        def refused(message, op="TreeEnsembleRegressor", error=quern.ModelError, features=3, **changes):
            attributes = {**(ensemble if op == "TreeEnsemble" else regressor)(trees, 1), **changes}
            attributes = {k: v for k, v in attributes.items() if v is not None}
            with self.assertRaisesRegex(error, message):
                quern.compile(model(op, attributes, features, [TensorProto.FLOAT]))

        good, tensor = regressor(trees, 1), helper.make_tensor
        refused("node 3 of tree 0 leads to node 99, which is not there",
                nodes_truenodeids=[99 if (t, i) == (0, 3) else c for t, i, c in
                                   zip(good["nodes_treeids"], good["nodes_nodeids"], good["nodes_truenodeids"])])
        refused("has 1 elements where there must be 10", nodes_featureids=[0])
        refused("asks for feature 7 of 3", nodes_featureids=[7] * 10)
        refused("asks for feature [12] of 1", nodes_featureids=[1 if m != "LEAF" else 0 for m in good["nodes_modes"]], features=1)
        refused('has the mode "BRANCH_MEMBER"', nodes_modes=["BRANCH_MEMBER"] * 10)
        refused("must have an element for each of 10 nodes", nodes_modes=["LEAF"])
        refused("two nodes 3", nodes_nodeids=[3] * 10)
        refused("nodes that are below no other", nodes_treeids=[0] * 10, nodes_nodeids=list(range(10)), nodes_modes=["LEAF"] * 10)
        refused("for node 4 of tree 0 and target 0 of 1", target_nodeids=[4] * 6)
        refused("target 5 of 1", target_ids=[5] * 6)
        refused("nodes_values is missing", nodes_values=None)
        refused("target_weights is missing", target_weights=None)
        refused('aggregate_function is "MEDIAN"', aggregate_function="MEDIAN")
        refused('post_transform is "TANH"', post_transform="TANH")
        refused("n_targets is 0", n_targets=0)
        refused("below two nodes, or below itself", "TreeEnsemble", nodes_trueleafs=[0] * 4, nodes_truenodeids=[0] * 4)
        refused("leads to leaf 77", "TreeEnsemble", nodes_trueleafs=[1] * 4, nodes_truenodeids=[77] * 4)
        refused("has the mode 9", "TreeEnsemble", nodes_modes=tensor("m", TensorProto.UINT8, [4], [9] * 4))
        refused("too few sets", "TreeEnsemble", nodes_modes=tensor("m", TensorProto.UINT8, [4], [6] * 4))
        refused("begins at node 4", "TreeEnsemble", tree_roots=[4])
        refused("leaf 0 is for target 3 of 1", "TreeEnsemble", leaf_targetids=[3] * 6)
        refused("nodes_splits, a tensor, is missing", "TreeEnsemble", nodes_splits=None)
        refused("leaf_weights is f32\\[1\\]", "TreeEnsemble", leaf_weights=tensor("w", TensorProto.FLOAT, [1], [1.]))
        chain = [Node(rng, [0])]
        for _ in range(1001):
            chain[-1].split(rng, 3, MODES[:1], [0])
            chain.append(chain[-1].children[0])
        trees = chain[:1]
        refused("more than 1000 levels", error=quern.UnsupportedError)
        classes = dict(numbered(forest(rng, 1, (2, 2), 3, MODES[:1], 1), "class"), classlabels_strings=["a", "b"])
        with self.assertRaisesRegex(quern.ModelError, "declared as int64 and computed as string"):
            quern.compile(model("TreeEnsembleClassifier", classes, 3, [TensorProto.INT64, TensorProto.FLOAT]))

    def test_gradient(self):
        """Steps are flat: what trees make of x has the gradient 0."""
        rng = np.random.default_rng(10)
        trees = forest(rng, 3, (2, 9), 3, MODES[:1], 1)
        text = model("TreeEnsembleRegressor", regressor(trees, 1), 3, [TensorProto.FLOAT])
        x, direction = rows(rng, 9, 3), np.ones((9, 3), np.float32)
        y, tangent = quern.jvp(text, ["x"])([x, direction])
        np.testing.assert_allclose(y, scores(trees, x, 1), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(tangent, np.zeros((9, 1)))
        summed = onnx.ModelProto.FromString(text)
        summed.graph.node.append(helper.make_node("ReduceSum", ["y0"], ["loss"], keepdims=0))
        summed.graph.output[0].name = "loss"
        got = quern.grad(summed.SerializeToString(), "loss", ["x"])([x])
        np.testing.assert_array_equal(got[1], np.zeros((9, 3)))


if __name__ == "__main__":
    unittest.main()
