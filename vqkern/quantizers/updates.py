"""Update rules: how codes move towards the features assigned to them.

`UpdateRule` is the whole interface; `Gradient` is the shortest example, `TableRule` what rules that
overwrite codes share. `Revival` and `Online` are rules around another rule.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..distributed import sum_over_ranks
from ..ops import code_sums
from ..ops.checks import require_whole
from ..ops.rows import ema_step
from .anchors import Anchors, farthest_features, nearest_features, random_features
from .base import require_weight
from .buffers import KeepsBufferTypes
from .codes import Table
from .pulls import masked_mse


class UpdateRule(Protocol):
    """What a quantizer asks of its update rule; in practice an nn.Module, for its state.

    Rows that are not valid (masked or not finite) come with index -1.
    """

    def attach(self, codes: nn.Module) -> None:
        """Once, before the first step: the parametrisation whose codes are to move.

        Raises:
            TypeError: the rule cannot move such codes.
            ValueError: it already moves those of another quantizer.
        """

    def loss(self, z: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        """The codebook loss of a step, a float32 scalar: z, nearest [N, D], index [N]."""

    def step(self, z: Tensor, index: Tensor) -> None:
        """Moves codes without a gradient, after the loss; all ranks must end with the same."""

    def reset(self, moved: Tensor | None = None) -> None:
        """The `moved` [K] codes (None: all) were overwritten: forget what is known of them."""


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

    def reset(self, moved: Tensor | None = None) -> None:
        """There is nothing to forget."""

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def table_of(name: str, codes: Table) -> Tensor:
    """The parameter behind a table: what is written to it is still there in the next step.

    Raises:
        TypeError: the weight is made anew each time, by a parametrization or pruning of torch.
    """
    weight = codes._parameters.get("weight")
    if weight is None:
        raise TypeError(
            f"{name} overwrites codes, but the table's weight is made of other parameters each "
            "time (torch.nn.utils.parametrize or prune): remove that, or move codes by gradients"
        )
    return weight


class TableRule(KeepsBufferTypes):
    """Base of the rules that overwrite the codes of a free table.

    Its floating-point buffers are statistics: they stay float32 in a half-precision model.
    """

    def attach(self, codes: nn.Module) -> None:
        if hasattr(self, "_codes"):
            raise ValueError(
                f"{type(self).__name__}: update already moves the codes of another quantizer; "
                "give every quantizer a rule of its own"
            )
        if not isinstance(codes, Table):
            raise TypeError(
                f"{type(self).__name__} moves a free table of codes, got {type(codes).__name__}; "
                "use Gradient there"
            )
        # A list hides the module: its parameters belong to the quantizer, not twice to the rule.
        self._codes = [codes]

    @property
    def table(self) -> Tensor:
        return table_of(type(self).__name__, self._codes[0])

    def loss(self, z: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        return z.new_zeros((), dtype=torch.float32)

    def _move(self, rows: Tensor, where: Tensor) -> Tensor:
        """Overwrites the codes `where` [K] by rows [K, D] that are finite; says which it did."""
        rows = rows.to(self.table.dtype)
        moved = where & rows.isfinite().all(-1)
        self.table.copy_(torch.where(moved[:, None], rows, self.table))
        return moved


@torch.library.custom_op("vqkern::ema_step", mutates_args=("counts", "totals", "codes"))
def _ema_step(
    count: Tensor, total: Tensor, weight: float, counts: Tensor, totals: Tensor, codes: Tensor
) -> None:
    ema_step(count, total, weight, counts, totals, codes)


class EMA(TableRule):
    """Codes are exponential moving averages of their features (van den Oord et al. 2017, appendix
    A.1).

    n_k <- decay n_k + (1 - decay) count_k and S_k <- decay S_k + (1 - decay) total_k, count and
    total summed over ranks; a code that received features moves to S_k / n_k. One that received
    none has the same ratio as before and does not move.

    Args:
        decay: in [0, 1).
        smoothing: epsilon of the Laplace-smoothed counts of the common implementations, 1e-5 there:
            every code, used or not, moves to S_k / n'_k with n'_k = (n_k + epsilon) / (n + K
            epsilon) n, n = sum n_k. Codes that stay unused drift to the origin. 0: as above.
    """

    def __init__(self, decay: float = 0.99, *, smoothing: float = 0.0) -> None:
        super().__init__()
        _require_decay(decay)
        require_weight("smoothing", smoothing)
        self.decay = decay
        self.smoothing = smoothing

    def attach(self, codes: nn.Module) -> None:
        super().attach(codes)
        codes.weight.requires_grad_(False)
        self.register_buffer("count", torch.ones(codes.num_codes, dtype=torch.float32))
        self.register_buffer("total", codes.weight.detach().float().clone())

    @torch.no_grad()
    def step(self, z: Tensor, index: Tensor) -> None:
        count, total = code_sums(z.detach(), index, len(self.table))
        count = count.to(self.count.dtype)
        total = total.to(self.total.dtype)
        sum_over_ranks(count)
        sum_over_ranks(total)
        if not self.smoothing:
            _ema_step(count, total, 1 - self.decay, self.count, self.total, self.table)
            return
        # A sum of finite features may overflow; such a code counts as not used.
        usable = total.isfinite().all(-1)
        count = torch.where(usable, count, 0)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(torch.where(usable[:, None], total, 0), 1 - self.decay)
        everything = self.count.sum()
        share = everything + len(count) * self.smoothing
        counts = (self.count + self.smoothing) / share * everything
        rows = self.total / counts.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        self._move(rows, (count > 0).any() | torch.zeros_like(usable))

    @torch.no_grad()
    def reset(self, moved: Tensor | None = None) -> None:
        """Forgets the statistics: every moved code counts as one feature at its place."""
        moved = torch.ones_like(self.count, dtype=torch.bool) if moved is None else moved
        self.count.masked_fill_(moved, 1)
        self.total.copy_(torch.where(moved[:, None], self.table.float(), self.total))

    def extra_repr(self) -> str:
        return f"decay={self.decay}, smoothing={self.smoothing}"


class _Around(TableRule):
    """Base of the rules around another: the loss is the inner rule's, as is the first step."""

    def __init__(self, rule: nn.Module | None) -> None:
        super().__init__()
        self.rule = Gradient() if rule is None else rule

    def attach(self, codes: nn.Module) -> None:
        super().attach(codes)
        self.rule.attach(codes)

    def loss(self, z: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        return self.rule.loss(z, nearest, index)

    def _hits(self, index: Tensor) -> Tensor:
        """Features per code of all ranks, int64 [K]."""
        hits = torch.zeros(len(self.table), dtype=torch.int64, device=index.device)
        hits.scatter_add_(0, index.clamp_min(0), (index >= 0).long())
        sum_over_ranks(hits)
        return hits


class Revival(_Around):
    """Another rule, and codes that stay unused are set on random features (Dhariwal et al. 2020).

    A code that no feature of any rank chose in `after` steps moves to a random valid feature of the
    batch of all ranks, and the inner rule forgets it. Two codes never get the same feature: where
    the batch is too small for all dead codes, the others wait.

    Args:
        rule: what moves the living codes; None is `Gradient()`.
        after: steps without use, at least 1.
        seed: of the choice of features.
    """

    def __init__(self, rule: nn.Module | None = None, *, after: int = 100, seed: int = 0) -> None:
        super().__init__(rule)
        require_whole("after", after)
        self.after = after
        self.seed = seed

    def attach(self, codes: nn.Module) -> None:
        super().attach(codes)
        self.register_buffer("idle", torch.zeros(codes.num_codes, dtype=torch.int64))
        self.register_buffer("steps", torch.tensor(self.seed, dtype=torch.int64))

    @torch.no_grad()
    def step(self, z: Tensor, index: Tensor) -> None:
        self.rule.step(z, index)
        hits = self._hits(index)
        # A batch without a single feature says nothing about the codes.
        self.idle.copy_(torch.where(hits > 0, 0, self.idle + hits.any().long()))
        self.steps += 1
        dead = self.idle >= self.after
        rows, found = random_features(z, index >= 0, dead, self.steps)
        moved = self._move(rows, found)
        self.idle.masked_fill_(moved, 0)
        self.rule.reset(moved)

    @torch.no_grad()
    def reset(self, moved: Tensor | None = None) -> None:
        self.idle.masked_fill_(torch.ones_like(self.idle).bool() if moved is None else moved, 0)
        self.rule.reset(moved)

    def extra_repr(self) -> str:
        return f"after={self.after}, seed={self.seed}"


class Online(_Around):
    """Another rule, and little-used codes are drawn to a feature (CVQ, Zheng & Vedaldi 2023).

    p_k <- decay p_k + (1 - decay) count_k / N over the features of all ranks (eq. 4), and e_k <- (1
    - a_k) e_k + a_k anchor_k with a_k = exp(-10 K p_k / (1 - decay) - .001) (eq. 5): a code unused
    for long lands on its anchor, one with its fair share does not feel it.

    Args:
        rule: what moves the codes otherwise; None is `Gradient()`.
        decay: of the running usage p, in [0, 1).
        anchor: ``"near"``, the feature of all ranks nearest to the code, or ``"far"``, the farthest
            one, as the code released with VQ-Transplant has it (there with decay .8).
    """

    def __init__(
        self, rule: nn.Module | None = None, *, decay: float = 0.99, anchor: str = "near"
    ) -> None:
        super().__init__(rule)
        _require_decay(decay)
        if anchor not in _ANCHORS:
            raise ValueError(f"anchor must be one of {sorted(_ANCHORS)}, got {anchor!r}")
        self.decay = decay
        self.anchor = anchor

    def attach(self, codes: nn.Module) -> None:
        super().attach(codes)
        self.register_buffer("share", torch.zeros(codes.num_codes, dtype=torch.float32))

    @torch.no_grad()
    def step(self, z: Tensor, index: Tensor) -> None:
        self.rule.step(z, index)
        hits = self._hits(index)
        features = hits.sum()
        share = hits.to(self.share.dtype) / features.clamp_min(1)
        # A batch without a single feature says nothing about the codes.
        self.share.lerp_(share, (1 - self.decay) * (features > 0).float())
        pull = torch.exp(-10 * len(hits) * self.share / (1 - self.decay) - 1e-3)[:, None]
        anchors: Anchors = _ANCHORS[self.anchor](z, index >= 0, self.table)
        before = self.table.float()
        rows = before.lerp(anchors.rows.float(), pull)
        self.rule.reset(self._move(rows, anchors.found & (rows != before).any(-1)))

    @torch.no_grad()
    def reset(self, moved: Tensor | None = None) -> None:
        """The moved codes count as used by their fair share."""
        moved = torch.ones_like(self.share).bool() if moved is None else moved
        self.share.masked_fill_(moved, 1 / len(self.share))
        self.rule.reset(moved)

    def extra_repr(self) -> str:
        return f"decay={self.decay}, anchor={self.anchor!r}"


_ANCHORS = {"near": nearest_features, "far": farthest_features}


def _require_decay(decay: float) -> None:
    if not isinstance(decay, (int, float)) or not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")
