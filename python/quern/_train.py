"""Training in this process."""

import ctypes
from ctypes import byref

from ._library import TrainOptions, check, lib
from ._model import Model, compile_module, compile_options, load_module


class Trainer:
    """A model that learns: step(inputs, target) -> loss."""

    def __init__(self, model):
        self.model = model
        self._step = model.session("train_step")
        self._infer = None
        entry = self._step._entry
        self._trainable = [i for i in entry.states if entry.buffers[i].trainable]

    def step(self, inputs, target):
        """One step on a batch: updates the parameters, gives the loss before the update."""
        step = self._step
        if isinstance(inputs, dict):
            step.bind({**inputs, "target": target})
        else:
            step.bind([*inputs, target])
        step.run()
        return float(step.outputs[0])

    def __call__(self, inputs):
        """The prediction with the parameters as they are now."""
        if self._infer is None:
            self._infer = self.model.session("infer")
            self._infer.share_states(self._step)
        self._infer.bind(inputs)
        outputs = self._infer.fresh_outputs()
        self._infer.run()
        return outputs

    @property
    def parameters(self):
        """Views of the parameters by name; writing to them changes the model's."""
        names = self._step._entry.names
        return {names[i]: self._step.get(i) for i in self._trainable}

    @property
    def states(self):
        """Parameters and optimizer state."""
        return self._step.states


def train(model, loss, optimizer, learning_rate, *, momentum=0.0, beta1=0.0, beta2=0.0, epsilon=0.0, weight_decay=0.0,
          target="cpu", threads=None, math="default", cpu=None, dims=None, cache=None, optimize=0, blas=None):
    """Makes a training step of a forward model and compiles it.

    loss       "cross_entropy" (classes as int64) or "mse"
    optimizer  "sgd" (momentum) or "adam" (beta1 0.9, beta2 0.999, epsilon 1e-8 where 0)"""
    options = TrainOptions(ctypes.sizeof(TrainOptions), loss.encode(), optimizer.encode(), learning_rate, momentum,
                           beta1, beta2, epsilon, weight_decay)
    module = load_module(model, dims)
    check(lib.quern_make_training(module.pointer, byref(options)))
    return Trainer(Model(compile_module(module, compile_options(target, threads, math, cpu, cache, optimize, blas))))
