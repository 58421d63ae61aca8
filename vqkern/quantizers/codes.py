"""Code parametrisations: how the K effective codes are produced from parameters.

A parametrisation is a module with `num_codes`, `dim`, a call without arguments that gives the codes
[K, D], and `macs()`, the multiply-accumulates of its matrix products. All but the free table map
another one, so they nest: ``Linear(Table(65536, 8))``; a table that is not to be trained is
``Table(65536, 8).requires_grad_(False)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.checks import require_whole

INITS = ("normal", "scaled", "uniform")
LINEAR_STARTS = ("random", "identity")


class Table(nn.Module):
    """The free table: every code is a parameter of its own.

    Args:
        num_codes: K, at least 1.
        dim: channels of a code.
        init: ``"normal"`` draws N(0, I); ``"scaled"`` draws N(0, I / dim), as SimVQ does;
            ``"uniform"`` draws from (-1/K, 1/K), as the first VQGANs did.
        scale: factor of what is drawn.

    Raises:
        ValueError: a value is out of range, or the start is unknown.
    """

    def __init__(
        self, num_codes: int, dim: int, *, init: str = "normal", scale: float = 1.0
    ) -> None:
        super().__init__()
        require_whole("Table: num_codes", num_codes)
        require_whole("Table: dim", dim)
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {init!r}")
        require_scale(scale)
        if init == "uniform":
            weight = (torch.rand(num_codes, dim) * 2 - 1) / num_codes
        else:
            weight = torch.randn(num_codes, dim) * (dim**-0.5 if init == "scaled" else 1)
        self.weight = nn.Parameter(weight * scale)

    @property
    def num_codes(self) -> int:
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    def forward(self) -> Tensor:
        """The codes [K, dim]."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{self.num_codes}, {self.dim}"

    def macs(self) -> int:
        """None: the codes are there."""
        return 0


class Mapped(nn.Module):
    """Base of the parametrisations that map the codes of another one.

    Args:
        embedding: the codes to map, most often a `Table`; the checkpoints of SimVQ, VAEVQ and FVQ
            call it so.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        if not all(hasattr(embedding, name) for name in ("num_codes", "dim", "macs")):
            raise TypeError(
                f"{type(self).__name__}: embedding must be a code parametrisation such as Table, "
                f"got {type(embedding).__name__}"
            )
        self.embedding = embedding

    @property
    def num_codes(self) -> int:
        return self.embedding.num_codes

    @property
    def dim(self) -> int:
        return self.embedding.dim


class Linear(Mapped):
    """Codes E W + b (SimVQ, Zhu et al. 2024, with E frozen; VQGAN-LC and FVQ's baseline, trained).

    One gradient moves all codes, chosen or not, through W.

    Args:
        embedding: E; pass ``Table(...).requires_grad_(False)`` for SimVQ.
        bias: b, there in the released code of SimVQ.
        start: of W: ``"random"`` is that of `nn.Linear`, as released; ``"identity"`` starts with
            the codes E.

    Raises:
        ValueError: the start is unknown.
    """

    def __init__(self, embedding: nn.Module, *, bias: bool = True, start: str = "random") -> None:
        super().__init__(embedding)
        if start not in LINEAR_STARTS:
            raise ValueError(f"start must be one of {LINEAR_STARTS}, got {start!r}")
        self.embedding_proj = nn.Linear(self.dim, self.dim, bias=bias)
        if start == "identity":
            nn.init.eye_(self.embedding_proj.weight)
            if bias:
                nn.init.zeros_(self.embedding_proj.bias)

    def forward(self) -> Tensor:
        """The codes [K, dim]."""
        return self.embedding_proj(self.embedding())

    def macs(self) -> int:
        """K D^2 and those of the embedding."""
        return self.embedding.macs() + self.num_codes * self.dim**2


class MLP5(Mapped):
    """Five linear layers of D x D with GELU between them (the MLP of FVQ, figure 3 and table 10).

    The layers start with He's variance, so that the codes start about as wide as the embedding
    instead of shrinking to a point.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__(embedding)
        self.layers = nn.ModuleList(nn.Linear(self.dim, self.dim) for _ in range(5))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self) -> Tensor:
        """The codes [K, dim]."""
        *hidden, last = self.layers
        codes = self.embedding()
        for layer in hidden:
            codes = nn.functional.gelu(layer(codes))
        return last(codes)

    def macs(self) -> int:
        """5 K D^2 and those of the embedding."""
        return self.embedding.macs() + 5 * self.num_codes * self.dim**2


def require_scale(scale: float) -> None:
    """A scale must be a finite number above 0."""
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a finite number above 0, got {scale!r}")
