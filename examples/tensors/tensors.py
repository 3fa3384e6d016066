#!/usr/bin/env python3
"""Tensor data manipulation in Python: the lines of tensors.c, each compared with NumPy.

    PYTHONPATH=../../python python3 tensors.py
"""
import sys

import numpy as np

import quern
from quern import Tensor

f32 = np.float32
wrong = 0
TYPES = {"bool": "bool", "int32": "i32", "int64": "i64", "float32": "f32", "float64": "f64"}


def show(name, x, memory, of, expected):
    """Prints a line; checks the memory by address, and the values."""
    global wrong
    bytes_ = x.size * x.dtype.itemsize
    values = " ".join("%.6g" % v for v in x.cpu().numpy().ravel().tolist())
    if memory == "in place":  # `of` is the address from before
        right = x.data_ptr() == of
    else:
        shares = of is not None and x.storage_ptr() == of.storage_ptr()
        right = shares == (memory == "view")
    if expected is not None:
        expected = np.asarray(expected)
        right &= x.dtype == expected.dtype and x.shape == expected.shape and np.allclose(x.cpu().numpy(), expected, rtol=1e-6)
    wrong += not right
    print(f"{name:24} {TYPES[str(x.dtype)]}[{', '.join(map(str, x.shape))}] {memory}{f' {bytes_}' if memory == 'new' else ''}: "
          f"{values}{'' if right else '  WRONG'}")
    return x


def making():
    show("arange", Tensor.arange(0, 12, dtype=f32), "new", None, np.arange(12, dtype=f32))
    show("zeros", Tensor.zeros(2, 3), "new", None, np.zeros((2, 3), f32))
    show("ones", Tensor.ones(2, 3), "new", None, np.ones((2, 3), f32))
    show("full", Tensor.full((2, 2), 7, dtype=np.int32), "new", None, np.full((2, 2), 7, np.int32))
    show("eye", Tensor.eye(3), "new", None, np.eye(3, dtype=f32))
    show("randn", Tensor.randn(3, seed=1), "new", None, None)  # numbers of our own
    show("uniform", Tensor.uniform(3, seed=1, dtype=np.float64), "new", None, None)
    ours = np.array([[2, 1], [4, 3]], f32)
    x = Tensor(ours)
    assert x.data_ptr() == ours.ctypes.data and np.shares_memory(np.asarray(x), ours) and np.shares_memory(np.from_dlpack(x), ours)
    show("the program's memory", x, "view", x, ours)


def viewing(x, n):
    show("reshape", x.reshape(2, 6), "view", x, n.reshape(2, 6))
    show("reshape, one dim open", x.reshape(-1, 3), "view", x, n.reshape(-1, 3))
    show("transpose", x.T, "view", x, n.T)
    show("transpose, row-major", x.T.contiguous(), "new", x, n.T)
    show("row", x[1], "view", x, n[1])
    show("last row", x[-1], "view", x, n[-1])
    show("column", x[:, 1], "view", x, n[:, 1])
    show("rows 1 to 3", x[1:3], "view", x, n[1:3])
    show("every second column", x[:, ::2], "view", x, n[:, ::2])
    show("backwards", x[::-1], "view", x, n[::-1])
    show("repeated", x[0].broadcast_to(2, 4), "view", x, np.broadcast_to(n[0], (2, 4)))
    show("copy", x.copy(), "new", x, n)
    show("convert", x.astype(np.int64), "new", x, n.astype(np.int64))


def computing(x, y, n, m):
    show("x + y", x + y, "new", x, n + m)
    show("x - y", x - y, "new", x, n - m)
    show("x * y", x * y, "new", x, n * m)
    show("x / y", x / y, "new", x, n / m)
    show("x ** y", x**y, "new", x, n**m)
    show("exp(-x)", (-x).exp(), "new", x, np.exp(-n))
    show("x == y", x == y, "new", x, n == m)
    show("x > 5", x > 5, "new", x, n > 5)
    show("where", Tensor.where(x < y, x, y), "new", x, np.where(n < m, n, m))
    column, row = np.arange(3, dtype=f32).reshape(3, 1), np.arange(2, dtype=f32)
    show("column + row", Tensor(column) + Tensor(row), "new", None, column + row)
    show("sum", x.sum(), "new", x, n.sum())
    show("sum of columns", x.sum(0), "new", x, n.sum(0))
    show("mean of rows", x.mean(1, keepdims=True), "new", x, n.mean(1, keepdims=True))
    show("max", x.max(), "new", x, n.max())
    show("where rows are greatest", x.argmax(1), "new", x, n.argmax(1))
    show("running sums", x.cumsum(1), "new", x, n.cumsum(1))
    show("x @ y transposed", x @ y.T, "new", x, n @ m.T)


def choosing(x, y, n, m):
    show("concatenate rows", Tensor.concatenate([x, y]), "new", x, np.concatenate([n, m]))
    show("concatenate columns", Tensor.concatenate([x, y], 1), "new", x, np.concatenate([n, m], 1))
    show("index_select rows", x.index_select(0, [2, 0]), "new", x, n[[2, 0]])
    show("index_select columns", x[:, [-1, 0]], "new", x, n[:, [-1, 0]])
    at = np.array([[3], [0], [2]])
    show("gather", x.gather(1, at), "new", x, np.take_along_axis(n, at, 1))
    show("masked_select", x[x > 5], "new", x, n[n > 5])


def writing(x, y, n, m):
    address = x.data_ptr()
    x[:] = x + y
    n[:] = n + m
    show("x[:] = x + y", x, "in place", address, n)
    x += y
    n += m
    show("x += y", x, "in place", address, n)
    x[1] = n[1] = 9
    show("x[1] = 9", x, "in place", address, n)
    x[0:2, :] = n[0:2, :] = 12
    show("x[0:2, :] = 12", x, "in place", address, n)
    x[:, [3, 1]] = n[:, [3, 1]] = np.array([5, 6], f32)
    show("x[:, [3, 1]] = [5, 6]", x, "in place", address, n)
    x[:, 1:] = x[:, :-1]
    n[:, 1:] = n[:, :-1]
    show("x[:, 1:] = x[:, :-1]", x, "in place", address, n)


def on_a_gpu(x, y, n, m):
    if not quern.device_count():
        print("on a GPU                 there is none here")
        return
    there = show("to a GPU", x.to("cuda"), "new", x, n)
    y_there = show("transposed, to a GPU", y.T.to("cuda"), "new", y, m.T)
    show("where it is already", there.to("cuda"), "view", there, n)
    show("column, there", there[:, 1], "view", there, n[:, 1])
    show("x @ y transposed, there", there @ y_there, "new", there, n @ m.T)
    address = there.data_ptr()
    there += 2.5
    show("x += 2.5, there", there, "in place", address, n + f32(2.5))
    show("back", there.cpu(), "new", there, n + f32(2.5))


n = np.arange(12, dtype=f32).reshape(3, 4)
m = np.array([[2, 1, 4, 3], [1, 2, 3, 4], [4, 3, 2, 1]], f32)
x, y = Tensor(n.copy()), Tensor(m)
making()
viewing(x, n)
computing(x, y, n, m)
choosing(x, y, n, m)
writing(x, y, n, m)
on_a_gpu(x, y, n, m)
sys.exit(wrong != 0)
