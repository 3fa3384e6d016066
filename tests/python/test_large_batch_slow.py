"""The large-batch example: PyTorch's losses, resuming, the simulation."""

import os
import pathlib
import re
import tempfile
import unittest

import programs

SOURCE = pathlib.Path(os.environ.get("QUERN_SOURCE_DIR", "."))
BUILD = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release"))
PROGRAM = BUILD / "examples" / "large_batch"


class LargeBatch(unittest.TestCase):
    def run_program(self, *options):
        """(what it says, the losses of each step by method)"""
        with tempfile.TemporaryDirectory() as folder:
            run = programs.run([PROGRAM, "--out", folder, "--threads", "1", *map(str, options)], timeout=500)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            losses = {path.stem.partition("-")[2]: [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]
                      for path in pathlib.Path(folder).glob("*.csv")}
            return run.stdout, losses

    def check_near(self, ours, theirs, tolerance, what):
        self.assertLess(max(abs(a / b - 1) for a, b in zip(ours, theirs)), tolerance, what)

    def test_losses_are_pytorchs(self):
        for method, epochs, rate in ("small", 1, 0.01), ("lars", 13, 0.01), ("lamb", 13, 0.01):
            _, losses = self.run_program("--method", method, "--epochs", epochs, "--rate", rate)
            path = SOURCE / "examples" / "large_batch" / f"large_batch-{method}.losses.txt"
            theirs = [float(v) for v in path.read_text().split()]
            self.assertEqual(len(theirs), 100)
            self.assertGreaterEqual(len(losses[method]), 100)
            self.check_near(losses[method], theirs, 1e-4, method)

    def test_resumes(self):
        with tempfile.TemporaryDirectory() as folder:
            how = [PROGRAM, "--out", folder, "--method", "lars", "--ranks", "2", "--threads", "1"]
            for options in ["--epochs", "1"], ["--epochs", "2", "--resume"]:
                run = programs.run([*how, *options], timeout=300)
                self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn("resumed after epoch 1", run.stdout)
            self.assertEqual(len((pathlib.Path(folder) / "large_batch-lars.csv").read_text().splitlines()), 17)

    def test_simulation(self):
        text, _ = self.run_program("--method", "simulate")
        found = re.findall(r"1024 x 32, norms of (.*): (\d+) us of kernels, (\d+) collectives of ([\d.]+) KB together: step (\d+) us, "
                           r"efficiency ([\d.]+) %; with collectives beside kernels at best (\d+) us, ([\d.]+) %", text)
        self.assertEqual([row[0] for row in found], ["a device's rows", "all rows"])
        for _, compute, n, size, step, share, beside, most in found:
            self.assertLess(float(compute), float(beside) + 1)
            self.assertLessEqual(float(beside), float(step))
            self.assertAlmostEqual(float(share), 100 * float(compute) / float(step), delta=0.5)
            self.assertGreater(int(n), 1)
            self.assertGreater(float(size), 60)
        self.assertGreater(int(found[1][2]), int(found[0][2]))


if __name__ == "__main__":
    unittest.main()
