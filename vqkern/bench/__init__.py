"""Interleaved comparisons of the ops with their peers: correct first, then fast, in one process.

A *case* is an op, a shape and a data set; a *contestant* is a way of computing it. Both are data:
one `Contestant` in `contestants.py` adds a peer, one `Operation` in `operations.py` adds an op.
"""

from .cases import DATA, Case
from .command import add_arguments, run
from .contestants import Contestant
from .measure import Comparison, Result, compare
from .memory import MemoryProbe
from .operations import OPERATIONS, Operation, Verdict
from .report import COLUMNS, environment, rows, table, write_csv, write_json

__all__ = [
    "COLUMNS",
    "Case",
    "Comparison",
    "Contestant",
    "DATA",
    "MemoryProbe",
    "OPERATIONS",
    "Operation",
    "Result",
    "Verdict",
    "add_arguments",
    "compare",
    "environment",
    "rows",
    "run",
    "table",
    "write_csv",
    "write_json",
]
