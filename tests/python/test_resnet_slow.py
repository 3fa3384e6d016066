"""ResNet-18 and ResNet-50 in C: losses of 100 training steps, and with running statistics, against PyTorch's."""

import os
import pathlib
import re
import tempfile
import unittest

import programs

SOURCE = pathlib.Path(os.environ.get("QUERN_SOURCE_DIR", "."))
PROGRAM = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release")) / "examples" / "resnet"


class ResNet(unittest.TestCase):
    def test_losses_are_pytorchs(self):
        with tempfile.TemporaryDirectory() as folder:
            run = programs.run([PROGRAM, "--out", folder], timeout=550)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            for name in "resnet18", "resnet50":
                ours = [float(line.split(",")[1])
                        for line in (pathlib.Path(folder) / f"{name}.csv").read_text().splitlines()[1:]]
                ours.append(float(re.search(rf"{name}: loss ([\d.]+) with running", run.stdout)[1]))
                theirs = [float(v) for v in (SOURCE / "examples" / "resnet" / f"{name}.losses.txt").read_text().split()]
                self.assertEqual(len(ours), 101)
                self.assertEqual(len(theirs), 101)
                self.assertLess(max(abs(a / b - 1) for a, b in zip(ours, theirs)), 1e-4, name)


if __name__ == "__main__":
    unittest.main()
