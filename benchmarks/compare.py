"""Compares vqkern with its peers over the cases of `cases.py`: correct first, then fast, in turns.

Writes one CSV per op to runs/bench/, a row per contestant and case, and plots it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cases import CASES, cases
from plot import plot
from record import commit

from vqkern.bench import Case, MemoryProbe, compare, rows, table, write_csv
from vqkern.bench.command import positive_int, positive_seconds
from vqkern.bench.contestants import NEAREST_CODE_COMPILED
from vqkern.bench.operations import OPERATIONS
from vqkern.machine import add_device_argument, choose_device

ROOT = Path(__file__).resolve().parent
RESULTS = Path("runs/bench")
# Seconds: what the timed rounds of a case take, and a call that is timed once instead.
SECONDS, SECONDS_FULL = 1.5, 10.0
LONGEST, LONGEST_FULL = 1.5, 60.0


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; 1 if vqkern itself failed or was wrong anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--op",
        choices=(*CASES, "all"),
        help="default: nearest_code; all with --full",
    )
    parser.add_argument("--full", action="store_true", help="every op, data set and contestant")
    parser.add_argument(
        "--seconds",
        type=positive_seconds,
        help=f"timed rounds of a case ({SECONDS:g}; {SECONDS_FULL:g} with --full)",
    )
    parser.add_argument("--threads", type=positive_int, help="default: torch's own choice")
    add_device_argument(parser, default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (%(default)s)")
    args = parser.parse_args(arguments)
    op = args.op or ("all" if args.full else "nearest_code")
    seconds = args.seconds or (SECONDS_FULL if args.full else SECONDS)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    try:
        device = str(choose_device(args.device, "--device"))
        for name in CASES if op == "all" else (op,):
            chosen = cases(name, full=args.full, device=device)
            stem = f"{name}_{device.split(':')[0]}" + ("_full" if args.full else "")
            path = args.out / f"{stem}.csv"
            failed += _run(chosen, path, seconds, args.threads, args.full)
            print(f"\nwrote {path} and {plot(path)}")
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    for label in failed:
        print(f"vqkern failed: {label}", file=sys.stderr)
    return int(bool(failed))


def _run(
    chosen: list[Case], path: Path, seconds: float, threads: int | None, full: bool
) -> list[str]:
    """Runs cases and writes the CSV after each; the labels of those where vqkern failed."""
    measured, failed, version = [], [], commit()
    contestants = OPERATIONS[chosen[0].op].contestants_on(chosen[0].device)
    if full and chosen[0].op == "nearest_code":
        contestants = (*contestants, NEAREST_CODE_COMPILED)
    with MemoryProbe() as probe:
        for case in chosen:
            comparison = compare(
                case,
                contestants=contestants,
                seconds=seconds,
                longest=LONGEST_FULL if full else LONGEST,
                threads=threads,
                probe=probe,
            )
            print(f"\n{table(comparison)}", flush=True)
            measured += rows(comparison, version)
            write_csv(path, measured)
            if comparison.ours is None:
                failed.append(case.label())
    return failed


if __name__ == "__main__":
    sys.exit(main())
