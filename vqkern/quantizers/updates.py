"""Update rules: how codes move towards the features assigned to them.

A rule is a module with three methods. `attach` prepares it for a parametrisation, `loss` returns
the codebook loss of a step, `step` moves codes without a gradient. Both see rows that are not valid
(masked or not finite) with index -1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import code_sums
from .base import masked_mse, require_weight
from .codes import Table


class Gradient(nn.Module):
    """Codes move by the gradient of weight * mse(sg z, e): the second term of VQ-VAE's loss.

    Args:
        weight: of the codebook loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        require_weight("codebook_weight", weight)
        self.weight = weight

    def attach(self, codes: nn.Module) -> None:
        """Any parametrisation will do."""

    def loss(self, z: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        return self.weight * masked_mse(nearest, z.detach(), index >= 0)

    def step(self, z: Tensor, index: Tensor) -> None:
        """The optimiser moves the codes."""

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class EMA(nn.Module):
    """Codes are exponential moving averages of their features (van den Oord et al. 2017, appendix
    A.1).

    n_k <- decay n_k + (1 - decay) count_k and S_k <- decay S_k + (1 - decay) total_k; a code that
    received features moves to S_k / n_k. One that received none has the same ratio as before and
    does not move: smoothing its count would pull it to the origin. Count and total are summed over
    ranks.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        self.decay = decay

    def attach(self, codes: nn.Module) -> None:
        if not isinstance(codes, Table):
            raise TypeError(
                f"EMA moves a free table of codes, got {type(codes).__name__}; use Gradient there"
            )
        codes.weight.requires_grad_(False)
        # A list hides the module: its parameters belong to the quantizer, not twice to the rule.
        self._codes = [codes]
        self.register_buffer("count", torch.ones(codes.num_codes))
        self.register_buffer("total", codes.weight.detach().float().clone())

    def loss(self, z: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        return z.new_zeros((), dtype=torch.float32)

    @torch.no_grad()
    def step(self, z: Tensor, index: Tensor) -> None:
        (codes,) = self._codes
        count, total = code_sums(z.detach(), index, codes.num_codes)
        count = count.to(self.count.dtype)
        total = total.to(self.total.dtype)
        sum_over_ranks(count)
        sum_over_ranks(total)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        average = self.total / self.count.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        moved = torch.where((count > 0)[:, None], average.to(codes.weight.dtype), codes.weight)
        codes.weight.copy_(moved)

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets the statistics: every code counts as one feature at its place."""
        self.count.fill_(1)
        self.total.copy_(self._codes[0].weight)

    def _apply(self, fn, recurse: bool = True):
        # .half() and .bfloat16() move the statistics, and leave them float32: decay .999 needs it.
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def __deepcopy__(self, memo):
        # The copy's table is the copied quantizer's, wherever deepcopy meets it first.
        import copy

        result = EMA(self.decay)
        memo[id(self)] = result
        result.training = self.training
        if hasattr(self, "_codes"):
            result._codes = [copy.deepcopy(self._codes[0], memo)]
            result.register_buffer("count", self.count.clone())
            result.register_buffer("total", self.total.clone())
        return result

    def extra_repr(self) -> str:
        return f"decay={self.decay}"


def number_of_ranks() -> int:
    """Ranks of torch.distributed, 1 where it does not run."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> None:
    """Adds up `tensor` in place over all ranks, where torch.distributed runs with more than one."""
    import torch.distributed as dist

    if number_of_ranks() > 1:
        dist.all_reduce(tensor)
