"""python -m quern: the command `quern` that lies beside the library."""

import os
import sys

from ._library import path


def main():
    command = os.path.join(os.path.dirname(os.path.abspath(path)), "quern")
    if not os.access(command, os.X_OK):
        sys.exit(f"there is no command beside {path}")
    os.execv(command, ["quern", *sys.argv[1:]])


if __name__ == "__main__":
    main()
