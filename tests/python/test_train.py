"""Optimizers, schedules and losses against PyTorch's recorded numbers; training mode; what is a parameter."""
import json
import pathlib
import tempfile
import unittest

import numpy as np

import quern
import train_cases as cases

REFERENCE = json.loads((pathlib.Path(__file__).parent / "train_reference.json").read_text())


def trainer(name, **more):
    options = {"loss": "cross_entropy", **cases.CASES[name], **more}
    return quern.train(cases.model(options["loss"]), **options), options["loss"]


class AgainstPyTorch(unittest.TestCase):
    def test_every_case_is_recorded(self):
        self.assertEqual(set(REFERENCE), set(cases.CASES))

    def test_losses_and_parameters(self):
        for name in cases.CASES:
            with self.subTest(name):
                t, loss = trainer(name)
                losses = []
                for i in range(cases.STEPS):
                    x, target = cases.batch(loss, i % cases.BATCHES)
                    losses.append(t.step([x], target))
                np.testing.assert_allclose(losses, REFERENCE[name]["losses"], rtol=1e-5)
                found = t.averages if "ema" in cases.CASES[name] else t.parameters
                for key, expected in REFERENCE[name]["parameters"].items():
                    np.testing.assert_allclose(found[key].flatten(), expected, rtol=2e-4, atol=2e-6, err_msg=key)


class Checkpoints(unittest.TestCase):
    EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "digits"

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def digits(self, **more):
        return quern.train(self.EXAMPLE / "untrained.onnx", "cross_entropy", "adam", 1e-3, dims={"batch": 32}, **more)

    def batches(self, n):
        with np.load(self.EXAMPLE / "digits.npz") as z:
            x, y = z["x"].astype(np.float32) / 16, z["y"]
        return [(x[32 * i:32 * i + 32], y[32 * i:32 * i + 32]) for i in range(n)]

    def test_resumes_to_the_same_bits(self):
        batches, a, b = self.batches(8), self.digits(), self.digits()
        for x, y in batches[:4]:
            a.step([x], y)
        a.save_checkpoint(self.path / "c.safetensors", "after four")
        self.assertEqual(b.load_checkpoint(self.path / "c.safetensors"), "after four")
        for x, y in batches[4:]:
            self.assertEqual(a.step([x], y), b.step([x], y))
        for name, value in a.states.items():
            np.testing.assert_array_equal(value, b.states[name])

    def test_damaged_or_foreign_checkpoints_are_refused(self):
        (x, y), = self.batches(1)
        a, path = self.digits(), self.path / "c.safetensors"
        a.step([x], y)
        a.save_checkpoint(path)
        good = path.read_bytes()
        before = {k: v.copy() for k, v in a.states.items()}
        for damaged, message in ((good[:-1], "damaged"), (good[:40], "damaged"), (b"", "damaged"),
                                 (good[:-5] + bytes([good[-5] ^ 1]) + good[-4:], "hash"),
                                 (good[:8] + b"#" + good[9:], "no safetensors")):
            path.write_bytes(damaged)
            with self.assertRaisesRegex(quern.ModelError, message):
                a.load_checkpoint(path)
        path.write_bytes(good)
        with self.assertRaisesRegex(quern.ModelError, "another optimizer"):
            quern.train(self.EXAMPLE / "untrained.onnx", "cross_entropy", "sgd", 0.1).load_checkpoint(path)
        for k, v in a.states.items():
            np.testing.assert_array_equal(v, before[k])

    def test_saved_models_predict_alike(self):
        t = self.digits(ema=0.5)
        for x, y in self.batches(5):
            t.step([x], y)
        (x, y), = self.batches(1)
        t.save(self.path / "now.onnx")
        t.save(self.path / "average.onnx", averages=True)
        (now,) = quern.compile(self.path / "now.onnx", dims={"batch": 32})([x])
        np.testing.assert_array_equal(now, t([x])[0])
        (average,) = quern.compile(self.path / "average.onnx")([x])
        self.assertGreater(np.abs(average - now).max(), 1e-4)
        for name, value in t.averages.items():
            t.parameters[name][...] = value
        np.testing.assert_allclose(average, t([x])[0], rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    unittest.main()
