"""Originals beside reconstructions, and a viewer that lays two of them over each other."""

import base64
import html
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from vqkern.report.results import Strip

ERROR_FULL_SCALE = 0.5  # error pictures reach white at this mean |difference|, images in [-1, 1]
ERROR_NOTE = (
    "Below each reconstruction is its error: the mean absolute difference of the three colours, "
    "black for none, white for a quarter of the full range or more."
)


def pictures_section(title: str, intro: str, strips: Sequence[Strip], heading: bool = True) -> str:
    """A viewer and the strips it takes its pictures from; empty without a reconstruction.

    Args:
        title, intro: Plain text.
        strips: All with reconstructions of the same names, in the same order.
        heading: Whether the title is shown; what folds the section away may have it already.
    """
    strips = [strip for strip in strips if strip.reconstructions]
    if not strips:
        return ""
    shown = f"<h2>{html.escape(title)}</h2>" if heading else ""
    return (
        f"<section data-pictures>{shown}<p>{html.escape(f'{intro} {ERROR_NOTE}')}</p>"
        f"{_viewer(title, strips)}{''.join(_strip(strip) for strip in strips)}</section>"
    )


def _viewer(title: str, strips: Sequence[Strip]) -> str:
    """Hidden until the script, which moves it, has run."""
    fewest = min((strip.reconstructions for strip in strips), key=len)
    sides = ["original", *(name for name, _, _ in fewest)]
    # The first against the last; a single reconstruction against the original.
    first = 1 if len(sides) > 2 else 0
    label = html.escape(f"{title}: how much of the left picture is shown")
    return (
        "<div class='viewer' hidden><div class='choices'>"
        f"{_select('picture', [strip.name for strip in strips], 0)}"
        f"{_select('left', sides, first)}{_select('right', sides, len(sides) - 1)}</div>"
        "<div class='stage'><img class='after' alt=''><img class='before' alt=''>"
        f"<input type='range' min='0' max='100' step='1' value='50' aria-label='{label}'></div>"
        "<p class='sides'><span></span><span></span></p></div>"
    )


def _select(name: str, options: Sequence[str], chosen: int) -> str:
    entries = "".join(
        f"<option value='{number}'{' selected' if number == chosen else ''}>"
        f"{html.escape(option)}</option>"
        for number, option in enumerate(options)
    )
    return f"<label>{name}<select autocomplete='off'>{entries}</select></label>"


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
