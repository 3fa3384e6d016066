"""Attention in C: what it reaches, PyTorch's losses, and that it resumes to the same bits."""

import re
import tempfile
import unittest

from test_systems import System


class Attention(System, unittest.TestCase):
    name, parts, epochs = "attention", ("attention-reverse", "attention-gpt"), 2

    def test_reverses_and_writes(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        exact, peaks = re.search(r"([\d.]+) % exact, ([\d.]+) % of the peaks", text).groups()
        self.assertGreaterEqual(float(exact), 99)
        self.assertGreaterEqual(float(peaks), 95)
        loss, words, difference = re.search(r"loss ([\d.]+) a character, ([\d.]+) % of the words .* by (\S+)", text).groups()
        self.assertLess(float(loss), 1)
        self.assertGreaterEqual(float(words), 70)  # about 80, and rounding moves it by some words
        self.assertLess(float(difference), 1e-3)


if __name__ == "__main__":
    unittest.main()
