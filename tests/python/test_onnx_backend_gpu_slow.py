"""ONNX's own backend tests on a GPU, which tests/fake_cuda stands for: what passes on the CPU passes there, but for operators that make
strings or read their characters."""
import os
import unittest
import warnings

LIBRARY = os.environ.get("QUERN_FAKE_CUDA")
if not LIBRARY or not os.path.exists(LIBRARY):
    raise unittest.SkipTest("QUERN_FAKE_CUDA is not the driver that the tests build")
os.environ["QUERN_CUDA_LIBRARY"] = LIBRARY

try:
    import onnx.backend.test
except ImportError:
    raise unittest.SkipTest("the onnx package is not installed")

import quern.backend
import test_onnx_backend_slow as on_cpu

OF_STRINGS = ("test_string_", "test_strnorm", "test_regex_")


def load_tests(loader, tests, pattern):
    warnings.simplefilter("ignore")
    runner = onnx.backend.test.BackendTest(quern.backend.QuernBackend, __name__)
    known, suite = on_cpu.listed(), unittest.TestSuite()
    for name, case in runner.test_cases.items():
        if name != "OnnxBackendRealModelTest":
            suite.addTests(case(n + "_cuda") for n in (n.removesuffix("_cuda") for n in loader.getTestCaseNames(case)
                                                       if n.endswith("_cuda"))
                           if n + "_cpu" in known and not n.startswith(OF_STRINGS))
    return suite


if __name__ == "__main__":
    unittest.main()
