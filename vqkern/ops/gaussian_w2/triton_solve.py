"""The D x D problem of few channels on a GPU: one launch between the two over the points.

As many programs as the covariances have rows add up the partial sums. The last few to finish go on
with the coupled iteration of iteration.py and what follows it, each with some rows of the matrices:

    Y' = q(YZ) Y and Z' = q(ZY) Z,

where q is linear, need of one matrix a program's own rows and of the other all, so the programs
meet once a step. No program waits for one that may not have started: those that finish before
leave. A pair alone on the device is solved by several programs, many pairs by one each.
"""

import functools
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import iteration, reference
from .reference import flat
from .triton_kernels import (
    EXTRA_ROWS,
    Sums,
    fit_row,
    map_sets,
    moments,
    on_device,
    pull_back,
    sums,
)
from .triton_tiles import MOST_REGISTERS, processors, tiles_on

__all__ = ["map_points", "moments", "pull_back", "value_and_gradients", "value_and_pulls"]

_ROWS = tl.constexpr(16)  # of a product at a time: one task
_MATRICES = tl.constexpr(7)  # of a pair, in its workspace: S1, S2, P, Y twice, Z twice
_CONVERGED = 1e-12  # |I - ZY|^2 + |I - YZ|^2 before the last step


@triton.jit
def _all(a, WIDTH: tl.constexpr, TURNED: tl.constexpr):
    """A matrix [WIDTH, WIDTH] of the workspace or its transpose; other programs write it."""
    row = tl.arange(0, WIDTH).to(tl.int64)[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    at = column * WIDTH + row if TURNED else row * WIDTH + column
    return tl.load(a + at, cache_modifier=".cg")


@triton.jit
def _some(a, first, WIDTH: tl.constexpr, TURNED: tl.constexpr):
    """Rows of `_all`, from `first` on."""
    row = (first + tl.arange(0, _ROWS).to(tl.int64))[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    at = column * WIDTH + row if TURNED else row * WIDTH + column
    return tl.load(a + at, cache_modifier=".cg")


@triton.jit
def _all_given(s, D: tl.constexpr, WIDTH: tl.constexpr):
    """A covariance [D, D], padded with zeros."""
    row = tl.arange(0, WIDTH).to(tl.int64)[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    inside = (row < D) & (column < D)
    return tl.load(s + row * D + column, mask=inside, other=0.0, cache_modifier=".cg")


@triton.jit
def _some_given(s, first, D: tl.constexpr, WIDTH: tl.constexpr):
    row = (first + tl.arange(0, _ROWS).to(tl.int64))[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    inside = (row < D) & (column < D)
    return tl.load(s + row * D + column, mask=inside, other=0.0, cache_modifier=".cg")


@triton.jit
def _trace(a, D: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    i = tl.arange(0, WIDTH).to(tl.int64)
    return tl.sum(tl.load(a + i * (STRIDE + 1), mask=i < D, other=0.0, cache_modifier=".cg"), 0)


@triton.jit
def _eye(first, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of the identity [D, D], padded with zeros."""
    row = (first + tl.arange(0, _ROWS).to(tl.int64))[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    return tl.where((row == column) & (row < D), 1.0, 0.0).to(tl.float64)


@triton.jit
def _put(a, first, value, WIDTH: tl.constexpr):
    row = (first + tl.arange(0, _ROWS).to(tl.int64))[:, None]
    tl.store(a + row * WIDTH + tl.arange(0, WIDTH).to(tl.int64)[None, :], value)


@triton.jit
def _product(a, b):
    return tl.dot(a, b, tl.zeros([a.shape[0], b.shape[1]], tl.float64), out_dtype=tl.float64)


@triton.jit
def _wait(arrived, seen, target, GROUP: tl.constexpr):
    """Until `target` programs have arrived, of which `seen` had when this one did."""
    if GROUP > 1:
        while seen < target:
            seen = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def _meet(arrived, target, GROUP: tl.constexpr):
    """What the programs of a pair have written before is there for all of them after."""
    tl.debug_barrier()
    seen = target
    if GROUP > 1:
        seen = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") + 1
    _wait(arrived, seen, target, GROUP)


@triton.jit
def _iterate(
    work, scalars, steps, num_steps, per_scale, worker, arrived, target, tolerance,
    D: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """P, the first matrix of `work`, to the roots of P per_scale and its inverse.

    `work` goes on with Y, Y, Z, Z, which take turns. Returns how many steps were taken and how many
    arrivals there were: the results are among the second of each after an odd number.
    """
    size: tl.constexpr = WIDTH * WIDTH
    blocks: tl.constexpr = WIDTH // _ROWS
    ys, zs = work + size, work + 3 * size
    # The first step: ZY is Y.
    constant = tl.load(steps)
    slope = tl.load(steps + 1)
    for task in range(worker, 2 * blocks, GROUP):
        part = tl.cast(task, tl.int64)
        first = part % blocks * _ROWS
        rest = (slope * per_scale) * _some(work, first, WIDTH, False)
        q = constant * _eye(first, D, WIDTH) - rest
        if part < blocks:
            _put(ys + size, first, _product(q, _all(work, WIDTH, False) * per_scale), WIDTH)
        else:
            _put(zs + size, first, q, WIDTH)
    target += GROUP
    _meet(arrived, target, GROUP)
    step = 1
    end = num_steps
    while step < end:
        old = tl.cast(step % 2, tl.int64) * size
        new = size - old
        place = steps + 3 * tl.cast(step, tl.int64)
        constant = tl.load(place)
        slope = tl.load(place + 1)
        may_end = tl.load(place + 2) > 0.5
        for task in range(worker, 2 * blocks, GROUP):
            part = tl.cast(task, tl.int64)
            first = part % blocks * _ROWS
            side = part // blocks
            mine = ys + side * (2 * size)
            other = zs - side * (2 * size)
            all_other = _all(other + old, WIDTH, False)
            all_mine = _all(mine + old, WIDTH, False)
            product = _product(_some(mine + old, first, WIDTH, False), all_other)
            eye = _eye(first, D, WIDTH)
            if may_end:
                tl.store(scalars + part, tl.sum((eye - product) * (eye - product)))
            _put(mine + new, first, _product(constant * eye - slope * product, all_mine), WIDTH)
        step += 1
        target += GROUP
        _meet(arrived, target, GROUP)
        if may_end:
            parts = tl.load(scalars + tl.arange(0, 2 * blocks), cache_modifier=".cg")
            if tl.sum(parts, 0) <= tolerance:  # never with NaN
                end = step
    return step, target


@triton.jit
def _write_pull(
    pull, transport, other, first, share, mean, apart, count,
    D: tl.constexpr, WIDTH: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Some rows of the derivatives of the value with respect to covariance, I - transport - share
    other, and, with the first, mean, 2 apart: of the moments, or of each of `count` points."""
    by_matrix = 1.0
    by_mean = 1.0
    if POINTS:
        by_matrix = 2.0 / (count - 1.0)
        by_mean = 1.0 / count
    row = (first + tl.arange(0, _ROWS).to(tl.int64))[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    value = (_eye(first, D, WIDTH) - transport - share * other) * by_matrix
    tl.store(pull + row * D + column, value, mask=(row < D) & (column < D))
    if first == 0:
        channel = tl.arange(0, WIDTH).to(tl.int64)
        tl.store(pull + D * D + channel, mean, mask=channel < D)
        tl.store(pull + (D + 1) * D + channel, 2.0 * apart * by_mean, mask=channel < D)


@triton.jit
def _solve_pair(
    mean_x, s1, mean_y, s2, work, scalars, steps, value_out, pull_x, pull_y,
    num_x, num_y, num_steps, ridge, worker, arrived, target,
    D: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    RELATIVE: tl.constexpr, LEAST: tl.constexpr, TOLERANCE: tl.constexpr,
    X_GRAD: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """What one of a pair's programs does once all moments are there."""
    size: tl.constexpr = WIDTH * WIDTH
    blocks: tl.constexpr = WIDTH // _ROWS
    # P = S1 S2 + e I.
    all_2 = _all_given(s2, D, WIDTH)
    overlap = tl.sum(_all_given(s1, D, WIDTH) * all_2)  # tr C
    epsilon = tl.maximum(tl.cast(ridge, tl.int64).to(tl.float64, bitcast=True), LEAST * overlap)
    for task in range(worker, blocks, GROUP):
        first = tl.cast(task, tl.int64) * _ROWS
        product = _product(_some_given(s1, first, D, WIDTH), all_2)
        _put(work, first, product + epsilon * _eye(first, D, WIDTH), WIDTH)
    target += GROUP
    _meet(arrived, target, GROUP)
    # Above all eigenvalues of P: the root of tr P P, unless rounding leaves nothing of it.
    p = _all(work, WIDTH, False)
    squares = tl.sum(p * _all(work, WIDTH, True))
    norm = tl.sum(p * p)
    close = tl.sqrt(tl.maximum(squares, 0.0)) * (1.0 + 1e-9)
    scale = tl.where(squares > 1e-6 * norm, close, _trace(work, WIDTH, WIDTH, WIDTH))
    # Without any variance there is no ridge either: T is 0 and misses everything.
    flat = scale <= 0.0
    scale = tl.where(flat, 1.0, scale)
    per_scale = 1.0 / scale
    taken, target = _iterate(
        work, scalars, steps, num_steps, per_scale, worker, arrived, target, TOLERANCE,
        D, WIDTH, GROUP,
    )  # fmt: skip
    root = tl.sqrt(scale)
    per_root = tl.where(flat, 0.0, 1.0 / root)
    y = work + size + tl.cast(taken % 2, tl.int64) * size
    z = y + 2 * size
    root_trace = root * _trace(y, WIDTH, WIDTH, WIDTH)
    inverse_trace = per_root * _trace(z, WIDTH, WIDTH, WIDTH)
    variance_x = _trace(s1, D, D, WIDTH)
    variance_y = _trace(s2, D, D, WIDTH)
    share = inverse_trace * 0.0
    if RELATIVE:
        share = inverse_trace * LEAST
    channel = tl.arange(0, WIDTH).to(tl.int64)
    centre_x = tl.load(mean_x + channel, mask=channel < D, other=0.0, cache_modifier=".cg")
    centre_y = tl.load(mean_y + channel, mask=channel < D, other=0.0, cache_modifier=".cg")
    apart = centre_y - centre_x
    # T = P^{-1/2} S1, T' = S2 P^{-1/2}: symmetric but for rounding, made so.
    for task in range(worker, 2 * blocks, GROUP):
        part = tl.cast(task, tl.int64)
        first = part % blocks * _ROWS
        if part < blocks:
            inverse = _some(z, first, WIDTH, False) * per_root
            some_1 = _some_given(s1, first, D, WIDTH)
            transport = _product(inverse, _all_given(s1, D, WIDTH))
            transport += _product(some_1, _all(z, WIDTH, True) * per_root)
            transport *= 0.5
            rest = _eye(first, D, WIDTH) - transport
            product = _product(rest, _all_given(s2, D, WIDTH))
            place = scalars + 2 * blocks + part
            tl.store(place, tl.sum(inverse * transport))
            tl.store(place + blocks, tl.sum(rest * rest))
            tl.store(place + 2 * blocks, tl.sum(rest * product))
            _write_pull(
                pull_y, transport, some_1, first, share, centre_y, apart,
                tl.cast(num_y, tl.float64), D, WIDTH, POINTS,
            )  # fmt: skip
        elif X_GRAD:
            some_2 = _some_given(s2, first, D, WIDTH)
            transport = _product(some_2, _all(z, WIDTH, False) * per_root)
            turned = _some(z, first, WIDTH, True) * per_root
            transport += _product(turned, _all_given(s2, D, WIDTH))
            _write_pull(
                pull_x, transport * 0.5, some_2, first, share, centre_x, -apart,
                tl.cast(num_x, tl.float64), D, WIDTH, POINTS,
            )  # fmt: skip
    last = True
    tl.debug_barrier()
    if GROUP > 1:
        last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") + 1 == target + GROUP
    if last:
        # Two ways to the same number: the second cancels nothing where the sets agree, and the
        # first does not multiply rounding by T where the codes are nearly rank-deficient.
        part = scalars + 2 * blocks + tl.arange(0, blocks)
        missed = epsilon * tl.sum(tl.load(part, cache_modifier=".cg"), 0)
        squared = tl.sum(tl.load(part + blocks, cache_modifier=".cg"), 0)
        factored = tl.sum(tl.load(part + 2 * blocks, cache_modifier=".cg"), 0)
        missed = tl.where(flat, variance_x, missed)
        factored += missed - 2.0 * epsilon * inverse_trace
        direct = variance_x + variance_y - 2.0 * root_trace
        near = squared * variance_y < variance_x + variance_y
        result = tl.sum(apart * apart, 0) + tl.where(near, factored, direct)
        tl.store(value_out, result.to(value_out.dtype.element_ty))


@triton.jit(do_not_specialize=["splits_x", "splits_y", "num_x", "num_y", "num_steps", "ridge"])
def _solve_kernel(
    partial, arrived, m_x, s1, m_y, s2, work, steps, value_out, pull_x, pull_y,
    splits_x, splits_y, num_x, num_y, num_steps, ridge,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
    GROUP: tl.constexpr, FIT_X: tl.constexpr, FIT_Y: tl.constexpr,
    RELATIVE: tl.constexpr, LEAST: tl.constexpr, TOLERANCE: tl.constexpr,
    X_GRAD: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Moments of the sets that are not given, value and gradients of one pair of them.

    work of a pair: _MATRICES matrices [WIDTH, WIDTH], two means, two counts, the tasks' scalars.
    The ridge is given by its bits, as a number comes in float32.
    """
    b = tl.program_id(1).to(tl.int64)
    size: tl.constexpr = WIDTH * WIDTH
    work += b * ((_MATRICES + 1) * size)
    means = work + _MATRICES * size
    counts = means + 2 * WIDTH
    arrived += b
    if FIT_X or FIT_Y:
        own = tl.program_id(0).to(tl.int64)
        cells: tl.constexpr = (WIDTH + EXTRA_ROWS) * WIDTH
        partial += b * (splits_x + splits_y) * cells
        if FIT_X:
            if own < D:
                fit_row(
                    partial, splits_x, own, counts, means, work,
                    D, WIDTH, CHANNELS, D, SPLITS,
                )  # fmt: skip
            elif FIT_Y:
                fit_row(
                    partial + splits_x * cells, splits_y, own - D, counts + 1, means + WIDTH,
                    work + size, D, WIDTH, CHANNELS, D, SPLITS,
                )  # fmt: skip
        else:
            fit_row(
                partial, splits_y, own, counts + 1, means + WIDTH, work + size,
                D, WIDTH, CHANNELS, D, SPLITS,
            )  # fmt: skip
        tl.debug_barrier()
        seen = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") + 1
    elif GROUP > 1:
        seen = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") + 1
    else:
        seen = tl.program_id(0) + 1
    target = tl.num_programs(0)
    worker = seen - 1 - (target - GROUP)
    if worker >= 0:
        _wait(arrived, seen, target, GROUP)
        stride: tl.constexpr = (D + 2) * D
        _solve_pair(
            means if FIT_X else m_x + b * D, work if FIT_X else s1 + b * D * D,
            means + WIDTH if FIT_Y else m_y + b * D, work + size if FIT_Y else s2 + b * D * D,
            work + 2 * size, counts + 2, steps, value_out + b,
            pull_x + b * stride, pull_y + b * stride,
            num_x, num_y, num_steps, ridge, worker, arrived, target,
            D, WIDTH, GROUP, RELATIVE, LEAST, TOLERANCE, X_GRAD, POINTS,
        )  # fmt: skip


@functools.cache
def _steps(device: torch.device) -> Tensor:
    steps = iteration.schedule(iteration.COMMON)
    return torch.tensor(steps, dtype=torch.float64, device=device)


@functools.cache
def _group(b: int, rows: int, d: int, device: torch.device) -> int:
    """Programs that solve one of b pairs together, if `rows` programs begin it.

    All that may ever wait for each other find room on the device.
    """
    tiles = tiles_on(d, device)
    tasks = 2 * tiles.width // _ROWS.value
    room = device.type == "cuda" and b * tasks <= processors(device)
    return tasks if tiles.together and room and (rows == 0 or rows >= tasks) else 1


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

    Sets are given by their mean [B, D] and covariance [B, D, D], or else by their sums. `like`
    [B, ..., D] tells sizes and device. Derivatives are those of each of `counts` points, or of
    the moments.
    """
    b, d = like.shape[0], like.shape[-1]
    tiles = tiles_on(d, like.device)
    channels, width = tiles.channels, tiles.width
    options = dict(dtype=torch.float64, device=like.device)
    value = torch.empty(b, dtype=torch.float64 if double else torch.float32, device=like.device)
    pulls = torch.empty(2 if x_grad else 1, b, d + 2, d, **options)
    work = torch.empty(b, _MATRICES.value + 1, width, width, **options)
    steps = _steps(like.device)
    rows = d * ((x is None) + (y is None))
    group = _group(b, rows, d, like.device)
    if of is not None:
        partial, arrived = of.partial, of.arrived
    elif group > 1:
        partial, arrived = work, torch.zeros(b, dtype=torch.int32, device=like.device)
    else:
        partial, arrived = work, work
    with on_device(like):
        _solve_kernel[(rows or group, b)](
            partial, arrived, *(x or (work, work)), *(y or (work, work)), work, steps, value,
            pulls[0], pulls[-1], *(of.splits if of else (0, 0)), *(counts or (0, 0)),
            len(steps), struct.unpack("q", struct.pack("d", ridge or 0.0))[0],
            d, width, channels, of.together if of else 1, group, x is None, y is None,
            ridge is None, iteration.LEAST_RIDGE, _CONVERGED, x_grad, counts is not None,
            num_warps=tiles.solve_warps, num_stages=1, maxnreg=MOST_REGISTERS,
            enable_fp_fusion=False,
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
    if not tiles_on(means[1].shape[-1], means[1].device).solve_warps:
        return reference.value_and_gradients(
            means, covariances, ridge, x_grad, iteration.roots, iteration.LEAST_RIDGE
        )
    x, y = map(_contiguous, zip(means, covariances, strict=True))
    value, pull_x, pull_y = _solve(None, x, y, y[0], None, ridge, x_grad, True)
    features = None if pull_x is None else pull_x[:, :-2].contiguous()
    mean, codes = pull_y[:, -1].contiguous(), pull_y[:, :-2].contiguous()
    return reference.Gradients(value, mean, features, codes)


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `reference.value_and_pulls`."""
    if not tiles_on(y.shape[-1], y.device).solve_warps:
        return reference.value_and_pulls(
            features, y, ridge, x_grad, double, moments, value_and_gradients
        )
    lead, k = y.shape[:-2], y.shape[-2]
    y = flat(y.detach(), 2).contiguous()
    if isinstance(features, tuple):
        given = _contiguous((flat(features[0], 1), flat(features[1], 2)))
        found = _solve(sums(None, y), given, None, y, (2, k), ridge, x_grad, double)
    else:
        x = flat(features.detach(), 2).contiguous()
        found = _solve(sums(x, y), None, None, y, (x.shape[1], k), ridge, x_grad, double)
    value, pull_x, pull_y = found
    return value.view(lead), pull_x, pull_y


def map_points(
    points: tuple[Tensor | None, Tensor | None],
    pulls: tuple[Tensor | None, Tensor | None],
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """As `reference.map_points`."""
    sets = tuple(None if p is None else flat(p, 2) for p in points)
    found = map_sets(sets, pulls, grad.reshape(-1))
    return tuple(
        None if p is None else to.view(p.shape) for p, to in zip(points, found, strict=True)
    )
