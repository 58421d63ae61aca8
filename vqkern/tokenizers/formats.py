"""The public files' formats: their keys, and the sizes that follow from their shapes.

A format is a way to write down the same networks: its keys, and where query, key and value are
three convolutions, as in most. `original.py` reads and writes files with what is said here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vqkern.quantizers.multiscale import VAR_PATCH_SIZES
from vqkern.tokenizers.config_checks import LARGEST, LONGEST
from vqkern.tokenizers.vqgan import VQGANConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Format:
    """One public format.

    Attributes:
        name: As `from_original` takes it.
        wrappers: Keys under which a pickle may hold the state dict; the first found counts.
        writes: The one of them that `to_original` writes, None for a flat state dict.
        dropped: What is left out when reading: a pattern of keys, and why.
        quantizer: Options of `build_quantizer` by the file's shapes; None: continuous latents.
        quantizer_keys: Their prefixes and ours, the longest first.
        layout: How the networks' keys are called: "levels" or "conv_blocks".
        fused: Whether query, key and value are one convolution.
        variational: Whether the encoder gives mean and log-variance.
    """

    name: str
    wrappers: tuple[str, ...]
    writes: str | None
    dropped: dict[str, str] = field(default_factory=dict)
    quantizer: Callable[[Shapes, tuple[int, ...] | None], dict] | None = None
    quantizer_keys: Callable[[Iterable[str]], list[tuple[str, str]]] | None = None
    layout: str = "levels"
    fused: bool = False
    variational: bool = False


class Unlike(ValueError):
    """The keys and shapes do not give the sizes of a network: another format."""


def network_config(form: Format, shapes: Shapes) -> VQGANConfig:
    """Sizes of the networks by the shapes in a file.

    Raises:
        Unlike: the keys that tell are not there.
        ValueError: they do not make a network.
    """
    count = level_count(form, shapes)
    own = {to_our_key(form, key, count): shape for key, shape in shapes.items()}
    moments = 2 if form.variational else 1
    # Of attention, `norm` is the part that all layouts have.
    levels, attention = set(), set()
    for key in own:
        if found := re.fullmatch(r"encoder\.down\.(\d{1,2})\.(block|attn)\.0\.norm1?\.weight", key):
            (levels if found[2] == "block" else attention).add(int(found[1]))
    if levels != set(range(len(levels))) or not levels or len(levels) > LONGEST:
        raise Unlike("no levels")
    outs = [_shape(own, f"encoder.down.{n}.block.0.conv2.weight", 4)[0] for n in sorted(levels)]
    width = _shape(own, "encoder.conv_in.weight", 4)[0]
    if not 0 < width <= LARGEST or any(out % width for out in outs):
        raise Unlike("widths that are no multiples")
    blocks = 1
    while f"encoder.down.0.block.{blocks}.conv1.weight" in own:
        blocks += 1
    quant_conv = _shape(own, "encoder.quant_conv.weight", 4)
    return VQGANConfig(
        latent_dim=quant_conv[0] // moments,
        z_channels=_shape(own, "encoder.conv_out.weight", 4)[0] // moments,
        width=width,
        multipliers=tuple(out // width for out in outs),
        blocks=blocks,
        attention=tuple(sorted(attention & levels)),
        quant_kernel=quant_conv[2],
        variational=form.variational,
    )


def to_our_key(form: Format, key: str, levels: int) -> str:
    """Our name of one of their keys; q, k, v and the quantizer keep theirs."""
    key = re.sub(r"^quant_conv\.", "encoder.quant_conv.", key)
    key = re.sub(r"^post_quant_conv\.", "decoder.post_quant_conv.", key)
    if form.layout == "conv_blocks":
        key = re.sub(r"^((?:en|de)coder\.mid)\.([012])\.", _middle, key)
        key = re.sub(r"^encoder\.conv_blocks\.(\d+)\.", r"encoder.down.\1.", key)
        key = re.sub(
            r"^decoder\.conv_blocks\.(\d{1,4})\.",
            lambda found: f"decoder.up.{levels - 1 - int(found[1])}.",
            key,
        )
        key = re.sub(r"^((?:encoder\.down|decoder\.up)\.-?\d+)\.res\.", r"\1.block.", key)
    return key


def to_their_key(form: Format, key: str, levels: int) -> str:
    """The inverse of `to_our_key`."""
    key = re.sub(r"^encoder\.quant_conv\.", "quant_conv.", key)
    key = re.sub(r"^decoder\.post_quant_conv\.", "post_quant_conv.", key)
    if form.layout == "conv_blocks":
        for number, name in enumerate(_MIDDLE):
            key = re.sub(rf"^((?:en|de)coder\.mid)\.{name}\.", rf"\1.{number}.", key)
        key = re.sub(r"^((?:encoder\.down|decoder\.up)\.\d+)\.block\.", r"\1.res.", key)
        key = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.conv_blocks.\1.", key)
        key = re.sub(
            r"^decoder\.up\.(\d+)\.",
            lambda found: f"decoder.conv_blocks.{levels - 1 - int(found[1])}.",
            key,
        )
    return key


def level_count(form: Format, names: Iterable[str]) -> int:
    """Levels of the encoder in a file."""
    part = "conv_blocks" if form.layout == "conv_blocks" else "down"
    numbers = {int(f[1]) for n in names if (f := re.match(rf"encoder\.{part}\.(\d{{1,4}})\.", n))}
    return len(numbers)


def qkv_keys(key: str) -> list[str] | None:
    """The three keys of one of ours that holds query, key and value; None for others."""
    found = re.fullmatch(r"(.*\.)qkv\.(weight|bias)", key)
    return [f"{found[1]}{part}.{found[2]}" for part in "qkv"] if found else None


def looks_like(names: Iterable[str]) -> str | None:
    """Which format a file's keys are of, in words; None if of none that is known."""
    names = set(names)

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    if has(r"quantizer\."):
        return "vqkern's own: from_pretrained reads it"
    if has(r"quantize\.quant_resi\.qresi_ls\.") or has(r"encoder\.(down\.\d+|mid)\.attn.*\.qkv\."):
        return "'var'"
    if has(r"encoder\.conv_blocks\."):
        if has(r"quantize\.qbridge\."):
            return "'fvq'"
        return "'llamagen', or 'fvq' with its codebook folded"
    if has(r"encoder\.stages\."):
        return "MGVQ with its own backbone, which is not among the formats"
    if has(r"encoder\.down\.\d+\.block\."):
        if has(r"quantize\.embedding\."):
            return "'ldm-vq-f16' or 'taming-vqgan', which have the same keys"
        return "'ldm-kl-f16'"
    if has(r"encoder\.(down_blocks|mid_block)\."):
        return "a diffusers model, which is not among the formats"
    return None


def _shape(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None or len(shape) != axes:
        raise Unlike(f"no {key}")
    return shape


_MIDDLE = ("block_1", "attn_1", "block_2")


def _middle(found: re.Match) -> str:
    return f"{found[1]}.{_MIDDLE[int(found[2])]}."


# The quantizers.


def _table(shapes: Shapes, patch_sizes: tuple[int, ...] | None) -> dict:
    size, dim = _shape(shapes, "quantize.embedding.weight", 2)
    return {"name": "vanilla", "dim": dim, "codebook_size": size}


def _sphere(shapes: Shapes, patch_sizes: tuple[int, ...] | None) -> dict:
    return {**_table(shapes, None), "name": "vanilla_sphere"}


def _multi_scale(shapes: Shapes, patch_sizes: tuple[int, ...] | None) -> dict:
    sizes = VAR_PATCH_SIZES if patch_sizes is None else tuple(patch_sizes)
    hits = shapes.get("quantize.ema_vocab_hit_SV")
    if patch_sizes is None and hits is not None and hits[:1] != (len(sizes),):
        raise ValueError(
            f"patch_sizes: the file has {hits[0] if hits else 0} scales, the default {len(sizes)}; "
            f"pass the sizes of its scales"
        )
    numbers = [
        key for key in shapes if re.fullmatch(r"quantize\.quant_resi\.qresi_ls\.\d+\.weight", key)
    ]
    if not numbers:
        raise Unlike("no convolutions between scales")
    options = {"patch_sizes": sizes, "convolutions": len(numbers)}
    return {**_table(shapes, None), "name": "vanilla_var", **options}


def _bridged(shapes: Shapes, patch_sizes: tuple[int, ...] | None) -> dict:
    if not any(key.startswith("quantize.qbridge.") for key in shapes):
        return _table(shapes, None)  # folded
    proj = _shape(shapes, "quantize.qbridge.x_embedder.proj.weight", 4)
    depth = 0
    while f"quantize.qbridge.blocks.{depth}.attn.qkv.weight" in shapes and depth < LONGEST:
        depth += 1
    modulated = "quantize.qbridge.y_embedder.embedding_table.weight" in shapes
    return {
        **_table(shapes, None),
        "name": "fvq",
        "patch": proj[2] * proj[3],
        "hidden": proj[0],
        "depth": depth,
        "variant": "dit" if modulated else "vit",
        "init": "uniform",
        "start": "zero",
    }


# Of a public file, for what these functions read; stands in where a file has no such keys.
PUBLIC_SHAPES: Shapes = {
    "quantize.embedding.weight": (4096, VQGANConfig.latent_dim),
    **{f"quantize.quant_resi.qresi_ls.{n}.weight": (8, 8, 3, 3) for n in range(4)},
}


def _keys(*pairs: tuple[str, str]) -> Callable[[Iterable[str]], list[tuple[str, str]]]:
    return lambda names: list(pairs)


_TABLE_KEYS = ("quantize.embedding.", "quantizer.parametrisation.")


def _bridged_keys(names: Iterable[str]) -> list[tuple[str, str]]:
    """Either side's names tell whether the codebook is folded."""
    if not any(".qbridge." in name for name in names):
        return [_TABLE_KEYS]
    return [
        ("quantize.embedding.", "quantizer.parametrisation.embedding."),
        ("quantize.qbridge.", "quantizer.parametrisation.qbridge."),
    ]


_STATISTICS = "running counts of how often codes were chosen; they change no output"
_LOSS = "the discriminator and the perceptual loss of the training program"

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(
            "var",
            wrappers=("state_dict", "model"),
            writes=None,
            dropped={r"quantize\.ema_vocab_hit_SV": _STATISTICS},
            quantizer=_multi_scale,
            quantizer_keys=_keys(
                ("quantize.embedding.", "quantizer.parts.0.parametrisation."),
                ("quantize.quant_resi.qresi_ls.", "quantizer.phi."),
            ),
            fused=True,
        ),
        Format(
            "llamagen",
            wrappers=("ema", "model", "state_dict"),
            writes="model",
            dropped={r"quantize\.codebook_used": _STATISTICS},
            quantizer=_sphere,
            quantizer_keys=_keys(("quantize.embedding.", "quantizer.parts.0.parametrisation.")),
            layout="conv_blocks",
        ),
        Format(
            "fvq",
            wrappers=("ema", "model", "state_dict"),
            writes="model",
            dropped={r"quantize\.codebook_used": _STATISTICS},
            quantizer=_bridged,
            quantizer_keys=_bridged_keys,
            layout="conv_blocks",
        ),
        Format(
            "ldm-kl-f16",
            wrappers=("state_dict",),
            writes="state_dict",
            dropped={r"loss\..*": _LOSS},
            variational=True,
        ),
        *(
            Format(
                name,
                wrappers=("state_dict",),
                writes="state_dict",
                dropped={r"loss\..*": _LOSS},
                quantizer=_table,
                quantizer_keys=_keys(_TABLE_KEYS),
            )
            for name in ("ldm-vq-f16", "taming-vqgan")
        ),
    )
}
