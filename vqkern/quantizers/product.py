"""Channels quantized in parts: a token each (halves, groups) or one joint token (product)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops.checks import require_index, require_whole
from .base import Quantizer, QuantizeResult
from .joint_index import JointCounter, join_index, joint_size, split_index
from .structure import Structured, checked_parts
from .usage import Usage


class ChannelParts(Structured):
    """Base of the structures that give each part its own channels, in order.

    The loss is the mean of the parts' losses: of equally wide parts, the mean over all channels.
    """

    def __init__(self, parts: Sequence[Quantizer], *, channel_dim: int = -1) -> None:
        parts = checked_parts(type(self).__name__, parts)
        super().__init__(parts, sum(part.dim for part in parts), channel_dim=channel_dim)
        self.takes_maps = any(part.takes_maps for part in parts)

    def _per_part(self, call: Callable, latents: Tensor, *others: Sequence) -> list:
        widths = [part.dim for part in self.parts]
        own = latents.split(widths, dim=-1)
        return [call(*each) for each in zip(self.parts, own, *others, strict=True)]

    def _token_lists(self, index: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError

    def _start_from(self, rows: Tensor) -> None:
        self._per_part(lambda part, own: part._start_from(own), rows)

    def _take(self, codes: list, index: Tensor) -> Tensor:
        rows = [
            part._take(own, tokens)
            for part, own, tokens in zip(self.parts, codes, self._token_lists(index), strict=True)
        ]
        return torch.cat(rows, dim=-1)

    def _train(self, latents: Tensor, index: Tensor, codes: list) -> tuple[Tensor, Tensor]:
        each = self._per_part(
            lambda part, *each: part._train(*each), latents, self._token_lists(index), codes
        )
        quantized, losses = zip(*each, strict=True)
        return torch.cat(quantized, dim=-1), sum(losses) / len(losses)

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: list) -> Tensor:
        own = nearest.split([part.dim for part in self.parts], dim=-1)
        quantized = self._per_part(
            lambda part, *each: part._estimate(*each), latents, own, self._token_lists(index), codes
        )
        return torch.cat(quantized, dim=-1)

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: list) -> Tensor:
        own = nearest.split([part.dim for part in self.parts], dim=-1)
        losses = self._per_part(
            lambda part, *each: part._learn(*each), latents, own, self._token_lists(index), codes
        )
        return sum(losses) / len(losses)

    def _settle(self, latents: Tensor, index: Tensor, codes: list) -> Tensor:
        losses = self._per_part(
            lambda part, *each: part._settle(*each), latents, self._token_lists(index), codes
        )
        return sum(losses) / len(losses)


class Groups(ChannelParts):
    """Independent groups of channels, a token and a codebook each (MGVQ eq. 4).

    `index` gets a last axis of G tokens. With nested masking (MGVQ section 3.3) training keeps the
    first m groups of every sample, m drawn from `keep_probabilities`, and sets the channels of the
    others to 0 in `quantized`. Only that: all tokens stay in `index`, and all groups in loss, usage
    and updates, so that the last codebooks learn as fast as the first.

    Args:
        parts: one quantizer a group, in the order of the channels; the groups with the same token
            axes.
        keep_probabilities: P(m) for m = 1 .. G, such as `default_keep_probabilities(G)`; None: no
            nested masking.
        channel_dim: where z has its channels.

    Raises:
        ValueError: the probabilities are not G numbers that add up to 1.
    """

    one_token = False

    def __init__(
        self,
        parts: Sequence[Quantizer],
        *,
        keep_probabilities: Sequence[float] | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(parts, channel_dim=channel_dim)
        if keep_probabilities is not None:
            keep_probabilities = tuple(float(p) for p in keep_probabilities)
            right = len(keep_probabilities) == len(self.parts) and min(keep_probabilities) >= 0
            if not right or not abs(sum(keep_probabilities) - 1) < 1e-6:
                raise ValueError(
                    f"keep_probabilities must be {len(self.parts)} numbers of at least 0 that add "
                    f"up to 1, one a group, got {keep_probabilities}"
                )
        self.keep_probabilities = keep_probabilities

    def forward(
        self, z: Tensor, mask: Tensor | None = None, *, keep: Tensor | int | None = None
    ) -> QuantizeResult:
        """Quantizes z as every quantizer does.

        Args:
            keep: how many groups to keep, int or an integer tensor with one number for every sample
                (dimension 0 of z; a single latent [dim] is one). None draws it in training and
                keeps all in eval mode; who needs to know it draws it with `draw_keep`.
        """
        result = super().forward(z, mask)
        if keep is None and self.training and self.keep_probabilities is not None:
            keep = self.draw_keep(len(z) if z.dim() > 1 else 1, z.device)
        if keep is None:
            return result
        latents = result.quantized.movedim(self.channel_dim, -1)
        kept = self._kept_channels(keep, latents)
        if mask is not None:
            kept = kept | ~mask[..., None]
        quantized = torch.where(kept, latents, 0).movedim(-1, self.channel_dim)
        return result._replace(quantized=quantized)

    def draw_keep(self, samples: int, device: torch.device | str | None = None) -> Tensor:
        """int64 [samples]: the number of groups to keep, drawn from `keep_probabilities`."""
        if self.keep_probabilities is None:
            raise ValueError("draw_keep needs keep_probabilities, this quantizer has None")
        uniform = torch.rand(samples, device=device)
        keep = torch.ones(samples, dtype=torch.int64, device=device)
        reached = 0.0
        for probability in self.keep_probabilities[:-1]:
            reached += probability
            keep = keep + (uniform >= reached)
        return keep

    def decode(self, index: Tensor, *, first: Tensor | int | None = None) -> Tensor:
        """The codes behind indices; from the first groups only, the others 0, where `first` says.

        Args:
            index: [..., G] and the parts' own token axes before it.
            first: as `keep` of `forward`.
        """
        decoded = super().decode(index)
        if first is None:
            return decoded
        latents = decoded.movedim(self.channel_dim, -1)
        kept = self._kept_channels(first, latents)
        return torch.where(kept, latents, 0).movedim(-1, self.channel_dim)

    def _kept_channels(self, keep: Tensor | int, latents: Tensor) -> Tensor:
        """Bool, broadcasting with latents [S, ..., dim]: channels of a sample's first groups."""
        groups = len(self.parts)
        device = latents.device
        group = torch.cat(
            [torch.full((p.dim,), g, device=device) for g, p in enumerate(self.parts)]
        )
        if not isinstance(keep, Tensor):
            require_whole("keep", keep, 0, groups)
            return group < keep
        require_index(type(self).__name__, "keep", keep)
        samples = len(latents) if latents.dim() > 1 else 1
        if keep.shape != (samples,):
            raise ValueError(
                f"keep must have shape [{samples}], a number a sample, got {list(keep.shape)}"
            )
        if latents.dim() == 1:
            return group < keep
        return group < keep.reshape(samples, *[1] * (latents.dim() - 1))

    def _assign(self, latents: Tensor, codes: list) -> Tensor:
        tokens = self._per_part(lambda part, z, own: part._assign(z, own), latents, codes)
        return torch.stack(tokens, dim=-1)

    def _token_lists(self, index: Tensor) -> Sequence[Tensor]:
        if index.dim() < 1 or index.shape[-1] != len(self.parts):
            raise ValueError(
                f"{type(self).__name__}: index must have {len(self.parts)} tokens in its last "
                f"dimension, got {list(index.shape)}"
            )
        return index.unbind(-1)

    def _whole(self, counted: Tensor) -> Tensor:
        return self.parts[0]._whole(counted) if self.takes_maps else counted

    def _count(self, index: Tensor, counted: Tensor) -> None:
        for part, tokens in zip(self.parts, self._token_lists(index), strict=True):
            part._count(tokens, counted)


class Halves(Groups):
    """Two independent halves of the channels, two tokens: the papers' fixed-scale setting.

    Args:
        parts: two quantizers.
        channel_dim: where z has its channels.
    """

    def __init__(self, parts: Sequence[Quantizer], *, channel_dim: int = -1) -> None:
        super().__init__(parts, channel_dim=channel_dim)
        if len(self.parts) != 2:
            raise ValueError(f"Halves: parts must be two quantizers, got {len(self.parts)}")


class Product(ChannelParts):
    """One joint token from two or more parts (VP2; unifying view eqs. 3 to 6).

    r = r_1 + sum_m (n_1 ... n_{m-1}) r_m: K = n_1 ... n_M codes, of which n_1 + ... + n_M are
    stored. `usage()` is that of the joint codes, up to 2^24; above, a list with one Usage a part.

    Args:
        parts: quantizers with one token each, in the order of the channels.
        channel_dim: where z has its channels.

    Raises:
        ValueError: a part has more than one token, or the joint index does not fit in int64.
    """

    def __init__(self, parts: Sequence[Quantizer], *, channel_dim: int = -1) -> None:
        super().__init__(parts, channel_dim=channel_dim)
        for number, part in enumerate(self.parts):
            if not part.one_token:
                raise ValueError(
                    f"Product: parts[{number}] must have one token, {type(part).__name__} has "
                    "several: put the product inside it"
                )
        self.sizes = [part.codebook_size for part in self.parts]
        self._size = joint_size("Product", self.sizes)
        self.counter = JointCounter(self.factors)

    @property
    def codebook_size(self) -> int:
        """K, the number of joint codes."""
        return self._size

    @property
    def factors(self) -> list[int]:
        """The sizes whose product is K, of parts that are products themselves too."""
        return [n for part in self.parts for n in getattr(part, "factors", [part.codebook_size])]

    def _assign(self, latents: Tensor, codes: list) -> Tensor:
        digits = self._per_part(lambda part, z, own: part._assign(z, own), latents, codes)
        return join_index(torch.stack(digits, dim=-1), self.sizes)

    def _token_lists(self, index: Tensor) -> Sequence[Tensor]:
        return split_index(index, self.sizes).unbind(-1)

    def _count(self, index: Tensor, counted: Tensor) -> None:
        self.counter.add(index.flatten(), counted.flatten())

    def usage(self) -> Usage | list[Usage]:
        return self.counter.usage()

    def reset_usage(self) -> None:
        self.counter.reset()


def default_keep_probabilities(groups: int) -> tuple[float, ...]:
    """MGVQ's .1, .1, .1, .7 for four groups; for any number, .3 shared by all m < G."""
    if groups == 1:
        return (1.0,)
    return (*[0.3 / (groups - 1)] * (groups - 1), 0.7)
