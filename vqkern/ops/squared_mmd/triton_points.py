"""Points as the sweeps of `triton_kernels` take them: float16 parts whose product is an exponent.

A point a, centred and scaled so that the widest kernel is 2^(a.b - |a|^2 / 2 - |b|^2 / 2), is kept
as high + low / 256, float16 each, 22 bits together; what the three parts of the norm add, it is
exact to 2^-32. One float16 product over the channels

    of a left point    [high, norm, 1, low, high / 256]
    of a right point   [high, 1, norm, high / 256, low]

is then the exponent itself, to about 2^-22 of |a||b|; high, one and low are also what a weight
multiplies. Powers of two keep all parts clear of float16's subnormal numbers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Points fill whole tiles; those beyond the last have a norm that makes every kernel 0.
PADDING = 128
_FAR = tl.constexpr(-60000.0)
LOW = tl.constexpr(256.0)
# Larger norms leave the range of float16; a smaller mean norm leaves no bits of the points.
MOST_NORM = tl.constexpr(2.0**15)
LEAST_NORM = tl.constexpr(2.0**-20)
# The channel of ones of a left point within the part of norms, and that of a right point.
LEFT_ONE = tl.constexpr(3)
RIGHT_ONE = tl.constexpr(0)

# What `state` holds.
LADDER = tl.constexpr(0)
FAULT = tl.constexpr(1)
TOO_FAR = tl.constexpr(1)
NOT_FINITE = tl.constexpr(2)

_MOST_SURVEYS = 256
_ROWS = 64
MOST_RATES = tl.constexpr(64)
# More doublings would multiply the error of the exponential too often.
MOST_DOUBLINGS = tl.constexpr(7)
_MOST_NARROW = 32
CHUNK = 64


def padded_width(d: int) -> int:
    """Channels of one part: 8, 16, 32, or a multiple of 64."""
    if d <= _MOST_NARROW:
        return max(8, triton.next_power_of_2(d))
    return triton.cdiv(d, CHUNK) * CHUNK


def padded_rows(n: int) -> int:
    return triton.cdiv(n, PADDING) * PADDING


def form_width(width: int) -> int:
    """Channels of a point in parts: three of `width`, and one for norms."""
    return 3 * width + min(width, CHUNK)


def is_narrow(width: int) -> bool:
    return width <= _MOST_NARROW


def warps(width: int) -> int:
    """Of a program that takes _ROWS points, CHUNK channels at a time."""
    return 4 if is_narrow(width) else 8


@triton.jit
def ladder_shift(count):
    """The exponent c of the scale of weights under a ladder: 2^c k stays finite, 2^c w in 2^15."""
    shift = 15 - count
    shift = tl.where(count >= 5, 7, shift)
    shift = tl.where(count >= 6, 3, shift)
    return tl.where(count >= 7, 1, shift)


@triton.jit(do_not_specialize=["n", "m", "rows_each"])
def _survey_kernel(
    x, y, sums, n, m, rows_each,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums of the channels of one share of the rows of x and of y, float64 [surveys, WIDTH]."""
    share = tl.program_id(0).to(tl.int64)
    for start in range(0, WIDTH, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        total = tl.zeros([CHANNELS], tl.float64)
        for first in range(0, rows_each, ROWS):
            row = share * rows_each + first + tl.arange(0, ROWS)
            within = first + tl.arange(0, ROWS) < rows_each
            at = row[:, None] * D + channel[None, :]
            inside = (channel < D)[None, :] & within[:, None]
            of_x = tl.load(x + at, mask=inside & (row < n)[:, None], other=0.0)
            other = row - n
            at = other[:, None] * D + channel[None, :]
            inside = inside & ((other >= 0) & (other < m))[:, None]
            of_y = tl.load(y + at, mask=inside, other=0.0)
            total += tl.sum(of_x.to(tl.float64) + of_y.to(tl.float64), 0)
        tl.store(sums + share * WIDTH + channel, total)


@triton.jit
def rates_of(bandwidths, count):
    """The widest kernel's rate, all rates relative to it [MOST_RATES], and whether they double."""
    index = tl.arange(0, MOST_RATES)
    inside = index < count
    bandwidth = tl.load(bandwidths + index, mask=inside, other=0.0)
    widest = tl.max(bandwidth, 0)
    relative = tl.where(inside, widest / tl.where(inside, bandwidth, 1.0), 0.0).to(tl.float32)
    bits = relative.to(tl.int32, bitcast=True)
    power = (bits >> 23) - 127
    # Of `count` powers of two that add up to 2^count - 1, no two are equal.
    step = inside & ((bits & 0x7FFFFF) == 0) & (power >= 0) & (power < MOST_DOUBLINGS)
    total = tl.sum(tl.where(step, 1 << tl.where(step, power, 0), 0), 0)
    doubling = (total == (1 << tl.minimum(count, 30)) - 1) & (count <= MOST_DOUBLINGS)
    return 1.0 / widest, relative, doubling


@triton.jit(do_not_specialize=["rows", "count"])
def prepare_kernel(
    points, mean, bandwidths, left, right, norms, plan, table, state, rows, count,
    D: tl.constexpr, WIDTH: tl.constexpr, FORM: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Left and right forms of ROWS points of a set of `rows`, and the sum of their norms.

    The first program also writes what all sweeps share: plan = (widest rate, unit of length,
    exponent of the weights' scale, narrowest rate over widest), and the table of relative rates
    and weights for rates that do not double.
    """
    block = tl.program_id(0).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    rate, relative, doubling = rates_of(bandwidths, count)
    unit = tl.sqrt(2.8853900817779268 * rate)
    most = tl.sum(relative, 0)
    free_shift = 14 - ((most.to(tl.int32, bitcast=True) >> 23) - 127)
    shift = tl.where(doubling, ladder_shift(count), free_shift)
    if block == 0:
        index = tl.arange(0, 4)
        facts = tl.where(index == 0, rate, unit)
        facts = tl.where(index == 2, shift.to(tl.float64), facts)
        facts = tl.where(index == 3, tl.max(relative, 0).to(tl.float64), facts)
        tl.store(plan + index, facts)
        scale = tl.exp2(free_shift.to(tl.float32))
        tl.store(table + tl.arange(0, MOST_RATES), relative)
        tl.store(table + MOST_RATES + tl.arange(0, MOST_RATES), relative * scale)
        tl.store(state + LADDER, doubling.to(tl.int32))
    norm = tl.zeros([ROWS], tl.float64)
    for start in range(0, WIDTH, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = inside[:, None] & (channel < D)[None, :]
        value = tl.load(points + row[:, None] * D + channel[None, :], mask=mask, other=0.0)
        centre = tl.load(mean + channel, mask=channel < D, other=0.0)
        value = tl.where(mask, (value.to(tl.float64) - centre[None, :]) * unit, 0.0)
        high = value.to(tl.float32).to(tl.float16)
        low = ((value - high.to(tl.float64)) * LOW).to(tl.float32).to(tl.float16)
        less = (high.to(tl.float32) / LOW).to(tl.float16)
        kept = high.to(tl.float64) + low.to(tl.float64) / LOW
        norm += tl.sum(kept * kept, 1)
        at = row[:, None] * FORM + channel[None, :]
        tl.store(left + at, high)
        tl.store(right + at, high)
        at += FORM - 2 * WIDTH
        tl.store(left + at, low)
        tl.store(left + at + WIDTH, less)
        tl.store(right + at, less)
        tl.store(right + at + WIDTH, low)
    norm = 0.5 * norm
    tl.store(norms + block, tl.sum(norm, 0))
    finite = (norm == norm) & (norm != float("inf"))
    fault = tl.where(norm > MOST_NORM, TOO_FAR, 0)
    fault = tl.max(tl.where(finite, fault, NOT_FINITE), 0)
    if fault > 0:
        tl.atomic_max(state + FAULT, fault, sem="relaxed")
    # The scale of the weights is half of it on either side; only under a ladder.
    offset = 0.5 * tl.where(doubling, ladder_shift(count), 0).to(tl.float64) - norm
    offset = tl.where(inside & (norm <= MOST_NORM), offset, _FAR)
    first = offset.to(tl.float32).to(tl.float16)
    rest = (offset - first.to(tl.float64)) * LOW
    second = rest.to(tl.float32).to(tl.float16)
    third = (rest - second.to(tl.float64)).to(tl.float32).to(tl.float16)
    part: tl.constexpr = FORM - 3 * WIDTH
    index = tl.arange(0, part)[None, :]
    place = index % 3
    own = tl.where(
        place == 0, first[:, None], tl.where(place == 1, second[:, None], third[:, None])
    )
    one = tl.where(place == 0, 1.0, 1.0 / LOW).to(tl.float16)
    zero = tl.zeros([ROWS, part], tl.float16)
    at = row[:, None] * FORM + WIDTH + index
    tl.store(left + at, tl.where(index < 3, own, tl.where(index < 6, one, zero)))
    tl.store(right + at, tl.where(index < 3, one, tl.where(index < 6, own, zero)))


def common_mean(x: Tensor, y: Tensor) -> Tensor:
    """The mean of both sets, float64 [D]; x and y contiguous."""
    (n, d), m = x.shape, len(y)
    width = padded_width(d)
    surveys = min(_MOST_SURVEYS, triton.cdiv(n + m, _ROWS))
    sums = torch.empty(surveys, width, dtype=torch.float64, device=x.device)
    _survey_kernel[(surveys,)](
        x, y, sums, n, m, triton.cdiv(n + m, surveys),
        d, width, min(width, CHUNK), _ROWS, num_warps=warps(width), enable_fp_fusion=True,
    )  # fmt: skip
    return sums[:, :d].sum(0) / (n + m)


class Forms(NamedTuple):
    """A set as left and right points, and the sum of the norms of each block of rows."""

    left: Tensor
    right: Tensor
    norms: Tensor


def prepare(
    points: Tensor, mean: Tensor, bandwidths: Tensor, plan: Tensor, table: Tensor, state: Tensor
) -> Forms:
    """`points` [N, D], contiguous, in parts; fills plan, table and state."""
    n, d = points.shape
    width = padded_width(d)
    rows = padded_rows(n)
    form = form_width(width)
    forms = torch.empty(2, rows, form, dtype=torch.float16, device=points.device)
    norms = torch.empty(rows // _ROWS, dtype=torch.float64, device=points.device)
    prepare_kernel[(rows // _ROWS,)](
        points, mean, bandwidths, forms[0], forms[1], norms, plan, table, state, n,
        len(bandwidths), d, width, form, min(width, CHUNK), _ROWS,
        num_warps=warps(width), enable_fp_fusion=False,
    )  # fmt: skip
    return Forms(forms[0], forms[1], norms)
