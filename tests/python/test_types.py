"""The stub file says what there is: the names of the package, the members of its classes, parameters. Type checkers read it, if there are any."""

import ast
import importlib.util
import inspect
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import quern

PACKAGE = pathlib.Path(quern.__file__).parent
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text())
# what Python itself, or a member that every class has, does
OWN = {"__doc__", "__module__", "__dict__", "__weakref__", "__slots__", "__repr__", "__reduce__", "__qualname__", "__firstlineno__",
       "__static_attributes__", "__annotations__", "__init__", "__copy__", "__deepcopy__"}


def described(body):
    """{name: its definition} of a module or class."""
    names = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.setdefault(node.name, node)  # what sets a property is behind it
        elif isinstance(node, ast.AnnAssign):
            names[node.target.id] = node
    return names


def public(names):
    return {n for n in names if not n.startswith("_") or n.startswith("__") and n not in OWN}


def parameters(node):
    """[(name, kind, has a default)] of a function of the stub."""
    a, kinds = node.args, inspect.Parameter
    plain = [*a.posonlyargs, *a.args]
    found = [(p.arg, kinds.POSITIONAL_OR_KEYWORD, i >= len(plain) - len(a.defaults)) for i, p in enumerate(plain)]
    found += [(a.vararg.arg, kinds.VAR_POSITIONAL, False)] if a.vararg else []
    found += [(p.arg, kinds.KEYWORD_ONLY, d is not None) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    return found + ([(a.kwarg.arg, kinds.VAR_KEYWORD, False)] if a.kwarg else [])


class Stub(unittest.TestCase):
    def check_function(self, where, node, real):
        given = [(p.name, p.kind, p.default is not p.empty) for p in inspect.signature(real).parameters.values()]
        if where.endswith("__del__"):  # what it needs is kept in a default
            given = given[:1]
        self.assertEqual(parameters(node), given, where)

    def check_class(self, name, node, real):
        said, there = described(node.body), vars(real)
        made = {n for n, v in said.items() if isinstance(v, ast.AnnAssign) and n not in there}  # by __init__
        self.assertEqual(public(said) - made, public(there), name)
        for member, definition in said.items():
            if isinstance(definition, ast.FunctionDef) and member in there:
                value = there[member]
                marks = {getattr(d, "id", None) for d in definition.decorator_list}
                self.assertEqual("property" in marks, isinstance(value, property), f"{name}.{member}")
                self.assertEqual("staticmethod" in marks, isinstance(value, staticmethod), f"{name}.{member}")
                if inspect.isfunction(value) or isinstance(value, staticmethod):
                    self.check_function(f"{name}.{member}", definition, getattr(real, member))
        self.assertEqual([b.id for b in node.bases if b.id != "NamedTuple"],
                         [b.__name__ for b in real.__bases__ if b not in (object, tuple)], name)

    def test_names(self):
        said = described(STUB.body)
        self.assertEqual({n for n in said if not n.startswith("_")}, set(quern.__all__))
        for name in quern.__all__:
            real = getattr(quern, name)
            if inspect.isclass(real):
                if name == "Signature":
                    self.assertEqual(tuple(described(said[name].body)), real._fields)
                else:
                    self.check_class(name, said[name], real)
            elif callable(real):
                self.check_function(name, said[name], real)
        self.assertTrue((PACKAGE / "py.typed").exists())

    @unittest.skipUnless(importlib.util.find_spec("mypy"), "mypy is missing")
    def test_mypy(self):
        """As a type checker sees a program, a right one and one with mistakes; and mypy's own comparison."""
        with tempfile.TemporaryDirectory() as folder:
            def mypy(*arguments):
                run = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True,
                                     env={**os.environ, "MYPYPATH": str(PACKAGE.parent), "PYTHONPATH": str(PACKAGE.parent)})
                return run.returncode, run.stdout + run.stderr

            path = pathlib.Path(folder)
            (path / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n[mypy-quern.*]\nignore_errors = True\n")
            (path / "right.py").write_text(
                "import numpy as np, quern\nm = quern.compile('m.onnx', dims={'n': (1, 4)})\ny, = m([np.ones(3)])\nm.session().run()\n"
                "t = quern.train('m.onnx', 'mse', 'adam', 1e-3, params=['w'])\nloss: float = t.step([y], y)\n"
                "x = quern.Tensor.zeros(2, 3) + 1\nx += np.ones(3)\nwith quern.Tape() as tape:\n    z = (x @ x.T).sum()\n"
                "g, = tape.gradient(z, [x])\nn: int = g.shape[0]\na = np.asarray(2 * g == x)\n")
            (path / "wrong.py").write_text("import quern\nquern.compile('m.onnx', threads='two')\nx: int = quern.load('m.so').target\n")
            self.assertEqual(mypy("mypy", "--strict", "right.py")[0], 0, mypy("mypy", "--strict", "right.py")[1])
            status, said = mypy("mypy", "--strict", "wrong.py")
            self.assertEqual((status, said.count("error:")), (1, 2), said)
            status, said = mypy("mypy.stubtest", "quern", "--ignore-missing-stub", "--concise", "--mypy-config-file", "mypy.ini")
            self.assertEqual([line for line in said.splitlines() if line.startswith("quern.") and not line.startswith(("quern._", "quern.backend"))],
                             [], said)


if __name__ == "__main__":
    unittest.main()
