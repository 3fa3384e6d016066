"""run.py FILE: runs one file of Python tests; exit status 77 where all of it was skipped.

ctest sets PYTHONPATH (python/) and QUERN_LIBRARY (libquern.so). Where scripts/setup made build/venv, its interpreter
is used, so that optional packages (onnx) are found.
"""

import importlib.util
import os
import sys
import unittest

SKIPPED = 77
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main(path):
    venv_python = os.path.join(root, "build", "venv", "bin", "python3")
    if os.path.exists(venv_python) and not os.environ.get("QUERN_IN_VENV"):
        os.environ["QUERN_IN_VENV"] = "1"
        os.execv(venv_python, [venv_python, os.path.abspath(__file__), path])
    if importlib.util.find_spec("numpy") is None:
        print("skipped: NumPy is missing (Debian and Ubuntu: apt-get install python3-numpy)")
        return SKIPPED
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except unittest.SkipTest as skip:
        print(f"skipped: {skip}")
        return SKIPPED
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    if suite.countTestCases() == 0:
        print(f"{path}: no test in it", file=sys.stderr)
        return 1
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if not result.wasSuccessful():
        return 1
    return SKIPPED if len(result.skipped) == result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
