"""Training in this process."""

import contextlib
import ctypes
import inspect
import os
from ctypes import byref

import numpy as np

from . import _fit
from ._arrays import of_dtype, to_numpy
from ._comm import comm_mpi
from ._dlpack import gpu_of
from ._library import ArgumentError, TrainOptions, check, lib, refuse_to_copy
from ._model import Model, compile_module, compile_options, load_module, write_module


def _sessions(trainers):
    """Their number and handles."""
    handles = [t._step._handle.pointer for t in trainers]
    return len(handles), (ctypes.c_void_p * max(len(handles), 1))(*handles)


def save_checkpoint(trainers, path, note=""):
    """Writes all states of several Trainers that learn by turns (Trainer.share) as one safetensors file, atomically, with a note.
    What they share is there once; states that are alike in name alone are refused."""
    check(lib.quern_sessions_save(*_sessions(trainers), os.fsencode(path), note.encode()))


def load_checkpoint(trainers, path):
    """All of them go on from such a file, with the same bits; gives its note."""
    note = ctypes.c_void_p()
    check(lib.quern_sessions_restore(*_sessions(trainers), os.fsencode(path), byref(note)))
    try:
        return ctypes.string_at(note).decode()
    finally:
        lib.quern_free(note)


class Forward:
    """What Trainer.forward gives: the loss (None where the host has it), the model's outputs, and what backward needs."""

    def __init__(self, trainer, inputs, target):
        self._idle = idle = trainer._idle  # sessions whose Forward is gone
        self._session = session = idle.pop() if idle else trainer._shared("forward")
        trainer._bind(session, inputs, target)
        results = session.fresh_outputs()
        session.run()
        found = dict(zip((session._entry.names[i] for i in session._entry.results), results))
        self.loss = float(found.pop("loss")) if "train_step" in trainer.model.entries else None
        self.outputs = list(found.values())

    def __del__(self):
        if hasattr(self, "_session"):
            self._idle.append(self._session)


class Trainer:
    """A model that learns: step(inputs, target) -> loss."""

    comm = None  # of data-parallel training: this rank
    __reduce__ = refuse_to_copy

    def __init__(self, model, path=None):
        self.model = model
        self._path = path  # of the forward model, where it came from a file
        # the session that owns the states
        self._step = model.session("train_step" if "train_step" in model.entries else "update")
        self._infer = self._eval = self._backward = self._update = None
        self._idle = []
        entry = self._step._entry
        self._trainable = [i for i in entry.states if entry.buffers[i].trainable]

    def __repr__(self):
        parameters = self.parameters.values()
        return (f"<quern.Trainer of {self.model!r}: {len(parameters)} parameters of {sum(int(np.prod(p.shape)) for p in parameters):,} "
                "elements>")

    def join(self, comm):
        """Of a step made with data_parallel: this is a rank of the Comm, and has the states of rank 0 from now on. All ranks call
        this. train does it by itself where data_parallel is a Comm, or True under mpirun."""
        for session in self._step, self._update:
            if session:
                session.set_comm(comm)
        self.comm = comm
        self._step.broadcast_states()

    @contextlib.contextmanager
    def _part(self):
        """Around this rank's part of what all ranks do: where it fails, the others hear of it instead of waiting."""
        try:
            yield
        except BaseException as error:
            if self.comm:
                self.comm.fail(str(error) or type(error).__name__)
            raise

    def _bind(self, session, inputs, target=None):
        """Numbers of other dtypes become those of the inputs, as in fit; others are read in place."""
        entry = session._entry
        if target is not None and isinstance(inputs, dict):
            inputs = {**inputs, entry.names[entry.inputs[-1]]: target}
        elif target is not None:
            alone = isinstance(inputs, np.ndarray) or not np.iterable(inputs)
            inputs = [inputs, target] if alone else [*inputs, target]
        if not self.model._given:
            inputs = {entry.names[i]: x if gpu_of(x) is not None else
                      of_dtype(to_numpy(x, entry.dtypes[i], f"input '{entry.names[i]}'"), entry.dtypes[i])
                      for i, x in entry.pairs(inputs, complete=True)}
        session.bind(inputs, complete=True)

    def step(self, inputs, target=None):
        """One step on a batch: updates the parameters, gives the loss before the update. The loss "output" takes no target."""
        if self._step._entry.name != "train_step":
            raise ArgumentError("the loss is the caller's: there are forward, backward and update instead of step")
        with self._part():
            self._bind(self._step, inputs, target)
            self._step.run()
            return float(self._step.outputs[0])

    def fit(self, inputs, target=None, *, epochs=1, batch=32, seed=0, test=None, checkpoint=None, resume=False,
            progress=True, batch_axis=0, after=None):
        """Learns from arrays: `epochs` times through all samples, which lie along the first axes, in an order that the seed and the
        epoch decide (that of `quern train`). Rows that fill no batch wait for the next order. Gives a History: losses, epochs, svg();
        a notebook shows it as a curve.

        test        (inputs, target): what is measured after each epoch
        checkpoint  file of all states, written after each epoch; with resume it goes on from there, to the same bits
        progress    prints a line for each epoch; a notebook has a picture that grows
        batch_axis  where samples lie along another axis than the first, as with sequences that come first: its number, for all
                    inputs and the target, or numbers by name ({"x": 1}; 0 for others)
        after       called with the History after each epoch; what it gives ends the learning where it is true:
                    after=lambda history: history.since_best() >= 5

        Where the arrays have one axis more than the inputs, each sample is a whole batch. A loss that is NaN or infinite raises
        NumericError."""
        with self._part():
            return _fit.fit(self, inputs, target, epochs, batch, seed, test, checkpoint, resume, progress, batch_axis, after)

    def fit_batches(self, batches, *, epochs=1, test=None, checkpoint=None, resume=False, progress=True, after=None):
        """Learns from batches that the caller makes: an iterable of pairs (inputs, target), as of step, that is gone through in
        each epoch (a list, a loader), or a function of the epoch's number, from 0, that gives one (a generator, say). `test`
        likewise, measured after each epoch; the rest as in fit. A resumed run asks for the epochs that are left."""
        with self._part():
            return _fit.fit_batches(self, batches, epochs, test, checkpoint, resume, progress, after)

    def share(self, owner):
        """From now on uses the parameters and states of another Trainer that have the same name: models that learn by turns,
        each some of the parameters (`params`), as a generator and its critic. What training itself adds stays apart: both
        have a `name` where both have such states."""
        own = [{names[i] for i in entry.states} - set(t.model._entries["infer"].names)
               for t in (self, owner) for entry in [t._step._entry] for names in [entry.names]]
        for name in sorted(own[0] & own[1]):
            raise ArgumentError(f"each training has a state '{name}' of its own: give them names (train(name=…)), and "
                                "parameters of their own (params)")
        self._step.share_states(owner._step)
        self._infer = self._eval = self._backward = self._update = None  # those made next share what is shared now
        self._idle.clear()

    def _shared(self, entry):
        """A new session of the entry on the model's states."""
        session = self.model.session(entry)
        if self.comm and entry in ("forward", "update"):
            session.set_comm(self.comm)
        session.share_states(self._step)
        return session

    def forward(self, inputs, target=None):
        """The first part of a step, with `parts`: a Forward. Its residuals are kept until it is gone, so several may be on
        their way. Inputs and parameters must stay as they are until backward."""
        if "forward" not in self.model.entries:
            raise ArgumentError("the step was not made in parts: train(parts=True) also makes forward, backward and update")
        with self._part():
            return Forward(self, inputs, target)

    def backward(self, forward, gradients=1.0):
        """The gradients of parameters (and inputs, with `input_gradients`) by name. gradients: of the loss, by which all are
        multiplied; or a list, one for each output of floats where the host has the loss. Of batches whose mean losses make
        one mean, give each its share of the rows, and add up what comes."""
        if self._backward is None:
            self._backward = self._shared("backward")
        session, entry = self._backward, self._backward._entry
        check(lib.quern_session_bind_from(session._handle.pointer, forward._session._handle.pointer))
        seeds = [name for name in forward._session._entry.names if "grad_" + name in entry.index]
        values = [gradients] if np.ndim(gradients) == 0 else gradients
        if len(values) != len(seeds):
            raise ArgumentError(f"backward takes gradients of {', '.join(seeds)}, not {len(values)}")
        session.bind({"grad_" + name: np.asarray(value, entry.dtypes[entry.index["grad_" + name]])
                      for name, value in zip(seeds, values)})
        outputs = session.fresh_outputs()
        session.run()
        return {entry.names[i][len("grad_"):]: x for i, x in zip(entry.outputs, outputs)}

    def update(self, gradients):
        """The last part of a step: new parameters and optimizer states by the gradients of backward, a dict by name."""
        if self._update is None:
            self._update = self._step if self._step._entry.name == "update" else self._shared("update")
        names = [name[len("grad_"):] for name in self._update._entry.index]
        missing = [name for name in names if name not in gradients]
        with self._part():
            if missing:
                raise ArgumentError(f"no gradient is given of {', '.join(map(repr, missing))}")
            self._update.bind({"grad_" + name: gradients[name] for name in names})
            self._update.run()

    def __call__(self, inputs):
        """The prediction with the parameters as they are now."""
        if self._infer is None:
            self._infer = self._shared("infer")
        self._bind(self._infer, inputs)
        outputs = self._infer.fresh_outputs()
        self._infer.run()
        return outputs

    def evaluate(self, inputs, target=None):
        """(loss, how many rows are right) on a batch, without an update; the second is None for other losses than
        cross-entropy."""
        if self._eval is None:
            self._eval = self._shared("eval")
        self._bind(self._eval, inputs, target)
        self._eval.run()
        outputs = self._eval.outputs
        return float(outputs[0]), int(outputs[1]) if len(outputs) > 1 else None

    def save(self, path, averages=False):
        """Writes the trained ONNX model: the forward model with its initializers as they are now, or the averages that
        `ema` keeps. External data goes to PATH.data."""
        if self._path is None:
            raise ArgumentError("the model was given as bytes: there is no file to write again")
        if averages and not self.averages:
            raise ArgumentError("there are no averages: train(ema=…) keeps them")
        check(lib.quern_session_write_onnx(self._step._handle.pointer, os.fsencode(self._path), os.fsencode(path),
                                           averages))

    def save_checkpoint(self, path, note=""):
        """Writes all states as a safetensors file, atomically, with a note. Of several trainers: quern.save_checkpoint."""
        save_checkpoint([self], path, note)

    def load_checkpoint(self, path):
        """Goes on from such a file, with the same bits; gives its note. A damaged file, or one of another model, is
        refused (ModelError), and nothing is changed."""
        return load_checkpoint([self], path)

    @property
    def target(self):
        """Name of the input that takes the labels."""
        entry = self._step._entry
        return entry.names[entry.inputs[-1]]

    @property
    def parameters(self):
        """Views of the parameters by name; writing to them changes the model's. On a GPU they are Tensors there."""
        names = self._step._entry.names
        return {names[i]: self._step.get(i) for i in self._trainable}

    @property
    def learning_rate(self):
        """That of the next step, with schedule="host"; may be set."""
        return self._rate().item()

    @learning_rate.setter
    def learning_rate(self, value):
        if not 0 <= value < float("inf"):
            raise ArgumentError(f"learning_rate is {value}: it must be a number of at least 0")
        self._rate()[...] = value

    def _rate(self):
        entry = self._step._entry
        for i in entry.states:
            if entry.names[i].rpartition(".")[2] == "learning_rate" and i not in self._trainable:
                return self._step.get(i)
        raise AttributeError('the learning rate is a constant of the compiled step; train(…, schedule="host") makes it one that can be set')

    @property
    def averages(self):
        """Views of the parameters' averages by the parameter's name, where `ema` keeps them."""
        entry = self._step._entry
        index = {entry.names[i]: i for i in entry.states}
        return {name: self._step.get(index[name + ".ema"]) for name in (entry.names[i] for i in self._trainable)
                if name + ".ema" in index}

    @property
    def states(self):
        """Parameters, running statistics and optimizer state."""
        return self._step.states


def _word(what, name):
    if not isinstance(name, str):
        raise ArgumentError(f"{what} is {name!r}: it must be a name")
    return name.encode()


def _training(model, loss, optimizer, learning_rate, *, momentum=0.0, beta1=0.0, beta2=0.0, epsilon=0.0, weight_decay=0.0,
              nesterov=False, alpha=0.0, trust=0.0, clip_norm=0.0, ema=0.0, huber_delta=0.0, label_smoothing=0.0, schedule=None,
              warmup_steps=0, schedule_steps=0, schedule_factor=0.0, loss_scale=0.0, loss_scale_steps=0, params=None, name=None, seed=0, parts=False,
              input_gradients=False, target="cpu", threads=None, math="default", cpu=None, dims=None, cache=None, optimize=0,
              blas=None, precision="f32", check_numerics=False, remat=None, memory_limit=0,
              data_parallel=False, sync_batch_norm=False, bucket_bytes=0, compile_threads=None):
    """The module with the training step of a forward model, and how to compile it.

    loss       "cross_entropy" (classes as int64; label_smoothing 0), "mse", "huber" (huber_delta 1), "bce", "bce_with_logits", or "output":
               the mean of the model's first output, without a target
    optimizer  "sgd" (momentum, nesterov), "adam", "adamw", "lamb" (beta1 0.9, beta2 0.999), "rmsprop" (alpha 0.99,
               momentum), "adagrad" or "lars" (momentum, trust 0.001)
    schedule   of the learning rate: None, "cosine", "linear" (to its schedule_factor-th over schedule_steps) or "step"
               (times schedule_factor, 0.1, every schedule_steps); warmup_steps come before it. "host": Trainer.learning_rate
               can be set between steps
    clip_norm  most that the norm of all gradients together may be; 0: no limit
    ema        keeps averages of the parameters with this decay: Trainer.averages
    loss_scale for float16: gradients are computed times this and divided by it before they are used; a step with one that
               is not finite updates nothing. With loss_scale_steps the state "loss_scale" is halved by such a step and
               doubled after so many others in a row
    params     names of the parameters to train (one as a string), "*" for any letters; None: all
    name       stands before the names of the training's own states (NAME.step), for models that share parameters: Trainer.share
    seed       of dropout's masks and random numbers
    parts      also compiles the step in parts, for adding up gradients over batches or machines: Trainer.forward, backward
               and update. With loss=None the caller has the loss, and backward takes gradients of the outputs
    check_numerics  see compile
    input_gradients  backward gives those of the inputs too
    target     see compile; on a GPU ("cuda") parameters and all other states are kept there, as Tensors
    data_parallel  for several ranks that each take a part of the batch: gradients, loss and running statistics are averaged over
               them, and all states begin as those of rank 0. True: the ranks of mpirun; or a Comm. step takes this rank's rows,
               fit all rows on each rank and the batch of all together
    sync_batch_norm  of ranks: batch norms take the statistics of all rows of the batch, not of their rank's
    bucket_bytes  of ranks: as many bytes of gradients are averaged together; 4 MiB where 0
    precision  see compile: "bf16" rounds what large products of the step multiply; parameters stay float32
    remat      which values are computed again for the gradients instead of being kept: "none", "sqrt", "all", or None: as
               many as memory_limit, in bytes of an entry's workspace, makes necessary (0: no limit)
    compile_threads  see compile"""
    if params is not None and not len(params):
        raise ArgumentError("params names nothing to train; None: all parameters")
    names = [_word("params", name) for name in ([params] if isinstance(params, str) else params or [])]
    options = TrainOptions(
        size=ctypes.sizeof(TrainOptions), loss=_word("loss", loss) if loss else None, optimizer=_word("optimizer", optimizer),
        learning_rate=learning_rate, momentum=momentum, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay, nesterov=nesterov,
        alpha=alpha, trust=trust, clip_norm=clip_norm, ema=ema, huber_delta=huber_delta,
        schedule=_word("schedule", schedule) if schedule else None, warmup_steps=warmup_steps, schedule_steps=schedule_steps,
        schedule_factor=schedule_factor, n_params=len(names), params=(ctypes.c_char_p * max(len(names), 1))(*names),
        seed=seed, parts=parts, input_gradients=input_gradients, loss_scale=loss_scale, loss_scale_steps=loss_scale_steps, math=math.encode(),
        label_smoothing=label_smoothing, data_parallel=bool(data_parallel), sync_batch_norm=sync_batch_norm,
        bucket_bytes=bucket_bytes, name=_word("name", name) if name else None)
    module = load_module(model, dims)
    check(lib.quern_make_training(module.pointer, byref(options)))
    return module, compile_options(target, threads, math, cpu, cache, optimize, blas, precision, check_numerics, remat,
                                   memory_limit, compile_threads=compile_threads)


def train(model, loss, optimizer, learning_rate, **options):
    """Makes a training step of a forward model and compiles it: a Trainer. Batch norms and dropouts are put into training mode."""
    module, how = _training(model, loss, optimizer, learning_rate, **options)
    trainer = Trainer(Model(compile_module(module, how)), model if isinstance(model, (str, os.PathLike)) else None)
    target = options.get("target") or "cpu"
    if target.startswith("cuda"):
        trainer._step.states_to(target)
    ranks = options.get("data_parallel")
    if ranks:
        trainer.join(comm_mpi() if ranks is True else ranks)
    return trainer


def train_file(model, path, loss, optimizer, learning_rate, *, emit=None, prefix=None, weights="embed", header=None, **options):
    """Writes the training step as a shared object with a C header, which needs nothing of Quern: entries infer, train_step and
    eval, and with `parts` forward, backward and update; PREFIX_init in the header sets the states to what the model starts
    with. Emit, prefix, weights and header as in compile_file; options as those of train. `load` opens it in Python."""
    module, how = _training(model, loss, optimizer, learning_rate, **options)
    write_module(module, how, path, emit, prefix, weights, header)


train.__signature__ = inspect.signature(_training)
train.__doc__ += "\n\n" + inspect.getdoc(_training).partition("\n\n")[2]
