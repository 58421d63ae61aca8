"""Named points of the grid: `build_quantizer("mmd", dim=8, codebook_size=65536)`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from torch import Tensor, nn

from ..ops.checks import require_whole
from .alignment import MMD, Alignment, PriorWasserstein, Wasserstein, build_alignment
from .base import Quantizer, require_weight
from .bridge import VQBridge
from .codes import MLP5, Linear, Table
from .compose import CODEBOOK_FREE, STRUCTURES, mgvq_options
from .estimators import Estimator, build_estimator, estimator_option
from .projected import WRAPPERS
from .updates import EMA, Gradient, Online, Revival
from .variational import VariationalQuantizer
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
    estimator: str | dict | Estimator = "straight_through",
) -> VectorQuantizer:
    """VQ-VAE: a free table moved by the codebook loss."""
    return _compose(
        Table(codebook_size, dim, init=init),
        commitment=commitment,
        codebook_weight=codebook_weight,
        alignment=alignment,
        channel_dim=channel_dim,
        estimator=estimator,
    )


def _compose(
    codes: nn.Module,
    *,
    rule: nn.Module | None = None,
    commitment: float = 0.25,
    codebook_weight: float = 1.0,
    alignment: Alignment | dict | None = None,
    channel_dim: int = -1,
    estimator: str | dict | Estimator = "straight_through",
) -> VectorQuantizer:
    """A quantizer of any codes by the options of `vanilla`, moved by gradients or by `rule`."""
    return VectorQuantizer(
        codes,
        update=Gradient(codebook_weight) if rule is None else rule,
        alignment=build_alignment(alignment),
        commitment=commitment,
        channel_dim=channel_dim,
        estimator=build_estimator(estimator),
    )


def ema(
    *,
    dim: int,
    codebook_size: int,
    init: str = "normal",
    commitment: float = 0.25,
    decay: float = 0.99,
    smoothing: float = 0.0,
    revive_after: int | None = None,
    channel_dim: int = -1,
    estimator: str | dict | Estimator = "straight_through",
) -> VectorQuantizer:
    """A free table moved by exponential moving averages (VQ-VAE appendix A.1, VQ-VAE-2).

    `revive_after`: steps after which an unused code is set on a random feature; None: never.
    """
    rule = EMA(decay, smoothing=smoothing)
    return VectorQuantizer(
        Table(codebook_size, dim, init=init),
        update=rule if revive_after is None else Revival(rule, after=revive_after),
        commitment=commitment,
        channel_dim=channel_dim,
        estimator=build_estimator(estimator),
    )


def online(
    *,
    dim: int,
    codebook_size: int,
    init: str = "normal",
    codebook_weight: float = 1.0,
    decay: float = 0.99,
    anchor: str = "near",
    **options,
) -> VectorQuantizer:
    """CVQ: vanilla, with little-used codes drawn to a feature (Zheng & Vedaldi 2023)."""
    rule = Online(Gradient(codebook_weight), decay=decay, anchor=anchor)
    return _compose(Table(codebook_size, dim, init=init), rule=rule, **options)


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


def simvq(
    *, dim: int, codebook_size: int, init: str = "scaled", bias: bool = True, **options
) -> VectorQuantizer:
    """SimVQ (Zhu et al. 2024): a frozen table behind a trained linear map."""
    table = Table(codebook_size, dim, init=init).requires_grad_(False)
    return _compose(Linear(table, bias=bias), **options)


def linear(
    *,
    dim: int,
    codebook_size: int,
    init: str = "scaled",
    scale: float = 1.0,
    bias: bool = True,
    start: str = "random",
    **options,
) -> VectorQuantizer:
    """A table behind a linear map, both trained (VQGAN-LC; FVQ's baseline)."""
    table = Table(codebook_size, dim, init=init, scale=scale)
    return _compose(Linear(table, bias=bias, start=start), **options)


def mlp(*, dim: int, codebook_size: int, init: str = "normal", **options) -> VectorQuantizer:
    """A table behind a five-layer MLP, both trained (FVQ, figure 3)."""
    return _compose(MLP5(Table(codebook_size, dim, init=init)), **options)


def fvq(
    *,
    dim: int,
    codebook_size: int,
    init: str = "normal",
    patch: int | None = None,
    hidden: int | None = None,
    depth: int = 2,
    variant: str = "paper",
    start: str = "spread",
    scale: float = 1.0,
    **options,
) -> VectorQuantizer:
    """FVQ: a table behind VQBridge, both trained; the released start is ``init="uniform",
    start="zero"``."""
    codes = VQBridge(
        Table(codebook_size, dim, init=init),
        patch=patch,
        hidden=hidden,
        depth=depth,
        variant=variant,
        start=start,
        scale=scale,
    )
    return _compose(codes, **options)


def vaevq(
    *,
    dim: int,
    codebook_size: int,
    init: str = "scaled",
    parametrisation: str = "linear",
    rcs_weight: float = 1.0,
    kl_weight: float = 2.56e-4,
    dcr_weight: float = 0.1,
    commitment: float = 0.0,
    codebook_weight: float = 0.0,
    form: str = "paper",
    channel_dim: int = -1,
    estimator: str | dict | Estimator = "straight_through",
) -> VariationalQuantizer:
    """VAEVQ: a Gaussian latent of 2 x dim channels, a trained table behind a linear map, the prior.

    `parametrisation` may be ``"table"`` for free codes.
    """
    if parametrisation not in ("linear", "table"):
        raise ValueError(f"parametrisation must be 'linear' or 'table', got {parametrisation!r}")
    require_weight("dcr_weight", dcr_weight)
    table = Table(codebook_size, dim, init=init)
    return VariationalQuantizer(
        Linear(table) if parametrisation == "linear" else table,
        alignment=PriorWasserstein(dcr_weight) if dcr_weight else None,
        rcs_weight=rcs_weight,
        kl_weight=kl_weight,
        commitment=commitment,
        codebook_weight=codebook_weight,
        form=form,
        channel_dim=channel_dim,
        estimator=build_estimator(estimator),
    )


PRESETS: dict[str, Callable[..., Quantizer]] = {
    "vanilla": vanilla,
    "ema": ema,
    "online": online,
    "mmd": mmd,
    "wasserstein": wasserstein,
    "simvq": simvq,
    "linear": linear,
    "mlp": mlp,
    "fvq": fvq,
    "vaevq": vaevq,
}


_SUFFIXES = {**STRUCTURES, **WRAPPERS}


def build_quantizer(name: str, *, dim: int, codebook_size: int, **options) -> Quantizer:
    """A quantizer by name.

    Args:
        name: one of `PRESETS`, ``mgvq``, or without a codebook ``fsq``, ``lfq``, ``bsq``. After any
            but ``mgvq``, structures from the inside out: ``_halves``, ``_vp2``, ``_groups``,
            ``_rq``, ``_var``, ``_sphere`` (``mmd_var``, ``vanilla_vp2_halves``); and ``_projected``
            after everything else, for projectors around it.
        dim: channels of a latent.
        codebook_size: number of codes K of a token.
        **options: of the preset, such as ``commitment``, ``init``, ``channel_dim``, ``decay`` (ema)
            or ``alignment`` (mmd, wasserstein), and of the structures, such as ``depth`` (rq) or
            ``patch_sizes`` (var); one that several have goes to the outermost. `init` is a name
            (`Table`) or a tensor of latents, from which free tables start by k-means
            (`Quantizer.start_from`).

    Returns:
        The quantizer; its `config` holds what was asked for, and ``build_quantizer(**config)``
        builds it again.

    Raises:
        ValueError: the name or an option is unknown, or a value is out of range.
    """
    if not _is_known(name):
        raise ValueError(
            f"build_quantizer: name must be one of {sorted([*PRESETS, *CODEBOOK_FREE, 'mgvq'])}, "
            f"or one of them with structures, {', '.join('_' + s for s in _SUFFIXES)}, after it; "
            f"got {name!r}"
        )
    known = _options_of(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"build_quantizer: {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}"
        )
    for label, value in (("dim", dim), ("codebook_size", codebook_size)):
        require_whole(f"build_quantizer: {label}", value)
    dim, codebook_size = int(dim), int(codebook_size)
    given = options.get("init")
    if isinstance(given, Tensor):
        # Not part of the config: what is built again takes its codes from a state dict.
        options = {key: value for key, value in options.items() if key != "init"}
    quantizer = _build(name, dim, codebook_size, options)
    if isinstance(given, Tensor):
        quantizer.start_from(given)
    config = {"name": name, "dim": dim, "codebook_size": codebook_size, **options}
    if hasattr(config.get("alignment"), "config"):
        config["alignment"] = config["alignment"].config
    if not isinstance(config.get("estimator", ""), str | dict):
        config |= estimator_option(config["estimator"])
    quantizer.config = config
    return quantizer


def _is_known(name: str) -> bool:
    if name in PRESETS or name in CODEBOOK_FREE or name == "mgvq":
        return True
    part, _, suffix = name.rpartition("_")
    return suffix in _SUFFIXES and part != "mgvq" and _is_known(part)


def _build(name: str, dim: int, codebook_size: int, options: dict) -> Quantizer:
    if name == "mgvq":
        name, options = mgvq_options(options)
    if name in PRESETS or name in CODEBOOK_FREE:
        preset = {**PRESETS, **CODEBOOK_FREE}[name]
        return preset(dim=dim, codebook_size=codebook_size, **options)
    part, _, suffix = name.rpartition("_")
    parameters = inspect.signature(_SUFFIXES[suffix]).parameters
    own = {k: options.get(k, parameters[k].default) for k in _options(_SUFFIXES[suffix])}
    inner = {k: v for k, v in options.items() if k not in own}
    build_part = functools.partial(build_quantizer, part, **inner)
    quantizer = _SUFFIXES[suffix](build_part, dim, codebook_size, **own)
    quantizer.structure = (suffix, own)
    return quantizer


def _options_of(name: str) -> list[str]:
    if name == "mgvq":
        return _options_of("vanilla_groups")
    if name not in PRESETS and name not in CODEBOOK_FREE:
        part, _, suffix = name.rpartition("_")
        own = _options(_SUFFIXES[suffix])
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
