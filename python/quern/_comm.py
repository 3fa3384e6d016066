"""Ranks that compute together: communicators, for data-parallel training and for a program's own arrays."""

import ctypes

import numpy as np

from ._arrays import address_of, dtype_code
from ._library import ArgumentError, CommTable, check, lib

_COMBINES = {"sum": 0, "mean": 1, "max": 2, "min": 3}


class Comm:
    """One rank among `ranks`. All ranks call the same methods in the same order, with arrays of the same size and data type; what
    they were given is compared first, and where it differs all calls raise. Results are the same bits on every rank."""

    def __init__(self, pointer):
        self._pointer = pointer
        self._table = ctypes.cast(pointer, ctypes.POINTER(CommTable)).contents
        self.rank, self.ranks = self._table.rank, self._table.ranks

    def __del__(self):
        if getattr(self, "_pointer", None):
            lib.quern_comm_free(self._pointer)

    def __repr__(self):
        return f"<quern.Comm: rank {self.rank} of {self.ranks}>"

    def _call(self, function, x, shape, *more, count=None):
        x = np.asarray(x, order="C")
        out = np.empty(x.shape if shape is None else shape, x.dtype)
        check(function(self._pointer, address_of(x), address_of(out), x.size if count is None else count, dtype_code(x.dtype), *more))
        return out

    def all_reduce(self, x, combine="sum"):
        """The arrays of all ranks combined, element by element: "sum", "mean" (of floats), "max", "min"."""
        return self._call(lib.quern_comm_all_reduce, x, None, _combine(combine))

    def all_gather(self, x):
        """The arrays of all ranks, one behind the other along the first axis."""
        x = np.atleast_1d(x)
        return self._call(lib.quern_comm_all_gather, x, (self.ranks * x.shape[0], *x.shape[1:]))

    def reduce_scatter(self, x, combine="sum"):
        """Of all_reduce this rank's part along the first axis."""
        x = np.atleast_1d(x)
        if x.shape[0] % self.ranks:
            raise ArgumentError(f"the first axis has {x.shape[0]} elements, which is no multiple of {self.ranks} ranks")
        return self._call(lib.quern_comm_reduce_scatter, x, (x.shape[0] // self.ranks, *x.shape[1:]), _combine(combine),
                          count=x.size // self.ranks)

    def broadcast(self, x, root=0):
        """The array of rank `root`."""
        out = np.array(x, order="C")
        check(lib.quern_comm_broadcast(self._pointer, address_of(out), out.size, dtype_code(out.dtype), root))
        return out

    def fail(self, reason):
        """This rank can't go on: the others' collectives raise, with this reason, instead of waiting for it."""
        self._table.fail(self._pointer, str(reason).encode())


def _combine(name):
    if name not in _COMBINES:
        raise ArgumentError(f"combine is {name!r}: expected sum, mean, max or min")
    return _COMBINES[name]


def comm_threads(ranks):
    """Communicators of so many ranks that are threads of this process: a list, one for each thread."""
    pointers = (ctypes.c_void_p * max(ranks, 1))()
    check(lib.quern_comm_threads(ranks, pointers))
    return [Comm(ctypes.c_void_p(pointer)) for pointer in pointers]


def comm_mpi():
    """This process among those that mpirun started, by libquern_mpi; one rank without mpirun. MPI ends with it."""
    pointer = ctypes.c_void_p()
    check(lib.quern_comm_mpi(ctypes.byref(pointer)))
    return Comm(pointer)
