"""Networks applied to one overlapping tile after another, so that memory stays that of a tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkern.tokenizers.config_checks import check_positive_int


@dataclass(frozen=True)
class Tiles:
    """Square tiles of an image, each seen with a margin of its surroundings.

    Attributes:
        size: Side in pixels of what a tile contributes, a multiple of the tokenizer's f.
        halo: Pixels seen on every side besides, a multiple of f.

    Raises:
        ValueError: not whole numbers, or out of range.
    """

    size: int = 512
    halo: int = 64

    def __post_init__(self) -> None:
        check_positive_int("size", self.size)
        if isinstance(self.halo, bool) or not isinstance(self.halo, int) or self.halo < 0:
            raise ValueError(f"halo: expected an integer >= 0, got {self.halo!r}")

    def over(self, factor: int) -> tuple[int, int]:
        """Size and halo in latent positions of f pixels.

        Raises:
            ValueError: they are not multiples of f.
        """
        for name in ("size", "halo"):
            if getattr(self, name) % factor:
                raise ValueError(
                    f"tiles: {name} {getattr(self, name)} is not a multiple of {factor}, "
                    f"the tokenizer's pixels per latent position"
                )
        return self.size // factor, self.halo // factor


def in_tiles(
    network: Callable[[Tensor], Tensor], x: Tensor, size: int, halo: int, into: int, out_of: int
) -> Tensor:
    """network(x), computed in windows of size + 2 halo, of which the inner `size` is kept.

    Windows at an edge are moved inwards, not cut: all have one shape, which compiles once, and what
    lies at the edge sees more of the inside instead.

    Args:
        network: maps [B, C, h, w] to [B, C', h into / out_of, w into / out_of].
        x: [B, C, H, W]; size, halo, H and W multiples of `out_of`.
    """
    rows, columns = (_spans(length, size, halo) for length in x.shape[2:])
    result = None
    for top, bottom, above, below in rows:
        for left, right, before, after in columns:
            part = network(x[:, :, above:below, before:after])
            keep = [
                slice((start - first) * into // out_of, (stop - first) * into // out_of)
                for start, stop, first in ((top, bottom, above), (left, right, before))
            ]
            if result is None:
                height, width = (length * into // out_of for length in x.shape[2:])
                result = part.new_empty(len(x), part.shape[1], height, width)
                result = result.contiguous(memory_format=torch.channels_last)
            y, x0 = top * into // out_of, left * into // out_of
            kept = part[:, :, keep[0], keep[1]]
            result[:, :, y : y + kept.shape[2], x0 : x0 + kept.shape[3]] = kept
    return result


def _spans(length: int, size: int, halo: int) -> list[tuple[int, int, int, int]]:
    """What every tile contributes [start, stop) and its window [first, last), along one axis."""
    window = min(length, size + 2 * halo)
    spans = []
    for start in range(0, length, size):
        first = min(max(start - halo, 0), length - window)
        spans.append((start, min(start + size, length), first, first + window))
    return spans
