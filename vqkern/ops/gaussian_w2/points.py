"""The distance of two point sets, or of one to given moments, with the sets' gradients.

What a loss calls at every step. Between the pass forward and the pass back it keeps a float64
`pull` [B, D + 2, D] of each set, D rows of a matrix A, a mean m and an offset o: the gradient of a
point is A (p - m) + o. Going through the dispatcher of torch costs as much as a pass over the codes
does, so that ordinary tensors go straight to an autograd function, and only what traces a call, as
torch.compile does, sees the operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..direct import is_ordinary
from .moments import Moments, passes

_Three = tuple[Tensor, Tensor, Tensor]


def of_points(
    x: Tensor | Moments, y: Tensor, ridge: float | None, double: bool, backend: str
) -> Tensor:
    """The distance [...] of points x [..., N, D], or moments that need no gradient, to y [..., K,
    D]."""
    if isinstance(x, Moments):
        given = None, x.mean, x.covariance
    else:
        given = x, None, None
    x_grad = given[0] is not None and given[0].requires_grad and torch.is_grad_enabled()
    if is_ordinary(*(t for t in (*given, y) if t is not None)):
        return _OfPoints.apply(*given, y, ridge, x_grad, double, backend)
    return _of_points(*given, y, ridge, x_grad, double, backend)[0]


def _flat(t: Tensor | None, dimensions: int) -> Tensor | None:
    if t is None or t.dim() == dimensions + 1:
        return t
    return t.reshape(-1, *t.shape[t.dim() - dimensions :])


def _forward(x, mean, covariance, y, ridge, x_grad, double, backend) -> _Three:
    """The value [...] and the pulls of x, empty unless asked for, and y."""
    features = _flat(x, 2) if x is not None else (_flat(mean, 1), _flat(covariance, 2))
    value, pull_x, pull_y = passes(backend).value_and_pulls(
        features, _flat(y, 2), ridge, x_grad, double
    )
    return value.view(y.shape[:-2]), pull_x if x_grad else value.new_empty(0), pull_y


def _backward(grad, x, y, pull_x, pull_y, backend) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the sets that are not None."""
    points = _flat(x, 2), _flat(y, 2)
    found = passes(backend).map_points(points, (pull_x, pull_y), grad.reshape(-1))
    return tuple(None if p is None else g.view(p.shape) for p, g in zip((x, y), found, strict=True))


class _OfPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, covariance, y, ridge, x_grad, double, backend):
        value, pull_x, pull_y = _forward(x, mean, covariance, y, ridge, x_grad, double, backend)
        ctx.backend = backend
        ctx.save_for_backward(x, y, pull_x, pull_y)
        return value

    @staticmethod
    def backward(ctx, grad):
        x, y, pull_x, pull_y = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (*_pulled(grad, x, y, pull_x, pull_y, ctx.backend, wanted[0], wanted[3]),) + (
            None,
        ) * 4


def _pulled(grad, x, y, pull_x, pull_y, backend, x_grad, y_grad):
    x, y = x if x_grad else None, y if y_grad else None
    # With create_graph, the operator: it knows to raise in a second derivative.
    if torch.is_grad_enabled() or not is_ordinary(grad):
        found = _of_points_backward(grad, x, y, pull_x, pull_y, backend)
    else:
        found = _backward(grad, x, y, pull_x, pull_y, backend)
    return found[0] if x_grad else None, None, None, found[1] if y_grad else None


@torch.library.custom_op("vqkern::gaussian_w2_of_points", mutates_args=())
def _of_points(
    x: Tensor | None,
    mean: Tensor | None,
    covariance: Tensor | None,
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, mean, covariance, y, ridge, x_grad, double, backend)


@_of_points.register_fake
def _(x, mean, covariance, y, ridge, x_grad, double, backend):
    *lead, _, d = y.shape
    b = y.shape[:-2].numel()
    pull = y.new_empty(b, d + 2, d, dtype=torch.float64)
    value = y.new_empty(lead, dtype=torch.float64 if double else torch.float32)
    return value, torch.empty_like(pull) if x_grad else value.new_empty(0), pull


# Without a derivative of its own: asking for a second derivative raises.
@torch.library.custom_op("vqkern::gaussian_w2_of_points_backward", mutates_args=())
def _of_points_backward(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    pull_x: Tensor,
    pull_y: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    found = _backward(grad, x, y, pull_x, pull_y, backend)
    return tuple(grad.new_empty(0) if g is None else g for g in found)


@_of_points_backward.register_fake
def _(grad, x, y, pull_x, pull_y, backend):
    return tuple(grad.new_empty(0) if p is None else p.new_empty(p.shape) for p in (x, y))


def _setup_context(ctx, inputs, output):
    x, _, _, y, *_, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, y, *output[1:])


def _autograd(ctx, grad, _pull_x, _pull_y):
    x, y, pull_x, pull_y = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    pulled = _pulled(grad, x, y, pull_x, pull_y, ctx.backend, wanted[0], wanted[3])
    return *pulled, None, None, None, None


_of_points.register_autograd(_autograd, setup_context=_setup_context)
