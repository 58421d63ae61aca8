"""The tokenizer that a recipe starts from."""

from __future__ import annotations

import torch
from torch import nn

from vqkern.quantizers import MultiScale, build_quantizer
from vqkern.tokenizers import (
    ConvConfig,
    Tokenizer,
    VQGANConfig,
    build_tokenizer,
    from_pretrained,
)
from vqkern.tokenizers.conv import start_at_principal_components
from vqkern.tokenizers.pretrained import ARCHITECTURES, pretrained_folder
from vqkern.training.batches import Samples
from vqkern.training.recipe import QuantizerSettings, Recipe

# Images at the start are numbers that training never reaches.
START_NUMBER = 2**40


def build_tokenizer_of(recipe: Recipe, samples: Samples) -> Tokenizer:
    """A pretrained tokenizer, with the new quantizer where the recipe names one; or a fresh one.

    Weights are drawn from torch's global generator.

    Raises:
        ValueError: the folder holds no tokenizer; the architecture or the quantizer is unknown, or
            an option is; they do not take the recipe's crops.
    """
    settings = recipe.tokenizer
    if settings.pretrained is not None:
        tokenizer = from_pretrained(pretrained_folder(settings.pretrained))
        if recipe.quantizer.name is not None:
            new = quantizer_of(recipe.quantizer, tokenizer.config.latent_dim)
            tokenizer = tokenizer.transplant(new)
        _check_crop(recipe.data.crop, tokenizer)
        return tokenizer
    config = config_of(settings.architecture)
    tokenizer = build_tokenizer(config, quantizer_of(recipe.quantizer, config.latent_dim))
    _check_crop(recipe.data.crop, tokenizer)
    if settings.start_images:
        if not isinstance(config, ConvConfig):
            raise ValueError("tokenizer.start_images: vqgan has no linear path, expected 0")
        numbers = range(START_NUMBER, START_NUMBER + settings.start_images)
        images = torch.stack([samples[number] for number in numbers])
        start_at_principal_components(tokenizer.encoder, tokenizer.decoder, images)
    return tokenizer


def _check_crop(crop: int, tokenizer: Tokenizer) -> None:
    factor = tokenizer.config.factor
    if crop % factor:
        raise ValueError(
            f"data.crop: {crop} is not a multiple of {factor}, the factor between the sides of "
            "this tokenizer's images and latents"
        )
    scales = [m for m in tokenizer.modules() if isinstance(m, MultiScale)]
    for side in {m.patch_sizes[-1] for m in scales}:
        if crop != factor * side:
            raise ValueError(
                f"data.crop: {crop}; the quantizer's last scale has {side} x {side} tokens, which "
                f"are crops of {factor * side}; take that, or other quantizer.options.patch_sizes"
            )


def config_of(architecture: dict) -> ConvConfig | VQGANConfig:
    """The config of `{name: conv, latent_dim: 8, ...}`."""
    name = architecture.get("name")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"tokenizer.architecture.name: got {name!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    try:
        return ARCHITECTURES[name](**{k: v for k, v in architecture.items() if k != "name"})
    except TypeError as error:
        raise ValueError(f"tokenizer.architecture: {error}") from error


def quantizer_of(settings: QuantizerSettings, dim: int) -> nn.Module:
    """The quantizer of feature maps with `dim` channels."""
    try:
        return build_quantizer(
            settings.name,
            dim=dim,
            codebook_size=settings.codebook_size,
            channel_dim=1,
            **settings.options,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"quantizer: {error}") from error
