"""`gaussian-shift`: codes that start at N(0, I) and features from N(m, I), m = 0 .. 8.

The published rows are those of Wasserstein VQ (Fang et al. 2025): 16,384 codes of 8 channels,
50,000 features a step, 2,000 steps, figures on 200,000 features. The methods `vanilla`, `ema`,
`online`, `linear` and `wasserstein` have the published hyper-parameters: SGD with momentum .9 at
rate 1 (vanilla), 3 (online, wasserstein) or .02 (linear map with bias over a frozen table); the
mean squared error summed over channels, for Wasserstein .1 times that plus 10 times the unsquared
distance; EMA with decay .9 and counts that start at 0. `ours-*` share one optimiser (see
`vqkern.training.code_optimizer`) and revive codes that stay unused: `ours-none` is that alone,
`ours-mmd` and `ours-wasserstein` add an alignment. `wide-mmd` has our optimiser, no revival, and
the bandwidths 4b .. b/4 about the mean squared distance b, the common choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .frame import Cell, Experiment, Row, Work
from .moving import METHODS, Moving, move_codes
from .tables import draw, format_table, percent, published


@dataclass(frozen=True)
class GaussianShift:
    """Settings: `shifts` are the m, `moving` how codes are moved."""

    shifts: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    moving: Moving = Moving()


def shifted(shift: float, dim: int) -> Callable[[int, torch.Generator], Tensor]:
    """Features from N(shift, I)."""
    return lambda n, generator: torch.randn(n, dim, generator=generator).add_(shift)


def cells(settings: GaussianShift) -> list[Cell]:
    return [{"method": m, "shift": s} for m in METHODS for s in settings.shifts]


def units(settings: GaussianShift, cell: Cell) -> int:
    return settings.moving.steps


def measure(settings: GaussianShift, cell: Cell, work: Work) -> Row:
    moving = settings.moving
    return move_codes(cell["method"], shifted(cell["shift"], moving.dim), moving, work)


def table(rows: list[Row]) -> str:
    return beside_published(rows, published("gaussian_shift"), "shift")


def beside_published(rows: list[Row], paper: list[dict], axis: str) -> str:
    """One line a row: our error and utilization, then the paper's for the method of that name."""
    known = {(row["method"], row["shift"]): row for row in paper}
    lines = []
    for row in rows:
        theirs = known.get((str(row["method"]).removeprefix("ours-"), row["shift"]), {})
        lines.append(
            [
                row["method"],
                f"{row['shift']:g}",
                f"{row['error']:.4f}",
                _error(theirs.get("error")),
                percent(row["utilization"]),
                percent(theirs.get("utilization")),
                f"{row['perplexity']:,.0f}",
                f"{row['w2']:.3f}",
                f"{row['seconds']:.0f}",
            ]
        )
    head = ["method", axis, "error", "paper", "utilization", "paper", "perplexity", "W2", "seconds"]
    return format_table(head, lines)


def _error(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def plot(rows: list[Row], path: Path) -> None:
    plot_beside(rows, published("gaussian_shift"), path, "mean shift m", "Gaussian shift")


def plot_beside(rows: list[Row], paper: list[dict], path: Path, axis: str, title: str) -> None:
    """Error and utilization over the shift, a line a method, the paper's dashed."""
    panels = []
    for key, label in (("error", "quantization error"), ("utilization", "utilization")):
        lines = []
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]
            lines.append((method, [r["shift"] for r in mine], [r[key] for r in mine], "o-"))
            theirs = [row for row in paper if row["method"] == str(method).removeprefix("ours-")]
            if theirs:
                values = [row[key] for row in theirs]
                lines.append((f"{method}, paper", [r["shift"] for r in theirs], values, "--"))
        panels.append({"x": axis, "y": label, "lines": lines, "log_y": key == "error"})
    draw(path, panels, title=title)


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
    name="gaussian-shift",
    source="Wasserstein VQ (Fang et al. 2025), Gaussian features with a shifted mean",
    full=GaussianShift(),
    quick=GaussianShift(shifts=(0.0, 4.0, 8.0), moving=_SMALL),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
