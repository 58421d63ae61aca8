"""One feature per code, agreed by all ranks: what codes are re-anchored on.

Every function takes this rank's features z [N, D], of which the `valid` [N] count, and returns an
`Anchors`. N may differ from rank to rank and be 0: only tensors of K, K x D or as many numbers as
there are ranks travel, and every rank gets the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..distributed import (
    least_over_ranks,
    number_of_ranks,
    place_among_ranks,
    sum_over_ranks,
    this_rank,
)
from ..ops import nearest_code


class Anchors(NamedTuple):
    """`rows` [K, D], zeros where none was `found` [K]."""

    rows: Tensor
    found: Tensor


def random_features(z: Tensor, valid: Tensor, wanted: Tensor, draw: Tensor) -> Anchors:
    """A random feature of any rank for each `wanted` [K] code, no feature twice.

    The features of all ranks, a ring begun at a random place, are cut into as many equal runs as
    codes are wanted, and each code takes a random one of its run. Where there are fewer features
    than wanted codes, evenly spread codes get one.

    Args:
        draw: int64 scalar; the same number draws the same features. The randomness is a hash of it
            and the code, so that ranks and resumed runs agree and a compiled graph stays whole.
    """
    z, valid = _at_least_one_row(z, valid)
    own = valid.sum()
    offset, total = place_among_ranks(own)
    turn = wanted.cumsum(0) - wanted.long()
    runs = wanted.sum().clamp_min(1)
    low, high = turn * total // runs, (turn + 1) * total // runs
    code = torch.arange(len(wanted), device=wanted.device)
    seed = _hash(draw)
    pick = low + (_hash(code + seed) * (high - low) >> 32) + (_hash(~seed) * total >> 32)
    found = wanted & (high > low)
    here = pick % total.clamp_min(1) - offset
    mine = found & (here >= 0) & (here < own)
    order = valid.logical_not().to(torch.uint8).argsort(stable=True)
    rows = torch.where(mine[:, None], z[order[here.clamp(0, len(z) - 1)]], 0)
    sum_over_ranks(rows)
    return Anchors(rows, found)


def nearest_features(z: Tensor, valid: Tensor, codes: Tensor) -> Anchors:
    """The feature nearest to each code: the search with its two sides exchanged."""
    z, valid = _at_least_one_row(z, valid)
    candidates = torch.where(valid[:, None], z, torch.nan)
    index, distance = nearest_code(codes, candidates)
    return _agreed(z, index, distance)


def farthest_features(z: Tensor, valid: Tensor, codes: Tensor) -> Anchors:
    """The feature farthest from each code, in tiles of features: memory for K * D, not N * K."""
    z, valid = _at_least_one_row(z, valid)
    rows, codes = torch.where(valid[:, None], z, 0).float(), codes.float()
    farthest = codes.new_full((len(codes),), -1.0)
    index = torch.full_like(farthest, -1, dtype=torch.int64)
    tile = max(1, min(codes.shape[1], len(rows)))
    for start in range(0, len(rows), tile):
        distance = torch.cdist(codes, rows[start : start + tile])
        distance = torch.where(valid[start : start + tile], distance, -1.0)
        best, place = distance.max(dim=1)
        farther = best > farthest
        farthest = torch.where(farther, best, farthest)
        index = torch.where(farther, place + start, index)
    return _agreed(z, index, -farthest)


def _agreed(z: Tensor, index: Tensor, score: Tensor) -> Anchors:
    """The feature of the rank with the least score, the first rank among equals; index -1: none."""
    rank, world = this_rank(), number_of_ranks()
    score = torch.where(index >= 0, score, torch.inf)
    least = score.clone()
    least_over_ranks(least)
    owner = torch.where((index >= 0) & (score == least), rank, world)
    least_over_ranks(owner)
    rows = torch.where((owner == rank)[:, None], z[index.clamp_min(0)], 0)
    sum_over_ranks(rows)
    return Anchors(rows, owner < world)


def _at_least_one_row(z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    # A row that is not valid spares every caller the case of an empty rank.
    return F.pad(z.detach(), (0, 0, 0, 1)), F.pad(valid, (0, 1))


def _hash(x: Tensor) -> Tensor:
    """32 bits out of an integer, each bit depending on all (a multiply-xorshift); int64."""
    x = x & 0xFFFFFFFF
    for _ in range(2):  # products stay below 2^59: int64 never wraps
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x
