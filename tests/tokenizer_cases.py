"""Public tokenizers as their own programs run them: weights, images, latents, indices, images.

Weights are stored as int8 times a power of two, or follow from a seed; both are exact in float32.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqkern import build_quantizer
from vqkern.tokenizers import VQGANConfig, build_tokenizer

DATA = Path(__file__).parent / "data" / "tokenizers"

# Format and the scales that a file does not say.
CASES: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "var_tokenizer_ch64": ("var", (1, 2, 3, 4)),
    "llamagen_vq16_ch64": ("llamagen", None),
    "llamagen_vq8_ch64": ("llamagen", None),
    "ldm_kl_f16": ("ldm-kl-f16", None),
    "ldm_kl_f16_ch64": ("ldm-kl-f16", None),
    "taming_vqgan": ("taming-vqgan", None),
    "taming_vqgan_ch64": ("taming-vqgan", None),
}
# Five megabytes each, of weights that no seed gives; tests/data/README.md says where they are read.
LARGE: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "var_tokenizer": ("var", (1, 2, 3, 4)),
    "llamagen_vq16": ("llamagen", None),
}
GOLDEN_FOLDER = os.environ.get("VQKERN_GOLDEN", "")


def manifests() -> dict[str, dict]:
    """Keys and shapes of the full-size public files."""
    return json.loads((DATA / "manifests.json").read_text(encoding="utf-8"))


def case(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """State dict under the public program's keys, its inputs, its outputs."""
    recipes = json.loads((DATA / "recipes.json").read_text(encoding="utf-8"))
    state, inputs, outputs = {}, {}, {}
    if name in recipes:
        seed = recipes[name]["seed"]
        state = {k: drawn(k, shape, seed) for k, shape in recipes[name]["shapes"].items()}
    files = [DATA / f"{name}.safetensors"]
    if name in LARGE:
        files = sorted(Path(GOLDEN_FOLDER).glob(f"{name}.*safetensors"))
    tensors = {key: tensor for file in files for key, tensor in load_file(file).items()}
    for key, value in tensors.items():
        part, rest = key.split("/", 1)
        if part == "state":
            scaled = value.dtype == torch.int8
            state[rest] = value.float() * tensors[f"scale/{rest}"] if scaled else value
        elif part == "in":
            inputs[rest] = value
        elif part == "out":
            outputs[rest] = value
    return state, inputs, outputs


def drawn(key: str, shape: list[int], seed: int) -> Tensor:
    """A weight by its name, its shape and a seed: bytes of Philox times a power of two."""
    if key.endswith(("ema_vocab_hit_SV", "codebook_used")):
        return torch.zeros(shape)
    generator = np.random.Philox(key=[seed, zlib.crc32(key.encode())])
    raw = generator.random_raw(math.prod(shape)) >> np.uint64(56)
    values = torch.from_numpy((raw.astype(np.int16) - 128).astype(np.float32)).reshape(shape)
    if len(shape) >= 2:
        values *= 2.0 ** round(math.log2(1 / math.sqrt(math.prod(shape[1:])) / 73.9))
    elif key.endswith("bias"):
        values *= 2.0**-11
    else:
        values = 1 + values * 2.0**-10
    return values * 2.0**-9 if key.startswith("encoder.conv_in.") else values


# What tests about files, not numbers, write and read.
TINY = VQGANConfig(
    latent_dim=8, z_channels=8, width=32, multipliers=(1, 2), attention=(1,), blocks=1
)


def tiny_file(path: Path, name: str) -> Path:
    """A public file of a tiny tokenizer."""
    kernel = 3 if name == "var" else 1
    config = dataclasses.replace(TINY, quant_kernel=kernel, variational=name == "ldm-kl-f16")
    preset = {"var": "vanilla_var", "llamagen": "vanilla_sphere", "ldm-kl-f16": None}
    preset = preset.get(name, "vanilla")
    q = preset and build_quantizer(preset, dim=8, codebook_size=16, channel_dim=1)
    build_tokenizer(config, q).to_original(path, name)
    return path
