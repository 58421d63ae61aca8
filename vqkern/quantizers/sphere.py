"""Quantization on the unit sphere: latents and codes are divided by their norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.checks import common_dtype
from ..ops.direct import direct, undifferentiated
from ..ops.rows import unit_rows, unit_rows_slope
from .base import Quantizer
from .structure import Structured, checked_parts
from .usage import Usage


def on_sphere(latents: Tensor) -> Tensor:
    """latents / |latents| over the last dimension, float32 or float64; differentiable once.

    Zero stays zero with a zero gradient, where a division by a small epsilon would send a huge one.
    A row that is not finite gives NaN, and no gradient.
    """
    dim = latents.shape[-1]
    rows = latents.reshape(-1, dim).to(common_dtype(latents))
    return _on_sphere(rows)[0].reshape(latents.shape)


# Not left to autograd: of a large codebook, its passes over memory take longer than the search.
def _on_sphere_of(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unit rows, and the two factors of the norm [N, 1], 1 where there is no direction."""
    return unit_rows(rows)


_on_sphere_op = torch.library.custom_op("vqkern::on_sphere", _on_sphere_of, mutates_args=())


@_on_sphere_op.register_fake
def _(rows):
    factor = rows.new_empty(rows.shape[0], 1)
    return torch.empty_like(rows), factor, torch.empty_like(factor)


def _on_sphere_backward_of(grad: Tensor, unit: Tensor, largest: Tensor, norm: Tensor) -> Tensor:
    return unit_rows_slope(grad, unit, largest, norm)


_on_sphere_backward_op = torch.library.custom_op(
    "vqkern::on_sphere_backward", _on_sphere_backward_of, mutates_args=()
)
_on_sphere_backward = undifferentiated(_on_sphere_backward_of, _on_sphere_backward_op)


@_on_sphere_backward_op.register_fake
def _(grad, unit, largest, norm):
    return torch.empty_like(unit)


def _setup_context(ctx, inputs, output):
    _, largest, norm = output
    ctx.mark_non_differentiable(largest, norm)
    ctx.save_for_backward(*output)


def _backward(ctx, grad, _grad_largest, _grad_norm):
    return _on_sphere_backward(grad, *ctx.saved_tensors)


_on_sphere = direct(_on_sphere_of, _on_sphere_op, _setup_context, _backward)


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

    def _start_from(self, rows: Tensor) -> None:
        self.parts[0]._start_from(on_sphere(rows))

    def _snapshot(self) -> Tensor:
        codes = self.parts[0]._snapshot()
        return on_sphere(codes).to(codes.dtype)

    def _assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        return self.parts[0]._assign(on_sphere(latents), codes)

    def _take(self, codes: Tensor, index: Tensor) -> Tensor:
        return self.parts[0]._take(codes, index)

    def _train(self, latents: Tensor, index: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        quantized, loss = self.parts[0]._train(on_sphere(latents), index, codes)
        return quantized.to(latents.dtype), loss

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
