"""The example systems in C: what they reach, PyTorch's losses, and that they resume to the same bits."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import programs

SOURCE = pathlib.Path(os.environ.get("QUERN_SOURCE_DIR", "."))
PROGRAMS = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release")) / "examples"


def losses(path):
    return [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]


class System:
    name = ""
    parts = ()  # what it trains; () stands for one, of the program's own name
    first = 1  # epochs until the first 100 steps are done
    epochs = 4  # of the run that is stopped half-way
    options = ()  # of the program's own
    timeout = 100

    def run_program(self, folder, *options):
        run = programs.run([PROGRAMS / self.name, "--out", folder, *map(str, self.options + options)],
                           timeout=self.timeout)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        return run.stdout

    def files(self, folder, suffix):
        return [pathlib.Path(folder) / f"{part}{suffix}" for part in self.parts or (self.name,)]

    def test_losses_are_pytorchs(self):
        with tempfile.TemporaryDirectory() as folder:
            self.run_program(folder, "--epochs", self.first)
            for csv, svg in zip(self.files(folder, ".csv"), self.files(folder, ".svg")):
                ours = losses(csv)
                theirs = [float(v) for v in (SOURCE / "examples" / self.name / f"{csv.stem}.losses.txt").read_text().split()]
                self.assertEqual(len(theirs), 100)
                self.assertGreaterEqual(len(ours), 100)
                worst = max(abs(a / b - 1) for a, b in zip(ours, theirs))
                self.assertLess(worst, 1e-4, csv.name)
                self.assertIn("<polyline", svg.read_text())

    def test_resumes_to_the_same_bits(self):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            self.run_program(one, "--epochs", self.epochs, "--seed", 3)
            self.run_program(two, "--epochs", self.epochs // 2, "--seed", 3)
            half = [path.read_bytes() for path in self.files(two, ".safetensors")]
            text = self.run_program(two, "--epochs", self.epochs, "--seed", 3, "--resume", "--threads", 1)
            self.assertEqual(len(re.findall(f"resumed after epoch {self.epochs // 2}", text)), len(half))
            for suffix in ".safetensors", ".csv", ".svg":
                for a, b in zip(self.files(one, suffix), self.files(two, suffix)):
                    self.assertEqual(a.read_bytes(), b.read_bytes(), a.name)
            self.assertNotEqual(half, [path.read_bytes() for path in self.files(two, ".safetensors")])


class Regression(System, unittest.TestCase):
    name, parts, first = "logreg", ("logreg-linear", "logreg-logistic", "logreg-digits"), 100

    def test_reaches_the_optimum(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        differences = [abs(float(v)) for v in re.findall(r"difference (\S+)", text)]
        self.assertEqual(len(differences), 2)
        self.assertLess(max(differences), 1e-6)
        self.assertGreater(float(re.search(r"([\d.]+) % of the test digits", text)[1]), 92)

    def test_in_python(self):
        run = subprocess.run([sys.executable, SOURCE / "examples" / "logreg" / "logreg.py"], capture_output=True, text=True,
                             timeout=100)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertGreater(float(re.search(r"([\d.]+) % of the test digits", run.stdout)[1]), 92)


class Perceptron(System, unittest.TestCase):
    name, first = "mlp", 5

    def test_tells_spirals_apart(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        self.assertLess(float(re.search(r"central differences by (\S+)", text)[1]), 1e-6)
        self.assertGreaterEqual(float(re.search(r"([\d.]+) % of the test points", text)[1]), 99)


class Convolutions(System, unittest.TestCase):
    name, first = "cnn", 3

    def test_reads_digits(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        self.assertGreaterEqual(float(re.search(r"([\d.]+) % of the test digits", text)[1]), 98)


class QLearning(System, unittest.TestCase):
    name = "dqn"

    def test_balances_the_pole(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        self.assertGreaterEqual(float(re.search(r"mean return ([\d.]+)", text)[1]), 475)


class Tensors(unittest.TestCase):
    def test_c_and_python_and_numpy_agree(self):
        """Memory is checked by both programs, values against NumPy by the one in Python."""
        script = [sys.executable, SOURCE / "examples" / "tensors" / "tensors.py"]
        for driver, n_lines in ("/there/is/no/driver", 51), (os.environ["QUERN_FAKE_CUDA"], 57):
            lines = []
            with mock.patch.dict(os.environ, QUERN_CUDA_LIBRARY=driver):
                for run in (programs.run([PROGRAMS / "tensors"], timeout=100),
                            subprocess.run(script, capture_output=True, text=True, timeout=100)):
                    self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
                    lines.append(run.stdout.splitlines())
            self.assertEqual(*lines)
            self.assertEqual(len(lines[0]), n_lines)


class Dropout(System, unittest.TestCase):
    name, first = "dropout", 5
    parts = "dropout-none", "dropout-activations", "dropout-weights", "dropout-noise"

    def test_masks_are_fair_and_noise_helps(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        sigma, mean = re.search(r"masks: (\S+) sigma from the keep rate, mean (\S+) of ones, the same at", text).groups()
        self.assertLess(abs(float(sigma)), 4)
        self.assertLess(abs(float(mean) - 1), 3e-3)
        without, *others = [float(v) for v in re.findall(r"([\d.]+) % of the test digits wrong", text)]
        self.assertEqual(len(others), 3)
        self.assertLess(max(others), without)


if __name__ == "__main__":
    unittest.main()
