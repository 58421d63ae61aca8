"""The specification of `squared_mmd`: tiles of the kernel matrix, closed-form gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import common_dtype

_TILE = 1024  # 1024 x 1024 pairs at a time: 8 MB


def squared_mmd(
    x: Tensor, y: Tensor, bandwidths: Tensor, unbiased: bool, x_grad: bool, y_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Value [], gradient [N, D] and gradient [M, D]; a gradient not asked for is [0].

    Rounded from float64 to float32 unless an input is float64.
    """
    dtype = common_dtype(x, y)
    # Distances between centred points cancel less; the value does not depend on the origin.
    x, y = x.double(), y.double()
    mean = (x.sum(0) + y.sum(0)) / (len(x) + len(y))
    x, y = x - mean, y - mean
    rates = bandwidths.double().reciprocal()
    n, m = len(x), len(y)
    same = 0 if unbiased else 1
    weight_xx = 1 / (n * (n - 1 + same))
    weight_yy = 1 / (m * (m - 1 + same))
    xx, x_self = _symmetric_sum(x, rates, unbiased, x_grad)
    yy, y_self = _symmetric_sum(y, rates, unbiased, y_grad)
    xy, x_cross, y_cross = _cross_sum(x, y, rates, x_grad, y_grad)
    value = xx * weight_xx + yy * weight_yy - 2 * xy / (n * m)
    # d/dy_j of sum k(y, y') counts j twice: as y and as y'.
    gx = (
        (2 * weight_xx * x_self - 2 / (n * m) * x_cross).to(dtype)
        if x_grad
        else x.new_empty(0, dtype=dtype)
    )
    gy = (
        (2 * weight_yy * y_self - 2 / (n * m) * y_cross).to(dtype)
        if y_grad
        else x.new_empty(0, dtype=dtype)
    )
    return value.to(dtype), gx, gy


def _kernel(a: Tensor, b: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i exp(-r_i d^2) and W = sum_i r_i exp(-r_i d^2) for all pairs [n, m]."""
    squared = torch.addmm(b.square().sum(-1), a, b.T, alpha=-2)
    squared = (squared + a.square().sum(-1, keepdim=True)).clamp_min_(0)
    kernel = torch.zeros_like(squared)
    weight = torch.zeros_like(squared)
    for rate in rates:
        term = torch.exp(squared * -rate)
        kernel += term
        weight += rate * term
    return kernel, weight


def _pull(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_j dk(a_i, b_j)/da_i = -2 (r_i a_i - (W b)_i), [n, D]."""
    return -2 * (weight.sum(-1, keepdim=True) * a - weight @ b)


def _cross_sum(
    x: Tensor, y: Tensor, rates: Tensor, x_grad: bool, y_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    gx = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    gy = torch.zeros(y.shape, dtype=torch.float64, device=x.device)
    for i, a in enumerate(x.split(_TILE)):
        for j, b in enumerate(y.split(_TILE)):
            kernel, weight = _kernel(a, b, rates)
            total += kernel.sum()
            if x_grad:
                gx[i * _TILE : i * _TILE + len(a)] += _pull(weight, a, b)
            if y_grad:
                gy[j * _TILE : j * _TILE + len(b)] += _pull(weight.T, b, a)
    return total, gx, gy


def _symmetric_sum(
    x: Tensor, rates: Tensor, drop_diagonal: bool, grad: bool
) -> tuple[Tensor, Tensor]:
    """Sum of k over all ordered pairs, and d/dx_i of sum_j k(x_i, x_j); upper tiles only."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    gx = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    tiles = x.split(_TILE)
    for i, a in enumerate(tiles):
        for j in range(i, len(tiles)):
            b = tiles[j]
            kernel, weight = _kernel(a, b, rates)
            if i == j:
                # k(x, x) = number of bandwidths exactly, whatever rounding left of the distance.
                kernel.fill_diagonal_(0.0 if drop_diagonal else float(len(rates)))
            total += kernel.sum() * (1 if i == j else 2)
            if grad:
                gx[i * _TILE : i * _TILE + len(a)] += _pull(weight, a, b)
                if j > i:
                    gx[j * _TILE : j * _TILE + len(b)] += _pull(weight.T, b, a)
    return total, gx
