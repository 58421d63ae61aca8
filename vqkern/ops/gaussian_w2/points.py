"""The distance of two point sets, or of one to given moments, with the sets' gradients.

What a loss calls at every step. Between the pass forward and the pass back it keeps a float64
`pull` [B, D + 2, D] of each set, D rows of a matrix A, a mean m and an offset o: the gradient of a
point is A (p - m) + o. Going through the dispatcher of torch costs as much as a pass over the codes
does, so that ordinary tensors go straight to an autograd function, and only what traces a call, as
torch.compile does, sees the operators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..direct import is_ordinary, needs_grad, transformable
from .moments import Moments, passes


class _How(NamedTuple):
    """What a call is given but for its points. `features` are moments in place of points x."""

    features: tuple[Tensor, Tensor] | None
    ridge: float | None
    x_grad: bool
    double: bool
    backend: str


def of_points(
    x: Tensor | Moments, y: Tensor, ridge: float | None, double: bool, backend: str
) -> Tensor:
    """The distance [...] of points x [..., N, D], or moments that need no gradient, to y [..., K,
    D]."""
    if isinstance(x, Moments):
        how = _How((x.mean, x.covariance), ridge, False, double, backend)
        if is_ordinary(x.mean, x.covariance, y):
            return _OfPoints.apply(None, y, how)
        return _of_points(None, *how.features, y, *how[1:])[0]
    how = _How(None, ridge, torch.is_grad_enabled() and needs_grad(x), double, backend)
    if is_ordinary(x, y):
        return _OfPoints.apply(x, y, how)
    return _of_points(x, None, None, y, *how[1:])[0]


def _flat(t: Tensor, dimensions: int) -> Tensor:
    if t.dim() == dimensions + 1:
        return t
    return t.reshape(-1, *t.shape[t.dim() - dimensions :])


def _forward(x: Tensor | None, y: Tensor, how: _How) -> tuple[Tensor, Tensor | None, Tensor]:
    """The value [...] and the pulls of x, if asked for, and y."""
    if x is None:
        mean, covariance = how.features
        features = _flat(mean, 1), _flat(covariance, 2)
    else:
        features = _flat(x, 2)
    value, pull_x, pull_y = passes(how.backend).value_and_pulls(
        features, _flat(y, 2), how.ridge, how.x_grad, how.double
    )
    return value.view(y.shape[:-2]), pull_x, pull_y


_Two = tuple[Tensor | None, Tensor | None]


def _pull(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    pull_x: Tensor | None,
    pull_y: Tensor | None,
    backend: str,
) -> _Two:
    """The gradients of the sets that are not None."""
    points = None if x is None else _flat(x, 2), None if y is None else _flat(y, 2)
    to_x, to_y = passes(backend).map_points(points, (pull_x, pull_y), grad.reshape(-1))
    return None if x is None else to_x.view(x.shape), None if y is None else to_y.view(y.shape)


class _OfPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, how):
        value, pull_x, pull_y = _forward(x, y, how)
        ctx.backend = how.backend
        features = how.features or (None, None)
        ctx.save_for_backward(x if how.x_grad else None, *features, y, pull_x, pull_y)
        return value

    @staticmethod
    def backward(ctx, grad):
        return *_pulled(ctx, grad, *ctx.needs_input_grad[:2]), None


def _pulled(ctx, grad: Tensor, x_asked: bool, y_asked: bool) -> _Two:
    """The gradients that are asked for."""
    x, mean, covariance, y, *pulls = ctx.saved_tensors
    # With create_graph, the operator: it knows to raise in a second derivative.
    if is_ordinary(grad) and not torch.is_grad_enabled():
        points = x if x_asked else None, y if y_asked else None
        return _pull(grad, *points, *pulls, ctx.backend)
    found = _of_points_backward(grad, x, mean, covariance, y, *pulls, x_asked, y_asked, ctx.backend)
    return found[0] if x_asked else None, found[1] if y_asked else None


@torch.library.custom_op("vqkern::gaussian_w2_of_points", mutates_args=())
def _of_points_op(
    x: Tensor | None,
    mean: Tensor | None,
    covariance: Tensor | None,
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    features = None if x is not None else (mean, covariance)
    value, pull_x, pull_y = _forward(x, y, _How(features, ridge, x_grad, double, backend))
    return value, value.new_empty(0) if pull_x is None else pull_x, pull_y


@_of_points_op.register_fake
def _(x, mean, covariance, y, ridge, x_grad, double, backend):
    *lead, _, d = y.shape
    b = y.shape[:-2].numel()
    pull = y.new_empty(b, d + 2, d, dtype=torch.float64)
    value = y.new_empty(lead, dtype=torch.float64 if double else torch.float32)
    return value, torch.empty_like(pull) if x_grad else value.new_empty(0), pull


# Without a derivative of its own: asking for a second derivative raises. It takes both sets, on
# which the saved pulls depend, so that autograd knows what a second derivative would need.
@torch.library.custom_op("vqkern::gaussian_w2_of_points_backward", mutates_args=())
def _of_points_backward_op(
    grad: Tensor,
    x: Tensor | None,
    mean: Tensor | None,
    covariance: Tensor | None,
    y: Tensor,
    pull_x: Tensor | None,
    pull_y: Tensor,
    x_asked: bool,
    y_asked: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    points = x if x_asked else None, y if y_asked else None
    found = _pull(grad, *points, pull_x, pull_y, backend)
    return tuple(grad.new_empty(0) if g is None else g for g in found)


@_of_points_backward_op.register_fake
def _(grad, x, mean, covariance, y, pull_x, pull_y, x_asked, y_asked, backend):
    points = (x, x_asked), (y, y_asked)
    return tuple(p.new_empty(p.shape) if asked else grad.new_empty(0) for p, asked in points)


_of_points_backward = transformable(_of_points_backward_op)


def _setup_context(ctx, inputs, output):
    x, mean, covariance, y, _, x_grad, _, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x if x_grad else None, mean, covariance, y, *output[1:])


def _backward(ctx, grad, _pull_x, _pull_y):
    to_x, to_y = _pulled(ctx, grad, ctx.needs_input_grad[0], ctx.needs_input_grad[3])
    return to_x, None, None, to_y, None, None, None, None


_of_points = transformable(_of_points_op, _setup_context, _backward)
