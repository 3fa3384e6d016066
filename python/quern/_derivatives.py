"""Derivatives of models, as models."""

import ctypes

from ._library import ArgumentError, check, lib
from ._model import Model, compile_module, compile_options, load_module


def _names(wrt):
    return len(wrt), (ctypes.c_char_p * max(len(wrt), 1))(*[name.encode() for name in wrt])


def _compiled(model, dims, options, *steps):
    """The model with functions added by the steps, each of what the one before added: (name, call, arguments between the
    function and the name). What calls of it run is the last."""
    if isinstance(model, Model):
        if model._derivation is None:
            raise ArgumentError("a compiled model has no graph to differentiate: give its file or bytes, or what grad, jvp or hvp gave")
        if dims is not None:
            raise ArgumentError("dims are those of the model that was differentiated")
        model, dims, before = model._derivation
        steps = before + steps
    module, function = load_module(model, dims), None
    for i, (name, call, arguments) in enumerate(steps):
        n = sum(name == earlier for earlier, _, _ in steps[:i])
        added = f"{name}_{n + 1}" if n else name
        check(call(module.pointer, function and function.encode(), *arguments, added.encode()))
        function = added
    made = Model(compile_module(module, compile_options(**options)), function)
    made._derivation = model, dims, steps
    return made


def grad(model, loss, wrt, dims=None, **options):
    """The gradient: a Model of the same inputs whose outputs are the output `loss`, a scalar of floats, and `grad_NAME` for
    each input named in `wrt`. Options as those of compile. The model may be what grad, jvp or hvp gave, for derivatives of higher
    order: grad(grad(f, "loss", ["x"]), "grad_x", ["x"]), whose outputs are `grad_x` and `grad2_x`."""
    return _compiled(model, dims, options, ("grad", lib.quern_grad, (loss.encode(), *_names(wrt))))


def jvp(model, wrt, dims=None, **options):
    """Forward mode: a Model that takes the inputs, then `tangent_NAME` for each input named in `wrt`, and gives the outputs,
    then `tangent_NAME` for each output of floats: the Jacobian times the tangents. The model as in grad;
    of one that has tangents already the new ones are called `tangent2_NAME`."""
    return _compiled(model, dims, options, ("jvp", lib.quern_jvp, _names(wrt)))


def hvp(model, loss, wrt, dims=None, **options):
    """The Hessian times a vector, by forward mode over reverse mode: a Model that takes the inputs, then `tangent_NAME` for
    each input named in `wrt`, and gives the loss, `grad_NAME` for each, then `tangent_LOSS` and `tangent_grad_NAME`, which are
    the derivatives of both along the tangents. The model as in grad."""
    n, names = _names(wrt)
    return _compiled(model, dims, options, ("grad", lib.quern_grad, (loss.encode(), n, names)), ("hvp", lib.quern_jvp, (n, names)))
