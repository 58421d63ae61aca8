"""Agreement of the ranks of a distributed run; without one, every function is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def number_of_ranks() -> int:
    """Ranks of torch.distributed, 1 where it does not run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    """The number of this rank, 0 where torch.distributed does not run."""
    return dist.get_rank() if number_of_ranks() > 1 else 0


def sum_over_ranks(tensor: Tensor) -> None:
    """Adds up `tensor` in place over all ranks."""
    if number_of_ranks() > 1:
        dist.all_reduce(tensor)


def least_over_ranks(tensor: Tensor) -> None:
    """The elementwise minimum of `tensor` over all ranks, in place."""
    if number_of_ranks() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)


def place_among_ranks(count: Tensor) -> tuple[Tensor, Tensor]:
    """Where this rank's `count` items start when the ranks' items are put in a row, and how many
    there are in all; int64 scalars."""
    rank = this_rank()
    counts = torch.zeros(number_of_ranks(), dtype=torch.int64, device=count.device)
    counts[rank] = count
    sum_over_ranks(counts)
    return counts[:rank].sum(), counts.sum()
