"""Trainer.fit: the numbers of `quern train`, checkpoints, progress in a terminal and in a notebook; train_file."""
import contextlib
import io
import os
import pathlib
import re
import sys
import tempfile
import types
import unittest
import unittest.mock
import xml.etree.ElementTree

import numpy as np

import programs
import quern

DIGITS = pathlib.Path(os.environ.get("QUERN_SOURCE_DIR", pathlib.Path(__file__).parents[2])) / "examples" / "digits"
QUERN = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release")) / "quern"
DATA = np.load(DIGITS / "digits.npz")
X, Y = DATA["x"], DATA["y"]
HOW = dict(loss="cross_entropy", optimizer="adamw", learning_rate=1e-3)


def trainer(**more):
    return quern.train(DIGITS / "untrained.onnx", **HOW, **more)


def fit(t, **options):
    """(history, what it printed)"""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        history = t.fit(X[:600], Y[:600], batch=32, seed=5, **options)
    return history, out.getvalue()


class Fit(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def assert_same_states(self, a, b):
        for name, value in a.states.items():
            np.testing.assert_array_equal(value, b.states[name], name)

    def test_learns(self):
        t = trainer(compile_threads=1)
        self.assertRegex(repr(t), r"^<quern.Trainer of <quern.Model \(.*\)>: \d+ parameters of [\d,]+ elements>$")
        history, text = fit(t, epochs=3, test=(X[1400:], Y[1400:]))
        self.assertEqual(len(history.losses), 3 * (600 // 32))
        self.assertEqual(len(text.splitlines()), 3)
        self.assertRegex(text, r"^epoch 1/3: loss [\d.]+, test loss [\d.]+, accuracy [\d.]+ % \([\d.]+ s\)\n")
        last = history.epochs[-1]
        self.assertAlmostEqual(last["loss"], np.mean(history.losses[-18:]))
        self.assertLess(last["test_loss"], history.epochs[0]["test_loss"])
        (logits,) = t([X[1400:].astype(np.float32)])
        self.assertAlmostEqual(last["accuracy"], (logits.argmax(1) == Y[1400:]).mean())
        self.assertIn("loss", repr(history))
        self.assertEqual(fit(trainer(), epochs=3, progress=False)[1], "")

    def test_is_quern_train(self):
        """The same batches, so the same losses and the same bits; checkpoints of one go on in the other."""
        np.savez(self.path / "data.npz", x=X[:600], y=Y[:600])
        checkpoint = self.path / "c.safetensors"
        command = [QUERN, "train", DIGITS / "untrained.onnx", "--data", self.path / "data.npz", "--batch", "32", "--seed", "5",
                   "--checkpoint", checkpoint]
        run = lambda *more: programs.run([*command, *more], check=True).stdout
        printed = [float(v) for v in re.findall(r"^epoch .* loss (\S+) ", run("--epochs", "2"), re.M)]
        t = trainer(dims={"batch": 32})
        history, _ = fit(t, epochs=2, checkpoint=self.path / "mine.safetensors")
        np.testing.assert_allclose([e["loss"] for e in history.epochs], printed, rtol=1e-5)
        again = trainer(dims={"batch": 32})
        again.load_checkpoint(checkpoint)
        self.assert_same_states(t, again)
        history, text = fit(again, epochs=3, checkpoint=checkpoint, resume=True)
        self.assertRegex(text, "^epoch 3/3: .*\n$")
        fit(t, epochs=3, checkpoint=self.path / "mine.safetensors", resume=True)
        self.assert_same_states(t, again)
        self.assertIn("resumed", run("--epochs", "4", "--resume"))

    def test_resumes_to_the_same_bits(self):
        whole, half, rest = trainer(), trainer(), trainer()
        fit(whole, epochs=4)
        fit(half, epochs=2, checkpoint=self.path / "c")
        fit(rest, epochs=4, checkpoint=self.path / "c", resume=True)
        self.assert_same_states(whole, rest)

    def test_a_notebook_sees_a_curve(self):
        shown = []
        display = lambda x, display_id: shown.append(x._repr_html_()) or types.SimpleNamespace(
            update=lambda x: shown.append(x._repr_html_()))
        shell = types.SimpleNamespace(kernel=object())
        modules = {"IPython": types.SimpleNamespace(get_ipython=lambda: shell, display=None),
                   "IPython.display": types.SimpleNamespace(display=display)}
        with unittest.mock.patch.dict(sys.modules, modules):
            history, text = fit(trainer(), epochs=2, test=(X[1400:], Y[1400:]))
        self.assertEqual(text, "")
        self.assertGreaterEqual(len(shown), 2)
        self.assertNotIn("svg", shown[0])
        picture = shown[-1][shown[-1].index("<svg"):]
        self.assertEqual(picture, history.svg())
        lines = xml.etree.ElementTree.fromstring(picture).findall("{*}polyline")
        self.assertEqual([len(line.get("points").split()) for line in lines], [36, 2])
        self.assertIn("value='2'", shown[-1])

    def test_mistakes(self):
        t = trainer()
        for options, message in [(dict(batch=2000), "too few for a batch of 2000"), (dict(resume=True), "what checkpoint names"),
                                 (dict(batch=0), "batch is 0: it must be at least 1"), (dict(epochs=-1), "epochs is -1"),
                                 (dict(test=X), r"test is a pair \(inputs, target\)"), (dict(test=(X[:0], Y[:0])), "no samples")]:
            with self.assertRaisesRegex(quern.ArgumentError, message):
                t.fit(X, Y, **options)
        with self.assertRaisesRegex(quern.ArgumentError, "as many samples"):
            t.fit(X[:5], Y)
        fit(t, epochs=1, checkpoint=self.path / "c")
        with self.assertRaisesRegex(quern.ModelError, "does not go on with batch=16"):
            t.fit(X[:600], Y[:600], batch=16, seed=5, checkpoint=self.path / "c", resume=True)
        wild = quern.train(DIGITS / "untrained.onnx", "cross_entropy", "sgd", 1e12)
        with self.assertRaisesRegex(quern.NumericError, r"the loss is (nan|inf) in epoch 1, batch \d+"):
            wild.fit(X, Y, progress=False)


class Batches(unittest.TestCase):
    setUp, assert_same_states = Fit.setUp, Fit.assert_same_states

    @staticmethod
    def of_epoch(epoch):
        """Those that fit makes of 600 samples with seed 5."""
        order = quern._fit.order_of(600, 5, epoch)
        return ((X[rows].astype(np.float32), Y[rows]) for rows in np.array_split(order[:18 * 32], 18))

    def test_is_fit(self):
        arrays, batches = trainer(), trainer()
        one, _ = fit(arrays, epochs=2, test=(X[1400:], Y[1400:]))
        test = [(X[first:first + 100], Y[first:first + 100]) for first in range(1400, len(X), 100)]
        other = batches.fit_batches(self.of_epoch, epochs=2, test=test, progress=False)
        self.assertEqual(one.losses, other.losses)
        self.assert_same_states(arrays, batches)
        for a, b in zip(one.epochs, other.epochs):
            self.assertEqual(a["accuracy"], b["accuracy"])
            self.assertAlmostEqual(a["test_loss"], b["test_loss"], 5)

    def test_kinds_of_batches(self):
        """Pairs, lists of all inputs as loaders give them, dicts; lists are gone through in each epoch."""
        t = trainer()
        names = [t.model.inputs[0].name, t.target]
        losses = []
        for kind in (tuple, list, lambda pair: dict(zip(names, pair)), lambda pair: ([pair[0]], pair[1])):
            batches = [kind(pair) for pair in self.of_epoch(0)]
            losses.append(trainer().fit_batches(batches, epochs=2, progress=False).losses)
        self.assertEqual(len(losses[0]), 36)
        self.assertTrue(all(l == losses[0] for l in losses))

    def test_resumes_to_the_same_bits(self):
        whole, half, rest = trainer(), trainer(), trainer()
        whole.fit_batches(self.of_epoch, epochs=3, progress=False)
        half.fit_batches(self.of_epoch, epochs=1, progress=False, checkpoint=self.path / "c")
        rest.fit_batches(self.of_epoch, epochs=3, progress=False, checkpoint=self.path / "c", resume=True)
        self.assert_same_states(whole, rest)
        with self.assertRaisesRegex(quern.ModelError, "made with 'epochs=3 batches', which does not go on with batch=32"):
            fit(rest, epochs=4, checkpoint=self.path / "c", resume=True)

    def test_arrays_of_whole_batches(self):
        x, y = X[:576].reshape(18, 32, 64), Y[:576].reshape(18, 32)
        order = quern._fit.order_of(18, 5, 0)
        arrays, batches = trainer(), trainer()
        test = X[1400:1750].reshape(7, 50, 64), Y[1400:1750].reshape(7, 50)
        history = arrays.fit(x, y, seed=5, progress=False, test=test)
        other = batches.fit_batches([(x[i], y[i]) for i in order], progress=False, test=list(zip(*test)))
        self.assertEqual(history.losses, other.losses)
        self.assertEqual({**history.epochs[0], "seconds": 0}, {**other.epochs[0], "seconds": 0})
        self.assert_same_states(arrays, batches)

    def test_ends_when_told(self):
        seen = []
        t = trainer()
        history = t.fit(X[:64], Y[:64], epochs=50, progress=False, after=lambda h: seen.append(len(h.losses)) or len(h.epochs) == 3)
        self.assertEqual((len(history.epochs), seen), (3, [2, 4, 6]))
        history.epochs = [{"loss": 0, "test_loss": v} for v in (3, 1, 2, 4)]
        self.assertEqual(history.since_best(), 2)
        history.epochs = [{"loss": v} for v in (3, 2, 1)]
        self.assertEqual(history.since_best(), 0)
        still = quern.train(DIGITS / "untrained.onnx", "cross_entropy", "sgd", 1e-30)  # learns nothing
        history = still.fit(X[:64], Y[:64], epochs=50, batch=64, progress=False, after=lambda h: h.since_best() >= 4)
        self.assertLess(len(history.epochs), 50)

    def test_a_terminal_sees_the_steps(self):
        out = io.StringIO()
        out.isatty = lambda: True
        with contextlib.redirect_stdout(out), unittest.mock.patch.object(quern._fit._Progress, "PAUSE", -1):
            trainer().fit(X[:96], Y[:96], epochs=1, batch=32)
            trainer().fit_batches(iter(list(self.of_epoch(0))[:2]))
        text = out.getvalue()
        self.assertRegex(text, r"\repoch 1/1: step 1/3, loss [\d.]+ *\repoch 1/1: step 2/3, loss")
        self.assertRegex(text, r"step 3/3, loss [\d.]+ *\repoch 1/1: loss [\d.]+ \([\d.]+ s\) *\n")
        self.assertRegex(text, r"\repoch 1/1: step 2, loss")

    def test_mistakes(self):
        t = trainer()
        with self.assertRaisesRegex(quern.ArgumentError, "an iterator ends with the first epoch"):
            t.fit_batches(self.of_epoch(0), epochs=2)
        with self.assertRaisesRegex(quern.ArgumentError, "an iterator ends with the first epoch"):
            t.fit_batches(self.of_epoch, epochs=2, test=self.of_epoch(0))
        with self.assertRaisesRegex(quern.ArgumentError, "epoch 1 has no batch"):
            t.fit_batches([])
        with self.assertRaisesRegex(quern.ArgumentError, "the model takes 2 inputs"):
            t.fit_batches([[X[:5]]])
        with self.assertRaisesRegex(quern.ArgumentError, "the loss is the caller's"):
            quern.train(DIGITS / "untrained.onnx", None, "sgd", 1, parts=True).fit_batches([])


class SequenceFirst(unittest.TestCase):
    """Samples along the second axis: the same as the model that takes them along the first, to the bit."""
    LSTM = """  %%p = constant %s "w" : f32[12, 2]
  %%q = constant %s "u" : f32[12, 3]
  %%b = constant %s "b" : f32[12]
  %%z = constant 0 : f32[]
  %%h = broadcast %%z {axes = [], dims = [n, 3]} : f32[n, 3]
  %%y, %%hn, %%cn = lstm %%s, %%p, %%q, %%b, %%h, %%h : f32[5, n, 3], f32[n, 3], f32[n, 3]
  return %%hn
}
"""
    X = np.random.default_rng(2).standard_normal((5, 90, 2)).astype(np.float32)
    Y = (X.sum((0, 2)) > 0).astype(np.int64)

    def model(self, first):
        weights = [np.random.default_rng(i).uniform(-1, 1, s).astype(np.float32).tolist() for i, s in
                   enumerate([(12, 2), (12, 3), 12])]
        head = ("graph @main(%s: f32[5, n, 2]) -> (logits: f32[n, 3]) {\n" if first else
                "graph @main(%x: f32[n, 5, 2]) -> (logits: f32[n, 3]) {\n  %s = transpose %x {perm = [1, 0, 2]} : f32[5, n, 2]\n")
        return (head + self.LSTM % tuple(weights)).encode()

    def fit(self, first, x, **options):
        t = quern.train(self.model(first), "cross_entropy", "adam", 0.05)
        test = x[:, 70:] if first else x[70:]
        history = t.fit(x[:, :70] if first else x[:70], self.Y[:70], batch=16, epochs=3, seed=4, progress=False,
                        test=(test, self.Y[70:]), **options)
        return t, history

    def test_is_the_model_of_the_other_order(self):
        t, history = self.fit(True, self.X, batch_axis={"s": 1})
        other, expected = self.fit(False, np.ascontiguousarray(self.X.swapaxes(0, 1)))
        self.assertEqual(history.losses, expected.losses)
        for a, b in zip(history.epochs, expected.epochs):
            self.assertEqual((a["test_loss"], a["accuracy"]), (b["test_loss"], b["accuracy"]))
        self.assertLess(history.losses[-1], history.losses[0])
        for name, value in other.states.items():
            np.testing.assert_array_equal(value, t.states[name], name)

    def test_on_the_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            (path / "m.qn").write_bytes(self.model(True))
            np.savez(path / "data.npz", s=self.X[:, :70], target=self.Y[:70])
            np.savez(path / "test.npz", s=self.X[:, 70:], target=self.Y[70:])
            command = [QUERN, "train", path / "m.qn", "--data", path / "data.npz", "--test", path / "test.npz", "--batch", "16",
                       "--epochs", "3", "--seed", "4", "--optimizer", "adam", "--learning-rate", "0.05", "--checkpoint",
                       path / "c.safetensors"]
            printed = programs.run([*command, "--batch-axis", "s=1"], check=True).stdout
            t, history = self.fit(True, self.X, batch_axis={"s": 1})
            found = re.findall(r"loss (\S+), test loss (\S+), accuracy (\S+) %", printed)
            np.testing.assert_allclose(np.array(found, float),
                                       [[e["loss"], e["test_loss"], 100 * e["accuracy"]] for e in history.epochs], rtol=1e-4)
            for options, message in [((), r"batches of 5, not of 16: .* input 's' \(--batch-axis\)"),
                                     (("--batch-axis", "s=2"), "batches of 2, not of 16"),
                                     (("--batch-axis", "1"), r"'target' is i64\[70\] in the data.* along axis 1"),
                                     (("--batch-axis", "s=x"), "N being the number of an axis")]:
                run = programs.run([*command, *options])
                self.assertNotEqual(run.returncode, 0)
                self.assertRegex(run.stderr, message)

    def test_mistakes(self):
        for axis, message in [(0, "as many samples"), (1, "'target' has no axis 1"), ({"x": 1}, "no input 'x'; its inputs are 's'")]:
            with self.assertRaisesRegex(quern.ArgumentError, message):
                self.fit(True, self.X, batch_axis=axis)


class TrainFile(unittest.TestCase):
    def test_the_step_as_a_shared_object(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "step.so"
            quern.train_file(DIGITS / "untrained.onnx", path, **HOW, parts=True, dims={"batch": 32})
            self.assertIn("step_init", path.with_suffix(".h").read_text())
            model, t = quern.load(path), trainer(dims={"batch": 32})
            self.assertEqual(model.entries, ["infer", "train_step", "forward", "backward", "update", "eval"])
            session = model.session("train_step")
            x, y = X[:32].astype(np.float32), Y[:32]
            for _ in range(3):
                session.bind([x, y]).run()
                self.assertEqual(float(session.outputs[0]), t.step([x], y))


if __name__ == "__main__":
    unittest.main()
