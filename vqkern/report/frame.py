"""What every page is made of: the frame with its style and script, tables, and charts' cards."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body><main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page. Its policy forbids every request and every script but its own.

    Args:
        title: Plain text.
        sections: HTML; empty ones are left out.
    """
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return _PAGE.format(
        policy=policy,
        title=html.escape(title),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        body="\n".join(filter(None, sections)),
        script=script,
    )


def header(kicker: str, headline: str, caveat: str, warnings: Iterable[str] = ()) -> str:
    """The top of a page; `warnings` are HTML, the rest plain text."""
    stopped = "".join(f"<p class='stopped'>{warning}</p>" for warning in warnings)
    return (
        f"<header><p class='kicker'>{html.escape(kicker)}</p>"
        f"<h1>{html.escape(headline)}</h1>{stopped}"
        f"<p class='caveat'>{html.escape(caveat)}</p></header>"
    )


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], style: str = "", notes: Sequence = ()
) -> str:
    """A table of plain text, the first column its row headings; narrow screens get cards."""
    head = "".join(f"<th scope='col'>{html.escape(h)}</th>" for h in headings)
    body = []
    for name, *values in rows:
        cells = "".join(
            f"<td data-label='{html.escape(heading)}'><span>{html.escape(value)}</span></td>"
            for heading, value in zip(headings[1:], values, strict=True)
        )
        body.append(f"<tr><th scope='row'>{html.escape(name)}</th>{cells}</tr>")
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        f"<div class='{style}'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
        + (f"<ul class='notes'>{listed}</ul>" if listed else "")
    )


def chart_card(svg: str, caption: str) -> str:
    """A chart with its caption, which is also what a screen reader says of it."""
    label = html.escape(caption)
    svg = svg.replace("<svg", f"<svg role='img' aria-label='{label}'", 1)
    return f"<figure class='chart'>{svg}<figcaption>{label}</figcaption></figure>"


def facts(values: dict[str, str]) -> str:
    """Names and values in columns."""
    entries = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f"<dl>{entries}</dl>"


def settings(summary: str, described: object) -> str:
    """Settings as JSON, folded away."""
    text = html.escape(json.dumps(described, indent=2))
    return f"<details><summary>{html.escape(summary)}</summary><pre>{text}</pre></details>"
