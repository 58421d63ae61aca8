"""`vqkern bench`: one case from the command line."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from .cases import DATA, DTYPES, Case


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return value


def _positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern bench` to a parser."""
    parser.add_argument("-N", type=_positive_int, default=16384, help="vectors (%(default)s)")
    parser.add_argument("-K", type=_positive_int, default=16384, help="codes (%(default)s)")
    parser.add_argument("-D", type=_positive_int, default=8, help="channels (%(default)s)")
    parser.add_argument(
        "--op",
        choices=("nearest_code", "code_sums", "squared_mmd", "gaussian_w2"),
        default="nearest_code",
        help="what is compared (%(default)s)",
    )
    parser.add_argument("--data", choices=tuple(DATA), default="gaussian", help="(%(default)s)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:i] (%(default)s)")
    parser.add_argument("--threads", type=_positive_int, help="default: torch's own choice")
    parser.add_argument(
        "--seconds",
        type=_positive_seconds,
        default=5.0,
        help="for the timed rounds of all contestants together (%(default)s)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also compare with torch.compile (nearest_code)"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", metavar="FILE", help="write the rows with every sample")
    parser.add_argument("--csv", metavar="FILE", help="write the rows")


def run(args: argparse.Namespace) -> int:
    """Runs one comparison and prints it.

    Returns:
        0; 1 if this package's own default could not run, was wrong or differed between two calls;
        2 for a bad argument, which is named on stderr.
    """
    from .measure import compare
    from .memory import MemoryProbe
    from .report import rows, table, write_csv, write_json

    try:
        shape = {"n": args.N, "k": args.K, "d": args.D}
        options = {key: getattr(args, key) for key in ("op", "data", "dtype", "seed", "device")}
        case = Case(**shape, **options)
        contestants = _contestants(case, args.compile)
        for option, path in (("--csv", args.csv), ("--json", args.json)):
            if path and not Path(path).parent.is_dir():
                raise ValueError(f"{option}: there is no folder {Path(path).parent} to write into")
    except ValueError as error:
        print(f"vqkern bench: {error}", file=sys.stderr)
        return 2
    with MemoryProbe() as probe:
        comparison = compare(
            case,
            contestants=contestants,
            seconds=args.seconds,
            threads=args.threads,
            probe=None if args.no_memory else probe,
        )
    print(table(comparison))
    if args.csv:
        write_csv(args.csv, rows(comparison))
    if args.json:
        write_json(args.json, [comparison])
    return int(comparison.ours is None)


def _contestants(case: Case, compiled: bool):
    from .contestants import NEAREST_CODE_COMPILED
    from .operations import OPERATIONS

    chosen = OPERATIONS[case.op].contestants
    if not compiled:
        return chosen
    if case.op != "nearest_code":
        raise ValueError(f"--compile compares nearest_code only, got --op {case.op}")
    return (*chosen, NEAREST_CODE_COMPILED)
