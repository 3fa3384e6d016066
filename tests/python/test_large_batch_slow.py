"""The large-batch example: PyTorch's losses, resuming, the simulation."""

import os
import pathlib
import re
import tempfile
import unittest

import large_batch
import programs

SOURCE = pathlib.Path(os.environ.get("QUERN_SOURCE_DIR", "."))


class LargeBatch(unittest.TestCase):
    def test_losses_are_pytorchs(self):
        for method, epochs, rate in ("small", 1, 0.001), ("lars", 13, 0.01), ("lamb", 13, 0.01):
            _, losses = large_batch.run(self, "--method", method, "--epochs", epochs, "--rate", rate)
            path = SOURCE / "examples" / "large_batch" / f"large_batch-{method}.losses.txt"
            theirs = [float(v) for v in path.read_text().split()]
            self.assertEqual(len(theirs), 100)
            self.assertGreaterEqual(len(losses[method]), 100)
            large_batch.check_near(self, losses[method], theirs, 1e-4, method)

    def test_resumes(self):
        with tempfile.TemporaryDirectory() as folder:
            how = [large_batch.PROGRAM, "--out", folder, "--method", "lars", "--ranks", "2", "--threads", "1"]
            for options in ["--epochs", "1"], ["--epochs", "2", "--resume"]:
                run = programs.run([*how, *options], timeout=300)
                self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn("resumed after epoch 1", run.stdout)
            self.assertEqual(len((pathlib.Path(folder) / "large_batch-lars.csv").read_text().splitlines()), 17)

    def test_simulation(self):
        text, _ = large_batch.run(self, "--method", "simulate")
        found = re.findall(r"1024 x 32, norms of (.*): (\d+) us of kernels, (\d+) collectives of ([\d.]+) KB together, (\d+) of them "
                           r"beside kernels: step (\d+) us, efficiency ([\d.]+) %; without any beside kernels (\d+) us, ([\d.]+) %", text)
        self.assertEqual([row[0] for row in found], ["a device's rows", "all rows"])
        for _, compute, n, size, started, step, share, whole, _ in found:
            self.assertLess(float(compute), float(step) + 1)
            self.assertLess(float(step), float(whole))
            self.assertLessEqual(3, int(started)) # buckets; the last may have nothing to go on beside
            self.assertLessEqual(int(started), 4)
            self.assertAlmostEqual(float(share), 100 * float(compute) / float(step), delta=0.5)
            self.assertGreater(int(n), 1)
            self.assertGreater(float(size), 60)
        self.assertGreater(int(found[1][2]), int(found[0][2]))


if __name__ == "__main__":
    unittest.main()
