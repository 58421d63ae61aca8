"""Alignment: what pulls the distribution of all codes, used or not, to that of the features.

Where torch.distributed runs, features are those of all ranks: every rank computes the same loss of
the same features and the same codes, so that the codes stay equal on all of them, bit for bit. A
rank may have no valid row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..distributed import number_of_ranks, sum_over_ranks
from ..ops.checks import require_whole
from ..ops.direct import is_ordinary
from ..ops.gaussian_w2 import Moments, gaussian_w2, moments, prior_w2, scatter_of
from ..ops.squared_mmd import mean_bandwidth, squared_mmd
from .base import require_weight


class Alignment(Protocol):
    """A loss between features [N, D], of which only the `valid` [N] count, and codes [K, D]."""

    def __call__(self, features: Tensor, valid: Tensor, codes: Tensor) -> Tensor: ...


_MULTIPLES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class MMD:
    """weight * squared MMD between features and codes (VQ-Transplant eq. 5).

    Features are detached: the codes move to them, not the encoder to the codes.

    Args:
        weight: gamma of VQ-Transplant eq. 3.
        bandwidths: the b_i of k(a, b) = sum_i exp(-|a - b|^2 / b_i) in units of squared distance;
            None takes `multiples` of the mean squared distance at each step.
        multiples: of the mean heuristic. The default reaches down to a sixteenth: the mean
            distance of a distribution with separate modes is that between modes, too coarse inside
            one.
        max_features: at most so many features, drawn at random each step; None: all.
        max_codes: at most so many codes, drawn at random each step; None: all.
        compat: ``"released"`` takes the two bandwidths b and 2 b of the released fixed-scale
            quantizer, b the mean squared distance, in place of `multiples`;
            ``"released-multiscale"`` also shrinks the features by half about their mean, as the
            released multi-scale quantizer does.

    Over ranks: features are gathered, the sample is drawn alike on all of them. On a GPU, where
    some features are not valid, others drawn at random count twice in their place.
    """

    weight: float = 0.5
    bandwidths: tuple[float, ...] | None = None
    multiples: tuple[float, ...] = _MULTIPLES
    max_features: int | None = None
    max_codes: int | None = None
    compat: str | None = None

    def __post_init__(self) -> None:
        require_weight("MMD: weight", self.weight)
        _require_compat("MMD", self.compat, ("released", "released-multiscale"))
        if self.compat is not None and self.bandwidths is not None:
            raise ValueError(
                f"MMD: compat={self.compat!r} has its own bandwidths, got {self.bandwidths}"
            )
        for name in ("bandwidths", "multiples"):
            values = getattr(self, name)
            if values is None and name == "bandwidths":
                continue
            values = tuple(float(v) for v in values)
            if not values or not all(0 < v < float("inf") for v in values):
                raise ValueError(f"MMD: {name} must be positive and finite, got {values}")
            object.__setattr__(self, name, values)
        given = self.compat or (self.bandwidths and "bandwidths")
        if given and self.multiples != _MULTIPLES:
            raise ValueError(f"MMD: {given!r} leaves no room for multiples, got {self.multiples}")
        for name in ("max_features", "max_codes"):
            value = getattr(self, name)
            if value is not None:
                require_whole(f"MMD: {name}", value, 2)

    def __call__(self, features: Tensor, valid: Tensor, codes: Tensor) -> Tensor:
        """The weighted loss, float32 scalar; 0 if no feature is valid."""
        x, valid, generator = _gathered(features.detach().float(), valid)
        if len(x) == 0:
            return codes.sum() * 0.0
        any_valid = valid.any()
        x = _draw_valid(x, valid, self.max_features, generator)
        y = codes.float()
        if self.max_codes is not None and self.max_codes < len(y):
            y = y[_shuffled(len(y), y.device, generator)[: self.max_codes]]
        if self.compat == "released-multiscale":
            x = torch.lerp(x.mean(0), x, 0.5)
        if self.bandwidths is None:
            multiples = self.multiples if self.compat is None else (1.0, 2.0)
            scale = x.new_tensor(multiples, dtype=torch.float64)
            bandwidths = mean_bandwidth(x, y) * scale
        else:
            bandwidths = x.new_tensor(self.bandwidths, dtype=torch.float64)
        return self.weight * squared_mmd(x, y, bandwidths) * any_valid

    @property
    def config(self) -> dict:
        return {"name": "mmd", **asdict(self)}


@dataclass(frozen=True)
class Wasserstein:
    """weight * squared 2-Wasserstein distance of the Gaussians fitted to features and codes.

    Wasserstein VQ (Fang et al. 2025; gamma 0.2 in the unifying view, appendix G). Features are
    detached: the codes move to them, not the encoder to the codes. With fewer than two valid
    features the loss is 0.

    Args:
        weight: gamma.
        squared: whether the distance is squared. The root has no slope at distance 0, where its
            gradient is taken to be 0.
        ridge: see `vqkern.gaussian_w2`.
        compat: ``"released"`` is the released fixed-scale quantizer's loss: the distance itself, of
            features and codes divided by the largest standard deviation of a feature channel, with
            1e-8 added to variances and eigenvalues; ``"released-multiscale"`` is that of the
            multi-scale one: a quarter of the features' covariance, 1e-6 added to variances. Both
            have a root and a ridge of their own.

    Over ranks: the features' moments are summed, two small float64 reductions.
    """

    weight: float = 0.2
    squared: bool = True
    ridge: float | None = None
    compat: str | None = None

    def __post_init__(self) -> None:
        require_weight("Wasserstein: weight", self.weight)
        if self.ridge is not None:
            require_weight("Wasserstein: ridge", self.ridge)
        if not isinstance(self.squared, bool):
            raise ValueError(f"Wasserstein: squared must be True or False, got {self.squared!r}")
        _require_compat("Wasserstein", self.compat, ("released", "released-multiscale"))
        if self.compat is not None and (self.ridge is not None or not self.squared):
            raise ValueError(
                f"Wasserstein: compat={self.compat!r} has its own root and ridge, got "
                f"squared={self.squared}, ridge={self.ridge}"
            )

    def __call__(self, features: Tensor, valid: Tensor, codes: Tensor) -> Tensor:
        """The weighted loss, float32 scalar (float64 for float64 codes)."""
        x = moments_over_ranks(moments(features.detach(), valid))
        enough = x.count >= 2
        x = x._replace(count=x.count.clamp_min(2))
        if self.compat is not None:
            distance = _released_w2(x, codes, multiscale=self.compat == "released-multiscale")
        else:
            distance = gaussian_w2(x, codes, ridge=self.ridge)
            if not self.squared:
                distance = _root(distance)
        return self.weight * torch.where(enough, distance, 0.0)

    @property
    def config(self) -> dict:
        return {"name": "wasserstein", **asdict(self)}


@dataclass(frozen=True)
class PriorWasserstein:
    """weight * (|m|^2 + tr S - 2 tr S^{1/2}) of all codes: the pull to N(0, I).

    Distribution consistency regularisation (VAEVQ eq. 11). Its minimum is -D times the weight; see
    `vqkern.prior_w2`. Features do not count: the prior stands for them.

    Args:
        weight: lambda_dcr; 0.1 in the paper, 1e-6 in the released configuration.
        compat: ``"released"`` is the released program's value |m|^2 + sum (c - m)^2 / D + D, which
            drops the root of the covariance.
    """

    weight: float = 0.1
    compat: str | None = None

    def __post_init__(self) -> None:
        require_weight("PriorWasserstein: weight", self.weight)
        _require_compat("PriorWasserstein", self.compat, ("released",))

    def __call__(self, features: Tensor, valid: Tensor, codes: Tensor) -> Tensor:
        """The weighted loss, float32 scalar (float64 for float64 codes)."""
        if self.compat is None:
            return self.weight * prior_w2(codes)
        k, d = codes.shape
        of = moments(codes)
        scatter = of.covariance.diagonal().sum() * (k - 1)
        value = of.mean.square().sum() + scatter / d + d
        return self.weight * value.to(torch.promote_types(codes.dtype, torch.float32))

    @property
    def config(self) -> dict:
        return {"name": "prior_wasserstein", **asdict(self)}


def _released_w2(x: Moments, codes: Tensor, *, multiscale: bool) -> Tensor:
    """The released programs' 2-Wasserstein distance, from the features' moments."""
    eye = torch.eye(codes.shape[1], dtype=torch.float64, device=codes.device)
    y = moments(codes)
    if multiscale:
        scale, added = 1.0, 1e-6
        x = x._replace(covariance=(x.covariance + added * eye) / 4)
    else:
        scale, added = x.covariance.diagonal().max().sqrt() + 1e-8, 1e-8
        x = x._replace(covariance=x.covariance / scale**2 + added * eye)
    # The root of the features' covariance is taken of eigenvalues plus 1e-8, its trace is not.
    still = torch.zeros_like(x.mean)
    s1, s2 = x.covariance + 1e-8 * eye, y.covariance / scale**2 + added * eye
    spread = gaussian_w2(Moments(x.count, still, s1), Moments(y.count, still, s2), ridge=1e-8)
    spread = spread - 1e-8 * codes.shape[1]
    apart = (x.mean - y.mean) / scale
    distance = (apart.square().sum() + spread.clamp_min(0) + 1e-10).sqrt()
    return distance.to(torch.promote_types(codes.dtype, torch.float32))


def _root(squared: Tensor) -> Tensor:
    """The square root, with a slope of 0 at and below 0."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), squared * 0.0)


@torch.no_grad()
def moments_over_ranks(local: Moments) -> Moments:
    """The moments of the points of all ranks together, the same bits on each.

    Two reductions: counts and sums for the mean, then the scatter about that mean, in which nothing
    cancels. A rank without points adds nothing.
    """
    if number_of_ranks() == 1:
        return local
    total = torch.cat([local.count[None], local.count * local.mean])
    sum_over_ranks(total)
    count, mean = total[0], total[1:] / total[0].clamp_min(1)
    apart = torch.where(local.count > 0, local.mean - mean, 0)
    scatter = scatter_of(local) + local.count * apart[:, None] * apart
    sum_over_ranks(scatter)
    return Moments(count, mean, scatter / (count - 1).clamp_min(1))


def _gathered(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, torch.Generator | None]:
    """Rows and validity of all ranks, in their order, and a generator that draws alike on each.

    Where there is one rank, its own rows and the default generator.
    """
    ranks = number_of_ranks()
    if ranks == 1:
        return rows, valid, None
    import torch.distributed as dist

    device = rows.device
    # The rows of each rank, and a seed, of which rank 0's counts.
    seed = torch.randint(2**62, (1,), dtype=torch.int64)
    mine = torch.cat([torch.tensor([len(rows)]), seed]).to(device)
    theirs = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(theirs, mine)
    sizes, seeds = torch.stack(theirs).T.tolist()
    # Collectives want one shape: rows that are not there are not valid.
    padded = rows.new_zeros(max(sizes), rows.shape[1] + 1)
    padded[: len(rows), :-1] = torch.where(valid[:, None], rows, 0)
    padded[: len(rows), -1] = valid
    everything = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(everything, padded)
    joint = torch.cat([part[:size] for part, size in zip(everything, sizes, strict=True)])
    generator = torch.Generator(device).manual_seed(seeds[0])
    return joint[:, :-1], joint[:, -1] > 0, generator


def _shuffled(n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(n, device=device, generator=generator)


def _draw_valid(
    rows: Tensor, valid: Tensor, limit: int | None, generator: torch.Generator | None
) -> Tensor:
    """`limit` (None: all) of the valid rows at random.

    On a device, where nobody may wait for their number, rows are as many as there are or `limit`:
    valid ones drawn at random are repeated in place of the others. Where none is valid, zeros.
    """
    if rows.device.type == "cpu" and is_ordinary(rows, valid) and bool(valid.any()):
        rows = rows if bool(valid.all()) else rows[valid]
        if limit is None or limit >= len(rows):
            return rows
        return rows[_shuffled(len(rows), rows.device, generator)[:limit]]
    size = len(rows) if limit is None else min(limit, len(rows))
    order = _shuffled(len(rows), rows.device, generator)
    order = order[valid[order].logical_not().to(torch.uint8).argsort(stable=True)]
    turn = torch.arange(size, device=rows.device) % valid.sum().clamp_min(1)
    drawn = order[turn]
    return torch.where(valid[drawn][:, None], rows[drawn], 0)


def _require_compat(name: str, compat: str | None, known: tuple[str, ...]) -> None:
    if compat is not None and compat not in known:
        raise ValueError(f"{name}: compat must be None or one of {known}, got {compat!r}")


ALIGNMENTS = {"mmd": MMD, "wasserstein": Wasserstein, "prior_wasserstein": PriorWasserstein}


def build_alignment(alignment: Alignment | dict | None) -> Alignment | None:
    """An alignment as it is, or from its `config`: {"name": "mmd", "weight": ...}."""
    if not isinstance(alignment, dict):
        return alignment
    options = dict(alignment)
    name = options.pop("name", None)
    if name not in ALIGNMENTS:
        raise ValueError(f"alignment must be one of {sorted(ALIGNMENTS)}, got {name!r}")
    try:
        return ALIGNMENTS[name](**options)
    except TypeError as error:
        raise ValueError(f"alignment {name!r}: {error}") from None
