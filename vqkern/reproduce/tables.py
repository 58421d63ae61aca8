"""Published figures beside ours, and how they are printed and drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vqkern.report import charts
from vqkern.terminal import aligned

# More lines meet in one chart here than on a run's page.
COLOURS = (*charts.COLOURS, "#555555", "#c23b3b", "#20a4a8")


def published(name: str) -> list[dict[str, str | float]]:
    """The rows of a published table, numbers as floats; the source of each is a column of it.

    Raises:
        ValueError: there is no such table in the package.
    """
    file = resources.files(__package__) / "published" / f"{name}.csv"
    if not file.is_file():
        raise ValueError(f"there is no published table {name!r}")
    with file.open(encoding="utf-8", newline="") as text:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(text)]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, the first to the left and the others to the right; None is a dash."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    titles, *lines = aligned(cells)
    return "\n".join([titles, "-" * len(titles), *lines])


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float | None, digits: int = 2) -> str | None:
    """A share as a percentage; more digits where it is tiny."""
    if share is None:
        return None
    return f"{100 * share:.{digits}f} %" if share >= 0.001 else f"{100 * share:.4f} %"


def draw(
    path: Path,
    panels: Sequence[dict],
    *,
    title: str | None = None,
) -> None:
    """A PNG with one panel after another.

    Args:
        panels: each with `x` and `y` (labels), `lines`: (name, x values, y values, style) where
            style is a matplotlib format such as "-" or "o--", and optionally `log_y`, `log_x`,
            `title`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        names = list(dict.fromkeys(line[0].split(", paper")[0] for line in panel["lines"]))
        for name, x, y, style in panel["lines"]:
            # A published line has the colour of ours.
            colour = COLOURS[names.index(name.split(", paper")[0]) % len(COLOURS)]
            axes.plot(x, y, style, label=name, color=colour, linewidth=1.4, markersize=4)
        axes.set_xlabel(panel["x"])
        axes.set_ylabel(panel["y"])
        if panel.get("log_y"):
            axes.set_yscale("log")
        if panel.get("log_x"):
            axes.set_xscale("log")
        if panel.get("title"):
            axes.set_title(panel["title"], fontsize=10)
        axes.grid(True, alpha=0.2, linewidth=0.6)
        if len(panel["lines"]) > 1:
            axes.legend(frameon=False, fontsize=7)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, format="png", metadata={"Software": None})
