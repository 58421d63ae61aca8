"""Multi-scale residual quantization (VAR): feature maps as tokens from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import common_dtype, require_index, require_whole
from .base import Quantizer, require_weight
from .buffers import KeepsBufferTypes
from .estimators import estimate
from .pulls import two_pulls
from .structure import Structured, checked_parts, estimator_of_sum

VAR_PATCH_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class MultiScale(Structured):
    """VAR's tokenizer (Tian et al. 2024): each scale quantizes what the coarser ones left.

    With a map f [H, W], f_hat = 0 and for every patch size p, coarse to fine: the rest f - f_hat is
    averaged to p x p (area), its p^2 vectors are quantized by one codebook, and f_hat += phi(up),
    where `up` brings the codes back to H x W (bicubic) and
    phi(h) = (1 - ratio) h + ratio conv3x3(h). `index` is [B, sum p^2], coarse to fine, row by row,
    and has the part's own token axes after that.

        loss = sum_s w_s (commitment mse(f, sg f_hat_s) + codebook_weight mse(f_hat_s, sg f))
               / sum_s w_s
               + the part's alignment

    which reaches the codes and phi of every scale up to s. The part's own commitment and codebook
    weights are not used; its alignment and its update rule see the features of all scales at once.
    A map is quantized as a whole: one position that is not finite, or masked, leaves it out.

    Args:
        part: the quantizer that all scales share, of [B, p^2, dim].
        patch_sizes: p of every scale, increasing; the last is H = W.
        convolutions: how many phi: 1 shared by all scales, one for each, or a number between, of
            which a scale takes the nearest in depth; None: 4, as released, or one a scale where
            there are fewer scales.
        ratio: of the convolution in phi.
        commitment, codebook_weight: as above.
        scale_weights: w_s, one a scale; None: all 1.
        channel_dim: where z [B, H, W, dim] or [B, dim, H, W] has its channels.
        estimator: (z, nearest) -> quantized, for f_hat; None takes the part's. One that needs the
            codes (`IndexBackprop`) works scale by scale, and the rest reaches the next scale with
            its gradient.

    Raises:
        ValueError: an argument is out of range, or the part quantizes maps itself.
    """

    one_token = False
    takes_maps = True

    def __init__(
        self,
        part: Quantizer,
        *,
        patch_sizes: Sequence[int] = VAR_PATCH_SIZES,
        convolutions: int | None = None,
        ratio: float = 0.5,
        commitment: float = 0.25,
        codebook_weight: float = 1.0,
        scale_weights: Sequence[float] | None = None,
        channel_dim: int = -1,
        estimator: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        checked_parts("MultiScale", [part])
        super().__init__([part], part.dim, channel_dim=channel_dim)
        self.patch_sizes = _checked_sizes(patch_sizes)
        scales = len(self.patch_sizes)
        if part.takes_maps:
            raise ValueError(f"MultiScale: part must not take maps, {type(part).__name__} does")
        if convolutions is None:
            convolutions = min(4, scales)
        if isinstance(convolutions, bool) or convolutions not in range(1, scales + 1):
            raise ValueError(
                f"convolutions must be from 1 to the number of scales, {scales}, "
                f"got {convolutions!r}"
            )
        if not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be in [0, 1], got {ratio!r}")
        require_weight("commitment", commitment)
        require_weight("codebook_weight", codebook_weight)
        weights = (1.0,) * scales if scale_weights is None else tuple(scale_weights)
        for weight in weights:
            require_weight("scale_weights", weight)
        if len(weights) != scales or sum(weights) == 0:
            raise ValueError(
                f"scale_weights must be {scales} numbers, one a scale, not all 0, got {weights}"
            )
        self.ratio = ratio
        self.commitment = commitment
        self.codebook_weight = codebook_weight
        self.scale_weights = weights
        self.estimator = estimator_of_sum("MultiScale", estimator, [part])
        self.phi = nn.ModuleList(
            nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in range(convolutions)
        )
        self.phi_of_scale = [nearest_phi(s, scales, convolutions) for s in range(scales)]
        self.resample = _Resample(self.patch_sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens of a map, sum p^2."""
        return sum(p * p for p in self.patch_sizes)

    def decode(self, index: Tensor, *, first: int | None = None) -> Tensor:
        """The maps behind indices; after the `first` scales only where given.

        Args:
            index: [B, sum p^2]; a map with a token of -1 is NaN throughout.
        """
        require_index("MultiScale", "index", index)
        scales = len(self.patch_sizes)
        if first is None:
            first = scales
        require_whole("first", first, 1, scales)
        maps = self._sum(self._snapshot(), index, first)
        return maps.movedim(-1, self.channel_dim)

    def next_scale_inputs(self, index: Tensor) -> Tensor:
        """What an autoregressive model over scales is fed in training (teacher forcing).

        Args:
            index: [B, sum p^2] of whole maps.

        Returns:
            [B, sum p^2 - p_0^2, dim]: for every scale after the first, f_hat of the scales before
            it, averaged to that scale's p x p; channels last.
        """
        require_index("MultiScale", "index", index)
        scales = len(self.patch_sizes)
        complete = self._complete(index)
        f_hats = accumulate(self._contributions(self._snapshot(), index, scales))
        inputs = [
            self._down(torch.where(complete, f_hat, torch.nan), scale).flatten(1, 2)
            for scale, f_hat in enumerate(f_hats, start=1)
            if scale < scales
        ]
        none = torch.empty(len(index), 0, self.dim, device=index.device)
        return torch.cat(inputs, 1) if inputs else none

    def add_scale(
        self, f_hat: Tensor | None, scale: int, index: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """One step of generation: adds the tokens of a scale to the map.

        Args:
            f_hat: the map so far [B, H, W, dim], channels last; None before the first scale.
            scale: number of the scale, from 0.
            index: its tokens [B, p^2].

        Returns:
            The new map, and the model's next input [B, p'^2, dim], None after the last scale.
        """
        scales = len(self.patch_sizes)
        if isinstance(scale, bool) or scale not in range(scales):
            raise ValueError(f"scale must be from 0 to {scales - 1}, got {scale!r}")
        require_index("MultiScale", "index", index)
        side = self.patch_sizes[scale]
        if index.dim() < 2 or index.shape[1] != side * side:
            raise ValueError(
                f"MultiScale: index of scale {scale} must be [B, {side * side}], "
                f"got {list(index.shape)}"
            )
        h = self._contribution(self.parts[0]._take(self._snapshot()[0], index), scale)
        f_hat = h if f_hat is None else f_hat + h
        if scale + 1 == scales:
            return f_hat, None
        return f_hat, self._down(f_hat, scale + 1).flatten(1, 2)

    # Maps are [B, H, W, dim] here; everything is computed in float32, float64 for float64 input.

    def _to_latents(self, z: Tensor) -> Tensor:
        latents = super()._to_latents(z)
        self._require_maps(latents)
        return latents

    def _require_maps(self, latents: Tensor) -> None:
        side = self.patch_sizes[-1]
        if latents.dim() != 4 or latents.shape[1:3] != (side, side):
            raise ValueError(
                f"MultiScale: z must hold maps of {side} x {side}, the last of patch_sizes, with "
                f"{self.dim} channels at dimension {self.channel_dim}; channels last its shape is "
                f"{list(latents.shape)}"
            )

    def _whole(self, counted: Tensor) -> Tensor:
        return counted.flatten(1).all(1)[:, None, None].expand(counted.shape)

    def _assign(self, latents: Tensor, codes: list) -> Tensor:
        self._require_maps(latents)
        rest = latents.detach().to(common_dtype(latents))
        whole = (rest - rest == 0).flatten(1).all(1)
        rest = torch.where(whole[:, None, None, None], rest, torch.nan)
        tokens = []
        for scale in range(len(self.patch_sizes)):
            feature = self._down(rest, scale).flatten(1, 2)
            tokens.append(self.parts[0]._assign(feature, codes[0]))
            nearest = self.parts[0]._take(codes[0], tokens[-1]).detach()
            rest = rest - self._contribution(nearest, scale).to(rest.dtype)
        return torch.cat(tokens, dim=1)

    def _take(self, codes: list, index: Tensor) -> Tensor:
        return self._sum(codes, index, len(self.patch_sizes))

    def _sum(self, codes: list, index: Tensor, scales: int) -> Tensor:
        """f_hat after the first scales, NaN in maps that miss a token."""
        *_, f_hat = accumulate(self._contributions(codes, index, scales))
        return torch.where(self._complete(index), f_hat, torch.nan)

    def _contributions(self, codes: list, index: Tensor, scales: int) -> list[Tensor]:
        """What each of the first scales adds to f_hat; finite in maps that miss a token, too."""
        complete = self._complete(index)[..., 0]
        each = enumerate(self._per_scale(index)[:scales])
        taken = ((self.parts[0]._take(codes[0], tokens), scale) for scale, tokens in each)
        # Zeros, not NaN, go through phi: a gradient of 0 times NaN would be NaN.
        return [self._contribution(torch.where(complete, t, 0), scale) for t, scale in taken]

    def _complete(self, index: Tensor) -> Tensor:
        """Bool [B, 1, 1, 1]: whether a map has all its tokens."""
        return (index.flatten(1) >= 0).all(1)[:, None, None, None]

    def _per_scale(self, index: Tensor) -> list[Tensor]:
        if index.dim() < 2 or index.shape[1] != self.num_tokens:
            raise ValueError(
                f"MultiScale: index must be [B, {self.num_tokens}], got {list(index.shape)}"
            )
        return list(index.split([p * p for p in self.patch_sizes], dim=1))

    def _contribution(self, nearest: Tensor, scale: int) -> Tensor:
        """phi(up(codes [B, p^2, dim])): [B, H, W, dim]."""
        side = self.patch_sizes[scale]
        wide = nearest.to(common_dtype(nearest)).reshape(-1, side, side, self.dim)
        with torch.autocast(nearest.device.type, enabled=False):
            h = self.resample(wide, scale, "up").movedim(-1, 1)
            phi = self.phi[self.phi_of_scale[scale]]
            convolved = F.conv2d(h, phi.weight.to(h.dtype), phi.bias.to(h.dtype), padding=1)
            return ((1 - self.ratio) * h + self.ratio * convolved).movedim(1, -1)

    def _down(self, maps: Tensor, scale: int) -> Tensor:
        if scale == self.resample.last:
            return maps
        with torch.autocast(maps.device.type, enabled=False):
            return self.resample(maps, scale, "down")

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: list) -> Tensor:
        if self.estimator is not None:
            return estimate(self.estimator, latents, nearest, index, codes)
        part = self.parts[0]
        complete = self._complete(index)
        # Zeros, not NaN, go through phi: a gradient of 0 times NaN would be NaN.
        rest = torch.where(complete, latents, 0).to(common_dtype(latents))
        f_hat = torch.zeros_like(rest)
        for scale, tokens in enumerate(self._per_scale(index)):
            feature = self._down(rest, scale).flatten(1, 2)
            own = part._take(codes[0], tokens).detach().to(rest.dtype)
            quantized = part._estimate(feature, own, tokens, codes[0])
            quantized = torch.where(complete[..., 0], quantized, 0)
            h = self._contribution(quantized, scale).to(rest.dtype)
            f_hat, rest = f_hat + h, rest - h
        return torch.where(complete, f_hat, torch.nan).to(latents.dtype)

    def _train(self, latents: Tensor, index: Tensor, codes: list) -> tuple[Tensor, Tensor]:
        added = self._contributions(codes, index, len(self.patch_sizes))
        *_, f_hat = accumulate(h.detach() for h in added)
        nearest = torch.where(self._complete(index), f_hat, torch.nan).to(latents.dtype)
        quantized = self._estimate(latents, nearest, index, codes)
        return quantized, self._pull(latents, index, codes, added)

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: list) -> Tensor:
        added = self._contributions(codes, index, len(self.patch_sizes))
        return self._pull(latents, index, codes, added)

    def _pull(self, latents: Tensor, index: Tensor, codes: list, added: list[Tensor]) -> Tensor:
        """`_learn`, given what each scale adds to f_hat."""
        rows = latents.reshape(-1, self.dim)
        valid = self._complete(index)[..., 0].expand(latents.shape[:-1]).flatten()
        loss = rows.new_zeros((), dtype=torch.float32)
        for weight, f_hat in zip(self.scale_weights, accumulate(added), strict=True):
            weights = self.commitment, self.codebook_weight
            loss = loss + weight * two_pulls(rows, f_hat.reshape(-1, self.dim), valid, *weights)
        return loss / sum(self.scale_weights) + self._settle(latents, index, codes, added)

    def _settle(
        self, latents: Tensor, index: Tensor, codes: list, added: list[Tensor] | None = None
    ) -> Tensor:
        with torch.no_grad():
            if added is None:
                added = self._contributions(codes, index, len(self.patch_sizes))
            complete = self._complete(index)
            rest = torch.where(complete, latents.to(common_dtype(latents)), torch.nan)
            features = []
            for scale, h in enumerate(added):
                features.append(self._down(rest, scale).flatten(1, 2))
                rest = rest - h.to(rest.dtype)
            # A map that misses one token takes part with none.
            tokens = torch.where(complete.reshape(-1, *[1] * (index.dim() - 1)), index, -1)
        return self.parts[0]._settle(torch.cat(features, 1), tokens, codes[0])

    def _count(self, index: Tensor, counted: Tensor) -> None:
        per_token = counted[:, :1, 0].expand(-1, self.num_tokens)
        self.parts[0]._count(index, per_token)


class _Resample(KeepsBufferTypes):
    """Area down and bicubic up as products with fixed matrices: deterministic backward on GPUs."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.last = len(sizes) - 1  # of full size
        for name, matrix in self._matrices():
            self.register_buffer(name, matrix, persistent=False)

    def _matrices(self, device: torch.device | None = None) -> Iterator[tuple[str, Tensor]]:
        full = self.sizes[-1]
        for scale, size in enumerate(self.sizes):
            for way, source, target, mode in (
                ("down", full, size, "area"),
                ("up", size, full, "bicubic"),
            ):
                columns = torch.eye(source, dtype=torch.float64, device=device)[None, :, :, None]
                matrix = F.interpolate(columns, size=(target, 1), mode=mode)[0, :, :, 0].T
                yield f"{way}_{scale}", matrix.contiguous()

    def remake_buffers(self) -> None:
        for name, matrix in self._matrices(torch.device("cpu")):
            self.get_buffer(name).copy_(matrix)

    def forward(self, maps: Tensor, scale: int, way: str) -> Tensor:
        """maps [B, h, w, dim] brought to (down) or from (up) the scale's size."""
        if scale == self.last:
            return maps
        matrix = self.get_buffer(f"{way}_{scale}").to(maps.dtype)
        return torch.einsum("ih,jw,bhwd->bijd", matrix, matrix, maps)


def _checked_sizes(patch_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(patch_sizes)
    whole = all(isinstance(p, int) and not isinstance(p, bool) and p >= 1 for p in sizes)
    if not sizes or not whole or list(sizes) != sorted(set(sizes)):
        raise ValueError(
            f"patch_sizes must be increasing whole numbers of at least 1, got {patch_sizes!r}"
        )
    return sizes


def nearest_phi(scale: int, scales: int, convolutions: int) -> int:
    """Which of the convolutions a scale takes: the one whose place in [0, 1] is nearest to its own.

    The places are evenly spaced and begin at 1 / 2n, at 1 / 3n for n = 4. Two scales of the
    released tokenizer lie half-way between places, so the order of the float64 operations decides:
    it is that of numpy's linspace and argmin, as released.
    """
    margin = (1 / 3 if convolutions == 4 else 1 / 2) / convolutions
    step = (1 - margin - margin) / max(convolutions - 1, 1)
    places = [number * step + margin for number in range(convolutions)]
    if convolutions > 1:
        places[-1] = 1 - margin
    at = scale / (scales - 1) if scales > 1 else 0.0
    return min(range(convolutions), key=lambda number: abs(places[number] - at))
