"""The codebook state of vector-quantize-pytorch, [heads, K, D], and what moves it.

The functions work on any module with its attributes, `Codebook` being the one made here. Features
come as rows [heads, N, D], an index of -1 marking those that do not count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...distributed import number_of_ranks, sum_over_ranks
from ...ops import code_sums, nearest_code
from ...ops.take_codes import take_codes
from ...quantizers.anchors import random_features
from ..terms import l2norm


class Codebook(nn.Module):
    """Codes and the statistics of their moving averages, under the keys of that library.

    cluster_size [heads, K] and embed_avg [heads, K, D] stay float32 in a half-precision model.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_codebooks: int,
        learnable_codebook: bool,
        use_cosine_sim: bool,
        kmeans_init: bool,
        vq_bridge: nn.Module | None,
    ) -> None:
        super().__init__()
        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = l2norm(embed) if use_cosine_sim else embed
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.learnable_codebook = learnable_codebook
        self.use_cosine_sim = use_cosine_sim
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        self.vq_bridge = vq_bridge

    def configure(
        self,
        *,
        decay: float,
        eps: float,
        ema_update: bool,
        manual_ema_update: bool,
        threshold_ema_dead_code: float,
        kmeans_iters: int,
        use_ddp: bool,
        sync_kmeans: bool,
    ) -> None:
        """Sets how the codes move."""
        self.decay, self.eps = decay, eps
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.reset_cluster_size = threshold_ema_dead_code
        self.kmeans_iters = kmeans_iters
        self.use_ddp, self.sync_kmeans = use_ddp, sync_kmeans

    def update_ema(self) -> None:
        """Sets the codes from their moving averages."""
        codes_from_averages(self)

    def _apply(self, fn, recurse: bool = True):
        kept = {"cluster_size": self.cluster_size, "embed_avg": self.embed_avg}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            if self._buffers[name].dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before.to(self._buffers[name].device)
        return self


def effective_codes(codebook: nn.Module) -> Tensor:
    """The codes [heads, K, D] that are searched; a gradient reaches them if they are learnable."""
    embed = codebook.embed if codebook.learnable_codebook else codebook.embed.detach()
    embed = embed.to(torch.promote_types(embed.dtype, torch.float32))
    bridge = getattr(codebook, "vq_bridge", None)
    if bridge is None:
        return embed
    with torch.autocast(embed.device.type, enabled=False):
        return bridge(embed)


def assign(codebook: nn.Module, rows: Tensor, codes: Tensor) -> Tensor:
    """Index [heads, N] of the nearest code, by angle with use_cosine_sim; -1: not finite."""
    metric = "cosine" if codebook.use_cosine_sim else "l2"
    pairs = zip(rows.detach(), codes.detach(), strict=True)
    return _stack([nearest_code(z, e, metric=metric).index for z, e in pairs])


# Vectors x codes that are compared at a time where codes are drawn: 16 MiB of float32.
PAIRS = 1 << 22


@torch.no_grad()
def draw_codes(codebook: nn.Module, rows: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Index [heads, N] of a code drawn with p(k) ~ exp(-|z - e_k| / temperature); -1: not finite.

    With use_cosine_sim, p(k) ~ exp(z.e_k / temperature). The distances are those of float32. Every
    vector is compared with every code, a block of vectors at a time: time grows with N K, memory
    does not.
    """
    drawn = []
    for z, e in zip(rows.detach().to(codes.dtype), codes.detach(), strict=True):
        centre = torch.zeros_like(e[0]) if codebook.use_cosine_sim else e.mean(0)
        e, found = e - centre, []
        for block in (z - centre).split(max(1, PAIRS // len(e))):
            score = block @ e.T if codebook.use_cosine_sim else torch.cdist(block, e).neg_()
            # The largest of score / t + Gumbel noise, noise being -log of an exponential draw.
            noise = torch.empty_like(score).exponential_().log_()
            found.append(score.div_(temperature).sub_(noise).argmax(-1))
        index = torch.cat(found) if found else z.new_zeros(0, dtype=torch.int64)
        drawn.append(torch.where(z.isfinite().all(-1), index, -1))
    return _stack(drawn)


def take(codes: Tensor, index: Tensor) -> Tensor:
    """The codes [heads, N, D] behind an index [heads, N]."""
    return _stack([take_codes(e, i) for e, i in zip(codes, index, strict=True)])


def _stack(heads: list[Tensor]) -> Tensor:
    return heads[0][None] if len(heads) == 1 else torch.stack(heads)  # no copy of a single one


@torch.no_grad()
def start_from(codebook: nn.Module, rows: Tensor, valid: Tensor) -> None:
    """k-means on the first features, unless the codes have started already."""
    if bool(codebook.initted):
        return
    means, counts = [], []
    for z, keep in zip(rows, valid, strict=True):
        z = z[keep & z.isfinite().all(-1)]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        available = torch.tensor(len(z), device=z.device)
        if _synchronised(codebook):
            sum_over_ranks(available)
        if not bool(available):
            return
        mean, count = _lloyd(codebook, z)
        means.append(mean)
        counts.append(count)
    mean, count = torch.stack(means), torch.stack(counts)
    codebook.embed_avg.data.copy_(mean * count[..., None])
    codebook.cluster_size.data.copy_(count)
    codes_from_averages(codebook)
    codebook.initted.data.fill_(True)


def _lloyd(codebook: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """Means [K, D] and counts [K] after `kmeans_iters` rounds; empty clusters keep their place."""
    size = codebook.codebook_size
    metric = "cosine" if codebook.use_cosine_sim else "l2"
    synchronised = _synchronised(codebook) and getattr(codebook, "sync_kmeans", True)
    means = _draw_among_ranks(z, size) if synchronised else _draw(z, size)
    count = torch.zeros(size, device=z.device)
    for _ in range(codebook.kmeans_iters):
        number, total = code_sums(z, nearest_code(z, means, metric=metric).index, size)
        if synchronised:
            sum_over_ranks(number)
            sum_over_ranks(total)
        moved = total / number.clamp_min(1)[:, None]
        moved = l2norm(moved) if codebook.use_cosine_sim else moved
        means = torch.where((number > 0)[:, None], moved.to(means.dtype), means)
        count = number.float()
    return means, count


@torch.no_grad()
def average(
    codebook: nn.Module, rows: Tensor, index: Tensor, weight: Tensor | Callable | None
) -> None:
    """Moves the averages towards the features of every code."""
    sums = [
        code_sums(z, i, codebook.codebook_size) for z, i in zip(rows.detach(), index, strict=True)
    ]
    count = _stack([s.count for s in sums]).to(codebook.cluster_size.dtype)
    total = _stack([s.total for s in sums]).to(codebook.embed_avg.dtype)
    if codebook.use_ddp:
        sum_over_ranks(count)
        sum_over_ranks(total)
    # A sum of finite features may overflow; such a code counts as not used.
    usable = total.sum(-1).isfinite()
    if not bool(usable.all()):
        count = torch.where(usable, count, 0)
        total = torch.where(usable[..., None], total, 0)
    weight = weight(total, count) if callable(weight) else weight
    _blend(codebook.cluster_size, count, codebook.decay, weight)
    _blend(codebook.embed_avg, total, codebook.decay, weight)


def _blend(old: Tensor, new: Tensor, decay: float, weight: Tensor | float | None) -> None:
    if old.grad is not None:  # what calls with accum_ema_update left behind
        new = new + old.grad
        old.grad = None
    step: Tensor | float = (1 - decay) * (1.0 if weight is None else weight)
    if isinstance(step, Tensor):
        step = step.to(old).expand(old.shape[:2]).reshape(*old.shape[:2], *[1] * (old.dim() - 2))
    old.data.lerp_(new, step)


@torch.no_grad()
def codes_from_averages(codebook: nn.Module) -> None:
    """e_k = S_k / n'_k, n'_k = (n_k + eps) / (n + K eps) n, n = sum n_k; of unit length if cosine.

    A code for which that is not finite stays where it is.
    """
    counts = codebook.cluster_size
    everything = counts.sum(-1, keepdim=True)
    share = everything + codebook.codebook_size * codebook.eps
    smoothed = (counts + codebook.eps) / share * everything
    moved = codebook.embed_avg / smoothed[..., None]
    moved = l2norm(moved) if codebook.use_cosine_sim else moved
    embed = codebook.embed.data
    finite = moved.sum(-1).isfinite()
    if not bool(finite.all()):
        moved = torch.where(finite[..., None], moved.to(embed.dtype), embed)
    embed.copy_(moved)


@torch.no_grad()
def revive(codebook: nn.Module, rows: Tensor, valid: Tensor) -> None:
    """Sets codes whose average count fell below the threshold on random features of the batch.

    Where there are fewer features than such codes, a random choice of the codes waits.
    """
    expired = codebook.cluster_size < codebook.threshold_ema_dead_code
    synchronised = _synchronised(codebook)
    if not synchronised and not bool(expired.any()):
        return
    for head, (z, keep, dead) in enumerate(zip(rows, valid, expired, strict=True)):
        z = l2norm(z) if codebook.use_cosine_sim else z
        if synchronised:
            drawn, dead = random_features(z, keep & z.isfinite().all(-1), dead, _agreed_draw(z))
            drawn = drawn[dead]
        else:
            z = z[keep & z.isfinite().all(-1)]
            number = int(dead.sum())
            if len(z) == 0:
                continue
            if number > len(z):
                chosen = dead.nonzero()[:, 0][torch.randperm(number, device=z.device)[: len(z)]]
                dead = torch.zeros_like(dead).index_fill(0, chosen, True)
                number = len(z)
            drawn = _draw(z, number)
        drawn = drawn.to(codebook.embed.dtype)
        codebook.embed.data[head, dead] = drawn
        codebook.cluster_size.data[head, dead] = codebook.reset_cluster_size
        codebook.embed_avg.data[head, dead] = (drawn * codebook.reset_cluster_size).to(
            codebook.embed_avg.dtype
        )


def _synchronised(codebook: nn.Module) -> bool:
    return bool(codebook.use_ddp) and number_of_ranks() > 1


def _draw(z: Tensor, number: int) -> Tensor:
    """`number` random rows, no row twice unless there are too few."""
    if len(z) >= number:
        return z[torch.randperm(len(z), device=z.device)[:number]]
    return z[torch.randint(0, len(z), (number,), device=z.device)]


def _agreed_draw(z: Tensor) -> Tensor:
    draw = torch.randint(2**31, (), device=z.device)
    sum_over_ranks(draw)
    return draw


def _draw_among_ranks(z: Tensor, number: int) -> Tensor:
    every = torch.ones(number, dtype=torch.bool, device=z.device)
    valid = torch.ones(len(z), dtype=torch.bool, device=z.device)
    rows, found = random_features(z, valid, every, _agreed_draw(z))
    rows = rows[found]
    return rows[torch.arange(number, device=z.device) % len(rows)]
