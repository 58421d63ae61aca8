"""`bridge-cost`: multiply-accumulates of the code projectors (FVQ table 10).

Counted from the modules this package trains, at the channel width that the paper's figure for the
linear layer implies: 16,384 x 256^2 = 1.07 G. The published figures are multiply-accumulates,
though the table says FLOPs; a multiply-accumulate is two of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..quantizers import MLP5, Linear, Table, VQBridge
from .frame import Cell, Experiment, Row, Work
from .tables import draw, format_table, published

PROJECTORS = {"linear": Linear, "mlp5": MLP5, "vqbridge": VQBridge}


@dataclass(frozen=True)
class BridgeCost:
    """Settings: codebook sizes and the channels of a code."""

    codebook_sizes: tuple[int, ...] = (16384, 65536, 262144)
    dim: int = 256


def cells(settings: BridgeCost) -> list[Cell]:
    sizes = settings.codebook_sizes
    return [{"method": name, "codebook_size": k} for k in sizes for name in PROJECTORS]


def units(settings: BridgeCost, cell: Cell) -> int:
    return 1


def measure(settings: BridgeCost, cell: Cell, work: Work) -> Row:
    # Nothing is computed: the modules need shapes alone.
    with torch.device("meta"):
        codes = PROJECTORS[cell["method"]](Table(cell["codebook_size"], settings.dim))
    work.advance(1)
    parameters = sum(p.numel() for p in codes.parameters()) - cell["codebook_size"] * settings.dim
    return {"giga": codes.macs() / 1e9, "parameters": parameters}


def table(rows: list[Row]) -> str:
    known = {(r["projector"], r["codebook_size"]): r["giga"] for r in published("bridge_cost")}
    lines = []
    for row in rows:
        theirs = known.get((row["method"], row["codebook_size"]))
        ratio = None if theirs is None else f"{row['giga'] / theirs:.3f}"
        lines.append(
            [
                row["method"],
                f"{row['codebook_size']:,}",
                f"{row['giga']:.2f}",
                None if theirs is None else f"{theirs:.2f}",
                ratio,
                f"{row['parameters']:,}",
            ]
        )
    return format_table(["projector", "K", "GMAC", "paper", "ratio", "parameters"], lines)


def plot(rows: list[Row], path: Path) -> None:
    paper = published("bridge_cost")
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [r for r in rows if r["method"] == name]
        theirs = [r for r in paper if r["projector"] == name]
        sizes = [r["codebook_size"] for r in mine]
        lines.append((name, sizes, [r["giga"] for r in mine], "o-"))
        sizes = [r["codebook_size"] for r in theirs]
        lines.append((f"{name}, paper", sizes, [r["giga"] for r in theirs], "s--"))
    panel = {"x": "codebook size", "y": "GMAC", "lines": lines, "log_x": True, "log_y": True}
    draw(path, [panel], title="Cost of the code projectors")


EXPERIMENT = Experiment(
    name="bridge-cost",
    source="FVQ, table 10",
    full=BridgeCost(),
    quick=BridgeCost(codebook_sizes=(16384, 262144)),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
