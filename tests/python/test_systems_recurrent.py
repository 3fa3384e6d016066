"""Recurrent language models in C: see test_systems.py."""

import re
import tempfile
import unittest

from test_systems import System


class Recurrent(System, unittest.TestCase):
    name, parts, first = "lstm", ("lstm-source", "lstm-text"), 3
    epochs = 2

    def test_predicts_letters_and_writes_words(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        self.assertLessEqual(float(re.search(r"([-\d.]+) % above e\^H", text)[1]), 3)
        self.assertGreaterEqual(float(re.search(r"([\d.]+) % of the words", text)[1]), 75)


class Gated(System, unittest.TestCase):
    name, parts, first, options = "lstm", ("gru-source", "gru-text"), 3, ("--cell", "gru")
    test_resumes_to_the_same_bits = None  # as that of the LSTM


if __name__ == "__main__":
    unittest.main()
