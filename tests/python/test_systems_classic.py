"""The older tools in C, beside networks: see test_systems.py."""

import re
import tempfile
import unittest

from test_systems import System


class Classic(System, unittest.TestCase):
    name, first = "classic", 5
    parts = "classic-kernel", "classic-trees", "classic-mixture", "classic-mlp", "classic-lenet"
    epochs, timeout = 2, 250

    def test_reads_digits(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        rows = re.findall(r"\| ([\w ]+) \| ([\d.]+) % \| ([\d.]+) s \| ([\d.]+) us \|", text)
        self.assertEqual([name for name, *_ in rows], ["kernel ridge regression", "boosted soft trees", "Gaussian mixture",
                                                       "multilayer perceptron", "LeNet"])
        for (name, right, _, each), least in zip(rows, (98, 97, 95, 98, 98)):
            self.assertGreaterEqual(float(right), least, name)
            self.assertGreater(float(each), 0)


if __name__ == "__main__":
    unittest.main()
