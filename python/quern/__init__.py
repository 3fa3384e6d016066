"""Quern: compile a model, run it, train it. A thin binding of libquern.so by ctypes.

    m = quern.compile("resnet50.onnx")
    logits, = m([image])
    s = m.bind([image]); s.run(); s.outputs
"""

from ._comm import Comm, comm_mpi, comm_threads
from ._derivatives import grad, hvp, jvp
from ._fit import History
from ._library import ArgumentError, Error, FileError, ModelError, NumericError, OutOfRangeError, UnsupportedError, version
from ._model import Model, Session, Signature, SpecializedModel, compile, compile_file, load, text, trim_cache, tune
from ._tensor import Step, Tape, Tensor, device_count, trim, wait
from ._train import Trainer, load_checkpoint, save_checkpoint, train, train_file

__version__ = version
__all__ = ["ArgumentError", "Comm", "Error", "FileError", "History", "Model", "ModelError", "NumericError", "OutOfRangeError",
           "Session", "Signature", "SpecializedModel", "Step", "Tape", "Tensor", "Trainer", "UnsupportedError", "comm_mpi", "comm_threads",
           "compile", "compile_file",
           "device_count", "grad", "hvp", "jvp", "load", "load_checkpoint",
           "save_checkpoint", "text", "train", "train_file", "trim", "trim_cache", "tune", "version", "wait"]
