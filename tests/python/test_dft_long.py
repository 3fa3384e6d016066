"""DFT of lengths that are split into shorter transforms, against NumPy's."""

import unittest

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import quern


def dft(shape, length, **how):
    node = helper.make_node("DFT", ["x", "n"], ["y"], axis=1, **how)
    graph = helper.make_graph([node], "dft", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(np.array(length, np.int64), "n")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


class LongTransforms(unittest.TestCase):
    def check(self, text, x, want):
        got = quern.compile(text)([x])[0]
        got = got[..., 0] + 1j * got[..., 1] if got.shape[-1] == 2 else got[..., 0]
        self.assertEqual(got.shape, want.shape)
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())

    def test_lengths(self):
        rng = np.random.default_rng(1)
        for n in (1024, 1025, 2048, 1500, 2 * 1031, 4096, 65536, 3**10):
            for parts in (1, 2):
                x = rng.standard_normal((2, n, parts)).astype(np.float32)
                z = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
                self.check(dft(x.shape, n), x, np.fft.fft(z, axis=1))
            self.check(dft(x.shape, n, inverse=1), x, np.fft.ifft(z, axis=1))

    def test_refused(self):
        for n in (4 * 10007, 8209, 2**23):
            with self.assertRaisesRegex(quern.UnsupportedError, f"a transform of {n} elements; 1 to 8192 are supported, and products"):
                quern.compile(dft((2, n, 1), n))

    def test_other_lengths(self):
        """Of fewer and more elements than there are; one side."""
        rng = np.random.default_rng(2)
        x = rng.standard_normal((3, 1800, 1)).astype(np.float32)
        for n in (1536, 2000, 4096):
            self.check(dft(x.shape, n), x, np.fft.fft(x[..., 0], n, axis=1))
            self.check(dft(x.shape, n, onesided=1), x, np.fft.rfft(x[..., 0], n, axis=1))


if __name__ == "__main__":
    unittest.main()
