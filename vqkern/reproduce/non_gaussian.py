"""`non-gaussian`: codes that start at N(0, I) and features from two modes, N(+-zeta 1, I).

VQ-Transplant appendix, tables 12 and 13 and figure 7: 16,384 codes of 8 channels, 20,000 features a
step. The paper trains for 10,000 steps and does not say with which optimiser; here it is 2,000
steps. `wasserstein` has the optimiser and weights published for the shifted Gaussian
(`gaussian-shift`), `wide-mmd` our optimiser and the common bandwidths. `wide-mmd` and `ours-*` are
the methods of `gaussian-shift`, with nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .frame import Cell, Experiment, Row, Work
from .gaussian_shift import beside_published, plot_beside
from .moving import Moving, move_codes
from .tables import published

METHODS = ("wasserstein", "wide-mmd", "ours-none", "ours-wasserstein", "ours-mmd")


@dataclass(frozen=True)
class NonGaussian:
    """Settings: `shifts` are the zeta, `moving` how codes are moved."""

    shifts: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    moving: Moving = replace(Moving(), features=20_000)


def two_modes(zeta: float, dim: int) -> Callable[[int, torch.Generator], Tensor]:
    """Features from the mixture of N(zeta, I) and N(-zeta, I) in equal parts (eq. 9)."""

    def features(n: int, generator: torch.Generator) -> Tensor:
        side = torch.randint(2, (n, 1), generator=generator) * 2 - 1
        return torch.randn(n, dim, generator=generator).add_(side * zeta)

    return features


def cells(settings: NonGaussian) -> list[Cell]:
    return [{"method": m, "shift": s} for m in METHODS for s in settings.shifts]


def units(settings: NonGaussian, cell: Cell) -> int:
    return settings.moving.steps


def measure(settings: NonGaussian, cell: Cell, work: Work) -> Row:
    moving = settings.moving
    return move_codes(cell["method"], two_modes(cell["shift"], moving.dim), moving, work)


def _paper() -> list[dict]:
    rows = published("non_gaussian")
    wide = [{**row, "method": "wide-mmd"} for row in rows if row["method"] == "mmd"]
    return rows + wide


def table(rows: list[Row]) -> str:
    return beside_published(rows, _paper(), "zeta")


def plot(rows: list[Row], path: Path) -> None:
    plot_beside(rows, _paper(), path, "zeta", "Two modes")


_SMALL = replace(
    Moving(),
    codes=1024,
    features=4096,
    our_features=4096,
    steps=300,
    test_features=20_000,
    # In fewer steps a code must take larger ones to travel as far.
    lr=0.2,
)

EXPERIMENT = Experiment(
    name="non-gaussian",
    source="VQ-Transplant, tables 12 and 13 and figure 7",
    full=NonGaussian(),
    quick=NonGaussian(shifts=(0.0, 2.0, 4.0), moving=_SMALL),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
