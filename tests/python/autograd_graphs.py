"""Random differentiable graphs and small models, each at once as Quern's text and as calls of PyTorch, which gives the gradients
recorded in autograd_reference.txt (scripts/make-autograd-reference). Without PyTorch the text alone is made.

A graph is a seed's: of random.Random only random() is used, whose numbers every Python agrees on. Its loss is the sum of the
sines of all values that nothing else takes. Where equal numbers make several derivatives right (sorts, extremes, kinks), an
input is added first, so that there are none."""
import math
import random
import zlib
from itertools import product as tuples

import numpy as np

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = F = None

N_SEEDS = 500
LARGEST = 24  # elements of the values that steps choose among


def count(dims):
    return math.prod(dims)


def listed(numbers):
    return "[" + ", ".join(map(str, numbers)) + "]"


class Value:
    def __init__(self, name, dims):
        self.name, self.dims, self.taken = name, tuple(dims), False


class Graph:
    def __init__(self, seed, dtype="f64"):
        self.dtype, self.source = dtype, random.Random(seed)
        self.lines, self.inputs, self.values, self.steps = [], [], [], []

    # what is drawn

    def below(self, n):
        return int(self.source.random() * n)

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def pick(self, choices):
        return choices[self.below(len(choices))]

    def chance(self, p):
        return self.source.random() < p

    def shuffled(self, items):
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items

    def dims(self, low=1, high=3):
        """Of a value: rank low to high, few elements."""
        dims = [self.between(1, 4) for _ in range(self.between(low, high))]
        while count(dims) > LARGEST:
            dims[self.below(len(dims))] = 1
        return dims

    # what is written

    def emit_all(self, op, operands, types, attributes=""):
        """A line of text; `types` are dims, or text such as i64[3]."""
        results = [Value(f"%v{len(self.lines)}{'abc'[i]}", () if isinstance(t, str) else t) for i, t in enumerate(types)]
        text = ", ".join(t if isinstance(t, str) else self.dtype + listed(t) for t in types)
        self.lines.append(f"{', '.join(v.name for v in results)} = {op} {', '.join(v.name for v in operands)}"
                          f"{' {' + attributes + '}' if attributes else ''} : {text}")
        return results

    def emit(self, op, operands, dims, attributes=""):
        return self.emit_all(op, operands, [dims], attributes)[0]

    def constant(self, value, dtype=None):
        """Nested lists of numbers"""
        array = np.array(value)
        name = f"%v{len(self.lines)}a"
        text = str(array.tolist()).lower()
        self.lines.append(f"{name} = constant {text} : {dtype or self.dtype}{listed(array.shape)}")
        return Value(name, array.shape)

    def input(self, dims):
        x = Value(f"%a{len(self.inputs)}", dims)
        self.inputs.append((x, [2 * self.source.random() - 1 for _ in range(count(dims))]))
        self.values.append(x)
        return x

    def broadcast(self, x, dims):
        """As NumPy aligns them."""
        if x.dims == tuple(dims):
            return x
        first = len(dims) - len(x.dims)
        return self.emit("broadcast", [x], dims, f"axes = {listed(range(first, len(dims)))}, dims = {listed(dims)}")

    def reshape(self, x, dims):
        return self.emit("reshape", [x], dims, f"dims = {listed(dims)}")

    def transpose(self, x, perm):
        return self.emit("transpose", [x], [x.dims[i] for i in perm], f"perm = {listed(perm)}")

    def with_scalar(self, op, x, number):
        return self.emit(op, [x, self.broadcast(self.constant(number), x.dims)], x.dims)

    def reduce(self, kind, x, axes, keep=False):
        left = [d for i, d in enumerate(x.dims) if i not in axes]
        y = self.emit("reduce", [x], left, f"axes = {listed(sorted(axes))}, kind = {kind}")
        return self.reshape(y, [1 if i in axes else d for i, d in enumerate(x.dims)]) if keep else y

    def indices(self, dims, below):
        """Nested lists"""
        return np.array([self.below(below) for _ in range(count(dims))], int).reshape(dims).tolist()

    # what is computed

    def step(self, value, function, *operands):
        """`function` of PyTorch's tensors gives what the text says of `value`."""
        for x in operands:
            x.taken = True
        self.steps.append((value, function, operands))
        self.values.append(value)
        return value

    def value(self, low=1, high=3):
        """One there is, of a rank from low to high; else, and sometimes so, an input."""
        fitting = [v for v in self.values if low <= len(v.dims) <= high and 0 < count(v.dims) <= LARGEST]
        if not fitting or self.chance(0.2):
            return self.input(self.dims(low, high))
        return fitting[max(self.below(len(fitting)), self.below(len(fitting)))]

    def shaped(self, dims):
        """A value of these dims: elements of one there is, with zeros behind them, or an input."""
        n = count(dims)
        if self.chance(0.4):
            return self.input(dims)
        x = self.value()
        have = count(x.dims)
        y = self.reshape(x, [have])
        if have < n:
            y = self.emit("pad", [y, self.constant(0.0)], [n], f"high = [{n - have}], interior = [0], low = [0]")
        elif have > n:
            y = self.emit("slice", [y], [n], f"limit = [{n}], start = [0], stride = [1]")
        return self.step(self.reshape(y, dims), lambda x: F.pad(x.flatten(), (0, n - have)).reshape(dims), x)

    def distinct(self, x):
        y = self.input(x.dims)
        return self.step(self.emit("add", [x, y], x.dims), lambda x, y: x + y, x, y)

    def tame(self, x):
        return self.step(self.emit("sin", [x], x.dims), lambda x: torch.sin(x), x)

    def positive(self, x):
        """x^2 + 1/2"""
        y = self.with_scalar("add", self.emit("mul", [x, x], x.dims), 0.5)
        return self.step(y, lambda x: x * x + 0.5, x)

    # the whole

    def text(self):
        inputs = ", ".join(f"{x.name}: {self.dtype}{listed(x.dims)}" for x, _ in self.inputs)
        return (f"graph @main({inputs}) -> (loss: {self.dtype}[]) {{\n  " + "\n  ".join(self.lines) +
                f"\n  return {self.loss.name}\n}}\n")

    def checksum(self):
        return zlib.crc32(repr((self.text(), [numbers for _, numbers in self.inputs])).encode())

    def finish(self):
        loss, ends = None, [v for v in self.values if not v.taken]
        for v in ends:
            y = self.reduce("sum", self.emit("sin", [v], v.dims), range(len(v.dims)))
            loss = y if loss is None else self.emit("add", [loss, y], [])
        self.loss = loss
        self.steps.append((loss, lambda *all_of: sum(torch.sin(v).sum() for v in all_of), ends))
        return self

    def arrays(self):
        return [np.array(numbers).reshape(x.dims).astype(np.float64 if self.dtype == "f64" else np.float32)
                for x, numbers in self.inputs]

    def gradients(self):
        """The loss and the inputs' gradients by PyTorch."""
        found = {x: torch.tensor(a, requires_grad=True) for (x, _), a in zip(self.inputs, self.arrays())}
        leaves = list(found.values())
        for value, function, operands in self.steps:
            found[value] = function(*[found[x] for x in operands])
            assert tuple(found[value].shape) == value.dims, (self.lines, value.dims, found[value].shape)
        return found[self.loss].item(), [g.numpy() for g in torch.autograd.grad(found[self.loss], leaves, materialize_grads=True)]


def projections(gradients):
    """A number for each input, in which each element has a weight of its own."""
    return [float((np.cos(1.7 * np.arange(g.size) + 1) * g.flatten().astype(np.float64)).sum()) for g in gradients]


# Steps. Each takes values that there are, and leaves one.

UNARY = [("sin", lambda x: torch.sin(x)), ("cos", lambda x: torch.cos(x)), ("tanh", lambda x: torch.tanh(x)),
         ("atan", lambda x: torch.atan(x)), ("asinh", lambda x: torch.asinh(x)), ("erf", lambda x: torch.erf(x)),
         ("logistic", lambda x: torch.sigmoid(x)), ("gelu", lambda x: F.gelu(x)), ("silu", lambda x: F.silu(x)),
         ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")), ("neg", lambda x: -x)]
KINKED = [("relu", lambda x: F.relu(x)), ("abs", lambda x: x.abs()), ("floor", lambda x: x.floor()),
          ("ceil", lambda x: x.ceil()), ("round", lambda x: x.round()), ("trunc", lambda x: x.trunc()),
          ("sign", lambda x: x.sign())]
POSITIVE = [("log", lambda x: torch.log(x)), ("sqrt", lambda x: torch.sqrt(x)), ("rsqrt", lambda x: torch.rsqrt(x)),
            ("log1p", lambda x: torch.log1p(x))]
OF_A_SINE = [("exp", lambda x: torch.exp(x)), ("expm1", lambda x: torch.expm1(x)), ("sinh", lambda x: torch.sinh(x)),
             ("cosh", lambda x: torch.cosh(x)), ("tan", lambda x: torch.tan(x))]
OF_HALF_A_SINE = [("asin", lambda x: torch.asin(x)), ("acos", lambda x: torch.acos(x)), ("atanh", lambda x: torch.atanh(x))]


def unary(g):
    x, (name, function) = g.value(0), g.pick(UNARY)
    g.step(g.emit(name, [x], x.dims), function, x)


def kinked(g):
    x, (name, function) = g.distinct(g.value()), g.pick(KINKED)
    y = g.step(g.emit(name, [x], x.dims), function, x)
    g.step(g.emit("mul", [x, y], x.dims), lambda x, y: x * y, x, y)


def of_positive(g):
    x, (name, function) = g.positive(g.value()), g.pick(POSITIVE)
    g.step(g.emit(name, [x], x.dims), function, x)


def of_bounded(g):
    x = g.tame(g.value())
    half = g.chance(0.4)
    if half:
        x = g.step(g.with_scalar("mul", x, 0.5), lambda x: x * 0.5, x)
    name, function = g.pick(OF_HALF_A_SINE if half else OF_A_SINE)
    g.step(g.emit(name, [x], x.dims), function, x)


BINARY = [("add", lambda x, y: x + y), ("sub", lambda x, y: x - y), ("mul", lambda x, y: x * y)]


def with_broadcast(g):
    """Of two values whose dims NumPy broadcasts: some 1, some missing."""
    x = g.value(1, 4)
    dims = [1 if g.chance(0.3) else d for d in x.dims][g.below(len(x.dims) + 1) if g.chance(0.4) else 0:]
    y = g.shaped(dims)
    kind = g.below(8)
    if kind == 3:
        y, name, function = g.positive(y), "div", lambda x, y: x / y
    elif kind == 4:
        x, name, function = g.positive(x), "pow", lambda x, y: torch.pow(x, y)
    elif kind == 5:
        x, name, function = g.distinct(x), "max", lambda x, y: torch.maximum(x, y)
    elif kind == 6:
        x, name, function = g.distinct(x), "min", lambda x, y: torch.minimum(x, y)
    elif kind == 7:
        x, name, function = g.positive(x), "atan2", lambda x, y: torch.atan2(x, y)
    else:
        name, function = BINARY[kind]
    swap = name in ("sub", "mul", "max") and g.chance(0.5)
    operands = [x, g.broadcast(y, x.dims)]
    value = g.emit(name, operands[::-1] if swap else operands, x.dims)
    value = g.step(value, (lambda x, y: function(y, x)) if swap else function, x, y)
    if name in ("pow", "div"):
        g.tame(value)


def reductions(g):
    x = g.value(1, 4)
    axes = g.shuffled(range(len(x.dims)))[:g.between(1, len(x.dims))]
    kind = g.pick(["sum", "mean", "max", "min", "prod", "logsumexp", "norm", "var"])
    n = count([x.dims[i] for i in axes])
    if kind in ("sum", "mean"):
        y = g.reduce("sum", x, axes)
        y = g.with_scalar("div", y, float(n)) if kind == "mean" else y
        y = g.step(y, lambda x: getattr(torch, kind)(x, axes), x)
        if kind == "sum":
            g.tame(y)
    elif kind in ("max", "min"):
        x = g.distinct(x)
        g.step(g.reduce(kind, x, axes), lambda x: getattr(torch, "a" + kind)(x, axes), x)
    elif kind == "prod":
        x = g.positive(g.tame(x))

        def function(x):
            for axis in sorted(axes, reverse=True):
                x = x.prod(axis)
            return x
        g.tame(g.step(g.reduce("prod", x, axes), function, x))
    elif kind == "logsumexp":
        x = g.distinct(x)
        m = g.reduce("max", x, axes, True)
        e = g.emit("exp", [g.emit("sub", [x, g.broadcast(m, x.dims)], x.dims)], x.dims)
        s = g.reduce("sum", e, axes)
        g.step(g.emit("add", [g.emit("log", [s], s.dims), g.reshape(m, s.dims)], s.dims),
               lambda x: torch.logsumexp(x, axes), x)
    elif kind == "norm":
        x = g.distinct(x)
        s = g.reduce("sum", g.emit("mul", [x, x], x.dims), axes)
        g.step(g.emit("sqrt", [s], s.dims), lambda x: torch.linalg.vector_norm(x, 2, axes), x)
    else:
        mean = g.with_scalar("div", g.reduce("sum", x, axes, True), float(n))
        d = g.emit("sub", [x, g.broadcast(mean, x.dims)], x.dims)
        y = g.with_scalar("div", g.reduce("sum", g.emit("mul", [d, d], x.dims), axes), float(n))
        g.step(y, lambda x: torch.var(x, axes, correction=0), x)


def soft(g):
    x = g.value(1, 4)
    axis = g.below(len(x.dims))
    if g.chance(0.5):
        g.step(g.emit("softmax", [x], x.dims, f"axis = {axis}"), lambda x: F.softmax(x, axis), x)
    else:
        g.step(g.emit("log_softmax", [x], x.dims, f"axis = {axis}"), lambda x: F.log_softmax(x, axis), x)


def group_norm(g):
    groups, each, space = g.between(1, 3), g.between(1, 3), [g.between(1, 2) for _ in range(g.below(3))]
    c = groups * each
    x, scale, bias = g.distinct(g.shaped([g.between(1, 3), c, *space])), g.input([c]), g.input([c])
    g.step(g.emit("group_norm", [x, scale, bias], x.dims, f"epsilon = 0.01, groups = {groups}"),
           lambda x, s, b: F.group_norm(x, groups, s, b, 0.01), x, scale, bias)


def norms(g):
    if g.chance(0.25):
        group_norm(g)
        return
    x = g.distinct(g.value(1, 4))
    axis = g.below(len(x.dims))
    over = list(x.dims[axis:])
    scale, e = g.input(over), 0.01
    if g.chance(0.4):
        g.step(g.emit("rms_norm", [x, scale], x.dims, f"axis = {axis}, epsilon = {e}"),
               lambda x, s: F.rms_norm(x, over, s, e), x, scale)
    elif g.chance(0.3):
        g.step(g.emit("layer_norm", [x, scale], x.dims, f"axis = {axis}, epsilon = {e}"),
               lambda x, s: F.layer_norm(x, over, s, None, e), x, scale)
    else:
        bias = g.input(over)
        g.step(g.emit("layer_norm", [x, scale, bias], x.dims, f"axis = {axis}, epsilon = {e}"),
               lambda x, s, b: F.layer_norm(x, over, s, b, e), x, scale, bias)


def batch_norm(g):
    n, c, space = g.between(2, 3), g.between(1, 3), [g.between(1, 2) for _ in range(g.below(3))]
    x, scale, bias = g.distinct(g.shaped([n, c, *space])), g.input([c]), g.input([c])
    mean, variance, training = g.input([c]), g.positive(g.input([c])), g.chance(0.6)
    y, _, _ = g.emit_all("batch_norm", [x, scale, bias, mean, variance], [x.dims, [c], [c]],
                         "epsilon = 0.01, momentum = 0.9" + ", training = true" * training)
    if training:
        g.step(y, lambda x, s, b: F.batch_norm(x, None, None, s, b, True, eps=0.01), x, scale, bias)
    else:
        def function(x, s, b, m, v):
            s, b, m, v = (a.reshape([c] + [1] * len(space)) for a in (s, b, m, v))
            return (x - m) / torch.sqrt(v + 0.01) * s + b
        g.step(y, function, x, scale, bias, mean, variance)


def dot(g, x, y, x_batch, y_batch, x_contract, y_contract):
    def free(v, *used):
        return [d for i, d in enumerate(v.dims) if not any(i in u for u in used)]
    dims = [x.dims[i] for i in x_batch] + free(x, x_batch, x_contract) + free(y, y_batch, y_contract)
    return g.emit("dot_general", [x, y], dims, f"x_batch = {listed(x_batch)}, x_contract = {listed(x_contract)}, "
                                               f"y_batch = {listed(y_batch)}, y_contract = {listed(y_contract)}")


def matmul(g):
    """Batch dims that broadcast."""
    m, k, n = (g.between(1, 3) for _ in range(3))
    batch = [g.between(1, 3) for _ in range(g.below(3))]
    some = [1 if g.chance(0.4) else d for d in batch][g.below(2) if batch else 0:]
    x, y = g.shaped(batch + [m, k]), g.shaped(some + [k, n])
    b = len(batch)
    value = dot(g, x, g.broadcast(y, batch + [k, n]), range(b), range(b), [b + 1], [b])
    g.tame(g.step(value, lambda x, y: torch.matmul(x, y), x, y))


def einsum(g):
    letters = "abcdef"[:g.between(2, 5)]
    size = {c: g.between(1, 3) for c in letters}
    roles = {c: g.pick(["batch", "contract", "x", "y"]) for c in letters}
    xs = g.shuffled([c for c in letters if roles[c] != "y"])
    ys = g.shuffled([c for c in letters if roles[c] != "x"])
    batch, both = [c for c in letters if roles[c] == "batch"], [c for c in letters if roles[c] == "contract"]
    natural = batch + [c for c in xs if roles[c] == "x"] + [c for c in ys if roles[c] == "y"]
    out = g.shuffled(natural)
    x, y = g.shaped([size[c] for c in xs]), g.shaped([size[c] for c in ys])
    value = dot(g, x, y, [xs.index(c) for c in batch], [ys.index(c) for c in batch], [xs.index(c) for c in both],
                [ys.index(c) for c in both])
    formula = f"{''.join(xs)},{''.join(ys)}->{''.join(out)}"
    value = g.transpose(value, [natural.index(c) for c in out])
    g.tame(g.step(value, lambda x, y: torch.einsum(formula, x, y), x, y))


def windows(g, rank):
    """kernel, stride, dilation, padding, extent for each axis"""
    axes = []
    for _ in range(rank):
        kernel, dilation = g.between(1, 3), g.between(1, 2)
        reach = dilation * (kernel - 1) + 1
        axes.append((kernel, g.between(1, 3), dilation, g.between(0, kernel // 2), reach + g.below(3)))
    return [list(part) for part in zip(*axes)]


def convolution(g):
    rank = g.between(1, 2)
    kernel, stride, dilation, padding, extent = windows(g, rank)
    groups = g.between(1, 2)
    c, o, n = g.between(1, 2), g.between(1, 2), g.between(1, 2)
    x, w = g.shaped([n, groups * c, *extent]), g.input([groups * o, c, *kernel])
    out = [(e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, d, p in zip(extent, kernel, stride, dilation, padding)]
    value = g.emit("convolution", [x, w], [n, groups * o, *out],
                   f"groups = {groups}, high = {listed(padding)}, low = {listed(padding)}, stride = {listed(stride)}, "
                   f"w_dilation = {listed(dilation)}, x_dilation = {listed([1] * rank)}")
    name = f"conv{rank}d"
    g.tame(g.step(value, lambda x, w: getattr(F, name)(x, w, None, stride, padding, dilation, groups), x, w))


def transposed(g):
    rank = g.between(1, 2)
    kernel, stride, dilation, padding, extent = windows(g, rank)
    extent = [min(e, 3) for e in extent]
    more = [g.below(max(s, d)) for s, d in zip(stride, dilation)]
    groups = g.between(1, 2)
    c, o, n = g.between(1, 2), g.between(1, 2), g.between(1, 2)
    out = [(e - 1) * s - 2 * p + d * (k - 1) + m + 1
           for e, k, s, d, p, m in zip(extent, kernel, stride, dilation, padding, more)]
    if min(out) < 1:
        padding, more = [0] * rank, [0] * rank
        out = [(e - 1) * s + d * (k - 1) + 1 for e, k, s, d in zip(extent, kernel, stride, dilation)]
    x, w = g.shaped([n, groups * c, *extent]), g.input([groups * c, o, *kernel])
    space = range(3, 3 + rank)
    u = g.transpose(g.reshape(w, [groups, c, o, *kernel]), [0, 2, 1, *space])
    u = g.reshape(u, [groups * o, c, *kernel])
    u = g.emit("reverse", [u], u.dims, f"axes = {listed(range(2, 2 + rank))}")
    low = [d * (k - 1) - p for k, d, p in zip(kernel, dilation, padding)]
    value = g.emit("convolution", [x, u], [n, groups * o, *out],
                   f"groups = {groups}, high = {listed([a + m for a, m in zip(low, more)])}, low = {listed(low)}, "
                   f"stride = {listed([1] * rank)}, w_dilation = {listed(dilation)}, x_dilation = {listed(stride)}")
    name = f"conv_transpose{rank}d"
    g.tame(g.step(value, lambda x, w: getattr(F, name)(x, w, None, stride, padding, more, groups, dilation), x, w))


def pooling(g):
    rank, largest = g.between(1, 2), g.chance(0.5)
    kernel, stride, dilation, padding, extent = windows(g, rank)
    if not largest:
        dilation = [1] * rank
    x = g.shaped([1, g.between(1, 2), *extent])
    x = g.distinct(x) if largest else x
    out = [(e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, d, p in zip(extent, kernel, stride, dilation, padding)]
    value = g.emit("reduce_window", [x], [*x.dims[:2], *out],
                   f"dilation = {listed([1, 1] + dilation)}, high = {listed([0, 0] + padding)}, "
                   f"kind = {'max' if largest else 'sum'}, low = {listed([0, 0] + padding)}, "
                   f"stride = {listed([1, 1] + stride)}, window = {listed([1, 1] + kernel)}")
    if largest:
        name = f"max_pool{rank}d"
        g.step(value, lambda x: getattr(F, name)(x, kernel, stride, padding, dilation), x)
    else:
        name = f"avg_pool{rank}d"
        g.step(g.with_scalar("div", value, float(count(kernel))),
               lambda x: getattr(F, name)(x, kernel, stride, padding), x)


def gathers(g):
    x = g.value(1, 3)
    axis, kind = g.below(len(x.dims)), g.below(3)
    if kind == 0:
        index = g.indices([g.between(1, 4)], x.dims[axis])
        dims = [len(index) if i == axis else d for i, d in enumerate(x.dims)]
        g.step(g.emit("gather", [x, g.constant(index, "i64")], dims, f"axis = {axis}"),
               lambda x: x.index_select(axis, torch.tensor(index)), x)
    elif kind == 1:
        dims = [g.between(1, 4) if i == axis else g.between(1, d) for i, d in enumerate(x.dims)]
        index = g.indices(dims, x.dims[axis])
        g.step(g.emit("gather_elements", [x, g.constant(index, "i64")], dims, f"axis = {axis}"),
               lambda x: x.gather(axis, torch.tensor(index)), x)
    else:
        k, n = g.between(1, len(x.dims)), g.between(1, 4)
        index = [[g.below(x.dims[i]) for i in range(k)] for _ in range(n)]
        g.step(g.emit("gather_nd", [x, g.constant(index, "i64")], [n, *x.dims[k:]], "batch_dims = 0"),
               lambda x: x[tuple(torch.tensor(index).T)], x)


def scatters(g):
    x = g.distinct(g.value(1, 3))
    axis = g.below(len(x.dims))
    kind = g.pick(["set", "sum", "prod", "max", "min"])
    torch_kind = {"sum": "sum", "prod": "prod", "max": "amax", "min": "amin"}
    if g.chance(0.6):
        if kind == "set":  # each place at most once
            rows = g.between(1, x.dims[axis])
            order = g.shuffled(range(x.dims[axis]))[:rows]
            dims = [rows if i == axis else d for i, d in enumerate(x.dims)]
            index = np.broadcast_to(np.array(order).reshape([-1] + [1] * (len(dims) - axis - 1)), dims).tolist()
        else:
            dims = [g.between(1, 4) if i == axis else g.between(1, d) for i, d in enumerate(x.dims)]
            index = g.indices(dims, x.dims[axis])
        y = g.input(dims)
        value = g.emit("scatter_elements", [x, g.constant(index, "i64"), y], x.dims, f"axis = {axis}, kind = {kind}")

        def function(x, y):
            i = torch.tensor(index)
            return x.scatter(axis, i, y) if kind == "set" else x.scatter_reduce(axis, i, y, torch_kind[kind])
    else:
        k, kind = g.between(1, len(x.dims)), g.pick(["set", "sum"])
        places = g.shuffled(tuples(*[range(d) for d in x.dims[:k]]))[:g.between(1, 4)]
        index = [list(p) for p in (places if kind == "set" else [g.pick(places) for _ in range(g.between(1, 4))])]
        y = g.input([len(index), *x.dims[k:]])
        value = g.emit("scatter_nd", [x, g.constant(index, "i64"), y], x.dims, f"kind = {kind}")

        def function(x, y):
            return x.index_put(tuple(torch.tensor(index).T), y, accumulate=kind == "sum")
    g.tame(g.step(value, function, x, y))


def slices(g):
    x = g.value(1, 4)
    if g.chance(0.5):
        start = [g.below(d) for d in x.dims]
        limit = [g.between(a + 1, d) for a, d in zip(start, x.dims)]
        stride = [g.between(1, 2) for _ in x.dims]
        dims = [(b - a + s - 1) // s for a, b, s in zip(start, limit, stride)]
        g.step(g.emit("slice", [x], dims, f"limit = {listed(limit)}, start = {listed(start)}, stride = {listed(stride)}"),
               lambda x: x[tuple(slice(a, b, s) for a, b, s in zip(start, limit, stride))], x)
        return
    dims = [g.between(1, d) for d in x.dims]
    start = [g.below(d - n + 1) for d, n in zip(x.dims, dims)]
    at = [g.constant(a, "i64") for a in start]
    place = tuple(slice(a, a + n) for a, n in zip(start, dims))
    if g.chance(0.5):
        g.step(g.emit("dynamic_slice", [x, *at], dims, f"dims = {listed(dims)}"), lambda x: x[place], x)
    else:
        def function(x, y):
            x = x.clone()
            x[place] = y
            return x
        y = g.shaped(dims)
        g.step(g.emit("dynamic_update_slice", [x, y, *at], x.dims), function, x, y)


def padding(g):
    """With a number, or with negative amounts, which crop."""
    x = g.value(1, 3)
    low = [g.between(-1 if d > 2 else 0, 2) for d in x.dims]
    high = [g.between(-1 if d > 2 else 0, 2) for d in x.dims]
    number = g.input([])
    dims = [a + d + b for a, d, b in zip(low, x.dims, high)]
    value = g.emit("pad", [x, number], dims, f"high = {listed(high)}, interior = {listed([0] * len(dims))}, low = {listed(low)}")

    def function(x, number):
        amounts = [n for pair in zip(low[::-1], high[::-1]) for n in pair]
        inside = F.pad(torch.ones_like(x), amounts)
        return F.pad(x, amounts) + (1 - inside) * number
    g.step(value, function, x, number)


def joined(g):
    x = g.value(1, 3)
    axis = g.below(len(x.dims))
    parts = [x] + [g.shaped([g.between(1, 2) if i == axis else d for i, d in enumerate(x.dims)])
                   for _ in range(g.between(1, 2))]
    parts = g.shuffled(parts)
    dims = [sum(p.dims[axis] for p in parts) if i == axis else d for i, d in enumerate(x.dims)]
    g.step(g.emit("concatenate", parts, dims, f"axis = {axis}"), lambda *parts: torch.cat(parts, axis), *parts)


def movement(g):
    x, kind = g.value(1, 4), g.below(4)
    if kind == 0:
        perm = g.shuffled(range(len(x.dims)))
        g.step(g.transpose(x, perm), lambda x: x.permute(perm), x)
    elif kind == 1:
        axes = g.shuffled(range(len(x.dims)))[:g.between(1, len(x.dims))]
        g.step(g.emit("reverse", [x], x.dims, f"axes = {listed(sorted(axes))}"), lambda x: x.flip(axes), x)
    elif kind == 2:
        dims = [g.between(1, 2), *x.dims]
        g.step(g.broadcast(x, dims), lambda x: x.expand(dims), x)
    else:
        dims = g.shuffled([*x.dims, 1])
        y = g.reshape(g.emit("mul", [x, x], x.dims), dims)
        g.step(y, lambda x: (x * x).reshape(dims), x)


def order(g):
    x = g.distinct(g.value(1, 3))
    axis, largest = g.below(len(x.dims)), g.chance(0.5)
    direction = "true" if largest else "false"
    if g.chance(0.5):
        y, _ = g.emit_all("sort", [x, x], [x.dims, x.dims], f"axis = {axis}, descending = {direction}")
        g.step(y, lambda x: x.sort(axis, largest).values, x)
    else:
        k = g.between(1, x.dims[axis])
        dims = [k if i == axis else d for i, d in enumerate(x.dims)]
        y, _ = g.emit_all("top_k", [x], [dims, "i64" + listed(dims)], f"axis = {axis}, k = [{k}], largest = {direction}")
        g.step(y, lambda x: x.topk(k, axis, largest).values, x)


def cumulative(g):
    x = g.value(1, 3)
    axis, kind = g.below(len(x.dims)), g.pick(["sum", "prod", "max", "min"])
    backwards, exclusive = g.chance(0.5), kind == "sum" and g.chance(0.3)
    if kind in ("max", "min"):
        x = g.distinct(x)

    def function(x):
        y = x.flip(axis) if backwards else x
        y = getattr(torch, "cum" + kind)(y, axis)
        y = y if kind in ("sum", "prod") else y.values
        y = y.flip(axis) if backwards else y
        return y - x if exclusive else y
    value = g.emit("cumulative", [x], x.dims, f"axis = {axis}" + ", exclusive = true" * exclusive + f", kind = {kind}" +
                   ", reverse = true" * backwards)
    value = g.step(value, function, x)
    if kind in ("sum", "prod"):
        g.tame(value)


def chosen(g):
    x = g.distinct(g.value())
    y = g.shaped(x.dims)
    if g.chance(0.4):  # clamp
        low = g.broadcast(g.constant(-0.5), x.dims)
        high = g.broadcast(g.constant(0.75), x.dims)
        z = g.emit("min", [g.emit("max", [x, low], x.dims), high], x.dims)
        g.step(z, lambda x: x.clamp(-0.5, 0.75), x)
        return
    direction, function = g.pick([("lt", lambda x, y: x < y), ("ge", lambda x, y: x >= y), ("ne", lambda x, y: x != y)])
    p, = g.emit_all("compare", [x, y], ["bool" + listed(x.dims)], f"direction = {direction}")
    s = g.emit("sin", [y], y.dims)
    g.step(g.emit("select", [p, x, s], x.dims), lambda x, y: torch.where(function(x, y), x, torch.sin(y)), x, y)


def attention(g):
    b, heads, groups = 1, g.between(1, 2), 1
    groups = heads if g.chance(0.6) else 1
    s, d, e = g.between(1, 3), g.between(1, 3), g.between(1, 3)
    causal = g.chance(0.5)
    t = s + g.between(0, 2)
    q, k, v = g.shaped([b, heads, s, d]), g.shaped([b, groups, t, d]), g.shaped([b, groups, t, e])
    attributes, dims = ("causal = true, " if causal else "") + "scale = 0.7", [b, heads, s, e]
    seen = np.tril(np.ones((s, t), bool), t - s).tolist()

    def function(q, k, v, mask=None):
        visible = torch.tensor(seen) if causal and mask is None else mask
        if mask is not None and causal:
            visible = mask.masked_fill(~torch.tensor(seen), -math.inf)
        return F.scaled_dot_product_attention(q, k, v, visible, scale=0.7, enable_gqa=groups != heads)
    if g.chance(0.4):
        mask = g.input([1, g.pick([1, heads]), s, t])
        g.step(g.emit("attention", [q, k, v, mask], dims, attributes), function, q, k, v, mask)
    else:
        g.step(g.emit("attention", [q, k, v], dims, attributes), function, q, k, v)


def region(g, name, arguments, lines, results):
    """Goes on with the last line; arguments are (name, type)."""
    inside = "".join(f"      {line}\n" for line in lines)
    taken = ", ".join(f"{n}: {t}" for n, t in arguments)
    g.lines[-1] += f"\n    {name} ({taken}) {{\n{inside}      return {', '.join(results)}\n    }}"


def scan(g):
    """h = tanh(w h + x), over the first axis, forwards or backwards; the last h, or all."""
    n, width = g.between(1, 4), g.between(1, 3)
    h, x, w = g.shaped([width]), g.shaped([n, width]), g.input([width, width])
    backwards, last = g.chance(0.5), g.chance(0.4)
    row = g.dtype + listed([width])
    both = g.emit_all("scan", [h, x, w], [[width], [n, width]],
                      f"length = [{n}], n_carried = 1, n_scanned = 1" + ", reverse = true" * backwards)
    region(g, "body", [("%h", row), ("%x", row), ("%w", g.dtype + listed([width, width]))],
           ["%a = dot_general %w, %h {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : " + row,
            f"%b = add %a, %x : {row}", f"%c = tanh %b : {row}"], ["%c", "%c"])

    def function(h, x, w):
        rows = []
        for i in range(n)[::-1] if backwards else range(n):
            h = torch.tanh(w @ h + x[i])
            rows.append(h)
        return h if last else torch.stack(rows[::-1] if backwards else rows)
    g.step(both[0 if last else 1], function, h, x, w)


def loop(g):
    """x = sin(x y) + x, some times"""
    x = g.value()
    y, times, kind = g.shaped(x.dims), g.between(0, 3), g.dtype + listed(x.dims)
    zero = g.constant(0, "i64")
    results = g.emit_all("while", [zero, x, y], ["i64[]", x.dims], f"limit = [{times + g.below(2)}], n_carried = 2")
    arguments = [("%k", "i64[]"), ("%x", kind), ("%y", kind)]
    region(g, "condition", arguments, [f"%n = constant {times} : i64[]", "%p = compare %k, %n {direction = lt} : bool[]"],
           ["%p"])
    region(g, "body", arguments, ["%o = constant 1 : i64[]", "%n = add %k, %o : i64[]", f"%m = mul %x, %y : {kind}",
                                  f"%s = sin %m : {kind}", f"%r = add %s, %x : {kind}"], ["%n", "%r"])

    def function(x, y):
        for _ in range(times):
            x = torch.sin(x * y) + x
        return x
    g.step(results[1], function, x, y)


def branch(g):
    """sum(x) > 0 ? x y : cos(x)"""
    x = g.distinct(g.value())
    y, kind = g.shaped(x.dims), g.dtype + listed(x.dims)
    total = g.reduce("sum", x, range(len(x.dims)))
    p, = g.emit_all("compare", [total, g.constant(0.0)], ["bool[]"], "direction = gt")
    value = g.emit("if", [p, x, y], x.dims)
    arguments = [("%x", kind), ("%y", kind)]
    region(g, "then", arguments, [f"%r = mul %x, %y : {kind}"], ["%r"])
    region(g, "else", arguments, [f"%r = cos %x : {kind}"], ["%r"])
    g.step(value, lambda x, y: x * y if x.sum() > 0 else torch.cos(x), x, y)


def torchs_lstm(x, w, u, bias, h0, c0):
    """Our gates are i, o, f, c; PyTorch's i, f, c, o."""
    def theirs(a):
        i, o, f, c = a.chunk(4)
        return torch.cat([i, f, c, o])
    parts = [theirs(w), theirs(u), theirs(bias), torch.zeros_like(bias)]
    y, h, c = torch._VF.lstm(x, (h0[None], c0[None]), parts, True, 1, 0.0, False, False, False)
    return y, h[0], c[0]


def lstm(g):
    s, b, i, h = (g.between(1, 3) for _ in range(4))
    x, w, u, bias = g.shaped([s, b, i]), g.input([4 * h, i]), g.input([4 * h, h]), g.input([4 * h])
    h0, c0, which = g.shaped([b, h]), g.shaped([b, h]), g.below(3)
    results = g.emit_all("lstm", [x, w, u, bias, h0, c0], [[s, b, h], [b, h], [b, h]])

    g.step(results[which], lambda *parts: torchs_lstm(*parts)[which], x, w, u, bias, h0, c0)


STEPS = [unary, kinked, of_positive, of_bounded, with_broadcast, reductions, soft, norms, batch_norm, matmul, einsum,
         convolution, transposed, pooling, gathers, scatters, slices, padding, joined, movement, order, cumulative, chosen,
         attention, scan, loop, branch, lstm]


def random_graph(seed, dtype="f64"):
    g = Graph(seed, dtype)
    g.input(g.dims())
    STEPS[seed % len(STEPS)](g)
    for _ in range(g.between(1, 5)):
        g.pick(STEPS)(g)
    return g.finish()


# Models, of the kinds that training is measured on.

def linear(g, x, n, bias=True):
    w = g.input([x.dims[-1], n])
    y = dot(g, x, w, [], [], [len(x.dims) - 1], [0])
    y = g.step(y, lambda x, w: x @ w, x, w)
    return add(g, y, g.input([n])) if bias else y


def add(g, x, y):
    return g.step(g.emit("add", [x, g.broadcast(y, x.dims)], x.dims), lambda x, y: x + y, x, y)


def activation(g, name, function, x):
    return g.step(g.emit(name, [x], x.dims), function, x)


def cross_entropy(g, logits):
    """The mean over rows with random labels"""
    *rows, n = logits.dims
    labels = g.indices([count(rows)], n)
    x = g.reshape(logits, [count(rows), n])
    p = g.emit("log_softmax", [x], x.dims, "axis = 1")
    p = g.emit("gather_elements", [p, g.constant([[i] for i in labels], "i64")], [count(rows), 1], "axis = 1")
    loss = g.with_scalar("div", g.reduce("sum", p, [0, 1]), -float(count(rows)))
    g.loss = g.step(loss, lambda x: F.cross_entropy(x.reshape(-1, n), torch.tensor(labels)), logits)
    return g


def mlp(g):
    x = g.input([4, 6])
    for n in 8, 8:
        x = activation(g, "relu", lambda x: F.relu(x), linear(g, x, n))
    return cross_entropy(g, linear(g, x, 5))


def resnet(g):
    """Convolution, maximum, a residual block that halves, mean of the positions"""
    def conv(x, channels, size, stride):
        w, edge = g.input([channels, x.dims[1], size, size]), size // 2
        out = [(d + 2 * edge - size) // stride + 1 for d in x.dims[2:]]
        y = g.emit("convolution", [x, w], [x.dims[0], channels, *out],
                   f"groups = 1, high = [{edge}, {edge}], low = [{edge}, {edge}], stride = [{stride}, {stride}], "
                   "w_dilation = [1, 1], x_dilation = [1, 1]")
        y = g.step(y, lambda x, w: F.conv2d(x, w, None, stride, edge), x, w)
        parts = [y, g.input([channels]), g.input([channels])]
        running = [g.constant([0.0] * channels), g.constant([1.0] * channels)]
        z, _, _ = g.emit_all("batch_norm", parts + running, [y.dims, [channels], [channels]],
                             "epsilon = 1e-05, momentum = 0.9, training = true")
        return g.step(z, lambda y, s, b: F.batch_norm(y, None, None, s, b, True), *parts)

    def relu(x):
        return activation(g, "relu", lambda x: F.relu(x), x)
    x = relu(conv(g.input([2, 2, 8, 8]), 3, 3, 1))
    x = g.step(g.emit("reduce_window", [x], [2, 3, 4, 4],
                      "dilation = [1, 1, 1, 1], high = [0, 0, 1, 1], kind = max, low = [0, 0, 1, 1], stride = [1, 1, 2, 2], "
                      "window = [1, 1, 3, 3]"), lambda x: F.max_pool2d(x, 3, 2, 1), x)
    x = relu(add(g, conv(relu(conv(x, 4, 3, 2)), 4, 3, 1), conv(x, 4, 1, 2)))
    mean = g.with_scalar("div", g.reduce("sum", x, [2, 3]), float(count(x.dims[2:])))
    return cross_entropy(g, linear(g, g.step(mean, lambda x: x.mean((2, 3)), x), 5))


def embedding(g, words, width, dims):
    table, rows = g.input([words, width]), g.indices(dims, words)
    return table, g.step(g.emit("gather", [table, g.constant(rows, "i64")], [*dims, width], "axis = 0"),
                         lambda table: F.embedding(torch.tensor(rows), table), table)


def recurrent(g):
    """A language model of two layers of LSTM"""
    _, x = embedding(g, 7, 4, [5, 2])
    for h in 4, 3:
        s, b, i = x.dims
        zeros = g.constant([[0.0] * h] * b)
        weights = [g.input([4 * h, i]), g.input([4 * h, h]), g.input([4 * h])]
        y, _, _ = g.emit_all("lstm", [x, *weights, zeros, zeros], [[s, b, h], [b, h], [b, h]])
        x = g.step(y, lambda x, w, u, bias, h=h: torchs_lstm(x, w, u, bias, *[x.new_zeros(x.shape[1], h)] * 2)[0], x, *weights)
    return cross_entropy(g, linear(g, x, 7))


def gpt(g):
    """One block, with the table of words used at both ends"""
    words, length, width, heads = 6, 5, 8, 2

    def norm(x):
        parts = [x, g.input([width]), g.input([width])]
        return g.step(g.emit("layer_norm", parts, x.dims, "axis = 2, epsilon = 1e-05"),
                      lambda x, s, b: F.layer_norm(x, [width], s, b), *parts)

    def headed(x):
        y = g.transpose(g.reshape(x, [2, length, heads, width // heads]), [0, 2, 1, 3])
        return g.step(y, lambda x: x.reshape(2, length, heads, width // heads).transpose(1, 2), x)
    table, x = embedding(g, words, width, [2, length])
    x = add(g, x, g.input([length, width]))
    n = norm(x)
    q, k, v = (headed(linear(g, n, width)) for _ in range(3))
    a = g.step(g.emit("attention", [q, k, v], q.dims, "causal = true, scale = 0.5"),
               lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5), q, k, v)
    a = g.step(g.reshape(g.transpose(a, [0, 2, 1, 3]), [2, length, width]),
               lambda a: a.transpose(1, 2).reshape(2, length, width), a)
    x = add(g, x, linear(g, a, width))
    x = add(g, x, linear(g, activation(g, "gelu", lambda x: F.gelu(x), linear(g, norm(x), 12)), width))
    x = norm(x)
    return cross_entropy(g, g.step(dot(g, x, table, [], [], [2], [1]), lambda x, table: x @ table.T, x, table))


MODELS = [mlp, resnet, recurrent, gpt]
NAMES = [model.__name__ for model in MODELS] + list(range(N_SEEDS))


def graph(name, dtype="f64"):
    """Of a seed, or of a model's name"""
    return random_graph(name, dtype) if isinstance(name, int) else MODELS[NAMES.index(name)](Graph(NAMES.index(name), dtype))
