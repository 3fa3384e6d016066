"""Schedules that are measured: found by later compilations, within bounds of the cost model's, the same for any threads."""

import os
import tempfile
import unittest

import numpy as np

import quern

CONV = ("groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], x_dilation = [1, 1]")


def model():
    """A convolution of 3 x 3, then products of many rows and of one, with constant right sides."""
    random = np.random.default_rng(0)
    text = lambda a: np.array2string(a, separator=", ", threshold=a.size + 1, max_line_width=10 ** 9).replace("\n", "")
    w, u, v = (random.integers(-8, 9, shape) / np.float32(8) for shape in ((32, 16, 3, 3), (64, 48), (512, 64)))
    return f"""graph @main(%x: f32[1, 16, 16, 16], %row: f32[1, 512]) -> (y: f32[128, 48], z: f32[1, 64]) {{
  %0 = constant {text(w)} : f32[32, 16, 3, 3]
  %1 = convolution %x, %0 {{{CONV}}} : f32[1, 32, 16, 16] loc("conv")
  %2 = relu %1 : f32[1, 32, 16, 16]
  %3 = reshape %2 {{dims = [128, 64]}} : f32[128, 64]
  %4 = constant {text(u)} : f32[64, 48]
  %5 = dot_general %3, %4 {{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}} : f32[128, 48] loc("rows")
  %6 = constant {text(v)} : f32[512, 64]
  %7 = dot_general %row, %6 {{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}} : f32[1, 64] loc("row")
  return %5, %7
}}
""".encode()


class TuneTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = model()
        random = np.random.default_rng(1)
        cls.inputs = [random.standard_normal(s).astype(np.float32) for s in ((1, 16, 16, 16), (1, 512))]
        cls.expected = quern.compile(cls.model, target="interp")(cls.inputs)

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.cache = self.folder.name
        os.chmod(self.cache, 0o700)

    def check(self, outputs):
        for y, e in zip(outputs, self.expected):
            np.testing.assert_allclose(y, e, rtol=1e-4, atol=1e-4)

    def test_measures_kernels_and_keeps_schedules(self):
        rows = quern.tune(self.model, cache=self.cache, seconds=0.5)
        self.assertIsNone(rows[-1][0])
        sites = {site.split()[0]: schedule for site, _, _, schedule in rows[:-1]}
        self.assertIn("rows=", sites["matmul_packed"])
        self.assertTrue("transform=" in sites["3x3"], sites)
        for site, before, after, _ in rows[:-1]:
            self.assertGreater(before, 0, site)
            self.assertLessEqual(after, before, site)
        one, two = (quern.compile(self.model, cache=self.cache, threads=n)(self.inputs) for n in (1, 2))
        self.check(one)
        for a, b in zip(one, two):
            np.testing.assert_array_equal(a, b)

    def test_compile_may_tune_first(self):
        self.check(quern.compile(self.model, cache=self.cache, tune=True)(self.inputs))

    def test_damaged_entries_are_none(self):
        quern.tune(self.model, cache=self.cache, seconds=0.2)
        for entry in os.scandir(self.cache):
            if not entry.is_file(follow_symlinks=False):
                continue
            with open(entry.path, "r+b") as f:
                f.seek(-1, os.SEEK_END)
                f.write(b"!")
        self.check(quern.compile(self.model, cache=self.cache)(self.inputs))

    def test_without_a_folder_nothing_is_measured(self):
        with self.assertRaisesRegex(quern.Error, "kept in the cache folder.* there is none: name one"):
            quern.tune(self.model, cache="")
        with self.assertRaisesRegex(quern.Error, "kept in the cache folder.* there is none: name one"):
            quern.compile(self.model, cache="", tune=True)

    @unittest.skipIf(os.geteuid() == 0, "root may write everywhere")
    def test_a_folder_that_cannot_be_written(self):
        os.chmod(self.cache, 0o500)
        with self.assertRaisesRegex(quern.Error, "cannot be written to: Permission denied"):
            quern.tune(self.model, cache=self.cache)

    def test_what_cannot_be_tuned(self):
        with self.assertRaisesRegex(quern.ArgumentError, "there is no entry|has no entry 'x'"):
            quern.tune(self.model, entry="x")
        with self.assertRaisesRegex(quern.ArgumentError, "tuning measures machine code for this CPU"):
            quern.compile(self.model, target="interp", tune=True)


if __name__ == "__main__":
    unittest.main()
