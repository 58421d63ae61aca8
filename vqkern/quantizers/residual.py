"""Residual quantization: every stage quantizes what the stages before it left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops.checks import common_dtype, require_whole
from .base import Quantizer
from .estimators import estimate
from .structure import Structured, checked_parts, estimator_of_sum


class Residual(Structured):
    """RQ (Lee et al. 2022): z is the sum of `depth` codes, each nearest to the rest of the others.

    r_0 = z, k_d = argmin_k |r_{d-1} - e_k|, r_d = r_{d-1} - e_{k_d}; `index` gets a last axis of
    `depth` tokens. The rest that a stage sees is detached from the codes before it, so the
    commitment of stage d is that of the sum up to it, |z - sg[e_{k_1} + ... + e_{k_d}]|^2, and its
    codebook loss moves its own code alone. The loss is the mean over stages, where the paper has
    the sum, so that weights need not change with depth. A codebook shared by all stages takes one
    training step with the features of all.

    Args:
        parts: one quantizer, shared by all stages, or a list with one a stage.
        depth: number of stages; it may be left out with a list of several.
        channel_dim: where z has its channels.
        estimator: (z, nearest) -> quantized, for the sum; None takes that of the parts. Where they
            differ or need the codes (`IndexBackprop`), each stage estimates its own code, and the
            rest reaches the next stage with its gradient.

    Raises:
        ValueError: the parts differ in channels, or their number is neither 1 nor `depth`.
    """

    one_token = False

    def __init__(
        self,
        parts: Quantizer | Sequence[Quantizer],
        *,
        depth: int | None = None,
        channel_dim: int = -1,
        estimator: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        parts = checked_parts("Residual", [parts] if isinstance(parts, Quantizer) else parts)
        depth = len(parts) if depth is None else depth
        require_whole("Residual: depth", depth)
        if len(parts) not in (1, depth):
            raise ValueError(
                f"Residual: parts must be one quantizer, or one a stage ({depth}), got {len(parts)}"
            )
        dims = [part.dim for part in parts]
        if len(set(dims)) != 1:
            raise ValueError(f"Residual: parts must have the same channels, got {dims}")
        super().__init__(parts, dims[0], channel_dim=channel_dim)
        self.depth = depth
        self.takes_maps = any(part.takes_maps for part in parts)
        self.estimator = estimator_of_sum("Residual", estimator, parts)

    def decode(self, index: Tensor, *, first: int | None = None) -> Tensor:
        """The sums of codes behind indices [..., depth]; of the `first` stages only where given."""
        if first is None:
            return super().decode(index)
        require_whole("first", first, 1, self.depth)
        self._require_tokens(index)
        return self._sum(self._snapshot(), index[..., :first]).movedim(-1, self.channel_dim)

    def _start_from(self, rows: Tensor) -> None:
        """Each codebook from what the stages before it leave."""
        if len(self.parts) < self.depth:
            raise TypeError(
                "start_from needs a codebook of its own for each stage (shared=False): what one "
                "for all stages has to fit depends on its codes"
            )
        rest = rows.to(common_dtype(rows))
        for part in self.parts:
            part._start_from(rest)
            codes = part._snapshot()
            rest = rest - part._take(codes, part._assign(rest, codes)).to(rest.dtype)

    def _stage(self, number: int) -> int:
        return number if len(self.parts) > 1 else 0

    def _nearest(self, codes: list, tokens: Tensor, number: int) -> Tensor:
        part = self._stage(number)
        return self.parts[part]._take(codes[part], tokens)

    def _assign(self, latents: Tensor, codes: list) -> Tensor:
        rest = latents.to(common_dtype(latents))
        tokens = []
        for number in range(self.depth):
            part = self._stage(number)
            tokens.append(self.parts[part]._assign(rest, codes[part]))
            rest = rest - self._nearest(codes, tokens[-1], number).to(rest.dtype)
        return torch.stack(tokens, dim=-1)

    def _take(self, codes: list, index: Tensor) -> Tensor:
        self._require_tokens(index)
        return self._sum(codes, index)

    def _sum(self, codes: list, index: Tensor) -> Tensor:
        """In float32 or wider, rounded once."""
        total = self._nearest(codes, index[..., 0], 0)
        dtype = total.dtype
        total = total.to(common_dtype(total))
        for number in range(1, index.shape[-1]):
            total = total + self._nearest(codes, index[..., number], number).to(total.dtype)
        return total.to(dtype)

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: list) -> Tensor:
        if self.estimator is not None:
            return estimate(self.estimator, latents, nearest, index, codes)
        rest = latents.to(common_dtype(latents))
        total = 0.0
        for number, tokens in enumerate(index.unbind(-1)):
            part = self._stage(number)
            own = self._nearest(codes, tokens, number).detach().to(rest.dtype)
            quantized = self.parts[part]._estimate(rest, own, tokens, codes[part])
            total, rest = total + quantized, rest - quantized
        return total.to(latents.dtype)

    def _rests(self, latents: Tensor, index: Tensor, codes: list) -> tuple[list, list]:
        """What each stage sees [..., dim], with the latents' gradient, and the code it takes."""
        rest = latents.to(common_dtype(latents))
        rests, taken = [], []
        for number in range(self.depth):
            nearest = self._nearest(codes, index[..., number], number)
            rests.append(rest)
            taken.append(nearest)
            rest = rest - nearest.detach().to(rest.dtype)
        return rests, taken

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: list) -> Tensor:
        rests, taken = self._rests(latents, index, codes)
        stages = list(zip(rests, taken, index.unbind(-1), strict=True))
        return self._per_codebook(lambda part, *each: part._learn(*each), stages, codes)

    def _settle(self, latents: Tensor, index: Tensor, codes: list) -> Tensor:
        rests, _ = self._rests(latents, index, codes)
        stages = list(zip(rests, index.unbind(-1), strict=True))
        return self._per_codebook(lambda part, *each: part._settle(*each), stages, codes)

    def _per_codebook(self, call: Callable, stages: list[tuple], codes: list) -> Tensor:
        """The mean of the stages' losses; one call for all stages of a shared codebook."""
        if len(self.parts) == 1:
            join = torch.cat if stages[0][0].dim() > 1 else torch.stack
            return call(self.parts[0], *map(join, zip(*stages, strict=True)), codes[0])
        losses = [
            call(part, *stage, own)
            for part, stage, own in zip(self.parts, stages, codes, strict=True)
        ]
        return sum(losses) / len(losses)

    def _count(self, index: Tensor, counted: Tensor) -> None:
        for number, tokens in enumerate(index.unbind(-1)):
            self.parts[self._stage(number)]._count(tokens, counted)

    def _whole(self, counted: Tensor) -> Tensor:
        return self.parts[0]._whole(counted) if self.takes_maps else counted

    def _require_tokens(self, index: Tensor) -> None:
        if index.dim() < 1 or index.shape[-1] != self.depth:
            raise ValueError(
                f"Residual: index must have {self.depth} tokens in its last dimension, "
                f"got {list(index.shape)}"
            )
