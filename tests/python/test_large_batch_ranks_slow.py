"""The large-batch example: ranks that are threads and ranks of mpirun have the losses of one."""

import os
import pathlib
import shutil
import tempfile
import unittest

import programs

BUILD = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release"))
PROGRAM = BUILD / "examples" / "large_batch"
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]


class Ranks(unittest.TestCase):
    def run_program(self, *options, before=()):
        """(what it says, the losses of each step by method)"""
        with tempfile.TemporaryDirectory() as folder:
            run = programs.run([*before, PROGRAM, "--out", folder, "--threads", "1", *map(str, options)], timeout=500)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            losses = {path.stem.partition("-")[2]: [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]
                      for path in pathlib.Path(folder).glob("*.csv")}
            return run.stdout, losses

    def check_near(self, ours, theirs, tolerance, what):
        self.assertLess(max(abs(a / b - 1) for a, b in zip(ours, theirs)), tolerance, what)

    def test_ranks_have_the_losses_of_one(self):
        options = "--epochs", 1, "--rate", 0.1
        threads = {}
        for method, ranks in ("lars", 2), ("lamb", 2), ("lamb", 4):
            _, alone = self.run_program("--method", method, *options)
            _, found = self.run_program("--method", method, *options, "--ranks", ranks)
            self.assertEqual(len(found[method]), 8)
            self.check_near(found[method], alone[method], 1e-5, f"{method}, {ranks} ranks")
            threads[method, ranks] = found
        if not (BUILD / "libquern_mpi.so").exists() or not shutil.which("mpirun"):
            self.skipTest("no MPI here")
        os.environ["QUERN_MPI"] = str(BUILD / "libquern_mpi.so")
        for ranks in 2, 4:
            text, found = self.run_program("--method", "lamb", *options, "--ranks", "mpi", before=[*MPIRUN, str(ranks)])
            self.assertEqual(found, threads["lamb", ranks])  # to the bit
            self.assertEqual(text.count("of the test images"), 1)


if __name__ == "__main__":
    unittest.main()
