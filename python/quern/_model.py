"""Models and sessions."""

import ctypes
import math
import os
import threading
from collections import OrderedDict, namedtuple
from ctypes import addressof, byref, c_int64, c_void_p

import numpy as np

from ._arrays import NUMPY, address_of, empty, to_numpy, to_quern, view
from ._dlpack import gpu_of
from ._groups import Words, shape_text, sides
from ._library import (INPUT, NEEDS, NEEDS_DIM, NEEDS_SHAPE, OUTPUT, TUNE_REPORT, Array, ArgumentError, BufferInfo, CompileOptions,
                       DimRange, EmitOptions, EntryInfo, Handle, InputShape, KnownInput, LoadOptions, ModelError, OutOfRangeError,
                       SymbolInfo, TuneOptions, UnsupportedError, check, error_of, lib, refuse_to_copy, table)

Signature = namedtuple("Signature", "name dtype shape")
Signature.__doc__ = "An input or output: dims are numbers, or text such as 'batch' where they depend on the inputs."


def _shape(info):
    """Dims of a buffer: "f32[batch, max(n, 2)]" -> ("batch", "max(n, 2)")."""
    text = info.text.decode() if info.text else ""
    parts, depth = [""], 0
    for c in text[text.find("[") + 1 : -1]:
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    parts = [p.strip() for p in parts]
    return tuple(info.dims[i] if info.dims[i] >= 0 else parts[i] for i in range(info.rank))


def _listed(inputs, n=1):
    """A list or dict; one array is a list of it where the model has one input."""
    if isinstance(inputs, np.ndarray) and n == 1:
        return [inputs]
    if not hasattr(inputs, "__len__"):
        raise ArgumentError(f"inputs are a list of arrays or a dict of them by name, not {type(inputs).__name__}")
    return inputs


class Entry:
    """The tables of one entry of a model."""

    def __init__(self, info):
        self.name = info.name.decode()
        self.buffers = table(info.buffers, BufferInfo, info.n_buffers)
        self.names = [b.name.decode() for b in self.buffers]
        self.dtypes = [NUMPY[b.dtype] for b in self.buffers]
        self.inputs = [i for i, b in enumerate(self.buffers) if b.role == INPUT]
        self.outputs = [i for i, b in enumerate(self.buffers) if b.role == OUTPUT]
        # without what a forward leaves for its backward, which stays in the session
        self.results = [i for i in self.outputs if not self.names[i].startswith("residual.")]
        self.states = [i for i, b in enumerate(self.buffers) if b.role not in (INPUT, OUTPUT)]
        symbols = table(info.symbols, SymbolInfo, info.n_symbols)
        self.decided = any(s.decided for s in symbols)
        self.index = {self.names[i]: i for i in self.inputs}

    def signature(self, buffers):
        return [Signature(self.names[i], self.dtypes[i], _shape(self.buffers[i])) for i in buffers]

    def pairs(self, inputs, complete=False):
        """(buffer, value) for the inputs: a list in the model's order, or a dict by name, of all of them if complete."""
        if isinstance(inputs, dict):
            unknown = [name for name in inputs if name not in self.index]
            if unknown:
                raise ArgumentError(f"the model has no input {', '.join(map(repr, unknown))}; its inputs are "
                                    f"{', '.join(map(repr, self.index))}")
            missing = [name for name in self.index if complete and name not in inputs]
            if missing:
                raise ArgumentError(f"input {', '.join(map(repr, missing))} is missing")
            return [(self.index[name], x) for name, x in inputs.items()]
        inputs = _listed(inputs, len(self.inputs))
        if len(inputs) != len(self.inputs):
            raise ArgumentError(f"the model takes {len(self.inputs)} inputs "
                                f"({', '.join(self.names[i] for i in self.inputs)}), not {len(inputs)}")
        return list(zip(self.inputs, inputs))


def _runner(handle):
    """A call without arguments: nothing is looked up on the way. It keeps the session alive."""
    run, pointer = lib.quern_session_run, handle.pointer

    def call(_keep=handle):
        """Runs the model on what is bound; `outputs` has the results."""
        status = run(pointer)
        if status:
            raise error_of(status)

    return call


_bind = lib.quern_session_bind


def _tensor_class():
    from ._tensor import Tensor  # which needs this module

    return Tensor


class _Slot:
    """The Array that a buffer was bound with last: a call with the same shape again only changes the address."""

    __slots__ = ("array", "address", "shape", "dtype")

    def __init__(self):
        self.shape = self.dtype = None

    def fit(self, x, expected):
        self.array = to_quern(x, expected)
        self.address = addressof(self.array)
        self.shape, self.dtype = x.shape, x.dtype


class Session:
    """A model bound to memory. One per thread. `run()` computes `outputs` from the bound inputs, without allocating."""

    def __init__(self, model, entry):
        self.model = model
        self._entry = entry
        self._handle = Handle(lib.quern_session_new, lib.quern_session_free, model._handle.pointer,
                              entry.name.encode(), keep=model._handle)
        self._slots = [_Slot() for _ in entry.buffers]
        self._bound = {}  # buffer: array, kept alive while the library reads it
        self._outputs = None
        self._words = Words(lib.quern_session_strings(self._handle.pointer))
        self._fresh = None  # shape and dtype of each output, for the inputs that are bound
        self.run = _runner(self._handle)

    __reduce__ = refuse_to_copy

    def set_comm(self, comm):
        """This session runs as that rank (a Comm; None: alone), for models with collectives."""
        lib.quern_session_set_comm(self._handle.pointer, comm and comm._pointer)
        self.comm = comm

    def limit_strings(self, size):
        """How many bytes of strings a run may make or get, with what finds them (256 MiB); more is an OutOfMemoryError. For models that
        make strings or read their characters."""
        self._words.limit(size)

    def broadcast_states(self, root=0):
        """All states become those of rank `root`, on all ranks."""
        check(lib.quern_session_broadcast_states(self._handle.pointer, root))

    def _bind_buffer(self, buffer, x):
        slot = self._slots[buffer]
        if slot.shape != x.shape or slot.dtype != x.dtype:
            slot.fit(x, self._entry.buffers[buffer].dtype)
            self._fresh = None
        slot.array.data = address_of(x)
        status = _bind(self._handle.pointer, buffer, slot.address)
        if status:
            raise error_of(status)
        self._bound[buffer] = x

    def _bind_tensor(self, buffer, x):
        """A Tensor's memory, also on a GPU."""
        check(lib.quern_session_bind_tensor(self._handle.pointer, buffer, x._p))
        self._slots[buffer].shape = self._fresh = None
        self._bound[buffer] = x

    def _unbind_outputs(self):
        for buffer in self._entry.outputs:
            self._bound.pop(buffer, None)
            check(_bind(self._handle.pointer, buffer, None))

    def bind(self, inputs, complete=False):
        """Binds inputs (all as a list, or some as a dict); they are read in place by each run. Tensors on the GPU that the
        model runs on may be among them, ours or by DLPack."""
        entry, given = self._entry, self.model._given
        if given and (complete or not isinstance(inputs, dict)):  # all are bound anew: nobody has the old numbers
            self._words.clear()
        for buffer, x in entry.pairs(given.spread(inputs, self._words, complete) if given else inputs, complete):
            if gpu_of(x) is not None:
                self._bind_tensor(buffer, _tensor_class()(x).contiguous())
                continue
            self._bind_buffer(buffer, to_numpy(x, entry.dtypes[buffer], f"input '{entry.names[buffer]}'"))
        self._outputs = None
        return self

    def bind_outputs(self, outputs):
        """Lets the results (all as a list, or some as a dict) be written into these arrays or Tensors: contiguous, of the right dtype and
        shape. A cache that is updated may be bound to the memory of the input that it replaces."""
        entry, got = self._entry, self.model._got
        outputs = got.spread(outputs, {}) if got else outputs
        if isinstance(outputs, dict):
            of_name = {entry.names[buffer]: buffer for buffer in entry.outputs}
            for name in outputs:
                if name not in of_name:
                    raise ArgumentError(f"the model has no output '{name}', but {', '.join(of_name)}")
            pairs = [(of_name[name], x) for name, x in outputs.items()]
        elif len(outputs) != len(entry.outputs):
            raise ArgumentError(f"the model has {len(entry.outputs)} outputs, not {len(outputs)}")
        else:
            pairs = zip(entry.outputs, outputs)
        for buffer, x in pairs:
            if type(x) is _tensor_class():
                self._bind_tensor(buffer, x)
                continue
            if not isinstance(x, np.ndarray) or not x.flags.carray:
                raise ArgumentError(f"output '{entry.names[buffer]}' must go to a contiguous, writable NumPy array")
            self._bind_buffer(buffer, x)
        self._outputs = None
        return self

    def get(self, buffer):
        """The array of a buffer, as a view; or the Tensor that it is bound to."""
        if buffer in self._bound and type(self._bound[buffer]) is _tensor_class():
            return self._bound[buffer]
        tensor = lib.quern_session_tensor(self._handle.pointer, buffer)
        if tensor:
            return _tensor_class()._of(tensor)
        array = Array()
        check(lib.quern_session_get(self._handle.pointer, buffer, byref(array)))
        return view(array, self._handle)

    def _written(self, buffer):
        """What the run wrote of a bound output: the front of it where the model finds how much there is."""
        x = self._bound[buffer]
        shape = self.get(buffer).shape if self._entry.decided else x.shape
        return x if shape == x.shape else x.reshape(-1)[: math.prod(shape)].reshape(shape)

    @property
    def outputs(self):
        """The output arrays: each run writes into them again. Of a sequence, a list of them."""
        return self.model._got.gather(self._arrays, self._words) if self.model._got else self._arrays

    @property
    def _arrays(self):
        if self._outputs is None or self._entry.decided:
            self._outputs = [self._bound[i] if i in self._bound and not self._entry.decided else self.get(i)
                             for i in self._entry.outputs]
        return self._outputs

    @property
    def states(self):
        """Views of the states (parameters, optimizer state, caches) by name; writing to them changes the model's."""
        return {self._entry.names[i]: self.get(i) for i in self._entry.states}

    def states_to(self, device):
        """Moves the states to the GPU that the model runs on, where they stay, or back ("cpu"): `states` gives Tensors then.
        Before others share them."""
        check(lib.quern_session_states_to(self._handle.pointer, device.encode()))

    def share_states(self, owner):
        """Lets this session use the states of another one."""
        check(lib.quern_session_share_states(self._handle.pointer, owner._handle.pointer))
        self._bound[-1] = owner

    def fresh_outputs(self):
        """New arrays for the outputs of the next run, bound: Tensors on the inputs' GPU where an input is on one."""
        if self._fresh is None:
            fresh = []
            for buffer in self._entry.results:
                rank = self._entry.buffers[buffer].rank
                dims = (c_int64 * max(rank, 1))()
                check(lib.quern_session_dims(self._handle.pointer, buffer, dims))
                fresh.append((buffer, tuple(dims[:rank]), self._entry.dtypes[buffer]))
        else:
            fresh = self._fresh
        outputs = []
        bound = (self._bound.get(i) for i in self._entry.inputs)
        device = next((x.device for x in bound if not isinstance(x, np.ndarray) and x is not None), None)
        for buffer, shape, dtype in fresh:
            if device is None:
                array = empty(shape, dtype)
                self._bind_buffer(buffer, array)
            else:
                array = _tensor_class().zeros(shape, dtype=dtype, device=device)
                self._bind_tensor(buffer, array)
            outputs.append(array)
        self._fresh = fresh
        return outputs


class Model:
    """A compiled model: immutable, usable from any thread.

    m(inputs) -> list of arrays; m.bind(inputs) -> Session for calls without allocation. Can be pickled, as how it was made."""

    def __init__(self, handle, first=None, module=None):
        self._handle = handle
        info = lib.quern_model_describe(handle.pointer).contents
        self.target = info.target.decode()  # triple, CPU and features that the code is for
        self._entries = {}
        for entry in table(info.entries, EntryInfo, info.n_entries):
            self._entries[entry.name.decode()] = Entry(entry)
        self._first = self._entries[first] if first else next(iter(self._entries.values()))
        # how a caller's sequences and optionals are the model's tensors: of inputs, of outputs
        self._given, self._got = (None, None) if module is None else sides(
            module, *([self._first.names[i] for i in side] for side in (self._first.inputs, self._first.outputs)))
        self._idle = []  # sessions to be used again by calls
        self._derivation = None  # of grad, jvp and hvp: how it was made
        self._source = None  # of compile and load: the function and its arguments

    def __reduce__(self):
        """Pickled as how it was made: it is compiled (or loaded) again, from the same file, with the cache's help."""
        return self._source or refuse_to_copy(self)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        takes, gives = (", ".join(f"{s.name}: {s.dtype.name}{list(s.shape)}" for s in side)
                        for side in (self.inputs, self.outputs))
        return f"<quern.Model ({takes}) -> ({gives})>"

    @property
    def inputs(self):
        return self._first.signature(self._first.inputs)

    @property
    def outputs(self):
        return self._first.signature(self._first.outputs)

    @property
    def entries(self):
        """Names of the entries; the first is what calls run, but of grad, jvp and hvp the last."""
        return list(self._entries)

    def session(self, entry=None):
        """A session of an entry with nothing bound."""
        if entry is not None and entry not in self._entries:
            raise ArgumentError(f"the model has no entry '{entry}'; it has {', '.join(self._entries)}")
        return Session(self, self._first if entry is None else self._entries[entry])

    def bind(self, inputs, entry=None):
        """A session with these inputs bound and the outputs allocated."""
        return self.session(entry).bind(inputs)

    def __call__(self, inputs, out=None):
        """Runs on a list (in the order of `inputs`) or dict of arrays. Results are new arrays, or those given as out (views of their
        fronts, where the model finds how much there is and they have room for more); of inputs on a GPU, Tensors there."""
        try:
            session = self._idle.pop()
        except IndexError:
            session = self.session()
        session.bind(inputs, complete=True)
        if out is not None:
            session.bind_outputs(out).run()
            results = [session._written(i) for i in self._first.outputs]
        elif self._first.decided:
            session._unbind_outputs()
            session.run()
            results = [np.array(x) for x in session._arrays]
        else:
            results = session.fresh_outputs()
            session.run()
        results = self._got.gather(results, session._words) if self._got else results
        # The arrays belong to the caller now, and the states of a call end with it.
        if not self._first.states:
            session._bound.clear()
            self._idle.append(session)
        return results


# ---- compiling

_MODEL_TYPES = (str, bytes, bytearray, memoryview, os.PathLike)


def _dim_ranges(dims):
    """{name: 4, name: (1, 64)} as the library takes it."""
    ranges = []
    for name, value in (dims or {}).items():
        low, high = value if isinstance(value, (tuple, list)) else (value, value)
        ranges.append(DimRange(name.encode(), int(low), int(high)))
    return (DimRange * max(len(ranges), 1))(*ranges), len(ranges)


# What must be known of an input to compile a model: "contents", "shape", or "dim", the extent along an axis, which is dimension `dim`.
Need = namedtuple("Need", "what name index dim axis")


def load_module(model, dims=None, constants=None, needs=None, every_dim=False, shapes=None):
    """A Handle of the module. constants: arrays by name; needs: a list that gets a Need for each input whose contents or shape
    are to be known, and for each dimension; with every_dim for all dimensions."""
    if not isinstance(model, _MODEL_TYPES):
        if hasattr(model, "SerializeToString"):
            model = model.SerializeToString()
        else:
            raise TypeError(f"a model is a path or bytes, not {type(model).__name__}")
    ranges, n_ranges = _dim_ranges(dims)
    arrays = {name: np.asarray(x, order="C") for name, x in (constants or {}).items()}
    known = (KnownInput * max(len(arrays), 1))(*[KnownInput(n.encode(), to_quern(x)) for n, x in arrays.items()])
    missed = [] if needs is None else needs
    contents = NEEDS(lambda _, name, index: missed.append(Need("contents", name.decode(), index, None, None)))
    extent = NEEDS_DIM(lambda _, dim, name, index, axis: missed.append(Need("dim", name.decode(), index, dim.decode(), axis)))
    shape = NEEDS_SHAPE(lambda _, name, index: missed.append(Need("shape", name.decode(), index, None, None)))
    said = [InputShape(name.encode(), shape_text(x).encode()) for name, x in (shapes or {}).items()]
    options = LoadOptions(ctypes.sizeof(LoadOptions), n_ranges, ranges, len(arrays), known, 0, contents, None, extent, len(said),
                          (InputShape * max(len(said), 1))(*said), shape, every_dim)
    if isinstance(model, (str, os.PathLike)):
        return Handle(lib.quern_load, lib.quern_module_free, os.fsencode(model), byref(options))
    data = bytes(model)
    return Handle(lib.quern_load_bytes, lib.quern_module_free, data, len(data), byref(options))


def compile_options(target="cpu", threads=None, math="default", cpu=None, cache=None, optimize=0, blas=None,
                    precision="f32", check_numerics=False, remat=None, memory_limit=0, tune=False, compile_threads=None):
    encode = lambda text: None if text is None else os.fsencode(text)
    return CompileOptions(ctypes.sizeof(CompileOptions), encode(target), encode(cpu), encode(math), threads or 0, optimize,
                          encode(cache), None, None, encode(blas), encode(precision), check_numerics, encode(remat),
                          memory_limit, bool(tune), compile_threads or 0, None)


def _from(model, function, source, *arguments):
    """The model, which remembers how it was made."""
    if isinstance(source, (str, os.PathLike)):
        source = os.path.abspath(os.fspath(source))
    elif hasattr(source, "SerializeToString"):
        source = source.SerializeToString()
    else:
        source = bytes(source)
    model._source = (function, (source, *arguments))
    return model


def compile_module(module, options):
    return Handle(lib.quern_compile, lib.quern_model_free, module.pointer, byref(options))


class SpecializedModel:
    """A model some of whose inputs (a shape, axes), shapes (of sequences) or dimensions (a kernel's extents, the size of heads) must
    be known to compile it: it is compiled for each value that it is called with, and the last few are kept."""

    KEPT = 32

    def __init__(self, load, dims, shapes, options, needs):
        self._load, self._shapes, self._options = load, dict(shapes or {}), options
        self._dims = {name: tuple(value) if isinstance(value, list) else value for name, value in (dims or {}).items()}
        self._needs = list(needs)
        self._exact = False  # all dimensions have to be known
        self._models = OrderedDict()
        self._lock = threading.Lock()
        self._source = None

    __reduce__, __copy__, __deepcopy__ = Model.__reduce__, Model.__copy__, Model.__deepcopy__

    def _key(self, inputs):
        values, dims, shapes = {}, dict(self._dims), dict(self._shapes)
        inputs = _listed(inputs)
        for what, name, index, dim, axis in self._needs:
            if name not in inputs if isinstance(inputs, dict) else index >= len(inputs):
                raise ArgumentError(f"input '{name}' is missing")
            x = inputs[name] if isinstance(inputs, dict) else inputs[index]
            if what == "shape":
                shapes[name] = [np.shape(i) for i in x] if isinstance(x, (list, tuple)) else None if x is None else np.shape(x)
                continue
            if x is None:
                raise ArgumentError(f"input '{name}' is missing")
            if what == "contents":
                values[name] = np.asarray(x)
                if values[name].dtype.kind in "OSU":
                    raise UnsupportedError(f"input '{name}' is of strings, which the model would have to know to be compiled")
                continue
            shape = np.shape(x)
            if axis >= len(shape):
                raise ArgumentError(f"input '{name}' has {len(shape)} dimensions, and the model needs its {axis + 1}th")
            dims[dim] = self._fixed(dim, shape[axis])
        known = tuple((n, x.dtype.str, x.shape, x.tobytes()) for n, x in values.items())
        return (dims, values, shapes), (known, tuple(sorted(dims.items())), tuple(sorted((n, shape_text(s)) for n, s in shapes.items())))

    def _fixed(self, dim, extent):
        given = self._dims.get(dim, (0, extent))
        low, high = given if isinstance(given, (tuple, list)) else (given, given)
        if not low <= extent <= high:
            raise OutOfRangeError(f"dimension {dim} is {extent}, and was said to be {low} to {high}")
        return extent

    def model(self, inputs):
        """The Model for the values that these inputs have."""
        with self._lock:
            given, key = self._key(inputs)
            while key not in self._models:
                needs = []
                try:
                    module = self._load(*given, needs, self._exact)
                except (UnsupportedError, ModelError):
                    new = [need for need in needs if need not in self._needs]
                    if not new and self._exact:
                        raise
                    # Operators that don't fit together while extents are symbols may fit where all are known.
                    self._exact = not new
                    self._needs += new
                    given, key = self._key(inputs)
                    continue
                self._models[key] = Model(compile_module(module, self._options), module=module)
                if len(self._models) > self.KEPT:
                    self._models.popitem(last=False)
            self._models.move_to_end(key)
            return self._models[key]

    def __call__(self, inputs, out=None):
        return self.model(inputs)(inputs, out)

    def bind(self, inputs, entry=None):
        return self.model(inputs).bind(inputs, entry)


def compile(model, target="cpu", threads=None, math="default", cpu=None, dims=None, cache=None,
            optimize=0, blas=None, precision="f32", check_numerics=False, tune=False, compile_threads=None, shapes=None,
            constants=None):
    """Compiles a model for this process.

    model    path of an ONNX or Quern text file, or its bytes
    target   "cpu", "cuda" or "cuda:1" (a GPU), or "interp" (the reference interpreter)
    threads  of a run; None: as many as the process may use
    math     "strict", "default" or "fast"
    cpu      "native" (None), "x86-64-v3", ...
    dims     of named dimensions: {"batch": 4} fixes, {"batch": (1, 64)} bounds; also what the model computes: {"length": (0, 2000)}
    cache    folder of compiled kernels; None: the user's; "": none. No larger than $QUERN_CACHE_LIMIT (1 GiB)
    optimize 2 (0: the default), or 1: a kernel for each node, for looking for mistakes
    blas     who multiplies matrices: "none": our own kernels; "openblas": OpenBLAS where it can; "auto" (None): OpenBLAS
             for float64, where it is there and not in use. The same bits for any number of threads
    precision  "f32"; where that is faster "bf16": large products of bfloat16 with sums in float32, or "int8": products with
             constants, of bytes, or "int4": weights of four bits in products of few rows

    check_numerics  a run that leaves NaN or infinity in an output or a state raises NumericError, which names the node
             that made the first of them; states are as before it. Without it nothing is looked at
    tune     measures schedules first, as quern.tune does
    compile_threads  of the compilation itself; None: as many as the process may use
    shapes   of inputs that the model does not say: {"x": (1, "n")}; of a sequence those of its tensors, {"s": [(2, 3), (4, 3)]}; of
             an optional as of what it holds, or None. Where they are missing, the model is compiled for those it is called with
    constants  what inputs always hold: {"sr": 16000}; the model is compiled for that, and doesn't read them

    Where operators have to know an input's contents (a shape, axes) or the value of a dimension (a kernel's extents), the model
    is compiled when it is called, for each that it is called with.

    Raises UnsupportedError (with all that is unsupported), ModelError, ArgumentError, FileError."""
    options = compile_options(target, threads, math, cpu, cache, optimize, blas, precision, check_numerics, tune=tune,
                              compile_threads=compile_threads)
    said = constants or {}
    load = lambda dims, found, shapes, needs, every=False: load_module(model, dims, {**found, **said}, needs, every, shapes)
    needs = []
    arguments = (target, threads, math, cpu, dims, cache, optimize, blas, precision, check_numerics, False, compile_threads, shapes,
                 constants)
    try:
        module = load(dims, {}, shapes, needs)
    except (UnsupportedError, ModelError):
        if not needs:
            raise
        return _from(SpecializedModel(load, dims, shapes, options, needs), compile, model, *arguments)
    return _from(Model(compile_module(module, options), module=module), compile, model, *arguments)


def tune(model, threads=None, math="default", cpu=None, dims=None, cache=None, precision="f32", entry=None, seconds=20):
    """Measures schedules of the model's kernels on this machine and keeps winners in the cache folder, where every later
    compilation for this CPU finds them. Fix named dimensions to what will be run. `seconds` are those of measuring.

    Gives [(kernel, seconds before, seconds after, schedule)] of a run; the last, with kernel None, is the whole run."""
    rows = []
    text = lambda s: None if s is None else s.decode()
    report = TUNE_REPORT(lambda _, site, before, after, schedule: rows.append((text(site), before, after, text(schedule))))
    options = compile_options("cpu", threads, math, cpu, cache, precision=precision)
    tuning = TuneOptions(ctypes.sizeof(TuneOptions), None if entry is None else entry.encode(), seconds, report, None)
    module = load_module(model, dims)
    check(lib.quern_tune(module.pointer, byref(options), byref(tuning)))
    return rows


def trim_cache(most=0, cache=None):
    """Removes from the cache folder what was not used for longest until `most` bytes are left (0: nothing is; below 0: all of it).
    cache: as for `compile`. Gives (bytes, entries) that are left."""
    left, entries = c_int64(), c_int64()
    check(lib.quern_cache_trim(None if cache is None else os.fsencode(cache), most, byref(left), byref(entries)))
    return left.value, entries.value


def compile_file(model, path, target="cpu", emit=None, prefix=None, weights="embed", header=None, math="default",
                 cpu=None, dims=None, cache=None, optimize=0, precision="f32", shapes=None, constants=None):
    """Compiles a model into a file, and its C header: emit is "so", "a", "o", "llvm", "asm", "ptx" or "qn"; None: as the path's
    ending says (.so, .a, .o, .ll, .s, .ptx, .qn). constants: see compile.

    cpu="x86-64-v3,x86-64-v4": code for each of these, chosen when the object is loaded (see Model.target)."""
    options = compile_options(target, None, math, cpu, cache, optimize, precision=precision)
    write_module(load_module(model, dims, constants, shapes=shapes), options, path, emit, prefix, weights, header)


def write_module(module, options, path, emit, prefix, weights, header):
    encode = lambda text: None if text is None else os.fsencode(text)
    files = EmitOptions(ctypes.sizeof(EmitOptions), encode(emit), encode(prefix), encode(weights), encode(header))
    check(lib.quern_compile_file(module.pointer, byref(options), byref(files), os.fsencode(path)))


def load(path, prefix=None):
    """A shared object that Quern emitted."""
    return _from(Model(Handle(lib.quern_model_open, lib.quern_model_free, os.fsencode(path),
                              None if prefix is None else prefix.encode())), load, path, prefix)


def text(model, dims=None, shapes=None, constants=None):
    """The model as Quern's text."""
    return module_text(load_module(model, dims, constants, shapes=shapes))


def module_text(module):
    out = c_void_p()
    check(lib.quern_module_text(module.pointer, byref(out)))
    try:
        return ctypes.string_at(out).decode()
    finally:
        lib.quern_free(out)
