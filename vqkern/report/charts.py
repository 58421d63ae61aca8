"""Charts as SVG that takes the page's text colour, so that it suits a light and a dark page."""

import io
import re

import numpy as np

from vqkern.report.results import Curve, RunRecord

# Told apart by people with colour blindness, and visible on white and on near-black alike.
COLOURS = ("#2f86d1", "#d9772b", "#3a9e6f", "#b35fb0", "#8a8d3a")
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
_INK = "#010203"  # stands for the page's text colour until the SVG is done
WIDTH, HEIGHT = 4.8, 3.1  # inches; small, so that the text stays readable on a telephone


def line_chart(
    series: list[tuple[str, list[float], list[float]]],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    levels: list[tuple[str, float]] | None = None,
    styles: list[tuple[str, str]] | None = None,
) -> str:
    """An SVG element with one line per (name, x, y), and a dashed line per (name, level).

    `styles`, colours and dashes as `line_styles` gives them, are those of a legend elsewhere on the
    page; without them the chart has its own.
    """
    from matplotlib.ticker import LogFormatter

    figure, axes = _new_figure()
    looks = styles or line_styles(len(series))
    for (colour, dashes), (name, x, y) in zip(looks, series, strict=True):
        pattern = (0, tuple(map(float, dashes.split()))) if dashes else "solid"
        # A single point has no line.
        marker = "o" if len(x) == 1 else ""
        axes.plot(x, y, label=name, color=colour, linewidth=1.6, linestyle=pattern, marker=marker)
    for name, level in levels or []:
        axes.axhline(level, label=name, color=_INK, linewidth=1.1, linestyle=(0, (4, 3)))
    if log:
        axes.set_yscale("log")
        for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis_format(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if styles is None and len(series) + len(levels or []) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    return _to_svg(figure)


def line_styles(count: int) -> list[tuple[str, str]]:
    """Colours with dashes as SVG writes them; solid until the colours come round again."""
    looks = [(colour, dashes) for dashes in DASHES for colour in COLOURS]
    return [looks[number % len(looks)] for number in range(count)]


def smooth(curve: Curve, window: int) -> tuple[list[float], list[float]]:
    """Steps and the mean of the last `window` values at each; fewer at the start."""
    values = np.asarray(curve.values, dtype=float)
    total = np.concatenate([[0.0], values.cumsum()])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return list(curve.steps), list((total[end] - total[start]) / (end - start))


def usage_chart(record: RunRecord) -> str:
    """Tokens per code, codes sorted by use, for the largest codebook size of the record."""
    largest = max(row.codebook_size for row in record.rows)
    series, previous = [], None
    for row in record.rows:
        if row.codebook_size != largest or row.name not in record.usage:
            continue
        counts = record.usage[row.name].numpy()
        if series and np.array_equal(counts, previous):
            continue  # stage II keeps stage I's quantizer
        previous = counts
        used = counts[counts > 0]
        # Enough points for the picture, the last used code among them: that is where a line ends.
        ranks = np.unique(np.geomspace(1, len(used), 400).astype(int))
        series.append((row.name, list(ranks), list(used[ranks - 1])))
    figure, axes = _new_figure()
    for (colour, _), (name, x, y) in zip(line_styles(len(series)), series, strict=True):
        axes.plot(x, y, label=name, color=colour, linewidth=1.6)
    even = record.usage_tokens / largest
    axes.axhline(even, label="even use", color=_INK, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, largest)
    axes.set_xlabel("code, most used first")
    axes.set_ylabel("tokens")
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="lower left")
    return _to_svg(figure)


def _new_figure():
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Not pyplot: it would keep the figure alive, and choose a backend that may need a display.
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(True, color=_INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _to_svg(figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    style = {"svg.fonttype": "path", "svg.hashsalt": "vqkern"}
    with matplotlib.rc_context(style):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside an HTML page the namespaces are known; without them no address is left in the file.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    return svg.replace(_INK, "currentColor")
