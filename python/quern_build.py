"""What pip calls to make a wheel (PEP 517, pyproject.toml): the package, and inside it libquern.so and the command. No dependencies.

They are those beside $QUERN_LIBRARY, where that is set; otherwise build/release, or build/wheel, is built first."""

import base64
import hashlib
import os
import re
import subprocess
import sysconfig
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = os.path.join(ROOT, "python", "quern")


def _version():
    with open(os.path.join(ROOT, "CMakeLists.txt")) as f:
        return re.search(r"project\(Quern VERSION ([0-9.]+)", f.read()).group(1)


def _metadata():
    return (f"Metadata-Version: 2.1\nName: quern\nVersion: {_version()}\nSummary: Graph compiler and code generator in C\n"
            "License: Apache-2.0\nRequires-Python: >=3.9\nRequires-Dist: numpy\n")


def _built():
    """The folder with libquern.so and quern."""
    library = os.environ.get("QUERN_LIBRARY")
    if library:
        return os.path.dirname(os.path.abspath(library))
    folder = os.path.join(ROOT, "build", "release")
    if not os.path.exists(os.path.join(folder, "build.ninja")):
        folder = os.path.join(ROOT, "build", "wheel")
        subprocess.run(["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DQUERN_TESTS=OFF",
                        "-DQUERN_EXAMPLES=OFF"], check=True)
    subprocess.run(["cmake", "--build", folder, "--target", "quern_shared", "quern_cli"], check=True)
    return folder


def _write(folder, tag, files):
    """files: [(name in the wheel, contents, mode)]. The same contents give the same bytes."""
    info = f"quern-{_version()}.dist-info"
    pure = "true" if tag.endswith("any") else "false"
    files = files + [
        (f"{info}/METADATA", _metadata().encode(), 0o644),
        (f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: quern\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode(), 0o644),
        (f"{info}/entry_points.txt", b"[console_scripts]\nquern = quern.__main__:main\n", 0o644)]
    record = ""
    name = f"quern-{_version()}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, contents, mode in sorted(files) + [(f"{info}/RECORD", None, 0o644)]:
            if contents is None:
                contents = (record + f"{path},,\n").encode()
            digest = base64.urlsafe_b64encode(hashlib.sha256(contents).digest()).decode().rstrip("=")
            record += f"{path},sha256={digest},{len(contents)}\n"
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, contents)
    return name


def _read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    built = _built()
    files = [(f"quern/{name}", _read(PACKAGE, name), 0o644) for name in sorted(os.listdir(PACKAGE)) if name.endswith((".py", ".pyi", ".typed"))]
    files += [("quern/libquern.so", _read(built, "libquern.so"), 0o644), ("quern/quern", _read(built, "quern"), 0o755)]
    files.append((f"quern-{_version()}.dist-info/LICENSE", _read(ROOT, "LICENSE"), 0o644))
    return _write(wheel_directory, "py3-none-" + re.sub(r"[-.]", "_", sysconfig.get_platform()), files)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """The package where it is, with the library of build/release."""
    return _write(wheel_directory, "py3-none-any", [("quern.pth", f"{os.path.dirname(PACKAGE)}\n".encode(), 0o644)])


def build_sdist(sdist_directory, config_settings=None):
    name = f"quern-{_version()}"
    subprocess.run(["git", "-C", ROOT, "archive", f"--prefix={name}/", "-o", os.path.join(os.path.abspath(sdist_directory), f"{name}.tar.gz"),
                    "HEAD"], check=True)
    return f"{name}.tar.gz"
