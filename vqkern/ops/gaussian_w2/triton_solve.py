"""The D x D problem of up to 64 channels on a GPU: one launch between the two over the points.

As many programs as the covariances have rows add up the partial sums; the last to finish goes on
alone with the coupled iteration of iteration.py and what follows it. Its matrices stay in the
first-level cache, and barriers keep the program's threads in step. It tries the schedule for
ordinary codes first and goes on with that for any codes if the roots are not yet 1.
"""

import functools
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import iteration, reference
from .triton_kernels import (
    _EXTRA,
    Sums,
    _tile,
    fit_row,
    map_points,
    moments,
    on_device,
    pull_back,
    sums,
)

__all__ = ["map_points", "moments", "pull_back", "value_and_gradients", "value_and_pulls"]

MOST_CHANNELS = 64
_WARPS = 8
_CHUNK = 16  # columns of a factor read together
_ROWS = 32  # rows of a product at a time
_MATRICES = 7  # of a pair, in its workspace
_CONVERGED = 1e-12  # |I - ZY|^2 before the last step


@triton.jit
def _rows_of(first, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Rows first to first + ROWS of a [WIDTH, WIDTH] matrix: their indices and offsets, and the
    offsets of the same in the transpose."""
    row = (first + tl.arange(0, ROWS).to(tl.int64))[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    return row, column, row * WIDTH + column, column * WIDTH + row


@triton.jit
def _multiply(a, b, first, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Rows first to first + ROWS of a b for [WIDTH, WIDTH] matrices in memory."""
    row = (first + tl.arange(0, ROWS).to(tl.int64))[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    result = tl.zeros([ROWS, WIDTH], tl.float64)
    for start in tl.static_range(0, WIDTH, CHUNK):
        k = start + tl.arange(0, CHUNK).to(tl.int64)
        left = tl.load(a + row * WIDTH + k[None, :])
        right = tl.load(b + k[:, None] * WIDTH + column)
        result = tl.dot(left, right, result, out_dtype=tl.float64)
    return result


@triton.jit
def _dot_of(a, b, TRANSPOSED: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """sum a_ij b_ij, or sum a_ij b_ji, of [WIDTH, WIDTH] matrices in memory."""
    total = tl.full([], 0.0, tl.float64)
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, turned = _rows_of(first, WIDTH, ROWS)
        total += tl.sum(tl.load(a + at) * tl.load(b + (turned if TRANSPOSED else at)))
    return total


@triton.jit
def _trace(a, WIDTH: tl.constexpr):
    i = tl.arange(0, WIDTH).to(tl.int64)
    return tl.sum(tl.load(a + i * (WIDTH + 1)), 0)


@triton.jit
def _copy_in(given, to, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """A [D, D] matrix, padded with zeros."""
    for first in tl.static_range(0, WIDTH, ROWS):
        row, column, at, _ = _rows_of(first, WIDTH, ROWS)
        inside = (row < D) & (column < D)
        tl.store(to + at, tl.load(given + row * D + column, mask=inside, other=0.0))


@triton.jit
def _clear_padding(to, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    for first in tl.static_range(0, WIDTH, ROWS):
        row, column, at, _ = _rows_of(first, WIDTH, ROWS)
        zero = tl.zeros([ROWS, WIDTH], tl.float64)
        tl.store(to + at, zero, mask=(row >= D) | (column >= D))


@triton.jit
def _symmetric_product(a, b, to, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """to = a b, which is symmetric but for rounding, made so; `to` is written twice."""
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, _ = _rows_of(first, WIDTH, ROWS)
        tl.store(to + at, _multiply(a, b, first, WIDTH, ROWS, CHUNK))
    tl.debug_barrier()
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, turned = _rows_of(first, WIDTH, ROWS)
        half = (tl.load(to + at) + tl.load(to + turned)) * 0.5
        tl.store(to + WIDTH * WIDTH + at, half)
    tl.debug_barrier()


@triton.jit
def _iterate(
    work, steps, num_steps, tolerance,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Y = P / scale, in the first matrix of `work`, and Z = I to P^{1/2} and P^{-1/2} times roots
    of the scale: returns tr Y and where in `work` Z is.

    Matrices of `work`: Y, Y, Z, Z, which take turns, and Q.
    """
    size: tl.constexpr = WIDTH * WIDTH
    z, q = work + 2 * size, work + 4 * size
    # The first step: ZY is Y.
    constant = tl.load(steps)
    slope = tl.load(steps + 1)
    for first in tl.static_range(0, WIDTH, ROWS):
        row, column, at, _ = _rows_of(first, WIDTH, ROWS)
        eye = tl.where((row == column) & (row < D), constant, 0.0)
        tl.store(z + size + at, eye - slope * tl.load(work + at))
    tl.debug_barrier()
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, _ = _rows_of(first, WIDTH, ROWS)
        tl.store(work + size + at, _multiply(work, z + size, first, WIDTH, ROWS, CHUNK))
    tl.debug_barrier()
    step = 1
    working = True
    while working:
        old = tl.cast(step % 2, tl.int64) * size
        new = size - old
        apart = tl.full([], 0.0, tl.float64)
        for first in tl.static_range(0, WIDTH, ROWS):
            row, column, at, _ = _rows_of(first, WIDTH, ROWS)
            product = _multiply(z + old, work + old, first, WIDTH, ROWS, CHUNK)
            tl.store(q + at, product)
            rest = tl.where((row == column) & (row < D), 1.0, 0.0) - product
            apart += tl.sum(rest * rest)
        tl.debug_barrier()
        # NaN is not at an end before the last step.
        last = (apart <= tolerance) | (step == num_steps - 1)
        place = tl.where(last, num_steps - 1, step).to(tl.int64) * 2
        constant = tl.load(steps + place)
        slope = tl.load(steps + place + 1)
        for first in tl.static_range(0, WIDTH, ROWS):
            row, column, at, _ = _rows_of(first, WIDTH, ROWS)
            eye = tl.where((row == column) & (row < D), constant, 0.0)
            tl.store(q + at, eye - slope * tl.load(q + at))
        tl.debug_barrier()
        working = last == 0
        for first in tl.static_range(0, WIDTH, ROWS):
            _, _, at, _ = _rows_of(first, WIDTH, ROWS)
            tl.store(z + new + at, _multiply(q, z + old, first, WIDTH, ROWS, CHUNK))
            if working:
                product = _multiply(work + old, q, first, WIDTH, ROWS, CHUNK)
                tl.store(work + new + at, product)
        tl.debug_barrier()
        step += 1
    # Of Y's last product no more than the trace is needed.
    old = tl.cast((step + 1) % 2, tl.int64) * size
    return _dot_of(work + old, q, True, WIDTH, ROWS), 3 * size - old


@triton.jit
def _write_pull(
    pull, transport, other, share, mean, apart, count, channel,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Derivatives of the value with respect to covariance, I - transport - share other, and mean,
    2 apart: of the moments, or of each of `count` points."""
    by_matrix = 1.0
    by_mean = 1.0
    if POINTS:
        by_matrix = 2.0 / (count - 1.0)
        by_mean = 1.0 / count
    for first in tl.static_range(0, WIDTH, ROWS):
        row, column, at, _ = _rows_of(first, WIDTH, ROWS)
        value = tl.where(row == column, 1.0, 0.0) - tl.load(transport + at)
        value = (value - share * tl.load(other + at)) * by_matrix
        tl.store(pull + row * D + column, value, mask=(row < D) & (column < D))
    tl.store(pull + D * D + channel, mean, mask=channel < D)
    tl.store(pull + (D + 1) * D + channel, 2.0 * apart * by_mean, mask=channel < D)


@triton.jit
def _solve_pair(
    given_x, given_1, given_y, given_2, work, steps, value_out, pull_x, pull_y,
    num_x, num_y, num_steps, ridge,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    FIT_X: tl.constexpr, FIT_Y: tl.constexpr, RELATIVE: tl.constexpr, LEAST: tl.constexpr,
    TOLERANCE: tl.constexpr, X_GRAD: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """What `_solve_kernel` does once all moments are there."""
    size: tl.constexpr = WIDTH * WIDTH
    s1, s2, free = work, work + size, work + 2 * size
    if FIT_X:
        _clear_padding(s1, D, WIDTH, ROWS)
    else:
        _copy_in(given_1, s1, D, WIDTH, ROWS)
    if FIT_Y:
        _clear_padding(s2, D, WIDTH, ROWS)
    else:
        _copy_in(given_2, s2, D, WIDTH, ROWS)
    tl.debug_barrier()
    channel = tl.arange(0, WIDTH).to(tl.int64)
    mean_x = tl.load(given_x + channel, mask=channel < D, other=0.0)
    mean_y = tl.load(given_y + channel, mask=channel < D, other=0.0)
    overlap = _dot_of(s1, s2, False, WIDTH, ROWS)  # tr C
    epsilon = tl.maximum(tl.cast(ridge, tl.int64).to(tl.float64, bitcast=True), LEAST * overlap)
    # P = S1 S2 + e I.
    for first in tl.static_range(0, WIDTH, ROWS):
        row, column, at, _ = _rows_of(first, WIDTH, ROWS)
        product = _multiply(s1, s2, first, WIDTH, ROWS, CHUNK)
        product += tl.where((row == column) & (row < D), epsilon, 0.0)
        tl.store(free + at, product)
    tl.debug_barrier()
    # Above all eigenvalues of P: the root of tr P P, unless rounding leaves nothing of it.
    squares = _dot_of(free, free, True, WIDTH, ROWS)
    norm = _dot_of(free, free, False, WIDTH, ROWS)
    close = tl.sqrt(tl.maximum(squares, 0.0)) * (1.0 + 1e-9)
    scale = tl.where(squares > 1e-6 * norm, close, _trace(free, WIDTH))
    # Without any variance there is no ridge either: T is 0 and misses everything.
    flat = scale <= 0.0
    scale = tl.where(flat, 1.0, scale)
    tl.debug_barrier()
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, _ = _rows_of(first, WIDTH, ROWS)
        tl.store(free + at, tl.load(free + at) / scale)
    tl.debug_barrier()
    root_trace, place = _iterate(free, steps, num_steps, TOLERANCE, D, WIDTH, ROWS, CHUNK)
    root = tl.sqrt(scale)
    inverse = free + place
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, _ = _rows_of(first, WIDTH, ROWS)
        tl.store(inverse + at, tl.where(flat, 0.0, tl.load(inverse + at) / root))
    tl.debug_barrier()
    # The iteration's first two matrices and its Q are free again.
    transport = free + size
    _symmetric_product(inverse, s1, free, WIDTH, ROWS, CHUNK)
    variance_x = _trace(s1, WIDTH)
    variance_y = _trace(s2, WIDTH)
    inverse_trace = _trace(inverse, WIDTH)
    missed = epsilon * _dot_of(inverse, transport, True, WIDTH, ROWS)
    missed = tl.where(flat, variance_x, missed)
    # Two ways to the same number: the second cancels nothing where the sets agree, and the first
    # does not multiply rounding by T where the codes are nearly rank-deficient.
    rest = free + 4 * size
    squared = tl.full([], 0.0, tl.float64)
    for first in tl.static_range(0, WIDTH, ROWS):
        row, column, at, _ = _rows_of(first, WIDTH, ROWS)
        value = tl.where((row == column) & (row < D), 1.0, 0.0) - tl.load(transport + at)
        squared += tl.sum(value * value)
        tl.store(rest + at, value)
    tl.debug_barrier()
    factored = missed - 2.0 * epsilon * inverse_trace
    for first in tl.static_range(0, WIDTH, ROWS):
        _, _, at, _ = _rows_of(first, WIDTH, ROWS)
        product = _multiply(rest, s2, first, WIDTH, ROWS, CHUNK)
        factored += tl.sum(product * tl.load(rest + at))
    direct = variance_x + variance_y - 2.0 * root * root_trace
    near = squared * variance_y < variance_x + variance_y
    apart = mean_y - mean_x
    result = tl.sum(apart * apart, 0) + tl.where(near, factored, direct)
    tl.store(value_out, result.to(value_out.dtype.element_ty))
    share = inverse_trace * 0.0
    if RELATIVE:
        share = inverse_trace * LEAST
    _write_pull(
        pull_y, transport, s1, share, mean_y, apart, tl.cast(num_y, tl.float64), channel,
        D, WIDTH, ROWS, POINTS,
    )  # fmt: skip
    if X_GRAD:
        tl.debug_barrier()
        _symmetric_product(s2, inverse, free, WIDTH, ROWS, CHUNK)
        _write_pull(
            pull_x, transport, s2, share, mean_x, -apart, tl.cast(num_x, tl.float64), channel,
            D, WIDTH, ROWS, POINTS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["splits_x", "splits_y", "num_x", "num_y", "num_steps", "ridge"])
def _solve_kernel(
    partial, arrived, m_x, s1, m_y, s2, work, steps, value_out, pull_x, pull_y,
    splits_x, splits_y, num_x, num_y, num_steps, ridge,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, MATRICES: tl.constexpr,
    FIT_X: tl.constexpr, FIT_Y: tl.constexpr, RELATIVE: tl.constexpr, LEAST: tl.constexpr,
    TOLERANCE: tl.constexpr, X_GRAD: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Moments of the sets that are not given, value and gradients of one pair of them.

    work of a pair: MATRICES matrices [WIDTH, WIDTH], of which the first two are S1 and S2, two
    means and two counts. The ridge is given by its bits, as a number comes in float32.
    """
    b = tl.program_id(1).to(tl.int64)
    size: tl.constexpr = WIDTH * WIDTH
    work += b * ((MATRICES + 1) * size)
    means = work + MATRICES * size
    counts = means + 2 * WIDTH
    go = True
    if FIT_X or FIT_Y:
        own = tl.program_id(0).to(tl.int64)
        cells: tl.constexpr = (WIDTH + _EXTRA) * WIDTH
        partial += b * (splits_x + splits_y) * cells
        if FIT_X:
            if own < D:
                fit_row(
                    partial, splits_x, own, counts, means, work,
                    D, WIDTH, CHANNELS, WIDTH, SPLITS,
                )  # fmt: skip
            elif FIT_Y:
                fit_row(
                    partial + splits_x * cells, splits_y, own - D, counts + 1, means + WIDTH,
                    work + size, D, WIDTH, CHANNELS, WIDTH, SPLITS,
                )  # fmt: skip
        else:
            fit_row(
                partial, splits_y, own, counts + 1, means + WIDTH, work + size,
                D, WIDTH, CHANNELS, WIDTH, SPLITS,
            )  # fmt: skip
        tl.debug_barrier()
        before = tl.atomic_add(arrived + b, 1, sem="acq_rel", scope="gpu")
        go = before == tl.num_programs(0) - 1
    if go:
        stride: tl.constexpr = (D + 2) * D
        _solve_pair(
            means if FIT_X else m_x + b * D, s1 + b * D * D,
            means + WIDTH if FIT_Y else m_y + b * D, s2 + b * D * D,
            work, steps, value_out + b, pull_x + b * stride, pull_y + b * stride,
            num_x, num_y, num_steps, ridge,
            D, WIDTH, ROWS, CHUNK, FIT_X, FIT_Y, RELATIVE, LEAST, TOLERANCE, X_GRAD, POINTS,
        )  # fmt: skip


@functools.cache
def _steps(device: torch.device) -> Tensor:
    steps = iteration.schedule(iteration.ORDINARY)
    return torch.tensor(steps, dtype=torch.float64, device=device)


def _solve(
    of: Sums | None,
    x: tuple[Tensor, Tensor] | None,
    y: tuple[Tensor, Tensor] | None,
    like: Tensor,
    counts: tuple[int, int] | None,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Value [B] of pairs of sets, and the pulls of x, if asked for, and y.

    Sets are given by their mean [B, D] and covariance [B, D, D], or else by their sums. `like` [B, ...,
    D] tells sizes and device. Derivatives are those of each of `counts` points, or of the moments.
    """
    b, d = like.shape[0], like.shape[-1]
    channels, width = _tile(d)
    options = dict(dtype=torch.float64, device=like.device)
    value = torch.empty(b, dtype=torch.float64 if double else torch.float32, device=like.device)
    pulls = torch.empty(2 if x_grad else 1, b, d + 2, d, **options)
    work = torch.empty(b, _MATRICES + 1, width, width, **options)
    steps = _steps(like.device)
    with on_device(like):
        _solve_kernel[(d * ((x is None) + (y is None)) or 1, b)](
            *((work, work) if of is None else (of.partial, of.arrived)),
            *(x or (work, work)), *(y or (work, work)), work, steps, value,
            pulls[0], pulls[-1], *(of.splits if of else (0, 0)), *(counts or (0, 0)),
            len(steps), struct.unpack("q", struct.pack("d", ridge or 0.0))[0],
            d, width, channels, of.together if of else 1, min(width, _ROWS), _CHUNK,
            _MATRICES, x is None, y is None, ridge is None, iteration.LEAST_RIDGE, _CONVERGED,
            x_grad, counts is not None,
            num_warps=_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return value, pulls[0] if x_grad else None, pulls[-1]


def _contiguous(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0].contiguous(), pair[1].contiguous()


def value_and_gradients(
    means: tuple[Tensor, Tensor],
    covariances: tuple[Tensor, Tensor],
    ridge: float | None,
    x_grad: bool,
) -> reference.Gradients:
    """As `reference.value_and_gradients`."""
    d = means[1].shape[-1]
    if d > MOST_CHANNELS:
        return reference.value_and_gradients(
            means, covariances, ridge, x_grad, iteration.roots, iteration.LEAST_RIDGE
        )
    x, y = map(_contiguous, zip(means, covariances, strict=True))
    value, pull_x, pull_y = _solve(None, x, y, y[0], None, ridge, x_grad, True)
    features = None if pull_x is None else pull_x[:, :-2].contiguous()
    return reference.Gradients(value, pull_y[:, -1].contiguous(), features, pull_y[:, :-2].contiguous())


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `reference.value_and_pulls`."""
    if y.shape[-1] > MOST_CHANNELS:
        return reference.value_and_pulls(
            features, y, ridge, x_grad, double, moments, value_and_gradients
        )
    y = y.detach().contiguous()
    if isinstance(features, tuple):
        given = _contiguous(features)
        return _solve(sums(None, y), given, None, y, (2, y.shape[1]), ridge, x_grad, double)
    x = features.detach().contiguous()
    counts = x.shape[1], y.shape[1]
    return _solve(sums(x, y), None, None, y, counts, ridge, x_grad, double)
