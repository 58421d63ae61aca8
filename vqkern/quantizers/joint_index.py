"""One token from several: the joint index of a product, its inverse, and its usage."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..ops.direct import undifferentiated
from ..ops.rows import join_digits, require_in_range, split_digits
from .usage import Usage, UsageCounter

# Above so many implicit codes nothing is made that has a row for each of them.
MAX_EXPLICIT_CODES = 2**24


def joint_size(name: str, sizes: Sequence[int]) -> int:
    """K = n_1 ... n_M.

    Raises:
        ValueError: an index of K codes does not fit in int64.
    """
    size = prod(sizes)
    if size > 2**63:
        factors = " x ".join(map(str, sizes)) if len(sizes) < 9 else f"{len(sizes)} factors"
        raise ValueError(
            f"{name}: a joint index of {factors} = {size} codes does not fit "
            "in int64; at most 2^63 codes do: use fewer parts, or a token each"
        )
    return size


def join_index(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """r = r_1 + sum_m (n_1 ... n_{m-1}) r_m (unifying view, eqs. 5 and 9).

    Args:
        digits: int64 [..., M], each in [0, n_m) or -1.
        sizes: n_m.

    Returns:
        int64 [...]; -1 where any digit is.
    """
    return _join_index(digits, list(sizes))


def split_index(index: Tensor, sizes: Sequence[int]) -> Tensor:
    """The digits [..., M] of a joint index [...], the inverse of `join_index`.

    Raises:
        IndexError: an index is below -1 or not below n_1 ... n_M.
    """
    return _split_index(index.long(), list(sizes))


_join_index_op = torch.library.custom_op("vqkern::join_index", join_digits, mutates_args=())
_join_index = undifferentiated(join_digits, _join_index_op)


@_join_index_op.register_fake
def _(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    return digits.new_empty(digits.shape[:-1])


# An op, because it looks at values: compiled and exported graphs keep the check.
def _split_index_of(index: Tensor, sizes: Sequence[int]) -> Tensor:
    require_in_range("split_index", index, prod(sizes))
    return split_digits(index, sizes)


_split_index_op = torch.library.custom_op("vqkern::split_index", _split_index_of, mutates_args=())
_split_index = undifferentiated(_split_index_of, _split_index_op)


@_split_index_op.register_fake
def _(index: Tensor, sizes: Sequence[int]) -> Tensor:
    return index.new_empty(*index.shape, len(sizes))


class JointCounter(nn.Module):
    """Usage of n_1 ... n_M joint codes: counted jointly up to 2^24 codes, else digit by digit."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.joint = prod(sizes) <= MAX_EXPLICIT_CODES
        counted = [prod(sizes)] if self.joint else sizes
        self.counters = nn.ModuleList(UsageCounter(size) for size in counted)

    def add(self, index: Tensor, counted: Tensor) -> None:
        """Counts joint indices [N] where `counted` [N]."""
        digits = index[:, None] if self.joint else split_index(index, self.sizes)
        for m, counter in enumerate(self.counters):
            counter.add(digits[:, m], counted)

    def reset(self) -> None:
        for counter in self.counters:
            counter.reset()

    def usage(self) -> Usage | list[Usage]:
        """Of the joint codes; above 2^24 of them one Usage a digit, that is, a part or channel."""
        usages = [counter.usage() for counter in self.counters]
        return usages[0] if self.joint else usages
