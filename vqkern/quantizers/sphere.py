"""Quantization on the unit sphere: latents and codes are divided by their norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.checks import common_dtype
from .base import Quantizer, Usage
from .structure import Structured, checked_parts


def on_sphere(latents: Tensor) -> Tensor:
    """latents / |latents| over the last dimension, float32 or float64; differentiable.

    Zero stays zero with a zero gradient, where a division by a small epsilon would send a huge one.
    A row that is not finite gives NaN, and no gradient.
    """
    wide = latents.to(common_dtype(latents))
    largest = wide.detach().abs().amax(-1, keepdim=True)
    regular = largest.isfinite() & (largest > 0)
    # The scale drops out of the result, and squares of what is left neither overflow nor vanish.
    # Irregular rows are replaced before they are divided: a gradient of 0 times NaN would be NaN.
    scaled = torch.where(regular, wide, 1) / torch.where(regular, largest, 1)
    unit = scaled / scaled.norm(dim=-1, keepdim=True)
    return torch.where(regular, unit, torch.where(largest == 0, 0.0, torch.nan).to(unit.dtype))


class Spherical(Structured):
    """The nearest code in direction: latents and codes on the unit sphere (LlamaGen, MGVQ's code).

    Quantized latents are unit codes, and losses are measured on the sphere. The gradient reaches
    the latents through their normalisation. Stored codes have any norm; `codes` have norm 1.

    Args:
        part: a quantizer whose codes are a matrix [K, dim].
        channel_dim: where z has its channels.

    Raises:
        ValueError: the part is structured or has no codebook.
    """

    def __init__(self, part: Quantizer, *, channel_dim: int = -1) -> None:
        checked_parts("Spherical", [part])
        super().__init__([part], part.dim, channel_dim=channel_dim)
        if not isinstance(part._snapshot(), Tensor):
            raise ValueError(
                f"Spherical: part must have one codebook [K, dim], {type(part).__name__} has none "
                "of its own: put the sphere inside it"
            )

    @property
    def codes(self) -> Tensor:
        return self._snapshot()

    def usage(self) -> Usage:
        return self.parts[0].usage()

    def load_codes(self, codes: Tensor) -> None:
        """Overwrites the codes; they need not have norm 1."""
        self.parts[0].load_codes(codes)

    def _snapshot(self) -> Tensor:
        # A copy: the update rule may overwrite codes that the normalisation keeps for its gradient.
        codes = self.parts[0]._snapshot().clone()
        return on_sphere(codes).to(codes.dtype)

    def _assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        return self.parts[0]._assign(on_sphere(latents), codes)

    def _take(self, codes: Tensor, index: Tensor) -> Tensor:
        return self.parts[0]._take(codes, index)

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        unit = on_sphere(latents)
        quantized = self.parts[0]._estimate(unit, nearest.to(unit.dtype), index, codes)
        return quantized.to(latents.dtype)

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        return self.parts[0]._learn(on_sphere(latents), nearest, index, codes)

    def _settle(self, latents: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        return self.parts[0]._settle(on_sphere(latents), index, codes)

    def _count(self, index: Tensor, counted: Tensor) -> None:
        self.parts[0]._count(index, counted)
