"""ONNX's own backend tests through quern.backend: the cases of tests/onnx_passing.txt must pass.

    python test_onnx_backend_slow.py            runs the listed cases
    python test_onnx_backend_slow.py --update   runs all cases and adds those that pass now to the list; it only grows
"""
import pathlib
import sys
import unittest
import warnings

try:
    import onnx.backend.test
except ImportError:
    raise unittest.SkipTest("the onnx package is not installed")

import quern.backend

LIST = pathlib.Path(__file__).parents[1] / "onnx_passing.txt"


def listed():
    return set(LIST.read_text().split())


def all_cases():
    """Test class -> test names; real models, which have to be downloaded, are left out."""
    runner = onnx.backend.test.BackendTest(quern.backend.QuernBackend, __name__)
    runner.exclude(r"_cuda$")
    return {name: case for name, case in runner.test_cases.items() if name != "OnnxBackendRealModelTest"}


def load_tests(loader, tests, pattern):
    warnings.simplefilter("ignore")
    known, suite = listed(), unittest.TestSuite()
    for case in all_cases().values():
        names = [n for n in loader.getTestCaseNames(case) if n in known]
        known.difference_update(names)
        suite.addTests(case(n) for n in names)
    if known:  # of another version of the onnx package
        print(f"{len(known)} listed cases are not in this version of onnx", file=sys.stderr)
    return suite


def update():
    warnings.simplefilter("ignore")
    passing = listed() if LIST.exists() else set()
    for case in all_cases().values():
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            result = unittest.TestResult()
            case(name).run(result)
            if result.testsRun and result.wasSuccessful() and not result.skipped:
                passing.add(name)
    LIST.write_text("".join(f"{name}\n" for name in sorted(passing)))
    print(len(passing), "cases pass")


if __name__ == "__main__":
    if sys.argv[1:] == ["--update"]:
        update()
    else:
        unittest.main()
