"""How this package's operators are called: what stands between a public function and torch.

An operator with a derivative costs a tenth of a millisecond to go through, as much as a pass over a
megabyte. Ordinary tensors go straight to an autograd function (`direct`); only what traces or
watches calls, as torch.compile does, sees the operator, and so do tensors that are not what their
memory says. What an operator cannot tell torch.func, an autograd function does (`transformable`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import CustomOpDef
from torch.nn import Parameter

# Found once: every call asks, and each step from module to module costs as much as the question.
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_is_batch = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_is_traced = torch._C._get_tracing_state


def is_ordinary(*tensors: Tensor) -> bool:
    """Whether nothing watches operators on these tensors but autograd, backwards, and no mode, as
    that of a default device, says what a new tensor is; and whether the tensors are their memory:
    neither negated, nor all zeros without any, nor a batch (of `is_grads_batched`).
    """
    if _is_compiling() or is_transformed(*tensors):
        return False
    for t in tensors:
        kind = type(t)
        if kind is not Tensor and kind is not Parameter:
            return False
        if t.is_neg() or t._is_zerotensor() or _is_batch(t):
            return False
    return not (_dispatch_modes() or _function_modes() or _is_traced())


def is_transformed(*tensors: Tensor) -> bool:
    """Whether torch.func transforms what runs here, or has, as tensors that it wrapped show; or
    forward mode is on.
    """
    if _transforms_active() or forward_ad._current_level >= 0:
        return True
    # torch.compile cannot look at wrapped tensors, and has none outside of a transformation.
    return not _is_compiling() and any(map(_is_wrapped, tensors))


def needs_grad(tensor: Tensor) -> bool:
    """Whether a gradient of `tensor` may be asked for. Under torch.func a tensor does not know."""
    return tensor.requires_grad or is_transformed(tensor)


def transformable(
    op: CustomOpDef, setup_context: Callable | None = None, backward: Callable | None = None
) -> Callable:
    """Gives `op`, an operator, this derivative or none; what is called in its place.

    torch.func's reverse mode (grad, vjp, jacrev) and vmap work with it; forward mode (jvp, jacfwd,
    hessian, dual tensors) raises NotImplementedError, where an operator gives tangents of zero.
    """
    if not op._opoverload._schema.returns:
        return op  # nothing that could have a derivative
    if backward is not None:
        op.register_autograd(backward, setup_context=setup_context)

    class Transformable(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs):
            return op(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *grads):
            if backward is None:
                raise NotImplementedError(
                    f"{op._name}: has no derivative of its own; second derivatives are not there"
                )
            return backward(ctx, *grads)

        @staticmethod
        def jvp(ctx, *tangents):
            raise NotImplementedError(no_tangents)

    no_tangents = (
        f"{op._name}: has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, dual "
        "tensors); take it in reverse mode: backward(), torch.func.grad, vjp, jacrev"
    )

    def call(*inputs):
        if torch.compiler.is_compiling():
            if forward_ad._current_level >= 0:
                raise NotImplementedError(no_tangents)
            return op(*inputs)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        return Transformable.apply(*inputs) if is_transformed(*tensors) else op(*inputs)

    return call


def undifferentiated(function: Callable, op: CustomOpDef) -> Callable:
    """What is called in place of `op`, the operator of `function`, which has no derivative.

    Where one may be asked for, the operator: it knows to raise.
    """
    watched = transformable(op)

    def call(*inputs):
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return watched(*inputs) if wanted or not is_ordinary(*tensors) else function(*inputs)

    return call


def direct(
    function: Callable, op: CustomOpDef, setup_context: Callable, backward: Callable
) -> Callable:
    """Gives `op`, the operator of `function`, this derivative; what is called in its place."""

    watched = transformable(op, setup_context, backward)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = function(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return backward(ctx, *grads)

    # Past Function.apply, which looks for what torch.func may have left of tensors: not of these.
    apply = super(torch.autograd.Function, Direct).apply

    def call(*inputs):
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not is_ordinary(*tensors):
            return watched(*inputs)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return apply(*inputs) if wanted else function(*inputs)

    return call
