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

from ..direct import direct, is_ordinary, needs_grad, transformable
from .moments import Moments, passes


def of_points(
    x: Tensor | Moments, y: Tensor, ridge: float | None, double: bool, backend: str
) -> Tensor:
    """The distance [...] of points x [..., N, D], or moments that need no gradient, to y [..., K,
    D]."""
    mean = covariance = None
    if isinstance(x, Moments):
        x, (_, mean, covariance) = None, x
    x_grad = x is not None and torch.is_grad_enabled() and needs_grad(x)
    return _of_points(x, mean, covariance, y, ridge, x_grad, double, backend)[0]


def _of_points_of(
    x: Tensor | None,
    mean: Tensor | None,
    covariance: Tensor | None,
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value [...] and the pulls of x, empty if not asked for, and y."""
    features = (mean, covariance) if x is None else x
    value, pull_x, pull_y = passes(backend).value_and_pulls(features, y, ridge, x_grad, double)
    return value, value.new_empty(0) if pull_x is None else pull_x, pull_y


_of_points_op = torch.library.custom_op(
    "vqkern::gaussian_w2_of_points", _of_points_of, mutates_args=()
)


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
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x if x_grad else None, mean, covariance, y, *output[1:])


def _backward(ctx, grad, _pull_x, _pull_y):
    if grad is None:
        return (None,) * 8
    x, mean, covariance, y, *pulls = ctx.saved_tensors
    x_asked, _, _, y_asked, *_ = ctx.needs_input_grad
    points = x if x_asked else None, y if y_asked else None
    # With create_graph, the operator: it knows to raise in a second derivative. It also takes what
    # came in through the operator, as views that are negated.
    given = (t for t in (grad, *points, *pulls) if t is not None)
    if is_ordinary(*given) and not torch.is_grad_enabled():
        to_x, to_y = passes(ctx.backend).map_points(points, pulls, grad)
    else:
        asked = x_asked, y_asked
        found = _of_points_backward(grad, x, mean, covariance, y, *pulls, *asked, ctx.backend)
        to_x, to_y = (to if wanted else None for to, wanted in zip(found, asked, strict=True))
    return to_x, None, None, to_y, None, None, None, None


_of_points = direct(_of_points_of, _of_points_op, _setup_context, _backward)
