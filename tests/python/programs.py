"""How tests run programs that were built beside them."""

import os
import subprocess


def run(command, **options):
    """A program has its own sanitizer: the one that is preloaded for Python would come first."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)
