"""What every quantizer is: its result, its public methods, and those by which quantizers nest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from ..ops.checks import require_float, require_index, require_whole
from .estimators import Estimator, straight_through
from .usage import Usage


class QuantizeResult(NamedTuple):
    """`quantized` like z, `index` int64 without z's channels, `loss` scalar (0 in eval mode)."""

    quantized: Tensor
    index: Tensor
    loss: Tensor


# What an exported program gives must have a name that it can be saved under.
_register_namedtuple(QuantizeResult, serialized_type_name="vqkern.QuantizeResult")


class Quantizer(nn.Module):
    """Base of all quantizers, alone and as parts of others.

    A quantizer is what it does to latents [..., dim], channels last; `forward`, `encode` and
    `decode` follow from that, and so does what structures do with it. An index is [..., *tokens],
    where `tokens` are the token axes that the quantizer itself adds. A snapshot of the codes is
    taken once a call, so that a projector runs once however often its codes are searched.

        _snapshot() -> codes                 what the other methods take
        _assign(latents, codes) -> index     the search; -1 where not finite
        _take(codes, index) -> nearest       differentiable in the codes; NaN at -1
        _estimators() -> list                the gradient estimators inside
        _estimate(latents, nearest, index, codes) -> quantized
                                             the gradient's way to the latents
        _learn(latents, nearest, index, codes) -> loss
                                             a training step: losses and updates
        _settle(latents, index, codes) -> loss
                                             the same without the two pulls between latents and
                                             codes: alignment and updates
        _train(latents, index, codes) -> quantized, loss
                                             _take, _estimate and _learn
        _count(index, counted)               usage
        _start_from(rows)                    codes from data

    Rows that are masked come as NaN, so that one rule covers both: index -1 takes part in nothing.

    Args:
        dim: channels of z.
        channel_dim: where z has them; -1 for token sequences, 1 for feature maps.
    """

    # How `build_quantizer` can build this quantizer again; None if it was composed by hand.
    config: dict | None = None
    # For structures: whether it can be a part, whether an index has no token axis, and whether z
    # must be [B, H, W, dim].
    nests = True
    one_token = True
    takes_maps = False

    def __init__(self, dim: int, *, channel_dim: int = -1) -> None:
        super().__init__()
        require_whole(f"{type(self).__name__}: dim", dim)
        if not isinstance(channel_dim, int) or isinstance(channel_dim, bool):
            raise ValueError(f"channel_dim must be a whole number, got {channel_dim!r}")
        self.dim = dim
        self.channel_dim = channel_dim

    @property
    def in_channels(self) -> int:
        """Channels of z: `dim`, or more where a latent is described by more than its place."""
        return self.dim

    @property
    def codebook_size(self) -> int:
        """Codes of a token; of the largest if tokens differ."""
        raise NotImplementedError

    @property
    def codes(self) -> Tensor | list:
        """The effective codes [K, dim]; of a structure, a list with those of each part."""
        raise NotImplementedError

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizeResult:
        """Quantizes z.

        Args:
            z: latents with `in_channels` channels at `channel_dim`, floating point.
            mask: bool, z's shape without channels; False marks positions to leave alone: they get
                index -1, pass z through and count nowhere.

        Returns:
            QuantizeResult. In training mode the gradient reaches z by the straight-through
            estimator and `loss` is the weighted total; in eval mode `quantized` holds the codes
            themselves and `loss` is 0. A non-finite position gets index -1 and NaN, and is left out
            of loss, usage and updates.

        Raises:
            TypeError, ValueError: z or mask has the wrong type, shape or device.
        """
        latents = self._to_latents(z)
        usable, counted = self._masked(latents, mask)
        quantized, index, loss = self._quantize(usable, counted)
        if mask is not None:
            quantized = torch.where(counted[..., None], quantized, latents[..., : self.dim])
        return QuantizeResult(quantized.movedim(-1, self.channel_dim), index, loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices of z, the ones that `forward` gives in eval mode; usage does not count them."""
        return self._assign(self._to_latents(z)[..., : self.dim], self._snapshot())

    def decode(self, index: Tensor, *, first: Any = None) -> Tensor:
        """The codes behind indices, channels at `channel_dim`; index -1 gives NaN.

        Args:
            index: as `forward` gives it.
            first: how many groups, stages or scales to decode, of a quantizer that has them.

        Raises:
            TypeError: `index` is not an integer tensor.
            IndexError: an index is not that of a code.
            ValueError: `first` is given and there is nothing of which it could be.
        """
        name = type(self).__name__
        if first is not None:
            raise ValueError(
                f"first: {name} has no groups, stages or scales of which the first could be "
                "decoded alone"
            )
        require_index(name, "index", index)
        return self._take(self._snapshot(), index).movedim(-1, self.channel_dim)

    def usage(self) -> Usage | list:
        """Usage of the codes in all forward passes since the last reset; a list if there are
        several codebooks."""
        raise NotImplementedError

    def reset_usage(self) -> None:
        """Starts counting usage anew."""
        raise NotImplementedError

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        """Starts the codes from data: k-means of the latents z, of all ranks together.

        Args:
            z: latents as `forward` takes them; more finite ones than codes.

        Raises:
            TypeError: the codes are not free tables, which alone can take any values.
            ValueError: fewer finite latents than codes.
        """
        latents = self._channels_last(z)[..., : self.dim]
        self._start_from(latents.reshape(-1, self.dim))

    def load_codes(self, codes: Tensor | list) -> None:
        """Overwrites the codes with what `codes` may give.

        Raises:
            TypeError: they are not free tables, which alone can take any values.
            ValueError: wrong shape, or a value is not finite.
        """
        raise TypeError(f"load_codes needs free tables of codes, {type(self).__name__} has none")

    def fold(self) -> Quantizer:
        """A quantizer with the same indices and outputs, its codes in plain tables, and nothing
        that moves them."""
        raise NotImplementedError

    def _start_from(self, rows: Tensor) -> None:
        raise TypeError(
            f"start_from needs free tables of codes, {type(self).__name__} cannot start from data"
        )

    def _to_latents(self, z: Tensor) -> Tensor:
        """z [..., in_channels], contiguous: what follows reads it more than once."""
        return self._channels_last(z).contiguous()

    def _channels_last(self, z: Tensor) -> Tensor:
        name = type(self).__name__
        require_float(name, "z", z)
        axis, channels = self.channel_dim, self.in_channels
        if not -z.dim() <= axis < z.dim() or z.shape[axis] != channels:
            raise ValueError(
                f"{name}: z must have {channels} channels at dimension {axis}, got {list(z.shape)}"
            )
        return z.movedim(axis, -1)

    def _masked(self, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents with NaN where they are masked, and bool [...]: what counts."""
        positions = latents.shape[:-1]
        if mask is None:
            return latents, torch.ones(positions, dtype=torch.bool, device=latents.device)
        counted = self._whole(self._checked_mask(mask, positions, latents.device))
        return latents.masked_fill(~counted[..., None], torch.nan), counted

    def _quantize(self, latents: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized latents [..., dim], index and loss of latents [..., in_channels]."""
        codes = self._snapshot()
        with torch.no_grad():
            index = self._assign(latents, codes)
        self._count(index, counted)
        if self.training:
            quantized, loss = self._train(latents, index, codes)
            return quantized, index, loss
        quantized = self._take(codes, index).detach().to(latents.dtype)
        return quantized, index, latents.new_zeros((), dtype=torch.float32)

    def _train(self, latents: Tensor, index: Tensor, codes) -> tuple[Tensor, Tensor]:
        nearest = self._take(codes, index)
        # Before the update, which may overwrite the codes.
        quantized = self._estimate(latents, nearest.detach().to(latents.dtype), index, codes)
        return quantized, self._learn(latents, nearest, index, codes)

    def _whole(self, counted: Tensor) -> Tensor:
        """`counted` [...] where what is quantized as one is counted as one."""
        return counted

    def _checked_mask(self, mask: Tensor, positions: torch.Size, device: torch.device) -> Tensor:
        name = type(self).__name__
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}: mask must be a bool tensor, got {got}")
        if mask.shape != positions or mask.device != device:
            raise ValueError(
                f"{name}: mask must have shape {list(positions)} on {device}, "
                f"got {list(mask.shape)} on {mask.device}"
            )
        return mask

    def _snapshot(self) -> Any:
        raise NotImplementedError

    def _assign(self, latents: Tensor, codes) -> Tensor:
        raise NotImplementedError

    def _take(self, codes, index: Tensor) -> Tensor:
        raise NotImplementedError

    def _estimators(self) -> list[Estimator]:
        return []

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes) -> Tensor:
        return straight_through(latents, nearest)

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes) -> Tensor:
        raise NotImplementedError

    def _settle(self, latents: Tensor, index: Tensor, codes) -> Tensor:
        raise NotImplementedError

    def _count(self, index: Tensor, counted: Tensor) -> None:
        raise NotImplementedError


def require_weight(name: str, value: float) -> None:
    """A weight must be a finite number of at least 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
