#!/usr/bin/env bash
# The Python package as pip installs it: with the library and the command inside, and nothing of the checkout.
set -u
python=$(command -v "${QUERN_SOURCE_DIR:?}/build/venv/bin/python3" || command -v python3)
if [ -n "${QUERN_SANITIZE-}" ] || ! "$python" -c 'import numpy, pip' 2>/dev/null; then
    echo "skipped: it needs NumPy, pip, and a build without sanitizers"
    exit 77
fi
. "$QUERN_SOURCE_DIR/tests/shell/common.sh"
unset PYTHONPATH

must "$python" -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps -w first "$QUERN_SOURCE_DIR"
must "$python" -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps -w second "$QUERN_SOURCE_DIR"
same first/quern-*.whl second/quern-*.whl
must "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target site first/quern-*.whl
unset QUERN_LIBRARY
export PYTHONPATH=$folder/site PYTHONDONTWRITEBYTECODE=1
version=$("$quern" --version)
cat >use.py <<'END'
import numpy as np, quern
assert quern.__file__.startswith("site/") or "/site/" in quern.__file__, quern.__file__
double = quern.compile(b"graph @f(%x: f32[n]) -> (y: f32[n]) {\n%0 = add %x, %x : f32[n]\nreturn %0\n}")
assert double([np.ones(3, np.float32)])[0].tolist() == [2, 2, 2]
import importlib.metadata
assert importlib.metadata.version("quern") == quern.__version__, quern.__version__
END
must "$python" use.py
for file in __init__.pyi py.typed; do
    same site/quern/$file "$QUERN_SOURCE_DIR/python/quern/$file"
done
expect 0 "^$version\$" "$python" -m quern --version
expect 0 "^$version\$" site/bin/quern --version
expect 2 "no command 'fly'" site/bin/quern fly
[ $n_failed -eq 0 ]
