"""The papers' tables and figures that need no data set, recomputed."""

from __future__ import annotations

import importlib

from .frame import Experiment

NAMES = (
    "gaussian-shift",
    "non-gaussian",
    "variance",
    "bounds",
    "token-vs-codebook",
    "ste-toy",
    "bridge-cost",
    "fair",
)


def experiment(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in NAMES:
        raise ValueError(f"NAME must be one of {', '.join(NAMES)}, got {name!r}")
    return importlib.import_module(f".{name.replace('-', '_')}", __package__).EXPERIMENT
