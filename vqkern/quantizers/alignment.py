"""Alignment: what pulls the distribution of all codes, used or not, to that of the features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..ops.squared_mmd import mean_bandwidth, squared_mmd


class Alignment(Protocol):
    """A loss between features [N, D], of which only the `valid` [N] count, and codes [K, D]."""

    def __call__(self, features: Tensor, valid: Tensor, codes: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class MMD:
    """weight * squared MMD between features and codes (VQ-Transplant eq. 5).

    Features are detached: the codes move to them, not the encoder to the codes.

    Args:
        weight: gamma of VQ-Transplant eq. 3.
        bandwidths: the b_i of k(a, b) = sum_i exp(-|a - b|^2 / b_i) in units of squared distance;
            None takes `multiples` of the mean squared distance at each step.
        multiples: of the mean heuristic. The default reaches down to a sixteenth: the mean
            distance of a distribution with separate modes is that between modes, too coarse inside
            one.
        max_features: at most so many features, drawn at random each step; None: all.
        max_codes: at most so many codes, drawn at random each step; None: all.
    """

    weight: float = 0.5
    bandwidths: tuple[float, ...] | None = None
    multiples: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    max_features: int | None = None
    max_codes: int | None = None

    def __post_init__(self) -> None:
        for name in ("bandwidths", "multiples"):
            values = getattr(self, name)
            if values is None and name == "bandwidths":
                continue
            values = tuple(float(v) for v in values)
            if not values or not all(0 < v < float("inf") for v in values):
                raise ValueError(f"MMD: {name} must be positive and finite, got {values}")
            object.__setattr__(self, name, values)
        for name in ("max_features", "max_codes"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"MMD: {name} must be at least 2, got {value}")

    def __call__(self, features: Tensor, valid: Tensor, codes: Tensor) -> Tensor:
        """The weighted loss, float32 scalar; 0 if no feature is valid."""
        if len(features) == 0:
            return codes.sum() * 0.0
        x = _draw_valid(features.detach().float(), valid, self.max_features)
        y = codes.float()
        if self.max_codes is not None and self.max_codes < len(y):
            y = y[torch.randperm(len(y), device=y.device)[: self.max_codes]]
        if self.bandwidths is None:
            scale = x.new_tensor(self.multiples, dtype=torch.float64)
            bandwidths = mean_bandwidth(x, y) * scale
        else:
            bandwidths = x.new_tensor(self.bandwidths, dtype=torch.float64)
        return self.weight * squared_mmd(x, y, bandwidths) * valid.any()

    @property
    def config(self) -> dict:
        return {"name": "mmd", **asdict(self)}


def _draw_valid(rows: Tensor, valid: Tensor, limit: int | None) -> Tensor:
    """`limit` (None: all) of the valid rows at random, without synchronising with the host.

    Where fewer are valid, they are repeated in turn; where none is, the result is zeros.
    """
    n = len(rows)
    order = torch.randperm(n, device=rows.device) if limit is not None and limit < n else None
    size = n if order is None else limit
    if order is None:
        order = torch.arange(n, device=rows.device)
    order = order[valid[order].logical_not().to(torch.uint8).argsort(stable=True)]
    turn = torch.arange(size, device=rows.device) % valid.sum().clamp_min(1)
    drawn = order[turn]
    return torch.where(valid[drawn][:, None], rows[drawn], 0)


ALIGNMENTS = {"mmd": MMD}


def build_alignment(alignment: Alignment | dict | None) -> Alignment | None:
    """An alignment as it is, or from its `config`: {"name": "mmd", "weight": ...}."""
    if not isinstance(alignment, dict):
        return alignment
    options = dict(alignment)
    name = options.pop("name", None)
    if name not in ALIGNMENTS:
        raise ValueError(f"alignment must be one of {sorted(ALIGNMENTS)}, got {name!r}")
    try:
        return ALIGNMENTS[name](**options)
    except TypeError as error:
        raise ValueError(f"alignment {name!r}: {error}") from None
