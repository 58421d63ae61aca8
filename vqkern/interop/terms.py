"""Loss terms and estimators that the drop-in classes share."""

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


def rotate(z: Tensor, nearest: Tensor) -> Tensor:
    """`nearest` [..., D] forward; backward, z was rotated and scaled onto it (Fifty et al. 2024).

    The gradient of `vqkern.quantizers.rotation_trick` in closed form: a handful of passes over the
    rows, nothing kept but the arguments, and the value is exactly `nearest`.
    """
    return _Rotate.apply(z, nearest.detach())


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, nearest: Tensor) -> Tensor:
        ctx.save_for_backward(z, nearest)
        return nearest.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        z, q = ctx.saved_tensors
        dtype = torch.promote_types(z.dtype, torch.float32)
        g, z, q = grad.to(dtype), z.to(dtype), q.to(dtype)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1, keepdim=True)

        # With v = z / |z|, u = q / |q|: R^T g = g - 2 r (r.g) + 2 v (u.g), r = (u + v) / |u + v|.
        z_norm, q_norm = dot(z, z).sqrt(), dot(q, q).sqrt()
        along_v, along_u = dot(g, z) / z_norm, dot(g, q) / q_norm
        cosine = dot(z, q) / (z_norm * q_norm)
        mirrored = (along_u + along_v) / (1 + cosine)
        scale = q_norm / z_norm
        # A bisector this short has no digits left that say where it points.
        exists = (1 + cosine > 5e-7) & (scale > 0) & scale.isfinite()
        rotated = scale * g
        rotated.addcmul_(z, scale / z_norm * (2 * along_u - mirrored))
        rotated.addcmul_(q, -mirrored * scale / q_norm)
        if not bool(exists.all()):
            rotated = torch.where(exists, rotated, g)
        return rotated.to(grad.dtype), None


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
