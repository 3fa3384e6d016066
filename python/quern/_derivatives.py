"""Derivatives of models, as models."""

import ctypes

from ._library import check, lib
from ._model import Model, compile_module, compile_options, load_module


def _names(wrt):
    return len(wrt), (ctypes.c_char_p * max(len(wrt), 1))(*[name.encode() for name in wrt])


def _compiled(model, dims, options, *steps):
    """The model with functions added by the steps, the last of which is what calls of it run."""
    module = load_module(model, dims)
    for call, *arguments in steps:
        check(call(module.pointer, *arguments))
    return Model(compile_module(module, compile_options(**options)), steps[-1][-1].decode())


def grad(model, loss, wrt, dims=None, **options):
    """The gradient: a Model of the same inputs whose outputs are the output `loss`, a scalar of floats, and `grad_NAME` for
    each input named in `wrt`. Options as those of compile."""
    return _compiled(model, dims, options, (lib.quern_grad, None, loss.encode(), *_names(wrt), b"grad"))


def jvp(model, wrt, dims=None, **options):
    """Forward mode: a Model that takes the inputs, then `tangent_NAME` for each input named in `wrt`, and gives the outputs,
    then `tangent_NAME` for each output of floats: the Jacobian times the tangents."""
    return _compiled(model, dims, options, (lib.quern_jvp, None, *_names(wrt), b"jvp"))


def hvp(model, loss, wrt, dims=None, **options):
    """The Hessian times a vector, by forward mode over reverse mode: a Model that takes the inputs, then `tangent_NAME` for
    each input named in `wrt`, and gives the loss, `grad_NAME` for each, then `tangent_LOSS` and `tangent_grad_NAME`, which are
    the derivatives of both along the tangents."""
    n, names = _names(wrt)
    return _compiled(model, dims, options, (lib.quern_grad, None, loss.encode(), n, names, b"grad"),
                     (lib.quern_jvp, b"grad", n, names, b"hvp"))
