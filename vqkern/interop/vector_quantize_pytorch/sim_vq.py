"""SimVQ, with the constructor, results and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...ops import nearest_code
from ...ops.checks import require_float, require_index
from ...ops.take_codes import take_codes
from ...quantizers.base import require_weight
from ...quantizers.estimators import rotation_trick
from ...quantizers.estimators import straight_through as pass_through
from ..adapter import Adapter, spread_like
from ..terms import mse
from .options import require_numbers


class SimVQ(Adapter):
    """A frozen table behind a trained map (Zhu et al. 2024), searched exactly.

    The arguments are those of vector-quantize-pytorch's class of this name.

    loss = commitment_weight (mse(sg z, e) + input_to_quantize_commit_loss_weight mse(z, sg e)), in
    eval mode too.
    """

    library = "vector-quantize-pytorch"

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] = lambda codes: codes,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = dim if frozen_codebook_dim is None else frozen_codebook_dim
        require_numbers("SimVQ", dim=dim, codebook_size=codebook_size, frozen_codebook_dim=width)
        require_weight("commitment_weight", commitment_weight)
        require_weight("input_to_quantize_commit_loss_weight", input_to_quantize_commit_loss_weight)
        self.dim, self.codebook_size, self.channel_first = dim, codebook_size, channel_first
        codes = init_fn(torch.randn(codebook_size, width) * width**-0.5)
        if codebook_transform is None:
            codebook_transform = nn.Linear(width, dim, bias=False)
        self.code_transform = codebook_transform
        self.register_buffer("frozen_codebook", codes)
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight

    @property
    def codebook(self) -> Tensor:
        """The effective codes [K, dim]."""
        return self.code_transform(self.frozen_codebook)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The effective codes behind indices [B, ...]; index -1 gives NaN."""
        require_index("SimVQ", "indices", indices)
        codes = self.code_transform(take_codes(self.frozen_codebook, indices))
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(quantized like x, index, loss); x [B, ..., dim], channels first if so constructed.

        A row of x that is not finite gets index -1 and NaN, and counts nowhere.
        """
        require_float("SimVQ", "x", x)
        codes = self.codebook
        axis = 1 if self.channel_first else -1
        if x.dim() < 2 or x.shape[axis] != codes.shape[1]:
            raise ValueError(
                f"SimVQ: x must have {codes.shape[1]} channels at dimension {axis}, "
                f"got {list(x.shape)}"
            )
        z = x.movedim(axis, -1)
        index = nearest_code(z.detach(), codes.detach()).index
        nearest = take_codes(codes, index)
        valid = index >= 0
        loss = mse(z.detach(), nearest, valid)
        back = mse(z, nearest.detach(), valid) * self.input_to_quantize_commit_loss_weight
        estimator = rotation_trick if self.rotation_trick else pass_through
        quantized = estimator(z, nearest.detach().to(z.dtype))
        return quantized.movedim(-1, axis), index, (loss + back) * self.commitment_weight

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        return None

    @classmethod
    def codebook_shape(cls, module: nn.Module) -> tuple[int, ...]:
        return tuple(module.codebook.shape)

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            rows = spread_like(module.codebook, items, generator)
        return rows[:, :, None] if module.channel_first else rows[:, None]
