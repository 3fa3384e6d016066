"""NumPy arrays and the library's."""

import ctypes
import math
from ctypes import POINTER, c_int64

import numpy as np

from ._library import Array, ArgumentError

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None


def _extra(name, bits):
    """A type that NumPy lacks: ml_dtypes has it, else (or in an older version) its bits stand for it."""
    return getattr(ml_dtypes, name, bits)


_DTYPES = [None, np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float16,
           _extra("bfloat16", np.uint16), np.float32, np.float64]
_NARROW = len(_DTYPES)
_DTYPES += [_extra(name, np.uint8) for name in (
    "int4", "uint4", "int2", "uint2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn",
    "float8_e8m0fnu")]
NUMPY = [d and np.dtype(d) for d in _DTYPES]  # by quern_dtype
QUERN = {d: i for i, d in enumerate(NUMPY) if d is not None and not (i >= 11 and d in (np.uint8, np.uint16))}


def to_numpy(x, dtype, what):
    """The input as an array that the library can read in place: contiguous and aligned. A copy only where it is not.

    dtype: of Python numbers and lists, which have none of their own."""
    if type(x) is np.ndarray and x.dtype == dtype:
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x
    if not isinstance(x, np.ndarray):
        if x is None:
            raise ArgumentError(f"{what} is None; the model needs an array")
        if hasattr(x, "__dlpack__"):
            try:
                x = np.from_dlpack(x)
            except (BufferError, RuntimeError, TypeError, ValueError) as error:
                raise ArgumentError(f"{what}: {type(x).__name__} cannot be read in place: {error}") from error
        else:
            try:
                x = np.asarray(x, dtype=None if isinstance(x, np.generic) else dtype)
            except (TypeError, ValueError) as error:
                raise ArgumentError(f"{what}: {type(x).__name__} is not an array of {dtype}: {error}") from error
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    flags = x.flags
    return x if flags.c_contiguous and flags.aligned else np.array(x, order="C")


def of_dtype(x, dtype):
    """Numbers of the same kind (of another width) and whole ones as the dtype; others stay, and are refused where they are bound."""
    bits = dtype.kind == "V" and x.dtype.kind == "u" and x.dtype.itemsize == dtype.itemsize  # stand for bf16 and narrow types
    return x.astype(dtype, copy=False) if not bits and (x.dtype.kind in "bui" or x.dtype.kind == dtype.kind) else x


_char_at = ctypes.c_char.from_buffer


def address_of(x):
    """The address of an array's first element."""
    try:
        return ctypes.addressof(_char_at(x))  # the quick way, where there is an element and it may be written
    except (TypeError, ValueError):
        return x.__array_interface__["data"][0]


def dtype_code(dtype, expected=None):
    """The library's number of a dtype; arrays of plain bits may stand for bf16 and narrow types."""
    code = QUERN.get(dtype)
    size = 2 if expected == 11 else 1 if expected is not None and expected >= _NARROW else 0
    if dtype.itemsize == size and (dtype.kind == "u" or (dtype.kind == "V" and code is None)):
        code = expected
    if code is None:
        raise ArgumentError(f"arrays of {dtype} are not supported")
    return code


def to_quern(array, expected=None):
    """An Array of a contiguous NumPy array; valid as long as that is."""
    dims = (c_int64 * max(array.ndim, 1))(*array.shape)
    return Array(dtype_code(array.dtype, expected), array.ndim, ctypes.cast(dims, POINTER(c_int64)), address_of(array))


class _Memory:
    """Memory of somebody else (`owner`) as NumPy takes it."""

    def __init__(self, address, n_bytes, owner):
        self.owner = owner
        self.__array_interface__ = {"shape": (n_bytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def view(array, owner):
    """A NumPy array on the memory of an Array, which keeps `owner` alive."""
    dtype = NUMPY[array.dtype]
    shape = tuple(array.dims[: array.rank])
    n_bytes = dtype.itemsize
    for d in shape:
        n_bytes *= d
    if n_bytes == 0:
        return np.empty(shape, dtype)
    return np.asarray(_Memory(array.data, n_bytes, owner)).view(dtype).reshape(shape)


# Memory of large arrays comes from the system page by page, which takes longer than much that is computed in it: blocks of arrays
# that nobody has any more are kept for the next.
_LARGE, _KEPT_BLOCKS, _KEPT_BYTES = 4 << 20, 8, 512 << 20


class _Block:
    def __init__(self, n_bytes):
        self.bytes = np.empty(n_bytes + 64, np.uint8)
        self.size = n_bytes
        self.address = -(-self.bytes.ctypes.data // 64) * 64


class _Lease:
    """What an array on a block holds on to."""

    kept = []

    def __init__(self, n_bytes):
        self.block = None
        for block in sorted(self.kept, key=lambda block: block.size):
            if n_bytes <= block.size <= 2 * n_bytes:
                try:
                    self.kept.remove(block)
                except ValueError:  # another thread has it now
                    continue
                self.block = block
                return
        self.block = _Block(n_bytes)

    def __del__(self):
        kept, block = self.kept, self.block
        if block and len(kept) < _KEPT_BLOCKS and sum(other.size for other in kept) + block.size <= _KEPT_BYTES:
            kept.append(block)


def empty(shape, dtype):
    """np.empty, of memory that was used before where the array is large."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < _LARGE or n_bytes > _KEPT_BYTES:
        return np.empty(shape, dtype)
    lease = _Lease(n_bytes)
    return np.asarray(_Memory(lease.block.address, n_bytes, lease)).view(dtype).reshape(shape)
