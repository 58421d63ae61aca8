"""The C++ kernels' launchers; see csrc/cpu/moments.cpp and gaussian_w2.cpp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import backend as backends
from . import reference


def _address(valid: Tensor | None) -> int:
    return 0 if valid is None else valid.data_ptr()


def moments(x: Tensor, valid: Tensor | None, kernel: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Count [B], mean [B, D] and covariance [B, D, D], float64, of x [B, N, D] up to float32."""
    x = _floats(x)
    valid = None if valid is None else valid.contiguous()
    b, n, d = x.shape
    count, mean, covariance = (
        x.new_empty(shape, dtype=torch.float64) for shape in ((b,), (b, d), (b, d, d))
    )
    backends.native().moments(
        x.data_ptr(),
        _address(valid),
        b,
        n,
        d,
        count.data_ptr(),
        mean.data_ptr(),
        covariance.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return count, mean, covariance


def pull_back(
    x: Tensor,
    valid: Tensor | None,
    mean: Tensor,
    matrix: Tensor,
    offset: Tensor,
    kernel: str = "",
) -> Tensor:
    """matrix (x_k - mean) + offset, float32 [B, N, D], 0 where not valid; the rest float64."""
    pull = torch.cat([matrix, mean[:, None], offset[:, None]], 1)
    return _pulled(x.float(), valid, pull, mean.new_ones(len(x)), kernel)


def _pulled(
    x: Tensor, valid: Tensor | None, pull: Tensor, factor: Tensor, kernel: str = ""
) -> Tensor:
    """factor (matrix (x_k - mean) + offset) of points [..., N, D], in their dtype; `factor` [...]
    is float32 or float64."""
    points = _floats(x)
    valid = None if valid is None else valid.contiguous()
    # Hooks on saved tensors may have given them another type.
    pull, factor = pull.double().contiguous(), _wide(factor).contiguous()
    result = torch.empty_like(points)
    *lead, n, d = points.shape
    backends.native().pull_back(
        points.data_ptr(),
        _address(valid),
        math.prod(lead),
        n,
        d,
        pull.data_ptr(),
        factor.data_ptr(),
        factor.dtype == torch.float64,
        result.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return result if result.dtype == x.dtype else result.to(x.dtype)


def value_and_gradients(
    means: tuple[Tensor, Tensor],
    covariances: tuple[Tensor, Tensor],
    ridge: float | None,
    to_features: bool,
) -> reference.Gradients:
    """`reference.value_and_gradients` on the CPU, in one call where there are few channels."""
    found = _solve(*zip(means, covariances, strict=True), ridge, to_features, True)
    if found is None:
        return reference.value_and_gradients(means, covariances, ridge, to_features)
    value, pull_x, pull_y = found
    features = None if pull_x is None else pull_x[:, :-2].clone()
    return reference.Gradients(value, pull_y[:, -1].clone(), features, pull_y[:, :-2].clone())


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `reference.value_and_pulls`."""
    found = _solve(features, y, ridge, x_grad, double)
    if found is None:
        return reference.value_and_pulls(
            features, y, ridge, x_grad, double, moments, value_and_gradients
        )
    return found


# Points [..., N, D], or mean [..., D] and covariance [..., D, D].
_Side = Tensor | tuple[Tensor, Tensor]


def _solve(
    x: _Side, y: _Side, ridge: float | None, x_grad: bool, double: bool, kernel: str = ""
) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """The value [...] and pulls [B, D + 2, D] on x, if asked for, and y; of given moments, the
    derivatives by covariance, D rows, and mean, the last. None where there are many channels, or
    covariances that are not finite: the reference knows how to tell problems of a batch apart."""
    one = y if isinstance(y, Tensor) else y[1]
    *lead, _, d = one.shape
    kernels = backends.native()
    if d > kernels.most_rotated:  # matrix products of a library are faster there
        return None
    b = math.prod(lead)
    # What the addresses are of must live until the call has returned.
    held_x, held_y = _held(x), _held(y)
    value = one.new_empty(lead, dtype=torch.float64 if double else torch.float32)
    pull_y = one.new_empty(b, d + 2, d, dtype=torch.float64)
    pull_x = torch.empty_like(pull_y) if x_grad else None
    finite = kernels.gaussian_w2(
        *_side(held_x),
        *_side(held_y),
        b,
        d,
        0.0 if ridge is None else ridge,
        reference.RELATIVE_RIDGE / d if ridge is None else 0.0,
        value.data_ptr(),
        double,
        0 if pull_x is None else pull_x.data_ptr(),
        pull_y.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return (value, pull_x, pull_y) if finite else None


def _held(side: _Side) -> _Side:
    """A side as the kernels read it: float32 points or float64 moments, contiguous."""
    if isinstance(side, Tensor):
        return _floats(side)
    mean, covariance = side
    return mean.contiguous(), covariance.contiguous()


def _wide(t: Tensor) -> Tensor:
    """float32 or float64, as the kernels take numbers of either."""
    return t if t.dtype in (torch.float32, torch.float64) else t.double()


def _floats(points: Tensor) -> Tensor:
    if points.dtype == torch.float32 and points.is_contiguous():
        return points
    return points.detach().float().contiguous()


def _side(held: _Side) -> tuple[int, int, int, int]:
    """Addresses and number of points, as kernels take a side."""
    if isinstance(held, Tensor):
        return held.data_ptr(), held.shape[-2], 0, 0
    mean, covariance = held
    return 0, 0, mean.data_ptr(), covariance.data_ptr()


def map_points(
    points: tuple[Tensor | None, Tensor | None],
    pulls: tuple[Tensor | None, Tensor | None],
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """As `reference.map_points`."""
    return tuple(
        None if p is None else _pulled(p, None, pull, grad)
        for p, pull in zip(points, pulls, strict=True)
    )
