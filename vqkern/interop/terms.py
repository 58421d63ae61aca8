"""Loss terms and an estimator that the drop-in classes share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.checks import common_dtype


def l2norm(rows: Tensor) -> Tensor:
    """Rows [..., D] of unit length, as vector-quantize-pytorch rounds them."""
    return F.normalize(rows, dim=-1, eps=1e-6)


def mse(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Mean of (a - b)^2 over channels of the valid rows [...]; 0 if none is valid.

    float32, float64 if an argument is. Rows that are not valid may hold NaN.
    """
    dtype = common_dtype(a, b)
    # where() before the square: NaN in a row that is left out must not reach a gradient.
    difference = torch.where(valid[..., None], a.to(dtype) - b.to(dtype), 0)
    return difference.square().sum() / (valid.sum() * a.shape[-1]).clamp_min(1)


def directional(z: Tensor, nearest: Tensor, variance: float) -> Tensor:
    """z moved by its distance to `nearest`, in a noisy direction towards it (DiVeQ, figure 1).

    The gradient reaches both arguments through the distance; the direction is a constant.
    """
    error = nearest - z
    direction = error + math.sqrt(variance) * torch.randn_like(error)
    return z + l2norm(direction).detach() * error.norm(dim=-1, keepdim=True)


def orthogonality(codes: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of codes [h, K, D], less 1 / K (Shin et al. 2021, eq. 2).

    The sum over pairs of squared cosines is |E E^T|^2 = |E^T E|^2: memory for D x D, not K x K.
    """
    heads, number, _ = codes.shape
    unit = l2norm(codes)
    gram = unit.transpose(1, 2) @ unit
    return gram.square().sum() / (heads * number**2) - 1 / number
