"""What every quantizer shares: its result, usage statistics, layout and public methods."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..distributed import number_of_ranks, sum_over_ranks
from ..ops.checks import require_float
from ..ops.direct import undifferentiated
from ..ops.rows import count_codes


class QuantizeResult(NamedTuple):
    """`quantized` like z, `index` int64 without z's channels, `loss` scalar (0 in eval mode)."""

    quantized: Tensor
    index: Tensor
    loss: Tensor


class Usage(NamedTuple):
    """Code usage since the last reset.

    tokens: tokens counted. codes_hit: codes chosen at least once. utilization: codes_hit / K.
    perplexity: exp of the entropy of the code frequencies, 1 to K. dead_codes: K - codes_hit.
    skipped: tokens left out because they were not finite.
    """

    tokens: int
    codes_hit: int
    utilization: float
    perplexity: float
    dead_codes: int
    skipped: int


_count_codes_op = torch.library.custom_op(
    "vqkern::count_codes", count_codes, mutates_args=("hits", "skipped")
)
_count_codes = undifferentiated(count_codes, _count_codes_op)


@_count_codes_op.register_fake
def _(index: Tensor, counted: Tensor, hits: Tensor, skipped: Tensor) -> None:
    return None


@_count_codes_op.register_vmap
def _(info, in_dims, index, counted, hits, skipped):
    """All of a batch count together."""
    if in_dims[2] is not None or in_dims[3] is not None:
        raise NotImplementedError("count_codes: vmap over the counts themselves is not there")
    each = (index, in_dims[0]), (counted, in_dims[1])
    index, counted = (
        t.expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0) for t, at in each
    )
    return _count_codes_op(index.reshape(-1), counted.reshape(-1), hits, skipped), None


def runs_again() -> bool:
    """Whether this forward pass runs inside of a backward pass, as activation checkpointing repeats
    it there."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class UsageCounter(nn.Module):
    """Counts how often each of `num_codes` codes is chosen, without synchronising with the host.

    In training mode the tokens of all ranks count, on each of them; in eval mode, which need not
    run on all, those of this rank. What activation checkpointing runs again counts once.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_codes, dtype=torch.int64), persistent=False)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)

    def _apply(self, fn, recurse=True):
        """Counts stay int64 where `Module.type` casts a whole model."""
        super()._apply(fn, recurse)
        self.count, self.skipped = self.count.long(), self.skipped.long()
        return self

    @torch.no_grad()
    def add(self, index: Tensor, counted: Tensor) -> None:
        """Counts index [N] where `counted` [N]; an index of -1 there is a skipped token."""
        if runs_again():
            return
        if not self.training or number_of_ranks() == 1:
            _count_codes(index, counted, self.count, self.skipped)
            return
        hits, skipped = torch.zeros_like(self.count), torch.zeros_like(self.skipped)
        _count_codes(index, counted, hits, skipped)
        sum_over_ranks(hits)
        sum_over_ranks(skipped)
        self.count += hits
        self.skipped += skipped

    def reset(self) -> None:
        self.count.zero_()
        self.skipped.zero_()

    def usage(self) -> Usage:
        counts = self.count.double()
        tokens = counts.sum()
        frequency = counts[counts > 0] / tokens
        hit = len(frequency)
        entropy = float(-(frequency * frequency.log()).sum()) if hit else 0.0
        return Usage(
            tokens=int(tokens),
            codes_hit=hit,
            utilization=hit / len(counts),
            perplexity=float(torch.tensor(entropy).exp()) if hit else 0.0,
            dead_codes=len(counts) - hit,
            skipped=int(self.skipped),
        )


class Quantizer(nn.Module):
    """Base of all quantizers: z of any layout is brought to rows [N, dim], quantized, brought back.

    Args:
        dim: channels of z.
        channel_dim: where z has them; -1 for token sequences, 1 for feature maps.
    """

    # How `build_quantizer` can build this quantizer again; None if it was composed by hand.
    config: dict | None = None
    # For structures: whether an index has no token axis, and whether z must be [B, H, W, dim].
    one_token = True
    takes_maps = False

    def __init__(self, dim: int, *, channel_dim: int = -1) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"{type(self).__name__}: dim must be at least 1, got {dim}")
        if not isinstance(channel_dim, int) or isinstance(channel_dim, bool):
            raise ValueError(f"channel_dim must be a whole number, got {channel_dim!r}")
        self.dim = dim
        self.channel_dim = channel_dim

    @property
    def in_channels(self) -> int:
        """Channels of z: `dim`, or more where a latent is described by more than its place."""
        return self.dim

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
        rows, shape = self._to_rows(z)
        counted = self._checked_mask(mask, shape, z.device)
        quantized, index, loss = self._quantize(rows, counted)
        if mask is not None:
            quantized = torch.where(counted[:, None], quantized, rows[:, : self.dim])
        return QuantizeResult(self._from_rows(quantized, shape), index.reshape(shape), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices of z, the ones that `forward` gives in eval mode; usage does not count them."""
        rows, shape = self._to_rows(z)
        return self._search(rows).reshape(shape)

    def decode(self, index: Tensor) -> Tensor:
        """The codes behind indices, channels at `channel_dim`; index -1 gives NaN.

        Raises:
            TypeError: `index` is not an integer tensor.
            IndexError: an index is not that of a code.
        """
        raise NotImplementedError

    @property
    def codes(self) -> Tensor:
        """The effective codes [K, dim]."""
        raise NotImplementedError

    def usage(self) -> Usage:
        """Usage of the codes in all forward passes since the last reset."""
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
        self._start_from(self._to_rows(z)[0])

    def _start_from(self, rows: Tensor) -> None:
        raise TypeError(
            f"start_from needs free tables of codes, {type(self).__name__} cannot start from data"
        )

    def _quantize(self, rows: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def _search(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _to_rows(self, z: Tensor) -> tuple[Tensor, torch.Size]:
        name = type(self).__name__
        require_float(name, "z", z)
        axis = self.channel_dim
        channels = self.in_channels
        if not -z.dim() <= axis < z.dim() or z.shape[axis] != channels:
            raise ValueError(
                f"{name}: z must have {channels} channels at dimension {axis}, got {list(z.shape)}"
            )
        last = z.movedim(axis, -1)
        return last.reshape(-1, channels), last.shape[:-1]

    def _from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        return rows.reshape(*shape, self.dim).movedim(-1, self.channel_dim)

    def _checked_mask(self, mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
        if mask is None:
            return torch.ones(shape.numel(), dtype=torch.bool, device=device)
        name = type(self).__name__
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}: mask must be a bool tensor, got {got}")
        if mask.shape != shape or mask.device != device:
            raise ValueError(
                f"{name}: mask must have shape {list(shape)} on {device}, "
                f"got {list(mask.shape)} on {mask.device}"
            )
        return mask.reshape(-1)


def require_weight(name: str, value: float) -> None:
    """A weight must be a finite number of at least 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
