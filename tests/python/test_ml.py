"""Operators of ai.onnx.ml on numbers, each against its formula in NumPy, compiled and interpreted."""

import json
import os
import tempfile
import unittest

import numpy as np

import programs
import quern

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")

ML = "ai.onnx.ml"
QUERN = os.path.join(os.environ.get("QUERN_BUILD_DIR", "build/release"), "quern")


def kind_of(x):
    return TensorProto.STRING if x.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(x.dtype)


def model(op, inputs, n_outputs, attributes, dynamic):
    node = helper.make_node(op, [f"x{i}" for i in range(len(inputs))], [f"y{i}" for i in range(n_outputs)], domain=ML, **attributes)
    shape = lambda i, x: [f"n{i}" if k == 0 and dynamic else d for k, d in enumerate(x.shape)]
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(f"x{i}", kind_of(x), shape(i, x)) for i, x in enumerate(inputs)],
        [helper.make_empty_tensor_value_info(f"y{i}") for i in range(n_outputs)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(ML, 4)]).SerializeToString()


def run(op, *inputs, n_outputs=1, dynamic=True, **attributes):
    """Outputs of machine code, after the interpreter's were the same."""
    text = model(op, inputs, n_outputs, attributes, dynamic)
    got, want = ([np.array(y) for y in quern.compile(text, target=t)(list(inputs))] for t in ("cpu", "interp"))
    for g, w in zip(got, want):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
    return got if n_outputs > 1 else got[0]


def logistic(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Preprocessing(unittest.TestCase):
    def test_imputer(self):
        x = np.float32([[1, np.nan, 3], [np.nan, 0, -1]])
        np.testing.assert_array_equal(run("Imputer", x, imputed_value_floats=[7.], replaced_value_float=np.nan), [[1, 7, 3], [7, 0, -1]])
        np.testing.assert_array_equal(run("Imputer", x, imputed_value_floats=[7., 8, 9], replaced_value_float=np.nan), [[1, 8, 3], [7, 0, -1]])
        np.testing.assert_array_equal(run("Imputer", x, imputed_value_floats=[7.]), [[1, np.nan, 3], [np.nan, 7, -1]])
        x = np.array([[1, -2], [3, -2]])
        np.testing.assert_array_equal(run("Imputer", x, imputed_value_int64s=[5, 1 << 40], replaced_value_int64=-2), [[1, 1 << 40], [3, 1 << 40]])

    def test_feature_vectorizer(self):
        x, y = np.float32([[1, 2, 3], [4, 5, 6]]), np.array([[7], [8]])
        np.testing.assert_array_equal(run("FeatureVectorizer", x, y, dynamic=False, inputdimensions=[2, 3]),
                                      [[1, 2, 7, 0, 0], [4, 5, 8, 0, 0]])
        np.testing.assert_array_equal(run("FeatureVectorizer", x, inputdimensions=[3]), x)
        np.testing.assert_array_equal(run("FeatureVectorizer", x[0], inputdimensions=[3]), x[:1])  # of a number known when it is called

    def test_one_hot_encoder(self):
        cats = [3, -1, 1 << 40]
        for dtype in (np.int64, np.float64):
            x = np.array([[3, 1 << 40], [5, -1]], dtype)
            np.testing.assert_array_equal(run("OneHotEncoder", x, cats_int64s=cats), [[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]])
        np.testing.assert_array_equal(run("OneHotEncoder", np.array([-1, 3]), cats_int64s=cats, zeros=0), [[0, 1, 0], [1, 0, 0]])
        text = model("OneHotEncoder", [np.array([5])], 1, dict(cats_int64s=cats, zeros=0), True)
        with self.assertRaises(quern.OutOfRangeError):
            quern.compile(text)([np.array([5])])

    def test_label_encoder(self):
        x = np.array([3, 9, 4, -7])
        np.testing.assert_array_equal(run("LabelEncoder", x, keys_int64s=[3, 4, 3], values_floats=[.5, 2, 7], default_float=-1.5), [.5, -1.5, 2, -1.5])
        np.testing.assert_array_equal(run("LabelEncoder", x, keys_int64s=[3, 4], values_int64s=[1 << 40, 2]), [1 << 40, -1, 2, -1])
        x = np.float32([[.5, np.nan], [2, 0]])
        np.testing.assert_array_equal(run("LabelEncoder", x, keys_floats=[.5, np.nan, 0], values_int64s=[10, 20, 30]), [[10, 20], [-1, 30]])
        tensor = lambda a: numpy_helper.from_array(np.array(a))
        got = run("LabelEncoder", np.array([1, 2, 3], np.int32), keys_tensor=tensor(np.int32([3, 1])), values_tensor=tensor(np.int16([5, 6])),
                  default_tensor=tensor(np.int16([9])))
        np.testing.assert_array_equal(got, np.int16([6, 9, 5]))
        self.assertEqual(got.dtype, np.int16)


    def test_zip_map(self):
        """The scores that it would take apart."""
        x = np.float32([[.25, .75], [.5, .5]])
        np.testing.assert_array_equal(run("ZipMap", x, classlabels_int64s=[3, 4]), x)


class Linear(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(0)
        self.x = self.rng.normal(size=(9, 4)).astype(np.float32)

    def test_regressor(self):
        w, b = self.rng.normal(size=(3, 4)).astype(np.float32), np.float32([.5, 0, -1])
        for post, f in (("NONE", lambda y: y), ("LOGISTIC", logistic), ("SOFTMAX", softmax)):
            got = run("LinearRegressor", self.x, coefficients=w.ravel(), intercepts=b, targets=3, post_transform=post)
            np.testing.assert_allclose(got, f(self.x @ w.T + b), rtol=1e-4, atol=1e-5)
        got = run("LinearRegressor", self.x.astype(np.float64), coefficients=w[0])
        np.testing.assert_allclose(got, self.x @ w[:1].T, rtol=1e-4, atol=1e-5)

    def test_classifier(self):
        w, b = self.rng.normal(size=(3, 4)).astype(np.float32), np.float32([.5, 0, -1])
        y = self.x @ w.T + b
        for post, f in (("NONE", lambda y: y), ("LOGISTIC", logistic), ("SOFTMAX", softmax)):
            labels, scores = run("LinearClassifier", self.x, n_outputs=2, coefficients=w.ravel(), intercepts=b, classlabels_ints=[7, -2, 30],
                                 post_transform=post)
            np.testing.assert_array_equal(labels, np.array([7, -2, 30])[y.argmax(1)])
            np.testing.assert_allclose(scores, f(y), rtol=1e-4, atol=1e-5)

    def test_two_classes(self):
        w = self.rng.normal(size=4).astype(np.float32)
        y = self.x @ w + np.float32(.25)
        for post, want in (("NONE", [1 - y, y]), ("LOGISTIC", [logistic(-y), logistic(y)])):
            labels, scores = run("LinearClassifier", self.x, n_outputs=2, coefficients=w, intercepts=[.25], classlabels_ints=[0, 1],
                                 post_transform=post)
            np.testing.assert_array_equal(labels, y > 0)
            np.testing.assert_allclose(scores, np.stack(want, 1), rtol=1e-4, atol=1e-5)

    def test_softmax_zero_and_probit(self):
        x = np.float32([[1, 0, -2], [0, 3, 0]])
        eye = np.eye(3, dtype=np.float32).ravel()
        e = np.where(x != 0, np.exp(x - x.max(1, keepdims=True)), 0)
        got = run("LinearRegressor", x, coefficients=eye, targets=3, post_transform="SOFTMAX_ZERO")
        np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-5)
        got = run("LinearRegressor", np.float32([[.5, .8413447, .0227501]]), coefficients=eye, targets=3, post_transform="PROBIT")
        np.testing.assert_allclose(got, [[0, 1, -2]], atol=5e-3)


class Vectors(unittest.TestCase):
    """Support vector machines."""

    def setUp(self):
        rng = np.random.default_rng(1)
        self.x, self.v = rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
        self.rng = rng
        self.kernels = {
            "LINEAR": self.x @ self.v.T, "POLY": (.5 * self.x @ self.v.T + .25) ** 3, "SIGMOID": np.tanh(.5 * self.x @ self.v.T + .25),
            "RBF": np.exp(-.5 * np.square(self.x[:, None] - self.v).sum(2))}

    def test_regressor(self):
        w = self.rng.normal(size=7).astype(np.float32)
        for kind, k in self.kernels.items():
            how = dict(coefficients=w, kernel_params=[.5, .25, 3], kernel_type=kind, support_vectors=self.v.ravel(), n_supports=7, rho=[.125])
            y = (k @ w + .125)[:, None]
            np.testing.assert_allclose(run("SVMRegressor", self.x, **how), y, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(run("SVMRegressor", self.x, one_class=1, **how), np.where(y > 0, 1, -1))
        got = run("SVMRegressor", self.x, coefficients=[1., 2, 3], rho=[-.5], kernel_type="LINEAR")
        np.testing.assert_allclose(got, self.x @ np.float32([[1], [2], [3]]) - .5, rtol=1e-4, atol=1e-5)

    def pairs(self, w, k, sizes, rho):
        """Scores of pairs, and the class that wins most of them."""
        ends = np.cumsum(sizes)
        part = [slice(e - s, e) for e, s in zip(ends, sizes)]
        scores, votes, n = [], np.zeros((len(k), len(sizes))), 0
        for i in range(len(sizes)):
            for j in range(i + 1, len(sizes)):
                s = k[:, part[i]] @ w[j - 1, part[i]] + k[:, part[j]] @ w[i, part[j]] + rho[n]
                votes[:, i] += s > 0
                votes[:, j] += s <= 0
                scores.append(s)
                n += 1
        return np.stack(scores, 1), votes.argmax(1)

    def test_classifier(self):
        w, rho = self.rng.normal(size=(2, 7)).astype(np.float32), np.float32([.1, -.2, .3])
        for kind, k in self.kernels.items():
            labels, scores = run("SVMClassifier", self.x, n_outputs=2, coefficients=w.ravel(), kernel_params=[.5, .25, 3], kernel_type=kind,
                                 support_vectors=self.v.ravel(), vectors_per_class=[2, 4, 1], rho=rho, classlabels_ints=[5, 6, 9])
            want, won = self.pairs(w, k, [2, 4, 1], rho)
            np.testing.assert_array_equal(labels, np.array([5, 6, 9])[won])
            np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)

    def test_two_classes(self):
        w = self.rng.normal(size=(1, 7)).astype(np.float32)
        how = dict(n_outputs=2, coefficients=w.ravel(), kernel_params=[.5, .25, 3], kernel_type="RBF", support_vectors=self.v.ravel(),
                   vectors_per_class=[3, 4], rho=[.1], classlabels_ints=[0, 1])
        s, won = self.pairs(w, self.kernels["RBF"], [3, 4], [.1])
        s = s[:, 0]
        first = 1 - logistic(-1.5 * s + .25)
        for more, want in (({}, [-s, s]), ({"post_transform": "LOGISTIC"}, [logistic(-s), logistic(s)]),
                           ({"prob_a": [-1.5], "prob_b": [.25]}, [first, 1 - first])):
            labels, scores = run("SVMClassifier", self.x, **how, **more)
            np.testing.assert_array_equal(labels, won)
            np.testing.assert_allclose(scores, np.stack(want, 1), rtol=1e-4, atol=1e-4)

    @staticmethod
    def coupled(r):
        """Probabilities of the classes of one row, from r[i, j], that of i where it is i or j, as libsvm finds them."""
        k = len(r)
        q = np.diag((r**2).sum(0)) - r * r.T
        p = np.full(k, 1 / k)
        for _ in range(max(100, k)):
            qp = q @ p
            if np.abs(qp - p @ qp).max() < .005 / k:
                break
            for t in range(k):
                p[t] += (p @ q @ p - q[t] @ p) / q[t, t]
                p /= p.sum()
        return p

    def test_probabilities(self):
        for classes in (3, 4, 9):
            sizes = [2] * classes
            n, pairs = sum(sizes), classes * (classes - 1) // 2
            x, v = (self.rng.normal(size=(rows, 4)).astype(np.float32) for rows in (70, n))
            w = self.rng.normal(size=(classes - 1, n)).astype(np.float32)
            rho, a, b = (self.rng.normal(size=pairs).astype(np.float32) for _ in range(3))
            a *= 4
            how = dict(n_outputs=2, coefficients=w.ravel(), kernel_params=[.5, 0, 3], kernel_type="RBF", support_vectors=v.ravel(),
                       vectors_per_class=sizes, rho=rho, classlabels_ints=list(range(classes)), prob_a=a, prob_b=b)
            scores, won = self.pairs(w, np.exp(-.5 * ((x[:, None] - v)**2).sum(2)), sizes, rho)
            of_pair = np.clip(1 - logistic(scores * a + b), 1e-7, 1 - 1e-7)
            want = np.empty((len(x), classes))
            for row in range(len(x)):
                r = np.zeros((classes, classes))
                r[np.triu_indices(classes, 1)] = of_pair[row]
                want[row] = self.coupled(r + np.tril(1 - r.T, -1))
            for rows in (slice(None), slice(0, 1), slice(0, 0)):
                labels, got = run("SVMClassifier", x[rows], **how)
                np.testing.assert_array_equal(labels, won[rows])
                np.testing.assert_allclose(got, want[rows], atol=1e-4)

    def test_linear_classifier(self):
        w = self.rng.normal(size=(3, 3)).astype(np.float32)
        labels, scores = run("SVMClassifier", self.x, n_outputs=2, coefficients=w.ravel(), rho=[.5], classlabels_ints=[0, 1, 2])
        np.testing.assert_array_equal(labels, (self.x @ w.T).argmax(1))
        np.testing.assert_allclose(scores, self.x @ w.T + .5, rtol=1e-4, atol=1e-5)


def count(row, gram, step):
    return sum(all(row[s + k * step] == item for k, item in enumerate(gram)) for s in range(len(row) - step * (len(gram) - 1)))


class NGrams(unittest.TestCase):
    """TfIdfVectorizer."""
    GRAMS = [[2], [3], [5], [5, 4], [5, 6], [7, 8], [6, 7, 3]]

    def how(self, **more):
        starts = [sum(len(g) for g in self.GRAMS if len(g) < k) for k in (1, 2, 3)]
        return dict(dict(mode="TF", pool_int64s=sum(self.GRAMS, []), ngram_counts=starts, ngram_indexes=[4, 0, 1, 6, 2, 3, 8], min_gram_length=1,
                         max_gram_length=3, max_skip_count=0), **more)

    def want(self, rows, how):
        y = np.zeros((len(rows), 9), np.float32)
        for r, row in enumerate(rows):
            for gram, place in zip(self.GRAMS, how["ngram_indexes"]):
                if how["min_gram_length"] <= len(gram) <= how["max_gram_length"]:
                    y[r, place] += sum(count(row, gram, 1 + skip) for skip in range(how["max_skip_count"] + 1 if len(gram) > 1 else 1))
        return y

    def run_node(self, x, **how):
        """As the default domain has it."""
        node = helper.make_node("TfIdfVectorizer", ["x"], ["y"], **how)
        shape = [f"n{i}" for i in range(x.ndim)]
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), shape)],
                                  [helper.make_empty_tensor_value_info("y")])
        text = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
        got, want = (np.array(quern.compile(text, target=t)([x])[0]) for t in ("cpu", "interp"))
        np.testing.assert_array_equal(got, want)
        return got

    def test_counts(self):
        rng = np.random.default_rng(0)
        for dtype in (np.int32, np.int64):
            for shape in ((5, 40), (3, 1), (2, 0)):
                x = rng.integers(1, 9, shape).astype(dtype)
                for more in ({}, dict(max_skip_count=3), dict(min_gram_length=2), dict(max_gram_length=2, max_skip_count=1),
                             dict(ngram_indexes=[4, 0, 0, 6, 2, 4, 8])):
                    how = self.how(**more)
                    np.testing.assert_array_equal(self.run_node(x, **how), self.want(x, how))
                    np.testing.assert_array_equal(self.run_node(x[0], **how), self.want(x, how)[0])

    def test_weights(self):
        x, weights = np.random.default_rng(1).integers(1, 9, (4, 60)), np.arange(9, dtype=np.float32) / 4
        want = self.want(x, self.how())
        np.testing.assert_array_equal(self.run_node(x, **self.how(mode="TFIDF", weights=weights)), want * weights)
        np.testing.assert_array_equal(self.run_node(x, **self.how(mode="IDF", weights=weights)), (want > 0) * weights)
        np.testing.assert_array_equal(self.run_node(x, **self.how(mode="IDF")), want > 0)

    def test_refused(self):
        x = np.array([1, 2])
        for message, error, more in (
                ("the 2-grams are numbers 3 to 8 of 12", quern.ModelError, dict(ngram_counts=[0, 3, 8])),
                ("7 n-grams, and ngram_indexes has 2", quern.ModelError, dict(ngram_indexes=[0, 1])),
                ("element 1 of ngram_indexes is -5", quern.ModelError, dict(ngram_indexes=[0, -5] + [1] * 5)),
                ('mode is "TD"', quern.ModelError, dict(mode="TD")),
                ("1 weights for 9 places", quern.ModelError, dict(mode="IDF", weights=[1.])),
                ("n-grams of 0 to 3", quern.UnsupportedError, dict(min_gram_length=0))):
            with self.assertRaisesRegex(error, message):
                self.run_node(x, **self.how(**more))


class Strings(unittest.TestCase):
    """Labels, keys and categories: numbers of a table in the model, strings in Python."""

    def both(self, text, *inputs):
        got, want = (quern.compile(text, target=t)(list(inputs)) for t in ("cpu", "interp"))
        for g, w in zip(got, want):
            np.testing.assert_array_equal(g, w)
        return got

    def node(self, op, *inputs, n_outputs=1, **attributes):
        return self.both(model(op, inputs, n_outputs, attributes, True), *inputs)

    def graph(self, nodes, inputs, outputs, initializers=()):
        infos = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
        graph = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info(name) for name in outputs], initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(ML, 4)]).SerializeToString()

    def test_classes(self):
        x = np.float32([[3, 1], [0, 2], [1, 9]])
        names = ["versicolor", "setosa", "virginica"]
        labels, scores = self.node("LinearClassifier", x, n_outputs=2, coefficients=[1., 0, 0, 1, -1, 0], intercepts=[0., 0, 1],
                                   classlabels_strings=names)
        self.assertEqual(list(labels), [names[i] for i in scores.argmax(1)])
        self.assertEqual(labels.dtype, object)
        tree = dict(nodes_treeids=[0] * 3, nodes_nodeids=[0, 1, 2], nodes_featureids=[0] * 3, nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
                    nodes_values=[2., 0, 0], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], class_treeids=[0, 0],
                    class_nodeids=[1, 2], class_ids=[0, 2], class_weights=[1., 1])
        labels, _ = self.node("TreeEnsembleClassifier", x, n_outputs=2, classlabels_strings=["no", "maybe", "yes"], **tree)
        self.assertEqual(list(labels), ["yes", "no", "no"])

    def test_label_encoder(self):
        words = np.array(["b", "a", "unheard of", "c"])
        got, = self.node("LabelEncoder", words, keys_strings=["a", "b", "c"], values_int64s=[1, 2, 3], default_int64=-7)
        np.testing.assert_array_equal(got, [2, 1, -7, 3])
        got, = self.node("LabelEncoder", words.reshape(2, 2).astype(object), keys_strings=["a", "b"], values_strings=["A", "é\"\\"])
        self.assertEqual(got.tolist(), [["é\"\\", "A"], ["_Unused", "_Unused"]])
        got, = self.node("LabelEncoder", np.array([5, 6]), keys_int64s=[5], values_strings=["five"], default_string="?")
        self.assertEqual(list(got), ["five", "?"])
        keys = helper.make_tensor("k", TensorProto.STRING, [2], ["a", "c"])
        values = helper.make_tensor("v", TensorProto.FLOAT, [2], [.5, .25])
        got, = self.node("LabelEncoder", words, keys_tensor=keys, values_tensor=values,
                         default_tensor=helper.make_tensor("d", TensorProto.FLOAT, [1], [9.]))
        np.testing.assert_array_equal(got, np.float32([9, .5, 9, .25]))

    def test_category_mapper(self):
        words, numbers = np.array(["b", "q", "a"]), np.array([[6, 7, 5]])
        cats = dict(cats_strings=["a", "b"], cats_int64s=[5, 6])
        np.testing.assert_array_equal(self.node("CategoryMapper", words, default_int64=-3, **cats)[0], [6, -3, 5])
        self.assertEqual(self.node("CategoryMapper", numbers, default_string="none", **cats)[0].tolist(), [["b", "none", "a"]])
        for x, want in ((words, [1, -1, 0]), (np.array([1, 2, 0]), ["b", "_Unused", "a"])):
            text = onnx.ModelProto.FromString(model("LabelEncoder", [x], 1, dict(classes_strings=["a", "b"]), True))
            text.opset_import[1].version = 1
            self.assertEqual(self.both(text.SerializeToString(), x)[0].tolist(), want)
        with self.assertRaisesRegex(quern.ModelError, "there are 2 strings and 1 numbers"):
            self.node("CategoryMapper", words, cats_strings=["a", "b"], cats_int64s=[5])

    def test_any_strings(self):
        """One array instead of a list of it, none at all, bytes that are no UTF-8, and numbers that no string has."""
        m = quern.compile(model("LabelEncoder", [np.array(["a"])], 1, dict(keys_strings=["é", b"\xff", ""], values_int64s=[1, 2, 3]), True))
        self.assertEqual(m(np.array(["", "é", "e"]))[0].tolist(), [3, 1, -1])
        self.assertEqual(m([[b"\xff", "é".encode(), b"\xfe"]])[0].tolist(), [2, 1, -1])
        for none in ([], np.array([], object)):
            self.assertEqual(m([none])[0].shape, (0,))
        same = quern.compile(self.graph([helper.make_node("Identity", ["x"], ["y"])], [("x", TensorProto.STRING, ["n"])], ["y"]))
        self.assertEqual([text.encode(errors="surrogateescape") for text in same([[b"\xff", b"y"]])[0]], [b"\xff", b"y"])
        for number in 2, -1:
            with self.assertRaisesRegex(quern.ArgumentError, "a number that no string has: there are 0"):
                same([np.array([number])])

    def test_branch_by_a_string(self):
        """Extents that depend on a string; and ranks: its number is not known before the model is."""
        branch = lambda **value: helper.make_graph([helper.make_node("Constant", [], ["c"], **value)], "b", [],
                                                   [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
        chosen = lambda other: quern.compile(self.graph(
            [helper.make_node("Equal", ["x", "key"], ["same"]),
             helper.make_node("If", ["same"], ["y"], then_branch=branch(value_floats=[.5]), else_branch=other)],
            [("x", TensorProto.STRING, [])], ["y"], [helper.make_tensor("key", TensorProto.STRING, [], ["k"])]))
        m = chosen(branch(value_floats=[1., 2.]))
        self.assertEqual([m([np.array(key)])[0].tolist() for key in ("k", "l")], [[.5], [1, 2]])
        with self.assertRaisesRegex(quern.UnsupportedError, "input 'x' is of strings, which the model would have to know"):
            chosen(branch(value_float=.5))([np.array("k")])

    def test_many_keys(self):
        keys = [f"key {i}" for i in range(1000)]
        got, = self.node("LabelEncoder", np.array(keys[::-7] + ["key"]), keys_strings=keys, values_int64s=range(1000))
        np.testing.assert_array_equal(got, [*range(1000)[::-7], -1])

    def test_one_hot(self):
        got, = self.node("OneHotEncoder", np.array([["b", "a"], ["c", "z"]]), cats_strings=["a", "b", "c"])
        np.testing.assert_array_equal(got, np.float32([[[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]]]))

    def test_equal_and_moved(self):
        """Strings that the model does not know are told apart, and come back."""
        text = self.graph([helper.make_node("Equal", ["x", "y"], ["same"]), helper.make_node("Concat", ["x", "word"], ["all"], axis=0),
                           helper.make_node("Where", ["same", "x", "word"], ["kept"])],
                          [("x", TensorProto.STRING, ["n"]), ("y", TensorProto.STRING, ["n"])], ["same", "all", "kept"],
                          [helper.make_tensor("word", TensorProto.STRING, [1], ["known"])])
        same, everything, kept = self.both(text, np.array(["p", "q", "known"]), np.array(["p", "r", "known"], object))
        np.testing.assert_array_equal(same, [True, False, True])
        self.assertEqual(list(everything), ["p", "q", "known", "known"])
        self.assertEqual(list(kept), ["p", "known", "known"])
        m = quern.compile(text)
        self.assertEqual(m({"x": [b"q"], "y": ["q"]})[1].tolist(), ["q", "known"])
        with self.assertRaisesRegex(quern.ArgumentError, "input 'x' is of strings, not float64"):
            m([[.5], ["a"]])
        session = m.bind([np.array(["new"]), np.array(["new"])])
        session.run()
        self.assertEqual(session.outputs[1].tolist(), ["new", "known"])

    def test_n_grams(self):
        x = np.array([["a", "b", "a", "z"]])
        text = self.graph([helper.make_node("TfIdfVectorizer", ["x"], ["y"], mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
                                            ngram_counts=[0, 2], ngram_indexes=[0, 1, 2], pool_strings=["a", "c", "b", "a"])],
                          [("x", TensorProto.STRING, ["n", 4])], ["y"])
        np.testing.assert_array_equal(self.both(text, x)[0], [[2, 0, 1]])

    def test_constants(self):
        text = self.graph([helper.make_node("Constant", [], ["c"], value_strings=["x", "", "y"]), helper.make_node("Gather", ["c", "i"], ["y"])],
                          [("i", TensorProto.INT64, ["n"])], ["y"])
        self.assertEqual(list(self.both(text, np.array([2, 0, 1, 2]))[0]), ["y", "x", "", "y"])

    def test_command(self):
        """quern run says the strings; --json all elements, as Python has them."""
        names = ["no", "é\"\\", b"\xff\xe2\x82"]
        text = model("LabelEncoder", [np.array([0])], 1, dict(keys_int64s=[0, 1, 2, 3], values_strings=[*names, "\U0001f600"]), True)
        with tempfile.TemporaryDirectory() as folder:
            path = lambda name: os.path.join(folder, name)
            with open(path("m.onnx"), "wb") as f:
                f.write(text)
            np.save(path("x.npy"), np.arange(4))
            run = lambda *more: programs.run([QUERN, "run", path("m.onnx"), "--input", path("x.npy"), *more], check=True, encoding="utf-8").stdout
            self.assertEqual(run(), 'y0 strings[4] ["no" "é\\"\\\\" "\\udcff\\udce2\\udc82" "\U0001f600"]\n')
            got, = json.loads(run("--json"))["outputs"]
            expected = quern.compile(text)([np.arange(4)])[0].tolist()
            self.assertEqual(got, {"name": "y0", "dtype": "string", "dims": [4], "data": expected})
            run("--output", path("y.npy"))
            self.assertEqual(np.load(path("y.npy")).tolist(), [0, 1, 2, 3])

    def test_object(self):
        """A shared object has the numbers, its header the strings."""
        x = np.float32([[3, 1], [0, 2]])
        text = model("LinearClassifier", [x], 2, dict(coefficients=[1., 0, 0, 1], classlabels_strings=["a\"b", "é"]), True)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "m.so")
            quern.compile_file(text, path)
            np.testing.assert_array_equal(quern.load(path)([x])[0], [0, 1])
            with open(os.path.join(folder, "m.h")) as f:
                header = f.read()
            self.assertIn("#define M_N_STRINGS 2", header)
            self.assertIn('{ "a\\042b", ', header)
            self.assertIn(r'"\303\251" }', header)


class Refused(unittest.TestCase):
    def refused(self, message, op, *inputs, error=quern.ModelError, n_outputs=1, dynamic=True, **attributes):
        with self.assertRaisesRegex(error, message):
            quern.compile(model(op, inputs, n_outputs, attributes, dynamic))

    def test_refused(self):
        x = np.ones((2, 3), np.float32)
        unsupported = quern.UnsupportedError
        self.refused("2 imputed values of the input's kind for 3 features", "Imputer", x, imputed_value_floats=[1., 2])
        self.refused("0 imputed values", "Imputer", x, imputed_value_int64s=[1])
        self.refused("has 2 elements for 1 inputs", "FeatureVectorizer", x, inputdimensions=[1, 2])
        self.refused("cats_int64s is missing", "OneHotEncoder", x)
        self.refused("cats_int64s is missing", "OneHotEncoder", x, cats_strings=["a"])
        self.refused("no attribute with the keys", "LabelEncoder", x)
        self.refused("the keys are strings, and the input is not", "LabelEncoder", np.array([1]), keys_strings=["a"], values_int64s=[1])
        self.refused("the keys are numbers, and the input is strings", "LabelEncoder", np.array(["a"]), keys_int64s=[1], values_int64s=[1])
        self.refused(r"not supported on strings, which are numbers here .inputs: string\[n0\]", "Binarizer", np.array(["a"]), error=unsupported)
        self.refused(r"keys f32\[1\] and values i64\[2\]", "LabelEncoder", x, keys_floats=[1.], values_int64s=[1, 2])
        self.refused(r"keys i64\[1\] and values i64\[1\]", "LabelEncoder", x, keys_int64s=[1], values_int64s=[1])
        self.refused("do not divide into 2 targets", "LinearRegressor", x, coefficients=[1., 2, 3], targets=2)
        self.refused("the input has 3 features; the attributes are for 2", "LinearRegressor", x, coefficients=[1., 2])
        self.refused("must have rank 2", "LinearRegressor", np.ones(3, np.float32), coefficients=[1., 2, 3])
        self.refused("3 intercepts for 2 classes", "LinearClassifier", x, n_outputs=2, coefficients=[1.] * 6, intercepts=[0.] * 3,
                     classlabels_ints=[0, 1])
        self.refused("the labels of the classes are missing: attribute classlabels_ints, or classlabels_strings", "LinearClassifier", x,
                     n_outputs=2, coefficients=[1.] * 6)
        good = dict(coefficients=[1., 2], support_vectors=[1.] * 6, n_supports=2, rho=[0.], kernel_type="RBF", kernel_params=[1., 0, 1])
        self.refused("do not divide into 2", "SVMRegressor", x, **{**good, "support_vectors": [1.] * 7})
        self.refused("kernel_params has 2 elements instead of 3", "SVMRegressor", x, **{**good, "kernel_params": [1., 0]})
        self.refused('kernel_type is "COSINE"', "SVMRegressor", x, **{**good, "kernel_type": "COSINE"})
        self.refused("coefficients has 1 elements where there must be 2", "SVMRegressor", x, **{**good, "coefficients": [1.]})
        good = dict(coefficients=[1.] * 6, support_vectors=[1.] * 9, vectors_per_class=[1, 1, 1], rho=[0.] * 3, kernel_type="LINEAR",
                    classlabels_ints=[0, 1, 2], n_outputs=2)
        self.refused("vectors_per_class has 2 elements for 3 classes", "SVMClassifier", x, **{**good, "vectors_per_class": [1, 2]})
        self.refused("class 0 has -1 support vectors", "SVMClassifier", x, **{**good, "vectors_per_class": [-1, 3, 1]})
        self.refused("rho has 1 elements where there must be 3", "SVMClassifier", x, **{**good, "rho": [1.]})
        for a, b in ((3, 2), (2, 2), (1, 1)):
            self.refused(f"prob_a has {a} elements and prob_b {b}, for 3 pairs of classes", "SVMClassifier", x, prob_a=[1.] * a,
                         prob_b=[1.] * b, **good)


if __name__ == "__main__":
    unittest.main()
