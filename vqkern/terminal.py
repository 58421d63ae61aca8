"""What a person at a terminal reads: errors on one line, aligned columns, progress bars."""

import os
import sys
from collections.abc import Sequence

STAGES = "{desc:<24} {percentage:3.0f} % |{bar}| {elapsed} gone, about {remaining} left"


def one_line(error: object, most: int | None = None) -> str:
    """The message of an error without line breaks, cut after `most` characters; or its name."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def say(text: str, bar=None) -> None:
    """A line on stderr, above the bar; long work does not end because nobody can read it."""
    try:
        if bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            bar.write(text, file=sys.stderr)
    except (OSError, ValueError):  # a full disk, a closed terminal, a pipe without a reader
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def progress_bar(total: int, done: int = 0, unit: str = "it", leave: bool = True):
    """A bar on stderr with rate and remaining time; nothing where stderr is not a terminal.

    Raises:
        ValueError: tqdm is not installed.
    """
    return _bar(total=total, initial=done, unit=unit, leave=leave)


def stage_bar(total: float, smoothing: float = 0.1):
    """A bar over stages of different kinds, which `name_stage` names; see `progress_bar`."""
    return _bar(total=total, bar_format=STAGES, smoothing=smoothing)


def name_stage(bar, stage: str) -> None:
    """The stage before a `stage_bar`; a line of its own where there is no bar."""
    if bar.disable:
        print(stage, file=sys.stderr, flush=True)
    else:
        bar.set_description_str(stage[:24])


def _bar(**options):
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ValueError(
            "the progress bar needs tqdm, which is not installed: pip install 'vqkern[data]'"
        ) from error
    # disable=None: no bar where stderr is not a terminal.
    return tqdm(disable=None, dynamic_ncols=True, **options)
