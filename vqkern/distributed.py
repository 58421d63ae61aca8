"""The ranks of a distributed run, started alone or by torchrun, and what they agree on.

Without torch.distributed there is one rank, and every agreement is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def ranks_of_this_run() -> Iterator[None]:
    """Joins torchrun's ranks for the time of a run; alone, does nothing."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    # gloo beside nccl: flags and checkpoints are agreed upon on the CPU, whatever trains.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


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


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on a rank; all ranks get the same answer."""
    tensor = torch.tensor([int(flag) for flag in flags])
    if number_of_ranks() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor]


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """The elementwise mean of floating-point tensors over all ranks, in place."""
    if number_of_ranks() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= number_of_ranks()
    with torch.no_grad():
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def seed_rank(seed: int, step: int) -> None:
    """torch's random numbers as a function of the seed, the step and this rank."""
    words = np.random.SeedSequence((seed, step, this_rank())).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> 1))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """This rank's random state by name; `set_random_state` takes it back."""
    prefix = f"random.{this_rank()}"
    state = {f"{prefix}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state[f"{prefix}.cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    prefix = f"random.{this_rank()}"
    torch.set_rng_state(state[f"{prefix}.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[f"{prefix}.cuda"], device)
