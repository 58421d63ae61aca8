"""Named points of the grid: `build_quantizer("mmd", dim=8, codebook_size=65536)`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from .alignment import MMD, Alignment, build_alignment
from .base import Quantizer
from .codes import Table
from .compose import CODEBOOK_FREE, STRUCTURES, mgvq_options
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


PRESETS: dict[str, Callable[..., Quantizer]] = {"vanilla": vanilla, "ema": ema, "mmd": mmd}


def build_quantizer(name: str, *, dim: int, codebook_size: int, **options) -> Quantizer:
    """A quantizer by name.

    Args:
        name: one of `PRESETS`, ``mgvq``, or without a codebook ``fsq``, ``lfq``, ``bsq``. After any
            but ``mgvq``, structures from the inside out: ``_halves``, ``_vp2``, ``_groups``,
            ``_rq``, ``_var``, ``_sphere`` (``mmd_var``, ``vanilla_vp2_halves``).
        dim: channels of a latent.
        codebook_size: number of codes K of a token.
        **options: of the preset, such as ``commitment``, ``init``, ``channel_dim``, ``decay`` (ema)
            or ``alignment`` (mmd), and of the structures, such as ``depth`` (rq) or ``patch_sizes``
            (var); one that several have goes to the outermost.

    Returns:
        The quantizer; its `config` holds what was asked for, and ``build_quantizer(**config)``
        builds it again.

    Raises:
        ValueError: the name or an option is unknown, or a value is out of range.
    """
    if not _is_known(name):
        raise ValueError(
            f"build_quantizer: name must be one of {sorted([*PRESETS, *CODEBOOK_FREE, 'mgvq'])}, "
            f"or one of them with structures, {', '.join('_' + s for s in STRUCTURES)}, after it; "
            f"got {name!r}"
        )
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
    quantizer = _build(name, dim, codebook_size, options)
    config = {"name": name, "dim": dim, "codebook_size": codebook_size, **options}
    if hasattr(config.get("alignment"), "config"):
        config["alignment"] = config["alignment"].config
    quantizer.config = config
    return quantizer


def _is_known(name: str) -> bool:
    if name in PRESETS or name in CODEBOOK_FREE or name == "mgvq":
        return True
    part, _, suffix = name.rpartition("_")
    return suffix in STRUCTURES and part != "mgvq" and _is_known(part)


def _build(name: str, dim: int, codebook_size: int, options: dict) -> Quantizer:
    if name == "mgvq":
        name, options = mgvq_options(options)
    if name in PRESETS or name in CODEBOOK_FREE:
        preset = {**PRESETS, **CODEBOOK_FREE}[name]
        return preset(dim=dim, codebook_size=codebook_size, **options)
    part, _, suffix = name.rpartition("_")
    parameters = inspect.signature(STRUCTURES[suffix]).parameters
    own = {k: options.get(k, parameters[k].default) for k in _options(STRUCTURES[suffix])}
    inner = {k: v for k, v in options.items() if k not in own}
    build_part = functools.partial(build_quantizer, part, **inner)
    quantizer = STRUCTURES[suffix](build_part, dim, codebook_size, **own)
    quantizer.structure = (suffix, own)
    return quantizer


def _options_of(name: str) -> list[str]:
    if name == "mgvq":
        return _options_of("vanilla_groups")
    if name not in PRESETS and name not in CODEBOOK_FREE:
        part, _, suffix = name.rpartition("_")
        own = _options(STRUCTURES[suffix])
        return own + [p for p in _options_of(part) if p not in own]
    preset = {**PRESETS, **CODEBOOK_FREE}[name]
    options = _options(preset)
    if "options" in inspect.signature(preset).parameters:  # passed on to vanilla
        options += [p for p in _options_of("vanilla") if p not in options]
    return options


def _options(builder: Callable) -> list[str]:
    """What a builder takes besides the part, its channels and the codebook's size."""
    given = ("build", "dim", "codebook_size", "options")
    return [p for p in inspect.signature(builder).parameters if p not in given]
