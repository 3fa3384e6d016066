"""A neural programmer-interpreter in C: see test_systems.py."""

import tempfile
import unittest

from test_systems import System


class ProgrammerInterpreter(System, unittest.TestCase):
    name, epochs = "npi", 2

    def test_adds_numbers_longer_than_it_has_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
            self.assertIn("1000 of 1000 sums of 100 digits right", text)
            lines = self.run_program(folder, "--seed", 2, "--resume", "--trace", 96, 7).splitlines()
        called = [line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")]
        self.assertEqual(called, ["ADD1", "LSHIFT"] * 3)
        self.assertIn("    ACT WRITE OUT 3", lines)
        self.assertEqual(lines[-1], "96 + 7 = 103")


if __name__ == "__main__":
    unittest.main()
