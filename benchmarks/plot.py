"""Plots a comparison's CSV: throughput of every contestant by shape, and its time by N.

python benchmarks/plot.py benchmarks/results/nearest_code_cpu.csv
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

# Ours first; a contestant keeps its colour in every plot.
COLOURS = ("#0b6e4f", "#7fb069", "#d1495b", "#edae49", "#30638e", "#8d6a9f")
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Rows of the CSV that were timed on gaussian data."""
    with open(path, newline="") as file:
        return [r for r in csv.DictReader(file) if r["status"] == "ok" and r["data"] == "gaussian"]


def plot(path: Path) -> Path:
    """Draws the CSV at `path` into a PNG beside it and returns that file's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read(path)
    if not rows:
        raise ValueError(f"plot: {path} has no timed row on gaussian data")
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    sweep = _sweep(rows)
    swept = {shape[0] for shape in map(_shape, sweep)}
    figure, axes = pyplot.subplots(
        1,
        2 if sweep else 1,
        figsize=(13 if sweep else 8, 4.8),
        width_ratios=(5, 3) if sweep else None,
        squeeze=False,
        layout="constrained",
    )
    largest = max(swept, default=0)
    bars = [row for row in rows if row not in sweep or _shape(row)[0] == largest]
    _draw_bars(axes[0][0], bars, names, colours)
    if sweep:
        _draw_sweep(axes[0][1], sweep, names, colours)
    handles = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    first = rows[0]
    figure.suptitle(
        f"{first['op']}: {first['hardware']}, {first['threads']} threads, {first['dtype']}, "
        f"torch {first['torch']}, vqkern {first['vqkern']} ({first['commit']})",
        fontsize=10,
    )
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return picture


def _shape(row: Row) -> tuple[int, int, int]:
    return int(row["n"]), int(row["k"]), int(row["d"])


def _sweep(rows: list[Row]) -> list[Row]:
    """The rows of a codebook that was measured with at least three values of N, if there is one."""
    values = Counter((k, d) for _, k, d in {_shape(row) for row in rows})
    codebook, count = values.most_common(1)[0]
    return [row for row in rows if _shape(row)[1:] == codebook] if count >= 3 else []


def _draw_bars(axis, rows: list[Row], names: list[str], colours: dict[str, str]) -> None:
    shapes = list(dict.fromkeys(map(_shape, rows)))
    timed = {row["contestant"] for row in rows}
    names = [name for name in names if name in timed]
    width = 0.84 / len(names)
    for i, name in enumerate(names):
        mine = {_shape(row): float(row["throughput"]) for row in rows if row["contestant"] == name}
        at = [j + (i - (len(names) - 1) / 2) * width for j, s in enumerate(shapes) if s in mine]
        heights = [mine[s] for s in shapes if s in mine]
        drawn = axis.bar(at, heights, width, label=name, color=colours[name])
        axis.bar_label(drawn, [f"{h:.3g}" for h in heights], fontsize=7, padding=1)
    axis.set_xticks(range(len(shapes)), [f"N={n}\nK={k}\nD={d}" for n, k, d in shapes])
    axis.set_ylabel(rows[0]["unit"])
    axis.set_title("throughput, gaussian data (higher is better)", fontsize=10)
    axis.margins(y=0.12)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_sweep(axis, rows: list[Row], names: list[str], colours: dict[str, str]) -> None:
    for name in names:
        points = sorted(
            (int(row["n"]), *(float(row[f"{part}_ms"]) for part in _PARTS))
            for row in rows
            if row["contestant"] == name
        )
        if points:
            n, median, low, high = zip(*points, strict=True)
            axis.plot(n, median, marker="o", markersize=4, color=colours[name], label=name)
            axis.fill_between(n, low, high, color=colours[name], alpha=0.2, linewidth=0)
    _, k, d = _shape(rows[0])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(f"N (K={k}, D={d})")
    axis.set_ylabel("ms a call")
    axis.set_title("median time and quartiles (lower is better)", fontsize=10)
    axis.grid(True, which="major", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


_PARTS = ("median", "lower_quartile", "upper_quartile")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    print(plot(parser.parse_args().csv))
