"""A memory network in C: see test_systems.py."""

import re
import tempfile
import unittest

from test_systems import System


class MemoryNetwork(System, unittest.TestCase):
    name, epochs = "memnet", 2

    def test_answers_questions(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
        wrong = [float(v) for v in re.findall(r"([\d.]+) % of the test questions wrong", text)]
        self.assertEqual(len(wrong), 5)
        self.assertLess(max(wrong), 5)


if __name__ == "__main__":
    unittest.main()
