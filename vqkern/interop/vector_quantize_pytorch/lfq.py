"""LFQ, with the constructor, results and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.checks import common_dtype, require_float, require_index
from ...quantizers.base import require_weight
from ...quantizers.entropy import bit_entropies
from ..terms import mse
from .fsq import keep_dim
from .options import require_numbers

# Inside the logarithm of the batch entropy that library counts smaller probabilities as this.
FLOOR = 1e-5


class Return(NamedTuple):
    """The result of a forward pass."""

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LossBreakdown(NamedTuple):
    """The unweighted terms of the loss."""

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


class LFQ(nn.Module):
    """Lookup-free quantization (Yu et al. 2024); with `spherical`, BSQ's codes.

    The arguments are those of vector-quantize-pytorch's class of this name. The entropies are those
    of its softmax over all K = 2^D codes, computed bit by bit (per sample) and in one array of K
    (batch): memory for N sqrt(K) + K, never N x K. The entropy per sample is exact; there, that
    library counts probabilities below 1e-5 as 1e-5, which lowers it by at most K 1e-5 / e nats.

    Raises:
        ValueError: an option is not supported or out of range.
    """

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: float | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        for option, value, only in (
            ("cosine_sim_project_in", cosine_sim_project_in, False),
            ("force_quantization_f32", force_quantization_f32, True),
        ):
            if value != only:
                raise ValueError(f"LFQ: {option} must be {only} here, got {value!r}")
        if dim is None and codebook_size is None:
            raise ValueError("LFQ: dim or codebook_size must be given")
        require_numbers("LFQ", num_codebooks=num_codebooks)
        if codebook_size is None:
            require_numbers("LFQ", dim=dim)
            codebook_size = 2**dim
        require_numbers("LFQ", codebook_size=codebook_size)
        bits = codebook_size.bit_length() - 1
        if codebook_size != 1 << bits or not 1 <= bits <= 62:
            raise ValueError(
                f"LFQ: codebook_size must be a power of 2 up to 2^62, got {codebook_size}"
            )
        require_weight("entropy_loss_weight", entropy_loss_weight)
        require_weight("commitment_loss_weight", commitment_loss_weight)
        if not 0 < frac_per_sample_entropy <= 1:
            raise ValueError(
                f"LFQ: frac_per_sample_entropy must be in (0, 1], got {frac_per_sample_entropy!r}"
            )
        if soft_clamp_input_value is not None and soft_clamp_input_value < codebook_scale:
            raise ValueError(
                "LFQ: soft_clamp_input_value must be at least codebook_scale, "
                f"{codebook_scale}, got {soft_clamp_input_value!r}"
            )
        self.codebook_size, self.codebook_dim, self.num_codebooks = (
            codebook_size,
            bits,
            num_codebooks,
        )
        inner = bits * num_codebooks
        self.dim = inner if dim is None else dim
        require_numbers("LFQ", dim=self.dim)
        self.has_projections = self.dim != inner if has_projections is None else has_projections
        if not self.has_projections and self.dim != inner:
            raise ValueError(
                f"LFQ: has_projections=False needs dim={inner}, the bits of the codes, got {dim}"
            )
        self.project_in = self.project_out = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(self.dim, inner, bias=projection_has_bias)
            self.project_out = nn.Linear(inner, self.dim, bias=projection_has_bias)
        self.keep_num_codebooks_dim = keep_dim("LFQ", num_codebooks, keep_num_codebooks_dim)
        self.activation = straight_through_activation or nn.Identity()
        self.channel_first, self.spherical = channel_first, spherical
        self.codebook_scale = codebook_scale
        self.entropy_loss_weight, self.diversity_gamma = entropy_loss_weight, diversity_gamma
        self.commitment_loss_weight = commitment_loss_weight
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.soft_clamp_input_value = soft_clamp_input_value
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.entropy_loss_offset = entropy_loss_offset
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(bits, bits)))
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))

    @property
    def codebook(self) -> Tensor:
        """All codes [K, D], before they are brought to the sphere.

        Raises:
            ValueError: there are more than 2^24.
        """
        if self.codebook_dim > 24:
            raise ValueError(
                f"LFQ: codebook would have 2^{self.codebook_dim} rows; it is made up to 2^24"
            )
        every = torch.arange(self.codebook_size, device=self.mask.device)
        return self.bits_to_codes(((every[:, None] & self.mask) != 0).float())

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """0 and 1 to -codebook_scale and codebook_scale."""
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """What `forward` gives for these indices in eval mode; index -1 gives NaN."""
        require_index("LFQ", "indices", indices)
        if bool((indices >= self.codebook_size).any()) or bool((indices < -1).any()):
            raise IndexError(f"LFQ: indices must be in [0, {self.codebook_size}), or -1")
        first = indices.dim() >= 3 + self.keep_num_codebooks_dim
        first = first if self.channel_first is None else self.channel_first
        indices = indices if self.keep_num_codebooks_dim else indices[..., None]
        codes = self._on_sphere(self.bits_to_codes(((indices[..., None] & self.mask) != 0).float()))
        codes = codes.masked_fill((indices < 0)[..., None], torch.nan)
        if self.orthogonal_rotation:
            codes = codes @ self.orthogonal_rot.T
        codes = codes.flatten(-2)
        codes = self.project_out(codes) if project_out else codes
        return codes.movedim(-1, 1) if first else codes

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Return | tuple[Return, LossBreakdown]:
        """(quantized like x, index, loss), and a LossBreakdown if asked for.

        Args:
            x: [B, N, dim]; with four or more dimensions, or channel_first, [B, dim, ...].
            inv_temperature: of the softmax whose entropies are taken.
            mask: bool [B, N]; where it is False, x does not count in the loss.

        A position that is not finite gets index -1 and NaN, and counts nowhere.
        """
        require_float("LFQ", "x", x)
        first = x.dim() >= 4 if self.channel_first is None else self.channel_first
        axis = 1 if first else -1
        if x.dim() < 3 or x.shape[axis] != self.dim:
            raise ValueError(
                f"LFQ: x must have at least 3 dimensions and {self.dim} channels at dimension "
                f"{axis}, got {list(x.shape)}"
            )
        rows = self.project_in(x.movedim(axis, -1))
        if self.soft_clamp_input_value is not None:
            rows = (rows / self.soft_clamp_input_value).tanh() * self.soft_clamp_input_value
        rows = rows.unflatten(-1, (self.num_codebooks, self.codebook_dim))
        if self.orthogonal_rotation:
            rows = rows @ self.orthogonal_rot
        rows = self._on_sphere(rows)
        dtype = rows.dtype
        with torch.autocast(x.device.type, enabled=False):
            rows = rows.to(common_dtype(rows))
            valid = rows.isfinite().all(-1)
            positive = rows > 0
            index = torch.where(valid, (positive * self.mask).sum(-1), -1)
            codes = self._on_sphere(self.bits_to_codes(positive.to(rows.dtype)))
            codes = codes.masked_fill(~valid[..., None], torch.nan)
            counted = valid if mask is None else valid & _checked_mask(mask, valid)[..., None]
            zero = rows.new_zeros(())
            own = spread = entropy = commit = zero
            quantized = codes
            if self.training:
                moved = self.activation(rows)
                quantized = moved + (codes - moved).detach()
                if self.entropy_loss_weight > 0 or return_loss_breakdown:
                    own, spread = self._entropies(rows, counted, inv_temperature)
                    entropy = own - self.diversity_gamma * spread
                if self.experimental_softplus_entropy_loss:
                    entropy = F.softplus(entropy + self.entropy_loss_offset)
                if self.commitment_loss_weight > 0:
                    commit = mse(rows, codes.detach(), counted)
            if self.orthogonal_rotation:
                quantized = quantized @ self.orthogonal_rot.T.to(quantized.dtype)
        out = self.project_out(quantized.flatten(-2).to(dtype)).movedim(-1, axis)
        index = index if self.keep_num_codebooks_dim else index[..., 0]
        loss = entropy * self.entropy_loss_weight + commit * self.commitment_loss_weight
        result = Return(out, index, loss)
        if not return_loss_breakdown:
            return result
        return result, LossBreakdown(own, spread, commit)

    def _on_sphere(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1) * self.codebook_scale if self.spherical else rows

    def _entropies(
        self, rows: Tensor, counted: Tensor, inv_temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Mean entropy of a sample, and of the mean distribution, over codebooks; in nats."""
        magnitude = self.codebook_scale / (math.sqrt(self.codebook_dim) if self.spherical else 1.0)
        rows = rows.flatten(0, -3)
        counted = counted.flatten(0, -2)
        if self.frac_per_sample_entropy < 1:
            # Whole tokens are drawn, all their codebooks together, from those that count.
            some = counted.any(-1).nonzero()[:, 0]
            number = int(len(some) * self.frac_per_sample_entropy)
            drawn = torch.randn(len(some)).argsort(dim=-1) < number
            some = some[drawn.to(some.device)]
            rows, counted = rows[some], counted[some]
        terms = [
            bit_entropies(
                rows[:, book] * (4 * magnitude * inv_temperature),
                counted[:, book],
                min(self.codebook_dim, 24),
                floor=FLOOR,
            )
            for book in range(self.num_codebooks)
        ]
        own, spread = (torch.stack(values).mean() for values in zip(*terms, strict=True))
        return own, spread

    def extra_repr(self) -> str:
        return f"codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}"


def _checked_mask(mask: Tensor, valid: Tensor) -> Tensor:
    shape = valid.shape[:-1]
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.numel() != shape.numel():
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise ValueError(f"LFQ: mask must be bool {list(shape)}, got {got}")
    return mask.reshape(shape)
