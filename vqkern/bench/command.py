"""Time one operation of this package against its peers, on this machine and one shape.

Every output is judged against exact float64 first; then all contestants take turns, in one process.
A peer that is not installed is named with the command that installs it.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from ..machine import add_device_argument, choose_device
from .cases import DATA, DTYPES, Case
from .operations import OPERATIONS


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    return _whole_number(text, 1)


def seed(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value


def new_file(text: str) -> Path:
    """An argparse type: a path that a file can be written to. Minutes of measuring come before."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, and {text!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write into")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern bench` to a parser."""
    parser.usage = "%(prog)s [-N N] [-K K] [-D D] [--op OP] [--data DATA] [option ...]"
    problem = parser.add_argument_group("the problem")
    problem.add_argument("-N", type=positive_int, default=16384, help="vectors (%(default)s)")
    problem.add_argument("-K", type=positive_int, default=16384, help="codes (%(default)s)")
    problem.add_argument("-D", type=positive_int, default=8, help="channels (%(default)s)")
    for option, known, default, what in (
        ("--op", OPERATIONS, "nearest_code", "what is compared"),
        ("--data", DATA, "gaussian", "how vectors and codes lie"),
        ("--dtype", DTYPES, "float32", "of vectors and codes"),
    ):
        problem.add_argument(
            option,
            choices=tuple(known),
            default=default,
            metavar=option[2:].upper(),
            help=f"{what}: {', '.join(known)} (%(default)s)",
        )
    problem.add_argument("--seed", type=seed, default=0, help="of the inputs (%(default)s)")
    how = parser.add_argument_group("how it is measured")
    add_device_argument(how, default="cpu")
    how.add_argument("--threads", type=positive_int, metavar="T", help="torch's own choice")
    how.add_argument(
        "--seconds",
        type=positive_seconds,
        default=5.0,
        metavar="S",
        help="for the rounds of all contestants; one whose single call takes longer is timed once "
        "(%(default)s)",
    )
    how.add_argument("--compile", action="store_true", help="nearest_code: torch.compile as well")
    how.add_argument("--no-memory", action="store_true", help="do not measure memory")
    output = parser.add_argument_group("output besides the table")
    output.add_argument("--csv", type=new_file, metavar="FILE", help="a row a contestant")
    output.add_argument(
        "--json", type=new_file, metavar="FILE", help="the same rows with every sample"
    )


def run(args: argparse.Namespace) -> int:
    """Runs one comparison and prints it.

    Returns:
        0, or 1 if this package's own default could not run, was wrong or differed between two
        calls.

    Raises:
        ValueError: the options contradict each other.
    """
    from .contestants import NEAREST_CODE_COMPILED
    from .measure import compare
    from .memory import MemoryProbe
    from .report import rows, table, write_csv, write_json

    if args.compile and args.op != "nearest_code":
        raise ValueError(f"--compile compares nearest_code only, got --op {args.op}")
    options = {key: getattr(args, key) for key in ("op", "data", "dtype", "seed")}
    device = str(choose_device(args.device, "--device"))
    case = Case(n=args.N, k=args.K, d=args.D, device=device, **options)
    contestants = OPERATIONS[case.op].contestants_on(case.device)
    with MemoryProbe() as probe:
        comparison = compare(
            case,
            contestants=(*contestants, NEAREST_CODE_COMPILED) if args.compile else contestants,
            seconds=args.seconds,
            longest=args.seconds,
            threads=args.threads,
            probe=None if args.no_memory else probe,
        )
    print(table(comparison))
    if args.csv:
        write_csv(args.csv, rows(comparison))
    if args.json:
        write_json(args.json, [comparison])
    return int(comparison.ours is None)
