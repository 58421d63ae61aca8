"""Gradient estimators: how the gradient passes the choice of a code.

An estimator is a function (z [N, D], nearest [N, D]) -> quantized [N, D] whose value is `nearest`;
`nearest` is detached. One whose gradient goes through more than the nearest code is an object with
a method `through_codes`, which is called in its place (`CodesEstimator`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..ops.index_backprop import index_backprop, require_softmax


class CodesEstimator(Protocol):
    """An estimator that needs the codebook."""

    def through_codes(self, z: Tensor, codes: Tensor, index: Tensor) -> Tensor:
        """codes [K, D] at index [N] (NaN where -1), with a gradient to z [N, D] and codes."""


Estimator = Callable[[Tensor, Tensor], Tensor] | CodesEstimator


def straight_through(z: Tensor, nearest: Tensor) -> Tensor:
    """`nearest` forward, the identity of z backward (van den Oord et al. 2017)."""
    return z + (nearest - z.detach()).detach()


def rotation_trick(z: Tensor, nearest: Tensor) -> Tensor:
    """`nearest` forward; backward, z was rotated and scaled onto it (Fifty et al. 2024, eq. 4).

    q = s R z with s = |q| / |z| and the rotation R = I - 2 r r^T + 2 u v^T in the plane of both, v
    = z / |z|, u = q / |q|, r = (u + v) / |u + v|; s and R are constants for the gradient, which so
    keeps its angle to the code: dz = s R^T dq.

    Where no such rotation exists (z or q is 0, not finite, or they point in opposite directions)
    the gradient passes straight through.

    Numerics:
        The value is exactly `nearest`. The gradient is computed in float32 (float64 for float64) in
        O(N D): no D x D matrix, and nothing kept but the arguments. A second derivative raises.
    """
    return _Rotation.apply(z, nearest.detach())


class _Rotation(torch.autograd.Function):
    """The closed form: s R^T g = s (g - 2 r (r.g) + 2 v (u.g))."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, nearest: Tensor) -> Tensor:
        ctx.save_for_backward(z, nearest)
        return nearest.to(torch.promote_types(z.dtype, nearest.dtype), copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, nearest = ctx.saved_tensors
        dtype = torch.promote_types(z.dtype, torch.float32)
        g, start, end = grad.to(dtype), z.to(dtype), nearest.to(dtype)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1, keepdim=True)

        z_norm, q_norm = dot(start, start).sqrt(), dot(end, end).sqrt()
        v, u = start / z_norm, end / q_norm
        bisector = u + v
        length = dot(bisector, bisector)
        scale = q_norm / z_norm
        # A bisector this short has no digits left that say where it points.
        exists = (length > 1e-6) & (scale > 0) & scale.isfinite()
        rotated = g.addcmul(bisector, dot(bisector, g) / length, value=-2)
        rotated = rotated.addcmul_(v, dot(u, g), value=2).mul_(scale)
        return torch.where(exists, rotated, g).to(z.dtype), None


@dataclass(frozen=True)
class IndexBackprop:
    """The nearest code forward; backward, a softmax over all codes chose it (Shi et al. 2025, IBQ).

    The gradient reaches z through the probabilities of all codes, and the codes themselves: the
    chosen one directly, all others as alternatives. See `vqkern.ops.index_backprop`; no array of
    tokens x codes is made.

    Where codes are added up (residual, multi-scale), each stage is estimated by itself, and the
    next stage sees the rest with its gradient; for straight-through stages that is the identity.

    Args:
        temperature: of the softmax; 1 is the published scale.
        scores: ``"distance"``, minus half the squared distance, which the nearest code maximises;
            or ``"dot"``, the published z.c, which it maximises if all codes have one norm, as on
            the sphere.
    """

    temperature: float = 1.0
    scores: str = "distance"

    def __post_init__(self) -> None:
        require_softmax("IndexBackprop", self.temperature, self.scores)

    def through_codes(self, z: Tensor, codes: Tensor, index: Tensor) -> Tensor:
        return index_backprop(z, codes, index, temperature=self.temperature, scores=self.scores).to(
            z.dtype
        )

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "index_backprop", **asdict(self)}


def needs_codes(estimator: Estimator) -> bool:
    """Whether it is a `CodesEstimator`."""
    return hasattr(estimator, "through_codes")


def estimate(
    estimator: Estimator, latents: Tensor, nearest: Tensor, index: Tensor, codes: Tensor
) -> Tensor:
    """The quantized latents: latents, nearest [..., D], index [...], codes [K, D]."""
    rows = latents.reshape(-1, latents.shape[-1])
    if needs_codes(estimator):
        # A copy: an update rule may overwrite codes that are kept for the gradient.
        quantized = estimator.through_codes(rows, codes.clone(), index.reshape(-1))
    else:
        quantized = estimator(rows, nearest.reshape(rows.shape))
    return quantized.reshape(latents.shape)


def require_estimator(estimator: Estimator) -> None:
    """Must be callable or have `through_codes`."""
    if not callable(estimator) and not needs_codes(estimator):
        raise TypeError(
            "estimator must be a function (z, nearest) -> quantized or have the method "
            f"through_codes, got {estimator!r}"
        )


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "straight_through": lambda: straight_through,
    "rotation": lambda: rotation_trick,
    "index_backprop": IndexBackprop,
}


def build_estimator(estimator: str | dict | Estimator) -> Estimator:
    """An estimator by its name in `ESTIMATORS`, from its `config`, or as it is.

    Raises:
        ValueError: there is none of that name, it has no such option, or it has no name, so that
            the quantizer could not be built again from its `config`.
    """
    options = {} if isinstance(estimator, str) else estimator_option(estimator)
    if not isinstance(estimator, str | dict):
        if not options:
            raise ValueError(
                f"estimator must be one of {sorted(ESTIMATORS)} or their config here, got "
                f"{estimator!r}; VectorQuantizer takes any"
            )
        return estimator
    options = {"name": estimator} if isinstance(estimator, str) else dict(estimator)
    name = options.pop("name", None)
    if name not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {name!r}")
    try:
        return ESTIMATORS[name](**options)
    except TypeError as error:
        raise ValueError(f"estimator {name!r}: {error}") from error


def estimator_option(estimator: Estimator) -> dict[str, str | dict]:
    """The option `estimator` of a preset that gives this one; none where it has no name."""
    if isinstance(estimator, IndexBackprop):
        return {"estimator": estimator.config}
    for name, known in (("straight_through", straight_through), ("rotation", rotation_trick)):
        if estimator is known:
            return {"estimator": name}
    return {}
