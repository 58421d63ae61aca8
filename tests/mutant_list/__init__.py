"""The mutants of `make mutants`: one change each that makes results wrong, or unproved.

A change that only costs time, or that another margin makes up for, is none: it cannot fail a test.
"""

from . import cuda, passes, screens, search, triton
from .mutant import Mutant

MUTANTS = [
    *screens.MUTANTS, *search.MUTANTS, *passes.MUTANTS, *triton.MUTANTS, *cuda.MUTANTS,
]  # fmt: skip

__all__ = ["MUTANTS", "Mutant"]
