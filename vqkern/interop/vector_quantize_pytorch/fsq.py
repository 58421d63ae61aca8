"""FSQ, with the constructor, results and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops.checks import common_dtype, require_float, require_index
from ...quantizers.joint_index import MAX_EXPLICIT_CODES, join_index, split_index
from ...quantizers.scalar import FSQ as ScalarFSQ
from .options import require_numbers


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2024) in float32 and whole numbers throughout.

    The arguments are those of vector-quantize-pytorch's class of this name;
    `force_quantization_f32` must be left on: half-precision arithmetic reaches only some codes.

    Raises:
        ValueError: an option is not supported or out of range.
    """

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        self._scalar = ScalarFSQ(levels, bound="centred")
        if min(self._scalar.levels) == 2 and not preserve_symmetry:
            raise ValueError(
                f"FSQ: levels of 2 need preserve_symmetry=True, got levels={list(levels)}"
            )
        for option, value, only in (
            ("force_quantization_f32", force_quantization_f32, True),
            ("bound_hard_clamp", bound_hard_clamp, False),
        ):
            if value != only:
                raise ValueError(f"FSQ: {option} must be {only} here, got {value!r}")
        if not 0 <= noise_dropout <= 1 or (noise_dropout > 0 and not preserve_symmetry):
            raise ValueError(
                "FSQ: noise_dropout must be in [0, 1], above 0 only with preserve_symmetry, "
                f"got {noise_dropout!r}"
            )
        require_numbers("FSQ", num_codebooks=num_codebooks)
        self.codebook_dim = len(self._scalar.levels)
        self.codebook_size = self._scalar.codebook_size
        self.num_codebooks = num_codebooks
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        self.keep_num_codebooks_dim = keep_dim("FSQ", num_codebooks, keep_num_codebooks_dim)
        self.dim = self.effective_codebook_dim if dim is None else dim
        require_numbers("FSQ", dim=self.dim)
        self.has_projections = self.dim != self.effective_codebook_dim
        self.project_in = self.project_out = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(
                self.dim, self.effective_codebook_dim, bias=projection_has_bias
            )
            self.project_out = nn.Linear(
                self.effective_codebook_dim, self.dim, bias=projection_has_bias
            )
        self.channel_first, self.return_indices, self.scale = channel_first, return_indices, scale
        self.preserve_symmetry, self.noise_dropout = preserve_symmetry, noise_dropout
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            rotation = nn.init.orthogonal_(torch.empty(self.codebook_dim, self.codebook_dim))
            self.register_buffer("orthogonal_rot", rotation)

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes [K, len(levels)].

        Raises:
            ValueError: there are more than 2^24.
        """
        if self.codebook_size > MAX_EXPLICIT_CODES:
            raise ValueError(
                f"FSQ: implicit_codebook would have {self.codebook_size} rows; it is made up to "
                f"{MAX_EXPLICIT_CODES} (2^24)"
            )
        index = torch.arange(self.codebook_size, device=self._scalar.level.device)
        return self._values(split_index(index, self._scalar.levels))

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """The level of every channel, [..., len(levels)]."""
        require_index("FSQ", "indices", indices)
        return split_index(indices, self._scalar.levels)

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """The index of codes [..., len(levels)]."""
        if zhat.shape[-1] != self.codebook_dim:
            raise ValueError(
                f"FSQ: zhat must have {self.codebook_dim} channels, got {list(zhat.shape)}"
            )
        level = self._scalar.level
        wide = zhat.to(common_dtype(zhat))
        if self.preserve_symmetry:
            digits = (wide + 1) * (level - 1) / 2
        else:
            digits = wide * (level // 2) + level // 2
        return self._index(digits.round().long())

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """What `forward` gives for these indices; index -1 gives NaN."""
        require_index("FSQ", "indices", indices)
        first = self.channel_first or indices.dim() >= 3 + self.keep_num_codebooks_dim
        codes = self._values(split_index(indices, self._scalar.levels))
        codes = codes.masked_fill((indices < 0)[..., None], torch.nan)
        if self.orthogonal_rotation:
            codes = codes @ self.orthogonal_rot.T
        codes = codes.flatten(-2) if self.keep_num_codebooks_dim else codes
        codes = self.project_out(codes)
        return codes.movedim(-1, 1) if first else codes

    def quantize(self, z: Tensor) -> Tensor:
        """z [..., len(levels)] bounded and rounded; the gradient passes the rounding."""
        return self._rounded(z)[0]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """(quantized like z, index).

        Args:
            z: [B, N, dim]; with four or more dimensions, or channel_first, [B, dim, ...].

        A position that is not finite gets index -1 and NaN.
        """
        require_float("FSQ", "z", z)
        first = self.channel_first or z.dim() >= 4
        axis = 1 if first else -1
        if z.dim() < 3 or z.shape[axis] != self.dim:
            raise ValueError(
                f"FSQ: z must have at least 3 dimensions and {self.dim} channels at dimension "
                f"{axis}, got {list(z.shape)}"
            )
        rows = self.project_in(z.movedim(axis, -1))
        rows = rows.unflatten(-1, (self.num_codebooks, self.codebook_dim))
        if self.orthogonal_rotation:
            rows = rows @ self.orthogonal_rot
        with torch.autocast(z.device.type, enabled=False):
            codes, digits = self._rounded(rows)
            index = self._index(digits) if self.return_indices else None
            codes = self._with_noise(codes)
            if self.orthogonal_rotation:
                codes = codes @ self.orthogonal_rot.T.to(codes.dtype)
        out = self.project_out(codes.flatten(-2).to(rows.dtype)).movedim(-1, axis)
        if index is not None and not self.keep_num_codebooks_dim:
            index = index.squeeze(-1)
        return out, index

    def _rounded(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and digits, -1 where z is not finite."""
        wide = z.to(common_dtype(z))
        finite = wide.isfinite().all(-1, keepdim=True)
        bounded = torch.where(finite, wide, 0)
        level = self._scalar.level
        if self.preserve_symmetry:
            places = (level - 1) * (torch.tanh(bounded) + 1) / 2 + 0.5
            digits = places.detach().floor().clamp_max(level - 1)
            codes = 2 / (level - 1) * (places + (digits - places).detach()) - 1
        else:
            bounded = self._scalar._bounded(bounded)
            rounded = bounded.detach().round()
            digits = rounded + level // 2
            codes = (bounded + (rounded - bounded).detach()) / (level // 2)
        digits = torch.where(finite, digits.long(), -1)
        return torch.where(finite, codes, torch.nan), digits

    def _values(self, digits: Tensor) -> Tensor:
        level = self._scalar.level
        if self.preserve_symmetry:
            return digits * (2.0 / (level - 1)) - 1.0
        return (digits - level // 2) / (level // 2)

    def _index(self, digits: Tensor) -> Tensor:
        index = join_index(digits, self._scalar.levels)
        return index.int() if self.codebook_size < 2**31 else index

    def _with_noise(self, codes: Tensor) -> Tensor:
        if not self.training or self.noise_dropout == 0:
            return codes
        codes = codes.contiguous()  # the noise falls in the order of positions
        chosen = torch.full_like(codes, self.noise_dropout).bernoulli_().bool()
        offset = torch.rand_like(codes) - 0.5
        return torch.where(chosen, codes + offset, codes).clamp(-1, 1)

    def extra_repr(self) -> str:
        bits = math.log2(self.codebook_size)
        return (
            f"levels={list(self._scalar.levels)}, num_codebooks={self.num_codebooks}, {bits=:.2f}"
        )


def keep_dim(name: str, num_codebooks: int, keep: bool | None) -> bool:
    """Whether an index has an axis of codebooks."""
    keep = num_codebooks > 1 if keep is None else keep
    if num_codebooks > 1 and not keep:
        raise ValueError(
            f"{name}: keep_num_codebooks_dim must be True with {num_codebooks} codebooks"
        )
    return keep
