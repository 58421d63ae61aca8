"""Losses of image tokenizers: pixels, perception, and a discriminator."""

from vqkern.losses.augment import AUGMENTATIONS, DiffAugment
from vqkern.losses.dino import DinoDiscriminator
from vqkern.losses.discriminator import ADVERSARIAL, Discriminator, LeCAM, adaptive_weight
from vqkern.losses.patchgan import PatchGAN
from vqkern.losses.perceptual import load_lpips
from vqkern.losses.pixel import PIXEL, charbonnier, l1, l2
from vqkern.losses.vit import VisionTransformer, load_vit

__all__ = [
    "ADVERSARIAL",
    "AUGMENTATIONS",
    "DiffAugment",
    "DinoDiscriminator",
    "Discriminator",
    "LeCAM",
    "PIXEL",
    "PatchGAN",
    "VisionTransformer",
    "adaptive_weight",
    "charbonnier",
    "l1",
    "l2",
    "load_lpips",
    "load_vit",
]
