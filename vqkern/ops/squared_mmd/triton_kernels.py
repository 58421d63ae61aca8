"""Triton kernel of `squared_mmd`: tiles of the kernel matrix that never leave the chip.

One sweep takes a block of rows of one set past all columns of the other (or the same) set. It
adds up the kernel for the value and, where the rows' gradient is wanted, W b and the row sums of
W in the same pass: d/da_i sum_j k(a_i, b_j) = -2 (r_i a_i - (W b)_i). A sweep without a gradient
over one set takes the tiles on and above the diagonal and counts those above twice.

Both products are tf32x3: each factor is split into two TF32 parts and three tensor-core products
are added in float32, which loses about as much as float32 itself (2^-21 relative to |a||b|); one
TF32 product would lose 2^-10, and scalar float32 multiplications would leave the tensor cores
idle. Sums over tiles are float64. Every program writes its own partial sums, which are added in a
fixed order: same inputs, same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

_MAX_SPLITS = 32
_WARPS = 4


class Tile(NamedTuple):
    """Rows and columns of one tile, channels of one product, channels of one program's gradient."""

    points: int
    channels: int
    out_channels: int


def choose_tile(width: int, grad: bool) -> Tile:
    """The tile for a padded number of channels: the largest that spills nowhere."""
    if grad and width > 16:
        return Tile(32, 32, min(width, 64))
    return Tile(64, min(width, 32), min(width, 64))


def padded_width(d: int) -> int:
    """Channels of the padded points: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(d))


@triton.jit
def _kernel_sums(squared, rates, is_ladder, num_rates):
    """sum_i exp(-r_i d^2) and sum_i r_i exp(-r_i d^2) for ascending rates.

    Rates that double need one exponential: the next term is the square of the last.
    """
    rate = tl.load(rates)
    term = tl.exp(-squared * rate)
    kernel = term
    weight = rate * term
    if is_ladder:
        for i in range(1, num_rates):
            term = term * term
            kernel += term
            weight += tl.load(rates + i) * term
    else:
        for i in range(1, num_rates):
            rate = tl.load(rates + i)
            term = tl.exp(-squared * rate)
            kernel += term
            weight += rate * term
    return kernel, weight


@triton.jit(
    do_not_specialize=[
        "num_a", "num_b", "num_rates", "tiles_per_split", "num_splits", "diagonal",
    ]
)  # fmt: skip
def _sweep_kernel(
    a, b, a_norm, b_norm, rates, ladder, value, gradient,
    num_a, num_b, num_rates, tiles_per_split, num_splits, diagonal,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, TILE: tl.constexpr,
    SAME: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """Value and row gradient of one block of rows over one split of the columns.

    Points are padded with zeros to WIDTH channels, which a product takes CHANNELS at a time and
    the gradient OUT_CHANNELS a program, along the third grid axis. SAME: a and b are one set,
    whose diagonal counts `diagonal` and pulls nowhere; without a gradient only its upper half is
    walked.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    row = block.to(tl.int64) * TILE + tl.arange(0, TILE)
    row_inside = row < num_a
    row_norm = tl.load(a_norm + row, mask=row_inside, other=0.0)
    is_ladder = tl.load(ladder) != 0
    total = tl.zeros([TILE], tl.float64)
    weight_sum = tl.zeros([TILE], tl.float64)
    pulled = tl.zeros([TILE, OUT_CHANNELS], tl.float64)
    out_channel = tl.program_id(2).to(tl.int64) * OUT_CHANNELS + tl.arange(0, OUT_CHANNELS)

    first = split * tiles_per_split
    if SAME and not GRAD:
        first = tl.maximum(first, block)
    stop = tl.minimum((split + 1) * tiles_per_split, (num_b + TILE - 1) // TILE)
    for tile in range(first, stop):
        column = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        column_inside = column < num_b
        dot = tl.zeros([TILE, TILE], tl.float32)
        for start in range(0, WIDTH, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            x = tl.load(
                a + row[:, None] * WIDTH + channel[None, :], mask=row_inside[:, None], other=0.0
            )
            y = tl.load(
                b + column[None, :] * WIDTH + channel[:, None],
                mask=column_inside[None, :],
                other=0.0,
            )
            dot = tl.dot(x, y, dot, input_precision="tf32x3", out_dtype=tl.float32)
        column_norm = tl.load(b_norm + column, mask=column_inside, other=0.0)
        squared = row_norm[:, None] + column_norm[None, :] - 2.0 * dot
        # A NaN stays one, as it would not in a maximum.
        squared = tl.where(squared < 0.0, 0.0, squared)
        kernel, weight = _kernel_sums(squared, rates, is_ladder, num_rates)
        mask = row_inside[:, None] & column_inside[None, :]
        kernel = tl.where(mask, kernel, 0.0)
        weight = tl.where(mask, weight, 0.0)
        if SAME:
            same = mask & (row[:, None] == column[None, :])
            kernel = tl.where(same, diagonal, kernel)
            weight = tl.where(same, 0.0, weight)
        added = tl.sum(kernel, 1).to(tl.float64)
        if SAME and not GRAD:
            added = tl.where(tile > block, 2.0, 1.0) * added
        total += added
        if GRAD:
            points = tl.load(
                b + column[:, None] * WIDTH + out_channel[None, :],
                mask=column_inside[:, None],
                other=0.0,
            )
            pull = tl.dot(weight, points, input_precision="tf32x3", out_dtype=tl.float32)
            pulled += pull.to(tl.float64)
            weight_sum += tl.sum(weight, 1).to(tl.float64)

    if tl.program_id(2) == 0:
        tl.store(value + block.to(tl.int64) * num_splits + split, tl.sum(total, 0))
    if GRAD:
        at = row[:, None] * WIDTH + out_channel[None, :]
        point = tl.load(a + at, mask=row_inside[:, None], other=0.0).to(tl.float64)
        pull = -2.0 * (weight_sum[:, None] * point - pulled)
        out = split.to(tl.int64) * num_a * WIDTH + at
        tl.store(gradient + out, pull, mask=row_inside[:, None])


def _sweep(
    a: Tensor, b: Tensor, rates: Tensor, ladder: Tensor, diagonal: float | None, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of k over all pairs, float64, and d/da_i sum_j k(a_i, b_j), float64, if wanted.

    a and b are padded; `diagonal` is what k(a_i, a_i) counts if they are one set, else None.
    """
    (n, width), device = a.shape, a.device
    tile = choose_tile(width, grad)
    row_blocks, tiles = triton.cdiv(n, tile.points), triton.cdiv(len(b), tile.points)
    chunks = width // tile.out_channels if grad else 1
    processors = 2
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    splits = min(triton.cdiv(4 * processors, row_blocks * chunks), tiles, _MAX_SPLITS)
    value = torch.empty(row_blocks, splits, dtype=torch.float64, device=device)
    gradient = torch.empty((splits, n, width) if grad else (1,), dtype=torch.float64, device=device)
    with torch.cuda.device_of(a):
        _sweep_kernel[(row_blocks, splits, chunks)](
            a, b, _squared_norms(a), _squared_norms(b), rates, ladder, value, gradient, n, len(b),
            len(rates), triton.cdiv(tiles, splits), splits, diagonal or 0.0, width,
            tile.channels, tile.out_channels, tile.points, diagonal is not None, grad,
            num_warps=_WARPS, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return value.sum(), gradient.sum(0) if grad else None


def _squared_norms(x: Tensor) -> Tensor:
    return x.double().square().sum(-1).float()


def _padded(x: Tensor) -> Tensor:
    return functional.pad(x.float(), (0, padded_width(x.shape[1]) - x.shape[1])).contiguous()


def squared_mmd(
    x: Tensor, y: Tensor, bandwidths: Tensor, unbiased: bool, x_grad: bool, y_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Value [], gradient [N, D] and gradient [M, D], float32; a gradient not asked for is [0].

    x [N, D] and y [M, D] float16, bfloat16 or float32, any strides; bandwidths float64 [B].
    """
    x, y = x.detach().double(), y.detach().double()
    (n, d), m = x.shape, len(y)
    # Distances between centred points cancel less; the value does not depend on the origin.
    mean = (x.sum(0) + y.sum(0)) / (n + m)
    x, y = _padded(x - mean), _padded(y - mean)
    rates = bandwidths.float().reciprocal().sort().values
    ladder = (rates[1:] == 2 * rates[:-1]).all().to(torch.int32)
    diagonal = 0.0 if unbiased else float(len(rates))
    same = 0 if unbiased else 1
    weight_xx = 1 / (n * (n - 1 + same))
    weight_yy = 1 / (m * (m - 1 + same))

    xx, x_self = _sweep(x, x, rates, ladder, diagonal, x_grad)
    yy, y_self = _sweep(y, y, rates, ladder, diagonal, y_grad)
    gx, gy = x.new_empty(0), x.new_empty(0)
    if x_grad or not y_grad:
        xy, x_cross = _sweep(x, y, rates, ladder, None, x_grad)
    if y_grad:
        xy, y_cross = _sweep(y, x, rates, ladder, None, True)
    # d/dy_j of sum k(y, y') counts j twice: as y and as y'.
    if x_grad:
        gx = (2 * weight_xx * x_self - 2 / (n * m) * x_cross)[:, :d].float().contiguous()
    if y_grad:
        gy = (2 * weight_yy * y_self - 2 / (n * m) * y_cross)[:, :d].float().contiguous()
    value = xx * weight_xx + yy * weight_yy - 2 * xy / (n * m)
    return value.float(), gx, gy
