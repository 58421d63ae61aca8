"""Draws docs/screen.png: one row's scores in int8, their error bars, and what is left to measure.

The figures are real: a Gaussian row and codebook, rounded as the C++ screen rounds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

TILE = 32
GROUP = 8 * TILE  # codes that share a scale and a bound
SEED = 11  # a row with some near rivals


def main() -> None:
    """Computes one row's screen and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    docs = Path(__file__).resolve().parent.parent / "docs"
    parser.add_argument("--out", type=Path, default=docs / "screen.png", help="(%(default)s)")
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    generator = torch.Generator().manual_seed(SEED)
    codes = torch.randn(16384, 16, generator=generator, dtype=torch.float64)
    row = torch.randn(16, generator=generator, dtype=torch.float64)
    codes, row = codes - codes.median(0).values, row - codes.median(0).values
    rounded_row = _round(row, row.abs().amax())
    groups = codes.view(-1, GROUP, 16)
    rounded = _round(groups, groups.abs().amax((1, 2), keepdim=True)).view_as(codes)

    half_norm = codes.square().sum(-1) / 2
    exact = half_norm - codes @ row
    screened = half_norm - rounded @ rounded_row
    norm = codes.norm(dim=-1).view(-1, GROUP).amax(1)
    residual = (codes - rounded).norm(dim=-1).view(-1, GROUP).amax(1)
    delta = (row - rounded_row).norm() * norm + rounded_row.norm() * residual
    delta = delta.repeat_interleave(GROUP)
    first_upper = (screened + delta).amin()
    upper = exact[screened.argmin()]
    survivors = screened - delta <= upper
    least = screened.view(-1, GROUP).amin(1)
    lower = (screened - delta).view(-1, GROUP).amin(1)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), width_ratios=(1.5, 1))
    x = torch.arange(len(lower))
    left.vlines(x, lower, least, color="#9bb3c9", lw=3, label="least score of a group, less delta")
    left.plot(x, least, ".", color="#1f4e79", ms=4, label="least score of a group")
    left.axhline(first_upper, color="#c98a1b", lw=1.2, label="U, from scores plus delta")
    left.axhline(upper, color="#b3261e", lw=1.2, label="U, the best code measured")
    left.set(
        xlabel=f"group of {GROUP} codes",
        ylabel="score",
        title=f"{len(codes):,} codes, one number a group",
    )
    below = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    left.legend(**below, ncols=2, frameon=False)

    shown = screened.argsort()[:14]
    place = torch.arange(len(shown))
    for keep, color, label in (
        (survivors[shown], "#b3261e", "may be nearest: measured"),
        (~survivors[shown], "#9bb3c9", "cannot be"),
    ):
        right.errorbar(
            place[keep], screened[shown][keep], delta[shown][keep], fmt="o", color=color, ms=5,
            capsize=3, label=f"int8 score +- delta: {label}",
        )  # fmt: skip
    right.plot(place, exact[shown], "k_", ms=11, label="score in real arithmetic")
    right.axhline(upper, color="#b3261e", lw=1.2)
    right.set(xlabel="codes, by score", title=f"{int(survivors.sum())} of {len(codes):,} survive")
    right.legend(**below, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


def _round(x: torch.Tensor, widest: torch.Tensor) -> torch.Tensor:
    """x in 255 steps between -widest and widest."""
    unit = widest / 127
    return (x / unit).round() * unit


if __name__ == "__main__":
    main()
