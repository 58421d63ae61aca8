"""Structures by name: `mmd_var` is the preset `mmd` in the structure `var`; and further presets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ops.checks import require_whole
from .base import Quantizer
from .multiscale import VAR_PATCH_SIZES, MultiScale
from .product import Groups, Halves, Product, default_keep_probabilities
from .residual import Residual
from .scalar import BSQ, FSQ, LFQ
from .sphere import Spherical
from .structure import Structured

# Builds a part of so many channels and codes.
BuildPart = Callable[..., Quantizer]


def _halves(build: BuildPart, dim: int, codebook_size: int, *, channel_dim: int = -1) -> Structured:
    """Two independent halves: two tokens of `codebook_size` codes each."""
    width = _share("halves", dim, 2)
    parts = [build(dim=width, codebook_size=codebook_size) for _ in range(2)]
    return Halves(parts, channel_dim=channel_dim)


def _vp2(
    build: BuildPart, dim: int, codebook_size: int, *, num_parts: int = 2, channel_dim: int = -1
) -> Structured:
    """One joint token of `codebook_size` codes, the `num_parts`-th root of it in every part."""
    width = _share("vp2", dim, num_parts)
    size = whole_root("vp2", codebook_size, num_parts)
    parts = [build(dim=width, codebook_size=size) for _ in range(num_parts)]
    return Product(parts, channel_dim=channel_dim)


def _groups(
    build: BuildPart,
    dim: int,
    codebook_size: int,
    *,
    groups: int = 4,
    keep_probabilities: Sequence[float] | None = None,
    channel_dim: int = -1,
) -> Structured:
    """Independent groups: a token of `codebook_size` codes each; nested masking where asked for."""
    width = _share("groups", dim, groups)
    parts = [build(dim=width, codebook_size=codebook_size) for _ in range(groups)]
    return Groups(parts, keep_probabilities=keep_probabilities, channel_dim=channel_dim)


def _rq(
    build: BuildPart,
    dim: int,
    codebook_size: int,
    *,
    depth: int = 4,
    shared: bool = True,
    channel_dim: int = -1,
) -> Structured:
    """Residual: `depth` tokens of `codebook_size` codes, of one codebook or one a stage."""
    require_whole("depth", depth)
    number = 1 if shared else depth
    parts = [build(dim=dim, codebook_size=codebook_size) for _ in range(number)]
    return Residual(parts, depth=depth, channel_dim=channel_dim)


def _var(
    build: BuildPart,
    dim: int,
    codebook_size: int,
    *,
    patch_sizes: Sequence[int] = VAR_PATCH_SIZES,
    convolutions: int | None = None,
    ratio: float = 0.5,
    commitment: float = 0.25,
    codebook_weight: float = 1.0,
    scale_weights: Sequence[float] | None = None,
    channel_dim: int = -1,
) -> Structured:
    """Multi-scale: tokens of `codebook_size` codes from coarse to fine, of one codebook."""
    return MultiScale(
        build(dim=dim, codebook_size=codebook_size),
        patch_sizes=patch_sizes,
        convolutions=convolutions,
        ratio=ratio,
        commitment=commitment,
        codebook_weight=codebook_weight,
        scale_weights=scale_weights,
        channel_dim=channel_dim,
    )


def _sphere(build: BuildPart, dim: int, codebook_size: int, *, channel_dim: int = -1) -> Structured:
    """Latents and codes on the unit sphere."""
    return Spherical(build(dim=dim, codebook_size=codebook_size), channel_dim=channel_dim)


STRUCTURES: dict[str, Callable[..., Structured]] = {
    "halves": _halves,
    "vp2": _vp2,
    "groups": _groups,
    "rq": _rq,
    "var": _var,
    "sphere": _sphere,
}


def fsq(
    *,
    dim: int,
    codebook_size: int,
    levels: Sequence[int] | None = None,
    bound: str = "published",
    commitment: float = 0.0,
    channel_dim: int = -1,
) -> FSQ:
    """FSQ; without `levels`, the same in every channel: the dim-th root of `codebook_size`."""
    if levels is None:
        levels = [whole_root("fsq", codebook_size, dim)] * dim
    quantizer = FSQ(levels, bound=bound, commitment=commitment, channel_dim=channel_dim)
    if (quantizer.dim, quantizer.codebook_size) != (dim, codebook_size):
        raise ValueError(
            f"fsq: levels must be {dim} numbers whose product is codebook_size {codebook_size}, "
            f"got {list(levels)} with product {quantizer.codebook_size}"
        )
    return quantizer


def lfq(
    *,
    dim: int,
    codebook_size: int,
    entropy_weight: float = 0.1,
    diversity: float = 1.0,
    commitment: float = 0.25,
    temperature: float = 0.01,
    joint_bits: int = 18,
    channel_dim: int = -1,
) -> LFQ:
    """LFQ; `codebook_size` is 2^dim."""
    _require_power_of_two("lfq", dim, codebook_size)
    return LFQ(
        dim,
        entropy_weight=entropy_weight,
        diversity=diversity,
        commitment=commitment,
        temperature=temperature,
        joint_bits=joint_bits,
        channel_dim=channel_dim,
    )


def bsq(
    *,
    dim: int,
    codebook_size: int,
    entropy_weight: float = 0.1,
    diversity: float = 1.0,
    commitment: float = 0.0,
    temperature: float = 1.0,
    joint_bits: int = 1,
    channel_dim: int = -1,
) -> BSQ:
    """BSQ; `codebook_size` is 2^dim."""
    _require_power_of_two("bsq", dim, codebook_size)
    return BSQ(
        dim,
        entropy_weight=entropy_weight,
        diversity=diversity,
        commitment=commitment,
        temperature=temperature,
        joint_bits=joint_bits,
        channel_dim=channel_dim,
    )


CODEBOOK_FREE: dict[str, Callable[..., Quantizer]] = {"fsq": fsq, "lfq": lfq, "bsq": bsq}


def mgvq_options(options: dict) -> tuple[str, dict]:
    """`mgvq` is `vanilla_groups` with nested masking, of which the default fits the groups."""
    options = {"groups": 4, **options}
    if options.get("keep_probabilities") is None and isinstance(options["groups"], int):
        options["keep_probabilities"] = default_keep_probabilities(max(options["groups"], 1))
    return "vanilla_groups", options


def whole_root(name: str, value: int, degree: int) -> int:
    """The whole number whose `degree`-th power is `value`.

    Raises:
        ValueError: there is none.
    """
    guess = round(value ** (1 / degree))
    for root in (guess - 1, guess, guess + 1):
        if root >= 1 and root**degree == value:
            return root
    raise ValueError(
        f"{name}: codebook_size must be a whole number to the power of {degree}, got {value}; "
        f"next to it are {max(guess - (guess**degree > value), 1) ** degree} "
        f"and {(guess + (guess**degree < value)) ** degree}"
    )


def _share(name: str, dim: int, parts: int) -> int:
    if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
        raise ValueError(f"{name}: the number of parts must be at least 1, got {parts!r}")
    if dim % parts:
        raise ValueError(f"{name}: dim must be a multiple of the {parts} parts, got {dim}")
    return dim // parts


def _require_power_of_two(name: str, dim: int, codebook_size: int) -> None:
    if codebook_size != 2**dim:
        raise ValueError(
            f"{name}: codebook_size must be 2^dim = {2**dim} for dim {dim}, got {codebook_size}"
        )
