"""Named points of the grid: `build_quantizer("mmd", dim=8, codebook_size=65536)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from .alignment import MMD, Alignment, Wasserstein, build_alignment
from .base import Quantizer
from .codes import Table
from .updates import EMA, Gradient
from .vector import VectorQuantizer


def vanilla(
    *,
    dim: int,
    codebook_size: int,
    init: str = "normal",
    commitment: float = 0.25,
    codebook_weight: float = 1.0,
    alignment: Alignment | dict | None = None,
    channel_dim: int = -1,
) -> VectorQuantizer:
    """VQ-VAE: a free table moved by the codebook loss."""
    return VectorQuantizer(
        Table(codebook_size, dim, init=init),
        update=Gradient(codebook_weight),
        alignment=build_alignment(alignment),
        commitment=commitment,
        channel_dim=channel_dim,
    )


def ema(
    *,
    dim: int,
    codebook_size: int,
    init: str = "normal",
    commitment: float = 0.25,
    decay: float = 0.99,
    channel_dim: int = -1,
) -> VectorQuantizer:
    """A free table moved by exponential moving averages (VQ-VAE appendix A.1, VQ-VAE-2)."""
    return VectorQuantizer(
        Table(codebook_size, dim, init=init),
        update=EMA(decay),
        commitment=commitment,
        channel_dim=channel_dim,
    )


def mmd(
    *,
    dim: int,
    codebook_size: int,
    alignment: Alignment | dict | None = None,
    **options,
) -> VectorQuantizer:
    """MMD VQ (VQ-Transplant section 4.2): vanilla, with the codes pulled to the features."""
    aligned = MMD() if alignment is None else build_alignment(alignment)
    return vanilla(dim=dim, codebook_size=codebook_size, alignment=aligned, **options)


def wasserstein(
    *,
    dim: int,
    codebook_size: int,
    alignment: Alignment | dict | None = None,
    **options,
) -> VectorQuantizer:
    """Wasserstein VQ (Fang et al. 2025): vanilla, with the codes' mean and covariance pulled to the
    features'."""
    aligned = Wasserstein() if alignment is None else build_alignment(alignment)
    return vanilla(dim=dim, codebook_size=codebook_size, alignment=aligned, **options)


PRESETS: dict[str, Callable[..., Quantizer]] = {
    "vanilla": vanilla,
    "ema": ema,
    "mmd": mmd,
    "wasserstein": wasserstein,
}


def build_quantizer(name: str, *, dim: int, codebook_size: int, **options) -> Quantizer:
    """A quantizer by name.

    Args:
        name: one of `PRESETS`.
        dim: channels of a latent.
        codebook_size: number of codes K.
        **options: of the preset, such as ``commitment``, ``init``, ``channel_dim``, ``decay`` (ema)
        or
            ``alignment`` (mmd, wasserstein).

    Returns:
        The quantizer; its `config` holds what was asked for, and ``build_quantizer(**config)``
        builds it again.

    Raises:
        ValueError: the name or an option is unknown, or a value is out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"build_quantizer: name must be one of {sorted(PRESETS)}, got {name!r}")
    known = _options_of(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"build_quantizer: {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}"
        )
    for label, value in (("dim", dim), ("codebook_size", codebook_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"build_quantizer: {label} must be a whole number of at least 1, got {value!r}"
            )
    quantizer = PRESETS[name](dim=dim, codebook_size=codebook_size, **options)
    config = {"name": name, "dim": dim, "codebook_size": codebook_size, **options}
    if hasattr(config.get("alignment"), "config"):
        config["alignment"] = config["alignment"].config
    quantizer.config = config
    return quantizer


def _options_of(name: str) -> list[str]:
    parameters = inspect.signature(PRESETS[name]).parameters
    options = [p for p in parameters if p not in ("dim", "codebook_size", "options")]
    if "options" in parameters:  # passed on to vanilla
        options += [p for p in _options_of("vanilla") if p not in options]
    return options
