"""Trainer.fit: epochs over arrays, with progress, a curve and checkpoints."""

import math
import operator
import re
import sys
import time

import numpy as np

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
    """A line for each epoch; in a notebook one display that is renewed."""

    PAUSE = 0.5  # seconds between two pictures

    def __init__(self, history, wanted):
        self.history, self.wanted, self.last = history, wanted, time.monotonic()
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        self.display = None
        if wanted and hasattr(shell, "kernel"):
            from IPython.display import display
            self.display = display(history, display_id=True)

    def step(self):
        if self.display and time.monotonic() - self.last > self.PAUSE:
            self.last = time.monotonic()
            self.display.update(self.history)

    def epoch(self):
        if self.wanted and not self.display:
            print(self.history.line(), flush=True)

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


def _samples(entry, axes, inputs, target=None):
    """The arrays of the entry's inputs as it takes them, of as many samples along the axes."""
    last = entry.names[entry.inputs[-1]]
    if target is not None:
        inputs = {**inputs, last: target} if isinstance(inputs, dict) else \
            [*(inputs if isinstance(inputs, (list, tuple)) else [inputs]), target]
    arrays = [None] * len(entry.inputs)
    for buffer, x in entry.pairs(inputs, complete=True):
        x, dtype = np.asarray(x), entry.dtypes[buffer]
        whole = x.dtype.kind in "bui"
        arrays[entry.inputs.index(buffer)] = x.astype(dtype, copy=False) if whole or x.dtype.kind == dtype.kind else x
    for buffer, axis, x in zip(entry.inputs, axes, arrays):
        if not 0 <= axis < x.ndim:
            raise ArgumentError(f"'{entry.names[buffer]}' has no axis {axis} of samples: it has {x.ndim} axes. batch_axis says which, "
                                "for all or by name")
    rows = {x.shape[axis] for axis, x in zip(axes, arrays)}
    if len(rows) != 1 or 0 in rows:
        raise ArgumentError("inputs and target must have as many samples along their first axes, or those of batch_axis")
    return arrays


def _measure(trainer, arrays, axes, batch):
    """Loss and share of right rows over all samples; a model of fixed batches leaves out what fills none."""
    entry = trainer.model._entries["eval"]
    free = entry.signature(entry.inputs[:1])[0].shape[axes[0]] != batch
    n, loss, right, rows, targets = arrays[-1].shape[axes[-1]], 0.0, 0, 0, 0
    for first in range(0, n if free else n - n % batch, batch):
        part = _take(arrays, axes, slice(first, first + batch))
        mean, correct = trainer.evaluate(part)
        more = part[-1].shape[axes[-1]]
        loss, rows, targets = loss + mean * more, rows + more, targets + part[-1].size
        right = None if correct is None else right + correct
    if not rows:
        raise ArgumentError(f"the test data has {n} samples: too few for a batch of {batch}")
    return loss / rows, None if right is None else right / targets


def _note(epochs, batch, seed, n):
    return f"epochs={epochs} batch={batch} seed={seed} samples={n}"  # as `quern train` writes it


def _resumed(trainer, path, batch, seed, n):
    """Epochs that the checkpoint has behind it."""
    note = trainer.load_checkpoint(path)
    found = re.fullmatch(r"epochs=(\d+) (.*)", note)
    if not found or note != _note(found[1], batch, seed, n):
        raise ModelError(f"{path}: it was made with '{note}', which does not go on with batch={batch} seed={seed} samples={n}")
    return int(found[1])


def fit(trainer, inputs, target, epochs, batch, seed, test, checkpoint, resume, progress, batch_axis):
    if trainer._step._entry.name != "train_step":
        raise ArgumentError("the loss is the caller's: there is no step for fit to repeat")
    axes = _axes(trainer._step._entry, batch_axis)
    arrays = _samples(trainer._step._entry, axes, inputs, target)
    n = arrays[-1].shape[axes[-1]]
    if not 0 < batch <= n:
        raise ArgumentError(f"the data has {n} samples: too few for a batch of {batch}")
    if test is not None:
        test = _samples(trainer.model._entries["eval"], axes, *test)
    if resume and not checkpoint:
        raise ArgumentError("resume goes on from what checkpoint names")
    history = History()
    history.first = _resumed(trainer, checkpoint, batch, seed, n) if resume else 0
    history.total = epochs
    shown = _Progress(history, progress)
    for epoch in range(history.first, epochs):
        start, order = time.monotonic(), order_of(n, seed, epoch)
        for i in range(n // batch):
            rows = order[i * batch:(i + 1) * batch]
            history.losses.append(trainer.step(_take(arrays, axes, rows)))
            if not math.isfinite(history.losses[-1]):
                raise NumericError(f"the loss is {history.losses[-1]} in epoch {epoch + 1}, batch {i + 1}. A smaller learning_rate "
                                   "or clip_norm may help; check_numerics names the node")
            shown.step()
        history.epochs.append({"loss": float(np.mean(history.losses[-(n // batch):])), "seconds": time.monotonic() - start})
        if test is not None:
            history.epochs[-1]["test_loss"], history.epochs[-1]["accuracy"] = _measure(trainer, test, axes, batch)
        if checkpoint:
            trainer.save_checkpoint(checkpoint, _note(epoch + 1, batch, seed, n))
        shown.epoch()
    shown.end()
    return history
