"""The discriminator of StyleGAN-T (Sauer et al. 2023) on frozen DINO features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from vqkern.losses.vit import VisionTransformer

KERNEL = 9


class DinoDiscriminator(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to logits [B, 5 tokens], a head for every depth of features.

    A head: convolution of 1, norm, leaky ReLU; one of 9 along the tokens, circular, with the same
    and a residual over sqrt 2; one of 1 to a logit. All have spectral normalisation by one power
    iteration. Images larger than the transformer's are cropped at random or, one time in two, made
    smaller (area); smaller ones are made larger (bicubic).

    The transformer takes no part in training and is in no state dict: it comes from its own file.
    Gradients pass through it to the images.
    """

    def __init__(self, features: VisionTransformer) -> None:
        super().__init__()
        # In a tuple, out of sight of parameters(), state_dict() and train().
        self._frozen = (features.eval().requires_grad_(False),)
        self.heads = nn.ModuleList(_head(features.dim) for _ in range(5))

    def forward(self, images: Tensor) -> Tensor:
        features = self._frozen[0](self._fitted(images))
        logits = [head(x) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1).flatten(1)

    def _apply(self, fn: Callable, recurse: bool = True) -> DinoDiscriminator:
        self._frozen[0]._apply(fn)  # to() and friends move it along
        return super()._apply(fn, recurse)

    def _fitted(self, images: Tensor) -> Tensor:
        side = self._frozen[0].side
        height, width = images.shape[2:]
        if (height, width) == (side, side):
            return images
        if min(height, width) < side:
            return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
        if float(torch.rand(())) < 0.5:
            return F.interpolate(images, (side, side), mode="area")
        top, left = (int(torch.randint(x - side + 1, ())) for x in (height, width))
        return images[:, :, top : top + side, left : left + side]


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) + x) / 2**0.5


def _head(dim: int) -> nn.Sequential:
    return nn.Sequential(
        _layer(dim, 1), _Residual(_layer(dim, KERNEL)), spectral_norm(nn.Conv1d(dim, 1, 1))
    )


def _layer(dim: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), nn.BatchNorm1d(dim), nn.LeakyReLU(0.2))
