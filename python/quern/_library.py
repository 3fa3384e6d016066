"""libquern.so by ctypes: finding it, its structures (include/quern.h, include/quern_abi.h), its errors."""

import ctypes
import ctypes.util
import os
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint32,
                    c_uint64, c_void_p)

INPUT, OUTPUT, STATE = range(3)  # quern_role


class Error(Exception):
    """Anything that went wrong in Quern; the message says where and what would do."""


class ModelError(Error):
    """The model is malformed."""


class UnsupportedError(Error):
    """The model is well-formed, but Quern cannot compile it."""


class ArgumentError(Error, ValueError):
    """An argument has the wrong shape, data type or value."""


class OutOfRangeError(ArgumentError, IndexError):
    """An index is outside of what it selects from."""


class FileError(Error, OSError):
    """A file could not be read or written."""


class NumericError(Error, ArithmeticError):
    """A result is NaN or infinite, and check_numerics asks; the message says which node made it."""


_ERRORS = {1: ArgumentError, 2: ArgumentError, 3: OutOfRangeError, 5: ModelError, 6: UnsupportedError, 7: FileError,
           8: MemoryError, 11: NumericError}


class DimRange(Structure):
    _fields_ = [("name", c_char_p), ("min", c_int64), ("max", c_int64)]


class Array(Structure):
    _fields_ = [("dtype", c_int32), ("rank", c_int32), ("dims", POINTER(c_int64)), ("data", c_void_p)]


class KnownInput(Structure):
    _fields_ = [("name", c_char_p), ("array", Array)]


NEEDS = CFUNCTYPE(None, c_void_p, c_char_p, c_int)
NEEDS_DIM = CFUNCTYPE(None, c_void_p, c_char_p, c_char_p, c_int, c_int)


NEEDS_SHAPE = CFUNCTYPE(None, c_void_p, c_char_p, c_int)


class InputShape(Structure):
    _fields_ = [("name", c_char_p), ("text", c_char_p)]


class Group(Structure):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("role", c_int), ("position", c_int), ("sequence", c_int), ("first", c_int),
                ("n", c_int), ("strings", c_int)]


class LoadOptions(Structure):
    _fields_ = [("size", c_size_t), ("n_dims", c_int), ("dims", POINTER(DimRange)), ("n_constants", c_int),
                ("constants", POINTER(KnownInput)), ("seed", c_uint64), ("needs", NEEDS), ("needs_user", c_void_p),
                ("needs_dim", NEEDS_DIM), ("n_shapes", c_int), ("shapes", POINTER(InputShape)), ("needs_shape", NEEDS_SHAPE),
                ("every_dim", c_int)]


class CompileOptions(Structure):
    _fields_ = [("size", c_size_t), ("target", c_char_p), ("cpu", c_char_p), ("math", c_char_p), ("threads", c_int),
                ("optimize", c_int), ("cache", c_char_p), ("progress", c_void_p), ("progress_user", c_void_p),
                ("blas", c_char_p), ("precision", c_char_p), ("check_numerics", c_int), ("remat", c_char_p),
                ("memory_limit", c_int64), ("tune", c_int), ("compile_threads", c_int), ("cancel", c_void_p)]


TUNE_REPORT = CFUNCTYPE(None, c_void_p, c_char_p, c_double, c_double, c_char_p)


class TuneOptions(Structure):
    _fields_ = [("size", c_size_t), ("entry", c_char_p), ("seconds", c_double), ("report", TUNE_REPORT),
                ("report_user", c_void_p)]


class EmitOptions(Structure):
    _fields_ = [("size", c_size_t), ("emit", c_char_p), ("prefix", c_char_p), ("weights", c_char_p),
                ("header", c_char_p)]


class TrainOptions(Structure):
    _fields_ = [("size", c_size_t), ("loss", c_char_p), ("optimizer", c_char_p), ("learning_rate", c_double),
                ("momentum", c_double), ("beta1", c_double), ("beta2", c_double), ("epsilon", c_double),
                ("weight_decay", c_double), ("nesterov", c_int), ("alpha", c_double), ("trust", c_double),
                ("clip_norm", c_double), ("ema", c_double), ("huber_delta", c_double), ("schedule", c_char_p),
                ("warmup_steps", c_int64), ("schedule_steps", c_int64), ("schedule_factor", c_double),
                ("n_params", c_int), ("params", POINTER(c_char_p)), ("seed", c_uint64), ("parts", c_int),
                ("input_gradients", c_int), ("loss_scale", c_double), ("loss_scale_steps", c_int64),
                ("math", c_char_p), ("label_smoothing", c_double), ("data_parallel", c_int),
                ("sync_batch_norm", c_int), ("bucket_bytes", c_int64), ("name", c_char_p)]


class CommTable(Structure):
    _fields_ = [("size", c_size_t), ("rank", c_int32), ("ranks", c_int32), ("all_reduce", c_void_p), ("all_gather", c_void_p),
                ("reduce_scatter", c_void_p), ("broadcast", c_void_p), ("fail", ctypes.CFUNCTYPE(None, c_void_p, c_char_p))]


class SymbolInfo(Structure):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("min", c_int64), ("max", c_int64), ("decided", c_int32)]


class BufferInfo(Structure):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("role", c_int32), ("dtype", c_int32), ("rank", c_int32),
                ("alias", c_int32), ("dims", POINTER(c_int64)), ("symbols", POINTER(c_int32)), ("text", c_char_p),
                ("initial", c_int64), ("trainable", c_int32)]


class EntryInfo(Structure):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("run", c_void_p), ("workspace_bytes", c_void_p),
                ("shape", c_void_p), ("n_buffers", c_int32), ("n_symbols", c_int32), ("buffers", c_void_p),
                ("symbols", c_void_p), ("n_nodes", c_int32), ("node_names", POINTER(c_char_p)), ("limits", c_void_p)]


class ModelInfo(Structure):
    _fields_ = [("size", c_size_t), ("abi_version", c_uint32), ("name", c_char_p), ("target", c_char_p),
                ("n_entries", c_int32), ("entries", c_void_p), ("weights_bytes", c_int64), ("weights", c_void_p),
                ("weights_hash", c_char_p)]


_HANDLE = POINTER(c_void_p)
_FUNCTIONS = {  # name: result, arguments
    "quern_version": (c_char_p, []),
    "quern_last_error": (c_char_p, []),
    "quern_last_status": (c_int, []),
    "quern_load": (c_int, [c_char_p, POINTER(LoadOptions), _HANDLE]),
    "quern_load_bytes": (c_int, [c_char_p, c_size_t, POINTER(LoadOptions), _HANDLE]),
    "quern_module_free": (None, [c_void_p]),
    "quern_module_text": (c_int, [c_void_p, _HANDLE]),
    "quern_module_strings": (c_int, [c_void_p, POINTER(POINTER(c_char_p))]),
    "quern_module_groups": (c_int, [c_void_p, POINTER(POINTER(Group))]),
    "quern_free": (None, [c_void_p]),
    "quern_sessions_save": (c_int, [c_int, _HANDLE, c_char_p, c_char_p]),
    "quern_sessions_restore": (c_int, [c_int, _HANDLE, c_char_p, POINTER(c_void_p)]),
    "quern_session_write_onnx": (c_int, [c_void_p, c_char_p, c_char_p, c_int]),
    "quern_grad": (c_int, [c_void_p, c_char_p, c_char_p, c_int, POINTER(c_char_p), c_char_p]),
    "quern_jvp": (c_int, [c_void_p, c_char_p, c_int, POINTER(c_char_p), c_char_p]),
    "quern_make_training": (c_int, [c_void_p, POINTER(TrainOptions)]),
    "quern_compile": (c_int, [c_void_p, POINTER(CompileOptions), _HANDLE]),
    "quern_compile_file": (c_int, [c_void_p, POINTER(CompileOptions), POINTER(EmitOptions), c_char_p]),
    "quern_cache_trim": (c_int, [c_char_p, c_int64, POINTER(c_int64), POINTER(c_int64)]),
    "quern_tune": (c_int, [c_void_p, POINTER(CompileOptions), POINTER(TuneOptions)]),
    "quern_model_open": (c_int, [c_char_p, c_char_p, _HANDLE]),
    "quern_model_free": (None, [c_void_p]),
    "quern_model_describe": (POINTER(ModelInfo), [c_void_p]),
    "quern_model_entry": (POINTER(EntryInfo), [c_void_p, c_char_p]),
    "quern_session_new": (c_int, [c_void_p, c_char_p, _HANDLE]),
    "quern_session_free": (None, [c_void_p]),
    "quern_session_bind": (c_int, [c_void_p, c_int, c_void_p]),  # the Array's address: quicker than a reference
    "quern_session_bind_tensor": (c_int, [c_void_p, c_int, c_void_p]),
    "quern_session_tensor": (c_void_p, [c_void_p, c_int]),
    "quern_session_states_to": (c_int, [c_void_p, c_char_p]),
    "quern_session_run": (c_int, [c_void_p]),
    "quern_session_dims": (c_int, [c_void_p, c_int, POINTER(c_int64)]),
    "quern_session_get": (c_int, [c_void_p, c_int, POINTER(Array)]),
    "quern_session_bind_from": (c_int, [c_void_p, c_void_p]),
    "quern_session_share_states": (c_int, [c_void_p, c_void_p]),
    "quern_session_strings": (c_void_p, [c_void_p]),
    "quern_strings_number": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(c_int64)]),
    "quern_strings_text": (c_void_p, [c_void_p, c_int64, POINTER(c_size_t)]),
    "quern_strings_clear": (None, [c_void_p]),
    "quern_strings_limit": (None, [c_void_p, c_size_t]),
    "quern_session_set_comm": (None, [c_void_p, c_void_p]),
    "quern_session_broadcast_states": (c_int, [c_void_p, c_int]),
    "quern_comm_threads": (c_int, [c_int, POINTER(c_void_p)]),
    "quern_comm_mpi": (c_int, [_HANDLE]),
    "quern_comm_free": (None, [c_void_p]),
    "quern_comm_all_reduce": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int]),
    "quern_comm_all_gather": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_int]),
    "quern_comm_reduce_scatter": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int]),
    "quern_comm_broadcast": (c_int, [c_void_p, c_void_p, c_int64, c_int, c_int]),
}


def _find():
    """$QUERN_LIBRARY; else that of the package; else the build of this checkout; else what the system knows."""
    named = os.environ.get("QUERN_LIBRARY")
    if named:
        return named
    package = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(package))
    for found in (os.path.join(package, "libquern.so"), os.path.join(root, "build", "release", "libquern.so")):
        if os.path.exists(found):
            return found
    return ctypes.util.find_library("quern") or "libquern.so.0"


def _load():
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"libquern.so cannot be loaded ({error}): build it, or let QUERN_LIBRARY be its path") from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


path = _find()
lib = _load()
last_status = lib.quern_last_status
version = lib.quern_version().decode()


def error_of(status):
    """The exception for a failed call of this thread."""
    return _ERRORS.get(status, Error)(lib.quern_last_error().decode(errors="replace"))


def check(status):
    if status:
        raise error_of(status)


def refuse_to_copy(self):
    """As __reduce__: what pickle and copy would make of the addresses is nothing."""
    raise TypeError("what lies in the library's memory cannot be copied or pickled: models that quern.compile or quern.load made can, "
                    "parameters and states go into a checkpoint (quern.save_checkpoint)")


class Handle:
    """Owns what the library made."""

    __slots__ = ("pointer", "_free", "_keep", "__weakref__")

    def __init__(self, make, free, *arguments, keep=None):
        out = c_void_p()
        self.pointer = None
        check(make(*arguments, ctypes.byref(out)))
        self.pointer, self._free, self._keep = out, free, keep

    def __del__(self):
        if self.pointer:
            self._free(self.pointer)

    __reduce__ = refuse_to_copy


def table(address, kind, n):
    """The n structures at an address; they state their own size, which may be another version's."""
    items = []
    for _ in range(n):
        item = kind.from_address(address)
        items.append(item)
        address += item.size
    return items
