"""Learning from environments that run in parallel, in C: see test_systems.py."""

import os
import pathlib
import re
import shutil
import tempfile
import unittest
from unittest import mock

import programs
from test_systems import PROGRAMS, System, losses


class ParallelSimulation(System, unittest.TestCase):
    name = "parallel_rl"

    def test_balances_the_pole(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2, "--workers", 2)
        self.assertGreaterEqual(float(re.search(r"mean return ([\d.]+)", text)[1]), 475)
        self.assertLess(float(re.search(r"differs from the n-step return by (\S+)", text)[1]), 1e-6)
        rates = re.findall(r"(\d) workers on each of 1 ranks: (\d+) environment steps a second", text)
        self.assertEqual([n for n, _ in rates], ["1", "2"])
        self.assertGreater(min(int(rate) for _, rate in rates), 1000)

    def test_any_number_of_workers_gives_the_same_bits(self):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as four:
            self.run_program(one, "--epochs", 1, "--environments", 128, "--workers", 1)
            self.run_program(four, "--epochs", 1, "--environments", 128, "--workers", 4)
            for suffix in ".csv", ".safetensors":
                self.assertEqual(*(self.files(folder, suffix)[0].read_bytes() for folder in (one, four)))

    @unittest.skipUnless(shutil.which("mpirun") and (PROGRAMS.parent / "libquern_mpi.so").exists(), "no MPI here")
    def test_ranks_begin_as_one(self):
        """Later, rounding makes a pole fall elsewhere."""
        mpirun = "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ASAN_OPTIONS="detect_leaks=0"):
            one, two = pathlib.Path(folder, "one"), pathlib.Path(folder, "two")
            one.mkdir(), two.mkdir()
            self.run_program(one, "--epochs", 1)
            run = programs.run([*mpirun, PROGRAMS / self.name, "--ranks", "mpi", "--epochs", "1", "--out", two], timeout=100)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            self.assertEqual(len(re.findall("mean return", run.stdout)), 1)
            for a, b in list(zip(losses(one / "parallel_rl.csv"), losses(two / "parallel_rl.csv")))[:10]:
                self.assertLess(abs(a / b - 1), 1e-4)

    def test_says_what_it_needs(self):
        run = programs.run([PROGRAMS / self.name, "--environments", "20"])
        self.assertEqual(run.returncode, 2)
        self.assertIn("each of 1 ranks needs a multiple of 16 environments, at most 1024; 20 are not", run.stderr)


if __name__ == "__main__":
    unittest.main()
