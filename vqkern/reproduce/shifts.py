"""Experiments that move codes towards features at one shift after another, a row a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .draws import Draws, Features
from .frame import Cell, Experiment, Row, Work
from .moving import Moving, move_codes
from .tables import draw, format_table, percent


@dataclass(frozen=True)
class Shifts:
    """Settings: `shifts` are what the features depend on, `moving` how codes are moved."""

    shifts: tuple[float, ...]
    moving: Moving = Moving()


SMALL = replace(
    Moving(),
    codes=1024,
    features=4096,
    our_features=4096,
    steps=300,
    test_features=20_000,
    # In fewer steps a code must take larger ones to travel as far.
    lr=0.2,
)


def over_shifts(
    *,
    name: str,
    source: str,
    full: Shifts,
    quick: Shifts,
    methods: Sequence[str],
    features: Callable[[float, int], Features],
    paper: Callable[[], list[dict]],
    symbol: str,
    axis: str,
    title: str,
    settings_of: Callable[[str, float], str] = lambda method, shift: method,
    draws_of: Callable[[str, Moving], Draws | None] = lambda method, settings: None,
) -> Experiment:
    """The experiment whose cells are `methods` x shifts.

    Args:
        methods: of `moving.METHODS`, or names that `settings_of` knows.
        features: shift, D -> what draws features.
        paper: -> the published rows, with `method`, `shift`, `error` and `utilization`.
        symbol, axis: the shift in the table's head and on the plot.
        title: of the plot.
        settings_of: method, shift -> which of `moving.METHODS` that method is at that shift.
        draws_of: method, settings -> its random numbers; None: those of `move_codes`.
    """

    def cells(settings: Shifts) -> list[Cell]:
        return [{"method": m, "shift": s} for m in methods for s in settings.shifts]

    def measure(settings: Shifts, cell: Cell, work: Work) -> Row:
        moving = settings.moving
        method, shift = cell["method"], cell["shift"]
        drawn, draws = features(shift, moving.dim), draws_of(method, moving)
        return move_codes(settings_of(method, shift), drawn, moving, work, draws)

    return Experiment(
        name=name,
        source=source,
        full=full,
        quick=quick,
        cells=cells,
        units=lambda settings, cell: settings.moving.steps,
        measure=measure,
        table=lambda rows: beside_published(rows, paper(), symbol),
        plot=lambda rows, path: plot_beside(rows, paper(), path, axis, title),
    )


def beside_published(rows: list[Row], paper: list[dict], symbol: str) -> str:
    """One line a row: our error and utilization, then the paper's for the method of that name."""
    known = {(row["method"], row["shift"]): row for row in paper}
    lines = []
    for row in rows:
        theirs = known.get((published_name(row["method"]), row["shift"]), {})
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
    head = "method", symbol, "error", "paper", "utilization", "paper", "perplexity", "W2", "seconds"
    return format_table(head, lines)


def published_name(method: str) -> str:
    """The published method that one of ours, or a variant, stands beside."""
    return method.removeprefix("ours-").removesuffix("-logged")


def _error(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def plot_beside(rows: list[Row], paper: list[dict], path: Path, axis: str, title: str) -> None:
    """Error and utilization over the shift, a line a method, the paper's dashed."""
    panels = []
    for key, label in (("error", "quantization error"), ("utilization", "utilization")):
        lines = []
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]
            lines.append((method, [r["shift"] for r in mine], [r[key] for r in mine], "o-"))
            theirs = [row for row in paper if row["method"] == published_name(method)]
            if theirs:
                values = [row[key] for row in theirs]
                lines.append((f"{method}, paper", [r["shift"] for r in theirs], values, "--"))
        panels.append({"x": axis, "y": label, "lines": lines, "log_y": key == "error"})
    draw(path, panels, title=title)
