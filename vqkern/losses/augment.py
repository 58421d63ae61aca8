"""Differentiable augmentation of what a discriminator sees (DiffAugment, Zhao et al. 2020)."""

import torch
from torch import Tensor

COLOUR, TRANSLATION, CUTOUT = "colour", "translation", "cutout"
AUGMENTATIONS = (COLOUR, TRANSLATION, CUTOUT)


class DiffAugment:
    """Random changes of images [B, 3, H, W], differentiable, drawn for every image by itself.

    colour: brightness shifted by U(-.5, .5), saturation times U(0, 2), contrast times U(.5, 1.5).
    translation: by up to `shift` of a side, zeros coming in. cutout: a rectangle of `cut` of both
    sides set to 0. Random numbers come from torch's generator of the images' device.

    Args:
        kinds: Some of `AUGMENTATIONS`, applied in the order given.
        shift, cut: Fractions of a side, in [0, 1].
        probability: That a batch is changed at all: one coin for the batch.

    Raises:
        ValueError: an unknown kind, or a fraction outside [0, 1].
    """

    def __init__(
        self,
        kinds: tuple[str, ...] = AUGMENTATIONS,
        *,
        shift: float = 0.125,
        cut: float = 0.5,
        probability: float = 1.0,
    ) -> None:
        for kind in kinds:
            if kind not in AUGMENTATIONS:
                raise ValueError(f"kinds: expected some of {AUGMENTATIONS}, got {kind!r}")
        for name, value in (("shift", shift), ("cut", cut), ("probability", probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {value!r}")
        self.kinds, self.shift, self.cut, self.probability = kinds, shift, cut, probability

    def __call__(self, images: Tensor) -> Tensor:
        if self.probability < 1 and float(torch.rand(())) >= self.probability:
            return images
        for kind in self.kinds:
            if kind == COLOUR:
                images = _colour(images)
            elif kind == TRANSLATION:
                images = _translated(images, self.shift)
            else:
                images = _cut_out(images, self.cut)
        return images


def _per_image(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device, dtype=torch.float32)


def _colour(images: Tensor) -> Tensor:
    images = images + (_per_image(images) - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * _per_image(images)) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (_per_image(images) + 0.5) + mean


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers [1, H, 1] and [1, 1, W]."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    return rows, torch.arange(width, device=images.device).view(1, 1, -1)


def _integers(images: Tensor, low: int, high: int) -> Tensor:
    """Uniform integers low .. high, [B, 1, 1]."""
    shape = (len(images), 1, 1)
    return torch.randint(low, high + 1, shape, device=images.device)


def _translated(images: Tensor, fraction: float) -> Tensor:
    height, width = images.shape[2:]
    far = [int(side * fraction + 0.5) for side in (height, width)]
    rows, columns = _places(images)
    rows = rows + _integers(images, -far[0], far[0])
    columns = columns + _integers(images, -far[1], far[1])
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    flat = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, flat).view(images.shape)
    return torch.where(inside[:, None], moved, 0)


def _cut_out(images: Tensor, fraction: float) -> Tensor:
    height, width = images.shape[2:]
    size = [int(side * fraction + 0.5) for side in (height, width)]
    rows, columns = _places(images)
    # The centre may lie anywhere, so that the rectangle may hang over an edge.
    top = _integers(images, 0, height - size[0] % 2) - size[0] // 2
    left = _integers(images, 0, width - size[1] % 2) - size[1] // 2
    inside = (rows >= top) & (rows < top + size[0]) & (columns >= left) & (columns < left + size[1])
    return torch.where(inside[:, None], 0, images)
