"""Seeded random crops that never touch the regions held out for evaluation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqkern.data.images import Picture


@dataclass(frozen=True)
class Region:
    """A rectangle of an image in pixels: rows from `top`, columns from `left`."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: Tensor) -> Tensor:
        """The rectangle's part of pixels [..., H, W] (a view)."""
        rows = slice(self.top, self.top + self.height)
        return pixels[..., rows, self.left : self.left + self.width]


def default_region(picture: Picture, side: int) -> Region:
    """The square of `side` pixels at an image's centre.

    Raises:
        ValueError: the image is smaller than the square.
    """
    height, width = picture.pixels.shape[-2:]
    if min(height, width) < side:
        raise ValueError(
            f"image {picture.name!r}: {width} x {height} pixels (width x height) are too few; "
            f"expected at least {side} x {side} for its held-out region"
        )
    return Region((height - side) // 2, (width - side) // 2, side, side)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1.0


class CropSampler:
    """Random square crops of a list of images, all outside the images' held-out regions.

    Every image is equally likely, whatever its size, and within one every allowed position is
    equally likely. Batch number `step` depends on (seed, stream, step) and on nothing else: a run
    that is resumed at a step sees the crops it would have seen.

    Args:
        pictures: Images, uint8 [3, H, W].
        held_out: One region per image that no crop may touch; None holds nothing out.
        size: Side of the crops in pixels.
        seed: Seed, >= 0. stream: Number that separates uses with one seed (training, evaluation).

    Raises:
        ValueError: no images; a count of regions that is not the count of images; a region that
            leaves its image; an image with no room for a crop beside its region.
    """

    def __init__(
        self,
        pictures: list[Picture],
        held_out: list[Region] | None,
        size: int,
        seed: int,
        stream: int = 0,
    ) -> None:
        if not pictures:
            raise ValueError("pictures: got none, expected at least one image")
        if size < 1:
            raise ValueError(f"size: got {size}, expected at least 1 pixel")
        if seed < 0 or stream < 0:
            raise ValueError(f"seed and stream: got {seed} and {stream}, expected integers >= 0")
        if held_out is not None and len(held_out) != len(pictures):
            raise ValueError(f"held_out: got {len(held_out)} regions for {len(pictures)} images")
        self.pictures, self.size, self.seed, self.stream = pictures, size, seed, stream
        regions = held_out or [None] * len(pictures)
        self._places = [
            _Places(picture, region, size)
            for picture, region in zip(pictures, regions, strict=True)
        ]

    def positions(self, step: int, count: int) -> list[tuple[int, int, int]]:
        """(image number, top, left) of the `count` crops of batch `step`."""
        rng = np.random.default_rng((self.seed, self.stream, step))
        chosen = rng.integers(len(self.pictures), size=count)
        fraction = rng.random(count)
        return [
            (int(i), *self._places[i].at(int(u * self._places[i].count)))
            for i, u in zip(chosen, fraction, strict=True)
        ]

    def batch(self, step: int, count: int) -> Tensor:
        """Batch `step`: float32 [count, 3, size, size] in [-1, 1], channels_last."""
        crops = [
            Region(top, left, self.size, self.size).cut(self.pictures[i].pixels)
            for i, top, left in self.positions(step, count)
        ]
        return to_float(torch.stack(crops)).contiguous(memory_format=torch.channels_last)


class _Places:
    """The top-left corners whose crop avoids one region, counted without listing them."""

    def __init__(self, picture: Picture, region: Region | None, size: int) -> None:
        height, width = picture.pixels.shape[-2:]
        self.rows, self.columns = max(height - size + 1, 0), max(width - size + 1, 0)
        # A corner is forbidden where both its row and its column fall into these bands.
        self.row_band, self.column_band = (0, 0), (0, 0)
        if region is not None:
            inside = (
                min(region.top, region.left) >= 0
                and min(region.height, region.width) >= 1
                and region.top + region.height <= height
                and region.left + region.width <= width
            )
            if not inside:
                raise ValueError(
                    f"held_out: {region} leaves image {picture.name!r} of {height} rows "
                    f"and {width} columns"
                )
            self.row_band = _band(region.top, region.height, size, self.rows)
            self.column_band = _band(region.left, region.width, size, self.columns)
        band_height = self.row_band[1] - self.row_band[0]
        band_width = self.column_band[1] - self.column_band[0]
        self.free = self.columns - band_width  # allowed corners in a row of the band
        self.above = self.row_band[0] * self.columns
        self.beside = band_height * self.free
        self.count = self.rows * self.columns - band_height * band_width
        if self.count < 1:
            room = f" beside its held-out {region.height} x {region.width}" if region else ""
            raise ValueError(
                f"image {picture.name!r}: {width} x {height} pixels (width x height) leave no room "
                f"for crops of {size} x {size}{room}; use larger images"
            )

    def at(self, number: int) -> tuple[int, int]:
        """The allowed corner with this number, in reading order."""
        if number < self.above:
            return divmod(number, self.columns)
        number -= self.above
        if number < self.beside:
            row, column = divmod(number, self.free)
            if column >= self.column_band[0]:
                column += self.column_band[1] - self.column_band[0]
            return self.row_band[0] + row, column
        row, column = divmod(number - self.beside, self.columns)
        return self.row_band[1] + row, column


def _band(start: int, length: int, size: int, limit: int) -> tuple[int, int]:
    """Corners along one side whose crop overlaps [start, start + length), cut to [0, limit)."""
    low = min(max(start - size + 1, 0), limit)
    return low, max(min(start + length, limit), low)
