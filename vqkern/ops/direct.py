"""Calls of this package's operators that go past torch's dispatcher.

An operator with a derivative costs a tenth of a millisecond to go through, as much as a pass over a
megabyte. Ordinary tensors go straight to an autograd function; only what traces or watches calls,
as torch.compile does, sees the operator, and so do tensors that are not what their memory says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def is_ordinary(*tensors: Tensor) -> bool:
    """Whether nothing watches operators on these tensors but autograd, backwards, and no mode, as
    that of a default device, says what a new tensor is; and whether the tensors are their memory:
    neither negated nor all zeros without any.
    """
    return (
        not torch.compiler.is_compiling()
        and all(
            type(t) in (Tensor, Parameter) and not t.is_neg() and not t._is_zerotensor()
            for t in tensors
        )
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._get_tracing_state()
        and forward_ad._current_level < 0
    )


def undifferentiated(function: Callable, op: Callable) -> Callable:
    """What is called in place of `op`, the operator of `function`, which has no derivative.

    Where one may be asked for, the operator: it knows to raise.
    """

    def call(*inputs):
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return op(*inputs) if wanted or not is_ordinary(*tensors) else function(*inputs)

    return call


def direct(
    function: Callable, op: Callable, setup_context: Callable, backward: Callable
) -> Callable:
    """What is called in place of `op`, the operator of `function`, with the same derivative.

    `setup_context` and `backward` are those that the operator is registered with.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = function(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return backward(ctx, *grads)

    def call(*inputs):
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not is_ordinary(*tensors):
            return op(*inputs)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return Direct.apply(*inputs) if wanted else function(*inputs)

    return call
