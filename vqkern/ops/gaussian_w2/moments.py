"""`moments`: count, mean and covariance of a point set, to merge over sets, steps and ranks."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ... import backend as backends
from ..checks import require_float, require_same_device
from ..direct import transformable
from . import reference


class Moments(NamedTuple):
    """What a Gaussian is fitted to. All float64, whatever the points were.

    count: points [...]. mean: [..., D]. covariance: unbiased, 1 / (count - 1), [..., D, D]; 0 for
    fewer than two points, as is the mean of none.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor


def moments(x: Tensor, valid: Tensor | None = None, *, backend: str = "auto") -> Moments:
    """Count, mean and unbiased covariance of points, in one pass.

    Args:
        x: points [..., N, D], floating point; leading dimensions are independent sets.
        valid: bool [..., N], the points that count; None: all. Others may hold anything.
        backend: ``"auto"``, ``"torch"``, ``"cpp"`` or ``"triton"``.

    Returns:
        `Moments`, differentiable with respect to `x`: d/dx_k = g / n + (G + G^T)(x_k - mean) /
        (n - 1) for gradients g of the mean and G of the covariance.

    Raises:
        TypeError: `x` is not a floating-point tensor or `valid` not a bool tensor.
        ValueError: shapes or devices do not fit, or the backend is unknown or cannot run this.

    Numerics:
        Points are shifted to near their mean, and everything is added up in float64 in an order
        that depends on N alone. float64 points are summed by backend "torch". A counted point that
        is not finite gives a mean and covariance that are not finite.
    """
    require_points("moments", "x", x)
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            got = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
            raise TypeError(f"moments: valid must be a bool tensor, got {got}")
        if valid.shape != x.shape[:-1]:
            raise ValueError(
                f"moments: valid must have shape {list(x.shape[:-1])}, got {list(valid.shape)}"
            )
        require_same_device("moments", x=x, valid=valid)
    return moments_by(
        x, valid, choose_backend("moments", backend, x.device, x.dtype == torch.float64)
    )


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of two point sets together (Chan, Golub and LeVeque 1979).

    Leading dimensions broadcast; differentiable. Nothing cancels: the means are subtracted first.
    """
    count = first.count + second.count
    share = (second.count / count.clamp_min(1))[..., None]
    apart = second.mean - first.mean
    mean = first.mean + share * apart
    between = (first.count[..., None] * share * apart)[..., None] * apart[..., None, :]
    scatter = scatter_of(first) + scatter_of(second) + between
    return Moments(count, mean, scatter / (count - 1).clamp_min(1)[..., None, None])


def scatter_of(of: Moments) -> Tensor:
    """sum_k (x_k - mean)(x_k - mean)^T [..., D, D]."""
    return of.covariance * (of.count - 1).clamp_min(0)[..., None, None]


def require_points(op: str, name: str, x: Tensor) -> None:
    """`x` must be floating point [..., N, D] with D >= 1."""
    require_float(op, name, x)
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(
            f"{op}: {name} must have shape [..., N, D] with D >= 1, got {list(x.shape)}"
        )


def _never_float64() -> str:
    return "float64 inputs run on backend='torch' only"


_ALL = dict.fromkeys(("torch", "cpp", "triton"), backends.always)
_OF_FLOAT64 = _ALL | dict.fromkeys(("cpp", "triton"), _never_float64)


def choose_backend(op: str, backend: str, device: torch.device, float64: bool) -> str:
    """The backend that passes over points on `device`, some of which may be `float64`."""
    return backends.choose(op, backend, device, _OF_FLOAT64 if float64 else _ALL)


def moments_by(x: Tensor, valid: Tensor | None, backend: str) -> Moments:
    """`moments` of checked points by a chosen backend."""
    *lead, n, d = x.shape
    sets = x.shape[:-2].numel()
    flat = None if valid is None else valid.reshape(sets, n)
    count, mean, covariance = _moments(x.reshape(sets, n, d), flat, backend)
    if len(lead) == 1:
        return Moments(count, mean, covariance)
    return Moments(count.reshape(lead), mean.reshape(*lead, d), covariance.reshape(*lead, d, d))


@functools.cache
def passes(backend: str) -> ModuleType:
    """The module of a backend, with the functions `moments`, `pull_back`, `value_and_gradients`,
    `value_and_pulls` and `map_points` of reference.py."""
    if backend == "cpp":
        from . import native

        return native
    if backend == "triton":
        from . import triton_solve

        return triton_solve
    return reference


@torch.library.custom_op("vqkern::moments", mutates_args=())
def _moments_op(x: Tensor, valid: Tensor | None, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return passes(backend).moments(x, valid)


@_moments_op.register_fake
def _(x, valid, backend):
    b, _, d = x.shape
    return (
        x.new_empty(b, dtype=torch.float64),
        x.new_empty(b, d, dtype=torch.float64),
        x.new_empty(b, d, d, dtype=torch.float64),
    )


# An op without a derivative of its own: asking for a second derivative raises.
@torch.library.custom_op("vqkern::moments_backward", mutates_args=())
def _moments_backward_op(
    x: Tensor,
    valid: Tensor | None,
    count: Tensor,
    mean: Tensor,
    mean_grad: Tensor,
    covariance_grad: Tensor,
    backend: str,
) -> Tensor:
    matrix = (covariance_grad + covariance_grad.mT) / (count - 1).clamp_min(1)[:, None, None]
    offset = mean_grad / count.clamp_min(1)[:, None]
    return passes(backend).pull_back(x, valid, mean, matrix, offset)


@_moments_backward_op.register_fake
def _(x, valid, count, mean, mean_grad, covariance_grad, backend):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape, dtype=dtype)


_moments_backward = transformable(_moments_backward_op)


def _setup_context(ctx, inputs, output):
    x, valid, ctx.backend = inputs
    count, mean, _ = output
    ctx.mark_non_differentiable(count)
    ctx.save_for_backward(x, valid, count, mean)


def _backward(ctx, _count_grad, mean_grad, covariance_grad):
    x, valid, count, mean = ctx.saved_tensors
    pulled = _moments_backward(x, valid, count, mean, mean_grad, covariance_grad, ctx.backend)
    return pulled.to(x.dtype), None, None


_moments = transformable(_moments_op, _setup_context, _backward)
