"""Gradients of compiled code against PyTorch's recorded ones: small models and random graphs, in float64 and float32."""
import unittest

import autograd_graphs as graphs
from test_autograd import Recorded

NAMES = graphs.NAMES[:len(graphs.MODELS)] + list(range(0, graphs.N_SEEDS, 9))  # each step is twice the first


class Compiled(Recorded, unittest.TestCase):
    def test_float64(self):
        for name in NAMES:
            with self.subTest(name):
                self.compare(name, "f64", "cpu", 1e-9)

    def test_float32(self):
        for name in NAMES:
            with self.subTest(name):
                self.compare(name, "f32", "cpu", 1e-5)


if __name__ == "__main__":
    unittest.main()
