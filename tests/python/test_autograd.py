"""Gradients against PyTorch's autograd: recorded ones of random graphs and of small models, and new ones where PyTorch is there."""
import pathlib
import unittest

import numpy as np

import autograd_graphs as graphs
import quern

REFERENCE = [line.split() for line in (pathlib.Path(__file__).parent / "autograd_reference.txt").read_text().splitlines()]


def derive(g, target):
    """The loss and the gradients"""
    gradient = quern.grad(g.text().encode(), "loss", [x.name[1:] for x, _ in g.inputs], target=target)
    loss, *gradients = gradient(g.arrays())
    return float(loss), gradients


class Recorded:
    def compare(self, name, dtype, target, tolerance):
        g = graphs.graph(name, dtype)
        _, checksum, *numbers = REFERENCE[graphs.NAMES.index(name)]
        if dtype == "f64":
            self.assertEqual(f"{g.checksum():08x}", checksum, "another graph than was recorded: scripts/make-autograd-reference")
        loss, gradients = derive(g, target)
        found, expected = graphs.projections(gradients), [float(x) for x in numbers]
        self.assertEqual(len(found) + 1, len(expected))
        self.assertLessEqual(abs(loss - expected[0]), tolerance * max(1, abs(expected[0])))
        for gradient, a, b in zip(gradients, found, expected[1:]):
            self.assertLessEqual(abs(a - b), tolerance * max(np.abs(gradient).sum(), 1), g.text())


class AgainstPyTorch(Recorded, unittest.TestCase):
    def test_all_are_recorded(self):
        self.assertEqual([line[0] for line in REFERENCE], [str(name) for name in graphs.NAMES])

    def test_the_interpreters(self):
        for name in graphs.NAMES:
            with self.subTest(name):
                self.compare(name, "f64", "interp", 1e-9)

    @unittest.skipIf(graphs.torch is None, "PyTorch is missing")
    def test_new_ones(self):
        """Each element, of models and of graphs that are not recorded."""
        for name in graphs.NAMES[:len(graphs.MODELS)] + list(range(graphs.N_SEEDS, 3 * graphs.N_SEEDS)):
            with self.subTest(name):
                g = graphs.graph(name)
                expected_loss, expected = g.gradients()
                loss, gradients = derive(g, "interp")
                np.testing.assert_allclose(loss, expected_loss, rtol=1e-9, atol=1e-9)
                for a, b in zip(gradients, expected):
                    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * max(np.abs(b).max(), 1), err_msg=g.text())


if __name__ == "__main__":
    unittest.main()
