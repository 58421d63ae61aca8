"""How often codes are chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import number_of_ranks, sum_over_ranks
from ..ops.direct import undifferentiated
from ..ops.rows import count_codes
from .buffers import KeepsBufferTypes


class Usage(NamedTuple):
    """Code usage since the last reset.

    tokens: tokens counted. codes_hit: codes chosen at least once. utilization: codes_hit / K.
    perplexity: exp of the entropy of the code frequencies, 1 to K. dead_codes: K - codes_hit.
    skipped: tokens left out because they were not finite.
    """

    tokens: int
    codes_hit: int
    utilization: float
    perplexity: float
    dead_codes: int
    skipped: int


_count_codes_op = torch.library.custom_op(
    "vqkern::count_codes", count_codes, mutates_args=("hits", "skipped")
)
_count_codes = undifferentiated(count_codes, _count_codes_op)


@_count_codes_op.register_fake
def _(index: Tensor, counted: Tensor, hits: Tensor, skipped: Tensor) -> None:
    return None


@_count_codes_op.register_vmap
def _(info, in_dims, index, counted, hits, skipped):
    """All of a batch count together."""
    if in_dims[2] is not None or in_dims[3] is not None:
        raise NotImplementedError("count_codes: vmap over the counts themselves is not there")
    each = (index, in_dims[0]), (counted, in_dims[1])
    index, counted = (
        t.expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0) for t, at in each
    )
    return _count_codes_op(index.reshape(-1), counted.reshape(-1), hits, skipped), None


def usages(usage: Usage | list) -> list[Usage]:
    """What `usage()` of any quantizer gives as one list, an entry a codebook."""
    if isinstance(usage, Usage):
        return [usage]
    return [own for part in usage for own in usages(part)]


def runs_again() -> bool:
    """Whether this forward pass runs inside of a backward pass, as activation checkpointing repeats
    it there."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class UsageCounter(KeepsBufferTypes):
    """Counts how often each of `num_codes` codes is chosen, without synchronising with the host.

    In training mode the tokens of all ranks count, on each of them; in eval mode, which need not
    run on all, those of this rank. What activation checkpointing runs again counts once.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_codes, dtype=torch.int64), persistent=False)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)

    def remake_buffers(self) -> None:
        self.reset()

    def add(self, index: Tensor, counted: Tensor) -> None:
        """Counts index [N] where `counted` [N]; an index of -1 there is a skipped token."""
        if runs_again():
            return
        if not self.training or number_of_ranks() == 1:
            _count_codes(index, counted, self.count, self.skipped)
            return
        hits, skipped = torch.zeros_like(self.count), torch.zeros_like(self.skipped)
        _count_codes(index, counted, hits, skipped)
        sum_over_ranks(hits)
        sum_over_ranks(skipped)
        self.count += hits
        self.skipped += skipped

    def reset(self) -> None:
        self.count.zero_()
        self.skipped.zero_()

    def usage(self) -> Usage:
        counts = self.count.double()
        tokens = counts.sum()
        frequency = counts[counts > 0] / tokens
        hit = len(frequency)
        entropy = float(-(frequency * frequency.log()).sum()) if hit else 0.0
        return Usage(
            tokens=int(tokens),
            codes_hit=hit,
            utilization=hit / len(counts),
            perplexity=float(torch.tensor(entropy).exp()) if hit else 0.0,
            dead_codes=len(counts) - hit,
            skipped=int(self.skipped),
        )
