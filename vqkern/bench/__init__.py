"""Compares an op with its peers on this machine: judged against exact float64 first, then timed in
turns, in one process. A peer that is not installed is named with the command that installs it.
"""
# A *case* is an op, a shape and a data set; a *contestant* is a way of computing it. Both are data:
# one `Contestant` in contestants/ adds a peer, one `Operation` in operations.py adds an op.

from .cases import DATA, Case
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
    "compare",
    "environment",
    "rows",
    "table",
    "write_csv",
    "write_json",
]
