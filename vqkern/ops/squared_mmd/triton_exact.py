"""The float64 sweep of `squared_mmd`, and the decision whether a call needs it.

Where the pulls of the two sets all but cancel, or their kernels do in the value, float32 sums are
not enough. The decision is the C++ kernel's, from the largest gradient and the weights, and stays
on the device: programs of the float64 sweep that are not needed end at once.

Products are not contracted (enable_fp_fusion=False): in a sum of squares over lanes, a lane would
add its own square unrounded to its neighbour's rounded one, the neighbour the other way round, and
both write what they take for the same sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_points import FAULT, LADDER, LEAST_NORM, NOT_FINITE

# What float32 sums must promise: see csrc/cpu/squared_mmd.cpp.
_GRADIENT_ERROR = tl.constexpr(5e-6)
_VALUE_ERROR = tl.constexpr(1e-6)
_KERNEL_ERROR = tl.constexpr(1e-9)
# The relative error of a weight in units of 2^-24, by itself and for each unit of exponent.
_WEIGHT_UNITS = tl.constexpr(4.0)
_EXPONENT_UNITS = tl.constexpr(2.0)
_MOST_UNITS = tl.constexpr(256.0)

# A warp to 16 rows, the height of a product; and under 64 rows, from which on Triton would hand a
# float64 product to units of sm_100 that know none.
ROWS = 32
COLUMNS = 16
CHANNELS = 16
WARPS = 2
_BLOCK = tl.constexpr(1024)


@triton.jit
def power_of_two(exponent):
    """2^exponent for a whole float64 exponent within the normal range."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _sum(values, first, count):
    """The sum of values[first : first + count], float64, in a fixed order."""
    total = tl.zeros([_BLOCK], tl.float64)
    for start in range(0, count, _BLOCK):
        at = start + tl.arange(0, _BLOCK)
        total += tl.load(values + first + at, mask=at < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _most(values, first, count):
    most = tl.zeros([_BLOCK], tl.float64)
    for start in range(0, count, _BLOCK):
        at = start + tl.arange(0, _BLOCK)
        most = tl.maximum(most, tl.load(values + first + at, mask=at < count, other=0.0))
    return tl.max(most, 0)


@triton.jit
def _joined(xx, yy, xy, n, m, drop, count):
    """The value, and the means of kernels within the sets; pairs of a point and itself not in."""
    own = (1.0 - drop) * count
    xx = (xx + own * n) / (n * (n - drop))
    yy = (yy + own * m) / (m * (m - drop))
    return xx + yy - 2.0 * xy / (n * m), xx + yy


@triton.jit(do_not_specialize=["n", "m", "drop", "count", "xx_end", "yy_end", "xy_end", "x_parts",
    "y_parts", "x_blocks", "y_blocks"])  # fmt: skip
def decide_kernel(
    kernels, x_norms, y_norms, largest, heaviest, plan, state, value, wanted,
    n, m, drop, count, xx_end, yy_end, xy_end, x_parts, y_parts, x_blocks, y_blocks,
):  # fmt: skip
    """The value from the float32 sums of kernels, and whether float64 is wanted."""
    # Without a ladder, only weights are scaled.
    scale = tl.where(tl.load(state + LADDER) != 0, power_of_two(-tl.load(plan + 2)), 1.0)
    xx = scale * _sum(kernels, 0, xx_end)
    yy = scale * _sum(kernels, xx_end, yy_end - xx_end)
    xy = scale * _sum(kernels, yy_end, xy_end - yy_end)
    result, means = _joined(xx, yy, xy, n.to(tl.float64), m.to(tl.float64), drop, count)
    tl.store(value, result.to(tl.float32))

    mean_norm = _sum(x_norms, 0, x_parts) / n.to(tl.float64)
    mean_norm += _sum(y_norms, 0, y_parts) / m.to(tl.float64)
    units = tl.load(plan + 3) * mean_norm * _EXPONENT_UNITS + _WEIGHT_UNITS
    relative = units * 2.0**-24
    least = tl.minimum(n, m).to(tl.float64)
    asked = tl.maximum(tl.abs(result) * _VALUE_ERROR, means * _KERNEL_ERROR)
    enough = (units <= _MOST_UNITS) & (relative * means <= asked * least)
    # (w |a - b|)^2 <= w L / e in units of the largest bandwidth: x exp(-x) is at most 1 / e.
    spread = count * 0.36787944117144233 / tl.load(plan)
    # A set's own gradient alone; where none is wanted, there are no blocks.
    error = relative * tl.sqrt(_most(heaviest, 0, x_blocks) * spread)
    enough = enough & (error <= _most(largest, 0, x_blocks) * _GRADIENT_ERROR)
    error = relative * tl.sqrt(_most(heaviest, x_blocks, y_blocks) * spread)
    enough = enough & (error <= _most(largest, x_blocks, y_blocks) * _GRADIENT_ERROR)
    fault = tl.load(state + FAULT)
    enough = (enough & (fault == 0) & (mean_norm >= LEAST_NORM)) | (fault == NOT_FINITE)
    tl.store(wanted, tl.where(enough, 0, 1))


@triton.jit
def _centred(points, mean, row, channel, rows, D: tl.constexpr):
    """points[row] - mean [rows, channels], float64; 0 beyond the rows and channels."""
    mask = (row < rows)[:, None] & (channel < D)[None, :]
    value = tl.load(points + row[:, None] * D + channel[None, :], mask=mask, other=0.0)
    centre = tl.load(mean + channel, mask=channel < D, other=0.0)
    result = tl.where(mask, value.to(tl.float64) - centre[None, :], 0.0)
    # A sum over one element changes nothing, and keeps Triton 3.7 from choosing the operand layout
    # of a float64 product by the width of the points in memory, on which sm_80 and sm_90 fail.
    return tl.sum(result[:, :, None], 2)


@triton.jit
def _against(
    a, b, mean, bandwidths, row, norm, out, rows, others, count,
    D: tl.constexpr, SAME: tl.constexpr, PULL: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over all points of b for rows of a: kernels, weights, and what the weights pull."""
    total = tl.zeros([row.shape[0]], tl.float64)
    weights = tl.zeros([row.shape[0]], tl.float64)
    pulled = tl.zeros([row.shape[0], CHANNELS], tl.float64)
    for first in range(0, others, COLUMNS):
        column = first + tl.arange(0, COLUMNS).to(tl.int64)
        product = tl.zeros([row.shape[0], COLUMNS], tl.float64)
        other_norm = tl.zeros([COLUMNS], tl.float64)
        for start in range(0, D, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            left = _centred(a, mean, row, channel, rows, D)
            right = _centred(b, mean, column, channel, others, D)
            other_norm += tl.sum(right * right, 1)
            product = tl.dot(left, tl.trans(right), product, out_dtype=tl.float64)
        squared = norm[:, None] + other_norm[None, :] - 2.0 * product
        squared = tl.where(squared < 0.0, 0.0, squared)
        kernel = tl.zeros([row.shape[0], COLUMNS], tl.float64)
        weight = tl.zeros([row.shape[0], COLUMNS], tl.float64)
        for i in range(0, count):
            rate = 1.0 / tl.load(bandwidths + i)
            term = tl.exp(-rate * squared)
            kernel += term
            weight += rate * term
        counted = (row < rows)[:, None] & (column < others)[None, :]
        if SAME:
            counted = counted & (row[:, None] != column[None, :])
        total += tl.sum(tl.where(counted, kernel, 0.0), 1)
        if PULL:
            weight = tl.where(counted, weight, 0.0)
            weights += tl.sum(weight, 1)
            points = _centred(b, mean, column, out, others, D)
            pulled = tl.dot(weight, points, pulled, out_dtype=tl.float64)
    return total, weights, pulled


@triton.jit(do_not_specialize=["rows", "others", "drop", "count"])
def sweep_kernel(
    wanted, a, b, mean, bandwidths, gradient, own_kernels, cross_kernels,
    rows, others, drop, count,
    D: tl.constexpr, PULL: tl.constexpr, CROSS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One block of a's points against both sets: sums of kernels, and the gradient if wanted."""
    if tl.load(wanted) == 0:
        return
    block = tl.program_id(0).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    norm = tl.zeros([ROWS], tl.float64)
    for start in range(0, D, CHANNELS):
        point = _centred(a, mean, row, start + tl.arange(0, CHANNELS), rows, D)
        norm += tl.sum(point * point, 1)
    total, weights, pulled = _against(
        a, a, mean, bandwidths, row, norm, out, rows, rows, count, D, True, PULL, COLUMNS, CHANNELS
    )
    tl.store(own_kernels + block, tl.sum(total, 0))
    n = rows.to(tl.float64)
    own = -4.0 / (n * (n - drop))
    if CROSS:
        point = _centred(a, mean, row, out, rows, D)
        result = own * (weights[:, None] * point - pulled)
        total, weights, pulled = _against(
            a, b, mean, bandwidths, row, norm, out, rows, others, count, D, False, PULL, COLUMNS,
            CHANNELS,
        )  # fmt: skip
        tl.store(cross_kernels + block, tl.sum(total, 0))
        if PULL:
            cross = 4.0 / (n * others.to(tl.float64))
            result += cross * (weights[:, None] * point - pulled)
            mask = (row < rows)[:, None] & (out < D)[None, :]
            at = gradient + row[:, None] * D + out[None, :]
            tl.store(at, result.to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["n", "m", "drop", "count", "x_blocks", "y_blocks"])
def value_kernel(wanted, x_own, y_own, cross, value, n, m, drop, count, x_blocks, y_blocks):
    """The value from the float64 sums."""
    if tl.load(wanted) == 0:
        return
    xx = _sum(x_own, 0, x_blocks)
    yy = _sum(y_own, 0, y_blocks)
    xy = _sum(cross, 0, y_blocks)
    result, _ = _joined(xx, yy, xy, n.to(tl.float64), m.to(tl.float64), drop, count)
    tl.store(value, result.to(tl.float32))


def sweep(
    wanted: Tensor, x: Tensor, y: Tensor, mean: Tensor, bandwidths: Tensor, drop: int,
    value: Tensor, gx: Tensor, gy: Tensor,
) -> None:  # fmt: skip
    """Overwrite value and gradients by those of float64 sums, where `wanted` [1] is not 0."""
    (n, d), m, count = x.shape, len(y), len(bandwidths)
    x_blocks, y_blocks = triton.cdiv(n, ROWS), triton.cdiv(m, ROWS)
    kernels = torch.empty(2 * (x_blocks + y_blocks), dtype=torch.float64, device=x.device)
    x_own, unused, y_own, cross = kernels.split([x_blocks, x_blocks, y_blocks, y_blocks])
    # Kernels between the sets count as the sweep of y finds them.
    sides = ((x, y, gx, x_own, unused, False), (y, x, gy, y_own, cross, True))
    for a, b, gradient, own, mixed, is_y in sides:
        pull = gradient.numel() > 0
        sweep_kernel[(triton.cdiv(len(a), ROWS), triton.cdiv(d, CHANNELS) if pull else 1)](
            wanted, a, b, mean, bandwidths, gradient, own, mixed,
            len(a), len(b), drop, count, d, pull, pull or is_y, ROWS, COLUMNS, CHANNELS,
            num_warps=WARPS, num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip
    value_kernel[(1,)](
        wanted, x_own, y_own, cross, value, n, m, drop, count, x_blocks, y_blocks, num_warps=4
    )
