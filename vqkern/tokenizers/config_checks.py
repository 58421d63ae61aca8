"""Checks that the configs of the architectures share; messages name the setting and what came."""

from __future__ import annotations

# A config may come from a file. No network has sizes beyond these, and building a million blocks,
# even without memory behind them, takes minutes.
LARGEST = 2**20
LONGEST = 64


def check_positive_int(name: str, value: object, most: int = LARGEST) -> None:
    """`value` must be an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    if value > most:
        raise ValueError(f"{name}: expected at most {most}, got {value}")


def check_positive_ints(name: str, values: object, most: int = LARGEST) -> tuple[int, ...]:
    """A list of such integers, as a tuple: JSON has lists only, and configs must compare equal."""
    if not isinstance(values, (list, tuple)) or not values or len(values) > LONGEST:
        raise ValueError(
            f"{name}: expected a list of integers >= 1, {LONGEST} at most, got {str(values)[:100]}"
        )
    for value in values:
        check_positive_int(name, value, most)
    return tuple(values)
