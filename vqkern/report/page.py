"""One self-contained HTML page per run: no script, no network, nothing beside the file."""

import base64
import html
import io
import json
from pathlib import Path

import torch
from torch import Tensor

from vqkern.report.charts import line_chart, smooth, usage_chart
from vqkern.report.results import COLUMNS, Curve, RunRecord, Strip, even_use, notes

ERROR_FULL_SCALE = 0.5  # error pictures reach white at this mean |difference|, images in [-1, 1]
MAX_STRIPS = 12  # a page of pictures from a large folder would grow without end


def write_page(record: RunRecord, path: Path, headline: str, caveat: str) -> None:
    """Writes the page of a run.

    Args:
        record: What to show; parts that are empty are left out.
        path: The file to write.
        headline: The result in one sentence.
        caveat: What the run does not show, in plain words.
    """
    sections = [
        _headline(record, headline, caveat),
        _table(record),
        _strips(record),
        _curves(record),
        _usage(record),
        _configuration(record),
    ]
    title = html.escape(record.title)
    page = _PAGE.replace("{{title}}", title).replace("{{body}}", "\n".join(filter(None, sections)))
    path.write_text(page, encoding="utf-8")


def _headline(record: RunRecord, headline: str, caveat: str) -> str:
    stopped = ""
    if record.stopped:
        stopped = (
            f'<p class="stopped"><strong>Unfinished.</strong> {html.escape(record.stopped)}</p>'
        )
    return (
        f"<header><p class='kicker'>{html.escape(record.title)}</p>"
        f"<h1>{html.escape(headline)}</h1>{stopped}"
        f"<p class='caveat'>{html.escape(caveat)}</p></header>"
    )


def _table(record: RunRecord) -> str:
    if not record.rows:
        return ""
    head = "".join(f"<th scope='col'>{html.escape(h)}</th>" for _, h, _ in COLUMNS)
    body = []
    for row in record.rows:
        cells = "".join(
            f"<td data-label='{html.escape(heading)}'>{html.escape(show(getattr(row, name)))}"
            f"{_beside(record, row.codebook_size) if name == 'utilization' else ''}</td>"
            for name, heading, show in COLUMNS
        )
        body.append(f"<tr><th scope='row'>{html.escape(row.name)}</th>{cells}</tr>")
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes(record))
    return (
        "<section><h2>Results</h2><table><thead><tr><th scope='col'>tokenizer</th>"
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        f"<ul class='notes'>{listed}</ul></section>"
    )


def _beside(record: RunRecord, codebook_size: int) -> str:
    best = 100 * even_use(record.usage_tokens, codebook_size)
    return f"<small> of {best:.1f} %</small>"


def _strips(record: RunRecord) -> str:
    strips = [strip for strip in record.strips if strip.reconstructions][:MAX_STRIPS]
    if not strips:
        return ""
    left_out = len(record.strips) - len(strips)
    more = f" The first {len(strips)} of {len(record.strips)} regions." if left_out else ""
    return (
        "<section><h2>Held-out regions</h2>"
        "<p>No training crop touches these regions. Below each reconstruction is its error: the "
        "mean absolute difference of the three colours, black for none, white for a quarter of "
        f"the full range or more.{more}</p>"
        + "".join(_strip(strip) for strip in strips)
        + "</section>"
    )


def _strip(strip: Strip) -> str:
    name = html.escape(strip.name)
    figures = [
        f"<figure><img src='{_png(strip.original)}' alt='{name}, original'>"
        f"<figcaption>original</figcaption></figure>"
    ]
    for stage, image, psnr in strip.reconstructions:
        label = html.escape(stage)
        figures.append(
            f"<figure><img src='{_png(image)}' alt='{name}, reconstruction by {label}'>"
            f"<img src='{_error_png(image, strip.original)}' alt='{name}, error of {label}'>"
            f"<figcaption>{label}<br><b>{psnr:.2f} dB</b></figcaption></figure>"
        )
    return (
        f"<h3>{name} <small>{html.escape(strip.source)}</small></h3>"
        f"<div class='strip' style='--columns:{len(figures)}'>{''.join(figures)}</div>"
    )


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
        cards.append(_chart(svg, f"{title}: {unit}, mean of {window} steps"))
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
    card = _chart(usage_chart(record), caption)
    return f"<section><h2>Codebook use</h2><div class='charts'>{card}</div></section>"


def _chart(svg: str, caption: str) -> str:
    label = html.escape(caption)
    svg = svg.replace("<svg", f"<svg role='img' aria-label='{label}'", 1)
    return f"<figure class='chart'>{svg}<figcaption>{label}</figcaption></figure>"


def _configuration(record: RunRecord) -> str:
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in record.environment.items()
    )
    settings = html.escape(json.dumps(record.settings, indent=2))
    minutes, seconds = divmod(round(record.seconds), 60)
    return (
        "<section><h2>How it was made</h2>"
        f"<p>Command, {minutes} min {seconds} s:</p><pre>{html.escape(record.command)}</pre>"
        f"<h3>Versions and hardware</h3><dl>{facts}</dl>"
        f"<h3>Configuration</h3><details><summary>All settings</summary><pre>{settings}</pre>"
        "</details></section>"
    )


def _png(image: Tensor) -> str:
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return _data_uri(pixels.movedim(0, -1).contiguous().numpy())


def _error_png(image: Tensor, original: Tensor) -> str:
    error = (image - original).abs().mean(0) / ERROR_FULL_SCALE
    return _data_uri((error.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _data_uri(pixels) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #1d2126;
  --soft: #5a626b; --line: #dcdcd8; --accent: #1b6fb8; --warn: #fff3dc; --warn-line: #d79a2b; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1d2126; --ink: #eceef0;
  --soft: #a5adb6; --line: #343a41; --accent: #7db8ef; --warn: #33290f; --warn-line: #c08a24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.1rem 4rem; }
.kicker { color: var(--accent); font-weight: 600; letter-spacing: .02em; margin: 0; }
h1 { font-size: clamp(1.35rem, 1rem + 1.7vw, 2.1rem); line-height: 1.25; margin: .3rem 0 1rem;
  max-width: 34em; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .5rem; }
h3 small, .notes, figcaption { color: var(--soft); font-weight: 400; }
.caveat { color: var(--soft); max-width: 52em; margin: 0; }
.stopped { background: var(--warn); border-left: 4px solid var(--warn-line);
  padding: .6rem .9rem; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; background: var(--card); border-radius: 8px;
  font-variant-numeric: tabular-nums; box-shadow: 0 0 0 1px var(--line); }
th, td { padding: .55rem .7rem; text-align: right; border-top: 1px solid var(--line); }
thead th { border-top: 0; font-size: .86rem; color: var(--soft); font-weight: 600;
  vertical-align: bottom; }
th:first-child { text-align: left; }
tbody tr:last-child { font-weight: 600; }
td { white-space: nowrap; }
td small { color: var(--soft); font-weight: 400; white-space: nowrap; }
.notes { font-size: .88rem; padding-left: 1.2rem; }
.strip { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr));
  gap: .7rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: #000; border-radius: 4px; }
figure img + img { margin-top: .35rem; }
figcaption { font-size: .82rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 1rem; }
.chart { background: var(--card); border-radius: 8px; padding: .8rem; max-width: 640px;
  box-shadow: 0 0 0 1px var(--line); }
.chart svg { display: block; width: 100%; height: auto; }
pre { background: var(--card); box-shadow: 0 0 0 1px var(--line); border-radius: 8px;
  padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .84rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: .3rem 1.5rem; margin: 0; }
dl div { display: flex; gap: .6rem; justify-content: space-between;
  border-bottom: 1px solid var(--line); }
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 760px) {
  main { padding: 1.4rem .9rem 3rem; }
  table, tbody, tr, th, td { display: block; }
  thead { display: none; }
  table { background: none; box-shadow: none; }
  tr { background: var(--card); box-shadow: 0 0 0 1px var(--line); border-radius: 8px;
    margin-bottom: .9rem; padding: .5rem .8rem; }
  th, td { border: 0; padding: .2rem 0; }
  td { display: flex; justify-content: space-between; gap: .3rem; }
  td::before { content: attr(data-label); color: var(--soft); font-weight: 400;
    margin-right: auto; }
  .strip { gap: .9rem .6rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
</style>
</head>
<body><main>
{{body}}
</main></body>
</html>
"""
