"""The digits example: the trained model in the repository, and training it anew, against PyTorch's losses."""
import pathlib
import sys
import unittest

import numpy as np

import quern

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(EXAMPLE))
import train  # noqa: E402


class Digits(unittest.TestCase):
    def test_the_trained_model_reads_digits(self):
        x, y = train.load()
        (logits,) = quern.compile(EXAMPLE / "digits.onnx")([x[train.TRAIN:]])
        self.assertGreaterEqual((logits.argmax(1) == y[train.TRAIN:]).mean(), 0.98)

    def test_first_losses_equal_pytorchs(self):
        for optimizer in ("adam", "sgd"):
            with self.subTest(optimizer):
                _, losses = train.train(optimizer, epochs=5)
                np.testing.assert_allclose(losses[:100], train.expected_losses(optimizer)[:100], rtol=1e-4)

    def test_training_reaches_96_percent(self):
        trainer, _ = train.train(epochs=25)
        self.assertGreaterEqual(train.accuracy(trainer), 0.96)


if __name__ == "__main__":
    unittest.main()
