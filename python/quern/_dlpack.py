"""DLPack for tensors on GPUs; for those on the CPU NumPy does it. https://dmlc.github.io/dlpack/latest/c_api.html"""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p

import numpy as np

from ._arrays import NUMPY, QUERN
from ._library import Array, ArgumentError, lib

CPU = (1, 0)
CUDA = 2
_LEGACY_STREAM = 1  # the default one of a context, on which everything of ours happens
_UNUSED, _USED = b"dltensor", b"used_dltensor"  # names of capsules; the library keeps the addresses
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("device", c_int32), ("device_number", c_int32), ("rank", c_int32), ("code", c_uint8),
                ("bits", c_uint8), ("lanes", c_uint16), ("dims", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]


_DELETER = ctypes.CFUNCTYPE(None, c_void_p)


class _Managed(Structure):
    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", _DELETER)]


def _python(name, result, *arguments):
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


# Capsules by address where they are about to end: no reference may be taken then.
_is_valid = _python("PyCapsule_IsValid", ctypes.c_int, c_void_p, c_char_p)
_pointer_at = _python("PyCapsule_GetPointer", c_void_p, c_void_p, c_char_p)
_pointer = _python("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
_set_name = _python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, c_char_p)
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, c_void_p)
_new_capsule = _python("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, _DESTRUCTOR)


def gpu_of(x):
    """The number of the GPU that somebody's tensor is on; None: it is on the CPU, or no tensor."""
    ask = None if isinstance(x, (np.ndarray, np.generic)) else getattr(x, "__dlpack_device__", None)
    if ask is None:
        return None
    kind, number = ask()
    return number if kind == CUDA else None


# ---- giving

_given = {}  # by address of a managed tensor: it, and what it needs


@_DELETER
def _delete(address, _given=_given, _wait=lib.quern_device_wait):
    """Whoever took it may have used it on a stream of their own: what they asked for is done before the memory is ours."""
    given = _given.pop(address, None)
    if given:
        _wait(given[-1])


@_DESTRUCTOR
def _end(capsule):
    """Of a capsule that nobody took."""
    if _is_valid(capsule, _UNUSED):
        _given.pop(_pointer_at(capsule, _UNUSED), None)


def export(x, device):
    """A capsule of a Tensor, which lives as long as whoever takes it."""
    dtype = x.dtype
    code = _BFLOAT if dtype.name == "bfloat16" else _CODES.get(dtype.kind)
    if code is None:
        raise BufferError(f"DLPack has no {dtype}")
    dims, strides = ((c_int64 * max(x.ndim, 1))(*values) for values in (x.shape, x.strides))
    managed = _Managed(_Tensor(x.data_ptr(), *device, x.ndim, code, 8 * dtype.itemsize, 1, dims, strides, 0), None, _delete)
    address = ctypes.addressof(managed)
    _given[address] = managed, dims, strides, x, x.device.encode()
    return _new_capsule(address, _UNUSED, _end)


# ---- taking

class _Taken:
    """Somebody's managed tensor, which is given back when this is forgotten."""

    def __init__(self, address):
        self.address, self.managed = address, _Managed.from_address(address)

    def __del__(self):
        if self.managed.deleter:
            self.managed.deleter(self.address)


def _dtype(tensor):
    if tensor.lanes == 1:
        if tensor.code == _BFLOAT and tensor.bits == 16:
            return 11
        for dtype, number in QUERN.items():
            if _CODES.get(dtype.kind) == tensor.code and 8 * dtype.itemsize == tensor.bits and number <= 13:
                return number
    raise ArgumentError(f"DLPack's data type ({tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes) is not supported")


def take(x):
    """(owner, device, Array, strides) of somebody's tensor on a GPU; the last two are valid as long as the owner."""
    try:
        capsule = x.__dlpack__(stream=_LEGACY_STREAM)
        address = _pointer(capsule, _UNUSED)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"{type(x).__name__} cannot be read in place: {error}") from error
    tensor = _Managed.from_address(address).tensor
    array = Array(_dtype(tensor), tensor.rank, tensor.dims, (tensor.data or 0) + tensor.byte_offset)
    _set_name(capsule, _USED)
    return _Taken(address), f"cuda:{tensor.device_number}", array, tensor.strides or None
