"""Optimizers, schedules and losses against PyTorch's recorded numbers; training mode; what is a parameter."""
import json
import pathlib
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


if __name__ == "__main__":
    unittest.main()
