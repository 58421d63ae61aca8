"""The `vqkern` command: each subcommand lives with what it runs, here they are only wired."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .terminal import one_line

# Of each command its package, which has a `command.py`, and what the list of commands says.
COMMANDS = {
    "demo": ("demo", "make a large-codebook tokenizer from photographs"),
    "convert": ("tokenizers", "turn a public checkpoint into a tokenizer folder"),
    "train": ("training", "train a tokenizer by a recipe"),
    "eval": ("evaluate", "measure the tokenizer of a run"),
    "report": ("report", "compare runs on one page"),
    "tokenize": ("tokenize", "encode a folder of images into token shards"),
    "data": ("data", "crop and pack images into tar shards"),
    "bench": ("bench", "time an operation against its peers here"),
    "reproduce": ("reproduce", "recompute tables of the papers that need no data set"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; mistakes of the user end in one line on stderr and exit code 2."""
    name = "vqkern"
    try:
        arguments = _parse(argv)
        name = f"vqkern {arguments.command}"
        return arguments.run(arguments)
    except BrokenPipeError:
        return 1
    except (ValueError, TypeError, IndexError, OSError, ImportError, MemoryError) as error:
        return _complain(name, error)
    except RuntimeError as error:
        # torch has no error of its own for memory that is not there.
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        return _complain(name, error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not hasattr(arguments, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = rest
    return arguments


def _complain(name: str, error: Exception) -> int:
    print(f"{name}: {one_line(error)}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vqkern", description="Exact, fast vector quantization with very large codebooks."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(commands)
    for name, (package, summary) in COMMANDS.items():
        _add_command(commands, name, package, summary)
    return parser


def _add_command(commands, name: str, package: str, summary: str) -> None:
    import importlib

    implementation = importlib.import_module(f"vqkern.{package}.command")
    parser = commands.add_parser(name, help=summary, description=implementation.__doc__)
    implementation.add_arguments(parser)
    parser.set_defaults(run=implementation.run)


def _add_info(commands) -> None:
    parser = commands.add_parser("info", help="versions, CPU features, and which backends can run")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from . import info

    print(info.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
