"""Tiles of the Gaussian kernels: what stays in the registers of a GPU's generation, fastest first.

Triton multiplies float64 matrices on the tensor cores of the A100 (sm_80) and the H100 (sm_90),
where the tiles are those that were fastest of a sweep on an H100. Elsewhere it multiplies without
them, with whole rows of both factors in the registers, so that all is smaller.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton

_WITH_TENSOR_CORES = (80, 90)
_SUMMED = 4096  # partial sums read together: more would spill
# Left to itself the assembler may spill, to fit more programs on a processor than are launched.
MOST_REGISTERS = 255


class SumTile(NamedTuple):
    """Points whose products are summed together, warps, loads in flight, programs a processor."""

    rows: int
    warps: int
    stages: int
    programs: int


class MapTile(NamedTuple):
    """Points mapped together, channels of them read together, such blocks in a program, warps."""

    rows: int
    chunk: int
    blocks: int
    warps: int


class Tiles(NamedTuple):
    """All choices for D channels on one generation of GPUs.

    channels: one side of a tile. width: all channels, in whole tiles. summed: partial sums read
    together. solve_warps: 0 where the D x D problem is left to matrix products of torch. together:
    whether a pair that is alone is solved by several programs.
    """

    channels: int
    width: int
    sums: SumTile
    maps: MapTile
    summed: int
    solve_warps: int
    together: bool


@functools.cache
def tiles(d: int, capability: int) -> Tiles:
    """The tiles for D channels on a GPU of compute capability `capability`, as 90 for 9.0."""
    fast = capability in _WITH_TENSOR_CORES
    channels = min(max(16, triton.next_power_of_2(d)), 64 if fast else 32)
    while channels > 32 and -d % channels >= channels // 2:
        channels //= 2  # else half of the last tile would be empty
    width = triton.cdiv(d, channels) * channels
    if not fast:
        return Tiles(
            channels, width, SumTile(16, 4, 1, 2), MapTile(32, 16, 1, 4), _SUMMED,
            4 if d <= 32 else 0, False,
        )  # fmt: skip
    if width == 16:
        sums, maps = SumTile(64, 2, 3, 4), MapTile(128, 16, 1, 4)
    elif channels == 64:
        # Eight warps with 255 registers each leave a processor one program: .046 ms for .028.
        sums, maps = SumTile(16, 4, 3, 2), MapTile(64, 64, 1, 8)
    else:
        sums, maps = SumTile(32, 4, 3, 2), MapTile(64, 32, 1, 4)
    warps = 0 if d > 64 else 4 if width <= 32 else 8  # 4 are as fast at 64 channels, and spill
    # One step of 16 channels takes no longer than a meeting of programs does.
    return Tiles(channels, width, sums, maps, _SUMMED, warps, width > 16)


@functools.cache
def capability_of(device: torch.device) -> int:
    """The compute capability of a GPU; Triton's interpreter takes the tiles of an H100."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def tiles_on(d: int, device: torch.device) -> Tiles:
    """`tiles` for a device."""
    return tiles(d, capability_of(device))


@functools.cache
def processors(device: torch.device) -> int:
    """How many of a GPU's multiprocessors there are; a few for Triton's interpreter."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
