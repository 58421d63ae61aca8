"""The C++ kernels' launchers; see csrc/cpu/moments.cpp and gaussian_w2.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backend as backends
from . import reference

# Above, matrix products of a library outrun the loops of csrc/cpu/gaussian_w2.cpp.
_MOST_CHANNELS = 32


def _address(valid: Tensor | None) -> int:
    return 0 if valid is None else valid.data_ptr()


def moments(x: Tensor, valid: Tensor | None, kernel: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Count [B], mean [B, D] and covariance [B, D, D], float64, of x [B, N, D] up to float32."""
    x = x.detach().float().contiguous()
    valid = None if valid is None else valid.contiguous()
    b, n, d = x.shape
    count = torch.empty(b, dtype=torch.float64)
    mean = torch.empty(b, d, dtype=torch.float64)
    covariance = torch.empty(b, d, d, dtype=torch.float64)
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
    return _pulled(x, valid, pull, torch.ones(len(x), dtype=torch.float64), kernel)


def _pulled(
    x: Tensor, valid: Tensor | None, pull: Tensor, factor: Tensor, kernel: str = ""
) -> Tensor:
    x = x.detach().float().contiguous()
    valid = None if valid is None else valid.contiguous()
    result = torch.empty_like(x)
    b, n, d = x.shape
    backends.native().pull_back(
        x.data_ptr(),
        _address(valid),
        b,
        n,
        d,
        pull.data_ptr(),
        factor.data_ptr(),
        result.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return result


def value_and_gradients(
    means: tuple[Tensor, Tensor],
    covariances: tuple[Tensor, Tensor],
    ridge: float | None,
    to_features: bool,
) -> reference.Gradients:
    """`reference.value_and_gradients` on the CPU, with few calls where there are few channels."""
    x, y = zip(means, covariances, strict=True)
    found = _solve(x, y, ridge, 1.0, 1.0)
    if found is None:
        return reference.value_and_gradients(means, covariances, ridge, to_features)
    value, pull = found
    features = None
    if to_features:  # the other way round, from what is as finite as it was
        features = _solve(y, x, ridge, 1.0, 1.0)[1][:, :-2].clone()
    return reference.Gradients(value, pull[:, -1].clone(), features, pull[:, :-2].clone())


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `reference.value_and_pulls`."""
    n = y.shape[1]
    found = None if x_grad else _solve(features, y, ridge, 2 / (n - 1), 1 / n)
    if found is None:
        return reference.value_and_pulls(
            features, y, ridge, x_grad, double, moments, value_and_gradients
        )
    value, pull = found
    return value if double else value.float(), None, pull


_Side = Tensor | tuple[Tensor, Tensor]  # points [B, N, D], or mean [B, D] and covariance [B, D, D]


def _solve(
    x: _Side, y: _Side, ridge: float | None, by_covariance: float, by_mean: float
) -> tuple[Tensor, Tensor] | None:
    """The value [B] and [B, D + 2, D]: its derivative by S2, times a factor, m_y, and that by m_y,
    times a factor. None where there are many channels, or covariances that are not finite: the
    reference knows how to tell problems of a batch apart."""
    *_, d = shape = (y if isinstance(y, Tensor) else y[0]).shape
    if d > _MOST_CHANNELS:
        return None
    b = shape[0]
    kernels = backends.native()
    # What the addresses are of must live until the call has returned.
    held_x, held_y = _held(x), _held(y)
    state = torch.empty(kernels.gaussian_w2_state(b, d), dtype=torch.float64)
    product = torch.empty(b, d, d, dtype=torch.float64)
    finite = kernels.gaussian_w2_product(
        *_side(held_x),
        *_side(held_y),
        b,
        d,
        state.data_ptr(),
        product.data_ptr(),
        torch.get_num_threads(),
    )
    if not finite:
        return None
    values, vectors = torch.linalg.eigh(product)
    rows = vectors.mT.contiguous()
    value = torch.empty(b, dtype=torch.float64)
    pull = torch.empty(b, d + 2, d, dtype=torch.float64)
    kernels.gaussian_w2_finish(
        values.data_ptr(),
        rows.data_ptr(),
        state.data_ptr(),
        0.0 if ridge is None else ridge,
        reference.RELATIVE_RIDGE / d if ridge is None else 0.0,
        b,
        d,
        by_covariance,
        by_mean,
        value.data_ptr(),
        pull.data_ptr(),
    )
    return value, pull


def _held(side: _Side) -> _Side:
    """A side as the kernels read it: float32 points or float64 moments, contiguous."""
    if isinstance(side, Tensor):
        return side.detach().float().contiguous()
    mean, covariance = side
    return mean.contiguous(), covariance.contiguous()


def _side(held: _Side) -> tuple[int, int, int, int]:
    """Addresses and number of points, as kernels take a side."""
    if isinstance(held, Tensor):
        return held.data_ptr(), held.shape[1], 0, 0
    mean, covariance = held
    return 0, 0, mean.data_ptr(), covariance.data_ptr()


def map_points(
    points: tuple[Tensor | None, Tensor | None],
    pulls: tuple[Tensor | None, Tensor | None],
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """As `reference.map_points`."""
    factor = grad.double().contiguous()
    return tuple(
        None if p is None else _pulled(p, None, pull.contiguous(), factor).to(p.dtype)
        for p, pull in zip(points, pulls, strict=True)
    )
