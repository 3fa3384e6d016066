"""Runs the large-batch example."""

import os
import pathlib
import tempfile

import programs

BUILD = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release"))
PROGRAM = BUILD / "examples" / "large_batch"


def run(test, *options, before=()):
    """(what it says, the losses of each step by method)"""
    with tempfile.TemporaryDirectory() as folder:
        run = programs.run([*before, PROGRAM, "--out", folder, "--threads", "1", *map(str, options)], timeout=500)
        test.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        losses = {path.stem.partition("-")[2]: [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]
                  for path in pathlib.Path(folder).glob("*.csv")}
        return run.stdout, losses


def check_near(test, ours, theirs, tolerance, what):
    test.assertLess(max(abs(a / b - 1) for a, b in zip(ours, theirs)), tolerance, what)
