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

from ..direct import apply_ordinary, is_ordinary, needs_grad, transformable
from .moments import Moments, passes


def of_points(
    x: Tensor | Moments, y: Tensor, ridge: float | None, double: bool, backend: str
) -> Tensor:
    """The distance [...] of points x [..., N, D], or moments that need no gradient, to y [..., K,
    D]."""
    grad = torch.is_grad_enabled()
    if isinstance(x, Moments):
        _, mean, covariance = x
        x, watched = None, (mean, covariance, y)
    else:
        mean = covariance = None
        watched = x, y
    if is_ordinary(*watched):
        x_grad = grad and x is not None and x.requires_grad
        return _apply(x, mean, covariance, y, ridge, x_grad, double, backend)
    x_grad = grad and x is not None and needs_grad(x)
    return _of_points(x, mean, covariance, y, ridge, x_grad, double, backend)[0]


def _forward(
    x: Tensor | None,
    mean: Tensor | None,
    covariance: Tensor | None,
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The value [...] and the pulls of x, if asked for, and y."""
    features = (mean, covariance) if x is None else x
    return passes(backend).value_and_pulls(features, y, ridge, x_grad, double)


_Two = tuple[Tensor | None, Tensor | None]


class _OfPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, covariance, y, ridge, x_grad, double, backend):
        value, *pulls = _forward(x, mean, covariance, y, ridge, x_grad, double, backend)
        ctx.backend = backend
        ctx.save_for_backward(x if x_grad else None, mean, covariance, y, *pulls)
        return value

    @staticmethod
    def backward(ctx, grad):
        x_asked, _, _, y_asked, *_ = ctx.needs_input_grad
        to_x, to_y = _pulled(ctx, grad, x_asked, y_asked)
        return to_x, None, None, to_y, None, None, None, None


_apply = apply_ordinary(_OfPoints)


def _pulled(ctx, grad: Tensor, x_asked: bool, y_asked: bool) -> _Two:
    """The gradients that are asked for."""
    x, mean, covariance, y, *pulls = ctx.saved_tensors
    points = x if x_asked else None, y if y_asked else None
    # With create_graph, the operator: it knows to raise in a second derivative. It also takes what
    # came in through the operator, as views that are negated.
    given = (t for t in (grad, *points, *pulls) if t is not None)
    if is_ordinary(*given) and not torch.is_grad_enabled():
        return passes(ctx.backend).map_points(points, pulls, grad)
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
    value, pull_x, pull_y = _forward(x, mean, covariance, y, ridge, x_grad, double, backend)
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
    found = passes(backend).map_points(points, (pull_x, pull_y), grad)
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
