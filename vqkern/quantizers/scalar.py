"""Quantizers without a codebook: every channel is rounded by itself (FSQ, LFQ, BSQ)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.checks import common_dtype, require_whole
from .base import Quantizer, require_weight
from .buffers import KeepsBufferTypes
from .entropy import bit_entropies
from .estimators import straight_through
from .joint_index import MAX_EXPLICIT_CODES, JointCounter, joint_size, split_index
from .pulls import masked_mse, pulled_through
from .rounding import round_channels, round_index, sign_index, sign_values
from .sphere import on_sphere
from .usage import Usage


class ScalarQuantizer(Quantizer):
    """Base of FSQ, LFQ and BSQ: n_m values a channel, K = n_1 ... n_D codes, none of them stored.

    The index is joint, r = r_1 + sum_m (n_1 ... n_{m-1}) r_m (unifying view eq. 9). `usage()` is
    that of the K codes up to 2^24; above, a list with one Usage a channel. Everything is computed
    in float32 (float64 for float64 latents), whatever autocast says.
    """

    def __init__(self, levels: Sequence[int], *, commitment: float, channel_dim: int) -> None:
        super().__init__(len(levels), channel_dim=channel_dim)
        require_weight("commitment", commitment)
        self.levels = tuple(levels)
        self.commitment = commitment
        self._size = joint_size(type(self).__name__, self.levels)
        self.counter = JointCounter(self.levels)

    @property
    def codebook_size(self) -> int:
        """K, the number of implicit codes."""
        return self._size

    @property
    def factors(self) -> list[int]:
        """The sizes whose product is K: values of each channel."""
        return list(self.levels)

    @property
    def codes(self) -> Tensor:
        """All codes [K, dim], float32.

        Raises:
            ValueError: there are more than 2^24.
        """
        if self._size > MAX_EXPLICIT_CODES:
            raise ValueError(
                f"{type(self).__name__}: codes would be a table of {self._size} rows; it is made "
                f"up to {MAX_EXPLICIT_CODES} (2^24); decode the indices that are needed instead"
            )
        device = self.counter.counters[0].count.device
        return self._take(None, torch.arange(self._size, device=device))

    def usage(self) -> Usage | list[Usage]:
        return self.counter.usage()

    def reset_usage(self) -> None:
        self.counter.reset()

    def fold(self) -> ScalarQuantizer:
        """A copy: there is nothing to fold."""
        return copy.deepcopy(self)

    def _compared(self, latents: Tensor, index: Tensor) -> Tensor:
        """What the commitment compares with the values: the latents as they are rounded, anything
        where the index is -1."""
        return latents.to(common_dtype(latents))

    def _snapshot(self) -> None:
        return None

    def _train(self, latents: Tensor, index: Tensor, codes: None) -> tuple[Tensor, Tensor]:
        nearest, compared = self._take(codes, index), self._compared(latents, index)
        loss = self._spread(compared, index)
        if self.commitment == 0:
            quantized = straight_through(compared, nearest.to(compared.dtype))
            return quantized.to(latents.dtype), loss
        rows = compared.reshape(-1, self.dim), nearest.reshape(-1, self.dim)
        quantized, pull = pulled_through(*rows, index.flatten() >= 0, self.commitment, 0.0)
        return quantized.reshape(latents.shape).to(latents.dtype), loss + pull

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: None) -> Tensor:
        compared = self._compared(latents, index)
        return straight_through(compared, nearest.to(compared.dtype)).to(latents.dtype)

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: None) -> Tensor:
        compared = self._compared(latents, index)
        loss = self._spread(compared, index)
        if self.commitment == 0:
            return loss
        rows = compared.reshape(-1, self.dim), nearest.reshape(-1, self.dim)
        return loss + self.commitment * masked_mse(*rows, index.flatten() >= 0)

    def _settle(self, latents: Tensor, index: Tensor, codes: None) -> Tensor:
        return self._spread(self._compared(latents, index), index)

    def _spread(self, compared: Tensor, index: Tensor) -> Tensor:
        """The loss that spreads latents over the codes."""
        return compared.new_zeros((), dtype=torch.float32)

    def _count(self, index: Tensor, counted: Tensor) -> None:
        self.counter.add(index.flatten(), counted.flatten())


class FSQ(KeepsBufferTypes, ScalarQuantizer):
    """Finite scalar quantization (Mentzer et al. 2024): bounded channels, rounded to L_m values.

    bound(z) = tanh(z + s) h - o, rounded and divided by floor(L / 2); o = 1/2 and s > 0 for an even
    L, 0 for an odd one. The gradient passes the rounding straight through, and the tanh as it is.

    Args:
        levels: L_m of every channel, each at least 2; the number of channels is theirs.
        bound: ``"published"``, h = (L - 1)(1 - 1e-3) / 2 and s = tan(o / h), as in appendix A.1;
            ``"centred"``, h = (L - 1)(1 + 1e-3) / 2 and s = artanh(o / h), which takes z = 0 to
            exactly 0, as later implementations have it.
        commitment: weight of mse(bound(z) / floor(L / 2), sg code); the paper needs none.
        channel_dim: where z has its channels.

    Raises:
        ValueError: a level is not a whole number of at least 2, there is none, or the index does
            not fit in int64.
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        bound: str = "published",
        commitment: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        levels = tuple(levels)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 2 for n in levels)
        if not levels or not whole:
            raise ValueError(f"levels must be whole numbers of at least 2, got {levels}")
        if bound not in ("published", "centred"):
            raise ValueError(f"bound must be 'published' or 'centred', got {bound!r}")
        super().__init__(levels, commitment=commitment, channel_dim=channel_dim)
        self.bound = bound
        # Whole numbers, which .half() leaves alone; half, offset and shift follow from them.
        self.register_buffer("level", torch.tensor(levels), persistent=False)

    def remake_buffers(self) -> None:
        self.level.copy_(torch.tensor(self.levels, device="cpu"))

    def _terms(self, dtype: torch.dtype) -> Tensor:
        """half, offset, shift, half width and last digit of each channel [5, dim]."""
        level = self.level.to(dtype)
        offset = torch.where(self.level % 2 == 0, 0.5, 0.0).to(dtype)
        if self.bound == "published":
            half = (level - 1) * (1 - 1e-3) / 2
            shift = torch.tan(offset / half)
        else:
            half = (level - 1) * (1 + 1e-3) / 2
            shift = torch.atanh(offset / half)
        return torch.stack([half, offset, shift, (self.level // 2).to(dtype), level - 1])

    def _bounded(self, latents: Tensor) -> Tensor:
        half, offset, shift, *_ = self._terms(latents.dtype)
        return torch.tanh(latents + shift) * half - offset

    def _assign(self, latents: Tensor, codes: None) -> Tensor:
        rows = self._rows(latents.detach())
        index = round_index(rows, self._terms(rows.dtype), list(self.levels))
        return index.reshape(latents.shape[:-1])

    def _train(self, latents: Tensor, index: Tensor, codes: None) -> tuple[Tensor, Tensor]:
        if self.commitment > 0:
            return super()._train(latents, index, codes)
        rows = self._rows(latents)
        values = round_channels(rows, self._terms(rows.dtype)).reshape(latents.shape)
        return values.to(latents.dtype), values.new_zeros((), dtype=torch.float32)

    def _rows(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, self.dim).to(common_dtype(latents))

    def _take(self, codes: None, index: Tensor) -> Tensor:
        half_width = (self.level // 2).float()
        values = split_index(index, self.levels).float().sub_(half_width).div_(half_width)
        return values.masked_fill_((index < 0)[..., None], torch.nan)

    def _compared(self, latents: Tensor, index: Tensor) -> Tensor:
        # NaN rows through the tanh would turn a gradient of 0 into NaN.
        wide = latents.to(common_dtype(latents)).masked_fill((index < 0)[..., None], 0)
        return self._bounded(wide) / (self.level // 2)


class BinaryQuantizer(ScalarQuantizer):
    """Base of LFQ and BSQ: a bit a channel, 1 where it is positive, and an entropy loss.

    With q(c | u) = softmax_c(-|u - c|^2 / temperature) over the K = 2^D codes,

        loss = entropy_weight (E H[q] - diversity H[E q]) + commitment mse(u, sg code)

    q is a product over bits: p(bit m = 1) = sigmoid(4 a u_m / temperature), codes being +-a. So
    H[q] is a sum over channels, and E q needs arrays of tokens x sqrt(K) and K, never tokens x K.

    Args:
        dim: channels, and bits of the index.
        entropy_weight, diversity, commitment: as above; the entropies are not computed at weight 0.
        temperature: of q; smaller is closer to the hard assignment.
        joint_bits: H[E q] is exact over blocks of so many neighbouring bits and added up over
            blocks, which is an upper bound; 1 takes bits as independent, dim is exact.
        channel_dim: where z has its channels.

    Raises:
        ValueError: an argument is out of range, or the index does not fit in int64.
    """

    def __init__(
        self,
        dim: int,
        *,
        magnitude: float,
        entropy_weight: float,
        diversity: float,
        commitment: float,
        temperature: float,
        joint_bits: int,
        channel_dim: int,
    ) -> None:
        require_whole("dim", dim)
        super().__init__([2] * dim, commitment=commitment, channel_dim=channel_dim)
        require_weight("entropy_weight", entropy_weight)
        require_weight("diversity", diversity)
        require_weight("temperature", temperature)
        if temperature == 0:
            raise ValueError("temperature must be positive, got 0")
        require_whole("joint_bits", joint_bits, 1, 24)
        self.magnitude = magnitude
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.temperature = temperature
        self.joint_bits = joint_bits

    def _assign(self, latents: Tensor, codes: None) -> Tensor:
        rows = latents.detach().reshape(-1, self.dim).to(common_dtype(latents))
        return sign_index(rows).reshape(latents.shape[:-1])

    def _take(self, codes: None, index: Tensor) -> Tensor:
        return sign_values(index, self.dim, self.magnitude)

    def _spread(self, compared: Tensor, index: Tensor) -> Tensor:
        loss = super()._spread(compared, index)
        if self.entropy_weight == 0:
            return loss
        logits = compared * (4 * self.magnitude / self.temperature)
        own, spread = bit_entropies(
            logits.reshape(-1, self.dim), index.flatten() >= 0, self.joint_bits
        )
        return loss + self.entropy_weight * (own - self.diversity * spread).to(loss.dtype)


class LFQ(BinaryQuantizer):
    """Lookup-free quantization (Yu et al. 2024): codes +-1 a channel, u = z.

    Arguments, loss and errors as in BinaryQuantizer.
    """

    def __init__(
        self,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.25,
        temperature: float = 0.01,
        joint_bits: int = 18,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(
            dim,
            magnitude=1.0,
            entropy_weight=entropy_weight,
            diversity=diversity,
            commitment=commitment,
            temperature=temperature,
            joint_bits=joint_bits,
            channel_dim=channel_dim,
        )


class BSQ(BinaryQuantizer):
    """Binary spherical quantization (Zhao et al. 2025): u = z / |z|, codes +-1 / sqrt(D) a channel.

    The gradient reaches z through its normalisation. Bits count as independent in H[E q], as in the
    paper, unless `joint_bits` says otherwise. Arguments, loss and errors as in BinaryQuantizer.
    """

    def __init__(
        self,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.0,
        temperature: float = 1.0,
        joint_bits: int = 1,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(
            dim,
            magnitude=1.0 / math.sqrt(dim) if isinstance(dim, int) and dim > 0 else 1.0,
            entropy_weight=entropy_weight,
            diversity=diversity,
            commitment=commitment,
            temperature=temperature,
            joint_bits=joint_bits,
            channel_dim=channel_dim,
        )

    def _compared(self, latents: Tensor, index: Tensor) -> Tensor:
        return on_sphere(latents)
