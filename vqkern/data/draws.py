"""Random numbers that are a function of integers: the same on every machine and NumPy version.

Built on the raw output of Philox, whose stream NumPy promises to keep; the methods of
`numpy.random.Generator` may change theirs.
"""

import numpy as np


class Draws:
    """A stream of random numbers for one key of integers >= 0.

    Raises:
        ValueError: a part of the key is negative.
    """

    def __init__(self, *key: int) -> None:
        self._bits = _bits(key)

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in [low, high); off uniform by less than (high - low) / 2^64.

        Raises:
            ValueError: the interval is empty.
        """
        if high <= low:
            raise ValueError(f"high: got {high}, expected more than low = {low}")
        return low + (int(self._bits.random_raw()) * (high - low) >> 64)

    def coin(self) -> bool:
        """True or False, equally likely."""
        return self.integer(0, 2) == 1


def permutation(length: int, *key: int) -> np.ndarray:
    """A random order of 0 .. length - 1, int64 [length], as a function of the key."""
    return np.argsort(_bits(key).random_raw(length), kind="stable")


def _bits(key: tuple[int, ...]) -> np.random.Philox:
    if min(key, default=0) < 0:
        raise ValueError(f"key: got {list(key)}, expected integers >= 0")
    return np.random.Philox(np.random.SeedSequence(key))
