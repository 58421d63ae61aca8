"""Pixel losses: means over all values of images in [-1, 1], in float32."""

from collections.abc import Callable

from torch import Tensor

CHARBONNIER_EPSILON = 1e-3


def l1(images: Tensor, reference: Tensor) -> Tensor:
    """mean |x - y|."""
    return (images.float() - reference.float()).abs().mean()


def l2(images: Tensor, reference: Tensor) -> Tensor:
    """mean (x - y)^2."""
    return (images.float() - reference.float()).square().mean()


def charbonnier(images: Tensor, reference: Tensor) -> Tensor:
    """mean sqrt((x - y)^2 + 1e-6): L1 with a derivative at 0 (Charbonnier et al. 1994)."""
    difference = images.float() - reference.float()
    return (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


PIXEL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "charbonnier": charbonnier,
}
