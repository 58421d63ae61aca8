"""Triton kernels that go over the points of the Gaussian operations, all float64 inside.

Sums on the way forward, of one set or two, and affine maps of the points on the way back. Products
of points are float64 tensor-core products: a nearly rank-deficient codebook leaves a float32 Gram
matrix nothing of its small eigenvalues. A set is cut into splits that depend on its size and the
device alone, whose sums are added in order: same inputs, same bits. The D x D problem in between is
triton_solve.py.
"""

import functools
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import MOST_REGISTERS, processors, tiles_on

_SAMPLED = tl.constexpr(64)  # points whose mean is the shift
# Rows of a partial sum after the Gram matrix: the channels' sums, the shift, the points' number.
EXTRA_ROWS = tl.constexpr(3)


@triton.jit
def _values(x, valid, b, row, channel, num_rows, D: tl.constexpr, MASKED: tl.constexpr):
    """x[b, row] [ROWS, CHANNELS] in float64 and which of it counts."""
    inside = row < num_rows
    if MASKED:
        inside = inside & (tl.load(valid + b * num_rows + row, mask=inside, other=0) != 0)
    mask = inside[:, None] & (channel < D)[None, :]
    at = (b * num_rows + row)[:, None] * D + channel[None, :]
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float64), mask, inside


@triton.jit
def _centred(x, valid, origin, b, row, channel, num_rows, D: tl.constexpr, MASKED: tl.constexpr):
    """x[b, row] - origin [ROWS, CHANNELS]; 0 beyond the rows, channels and mask."""
    value, mask, _ = _values(x, valid, b, row, channel, num_rows, D, MASKED)
    result = tl.where(mask, value - origin[None, :], 0.0)
    # A sum over one element changes nothing, and keeps Triton 3.7 from choosing the operand layout
    # of a float64 product by the width of the points in memory, on which sm_80 and sm_90 fail.
    return tl.sum(result[:, :, None], 2)


@triton.jit
def _origin(x, valid, b, channel, num_rows, D: tl.constexpr, MASKED: tl.constexpr):
    """A point [CHANNELS] near the mean, and exactly on the points where all are equal."""
    step = tl.maximum(num_rows // _SAMPLED, 1)
    row = tl.arange(0, _SAMPLED).to(tl.int64) * step
    value, _, inside = _values(x, valid, b, row, channel, num_rows, D, MASKED)
    count = tl.sum(inside.to(tl.int32), 0)
    return tl.sum(value, 0) / tl.maximum(count, 1).to(tl.float64)


@triton.jit
def _sum_split(
    x, valid, partial, b, split, num_rows, blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The program's tile of the Gram matrix of one split of a set, and what a partial sum adds."""
    tiles: tl.constexpr = WIDTH // CHANNELS
    # Pairs (i, j) with i <= j, row by row.
    j = tl.program_id(1)
    i = j * 0
    while j >= tiles - i:
        j -= tiles - i
        i += 1
    j += i
    left = i.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    right = j.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    from_right = _origin(x, valid, b, right, num_rows, D, MASKED)
    if WIDTH > CHANNELS:
        from_left = _origin(x, valid, b, left, num_rows, D, MASKED)
    product = tl.zeros([CHANNELS, CHANNELS], tl.float64)
    total = tl.zeros([ROWS, CHANNELS], tl.float64)
    counted = tl.zeros([ROWS], tl.int32)
    for block in range(0, blocks):
        row = (split * blocks + block) * ROWS + tl.arange(0, ROWS)
        z = _centred(x, valid, from_right, b, row, right, num_rows, D, MASKED)
        a = z
        if WIDTH > CHANNELS:
            a = _centred(x, valid, from_left, b, row, left, num_rows, D, MASKED)
        product = tl.dot(tl.trans(a), z, product, out_dtype=tl.float64)
        total += z
        inside = row < num_rows
        if MASKED:
            inside = inside & (tl.load(valid + b * num_rows + row, mask=inside, other=0) != 0)
        counted += inside.to(tl.int32)
    count = tl.sum(counted.to(tl.int64), 0)
    tl.store(partial + left[:, None] * WIDTH + right[None, :], product)
    if i == 0:
        extra = partial + WIDTH * WIDTH + right
        tl.store(extra, tl.sum(total, 0))
        tl.store(extra + WIDTH, from_right)
        tl.store(extra + 2 * WIDTH, tl.zeros([CHANNELS], tl.float64) + count.to(tl.float64))


@triton.jit(do_not_specialize=["num_x", "num_y", "splits_x", "blocks_x", "blocks_y"])
def _sums_kernel(
    x, y, valid, partial, arrived,
    num_x, num_y, splits_x, blocks_x, blocks_y,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
    BOTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Partial sums [WIDTH + 3, WIDTH] of every split of x, if BOTH, and of y."""
    split = tl.program_id(0).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    size: tl.constexpr = (WIDTH + EXTRA_ROWS) * WIDTH
    partial += (b * tl.num_programs(0) + split) * size
    if (split == 0) & (tl.program_id(1) == 0):
        tl.store(arrived + b, 0)  # for the next kernel
    if BOTH:
        if split < splits_x:
            _sum_split(
                x, valid, partial, b, split, num_x, blocks_x, D, WIDTH, CHANNELS, ROWS, False
            )
        else:
            split -= splits_x
            _sum_split(
                y, valid, partial, b, split, num_y, blocks_y, D, WIDTH, CHANNELS, ROWS, False
            )
    else:
        _sum_split(y, valid, partial, b, split, num_y, blocks_y, D, WIDTH, CHANNELS, ROWS, MASKED)


@triton.jit
def _add(first, splits, column, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """Columns of a row of the partial sums from `first` on, added over the splits."""
    total = tl.zeros([column.shape[0]], tl.float64)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS).to(tl.int64)
        at = split[:, None] * ((WIDTH + EXTRA_ROWS) * WIDTH) + column[None, :]
        total += tl.sum(tl.load(first + at, mask=(split < splits)[:, None], other=0.0), 0)
    return total


@triton.jit
def fit_row(
    partial, splits, row, count, mean, covariance,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIDE: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """One row, from the diagonal on, and the column below it, of the covariance [D, STRIDE] of a
    set, one channel of its mean, and its count, from its partial sums."""
    one = tl.arange(0, 1).to(tl.int64)
    sums = partial + WIDTH * WIDTH
    n = tl.sum(_add(sums + 2 * WIDTH, splits, one, WIDTH, SPLITS), 0)
    own = tl.sum(_add(sums, splits, row + one, WIDTH, SPLITS), 0) / tl.maximum(n, 1.0)
    tl.store(mean + row, tl.load(sums + WIDTH + row) + own)
    if row == 0:
        tl.store(count, n)
    for first in range(row // CHANNELS * CHANNELS, WIDTH, CHANNELS):
        column = first + tl.arange(0, CHANNELS).to(tl.int64)
        gram = _add(partial + row * WIDTH, splits, column, WIDTH, SPLITS)
        total = _add(sums, splits, column, WIDTH, SPLITS)
        value = (gram - own * total) / tl.maximum(n - 1.0, 1.0)
        keep = (column >= row) & (column < D)
        tl.store(covariance + row * STRIDE + column, value, mask=keep)
        tl.store(covariance + column * STRIDE + row, value, mask=keep)


@triton.jit(do_not_specialize=["splits"])
def _fit_kernel(
    partial, count, mean, covariance, splits,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One row of one set's moments."""
    row = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    partial += b * splits * ((WIDTH + EXTRA_ROWS) * WIDTH)
    fit_row(
        partial, splits, row, count + b, mean + b * D, covariance + b * D * D,
        D, WIDTH, CHANNELS, D, SPLITS,
    )  # fmt: skip


@triton.jit
def _map_blocks(
    x, valid, pull, grad, out, b, first, num_rows,
    D: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, MASKED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    pull += b * (D + 2) * D
    to = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    offset = tl.load(pull + (D + 1) * D + to, mask=to < D, other=0.0)
    factor = 1.0
    if SCALED:
        factor = tl.load(grad + b).to(tl.float64)
    for block in range(0, BLOCKS):
        row = (first + block) * ROWS + tl.arange(0, ROWS)
        result = tl.zeros([ROWS, CHANNELS], tl.float64) + offset[None, :]
        for start in tl.static_range(0, D, CHUNK):
            channel = start + tl.arange(0, CHUNK).to(tl.int64)
            origin = tl.load(pull + D * D + channel, mask=channel < D, other=0.0)
            z = _centred(x, valid, origin, b, row, channel, num_rows, D, MASKED)
            weight = tl.load(
                pull + channel[:, None] * D + to[None, :],
                mask=(channel < D)[:, None] & (to < D)[None, :],
                other=0.0,
            )
            result = tl.dot(z, weight, result, out_dtype=tl.float64)
        if SCALED:
            result *= factor
        inside = row < num_rows
        if MASKED:
            live = tl.load(valid + b * num_rows + row, mask=inside, other=0) != 0
            result = tl.where(live[:, None], result, 0.0)
        at = (b * num_rows + row)[:, None] * D + to[None, :]
        result = result.to(tl.float32).to(out.dtype.element_ty)
        tl.store(out + at, result, mask=inside[:, None] & (to < D)[None, :])


@triton.jit(do_not_specialize=["num_x", "num_y", "programs_x"])
def _pull_back_kernel(
    x, y, valid, pull_x, pull_y, grad, out_x, out_y,
    num_x, num_y, programs_x,
    D: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, BOTH: tl.constexpr, MASKED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out[b, row] = grad[b] ((y[b, row] - mean[b]) matrix[b] + offset[b]) for one tile of out.

    pull [D + 2, D]: the matrix, the mean, the offset. Likewise for x, if BOTH.
    """
    first = tl.program_id(0).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    if BOTH:
        if first < programs_x:
            _map_blocks(
                x, valid, pull_x, grad, out_x, b, first * BLOCKS, num_x,
                D, CHANNELS, CHUNK, ROWS, BLOCKS, False, SCALED,
            )  # fmt: skip
        else:
            _map_blocks(
                y, valid, pull_y, grad, out_y, b, (first - programs_x) * BLOCKS, num_y,
                D, CHANNELS, CHUNK, ROWS, BLOCKS, False, SCALED,
            )  # fmt: skip
    else:
        _map_blocks(
            y, valid, pull_y, grad, out_y, b, first * BLOCKS, num_y,
            D, CHANNELS, CHUNK, ROWS, BLOCKS, MASKED, SCALED,
        )  # fmt: skip


def on_device(x: Tensor) -> nullcontext | torch.cuda.device:
    """A context in which kernels are launched on the device of x."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


class Sums(NamedTuple):
    """Partial sums of sets: partial [B, splits of all sets, WIDTH + 3, WIDTH], float64; `arrived`
    [B], int32 zeros; splits of x (0 without x) and y; splits that are read together."""

    partial: Tensor
    arrived: Tensor
    splits: tuple[int, int]
    together: int


@functools.cache
def _cut(
    n: int, m: int, b: int, d: int, device: torch.device
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Splits of x [b, n, d] and y [b, m, d], blocks in one split of each, splits read together."""
    tiles = tiles_on(d, device)
    side = tiles.width // tiles.channels
    most = tiles.summed // tiles.channels
    wanted = triton.cdiv(tiles.sums.programs * processors(device), b * side * (side + 1) // 2)
    # As many blocks in a split of one set as of the other: they take equally long.
    tall = tiles.sums.rows
    rows = triton.cdiv(triton.cdiv(n, tall) + triton.cdiv(m, tall), min(wanted, most))
    rows = max(rows, 1) * tall
    splits = triton.cdiv(n, rows), max(1, triton.cdiv(m, rows))
    blocks = rows // tall
    return splits, (blocks, blocks), min(triton.next_power_of_2(max(splits)), most)


def sums(x: Tensor | None, y: Tensor, valid: Tensor | None = None) -> Sums:
    """Partial `Sums` of y [B, K, D] up to float32, and of x [B, N, D] if it is given."""
    b, k, d = y.shape
    tiles = tiles_on(d, y.device)
    channels, width, tile = tiles.channels, tiles.width, tiles.sums
    side = width // channels
    n = 0 if x is None else x.shape[1]
    (splits_x, splits_y), blocks, together = _cut(n, k, b, d, y.device)
    count = b * (splits_x + splits_y) * (width + EXTRA_ROWS.value) * width
    buffer = torch.empty(count + b, dtype=torch.float64, device=y.device)
    arrived = buffer[count:].view(torch.int32)
    with on_device(y):
        _sums_kernel[(splits_x + splits_y, side * (side + 1) // 2, b)](
            y if x is None else x, y, y if valid is None else valid, buffer, arrived,
            n, k, splits_x, *blocks, d, width, channels, tile.rows, x is not None,
            valid is not None,
            num_warps=tile.warps, num_stages=tile.stages, maxnreg=MOST_REGISTERS,
            enable_fp_fusion=True,
        )  # fmt: skip
    return Sums(buffer, arrived, (splits_x, splits_y), together)


def moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count [B], mean [B, D] and covariance [B, D, D], float64, of x [B, N, D] up to float32."""
    x = x.detach().contiguous()
    b, _, d = x.shape
    tiles = tiles_on(d, x.device)
    mask = None if valid is None else valid.contiguous().view(torch.uint8)
    partial, _, (_, splits), together = sums(None, x, mask)
    options = dict(dtype=torch.float64, device=x.device)
    count, mean = torch.empty(b, **options), torch.empty(b, d, **options)
    covariance = torch.empty(b, d, d, **options)
    with on_device(x):
        _fit_kernel[(d, b)](
            partial, count, mean, covariance, splits, d, tiles.width, tiles.channels,
            together, num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return count, mean, covariance


def map_sets(
    points: tuple[Tensor | None, Tensor | None],
    pulls: tuple[Tensor | None, Tensor | None],
    grad: Tensor | None,
    valid: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """For each of one or two sets [B, N, D]: grad (matrix (x_k - mean) + offset), in the dtype of
    the points, 0 where not `valid` (of one set only); pulls [B, D + 2, D] stack matrix, mean and
    offset. None where there are no points."""
    present = [i for i in (0, 1) if points[i] is not None]
    of = [points[i].detach().contiguous() for i in present]
    out = [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in of]
    last = of[-1]
    b, k, d = last.shape
    tiles = tiles_on(d, last.device)
    channels, width, tile = tiles.channels, tiles.width, tiles.maps
    programs = [triton.cdiv(p.shape[1], tile.rows * tile.blocks) for p in of]
    if b * sum(programs) > 0:
        ups = [pulls[i] for i in present]
        with on_device(last):
            _pull_back_kernel[(sum(programs), width // channels, b)](
                of[0], last, last if valid is None else valid, ups[0], ups[-1],
                ups[0] if grad is None else grad.contiguous(), out[0], out[-1],
                of[0].shape[1], k, programs[0], d, channels, tile.chunk, tile.rows,
                tile.blocks,
                len(of) == 2, valid is not None, grad is not None,
                num_warps=tile.warps, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
    return tuple(out.pop(0) if i in present else None for i in (0, 1))


def pull_back(
    x: Tensor, valid: Tensor | None, mean: Tensor, matrix: Tensor, offset: Tensor
) -> Tensor:
    """matrix (x_k - mean) + offset in the dtype of x [B, N, D], 0 where not valid; the rest
    float64."""
    mask = None if valid is None else valid.contiguous().view(torch.uint8)
    pull = torch.cat([matrix, mean[:, None], offset[:, None]], 1)
    return map_sets((None, x.detach().contiguous()), (None, pull), None, mask)[1]
