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
_WARPS = 4
_MAX_SPLITS = 128
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
    return tl.where(mask, value - centre[None, :], 0.0)


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


@triton.jit(do_not_specialize=["num_steps"])
def _roots_kernel(
    s1, s2, ridge, steps, root, inverse, num_steps, D: tl.constexpr, WIDTH: tl.constexpr
):
    """P^{1/2} and P^{-1/2} of P = S1 S2 + e I by the coupled iteration of iteration.py."""
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, WIDTH).to(tl.int64)
    j = tl.arange(0, WIDTH).to(tl.int64)
    at = (b * D + i)[:, None] * D + j[None, :]
    mask = (i < D)[:, None] & (j < D)[None, :]
    eye = tl.where((i[:, None] == j[None, :]) & mask, 1.0, 0.0).to(tl.float64)
    left = tl.load(s1 + at, mask=mask, other=0.0)
    right = tl.load(s2 + at, mask=mask, other=0.0)
    y = tl.dot(left, right, out_dtype=tl.float64) + tl.load(ridge + b) * eye
    scale = tl.sum(tl.sum(y * eye, 1), 0)
    # Without any variance T is 0; a scale that is NaN is not flat.
    flat = scale <= 0.0
    scale = tl.where(flat, 1.0, scale)
    y = y / scale
    z = tl.where(flat, 0.0, eye)
    for step in range(0, num_steps):
        a = tl.load(steps + 2 * step)
        c = tl.load(steps + 2 * step + 1)
        q = a * eye - c * tl.dot(z, y, out_dtype=tl.float64)
        y = tl.dot(y, q, out_dtype=tl.float64)
        z = tl.dot(q, z, out_dtype=tl.float64)
    scale = tl.sqrt(scale)
    tl.store(root + at, y * scale, mask=mask)
    tl.store(inverse + at, z / scale, mask=mask)


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
            num_warps=_WARPS, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@functools.cache
def _steps(d: int, device: torch.device) -> Tensor:
    return torch.tensor(iteration.schedule(d), dtype=torch.float64, device=device)


def roots(s1: Tensor, s2: Tensor, ridge: Tensor, to_features: bool) -> Roots:
    """`Roots` of covariances s1, s2 [B, D, D], D at most 64, and ridge e [B], float64."""
    s1, s2 = s1.contiguous(), s2.contiguous()
    ridge = iteration.least_ridge(s1, s2, ridge)
    b, d, _ = s1.shape
    root, inverse = torch.empty_like(s1), torch.empty_like(s1)
    steps = _steps(d, s1.device)
    with torch.cuda.device_of(s1):
        _roots_kernel[(b,)](
            s1, s2, ridge, steps, root, inverse, len(steps), d, padded_width(d),
            num_warps=4 if d <= 16 else 8, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return iteration.assemble(s1, s2, ridge, root, inverse, to_features)
