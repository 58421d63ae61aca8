"""Named crops: an RGB image of any size to a square, exactly as published programs do it.

Scores of tokenizers depend on the crop; a crop's name belongs into every table.

| name         | what it does                                              | used by               |
|--------------|-----------------------------------------------------------|-----------------------|
| `adm`        | halve (box) while twice too large, shorter side to the    | ADM, LlamaGen,        |
|              | size (bicubic), centre                                    | VQ-Transplant (eval)  |
| `adm_random` | the same to a random side up to 1/0.8 of the size, then a | LlamaGen (training)   |
|              | random place                                              |                       |
| `var`        | shorter side to 1.125 of the size (Lanczos), centre       | VAR (eval)            |
| `var_random` | the same, then a random place                             | VAR (training)        |
| `center`     | centre, no resizing; smaller images get a black rim       | FVQ, UniTok (eval)    |
| `whole`      | nothing: the image must have the size already             | packed shards         |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vqkern.data.draws import Draws
from vqkern.data.images import import_pillow

MAX_PIXELS = 2**26  # of a resized image: a strip of 1 x 60,000 pixels grows to 256 x 15 million


@dataclass(frozen=True)
class Crop:
    """A named crop to `size` x `size` pixels, then a left-right flip of half the images.

    Attributes:
        name: One of `CROPS`.
        size: Side of the result in pixels.
        flip: Whether to flip; for training.

    Raises:
        ValueError: an unknown name, or a size below 1.
    """

    name: str
    size: int
    flip: bool = False

    def __post_init__(self) -> None:
        if self.name not in CROPS:
            raise ValueError(f"crop: got {self.name!r}, expected one of {', '.join(CROPS)}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size: got {self.size!r}, expected an integer >= 1")

    @property
    def is_random(self) -> bool:
        """Whether the result depends on the random numbers."""
        return self.flip or self.name.endswith("_random")

    def __call__(self, image, draws: Draws | None = None):
        """The cropped image.

        Args:
            image: Pillow image, mode RGB.
            draws: Random numbers; needed where `is_random`.

        Raises:
            ValueError: the image cannot be cropped, or a random crop got no random numbers.
        """
        if draws is None and self.is_random:
            raise ValueError(f"draws: got None, but the crop {self.name!r} is random")
        cut = CROPS[self.name](image, self.size, draws)
        if self.flip and draws.coin():
            Image, _ = import_pillow()
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return cut


def _adm(image, size: int, draws: Draws | None):
    image = _shorter_side(image, size)
    width, height = image.size
    return _cut(image, (height - size) // 2, (width - size) // 2, size)


def _adm_random(image, size: int, draws: Draws):
    image = _shorter_side(image, draws.integer(size, math.ceil(size / 0.8) + 1))
    return _random_place(image, size, draws)


def _var(image, size: int, draws: Draws | None):
    return _centre(_lanczos(image, round(1.125 * size)), size)


def _var_random(image, size: int, draws: Draws):
    return _random_place(_lanczos(image, round(1.125 * size)), size, draws)


def _center(image, size: int, draws: Draws | None):
    width, height = image.size
    if width < size or height < size:
        Image, _ = import_pillow()
        wide, high = max(width, size), max(height, size)
        _refuse_huge(image, (wide, high))
        padded = Image.new("RGB", (wide, high))
        padded.paste(image, ((wide - width) // 2, (high - height) // 2))
        image = padded
    return _centre(image, size)


def _whole(image, size: int, draws: Draws | None):
    if image.size != (size, size):
        width, height = image.size
        raise ValueError(f"{width} x {height} pixels, expected exactly {size} x {size}")
    return image


CROPS: dict[str, Callable] = {
    "adm": _adm,
    "adm_random": _adm_random,
    "var": _var,
    "var_random": _var_random,
    "center": _center,
    "whole": _whole,
}


def _shorter_side(image, side: int):
    """ADM's resize: box halvings, then bicubic to a shorter side of `side`."""
    Image, _ = import_pillow()
    while min(image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), Image.Resampling.BOX)
    scale = side / min(image.size)
    return _resize(image, tuple(round(x * scale) for x in image.size), Image.Resampling.BICUBIC)


def _lanczos(image, side: int):
    """torchvision's Resize(side, LANCZOS): the longer side is rounded down."""
    Image, _ = import_pillow()
    width, height = image.size
    if min(width, height) == side:
        return image
    longer = int(side * max(width, height) / min(width, height))
    size = (side, longer) if width <= height else (longer, side)
    return _resize(image, size, Image.Resampling.LANCZOS)


def _resize(image, size: tuple[int, int], resample):
    _refuse_huge(image, size)
    return image.resize(size, resample)


def _refuse_huge(image, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"{image.size[0]} x {image.size[1]} pixels would have to grow to {size[0]} x {size[1]}"
        )


def _centre(image, size: int):
    """torchvision's CenterCrop: half a pixel is rounded to even."""
    width, height = image.size
    return _cut(image, round((height - size) / 2), round((width - size) / 2), size)


def _random_place(image, size: int, draws: Draws):
    width, height = image.size
    top = draws.integer(0, height - size + 1)
    return _cut(image, top, draws.integer(0, width - size + 1), size)


def _cut(image, top: int, left: int, size: int):
    return image.crop((left, top, left + size, top + size))
