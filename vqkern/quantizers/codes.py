"""Code parametrisations: how the K effective codes are produced from parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITS = ("normal", "uniform")


class Table(nn.Module):
    """The free table: every code is a parameter of its own.

    Args:
        num_codes: K, at least 1.
        dim: channels of a code.
        init: ``"normal"`` draws N(0, I); ``"uniform"`` draws from (-1/K, 1/K), as the first VQGANs
            did.
    """

    def __init__(self, num_codes: int, dim: int, *, init: str = "normal") -> None:
        super().__init__()
        if num_codes < 1:
            raise ValueError(f"codebook_size must be at least 1, got {num_codes}")
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {init!r}")
        weight = torch.randn(num_codes, dim)
        if init == "uniform":
            weight = (torch.rand(num_codes, dim) * 2 - 1) / num_codes
        self.weight = nn.Parameter(weight)

    @property
    def num_codes(self) -> int:
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    def forward(self) -> Tensor:
        """The codes [K, dim]."""
        return self.weight
