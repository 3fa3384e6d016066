"""Generative adversarial networks in C: see test_systems.py."""

import re
import tempfile
import unittest
import zlib

from test_systems import PROGRAMS, System


def pixels(data):
    """Width, height and rows of a PNG of 8-bit grays, with their filter bytes."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        n, kind = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        chunks[kind] = chunks.get(kind, b"") + data[at + 8:at + 8 + n]
        at += 12 + n
    width, height = (int.from_bytes(chunks[b"IHDR"][i:i + 4], "big") for i in (0, 4))
    return width, height, zlib.decompress(chunks[b"IDAT"])


@unittest.skipUnless((PROGRAMS / "gan").exists(), "built without libpng")
class Adversaries(System, unittest.TestCase):
    name, parts = "gan", ("gan-ring", "gan-digits")
    epochs, timeout = 2, 250

    def test_makes_points_and_digits(self):
        with tempfile.TemporaryDirectory() as folder:
            text = self.run_program(folder, "--seed", 2)
            sheets = [pixels(path.read_bytes()) for path in self.files(folder, ".png")]
        modes, share = re.search(r"(\d) of 8 modes, ([\d.]+) % of the samples within 3 sigma", text).groups()
        self.assertEqual(int(modes), 8)
        self.assertGreaterEqual(float(share), 80)
        found, share = re.search(r"(\d+) of 10 digits, each at least \d+ times, ([\d.]+) % of the samples", text).groups()
        self.assertEqual(int(found), 10)
        self.assertGreaterEqual(float(share), 80)
        for (width, height, rows), size in zip(sheets, ((256, 256), (720, 360))):
            self.assertEqual((width, height), size)
            self.assertEqual(len(rows), height * (width + 1))
            self.assertGreater(len(set(rows)), 1)


if __name__ == "__main__":
    unittest.main()
