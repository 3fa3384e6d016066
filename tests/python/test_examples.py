"""The Python examples do what they say."""

import os
import re
import subprocess
import sys
import unittest

FOLDER = os.path.join(os.environ.get("QUERN_SOURCE_DIR", "."), "examples", "python")


class Examples(unittest.TestCase):
    def test_spirals(self):
        run = subprocess.run([sys.executable, os.path.join(FOLDER, "spirals.py")], capture_output=True, text=True, timeout=100)
        self.assertEqual(run.returncode, 0, run.stderr)
        right = [float(p) for p in re.findall(r"([\d.]+)% of the test points right", run.stdout)]
        self.assertEqual(len(right), 5)
        self.assertLess(right[0], 80)
        self.assertGreaterEqual(right[-1], 99)


if __name__ == "__main__":
    unittest.main()
