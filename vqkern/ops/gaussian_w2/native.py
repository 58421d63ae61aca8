"""The C++ kernels' launchers; see csrc/cpu/moments.cpp and gaussian_w2.cpp."""

from __future__ import annotations

import math

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
    if to_features or not _few_and_finite(*covariances):
        return reference.value_and_gradients(means, covariances, ridge, to_features)
    value, pull = _solve(means, covariances, ridge, 1.0, 1.0)
    return reference.Gradients(value, pull[:, -1].clone(), None, pull[:, :-2].clone())


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `reference.value_and_pulls`."""
    if x_grad:
        return reference.value_and_pulls(
            features, y, ridge, x_grad, double, moments, value_and_gradients
        )
    of_y = moments(y, None)
    m_x, s1 = features if isinstance(features, tuple) else moments(features, None)[1:]
    if not _few_and_finite(s1, of_y[2]):
        return reference.value_and_pulls((m_x, s1), y, ridge, False, double, lambda *_: of_y)
    n = y.shape[1]
    value, pull = _solve((m_x, of_y[1]), (s1, of_y[2]), ridge, 2 / (n - 1), 1 / n)
    return value if double else value.float(), None, pull


def _few_and_finite(s1: Tensor, s2: Tensor) -> bool:
    """Whether `_solve` takes these covariances: eigh takes no NaN, and the reference knows how to
    tell problems of a batch apart."""
    return s1.shape[-1] <= _MOST_CHANNELS and math.isfinite((s1 + s2).sum().item())


def _solve(
    means: tuple[Tensor, Tensor],
    covariances: tuple[Tensor, Tensor],
    ridge: float | None,
    by_covariance: float,
    by_mean: float,
) -> tuple[Tensor, Tensor]:
    """The value [B] and [B, D + 2, D]: its derivative by S2, times a factor, m_y, and that by m_y,
    times a factor."""
    (m_x, m_y), (s1, s2) = ([t.contiguous() for t in pair] for pair in (means, covariances))
    b, d, _ = s1.shape
    kernels = backends.native()
    root, product = torch.empty_like(s1), torch.empty_like(s1)
    value = torch.empty(b, dtype=torch.float64)
    pull = torch.empty(b, d + 2, d, dtype=torch.float64)
    values, rows = _eigh(s1)
    kernels.gaussian_w2_product(
        values.data_ptr(), rows.data_ptr(), s2.data_ptr(), b, d, root.data_ptr(), product.data_ptr()
    )
    values, rows = _eigh(product)
    kernels.gaussian_w2_finish(
        values.data_ptr(),
        rows.data_ptr(),
        root.data_ptr(),
        s1.data_ptr(),
        s2.data_ptr(),
        m_x.data_ptr(),
        m_y.data_ptr(),
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


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [B, D], ascending, and eigenvectors [B, D, D] as rows."""
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors.mT.contiguous()
