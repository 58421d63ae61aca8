"""Codes and rows in fp16 for the screen of triton_kernels.py, and the norms of what that drops.

Codes and rows are centred on the mean code and scaled by powers of two: one of all codes, and one
of each row. Norms and residuals are measured in float64, not estimated.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_decide import NO_CODE, SCANNED, SCREENED, Rows

# fp16 holds up to 65504: the largest element lies in [2^13, 2^14], so that codes far smaller than
# an outlier keep their precision too.
TOP_EXPONENT = tl.constexpr(13)
# Row scales within 2^-60 .. 2^60 keep all products of the screen inside float32.
ROW_EXPONENT = tl.constexpr(60)
# float32 may flush what is smaller than 2^-126; all other terms of the bound are relative.
UNDERFLOW = tl.constexpr(2.0**-100)
# Rounds a bound up, whatever the few float32 operations on it do.
UPWARDS = tl.constexpr(1 + 2.0**-19)

_SURVEY_ROWS = 128
_ROUNDED_ROWS = 64
_MOST_CHANNELS = 64  # of a block at a time


@triton.jit
def _exponent(x):
    """e with 2^e <= x < 2^(e+1) for a normal float64 x > 0; below -1022 for 0."""
    return ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023


@triton.jit
def _power_of_two(exponent):
    """2^exponent as float64, for an int64 exponent in [-1022, 1023]."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _code_scale(spread):
    """The power of two that takes the largest |e - c| into [2^13, 2^14)."""
    exponent = tl.maximum(_exponent(tl.load(spread)), -200)
    return _power_of_two(-exponent + TOP_EXPONENT)


@triton.jit
def _is_finite(x):
    return (x == x) & (tl.abs(x) != float("inf"))


@triton.jit(do_not_specialize=["num_codes"])
def _survey_kernel(
    codes, finite, total, low, high, count, num_codes,
    D: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Which codes are finite; each channel's sum, minimum and maximum over the finite ones."""
    if LISTED:
        if tl.load(count) == 0:
            return
    block = tl.program_id(0).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < num_codes
    good = inside
    for start in range(0, D, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = inside[:, None] & (channel < D)[None, :]
        value = tl.load(codes + row[:, None] * D + channel[None, :], mask=mask, other=0.0)
        good = good & (tl.min(_is_finite(value.to(tl.float32)).to(tl.int32), 1) != 0)
    tl.store(finite + row, good.to(tl.int8), mask=inside)
    for start in range(0, D, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = good[:, None] & (channel < D)[None, :]
        value = tl.load(codes + row[:, None] * D + channel[None, :], mask=mask, other=0.0)
        value = value.to(tl.float32)
        out = block * D + channel
        tl.store(total + out, tl.sum(value.to(tl.float64), 0), mask=channel < D)
        tl.store(low + out, tl.min(tl.where(mask, value, float("inf")), 0), mask=channel < D)
        tl.store(high + out, tl.max(tl.where(mask, value, float("-inf")), 0), mask=channel < D)


@triton.jit(do_not_specialize=["num_codes", "g"])
def _round_codes_kernel(
    codes, finite, centre, spread, rounded, half_norm, reach, slack, floor, count, num_codes, g,
    D: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr, CHANNELS: tl.constexpr,
    LISTED: tl.constexpr,
):  # fmt: skip
    """One tile of codes in fp16, [CODES, WIDTH], zeros beyond D, and the bounds of its groups.

    Delta = |z - zq| reach + |zq| slack + floor. Codes are stored in the order in which a quarter
    of a tile lies in one thread of an MMA accumulator (columns 2q and 2q + 1 of every eight), so
    that the minimum over a group needs no other thread; a group is still a run of consecutive
    codes.
    """
    if LISTED:
        if tl.load(count) == 0:
            return
    tile = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, CODES)
    group: tl.constexpr = CODES // 4
    within = slot % group
    position = tile * CODES + (within // 2) * 8 + (slot // group) * 2 + within % 2
    code = tile * CODES + slot
    good = tl.load(finite + code, mask=code < num_codes, other=0) != 0
    scale = _code_scale(spread)
    norm = tl.zeros([CODES], tl.float64)
    rounded_norm = tl.zeros([CODES], tl.float64)
    residual = tl.zeros([CODES], tl.float64)
    for start in range(0, WIDTH, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = good[:, None] & (channel < D)[None, :]
        value = tl.load(codes + code[:, None] * D + channel[None, :], mask=mask, other=0.0)
        c = tl.load(centre + channel, mask=channel < D, other=0.0).to(tl.float64)
        value = tl.where(mask, (value.to(tl.float64) - c[None, :]) * scale, 0.0)
        half = value.to(tl.float32).to(tl.float16)
        tl.store(rounded + position[:, None] * WIDTH + channel[None, :], half)
        near = half.to(tl.float64)
        norm += tl.sum(value * value, 1)
        rounded_norm += tl.sum(near * near, 1)
        residual += tl.sum((value - near) * (value - near), 1)
    tl.store(half_norm + position, tl.where(good, 0.5 * norm, float("inf")).to(tl.float32))
    most = tl.max(tl.reshape(norm, [4, group]), 1)
    most_rounded = tl.max(tl.reshape(rounded_norm, [4, group]), 1)
    most_residual = tl.max(tl.reshape(residual, [4, group]), 1)
    out = tile * 4 + tl.arange(0, 4)
    tl.store(reach + out, (tl.sqrt(most) * UPWARDS).to(tl.float32))
    lost = tl.sqrt(most_residual) + g * tl.sqrt(most_rounded)
    tl.store(slack + out, (lost * UPWARDS).to(tl.float32))
    tl.store(floor + out, (g * 0.5 * most * UPWARDS + UNDERFLOW).to(tl.float32))


@triton.jit(do_not_specialize=["num_rows"])
def _round_rows_kernel(
    z, centre, spread, rounded, scales, residuals, norms, state, rows, count, num_rows,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    LISTED: tl.constexpr,
):  # fmt: skip
    """Rows in fp16 with a power of two each, [ROWS, WIDTH] with zeros beyond D, and their norms."""
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = slot
    if LISTED:
        num_rows = tl.load(count)
        if tl.program_id(0) * ROWS >= num_rows:
            return
        row = tl.load(rows + slot, mask=slot < num_rows, other=0).to(tl.int64)
    inside = slot < num_rows
    code_scale = _code_scale(spread)
    good = inside
    largest = tl.zeros([ROWS], tl.float64)
    for start in range(0, D, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = inside[:, None] & (channel < D)[None, :]
        value = tl.load(z + row[:, None] * D + channel[None, :], mask=mask, other=0.0)
        finite = _is_finite(value.to(tl.float32))
        good = good & (tl.min(finite.to(tl.int32), 1) != 0)
        c = tl.load(centre + channel, mask=channel < D, other=0.0).to(tl.float64)
        value = tl.where(mask & finite, (value.to(tl.float64) - c[None, :]) * code_scale, 0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(value), 1))
    exponent = tl.maximum(_exponent(largest) - TOP_EXPONENT, -ROW_EXPONENT)
    within = exponent <= ROW_EXPONENT
    exponent = tl.minimum(exponent, ROW_EXPONENT)
    kind = tl.where(good, tl.where(within, SCREENED, SCANNED), NO_CODE)
    tl.store(state + slot, kind.to(tl.int8), mask=inside)
    good = good & within
    scale = _power_of_two(exponent)
    shrink = _power_of_two(-exponent)
    norm = tl.zeros([ROWS], tl.float64)
    residual = tl.zeros([ROWS], tl.float64)
    for start in range(0, WIDTH, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = good[:, None] & (channel < D)[None, :]
        value = tl.load(z + row[:, None] * D + channel[None, :], mask=mask, other=0.0)
        c = tl.load(centre + channel, mask=channel < D, other=0.0).to(tl.float64)
        value = tl.where(mask, (value.to(tl.float64) - c[None, :]) * code_scale, 0.0)
        value = value * shrink[:, None]
        half = value.to(tl.float32).to(tl.float16)
        tl.store(rounded + slot[:, None] * WIDTH + channel[None, :], half, mask=inside[:, None])
        near = half.to(tl.float64)
        norm += tl.sum(near * near, 1)
        residual += tl.sum((value - near) * (value - near), 1)
    tl.store(scales + slot, scale.to(tl.float32), mask=inside)
    norm = tl.sqrt(norm)
    # The second term covers the rounding of z - c in float64.
    residual = tl.sqrt(residual) + 2.0**-48 * norm
    tl.store(residuals + slot, (scale * residual * UPWARDS).to(tl.float32), mask=inside)
    tl.store(norms + slot, (scale * norm * UPWARDS).to(tl.float32), mask=inside)


def accumulation_error(d: int) -> float:
    """g: what D products lose on tensor cores that truncate, relative to |zq||eq| + h.

    The last term is for the few float32 operations on scores and bounds.
    """
    return 17 * triton.cdiv(d, 16) * 2.0**-23 + 2.0**-20


class RoundedCodes(NamedTuple):
    """K codes in tiles, and the bounds of their groups, four a tile; see `_round_codes_kernel`."""

    centre: Tensor  # [D] float32
    spread: Tensor  # largest |e - c| of a channel, float64
    rounded: Tensor  # [tiles * codes of a tile, width] fp16
    half_norm: Tensor  # [tiles * codes of a tile] float32
    reach: Tensor  # [tiles * 4] float32
    slack: Tensor  # [tiles * 4] float32
    floor: Tensor  # [tiles * 4] float32


class RoundedRows(NamedTuple):
    """N rows and their norms; see `_round_rows_kernel`."""

    rounded: Tensor  # [N, width] fp16
    scales: Tensor  # [N] float32
    residuals: Tensor  # [N] float32
    norms: Tensor  # [N] float32
    state: Tensor  # [N] int8


def round_codes(codes: Tensor, width: int, of_tile: int, listed: Rows | None) -> RoundedCodes:
    """Contiguous codes [K, D] in tiles; with an empty list of rows nothing but the launches."""
    (k, d), channels, some = codes.shape, min(width, _MOST_CHANNELS), listed is not None
    # Where all rows are meant, the kernels do not look at the list.
    count = listed[1] if listed else codes
    tiles, blocks = triton.cdiv(k, of_tile), triton.cdiv(k, _SURVEY_ROWS)
    finite = codes.new_empty(k, dtype=torch.int8)
    total = codes.new_empty(blocks, d, dtype=torch.float64)
    low, high = (codes.new_empty(blocks, d, dtype=torch.float32) for _ in range(2))
    _survey_kernel[(blocks,)](
        codes, finite, total, low, high, count, k, d, _SURVEY_ROWS, channels, some,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    # Any centre is right; the mean makes the numbers small. Without a finite code it is 0.
    centre = (total.sum(0) / finite.sum().clamp_min(1)).float()
    spread = torch.maximum(high.amax(0) - centre.double(), centre.double() - low.amin(0))
    spread = spread.amax().clamp_min(0)
    rounded = codes.new_empty(tiles * of_tile, width, dtype=torch.float16)
    half_norm = codes.new_empty(tiles * of_tile, dtype=torch.float32)
    bounds = [codes.new_empty(tiles * 4, dtype=torch.float32) for _ in range(3)]
    _round_codes_kernel[(tiles,)](
        codes, finite, centre, spread, rounded, half_norm, *bounds, count, k,
        accumulation_error(d), d, width, of_tile, channels, some,
        num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return RoundedCodes(centre, spread, rounded, half_norm, *bounds)


def round_rows(z: Tensor, codes: RoundedCodes, width: int, listed: Rows | None) -> RoundedRows:
    """The listed rows of contiguous z [N, D], or all of them, in the order of the list."""
    n, d = z.shape
    rows, count = listed or (z, z)
    rounded = z.new_empty(n, width, dtype=torch.float16)
    scales, residuals, norms = (z.new_empty(n, dtype=torch.float32) for _ in range(3))
    state = z.new_empty(n, dtype=torch.int8)
    _round_rows_kernel[(triton.cdiv(n, _ROUNDED_ROWS),)](
        z, codes.centre, codes.spread, rounded, scales, residuals, norms, state, rows, count, n, d,
        width, _ROUNDED_ROWS, min(width, _MOST_CHANNELS), listed is not None,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return RoundedRows(rounded, scales, residuals, norms, state)
