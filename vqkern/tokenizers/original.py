"""Tokenizers from the public files of other programs, and back into files that those read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkern.files import whole_file
from vqkern.quantizers import (
    MultiScale,
    Spherical,
    Table,
    VariationalQuantizer,
    VectorQuantizer,
    VQBridge,
)
from vqkern.tokenizers import files, formats
from vqkern.tokenizers.files import Stored
from vqkern.tokenizers.formats import FORMATS, Format
from vqkern.tokenizers.pretrained import assemble
from vqkern.tokenizers.tokenizer import Tokenizer
from vqkern.tokenizers.vqgan import VQGANConfig


def from_original(
    format: str, path: str | Path, *, patch_sizes: tuple[int, ...] | None = None
) -> Tokenizer:
    """A tokenizer from a public file: same latents, indices and images as its own program gives.

    Sizes are read off the shapes in the file, so that any width, depth and codebook of a format
    loads, VQ-8 as well as VQ-16, kl-f8 as well as kl-f16. Left out, because they change no output:
    counts of how often codes were chosen (var, llamagen, fvq) and ``loss.*`` (ldm, taming).

    Args:
        format: "var", "llamagen", "fvq" (codebook bridged or folded), "ldm-kl-f16", which has no
            quantizer until one is transplanted, "ldm-vq-f16" or "taming-vqgan".
        path: a file of tensors: safetensors, by its suffix, or what torch.save wrote, in which
            classes other than tensors and plain containers are refused.
        patch_sizes: of "var" alone, the scales; None for the released ten, 1 to 16. The same
            weights serve other sizes: 1 to 32 makes a tokenizer of 512 x 512 pixels.

    Returns:
        The tokenizer in eval mode on the CPU; `to_original` writes it back.

    Raises:
        ValueError: the format is unknown; the file cannot be read or is refused; its keys, shapes
            or dtypes are not those of the format, with the keys that are missing and unexpected
            and the format it looks like; or a value is not finite.
    """
    form = _format(format)
    path = Path(path)
    if patch_sizes is not None and form.name != "var":
        raise ValueError(f"patch_sizes: {form.name!r} has no scales, expected None")
    if path.suffix == ".safetensors":
        stored = files.list_safetensors(path)
    else:
        stored = files.list_pickle(path, form.wrappers)
    config, options, ours = plan(form, path, stored, patch_sizes)
    return assemble(path, config, options, ours, original=form.name)


def plan(
    form: Format,
    path: Path,
    stored: Mapping[str, Stored],
    patch_sizes: tuple[int, ...] | None = None,
) -> tuple[VQGANConfig, dict | None, Callable[[Mapping[str, Tensor]], dict[str, Stored]]]:
    """What a file of a format holds, before anything of it is read.

    Returns:
        Sizes of the networks, options of the quantizer (None without one), and a function from a
        tokenizer's state dict, which may be on "meta", to the file's tensors under its names. The
        function raises ValueError where they are not the file's.
    """
    kept = {
        name: tensor
        for name, tensor in stored.items()
        if not any(re.fullmatch(pattern, name) for pattern in form.dropped)
    }
    hint = _hint(form, kept)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    try:
        config, options = _sizes(form, shapes, patch_sizes)
    except ValueError as error:
        raise ValueError(f"tokenizer file {str(path)!r}: {error}{hint}") from error

    def ours(expected: Mapping[str, Tensor]) -> dict[str, Stored]:
        theirs = {
            name: part
            for key, tensor in expected.items()
            for name, part in _split(form, config, key, tensor, expected)
        }
        files.compare(path, kept, theirs, hint)
        return {key: _joined(form, config, key, expected, kept) for key in expected}

    return config, options, ours


def to_original(tokenizer: Tokenizer, path: str | Path, format: str | None = None) -> None:
    """Writes a tokenizer as a public file that the format's own program loads strictly.

    A file read by `from_original` comes back with the same tensors, bit for bit; the counts that it
    leaves out are zeros, and ``loss.*`` stays out. Codes behind a projector are folded to a table,
    except VQBridge's released variants in "fvq". A transplanted quantizer can be written where the
    format has one of its kind: a multi-scale one in "var", one on the sphere in "llamagen", a plain
    one in "fvq", "ldm-vq-f16" and "taming-vqgan".

    Args:
        path: ends in .safetensors, or gets what torch.save writes.
        format: None for the one that the tokenizer came from.

    Raises:
        ValueError: the format is unknown, or cannot hold these networks or this quantizer.
    """
    form = _format(tokenizer.original if format is None else format)
    config = tokenizer.config
    if not isinstance(config, VQGANConfig):
        raise ValueError(f"format: {form.name!r} cannot hold a {type(config).__name__} network")
    kernel = 3 if form.name == "var" else 1
    for name, wanted in (
        ("variational", form.variational),
        ("quant_kernel", kernel),
        ("quant_groups", 1),
        ("groups", 32),
    ):
        if getattr(config, name) != wanted:
            raise ValueError(
                f"format: {form.name!r} needs {name} = {wanted}, "
                f"the tokenizer has {getattr(config, name)}"
            )
    quantizer = _writable(form, tokenizer.quantizer)
    ours = {f"encoder.{k}": v for k, v in tokenizer.encoder.state_dict().items()}
    ours |= {f"decoder.{k}": v for k, v in tokenizer.decoder.state_dict().items()}
    if quantizer is not None:
        ours |= {f"quantizer.{k}": v for k, v in quantizer.state_dict().items()}
    theirs = {
        name: part.detach().cpu().float().contiguous().clone()
        for key, tensor in ours.items()
        for name, part in _split(form, config, key, tensor, ours)
    }
    theirs |= _statistics(form, quantizer)
    path = Path(path)
    with whole_file(path) as part:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(theirs, part)
        else:
            torch.save(theirs if form.writes is None else {form.writes: theirs}, part)


def _format(name: str | None) -> Format:
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(map(repr, FORMATS))}, got {name!r}")
    return FORMATS[name]


def _sizes(
    form: Format, shapes: dict[str, tuple[int, ...]], patch_sizes: tuple[int, ...] | None
) -> tuple[VQGANConfig, dict | None]:
    """Sizes by a file's shapes; those of a public file where it has none, so that the comparison of
    the keys can say what is missing."""
    try:
        config = formats.network_config(form, shapes)
        options = form.quantizer and form.quantizer(shapes, patch_sizes)
    except formats.Unlike:
        config = VQGANConfig(variational=form.variational)
        options = form.quantizer and form.quantizer(formats.PUBLIC_SHAPES, None)
    return config, options and {**options, "channel_dim": 1}


def _split(
    form: Format, config: VQGANConfig, key: str, tensor: Tensor, ours: Mapping[str, Tensor]
) -> list[tuple[str, Tensor]]:
    """Their names and tensors of one of ours: three where ours holds query, key and value."""
    names = _their_names(form, config, key, ours)
    return list(zip(names, tensor.chunk(len(names)), strict=True))


def _joined(
    form: Format,
    config: VQGANConfig,
    key: str,
    ours: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
) -> Stored:
    parts = [stored[name] for name in _their_names(form, config, key, ours)]
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Stored(shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def _their_names(
    form: Format, config: VQGANConfig, key: str, ours: Mapping[str, Tensor]
) -> list[str]:
    if key.startswith("quantizer."):
        for theirs, own in form.quantizer_keys(ours):
            if key.startswith(own):
                return [theirs + key.removeprefix(own)]
        raise ValueError(f"quantizer: {form.name!r} has no place for its {key!r}")
    names = [key] if form.fused else formats.qkv_keys(key) or [key]
    return [formats.to_their_key(form, name, len(config.multipliers)) for name in names]


def _hint(form: Format, names: Mapping[str, Stored]) -> str:
    like = formats.looks_like(names)
    if like is None:
        return f"; the file is not of the format {form.name!r} nor of any other that is known"
    return f"; by its keys the file looks like {like}"


def _writable(form: Format, quantizer: nn.Module | None) -> nn.Module | None:
    """The quantizer with its codes in the shape that a format has room for."""
    if form.quantizer is None:
        if quantizer is not None:
            raise ValueError(
                f"quantizer: {form.name!r} holds continuous latents and has no place for a "
                f"{type(quantizer).__name__}"
            )
        return None
    structure = {"var": MultiScale, "llamagen": Spherical}.get(form.name)
    inner = quantizer
    if structure is not None:
        inner = quantizer.parts[0] if type(quantizer) is structure else None
    plain = type(inner) is VectorQuantizer and not isinstance(inner, VariationalQuantizer)
    if not plain or (structure is MultiScale and quantizer.ratio != 0.5):
        wanted = "plain" if structure is None else f"plain one in a {structure.__name__}"
        raise ValueError(
            f"quantizer: {form.name!r} holds a {wanted}, got {type(quantizer).__name__}"
        )
    codes = inner.parametrisation
    bridged = form.name == "fvq" and type(codes) is VQBridge and codes.variant != "paper"
    as_it_is = bridged and type(codes.embedding) is Table or type(codes) is Table
    # What moves codes, as the averages of EMA, has no place in these formats; folding drops it.
    moved = [key for key in inner.state_dict() if not key.startswith("parametrisation.")]
    return quantizer if as_it_is and not moved else quantizer.fold()


def _statistics(form: Format, quantizer: nn.Module | None) -> dict[str, Tensor]:
    """The counts that the format's program insists on, as it starts them."""
    if form.name == "var":
        scales = len(quantizer.patch_sizes)
        return {"quantize.ema_vocab_hit_SV": torch.zeros(scales, quantizer.codebook_size)}
    if form.name == "llamagen":
        return {"quantize.codebook_used": torch.zeros(65536)}
    if form.name == "fvq":
        size = quantizer.codebook_size
        return {"quantize.codebook_used": torch.zeros(65536 if size < 65536 else size + 1)}
    return {}
