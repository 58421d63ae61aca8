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
    x = x.detach().float().contiguous()
    valid = None if valid is None else valid.contiguous()
    mean, matrix, offset = mean.contiguous(), matrix.contiguous(), offset.contiguous()
    result = torch.empty_like(x)
    b, n, d = x.shape
    backends.native().pull_back(
        x.data_ptr(),
        _address(valid),
        b,
        n,
        d,
        mean.data_ptr(),
        matrix.data_ptr(),
        offset.data_ptr(),
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
    (m_x, m_y), (s1, s2) = ([t.contiguous() for t in pair] for pair in (means, covariances))
    b, d, _ = s1.shape
    # eigh takes no NaN; the reference knows how to tell problems of a batch apart.
    if d > _MOST_CHANNELS or to_features or not math.isfinite((s1 + s2).sum().item()):
        return reference.value_and_gradients(means, covariances, ridge, to_features)
    kernels = backends.native()
    root, product, gradient = (torch.empty_like(s1) for _ in range(3))
    value, mean_grad = torch.empty(b, dtype=torch.float64), torch.empty_like(m_y)
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
        value.data_ptr(),
        mean_grad.data_ptr(),
        gradient.data_ptr(),
    )
    return reference.Gradients(value, mean_grad, None, gradient)


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `reference.value_and_pulls`."""
    return reference.value_and_pulls(
        features, y, ridge, x_grad, double, moments, value_and_gradients
    )


def map_points(
    points: tuple[Tensor | None, Tensor | None],
    pulls: tuple[Tensor | None, Tensor | None],
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """As `reference.map_points`."""
    grad = grad.double()[:, None]
    found = []
    for p, pull in zip(points, pulls, strict=True):
        if p is not None:
            matrix, mean, offset = pull[:, :-2], pull[:, -2], pull[:, -1]
            p = pull_back(p, None, mean, grad[..., None] * matrix, grad * offset).to(p.dtype)
        found.append(p)
    return tuple(found)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [B, D], ascending, and eigenvectors [B, D, D] as rows."""
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors.mT.contiguous()
