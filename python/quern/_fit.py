"""Trainer.fit and fit_batches: epochs over arrays or batches, with progress, a curve and checkpoints."""

import math
import operator
import re
import sys
import time

import numpy as np

from ._arrays import of_dtype
from ._library import ArgumentError, ModelError, NumericError


def order_of(n, seed, epoch):
    """The order of n samples in an epoch: that of `quern train` with this seed (splitmix64, Fisher-Yates)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) * np.uint64(0x2545F4914F6CDD1D) + np.uint64(epoch)
        z = z + np.arange(1, max(n, 1), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = (z ^ z >> np.uint64(31)) % np.arange(n, 1, -1, dtype=np.uint64)
    order = list(range(n))
    for i, k in zip(range(n - 1, 0, -1), z.tolist()):
        order[i], order[k] = order[k], order[i]
    return np.array(order)


class History:
    """What Trainer.fit went through. A notebook shows it as a curve."""

    def __init__(self):
        self.losses = []  # of each step, before its update
        self.epochs = []  # a dict for each: loss (the mean), seconds, and with test data test_loss, accuracy (or None)
        self.first = self.total = 0  # epochs that a checkpoint had behind it, and that were asked for

    def since_best(self):
        """How many epochs ago the test loss (or without test data the loss) was at its lowest; 0: it is now."""
        losses = [e.get("test_loss", e["loss"]) for e in self.epochs]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def line(self):
        """The last epoch in words."""
        e = self.epochs[-1]
        test = f", test loss {e['test_loss']:.6g}" if "test_loss" in e else ""
        right = f", accuracy {100 * e['accuracy']:.2f} %" if e.get("accuracy") is not None else ""
        return f"epoch {self.first + len(self.epochs)}/{self.total}: loss {e['loss']:.6g}{test}{right} ({e['seconds']:.2f} s)"

    def __repr__(self):
        return f"<quern.History: {self.line() if self.epochs else 'nothing yet'}>"

    def svg(self):
        """The loss of each step, and of the test data after each epoch, as a picture."""
        x, y, tests = [], [], [e["test_loss"] for e in self.epochs if "test_loss" in e]
        for part in np.array_split(np.arange(len(self.losses)), min(len(self.losses), 600) or 1):  # means of neighbours
            if len(part):
                x.append(part[-1] + 1)
                y.append(float(np.mean(self.losses[part[0]:part[-1] + 1])))
        last = max(len(self.losses), 1)
        top, low = max([*y, *tests, 1e-30]), min([*y, *tests, 0])  # never equal
        at = lambda step, loss: f"{50 + 570 * step / last:.1f},{320 - 300 * (loss - low) / (top - low):.1f}"
        curve = lambda color, points: f"<polyline fill='none' stroke='{color}' points='{' '.join(points)}'/>"
        ends = [last * (i + 1) / max(len(self.epochs), 1) for i in range(len(tests))]
        legend = "<tspan fill='darkorange'>, of the test data</tspan>" if tests else ""
        return (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 640 360' width='640' font-family='sans-serif' font-size='12'>"
                f"<rect width='640' height='360' fill='white'/><path d='M50 20V320H620' fill='none' stroke='black'/>"
                f"<text x='320' y='14' text-anchor='middle'>loss of each step{legend}</text>"
                f"<text x='46' y='26' text-anchor='end'>{top:.3g}</text><text x='46' y='324' text-anchor='end'>{low:.3g}</text>"
                f"<text x='620' y='338' text-anchor='end'>{len(self.losses)}</text>"
                f"{curve('steelblue', map(at, x, y))}{curve('darkorange', map(at, ends, tests)) if tests else ''}</svg>")

    def _repr_html_(self):
        words = self.line() if self.epochs else "the first epoch"
        return (f"<div><progress max='{self.total}' value='{self.first + len(self.epochs)}' style='width: 20em'></progress> "
                f"{words}</div>{self.svg() if self.losses else ''}")


class _Progress:
    """A line for each epoch, in a terminal one for its steps meanwhile; in a notebook one display that is renewed."""

    PAUSE = 0.5  # seconds between two pictures, or lines

    def __init__(self, history, wanted):
        self.history, self.wanted, self.last = history, wanted, time.monotonic()
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        self.display, self.width = None, 0
        if wanted and hasattr(shell, "kernel"):
            from IPython.display import display
            self.display = display(history, display_id=True)
        self.terminal = wanted and not self.display and sys.stdout.isatty()

    def step(self, number, of):
        """After step `number` of an epoch of so many, where that is known."""
        if not (self.display or self.terminal) or time.monotonic() - self.last <= self.PAUSE:
            return
        self.last = time.monotonic()
        if self.display:
            self.display.update(self.history)
            return
        h = self.history
        line = f"epoch {h.first + len(h.epochs) + 1}/{h.total}: step {number}{f'/{of}' if of else ''}, loss {h.losses[-1]:.6g}"
        print("\r" + line.ljust(self.width), end="", flush=True)
        self.width = len(line)

    def epoch(self):
        if self.wanted and not self.display:
            print(("\r" if self.width else "") + self.history.line().ljust(self.width), flush=True)
            self.width = 0

    def end(self):
        if self.display:
            self.display.update(self.history)


def _axes(entry, batch_axis):
    """Of each input and the target: along which axis its samples lie."""
    names = [entry.names[i] for i in entry.inputs]
    if not isinstance(batch_axis, dict):
        return [operator.index(batch_axis)] * len(names)
    unknown = [name for name in batch_axis if name not in names]
    if unknown:
        raise ArgumentError(f"batch_axis: the step has no input {', '.join(map(repr, unknown))}; its inputs are "
                            f"{', '.join(map(repr, names))}")
    return [operator.index(batch_axis.get(name, 0)) for name in names]


def _take(arrays, axes, rows):
    return [x[(slice(None),) * axis + (rows,)] for x, axis in zip(arrays, axes)]


def _arrays(entry, inputs, target=None):
    """The arrays of the entry's inputs, with numbers of the kinds that it takes."""
    last = entry.names[entry.inputs[-1]]
    if not isinstance(inputs, (dict, list, tuple)):
        inputs = [inputs]
    if target is not None:
        inputs = {**inputs, last: target} if isinstance(inputs, dict) else [*inputs, target]
    arrays = [None] * len(entry.inputs)
    for buffer, x in entry.pairs(inputs, complete=True):
        arrays[entry.inputs.index(buffer)] = of_dtype(np.asarray(x), entry.dtypes[buffer])
    return arrays


class _Samples:
    """Arrays of samples, of as many along the axes; or of whole batches, where they have one axis more than the inputs."""

    def __init__(self, entry, axes, inputs, target=None):
        self.entry, self.arrays = entry, _arrays(entry, inputs, target)
        self.whole = all(x.ndim == entry.buffers[i].rank + 1 for x, i in zip(self.arrays, entry.inputs))
        self.axes = [0] * len(axes) if self.whole else axes
        for buffer, axis, x in zip(entry.inputs, self.axes, self.arrays):
            if not 0 <= axis < x.ndim:
                raise ArgumentError(f"'{entry.names[buffer]}' has no axis {axis} of samples: it has {x.ndim} axes. batch_axis says "
                                    "which, for all or by name")
        rows = {x.shape[axis] for axis, x in zip(self.axes, self.arrays)}
        if len(rows) != 1:
            raise ArgumentError("inputs and target must have as many samples along their first axes, or those of batch_axis")
        if 0 in rows:
            raise ArgumentError("there are no samples: the arrays are empty")
        (self.n,) = rows

    def take(self, rows):
        """Those of the rows, or the first of them, which is a batch."""
        if self.whole:
            return [x[rows.start if isinstance(rows, slice) else rows[0]] for x in self.arrays]
        return [x[(slice(None),) * axis + (rows,)] for x, axis in zip(self.arrays, self.axes)]


def _measure(trainer, batches):
    """Loss and share of right rows over all of them."""
    entry, loss, right, rows, targets = trainer.model._entries["eval"], 0.0, 0, 0, 0
    for arrays, more in batches:
        mean, correct = trainer.evaluate(arrays)
        loss, rows, targets = loss + mean * more, rows + more, targets + arrays[-1].size
        right = None if correct is None else right + correct
    if not rows:
        raise ArgumentError(f"the test data has too few samples for a batch of '{entry.names[entry.inputs[-1]]}'")
    return loss / rows, None if right is None else right / targets


def _parts(samples, batch):
    """(a batch, its rows) of test data; a model of fixed batches leaves out what fills none."""
    entry, batch = samples.entry, 1 if samples.whole else batch
    free = samples.whole or entry.signature(entry.inputs[:1])[0].shape[samples.axes[0]] != batch
    for first in range(0, samples.n if free else samples.n - samples.n % batch, batch):
        yield samples.take(slice(first, first + batch)), min(batch, samples.n - first)


def _resumed(trainer, path, note):
    """Epochs that the checkpoint has behind it."""
    epochs = 0
    if _first(trainer):
        written = trainer.load_checkpoint(path)
        found = re.fullmatch(r"epochs=(\d+) (.*)", written)
        if not found or found[2] != note:
            raise ModelError(f"{path}: it was made with '{written}', which does not go on with {note}")
        epochs = int(found[1])
    if trainer.comm:
        epochs = int(trainer.comm.broadcast(np.int64(epochs)))
        trainer._step.broadcast_states()
    return epochs


def _first(trainer):
    """Rank 0, or the only one: it alone prints and writes."""
    return not trainer.comm or trainer.comm.rank == 0


def _telling_ranks(trainer, learn):
    """What learn() gives; where it raises, the other ranks need not wait for this one."""
    try:
        return learn()
    except BaseException as error:
        if trainer.comm:
            trainer.comm.fail(error)
        raise


def _learn(trainer, batches, n_batches, note, measure, epochs, checkpoint, resume, progress, after):
    """The loop. batches(epoch) gives those of an epoch, n_batches of them where that is known."""
    if epochs < 0:
        raise ArgumentError(f"epochs is {epochs}: it must be at least 0")
    if resume and not checkpoint:
        raise ArgumentError("resume goes on from what checkpoint names")
    history = History()
    history.first = _resumed(trainer, checkpoint, note) if resume else 0
    history.total = epochs
    shown = _Progress(history, progress and _first(trainer))
    for epoch in range(history.first, epochs):
        start, before = time.monotonic(), len(history.losses)
        for i, arrays in enumerate(batches(epoch)):
            history.losses.append(trainer.step(arrays))
            if not math.isfinite(history.losses[-1]):
                raise NumericError(f"the loss is {history.losses[-1]} in epoch {epoch + 1}, batch {i + 1}. A smaller learning_rate "
                                   "or clip_norm may help; check_numerics names the node")
            shown.step(i + 1, n_batches)
        if len(history.losses) == before:
            raise ArgumentError(f"epoch {epoch + 1} has no batch")
        history.epochs.append({"loss": float(np.mean(history.losses[before:])), "seconds": time.monotonic() - start})
        if measure:
            history.epochs[-1]["test_loss"], history.epochs[-1]["accuracy"] = measure()
        if checkpoint and _first(trainer):
            trainer.save_checkpoint(checkpoint, f"epochs={epoch + 1} {note}")  # as `quern train` writes it
        shown.epoch()
        if after and after(history):
            break
    shown.end()
    return history


def _may_step(trainer):
    if trainer._step._entry.name != "train_step":
        raise ArgumentError("the loss is the caller's: there is no step for fit to repeat")


def fit(trainer, inputs, target, epochs, batch, seed, test, checkpoint, resume, progress, batch_axis, after):
    _may_step(trainer)
    axes = _axes(trainer._step._entry, batch_axis)
    samples = _Samples(trainer._step._entry, axes, inputs, target)
    rank, ranks = (trainer.comm.rank, trainer.comm.ranks) if trainer.comm else (0, 1)
    n, rows = samples.n, ranks if samples.whole else batch
    if rows % ranks:
        raise ArgumentError(f"a batch of {batch} does not go into {ranks} equal parts, one for each rank")
    if rows < 1:
        raise ArgumentError(f"batch is {batch}: it must be at least 1")
    if rows > n:
        raise ArgumentError(f"the data has {n} samples: too few for a batch of {batch}")
    if test is not None and not (isinstance(test, (tuple, list)) and len(test) in (1, 2)):
        raise ArgumentError("test is a pair (inputs, target), as fit takes them")
    tested = None if test is None else _Samples(trainer.model._entries["eval"], axes, *test)

    def batches(epoch):
        order = order_of(n, seed, epoch)
        part = rows // ranks
        return (samples.take(order[first:first + part]) for first in range(rank * part, n - n % rows, rows))

    measure = tested and (lambda: _measure(trainer, _parts(tested, batch)))
    return _telling_ranks(trainer, lambda: _learn(trainer, batches, n // rows, f"batch={batch} seed={seed} samples={n}", measure,
                                                  epochs, checkpoint, resume, progress, after))


def _of_epoch(source, epoch):
    """The batches of an iterable, or of what a function of the epoch gives."""
    return source(epoch) if callable(source) else source


def _batch(entry, batch):
    """(inputs, target), or whatever has all inputs of the step, as arrays."""
    return _arrays(entry, *batch) if isinstance(batch, tuple) and len(batch) == 2 else _arrays(entry, batch)


def fit_batches(trainer, source, epochs, test, checkpoint, resume, progress, after):
    _may_step(trainer)
    for what in source, test:
        if epochs > 1 and not callable(what) and iter(what if what is not None else ()) is what:
            raise ArgumentError("an iterator ends with the first epoch: give a list, a loader, or a function of the epoch's number")
    entry = trainer._step._entry

    def measure():
        arrays = (_batch(trainer.model._entries["eval"], batch) for batch in _of_epoch(test, 0))
        return _measure(trainer, ((a, a[-1].shape[0] if a[-1].ndim else 1) for a in arrays))

    n = None if callable(source) or not hasattr(source, "__len__") else len(source)
    return _telling_ranks(trainer, lambda: _learn(
        trainer, lambda epoch: (_batch(entry, batch) for batch in _of_epoch(source, epoch)), n, "batches",
        None if test is None else measure, epochs, checkpoint, resume, progress, after))
