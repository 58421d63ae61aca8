"""Triton kernels of the Gaussian operations, all float64 inside.

Two streaming passes over the points, moments on the way forward and an affine map of them on the
way back, and the D x D problem of up to 64 channels, one program each. Products of points are
float64 tensor-core products: a nearly rank-deficient codebook leaves a float32 Gram matrix nothing
of its small eigenvalues. A set is cut into splits that depend on its size and the device alone,
whose sums are added in order: same inputs, same bits.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import iteration
from .reference import Roots

_ROWS = 32  # points read together
_CHANNELS = 32  # channels of one side of a tile, at most
_WARPS = 8
_ITERATE_WARPS = 4
_MAX_SPLITS = 128
_CHUNK = 16  # columns of a D x D factor read together
_SAMPLED = 64  # points whose mean is the shift


@triton.jit
def _centred(x, valid, origin, b, row, channel, num_rows, D: tl.constexpr, MASKED: tl.constexpr):
    """x[b, row] - origin[b] [ROWS, CHANNELS] in float64; 0 beyond the rows, channels and mask."""
    inside = row < num_rows
    if MASKED:
        inside = inside & (tl.load(valid + b * num_rows + row, mask=inside, other=0) != 0)
    mask = inside[:, None] & (channel < D)[None, :]
    at = (b * num_rows + row)[:, None] * D + channel[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float64)
    centre = tl.load(origin + b * D + channel, mask=channel < D, other=0.0)
    result = tl.where(mask, value - centre[None, :], 0.0)
    # A sum over one element changes nothing, and keeps Triton 3.7 from choosing the operand layout
    # of a float64 product by the width of the points in memory, on which sm_80 and sm_90 fail.
    return tl.sum(result[:, :, None], 2)


@triton.jit(do_not_specialize=["num_rows", "blocks_per_split"])
def _moments_kernel(
    x, valid, origin, gram, sums,
    num_rows, blocks_per_split,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of the Gram matrix of one split of one set, and the sums of its channels."""
    split = tl.program_id(0).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    tiles: tl.constexpr = WIDTH // CHANNELS
    left = (tl.program_id(1) // tiles).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    right = (tl.program_id(1) % tiles).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    product = tl.zeros([CHANNELS, CHANNELS], tl.float64)
    total = tl.zeros([CHANNELS], tl.float64)
    for block in range(0, blocks_per_split):
        row = (split * blocks_per_split + block) * ROWS + tl.arange(0, ROWS)
        a = _centred(x, valid, origin, b, row, left, num_rows, D, MASKED)
        z = _centred(x, valid, origin, b, row, right, num_rows, D, MASKED)
        product = tl.dot(tl.trans(a), z, product, out_dtype=tl.float64)
        total += tl.sum(z, 0)
    at = b * tl.num_programs(0) + split
    tl.store(gram + (at * WIDTH + left)[:, None] * WIDTH + right[None, :], product)
    if tl.program_id(1) // tiles == 0:
        tl.store(sums + at * WIDTH + right, total)


@triton.jit(do_not_specialize=["num_rows"])
def _pull_back_kernel(
    x, valid, origin, matrix, offset, out,
    num_rows,
    D: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """out[b, row] = (x[b, row] - origin[b]) matrix[b] + offset[b], for one tile of out."""
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    to = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    start = tl.load(offset + b * D + to, mask=to < D, other=0.0)
    result = tl.zeros([ROWS, CHANNELS], tl.float64) + start[None, :]
    for first in range(0, WIDTH, CHANNELS):
        channel = first + tl.arange(0, CHANNELS).to(tl.int64)
        z = _centred(x, valid, origin, b, row, channel, num_rows, D, MASKED)
        weight = tl.load(
            matrix + (b * D + channel)[:, None] * D + to[None, :],
            mask=(channel < D)[:, None] & (to < D)[None, :],
            other=0.0,
        )
        result = tl.dot(z, weight, result, out_dtype=tl.float64)
    inside = row < num_rows
    if MASKED:
        live = tl.load(valid + b * num_rows + row, mask=inside, other=0) != 0
        result = tl.where(live[:, None], result, 0.0)
    at = (b * num_rows + row)[:, None] * D + to[None, :]
    tl.store(out + at, result.to(tl.float32), mask=inside[:, None] & (to < D)[None, :])


@triton.jit
def _multiply(a, b, row, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Some rows of a b for [WIDTH, WIDTH] matrices in memory, CHUNK columns of a at a time."""
    j = tl.arange(0, WIDTH).to(tl.int64)
    result = tl.zeros([row.shape[0], WIDTH], tl.float64)
    for start in range(0, WIDTH, CHUNK):
        k = start + tl.arange(0, CHUNK).to(tl.int64)
        left = tl.load(a + row[:, None] * WIDTH + k[None, :])
        right = tl.load(b + k[:, None] * WIDTH + j[None, :])
        result = tl.dot(left, right, result, out_dtype=tl.float64)
    return result


@triton.jit(do_not_specialize=["num_steps"])
def _iterate_kernel(
    y, z, q, steps, num_steps, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """All steps of the coupled iteration of iteration.py on one pair y, z [WIDTH, WIDTH].

    y and z hold two such pairs each, which take turns: a step reads one and writes the other. The
    matrices stay in the first-level cache; barriers keep the program's threads in step. Triton 3.7
    fails on float64 products of 64 rows for sm_100, hence ROWS at a time.
    """
    b = tl.program_id(0).to(tl.int64) * WIDTH * WIDTH
    y, z, q = y + 2 * b, z + 2 * b, q + b
    j = tl.arange(0, WIDTH).to(tl.int64)
    for step in range(0, num_steps):
        at_step = tl.cast(step, tl.int64) * 2
        constant = tl.load(steps + at_step)
        slope = tl.load(steps + at_step + 1)
        old = tl.cast(step % 2, tl.int64) * (WIDTH * WIDTH)
        new = WIDTH * WIDTH - old
        for first in range(0, WIDTH, ROWS):
            row = first + tl.arange(0, ROWS).to(tl.int64)
            eye = tl.where(row[:, None] == j[None, :], constant, 0.0)
            product = _multiply(z + old, y + old, row, WIDTH, CHUNK)
            tl.store(q + row[:, None] * WIDTH + j[None, :], eye - slope * product)
        tl.debug_barrier()
        for first in range(0, WIDTH, ROWS):
            row = first + tl.arange(0, ROWS).to(tl.int64)
            at = row[:, None] * WIDTH + j[None, :]
            tl.store(y + new + at, _multiply(y + old, q, row, WIDTH, CHUNK))
            tl.store(z + new + at, _multiply(q, z + old, row, WIDTH, CHUNK))
        tl.debug_barrier()


def padded_width(d: int) -> int:
    """Channels of a padded D x D matrix: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(d))


def _tile(d: int) -> tuple[int, int]:
    channels = min(padded_width(d), _CHANNELS)
    return channels, triton.cdiv(d, channels) * channels


def _shift(x: Tensor, valid: Tensor | None) -> Tensor:
    """A float64 point [B, D] near the mean, and exactly on the points where all are equal."""
    step = max(1, x.shape[1] // _SAMPLED)
    sample = x[:, ::step].double()
    if valid is None:
        return sample.sum(1) / max(1, sample.shape[1])
    live = valid[:, ::step]
    total = torch.where(live[..., None], sample, 0).sum(1)
    return total / live.sum(1).clamp_min(1)[:, None]


def _splits(n: int, programs: int, device: torch.device) -> int:
    processors = 2
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(triton.cdiv(4 * processors, programs), triton.cdiv(n, _ROWS), _MAX_SPLITS))


def moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count [B], mean [B, D] and covariance [B, D, D], float64, of x [B, N, D] up to float32."""
    x = x.detach().contiguous()
    (b, n, d), device = x.shape, x.device
    channels, width = _tile(d)
    tiles = (width // channels) ** 2
    origin = _shift(x, valid)
    count = torch.full((b,), float(n), dtype=torch.float64, device=device)
    if valid is not None:
        count = valid.sum(-1).double()
    splits = _splits(n, tiles * b, device)
    gram = torch.empty(b, splits, width, width, dtype=torch.float64, device=device)
    sums = torch.empty(b, splits, width, dtype=torch.float64, device=device)
    mask = x if valid is None else valid.contiguous().view(torch.uint8)
    with torch.cuda.device_of(x):
        _moments_kernel[(splits, tiles, b)](
            x, mask, origin, gram, sums, n, triton.cdiv(triton.cdiv(n, _ROWS), splits), d, width,
            channels, _ROWS, valid is not None,
            num_warps=_WARPS, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    size = count.clamp_min(1)[:, None]
    total = sums.sum(1)[:, :d]
    scatter = gram.sum(1)[:, :d, :d] - total[:, :, None] * (total / size)[:, None]
    return count, origin + total / size, scatter / (count - 1).clamp_min(1)[:, None, None]


def pull_back(
    x: Tensor, valid: Tensor | None, mean: Tensor, matrix: Tensor, offset: Tensor
) -> Tensor:
    """matrix (x_k - mean) + offset, float32 [B, N, D], 0 where not valid; the rest float64."""
    x = x.detach().contiguous()
    b, n, d = x.shape
    channels, width = _tile(d)
    out = torch.empty(b, n, d, dtype=torch.float32, device=x.device)
    if n == 0:
        return out
    mask = x if valid is None else valid.contiguous().view(torch.uint8)
    with torch.cuda.device_of(x):
        _pull_back_kernel[(triton.cdiv(n, _ROWS), width // channels, b)](
            x, mask, mean.contiguous(), matrix.contiguous(), offset.contiguous(), out, n, d, width,
            channels, _ROWS, valid is not None,
            num_warps=_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@functools.cache
def _steps(device: torch.device) -> Tensor:
    return torch.tensor(iteration.schedule(), dtype=torch.float64, device=device)


def roots(s1: Tensor, s2: Tensor, ridge: Tensor, to_features: bool) -> Roots:
    """`Roots` of covariances s1, s2 [B, D, D], D at most 64, and ridge e [B], float64."""

    def iterate(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        b, d, _ = y.shape
        width = padded_width(d)
        pairs = [torch.zeros(b, 2, width, width, dtype=y.dtype, device=y.device) for _ in "yz"]
        for pair, start in zip(pairs, (y, z), strict=True):
            pair[:, 0, :d, :d] = start
        q, steps = torch.empty_like(pairs[0][:, 0]), _steps(y.device)
        with torch.cuda.device_of(y):
            _iterate_kernel[(b,)](
                *pairs, q, steps, len(steps), width, min(width, _ROWS), _CHUNK,
                num_warps=_ITERATE_WARPS, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
        return tuple(pair[:, len(steps) % 2, :d, :d] for pair in pairs)

    return iteration.roots(s1, s2, ridge, to_features, iterate)
