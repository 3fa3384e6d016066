"""The large-batch example: ranks that are threads and ranks of mpirun have the losses of one."""

import os
import shutil
import unittest

import large_batch

MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]


class Ranks(unittest.TestCase):
    def test_ranks_have_the_losses_of_one(self):
        options = "--epochs", 1, "--rate", 0.1
        threads = {}
        for method, ranks in ("lars", 2), ("lamb", 2), ("lamb", 4):
            _, alone = large_batch.run(self, "--method", method, *options)
            _, found = large_batch.run(self, "--method", method, *options, "--ranks", ranks)
            self.assertEqual(len(found[method]), 8)
            large_batch.check_near(self, found[method], alone[method], 1e-5, f"{method}, {ranks} ranks")
            threads[method, ranks] = found
        if not (large_batch.BUILD / "libquern_mpi.so").exists() or not shutil.which("mpirun"):
            self.skipTest("no MPI here")
        os.environ["QUERN_MPI"] = str(large_batch.BUILD / "libquern_mpi.so")
        for ranks in 2, 4:
            text, found = large_batch.run(self, "--method", "lamb", *options, "--ranks", "mpi", before=[*MPIRUN, str(ranks)])
            self.assertEqual(found, threads["lamb", ranks])  # to the bit
            self.assertEqual(text.count("of the test images"), 1)


if __name__ == "__main__":
    unittest.main()
