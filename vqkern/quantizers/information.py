"""Bits in, bits out, and comparisons that are fair (the unifying view of VQ, PQ and SQ, section 4).

Whoever compares quantization errors must hold the latents' distribution, the number of tokens and
the codebook size fixed (conditions 1 and 2): the error scales with the first and falls with both
others. `fair_comparison` refuses otherwise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.checks import require_whole
from .base import Quantizer
from .usage import usages

BITS_PER_CHANNEL = 32  # of a float32 latent (definition 1)


class Information(NamedTuple):
    """Maximum information of one latent [positions, channels] and its tokens (definitions 1 to 3).

    positions: h w. tokens: of the latent, all structures included. codebook_size: K of one token.
    input_bits: h w d 32. output_bits: tokens log2 K. compression_ratio: input over output bits.
    capacity: distinct code combinations of one position, K^(tokens / positions); 2^88 for MGVQ-G8.
    """

    positions: int
    tokens: int
    codebook_size: int
    input_bits: int
    output_bits: float
    compression_ratio: float
    capacity: float


def information(positions: int, channels: int, tokens: int, codebook_size: int) -> Information:
    """The quantities of `Information` from four sizes.

    Raises:
        ValueError: a size is not a whole number of at least 1, or the codebook has one code, which
            carries no information.
    """
    for name, size, least in (
        ("positions", positions, 1),
        ("channels", channels, 1),
        ("tokens", tokens, 1),
        ("codebook_size", codebook_size, 2),
    ):
        require_whole(f"information: {name}", size, least)
    input_bits = positions * channels * BITS_PER_CHANNEL
    output_bits = tokens * math.log2(codebook_size)
    each, rest = divmod(tokens, positions)
    return Information(
        positions=positions,
        tokens=tokens,
        codebook_size=codebook_size,
        input_bits=input_bits,
        output_bits=output_bits,
        compression_ratio=input_bits / output_bits,
        capacity=codebook_size**each if rest == 0 else 2.0 ** (output_bits / positions),
    )


@torch.no_grad()
def information_of(quantizer: Quantizer, z: Tensor) -> Information:
    """The quantities of a quantizer for latents z, whose first dimension is the batch.

    Tokens are counted in what `encode` gives, so any structure is measured, not believed.

    Raises:
        TypeError: the quantizer has no `codebook_size`.
        ValueError: z does not fit the quantizer or is empty.
    """
    if not isinstance(getattr(quantizer, "codebook_size", None), int):
        raise TypeError(
            f"information_of: {type(quantizer).__name__} has no codebook_size, the number of codes "
            "of one token"
        )
    if len(z) == 0:
        raise ValueError("information_of: z is empty, it must hold at least one latent")
    one = z[:1]
    positions = one.numel() // one.shape[quantizer.channel_dim]
    tokens = quantizer.encode(one).numel()
    return information(positions, quantizer.dim, tokens, quantizer.codebook_size)


class Contestant(NamedTuple):
    """A quantizer and the latents it is judged on, batch first."""

    name: str
    quantizer: Quantizer
    latents: Tensor


class Judged(NamedTuple):
    """error: mean over positions of |z - q|^2 (definition 4). utilization: codes hit / K,
    the mean over codebooks."""

    name: str
    error: float
    utilization: float
    information: Information


@torch.no_grad()
def fair_comparison(contestants: Sequence[Contestant], *, tolerance: float = 0.05) -> list[Judged]:
    """Quantization errors under the unifying view's two conditions, the least error first.

    Args:
        contestants: two or more.
        tolerance: how far the latents' means (in units of their overall standard deviation) and
            covariances (relative Frobenius norm) may be apart: sampling noise, not another encoder.

    Raises:
        ValueError: fewer than two contestants, or they differ in tokens, codebook size or latent
            distribution; the message says in which, and how.
    """
    if len(contestants) < 2:
        raise ValueError(
            f"fair_comparison: contestants must be two or more, got {len(contestants)}"
        )
    found = {c.name: information_of(c.quantizer, c.latents) for c in contestants}
    places = {c.name: _places(c) for c in contestants}
    problems = []
    for what, field in (("token counts", "tokens"), ("codebook sizes", "codebook_size")):
        values = {name: getattr(one, field) for name, one in found.items()}
        if len(set(values.values())) > 1:
            problems.append(f"{what} ({_listed(values)})")
    first, *others = contestants
    for other in others:
        difference = _difference(places[first.name], places[other.name], tolerance)
        if difference:
            problems.append(f"latent distributions of {first.name} and {other.name} ({difference})")
    if problems:
        raise ValueError(
            f"fair_comparison: the contestants differ in {'; '.join(problems)}. Their errors "
            "cannot be compared (unifying view, conditions 1 and 2)"
        )
    return sorted((_judged(c, places[c.name], found[c.name]) for c in contestants), key=_error)


def _error(judged: Judged) -> float:
    return judged.error


def _judged(contestant: Contestant, places: Tensor, found: Information) -> Judged:
    quantizer = contestant.quantizer
    index = quantizer.encode(contestant.latents)
    decoded = quantizer.decode(index).movedim(quantizer.channel_dim, -1).reshape(places.shape)
    return Judged(
        name=contestant.name,
        error=float((places - decoded.double()).square().sum(-1).mean()),
        utilization=_utilization(quantizer, contestant.latents, index, found.codebook_size),
        information=found,
    )


def _utilization(quantizer: Quantizer, latents: Tensor, index: Tensor, size: int) -> float:
    """The share of a codebook's codes that latents take; the mean over codebooks."""
    if quantizer.one_token:
        return index[index >= 0].unique().numel() / size
    counting = copy.deepcopy(quantizer).eval()
    counting.reset_usage()
    counting(latents)
    each = usages(counting.usage())
    return sum(usage.utilization for usage in each) / len(each)


def _places(contestant: Contestant) -> Tensor:
    """Latents [positions of all, dim], float64; the mean where a variance comes with it."""
    last = contestant.latents.movedim(contestant.quantizer.channel_dim, -1)
    return last.reshape(-1, last.shape[-1])[:, : contestant.quantizer.dim].double()


def _difference(a: Tensor, b: Tensor, tolerance: float) -> str | None:
    """What sets two samples apart, in words; None if their Gaussian fits agree."""
    if a.shape[1] != b.shape[1]:
        return f"{a.shape[1]} and {b.shape[1]} channels"
    if a.shape == b.shape and torch.equal(a, b):
        return None
    covariances = [torch.cov(x.T).reshape(x.shape[1], -1) for x in (a, b)]
    scale = covariances[0].diagonal().mean().sqrt()
    means = float((a.mean(0) - b.mean(0)).norm() / (scale * a.shape[1] ** 0.5))
    if not means <= tolerance:
        return f"means {means:.2g} standard deviations apart"
    spread = float((covariances[0] - covariances[1]).norm() / covariances[0].norm())
    return None if spread <= tolerance else f"covariances {spread:.2g} apart, relative"


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
