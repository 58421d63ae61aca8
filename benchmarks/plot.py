"""Plots a comparison's CSV: every contestant's time by shape, and how it grows with N.

python benchmarks/plot.py benchmarks/results/nearest_code_cpu.csv
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from pathlib import Path

# Ours is the first and the only dark one; a contestant keeps its colour in every panel.
OURS = "#0b6e4f"
COLOURS = (
    "#e07a5f",
    "#edae49",
    "#30638e",
    "#8d6a9f",
    "#7fb069",
    "#d1495b",
    "#5fa8d3",
    "#a3a380",
    "#c38d94",
    "#6d6875",
)
COLUMNS = 2
Row = dict[str, str]
Shape = tuple[int, int, int]


def read(path: Path) -> list[Row]:
    """The float32 rows of the CSV that were timed."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["status"] == "ok" and row["dtype"] == "float32"]


def plot(path: Path) -> Path:
    """Draws the CSV at `path` into a PNG beside it and returns that file's path.

    Raises:
        ValueError: no row on gaussian data was timed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    every = read(path)
    rows = [row for row in every if row["data"] == "gaussian"]
    if not rows:
        raise ValueError(f"plot: {path} has no timed row on gaussian data")
    sweeps = _sweeps(rows)
    panels = _bar_shapes(every, rows, sweeps)
    colours = _colours(rows)
    most = max(sum(_shape(row) == shape for row in rows) for shape in panels)
    heights = [0.9 + 0.27 * most] * math.ceil(len(panels) / COLUMNS)
    heights += [3.6] * math.ceil(len(sweeps) / COLUMNS)
    figure = pyplot.figure(figsize=(13, 1.2 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
    for i, shape in enumerate(panels):
        axis = figure.add_subplot(grid[divmod(i, COLUMNS)])
        _draw_bars(axis, [row for row in rows if _shape(row) == shape], colours)
    first = math.ceil(len(panels) / COLUMNS) * COLUMNS
    for i, codebook in enumerate(sweeps, first):
        axis = figure.add_subplot(grid[divmod(i, COLUMNS)])
        _draw_sweep(axis, [row for row in rows if _shape(row)[1:] == codebook], colours)
    handles = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=5,
            fontsize=8,
            frameon=False,
        )
    figure.suptitle(_title(rows[0]), fontsize=10)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def _title(row: Row) -> str:
    return (
        f"{row['op']}: {row['hardware']}, {row['threads']} threads, {row['dtype']}, gaussian data, "
        f"torch {row['torch']}, vqkern {row['vqkern']} ({row['commit']})\n"
        "median ms a call, lower is better"
    )


def _shape(row: Row) -> Shape:
    return int(row["n"]), int(row["k"]), int(row["d"])


def _ours(row: Row) -> bool:
    return row["time_vs_ours"] == "1"


def _colours(rows: list[Row]) -> dict[str, str]:
    names = list(dict.fromkeys(row["contestant"] for row in rows if not _ours(row)))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    return colours | {row["contestant"]: OURS for row in rows if _ours(row)}


def _sweeps(rows: list[Row]) -> list[tuple[int, int]]:
    """The codebooks (K, D) that were measured with at least three values of N."""
    counts = Counter((k, d) for _, k, d in {_shape(row) for row in rows})
    return [codebook for codebook, count in counts.items() if count >= 3]


def _bar_shapes(every: list[Row], rows: list[Row], sweeps: list[tuple[int, int]]) -> list[Shape]:
    """The shapes with a panel of bars: not those that only belong to a sweep."""
    shapes = dict.fromkeys(map(_shape, rows))
    on_other_data = {_shape(row) for row in every if row["data"] != "gaussian"}
    chosen = [s for s in shapes if s[1:] not in sweeps or s in on_other_data]
    return chosen or list(shapes)


def _draw_bars(axis, rows: list[Row], colours: dict[str, str]) -> None:
    rows = sorted(rows, key=lambda row: (not _ours(row), float(row["median_ms"])))
    names = [row["contestant"] for row in rows]
    times = [float(row["median_ms"]) for row in rows]
    axis.barh(names, times, color=[colours[name] for name in names], height=0.72)
    axis.set_xscale("log")
    # Bars on a log scale have no natural origin; room on the right is for the labels.
    axis.set_xlim(min(times) / 4, max(times) * 30)
    for at, row in enumerate(rows):
        text = axis.annotate(
            _label(row), (times[at], at), (4, 0), textcoords="offset points", va="center"
        )
        text.set(fontsize=8, fontweight="bold" if _ours(row) else "normal")
    axis.invert_yaxis()
    n, k, d = _shape(rows[0])
    axis.set_title(f"N = {n}, K = {k}, D = {d}", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _label(row: Row) -> str:
    time, wrong = float(row["median_ms"]), float(row["wrong_rate"] or 0)
    text = f"{time:.3g}" if time < 999.5 else f"{time:.0f}"
    if _ours(row):
        fraction = row["fraction_of_yardstick"]
        dtype = "fp16" if "fp16" in row["yardstick"] else "fp32"
        text += f" ms, {float(fraction):.0%} of the {dtype} peak" if fraction else " ms"
    elif row["time_vs_ours"]:
        text += f" ({float(row['time_vs_ours']):.3g}x)"
    return text + (f", {wrong:.1%} wrong" if wrong else "")


def _draw_sweep(axis, rows: list[Row], colours: dict[str, str]) -> None:
    for name in dict.fromkeys(row["contestant"] for row in rows):
        points = sorted(
            (int(row["n"]), *(float(row[f"{part}_ms"]) for part in _PARTS))
            for row in rows
            if row["contestant"] == name
        )
        n, median, low, high = zip(*points, strict=True)
        axis.plot(n, median, marker="o", markersize=4, color=colours[name], label=name)
        axis.fill_between(n, low, high, color=colours[name], alpha=0.2, linewidth=0)
    _, k, d = _shape(rows[0])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("N", fontsize=9)
    axis.set_title(f"K = {k}, D = {d}: median and quartiles by N", fontsize=10)
    axis.grid(True, which="major", alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


_PARTS = ("median", "lower_quartile", "upper_quartile")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    print(plot(parser.parse_args().csv))
