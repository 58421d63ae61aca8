"""Quantization of directions: latents and codes of length 1 (ViT-VQGAN, LlamaGen)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .codes import Table
from .vector import VectorQuantizer


class SphericalQuantizer(VectorQuantizer):
    """A vector quantizer of z / |z|; give it unit codes, such as ``UnitCodes(Table(K, dim))``.

    All losses are taken between unit vectors, and the gradient reaches z through the
    normalisation. A zero z has no direction; it stays 0 and gets the nearest code as any vector.
    """

    def _search(self, rows: Tensor) -> Tensor:
        return super()._search(_direction(rows))

    def _quantize(self, rows: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, index, loss = super()._quantize(_direction(rows), counted)
        return quantized.to(rows.dtype), index, loss

    def _around(self, table: Table) -> tuple[VectorQuantizer, dict]:
        plain, options = super()._around(table)
        quantizer = SphericalQuantizer(
            table,
            commitment=self.commitment,
            channel_dim=self.channel_dim,
            estimator=plain.estimator,
        )
        return quantizer, {**options, "name": "spherical", "unit_codes": False}


def _direction(rows: Tensor) -> Tensor:
    # Half precision would round the direction; the index is that of the float32 direction.
    if rows.element_size() < 4:
        rows = rows.float()
    # Rows that are not finite are set aside: their NaN * 0 must not reach a gradient.
    finite = rows.isfinite().all(-1, keepdim=True)
    unit = F.normalize(torch.where(finite, rows, 0), dim=-1)
    return torch.where(finite, unit, torch.nan)
