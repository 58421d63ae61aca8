"""Recomputes the papers' tables and figures that need no data set, beside the published figures.

`--quick` takes minutes at most on a CPU and is too small for the published figures. A run that is
stopped goes on where it was when the same command is given again, and ends with the same figures.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from vqkern import reproduce
from vqkern.reproduce.frame import Cell, run_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `vqkern reproduce` to a parser."""
    parser.add_argument("name", metavar="NAME", help=", ".join(reproduce.NAMES))
    parser.add_argument("--quick", action="store_true", help="small: minutes at most on a CPU")
    parser.add_argument("--out", help="folder for the run (runs/reproduce/NAME, NAME-quick)")
    parser.add_argument("--methods", nargs="+", metavar="M", help="only these methods")
    parser.add_argument("--shifts", nargs="+", type=float, metavar="S", help="only these shifts")
    parser.add_argument("--threads", type=int, metavar="T", help="CPU threads (torch's choice)")


def run(args: argparse.Namespace) -> int:
    """Runs one experiment and prints its table.

    Raises:
        ValueError: an option does not serve, or a package is missing.
    """
    import torch

    chosen = reproduce.experiment(args.name)
    for package in ("tqdm", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"reproduce needs {package}: pip install 'vqkern[demo]'")
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads: expected at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    settings = chosen.quick if args.quick else chosen.full
    cells = chosen.cells(settings)
    cells = select(cells, "method", "--methods", args.methods)
    cells = select(cells, "shift", "--shifts", args.shifts)
    default = f"runs/reproduce/{chosen.name}{'-quick' if args.quick else ''}"
    out = Path(default if args.out is None else args.out)
    rows = run_experiment(chosen, settings, cells, out)
    print(f"{chosen.name}: {chosen.source}")
    if args.quick:
        print("quick: smaller than the published setting, whose figures need a full run")
    print(chosen.table(rows))
    print(f"figures: {out / (chosen.name + '.csv')}   plot: {out / (chosen.name + '.png')}")
    return 0


def select(cells: list[Cell], axis: str, option: str, wanted: list | None) -> list[Cell]:
    """The cells whose `axis` is among `wanted`; None: all.

    Raises:
        ValueError: the experiment has no such axis, or no cell of a value that is wanted.
    """
    if wanted is None:
        return cells
    known = list(dict.fromkeys(cell[axis] for cell in cells if axis in cell))
    if not known:
        raise ValueError(f"{option}: this experiment has none")
    for value in wanted:
        if value not in known:
            listed = ", ".join(f"{k:g}" if isinstance(k, float) else str(k) for k in known)
            raise ValueError(f"{option}: must be among {listed}, got {value!r}")
    return [cell for cell in cells if cell.get(axis) in wanted]
