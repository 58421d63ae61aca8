"""Agreement of the ranks of a distributed run; without one, every function is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This rank and how many there are; (0, 1) where torch.distributed does not run."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def sum_over_ranks(tensor: Tensor) -> None:
    """Adds up `tensor` in place over all ranks."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor)


def least_over_ranks(tensor: Tensor) -> None:
    """The elementwise minimum of `tensor` over all ranks, in place."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)


def place_among_ranks(count: Tensor) -> tuple[Tensor, Tensor]:
    """Where this rank's `count` items start when the ranks' items are put in a row, and how many
    there are in all; int64 scalars."""
    rank, world = rank_and_world()
    counts = torch.zeros(world, dtype=torch.int64, device=count.device)
    counts[rank] = count
    sum_over_ranks(counts)
    return counts[:rank].sum(), counts.sum()
