"""Tensors that are computed at once, and the tape: include/quern_tensor.h."""

import ctypes
import operator
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint64, c_void_p
from functools import lru_cache

import numpy as np

from ._arrays import NUMPY, QUERN, address_of, dtype_code
from . import _dlpack
from ._library import Array, ArgumentError, Handle, check, error_of, last_status, lib
from ._model import compile_options, module_text

_RELEASE = ctypes.CFUNCTYPE(None, c_void_p)
_AXES = POINTER(c_int)
_DIMS = POINTER(c_int64)
_P = c_void_p
_FUNCTIONS = {  # name: result, arguments
    "free": (None, [_P]),
    "retain": (_P, [_P]),
    "wrap": (_P, [POINTER(Array), _DIMS, _RELEASE, c_void_p]),
    "wrap_on": (_P, [c_char_p, POINTER(Array), _DIMS, _RELEASE, c_void_p]),
    "number": (_P, [c_int, c_double, c_int64]),
    "new": (_P, [c_int, c_int, _DIMS]),
    "new_on": (_P, [c_char_p, c_int, c_int, _DIMS]),
    "to": (_P, [_P, c_char_p]),
    "device": (c_char_p, [_P]),
    "arange": (_P, [c_int, c_double, c_double, c_double]),
    "full": (_P, [c_int, c_int, _DIMS, c_double]),
    "eye": (_P, [c_int, c_int64]),
    "uniform": (_P, [c_int, c_int, _DIMS, c_uint64]),
    "randn": (_P, [c_int, c_int, _DIMS, c_uint64]),
    "dtype": (c_int, [_P]),
    "rank": (c_int, [_P]),
    "dims": (_DIMS, [_P]),
    "strides": (_DIMS, [_P]),
    "elements": (c_int64, [_P]),
    "data": (_P, [_P]),
    "storage": (_P, [_P, POINTER(c_size_t), POINTER(c_int)]),
    "is_contiguous": (c_int, [_P]),
    "item": (c_int, [_P, POINTER(c_double)]),
    "transpose": (_P, [_P, _AXES]),
    "slice": (_P, [_P, c_int, c_int64, c_int64, c_int64]),
    "select": (_P, [_P, c_int, c_int64]),
    "broadcast": (_P, [_P, c_int, _DIMS]),
    "reshape": (_P, [_P, c_int, _DIMS]),
    "contiguous": (_P, [_P]),
    "copy": (_P, [_P]),
    "convert": (_P, [_P, c_int]),
    "assign": (c_int, [_P, _P]),
    "elementwise": (_P, [c_char_p, _P, _P, _P]),
    "where": (_P, [_P, _P, _P]),
    "reduce": (_P, [c_char_p, _P, c_int, _AXES, c_int]),
    "arg": (_P, [c_char_p, _P, c_int]),
    "cumulative": (_P, [c_char_p, _P, c_int]),
    "matmul": (_P, [_P, _P]),
    "op": (_P, [c_char_p, c_int, POINTER(_P), c_char_p]),
    "index_select": (_P, [_P, c_int, _P]),
    "gather": (_P, [_P, c_int, _P]),
    "masked_select": (_P, [_P, _P]),
    "put": (c_int, [_P, c_int, _P, _P]),
    "concatenate": (_P, [c_int, POINTER(_P), c_int]),
}


class _Calls:
    """The functions quern_tensor_NAME."""


_c = _Calls()
for _name, (_result, _arguments) in _FUNCTIONS.items():
    _function = getattr(lib, "quern_tensor_" + _name)
    _function.restype, _function.argtypes = _result, _arguments
    setattr(_c, _name, _function)

for _name, _result, _arguments in (("tape_begin", _P, []), ("tape_end", None, [_P]), ("tape_free", None, [_P]),
                                   ("tape_gradient", c_int, [_P, _P, c_int, POINTER(_P), POINTER(_P)]),
                                   ("tape_compile", c_int, [_P, c_int, POINTER(_P), c_void_p, POINTER(_P)]),
                                   ("tape_module", c_int, [_P, c_int, POINTER(_P), POINTER(_P)]),
                                   ("step_run", c_int, [_P]), ("step_free", None, [_P]),
                                   ("device_count", c_int, []), ("device_wait", c_int, [c_char_p]),
                                   ("device_trim", c_int, [c_char_p])):
    _function = getattr(lib, "quern_" + _name)
    _function.restype, _function.argtypes = _result, _arguments

_free = _c.free
_elementwise = _c.elementwise


def _new(pointer):
    """A Tensor of what a call gave."""
    if not pointer:
        raise error_of(last_status())
    x = _make(Tensor)
    x._p = pointer
    return x


def _made(pointer, device):
    """A Tensor of what a call gave, brought to a device."""
    x = _new(pointer)
    return x if device is None else x.to(device)


def _ints(values, kind=c_int64):
    values = tuple(values)
    return len(values), (kind * max(len(values), 1))(*values)


def _shape(shape):
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = shape[0]
    return _ints(shape)


def _axes(axis):
    """A number of axes and axes; None: all."""
    if axis is None:
        return -1, None
    return _ints(axis if isinstance(axis, (tuple, list)) else (axis,), c_int)


def _code(dtype):
    return dtype_code(np.dtype(dtype))


@lru_cache(maxsize=256)
def _number(kind, value):
    """A scalar whose data type gives way. Nobody writes to it, so it may be kept."""
    if kind is bool:
        return _new(_c.number(QUERN[np.dtype(bool)], 0, value))
    if kind is int:
        return _new(_c.number(QUERN[np.dtype(np.int64)], 0, value))
    return _new(_c.number(QUERN[np.dtype(np.float64)], value, 0))


def _tensor(x):
    """Any operand as a Tensor."""
    kind = type(x)
    if kind is Tensor:
        return x
    if kind is float and x == 0:
        return _new(_c.number(QUERN[np.dtype(np.float64)], x, 0))  # 0.0 and -0.0 are equal as keys
    if kind is float or kind is int or kind is bool:
        return _number(kind, x)
    return Tensor(x)


_kept = {}  # NumPy arrays whose memory storages use, by a number


@_RELEASE
def _release(key, _kept=_kept):  # the name may be gone when the last tensors are
    _kept.pop(key, None)


def _wrap(array, dtype=None):
    """The memory of a NumPy array."""
    code = dtype_code(array.dtype) if dtype is None else dtype
    if array.flags.aligned and array.dtype.isnative and not any(s % array.itemsize for s in array.strides):
        key = id(array)
        while key in _kept or not key:
            key += 1
        _kept[key] = array
        rank, dims = _ints(array.shape)
        strides = _ints(s // array.itemsize for s in array.strides)[1]
        data = Array(code, rank, ctypes.cast(dims, _DIMS), array.__array_interface__["data"][0])
        return _c.wrap(ctypes.byref(data), strides, _release, key)
    return _wrap(np.array(array, array.dtype.newbyteorder("="), order="C"), dtype)


def _from_dlpack(data):
    """The memory of somebody else's tensor on a GPU."""
    owner, device, array, strides = _dlpack.take(data)
    key = id(owner)
    _kept[key] = owner
    pointer = _c.wrap_on(device.encode(), ctypes.byref(array), strides, _release, key)
    if not pointer:
        del _kept[key]
    return _new(pointer)


def device_count():
    """How many GPUs there are; 0 also without a driver."""
    return lib.quern_device_count()


def wait(device):
    """Until a device ("cuda", "cuda:1") has done all that was asked of it; for timings: values wait by themselves."""
    check(lib.quern_device_wait(device.encode()))


def trim(device):
    """Gives memory of freed tensors back to a device, which is kept for the next ones otherwise."""
    check(lib.quern_device_trim(device.encode()))


def _binary(op, reverse=False):
    name = op.encode()
    if reverse:

        def method(self, other):
            other = _tensor(other)
            return _new(_elementwise(name, other._p, self._p, None))

    else:

        def method(self, other):
            if type(other) is not Tensor:
                other = _tensor(other)
            return _new(_elementwise(name, self._p, other._p, None))

    return method


def _in_place(op):
    name = op.encode()

    def method(self, other):
        other = _tensor(other)
        _free(_elementwise(name, self._p, other._p, self._p) or _failed())
        return self

    return method


def _failed():
    raise error_of(last_status())


def _unary(op):
    name = op.encode()

    def method(self, out=None):
        """Each element; into `out` where it is given."""
        return _new(_elementwise(name, self._p, None, None if out is None else out._p))

    method.__name__ = op
    return method


def _reduction(kind):
    name = kind.encode()

    def method(self, axis=None, keepdims=False):
        """Over an axis, several, or all (None)."""
        n, axes = _axes(axis)
        return _new(_c.reduce(name, self._p, n, axes, keepdims))

    method.__name__ = kind
    return method


class Tensor:
    """Memory with a data type, dims and strides. Every operation is computed at once, by a compiled kernel.

    Tensor(x) uses the memory of a NumPy array or of anything with DLPack, without a copy; lists and numbers are copied.
    np.asarray(tensor) and np.from_dlpack(tensor) look at the tensor's memory. Indexing by integers and slices gives views;
    `x[:] = x + y`, `x += y` and `out=` write to the memory that is there.

    A tensor is on the CPU or on a GPU ("cuda", "cuda:1"), where what is computed from it is, too. x.to(device) copies it
    there and x.cpu() back; printing, item() and tolist() bring the values by themselves, NumPy must be given x.cpu()."""

    __slots__ = ("_p", "__weakref__")
    __array_priority__ = 1000
    __array_ufunc__ = None  # NumPy's operators leave tensors to ours
    __hash__ = object.__hash__
    _as_parameter_ = property(lambda self: self._p)  # as an argument it stays alive during the call; its address would not

    def __init__(self, data, dtype=None, device=None):
        self._p = None
        gpu = _dlpack.gpu_of(data)
        if gpu is not None or device is not None:
            x = Tensor(data, dtype) if gpu is None else data if type(data) is Tensor else _from_dlpack(data)
            x = x if dtype is None or x.dtype == np.dtype(dtype) else x.astype(dtype)
            x = x if device is None else x.to(device)
            self._p = _c.retain(x)
            return
        if type(data) is Tensor:
            data = data.numpy()
        elif not isinstance(data, np.ndarray) and hasattr(data, "__dlpack__") and not isinstance(data, np.generic):
            try:
                data = np.from_dlpack(data)
            except (BufferError, RuntimeError, TypeError, ValueError) as error:
                raise ArgumentError(f"{type(data).__name__} cannot be read in place: {error}") from error
        array = np.asarray(data, dtype=dtype)
        if not array.flags.writeable:
            array = array.copy()
        self._p = _wrap(array) or _failed()

    def __del__(self, _free=_free):
        _free(self._p)

    _of = staticmethod(_new)

    # ---- making ----

    @staticmethod
    def zeros(*shape, dtype=np.float32, device="cpu"):
        return _new(_c.new_on(device.encode(), _code(dtype), *_shape(shape)))

    @staticmethod
    def ones(*shape, dtype=np.float32, device=None):
        return _made(_c.full(_code(dtype), *_shape(shape), 1), device)

    @staticmethod
    def full(shape, value, dtype=np.float32, device=None):
        return _made(_c.full(_code(dtype), *_shape((shape,) if isinstance(shape, int) else shape), value), device)

    @staticmethod
    def arange(start, stop=None, step=1, dtype=None, device=None):
        """start, start + step, ... before stop; of int64 where all are whole, otherwise of float32."""
        start, stop = (0, start) if stop is None else (start, stop)
        if dtype is None:
            dtype = np.int64 if all(isinstance(v, int) for v in (start, stop, step)) else np.float32
        return _made(_c.arange(_code(dtype), start, stop, step), device)

    @staticmethod
    def eye(n, dtype=np.float32, device=None):
        return _made(_c.eye(_code(dtype), n), device)

    @staticmethod
    def randn(*shape, seed, dtype=np.float32, device=None):
        """Normal random numbers: the same for the same seed and size."""
        return _made(_c.randn(_code(dtype), *_shape(shape), seed), device)

    @staticmethod
    def uniform(*shape, seed, dtype=np.float32, device=None):
        """Random numbers in [0, 1): the same for the same seed and size."""
        return _made(_c.uniform(_code(dtype), *_shape(shape), seed), device)

    # ---- what it is ----

    @property
    def dtype(self):
        return NUMPY[_c.dtype(self._p)]

    @property
    def ndim(self):
        return _c.rank(self._p)

    @property
    def shape(self):
        return tuple(_c.dims(self._p)[: _c.rank(self._p)])

    @property
    def strides(self):
        """In elements."""
        return tuple(_c.strides(self._p)[: _c.rank(self._p)])

    @property
    def size(self):
        return _c.elements(self._p)

    @property
    def device(self):
        """"cpu", "cuda:0", ..."""
        return _c.device(self._p).decode()

    @property
    def T(self):
        return _new(_c.transpose(self._p, None))

    def data_ptr(self):
        """The address of the first element, on its device."""
        return _c.data(self._p)

    def storage_ptr(self):
        """The address of the storage: equal for tensors that share memory."""
        return _c.storage(self._p, None, None)

    def is_contiguous(self):
        return bool(_c.is_contiguous(self._p))

    def __len__(self):
        if not self.ndim:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # ---- NumPy, DLPack, numbers ----

    def to(self, to):
        """On a device ("cpu", "cuda", "cuda:1"), or of a data type: this tensor where it is that, else a copy."""
        if isinstance(to, str) and (to == "cpu" or to.startswith("cuda")):
            return _new(_c.to(self._p, to.encode()))
        return self if self.dtype == np.dtype(to) else self.astype(to)

    def cpu(self):
        return self.to("cpu")

    def cuda(self, number=0):
        return self.to(f"cuda:{number}")

    @property
    def __array_interface__(self):
        if self.device != "cpu":
            raise ArgumentError(f"the tensor is on {self.device}, which NumPy cannot read: x.cpu() copies it")
        dtype = self.dtype
        return {"shape": self.shape, "typestr": dtype.str if dtype.isbuiltin == 1 else f"<u{dtype.itemsize}", "version": 3,
                "data": (self.data_ptr(), False), "strides": tuple(s * dtype.itemsize for s in self.strides)}

    def numpy(self):
        """A NumPy array of the same memory, which it keeps alive."""
        array = np.asarray(_Memory(self))
        return array.view(self.dtype) if array.dtype != self.dtype else array

    def __array__(self, dtype=None, copy=None):
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        device = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) != device:
            if tuple(dl_device) != _dlpack.CPU or copy is False:
                raise BufferError(f"the tensor is on {self.device}: x.to(device) copies it to another")
            return self.cpu().__dlpack__(max_version=max_version)
        if device == _dlpack.CPU:
            options = dict(max_version=max_version, copy=copy)
            return self.numpy().__dlpack__(stream=stream, **{k: v for k, v in options.items() if v is not None})
        if stream not in (None, 1, -1):  # not the one that everything here is done on
            wait(self.device)
        return _dlpack.export(self.copy() if copy else self, device)

    def __dlpack_device__(self):
        """(1, 0): the CPU; (2, n): cuda:n."""
        device = self.device
        return _dlpack.CPU if device == "cpu" else (_dlpack.CUDA, int(device[5:]))

    def item(self):
        """The value of a tensor of one element."""
        if self.size != 1:
            raise ArgumentError(f"a tensor of {self.size} elements has no single value")
        return self.cpu().numpy().reshape(()).item()

    def tolist(self):
        return self.cpu().numpy().tolist()

    def __bool__(self):
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __index__(self):
        if self.dtype.kind not in "iu":
            raise TypeError("only integers are indices")
        return int(self.item())

    def __repr__(self):
        device = self.device
        values = np.array2string(self.cpu().numpy(), separator=", ", prefix="Tensor(")
        return f"Tensor({values}, {self.dtype}{'' if device == 'cpu' else ', ' + device})"

    # ---- views and copies ----

    def reshape(self, *shape):
        return _new(_c.reshape(self._p, *_shape(shape)))

    def transpose(self, *axes):
        if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
            axes = axes[0]
        if axes and len(axes) != self.ndim:
            raise ArgumentError(f"{len(axes)} axes for a tensor of rank {self.ndim}")
        return _new(_c.transpose(self._p, _ints(axes, c_int)[1] if axes else None))

    def broadcast_to(self, *shape):
        return _new(_c.broadcast(self._p, *_shape(shape)))

    def contiguous(self):
        return _new(_c.contiguous(self._p))

    def copy(self):
        return _new(_c.copy(self._p))

    def astype(self, dtype):
        return _new(_c.convert(self._p, _code(dtype)))

    def __getitem__(self, key):
        if type(key) is int:
            return _new(_c.select(self._p, 0, key))
        view, advanced = _view(self, key)
        if advanced is None:
            return view
        axis, index = advanced
        if index.dtype == np.bool_:
            if axis:
                raise ArgumentError("a mask stands for the first axes")
            return _new(_c.masked_select(view._p, index._p))
        return _new(_c.index_select(view._p, axis, index._p))

    def __setitem__(self, key, value):
        view, advanced = _view(self, key)
        value = _tensor(value)
        if advanced is None:
            check(_c.assign(view._p, value._p))
            return
        axis, index = advanced
        if index.dtype != np.bool_:
            check(_c.put(view._p, axis, index._p, value._p))
        elif value.ndim > view.ndim - index.ndim:  # one value for each place
            rows = view.reshape((-1,) + view.shape[index.ndim:])
            if rows.storage_ptr() != view.storage_ptr():
                raise ArgumentError("values by a mask need a tensor that lies row-major")
            places = Tensor.arange(index.size, device=index.device)[index.reshape(-1)]
            check(_c.put(rows._p, 0, places._p, value._p))
        else:
            mask = index.reshape(index.shape + (1,) * (view.ndim - index.ndim))
            check(_c.assign(view._p, Tensor.where(mask, value if value.ndim == 0 else value.to(view.device), view)))

    def index_select(self, axis, indices):
        """NumPy's take: the parts with these indices along the axis."""
        return _new(_c.index_select(self._p, axis, _indices(indices, self)))

    def gather(self, axis, indices):
        """NumPy's take_along_axis."""
        return _new(_c.gather(self._p, axis, _indices(indices, self)))

    def masked_select(self, mask):
        """The elements where the mask, which has the dims that this tensor begins with, holds."""
        return _new(_c.masked_select(self._p, _indices(mask, self)))

    @staticmethod
    def concatenate(tensors, axis=0):
        tensors = [_tensor(x) for x in tensors]
        return _new(_c.concatenate(len(tensors), _pointers(tensors), axis))

    @staticmethod
    def where(condition, x, y):
        return _new(_c.where(_tensor(condition), _tensor(x), _tensor(y)))

    # ---- operations ----

    __add__, __radd__, __iadd__ = _binary("add"), _binary("add", True), _in_place("add")
    __sub__, __rsub__, __isub__ = _binary("sub"), _binary("sub", True), _in_place("sub")
    __mul__, __rmul__, __imul__ = _binary("mul"), _binary("mul", True), _in_place("mul")
    __truediv__, __rtruediv__, __itruediv__ = _binary("div"), _binary("div", True), _in_place("div")
    __floordiv__, __rfloordiv__, __ifloordiv__ = _binary("floor_div"), _binary("floor_div", True), _in_place("floor_div")
    __mod__, __rmod__, __imod__ = _binary("mod"), _binary("mod", True), _in_place("mod")
    __pow__, __rpow__, __ipow__ = _binary("pow"), _binary("pow", True), _in_place("pow")
    __and__, __rand__, __iand__ = _binary("and"), _binary("and", True), _in_place("and")
    __or__, __ror__, __ior__ = _binary("or"), _binary("or", True), _in_place("or")
    __xor__, __rxor__, __ixor__ = _binary("xor"), _binary("xor", True), _in_place("xor")
    __lshift__, __rshift__ = _binary("shift_left"), _binary("shift_right")
    __eq__, __ne__ = _binary("eq"), _binary("ne")
    __lt__, __le__, __gt__, __ge__ = _binary("lt"), _binary("le"), _binary("gt"), _binary("ge")
    maximum, minimum, arctan2 = _binary("max"), _binary("min"), _binary("atan2")
    __neg__, __abs__, __invert__ = _unary("neg"), _unary("abs"), _unary("not")
    sum, prod, mean, max, min = map(_reduction, ("sum", "prod", "mean", "max", "min"))
    any, all = map(_reduction, ("any", "all"))

    def elementwise(self, op, other=None, out=None):
        """An operation by its name, as quern_tensor.h lists them; into `out` where it is given."""
        other = None if other is None else _tensor(other)
        return _new(_elementwise(op.encode(), self._p, other, None if out is None else out._p))

    def __matmul__(self, other):
        return _new(_c.matmul(self._p, _tensor(other)))

    def __rmatmul__(self, other):
        return _tensor(other) @ self

    def argmax(self, axis=None):
        return self._along(_c.arg, b"max", axis)

    def argmin(self, axis=None):
        return self._along(_c.arg, b"min", axis)

    def cumsum(self, axis=None):
        return self._along(_c.cumulative, b"sum", axis)

    def cumprod(self, axis=None):
        return self._along(_c.cumulative, b"prod", axis)

    def _along(self, call, kind, axis):
        """Of all elements in a row for None."""
        x, axis = (self.reshape(-1), 0) if axis is None else (self, axis)
        return _new(call(kind, x._p, axis))

    @staticmethod
    def op(name, *operands, **attributes):
        """An op of docs/ops.md as it is there: Tensor.op("softmax", x, axis=1)."""
        operands = [_tensor(x) for x in operands]
        text = ", ".join(f"{k} = {str(v).lower() if isinstance(v, bool) else v}" for k, v in attributes.items())
        return _new(_c.op(name.encode(), len(operands), _pointers(operands), text.encode()))


for _name in ("abs sign square relu floor ceil round trunc is_nan is_inf sqrt rsqrt exp expm1 log log1p sin cos tan asin acos "
              "atan sinh cosh tanh asinh acosh atanh erf logistic gelu gelu_tanh silu").split():
    setattr(Tensor, _name, _unary(_name))

_make = Tensor.__new__


class _Memory:
    """A tensor's memory as NumPy takes it, without the rest of a Tensor."""

    def __init__(self, owner):
        self.owner, self.__array_interface__ = owner, owner.__array_interface__


def _indices(x, of=None):
    """Indices or a mask; integers of other types as int64. Those of the CPU come to the device of what they select from."""
    x = _tensor(x if isinstance(x, Tensor) else np.asarray(x))
    if of is not None and x.device == "cpu":
        x = x.to(of.device)
    return x.astype(np.int64) if x.dtype.kind in "iu" and x.dtype != np.int32 or not x.size and x.dtype.kind == "f" else x


def _is_array(k):
    return isinstance(k, list) or isinstance(k, (Tensor, np.ndarray)) and k.ndim > 0


def _used(keys):
    """How many axes the keys stand for."""
    return sum(_indices(k).ndim if _is_array(k) and _indices(k).dtype == np.bool_ else k is not None and k is not Ellipsis
               for k in keys)


def _view(x, key):
    """The view that integers, slices, None and ... in a key say, and (axis, index) of one array or mask among them."""
    keys = key if type(key) is tuple else (key,)
    try:
        return _views(x, keys)
    except ArgumentError:
        if _used(keys) > x.ndim:
            raise ArgumentError(f"{_used(keys)} indices for a tensor of rank {x.ndim}") from None
        raise


def _views(x, keys):
    axis, advanced, view = 0, None, x
    for k in keys:
        if type(k) is slice:
            if k.start is not None or k.stop is not None or k.step is not None:
                step = 1 if k.step is None else operator.index(k.step)
                view = _new(_c.slice(view._p, axis, _bound(k.start), _bound(k.stop), step))
            axis += 1
        elif k is None:
            view = view.reshape(view.shape[:axis] + (1,) + view.shape[axis:])
            axis += 1
        elif k is Ellipsis:
            if sum(other is Ellipsis for other in keys) > 1:
                raise ArgumentError("'...' stands once in an index")
            axis += x.ndim - _used(keys)
        elif _is_array(k):
            if advanced is not None:
                raise ArgumentError("one array or mask in an index: select with one after the other")
            advanced = axis, _indices(k, x)
            axis += advanced[1].ndim if advanced[1].dtype == np.bool_ else 1
        else:
            view = _new(_c.select(view._p, axis, operator.index(k)))
    if axis > view.ndim:
        raise ArgumentError("more indices than axes")
    return view, advanced


def _bound(at):
    """Of a slice; QUERN_ALL where it is left out."""
    return -(1 << 63) if at is None else operator.index(at)


class Tape:
    """Records what this thread's tensors compute.

        with quern.Tape() as tape:
            loss = ((x @ w - y) ** 2).mean()
            (g,) = tape.gradient(loss, [w])
            w -= 0.1 * g
        step = tape.compile(loss)
        for _ in range(100):
            step()

    Everything is computed at once as well. A compiled step does again what was recorded, with what the tensors that were
    there before hold by then: here it reads x and y, updates w in place, and writes the loss to `loss`."""

    def __init__(self):
        self._p = None

    def __enter__(self):
        if self._p:
            raise ArgumentError("a tape records once: make a new one")
        self._p = lib.quern_tape_begin()
        if not self._p:
            _failed()
        return self

    def __exit__(self, *error):
        lib.quern_tape_end(self._p)

    def __del__(self, _free=lib.quern_tape_free):
        _free(self._p)

    def _recorded(self):
        if not self._p:
            raise ArgumentError("the tape has recorded nothing: `with tape:` is where it does")
        return self._p

    def gradient(self, loss, tensors):
        """The gradients of a scalar with respect to tensors that the tape has heard of."""
        pointers = _pointers(tensors)
        out = (_P * len(pointers))()
        check(lib.quern_tape_gradient(self._recorded(), loss._p, len(pointers), pointers, out))
        return [_new(p) for p in out]

    def compile(self, *results, **options):
        """A Step that computes these tensors again, and what was written in place. Options as quern.compile's, but for the target: a
        step runs where its tensors are."""
        return Step(self, results, compile_options(**{"target": None, **options}))

    def text(self, *results):
        """The step as Quern's text."""
        module = Handle(lib.quern_tape_module, lib.quern_module_free, self._recorded(), len(results), _pointers(results))
        return module_text(module)


class Step:
    """What a tape recorded, compiled. Calling it runs it, on the tensors' memory."""

    def __init__(self, tape, results, options):
        self._handle = Handle(lib.quern_tape_compile, lib.quern_step_free, tape._recorded(), len(results), _pointers(results),
                              ctypes.byref(options))
        self._p = self._handle.pointer

    def __call__(self):
        status = lib.quern_step_run(self._p)
        if status:
            raise error_of(status)


def _pointers(tensors):
    return (_P * len(tensors))(*[x._p for x in tensors])
