"""Folders with config.json and model.safetensors, which hold any tokenizer of this package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkern.files import read_json, whole_file, write_whole
from vqkern.quantizers import build_quantizer
from vqkern.tokenizers import files
from vqkern.tokenizers.config_checks import LONGEST
from vqkern.tokenizers.conv import ConvConfig
from vqkern.tokenizers.files import Stored
from vqkern.tokenizers.formats import FORMATS
from vqkern.tokenizers.tokenizer import Config, Tokenizer, build_networks, check_fits
from vqkern.tokenizers.vqgan import VQGANConfig

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MOST_CONFIG_BYTES = 2**20
ARCHITECTURES: dict[str, type[Config]] = {"conv": ConvConfig, "vqgan": VQGANConfig}


def save_pretrained(tokenizer: Tokenizer, folder: str | Path) -> None:
    """See `Tokenizer.save_pretrained`."""
    from safetensors.torch import save_file

    quantizer = tokenizer.quantizer
    config = getattr(quantizer, "config", None)
    if quantizer is not None and config is None:
        raise ValueError(
            f"quantizer: {type(quantizer).__name__} has no config to save; "
            f"expected one built by vqkern.build_quantizer"
        )
    for key, tensor in tokenizer.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"tokenizer: {key} is {tensor.dtype}; a folder holds float32, which `.float()` "
                "makes of it, though not the digits that are lost"
            )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (name,) = (k for k, kind in ARCHITECTURES.items() if isinstance(tokenizer.config, kind))
    described = {
        "format": "vqkern-tokenizer",
        "format_version": FORMAT_VERSION,
        "architecture": {"name": name, **asdict(tokenizer.config)},
        "quantizer": config,
        "original": tokenizer.original,
    }
    text = json.dumps(described, indent=2) + "\n"
    tensors = {k: t.detach().cpu().contiguous() for k, t in tokenizer.state_dict().items()}
    with whole_file(path / WEIGHTS_FILE) as part:
        save_file(tensors, part)
    write_whole(path / CONFIG_FILE, text.encode("ascii"))


def pretrained_folder(name: str | Path) -> Path:
    """The folder itself, or the tokenizer in the folder of a run."""
    folder = Path(name)
    inside = folder / "tokenizer"
    if not inside.is_dir() and (folder / "recipe.yaml").is_file():
        raise ValueError(
            f"run {str(folder)!r} has no finished tokenizer; the command that began it goes on"
        )
    return inside if inside.is_dir() else folder


def from_pretrained(folder: str | Path) -> Tokenizer:
    """See `Tokenizer.from_pretrained`."""
    folder = Path(folder)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    described = _read_config(config_path)
    stored = files.list_safetensors(weights_path)

    def checked(expected: Mapping[str, Tensor]) -> Mapping[str, Stored]:
        files.compare(weights_path, stored, expected)
        return stored

    try:
        architecture = dict(described["architecture"])
        config = ARCHITECTURES[architecture.pop("name")](**architecture)
        options = described["quantizer"]
        _check_quantizer_config(options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer file {str(config_path)!r}: {error}") from error
    return assemble(
        weights_path,
        config,
        options,
        checked,
        original=described.get("original"),
        config_path=config_path,
    )


def assemble(
    path: Path,
    config: Config,
    quantizer_options: dict | None,
    checked: Callable[[Mapping[str, Tensor]], Mapping[str, Stored]],
    *,
    original: str | None,
    config_path: Path | None = None,
) -> Tokenizer:
    """A tokenizer with the tensors of a file, in eval mode.

    Everything is built without memory first, and `checked` compares the shapes with the file's:
    what a hostile config asks for is allocated only where the file holds as much.

    Args:
        path: the file, for messages.
        checked: from our names and tensors on "meta" to the file's tensors under these names;
            raises ValueError where the file does not have them.
        config_path: the file that the sizes are from.
    """
    try:
        networks = on_meta(config, quantizer_options)
    # RuntimeError: sizes whose product is more than an int64 holds.
    except (TypeError, ValueError, RuntimeError) as error:
        named = path if config_path is None else config_path
        raise ValueError(f"tokenizer file {str(named)!r}: {error}") from error
    stored = checked(networks.state_dict(keep_vars=True))
    quantizer = None
    if quantizer_options is not None:
        # Built in memory: its buffers outside the state dict hold values. What it draws is dropped.
        with torch.random.fork_rng(devices=[]):
            quantizer = build_quantizer(**quantizer_options)
    encoder, decoder = (networks[name].to_empty(device="cpu") for name in ("encoder", "decoder"))
    tokenizer = Tokenizer(config, encoder, quantizer, decoder, original=original)
    files.fill(path, tokenizer, stored)
    return tokenizer.eval()


def on_meta(config: Config, quantizer_options: dict | None) -> nn.ModuleDict:
    """A tokenizer's modules without memory: "encoder", "decoder" and, with options, "quantizer"."""
    with torch.device("meta"):
        encoder, decoder = build_networks(config)
        networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        if quantizer_options is not None:
            networks["quantizer"] = build_quantizer(**quantizer_options)
            check_fits(config, networks["quantizer"])
    return networks


def _read_config(path: Path) -> dict:
    files.require_file(path)
    described = read_json(path, "tokenizer file", MOST_CONFIG_BYTES)
    if described.get("format") != "vqkern-tokenizer":
        raise ValueError(f"tokenizer file {str(path)!r} is not a vqkern tokenizer's config")
    if described.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"tokenizer file {str(path)!r} has format version {described.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}"
        )
    architecture, quantizer = described.get("architecture"), described.get("quantizer")
    name = architecture.get("name") if isinstance(architecture, dict) else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"tokenizer file {str(path)!r}: architecture must be one named "
            f"{' or '.join(map(repr, ARCHITECTURES))}"
        )
    if quantizer is not None and not isinstance(quantizer, dict):
        raise ValueError(f"tokenizer file {str(path)!r}: quantizer must be an object")
    if described.get("original") not in (None, *FORMATS):
        raise ValueError(f"tokenizer file {str(path)!r}: original must be a format's name or null")
    return described


# Settings of quantizers that count parts or give sizes of matrices which no file holds.
_MOST = {"depth": 256, "groups": 1024, "num_parts": 64, "patch_sizes": 256, "convolutions": LONGEST}


def _check_quantizer_config(options: dict | None) -> None:
    """Refuses what would take memory or minutes before the shapes can be compared."""
    for name, value in (options or {}).items():
        values = value if isinstance(value, list) else [value]
        most = _MOST.get(name, 2**63 - 1)
        if len(values) > 1024 or any(
            isinstance(v, (int, float)) and not -most <= v <= most for v in values
        ):
            raise ValueError(f"quantizer: {name} = {str(value)[:80]} is out of range")
        if name == "name" and (not isinstance(value, str) or len(value) > 200):
            raise ValueError(f"quantizer: name is {str(value)[:80]!r}, no quantizer's")
