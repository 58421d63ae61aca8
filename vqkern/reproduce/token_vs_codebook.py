"""`token-vs-codebook`: two tokens of K codes against one of K^2 (unifying view, table 6).

Finding 1: both carry 2 log2 K bits. One token of K^2 codes can do whatever two of K can, and a
little better: `one` is a single codebook over all channels, `two` a codebook for each half. The
paper measures it on ImageNet latents with MMD VQ; here the features are drawn from a Gaussian with
16 channels, independent (`white`) or correlated (covariance .9^|i-j|), and the codes are moved by
the optimiser of `gaussian-shift`'s `ours-none`. What can be compared is the ratio of the two
errors: the paper's are 1.038 at 128 codes and 1.055 at 256.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..quantizers import information
from .frame import Cell, Experiment, Row, Work
from .moving import Moving, move_codes
from .tables import draw, format_table, percent, published


@dataclass(frozen=True)
class TokenVsCodebook:
    """Settings: `parts` are the K of a token where there are two; `moving` how codes are moved."""

    parts: tuple[int, ...] = (64, 128, 256)
    dim: int = 16
    correlation: float = 0.9
    moving: Moving = replace(Moving(), our_features=16384, steps=400, test_features=100_000)


def cells(settings: TokenVsCodebook) -> list[Cell]:
    return [
        {"data": data, "tokens": tokens, "part": part}
        for data in ("white", "correlated")
        for part in settings.parts
        for tokens in ("one", "two")
    ]


def units(settings: TokenVsCodebook, cell: Cell) -> int:
    return settings.moving.steps


def gaussian(
    data: str, half: slice, settings: TokenVsCodebook
) -> Callable[[int, torch.Generator], Tensor]:
    """The channels `half` of Gaussian features of unit variance."""
    place = torch.arange(settings.dim)
    covariance = settings.correlation ** (place[:, None] - place).abs().double()
    root = torch.linalg.cholesky(covariance).float() if data == "correlated" else None

    def features(n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, settings.dim, generator=generator)
        return (z if root is None else z @ root.T)[:, half].contiguous()

    return features


def measure(settings: TokenVsCodebook, cell: Cell, work: Work) -> Row:
    # Both halves of these features have the same distribution: one is measured and counts twice.
    two = cell["tokens"] == "two"
    dim = settings.dim // 2 if two else settings.dim
    codes = cell["part"] if two else cell["part"] ** 2
    moving = replace(settings.moving, codes=codes, dim=dim)
    found = move_codes("ours-none", gaussian(cell["data"], slice(dim), settings), moving, work)
    bits = information(1, settings.dim, 2 if two else 1, codes).output_bits
    return {
        "error": found["error"] * (2 if two else 1),
        "utilization": found["utilization"],
        "bits": bits,
    }


def table(rows: list[Row]) -> str:
    paper = {(r["tokens"], int(r["part"])): r for r in published("token_vs_codebook")}
    lines = []
    for row in rows:
        twin = {**row, "tokens": "one"}
        one = [r for r in rows if all(r[k] == twin[k] for k in ("data", "tokens", "part"))]
        theirs = paper.get((row["tokens"], row["part"]))
        base = paper.get(("one", row["part"]))
        codes = row["part"] ** 2 if row["tokens"] == "one" else row["part"]
        lines.append(
            [
                f"{row['data']}, {row['tokens']} of {codes:,}",
                f"{row['bits']:g}",
                f"{row['error']:.4f}",
                f"{row['error'] / one[0]['error']:.3f}" if one else None,
                None if theirs is None else f"{theirs['error']:.3f}",
                None if theirs is None else f"{theirs['error'] / base['error']:.3f}",
                percent(row["utilization"]),
            ]
        )
    head = ["features, tokens", "bits", "error", "to one", "paper", "to one", "utilization"]
    return format_table(head, lines)


def plot(rows: list[Row], path: Path) -> None:
    panels = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines = []
        for tokens in ("one", "two"):
            mine = [r for r in rows if (r["data"], r["tokens"]) == (data, tokens)]
            bits = [row["bits"] for row in mine]
            lines.append((f"{tokens} token(s)", bits, [row["error"] for row in mine], "o-"))
        panels.append({"x": "bits", "y": "error", "lines": lines, "title": data, "log_y": True})
    draw(path, panels)


_SMALL = replace(Moving(), our_features=4096, steps=150, test_features=20_000)

EXPERIMENT = Experiment(
    name="token-vs-codebook",
    source="Unifying view, finding 1 and table 6",
    full=TokenVsCodebook(),
    quick=TokenVsCodebook(parts=(16, 32), moving=_SMALL),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
