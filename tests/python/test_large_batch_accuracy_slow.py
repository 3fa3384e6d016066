"""The large-batch example: what LARS and LAMB reach with batches 32 times as large, and momentum alone does not."""

import re
import tempfile
import unittest

import large_batch
import programs


class Accuracy(unittest.TestCase):
    def test_large_batches_reach_what_small_ones_do(self):
        with tempfile.TemporaryDirectory() as folder:
            run = programs.run([large_batch.PROGRAM, "--out", folder, "--seed", "2"], timeout=580)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        shares = {name: float(share) for name, share in re.findall(r"large_batch-(\w+): ([\d.]+) % of the test images", run.stdout)}
        self.assertGreaterEqual(shares["lars"], shares["small"] - 0.5)
        self.assertGreaterEqual(shares["lamb"], shares["small"] - 0.5)
        self.assertLess(shares["sgd"], shares["small"] - 0.5)


if __name__ == "__main__":
    unittest.main()
