"""`index_backprop`: the codes behind indices, whose gradient goes through a softmax over all codes.

The softmax of N vectors over K codes is never held: its backward goes over tiles of it twice, as
attention does, once for every row's sums and once for the gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import (
    common_dtype,
    require_float,
    require_index,
    require_matrix,
    require_same_device,
)
from .code_sums.api import code_sums
from .direct import transformable
from .rows import require_in_range

SCORES = ("distance", "dot")
_TILE = {"cpu": 1 << 18, "cuda": 1 << 24}  # rows x codes; on a CPU a tile stays in its cache
_ROWS = 512  # at least, of a tile


def index_backprop(
    z: Tensor,
    codes: Tensor,
    index: Tensor,
    *,
    temperature: float = 1.0,
    scores: str = "distance",
) -> Tensor:
    """codes[index] forward; backward, the choice of a code was a softmax over all of them.

    Index backpropagation (Shi et al. 2025, IBQ): q = P^T C with P = hard + soft - sg[soft], hard
    the one-hot rows of `index` and soft = softmax(s / temperature). With the incoming gradient g,
    p_k the softmax of a row and m = sum_k p_k c_k, the gradient of a score is
    p_k g.(c_k - m) / temperature; it reaches z and all codes through s, and codes[index] gets g.

    Args:
        z: vectors [N, D], floating point.
        codes: codebook [K, D] on the device of `z`; its dtype may differ. A code with a NaN or an
            infinity takes no part in the softmax.
        index: integer [N], in [0, K); -1 gives a row of NaN and no gradient.
        temperature: of the softmax, positive and finite.
        scores: ``"distance"``, s_k = -|z - c_k|^2 / 2, whose largest is the nearest code's, or
            ``"dot"``, s_k = z.c_k, as published. They differ by |c_k|^2 / 2.

    Returns:
        [N, D] in the dtype of `codes`, exactly codes[index].

    Raises:
        TypeError: `z` or `codes` is not floating point, or `index` not integer.
        ValueError: shapes, devices, `temperature` or `scores` do not fit.
        IndexError: an index is below -1 or not below K.

    Numerics:
        The gradients are those of the closed form, in float32 (float64 where an input is), of codes
        centred on their mean. Memory for N * D + K * D and one tile; about ten N K D
        multiply-adds. Deterministic on the CPU. A second derivative raises.
    """
    op = "index_backprop"
    require_float(op, "z", z)
    require_float(op, "codes", codes)
    require_matrix(op, "z", z, rows="N", columns="D")
    require_matrix(op, "codes", codes, rows="K", columns="D")
    require_index(op, "index", index)
    require_same_device(op, z=z, codes=codes, index=index)
    if z.shape[1] != codes.shape[1] or index.shape != z.shape[:1] or len(codes) == 0:
        raise ValueError(
            f"{op}: z [N, D], codes [K, D] with K >= 1 and index [N] must fit, got {list(z.shape)},"
            f" {list(codes.shape)} and {list(index.shape)}"
        )
    require_softmax(op, temperature, scores)
    return _index_backprop(z, codes, index.long(), float(temperature), scores)


def require_softmax(op: str, temperature: float, scores: str) -> None:
    """`temperature` must be positive and finite, `scores` one of `SCORES`."""
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < float("inf"):
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature!r}")
    if scores not in SCORES:
        raise ValueError(f"{op}: scores must be one of {SCORES}, got {scores!r}")


@torch.library.custom_op("vqkern::index_backprop", mutates_args=())
def _index_backprop_op(
    z: Tensor, codes: Tensor, index: Tensor, temperature: float, scores: str
) -> Tensor:
    require_in_range("index_backprop", index, len(codes))
    return codes[index.clamp_min(0)].masked_fill_((index < 0)[:, None], torch.nan)


@_index_backprop_op.register_fake
def _(z, codes, index, temperature, scores):
    return codes.new_empty(index.shape[0], codes.shape[1])


# The backward is an op without a derivative of its own: asking for a second derivative raises.
@torch.library.custom_op("vqkern::index_backprop_backward", mutates_args=())
def _index_backprop_backward_op(
    grad: Tensor, z: Tensor, codes: Tensor, index: Tensor, temperature: float, scores: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        problem = _Problem.prepare(grad, z, codes, index, temperature, scores)
        hard = code_sums(problem.grad, index, len(codes)).total
        z_grad, codes_grad = _gradients(problem)
    return z_grad.to(z.dtype), (codes_grad + hard).to(codes.dtype)


@_index_backprop_backward_op.register_fake
def _(grad, z, codes, index, temperature, scores):
    return torch.empty_like(z, memory_format=torch.contiguous_format), torch.empty_like(
        codes, memory_format=torch.contiguous_format
    )


_index_backprop_backward = transformable(_index_backprop_backward_op)


class _Problem(NamedTuple):
    """Incoming gradients [N, D], z [N, D] and codes [K, D], 0 where they take no part.

    z and codes are centred and divided by the root of the temperature, which then cancels from both
    gradients; the softmax is that of z.c - bias [K].
    """

    grad: Tensor
    z: Tensor
    codes: Tensor
    bias: Tensor
    distance: bool

    @classmethod
    def prepare(
        cls, grad: Tensor, z: Tensor, codes: Tensor, index: Tensor, temperature: float, scores: str
    ) -> _Problem:
        dtype = common_dtype(z, codes)
        root = temperature**0.5
        finite = codes.isfinite().all(-1, keepdim=True)
        taken = torch.where(finite, codes.to(dtype), 0)
        # A softmax does not feel what is added to all scores, and small numbers round less.
        centre = taken.sum(0) / finite.sum().clamp_min(1)
        centred = torch.where(finite, taken - centre, 0) / root
        valid = (index >= 0)[:, None]
        rows = torch.where(valid, z.to(dtype), 0)
        if scores == "distance":
            rows = torch.where(valid, rows - centre, 0)
            bias = centred.square().sum(-1) / 2
        else:
            bias = centred.new_zeros(len(codes))
        bias = torch.where(finite[:, 0], bias, torch.inf)
        grad = torch.where(valid, grad.to(dtype), 0)
        return cls(grad, rows / root, centred, bias, scores == "distance")


def _gradients(problem: _Problem) -> tuple[Tensor, Tensor]:
    """Of z [N, D] and of the codes [K, D] through the scores."""
    z, codes, bias = problem.z, problem.codes, problem.bias
    z_grad, codes_grad, weights = map(torch.zeros_like, (z, codes, bias))
    tile = _TILE.get(z.device.type, 1 << 20)
    rows = max(_ROWS, tile // len(codes))
    step = max(1, tile // rows)
    tiles = [slice(start, start + step) for start in range(0, len(codes), step)]
    for start in range(0, len(z), rows):
        part = slice(start, start + rows)
        own, grad = z[part], problem.grad[part]
        log_total, mean = _softmax_sums(own, codes, bias, tiles)
        level = (grad * mean).sum(-1, keepdim=True)
        for tile in tiles:
            near = codes[tile]
            # p_k g.(c_k - m), of which every row sums to 0 over the codes.
            weight = torch.addmm(log_total, own, near.T, beta=-1).sub_(bias[tile]).exp_()
            weight.mul_(torch.addmm(level, grad, near.T, beta=-1))
            z_grad[part].addmm_(weight, near)
            codes_grad[tile].addmm_(weight.T, own)
            weights[tile] += weight.sum(0)
    if problem.distance:
        codes_grad.sub_(weights[:, None] * codes)
    return z_grad, codes_grad


def _softmax_sums(
    z: Tensor, codes: Tensor, bias: Tensor, tiles: list[slice]
) -> tuple[Tensor, Tensor]:
    """log sum_k exp(s_k) [n, 1] and the mean code [n, D] of the softmax, in one pass over tiles."""
    largest = z.new_full((len(z), 1), torch.finfo(z.dtype).min)
    total, mean = torch.zeros_like(largest), torch.zeros_like(z)
    for tile in tiles:
        score = torch.addmm(-bias[tile], z, codes[tile].T)
        above = torch.maximum(largest, score.amax(1, keepdim=True))
        share = score.sub_(above).exp_()
        before = (largest - above).exp()
        total = total * before + share.sum(1, keepdim=True)
        mean = (mean * before).addmm_(share, codes[tile])
        largest = above
    return largest + total.log(), mean / total


def _setup_context(ctx, inputs, output):
    z, codes, index, ctx.temperature, ctx.scores = inputs
    ctx.save_for_backward(z, codes, index)


def _backward(ctx, grad):
    z_grad, codes_grad = _index_backprop_backward(
        grad, *ctx.saved_tensors, ctx.temperature, ctx.scores
    )
    return z_grad, codes_grad, None, None, None


_index_backprop = transformable(_index_backprop_op, _setup_context, _backward)
