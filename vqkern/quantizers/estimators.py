"""Gradient estimators: how the gradient passes the choice of a code.

An estimator is a function (z [N, D], nearest [N, D]) -> quantized [N, D] whose value is `nearest`;
`nearest` is detached.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]


def straight_through(z: Tensor, nearest: Tensor) -> Tensor:
    """`nearest` forward, the identity of z backward (van den Oord et al. 2017)."""
    return z + (nearest - z).detach()


def rotation_trick(z: Tensor, nearest: Tensor) -> Tensor:
    """`nearest` forward; backward, z was rotated and scaled onto it (Fifty et al. 2024, eq. 4).

    q = s R z with s = |q| / |z| and the rotation R = I - 2 r r^T + 2 u v^T in the plane of both, v
    = z / |z|, u = q / |q|, r = (u + v) / |u + v|; s and R are constants for the gradient, which so
    keeps its angle to the code: dz = s R^T dq.

    Where no such rotation exists (z or q is 0, not finite, or they point in opposite directions)
    the gradient passes straight through.

    Numerics:
        The rotation is computed in float32 (float64 for float64), the value is `nearest` up to the
        rounding of z + (nearest - z), as for the straight-through estimator.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    start, end = z.detach().to(dtype), nearest.detach().to(dtype)
    z_norm, q_norm = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    v, u = start / z_norm, end / q_norm
    bisector = (u + v).norm(dim=-1, keepdim=True)
    scale = q_norm / z_norm
    # A bisector this short has no digits left that say where it points.
    exists = (bisector > 1e-3) & (scale > 0) & scale.isfinite()
    v, u, scale = (torch.where(exists, part, 0) for part in (v, u, scale))
    r = torch.where(exists, (u + v) / bisector, 0)
    moving = z.to(dtype)

    def along(direction: Tensor) -> Tensor:
        return (moving * direction).sum(-1, keepdim=True)

    rotated = scale * (moving - 2 * along(r) * r + 2 * along(v) * u)
    return straight_through(torch.where(exists, rotated, moving).to(z.dtype), nearest)


ESTIMATORS: dict[str, Estimator] = {
    "straight_through": straight_through,
    "rotation": rotation_trick,
}


def build_estimator(name: str) -> Estimator:
    """An estimator by its name in `ESTIMATORS`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {name!r}")
    return ESTIMATORS[name]


def estimator_option(estimator: Estimator) -> dict[str, str]:
    """The option `estimator` of a preset that gives this one; none where it has no name."""
    names = [name for name, known in ESTIMATORS.items() if known is estimator]
    return {"estimator": names[0]} if names else {}
