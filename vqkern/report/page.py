"""The page of a demonstration: one self-contained file, no network, nothing beside it."""

import html
from pathlib import Path

from vqkern.report.charts import line_chart, smooth, usage_chart
from vqkern.report.frame import chart_card, facts, header, page, settings, table
from vqkern.report.pictures import pictures_section
from vqkern.report.results import COLUMNS, Curve, RunRecord, even_use, notes

MAX_STRIPS = 12  # a page of pictures from a large folder would grow without end


def write_page(record: RunRecord, path: Path, headline: str, caveat: str) -> None:
    """Writes the page of a run.

    Args:
        record: What to show; parts that are empty are left out.
        path: The file to write.
        headline: The result in one sentence.
        caveat: What the run does not show, in plain words.
    """
    stopped = [f"<strong>Unfinished.</strong> {html.escape(record.stopped)}"]
    sections = [
        header(record.title, headline, caveat, stopped if record.stopped else []),
        _table(record),
        _strips(record),
        _curves(record),
        _usage(record),
        _configuration(record),
    ]
    path.write_text(page(record.title, sections), encoding="utf-8")


def _table(record: RunRecord) -> str:
    if not record.rows:
        return ""
    headings = ["tokenizer", *(heading for _, heading, _ in COLUMNS)]
    rows = [
        [
            row.name,
            *(
                show(getattr(row, name))
                + (_beside(record, row.codebook_size) if name == "utilization" else "")
                for name, _, show in COLUMNS
            ),
        ]
        for row in record.rows
    ]
    shown = table(headings, rows, style="result-last", notes=notes(record))
    return f"<section><h2>Results</h2>{shown}</section>"


def _beside(record: RunRecord, codebook_size: int) -> str:
    return f" of {100 * even_use(record.usage_tokens, codebook_size):.1f} %"


def _strips(record: RunRecord) -> str:
    strips = [strip for strip in record.strips if strip.reconstructions]
    intro = "No training crop touches these regions."
    if len(strips) > MAX_STRIPS:
        intro += f" The first {MAX_STRIPS} of {len(record.strips)} regions."
    return pictures_section("Held-out regions", intro, strips[:MAX_STRIPS])


def _curves(record: RunRecord) -> str:
    cards = []
    for title, unit, curves in _grouped(record.curves):
        window = max(1, max(len(c.steps) for c in curves) // 40)
        series = [(c.name, *smooth(c, window)) for c in curves]
        levels = None
        if unit == "quantization error":
            levels = [
                (row.name, row.quantization_error)
                for row in record.rows
                if "untrained" in row.name and title.startswith("stage I")
            ]
        svg = line_chart(series, "step", unit, log=unit == "quantization error", levels=levels)
        cards.append(chart_card(svg, f"{title}: {unit}, mean of {window} steps"))
    if not cards:
        return ""
    return f"<section><h2>Training</h2><div class='charts'>{''.join(cards)}</div></section>"


def _grouped(curves: list[Curve]) -> list[tuple[str, str, list[Curve]]]:
    """Curves that share a chart: those of one loop and one value; names are `loop / name`."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        loop, _, name = curve.name.partition(" / ")
        if curve.steps:
            shown = Curve(name or loop, curve.value, curve.steps, curve.values)
            groups.setdefault((loop, curve.value), []).append(shown)
    return [(loop, value, shown) for (loop, value), shown in groups.items()]


def _usage(record: RunRecord) -> str:
    if not record.usage:
        return ""
    largest = max(row.codebook_size for row in record.rows)
    caption = (
        f"Tokens of each of the {largest:,} codes, most used first, over {record.usage_tokens:,} "
        f"tokens. Where a line ends, the codes that nothing chose begin."
    )
    card = chart_card(usage_chart(record), caption)
    return f"<section><h2>Codebook use</h2><div class='charts'>{card}</div></section>"


def _configuration(record: RunRecord) -> str:
    minutes, seconds = divmod(round(record.seconds), 60)
    return (
        "<section><h2>How it was made</h2>"
        f"<p>Command, {minutes} min {seconds} s:</p><pre>{html.escape(record.command)}</pre>"
        f"<h3>Versions and hardware</h3>{facts(record.environment)}"
        f"<h3>Configuration</h3>{settings('All settings', record.settings)}</section>"
    )
