"""The page that compares training runs: figures, curves, pictures, settings that differ."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vqkern.metrics import psnr, ssim
from vqkern.report.charts import line_chart, line_styles, smooth
from vqkern.report.frame import chart_card, facts, header, page, settings, table
from vqkern.report.pictures import pictures_section
from vqkern.report.results import Curve, Strip
from vqkern.report.runs import Run, setting_differences

# Name in the log, what its chart says, a factor, whether the axis is logarithmic.
CURVES = (
    ("error", "quantization error", 1.0, True),
    ("utilization", "codes used (%)", 100.0, False),
    ("psnr", "PSNR of training crops (dB)", 1.0, False),
    ("loss", "loss", 1.0, False),
)
MORE_CURVES = {
    "pixel": "pixel loss",
    "lpips": "LPIPS",
    "quantizer": "quantizer's loss",
    "generator_loss": "generator's loss",
    "weight": "weight of the generator's loss",
    "discriminator_loss": "discriminator's loss",
    "logit_real": "discriminator on real images",
    "logit_fake": "discriminator on reconstructions",
    "lr": "learning rate",
    "skipped": "steps skipped so far",
    "images_per_second": "images per second",
}
# Key of an evaluation, heading, how to print it.
EVALUATION = (
    ("images", "images", "{:,}"),
    ("quantization_error", "quantization error", "{:.4f}"),
    ("utilization", "utilization", "{:.1%}"),
    ("perplexity", "perplexity", "{:,.0f}"),
    ("psnr", "PSNR (dB)", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("lpips", "LPIPS", "{:.4f}"),
    ("rfid", "rFID", "{:.3f}"),
    ("inception_score", "IS", "{:.1f}"),
)
SAMPLE_PICTURES = 4


class Pictures:
    """Reconstructions of the same images by all runs that have a finished tokenizer.

    Args:
        title, intro: What the images are.
        strips: Originals, all of one size, to which reconstructions are added.
    """

    def __init__(self, title: str, intro: str, strips: list[Strip]) -> None:
        self.title, self.intro, self.strips = title, intro, strips
        self.originals = torch.stack([strip.original for strip in strips])
        self.scores: dict[str, tuple[float, float]] = {}
        self.problems: list[str] = []

    def add(self, run: Run, device: torch.device) -> None:
        """Reconstructs the images by a run's tokenizer; what it cannot take becomes a problem."""
        from vqkern.tokenizers import from_pretrained

        if run.tokenizer is None:
            self.problems.append(f"{run.name} has no finished tokenizer, so no reconstructions")
            return
        try:
            tokenizer = from_pretrained(run.tokenizer).to(device)
            rows = [tokenizer.reconstruct(image[None].to(device)) for image in self.originals]
        except ValueError as error:
            self.problems.append(f"{run.name} reconstructs none of these images: {error}")
            return
        self.add_images(run.name, torch.cat(rows).cpu())

    def add_images(self, name: str, images: Tensor) -> None:
        """Reconstructions [B, 3, H, W] in [-1, 1] under a name."""
        decibels = psnr(images, self.originals)
        similarity = ssim(images, self.originals) if min(images.shape[2:]) >= 11 else None
        mean = float("nan") if similarity is None else float(similarity.mean())
        self.scores[name] = (float(decibels.mean()), mean)
        for strip, image, value in zip(self.strips, images, decibels, strict=True):
            strip.reconstructions.append((name, image, float(value)))


def write_comparison(
    runs: Sequence[Run], pictures: Pictures | None, environment: dict[str, str], path: Path
) -> None:
    """Writes the page of one run, or of several beside each other."""
    names = ", ".join(run.name for run in runs)
    title = f"{len(runs)} runs: {names}" if len(runs) > 1 else f"Run {names}"
    samples = [(run, sample_strips(run)) for run in runs]
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    problems += pictures.problems if pictures is not None else []
    unfinished = [
        f"{run.name} is at step {run.step:,} of {run.steps:,}"
        for run in runs
        if run.step < run.steps
    ]
    warnings = [f"<strong>Unfinished.</strong> {html.escape('; '.join(unfinished))}."]
    sections = [
        header(
            "vqkern report",
            title,
            "Curves and last figures are of training batches. Evaluate runs with vqkern eval on "
            "one set of images before you compare them.",
            (warnings if unfinished else [])
            + _measured_on_different_images(runs)
            + [html.escape(problem) for problem in problems],
        ),
        _results(runs, pictures),
        _evaluations(runs),
        _pictures(pictures),
        _training(runs),
        _differences(runs),
        _samples(samples),
        _made(runs, environment),
    ]
    path.write_text(page(title, sections), encoding="utf-8")


def _results(runs: Sequence[Run], pictures: Pictures | None) -> str:
    headings = ["run", "trainer", "quantizer", "steps", "quantization error", "codes used"]
    shown = pictures is not None and pictures.scores
    if shown:
        headings += ["PSNR of the pictures (dB)", "SSIM of the pictures"]
    rows = []
    for run in runs:
        last = {name: curve.values[-1] for name, curve in run.curves.items()}
        row = [run.name, str(run.recipe.get("trainer")), run.quantizer]
        row += [f"{run.step:,} of {run.steps:,}", _number(last.get("error"), "{:.4f}")]
        row += [_number(last.get("utilization"), "{:.1%}")]
        if shown:
            values = pictures.scores.get(run.name, (None, None))
            row += [_number(values[0], "{:.2f}"), _number(values[1], "{:.4f}")]
        rows.append(row)
    note = "Quantization error: of the last line of the log. Codes used: since the line before it."
    return f"<section><h2>Runs</h2>{table(headings, rows, notes=[note])}</section>"


def _measured_on_different_images(runs: Sequence[Run]) -> list[str]:
    """A warning for every protocol whose evaluations are not of the same images, cut alike."""
    seen: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for figures in run.evaluations:
            what = ", ".join(str(figures.get(key)) for key in ("data", "crop", "images"))
            seen.setdefault(str(figures.get("protocol")), {}).setdefault(what, []).append(run.name)
    warnings = []
    for protocol, images in seen.items():
        if len(images) > 1:
            told = "; ".join(f"{', '.join(names)}: {what}" for what, names in images.items())
            warnings.append(
                "<strong>Not comparable.</strong> Evaluations by protocol "
                f"{html.escape(protocol)} are of different images (data, crop, how many): "
                f"{html.escape(told)}."
            )
    return warnings


def _evaluations(runs: Sequence[Run]) -> str:
    found = [(run, figures) for run in runs for figures in run.evaluations]
    if not found:
        return ""
    columns = [c for c in EVALUATION if any(c[0] in figures for _, figures in found)]
    headings = ["run", "protocol", *(heading for _, heading, _ in columns)]
    rows, notes = [], []
    for run, figures in found:
        protocol = str(figures.get("protocol"))
        values = [_number(figures.get(key), form) for key, _, form in columns]
        rows.append([run.name, protocol, *values])
        told = {k: v for k, v in figures.items() if k not in {c[0] for c in EVALUATION}}
        rest = ", ".join(f"{k} {v}" for k, v in told.items() if isinstance(v, str))
        notes.append(f"{run.name}: {rest}")
    return f"<section><h2>Evaluations</h2>{table(headings, rows, notes=notes)}</section>"


def _pictures(pictures: Pictures | None) -> str:
    if pictures is None:
        return ""
    return pictures_section(pictures.title, pictures.intro, pictures.strips)


def _training(runs: Sequence[Run]) -> str:
    looks = line_styles(len(runs))
    main = [_chart(runs, looks, name, label, f, log) for name, label, f, log in CURVES]
    known = {name for name, *_ in CURVES}
    others = dict.fromkeys(name for run in runs for name in run.curves if name not in known)
    more = [_chart(runs, looks, name, MORE_CURVES.get(name, name), 1.0, False) for name in others]
    if not any(main) and not any(more):
        return ""
    body = f"<ul class='legend'>{''.join(map(_legend, runs, looks))}</ul>"
    body += f"<div class='charts'>{''.join(main)}</div>"
    if any(more):
        charts = f"<div class='charts'>{''.join(more)}</div>"
        body += f"<details><summary>More curves</summary>{charts}</details>"
    return f"<section><h2>Training</h2>{body}</section>"


def _legend(run: Run, look: tuple[str, str]) -> str:
    colour, dashes = look
    line = f"<line x1='0' x2='26' y1='4' y2='4' stroke='{colour}' stroke-width='3'"
    line += f" stroke-dasharray='{dashes}'/>"
    hidden = "aria-hidden='true' focusable='false'"
    return f"<li><svg viewBox='0 0 26 8' {hidden}>{line}</svg>{html.escape(run.name)}</li>"


def _chart(
    runs: Sequence[Run],
    looks: list[tuple[str, str]],
    name: str,
    label: str,
    factor: float,
    log: bool,
) -> str:
    """One value over the steps of all runs that logged it; empty where none did."""
    having = [(run, look) for run, look in zip(runs, looks, strict=True) if name in run.curves]
    if not having:
        return ""
    window = max(1, max(len(run.curves[name].steps) for run, _ in having) // 40)
    series = []
    for run, _ in having:
        curve = run.curves[name]
        scaled = Curve(curve.name, curve.value, curve.steps, [v * factor for v in curve.values])
        series.append((run.name, *smooth(scaled, window)))
    log = log and min(min(y) for _, _, y in series) > 0
    svg = line_chart(series, "step", label, log=log, styles=[look for _, look in having])
    smoothed = f", mean of {window} lines of the log" if window > 1 else ""
    return chart_card(svg, f"{label[:1].upper()}{label[1:]}{smoothed}")


def _differences(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    rows = [[name, *values] for name, values in setting_differences(runs)]
    if rows:
        body = table(["setting", *(run.name for run in runs)], rows, style="settings")
    else:
        body = "<p>None: the recipes are the same.</p>"
    return f"<section><h2>Settings that differ</h2>{body}</section>"


def _samples(samples: list[tuple[Run, list[Strip]]]) -> str:
    """Pictures made during training: the first of them against the last, run by run."""
    sections = []
    for run, strips in samples:
        if not strips:
            continue
        ends = " and ".join(name for name, _, _ in strips[0].reconstructions)
        title = f"{run.name} during training: {ends}"
        intro = "Training crops, reconstructed with the weights of that moment."
        section = pictures_section(title, intro, strips, heading=False)
        opened = " open" if len(samples) == 1 else ""
        summary = f"<summary>{html.escape(title)}</summary>"
        sections.append(f"<details{opened}>{summary}{section}</details>")
    if not sections:
        return ""
    return f"<section><h2>During training</h2>{''.join(sections)}</section>"


def sample_strips(run: Run) -> list[Strip]:
    """The first crops of the first and the last picture that a run made of its training."""
    strips: list[Strip] = []
    for step, path in dict.fromkeys([*run.samples[:1], *run.samples[-1:]]):
        try:
            originals, reconstructions = _tiles(path)
        except ValueError as error:
            run.problems.append(str(error))
            continue
        if not strips:
            strips = [
                Strip(f"crop {number}", "", image)
                for number, image in enumerate(originals[:SAMPLE_PICTURES], start=1)
            ]
        if len(originals) < len(strips) or originals.shape[1:] != strips[0].original.shape:
            run.problems.append(f"{path.name} shows other crops than {run.samples[0][1].name}")
            continue
        values = psnr(reconstructions, originals)
        for strip, image, value in zip(strips, reconstructions, values, strict=False):
            strip.reconstructions.append((f"step {step:,}", image, float(value)))
    return strips


def _tiles(path: Path) -> tuple[Tensor, Tensor]:
    """Originals and reconstructions [B, 3, S, S] of a grid: one row of each."""
    from vqkern.data import read_image, to_float

    grid = to_float(read_image(path))
    side = grid.shape[1] // 2
    if not side or grid.shape[1] % 2 or grid.shape[2] % side:
        raise ValueError(f"{path.name} is not a grid of samples: {list(grid.shape)}")
    rows = grid.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4)
    return rows[0], rows[1]


def _made(runs: Sequence[Run], environment: dict[str, str]) -> str:
    recipes = "".join(settings(f"Recipe of {run.name}", run.recipe) for run in runs)
    return (
        f"<section><h2>How it was made</h2>{recipes}"
        f"<h3>This page was made on</h3>{facts(environment)}</section>"
    )


def _number(value: object, form: str) -> str:
    if not isinstance(value, int | float) or value != value:
        return "–"
    return form.format(value)
