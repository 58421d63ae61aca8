"""Entropies of soft assignments to binary codes, without an array of tokens x codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.bits import bit_entropy, bit_strings, bit_strings_slope
from ..ops.direct import direct, transformable


def bit_entropies(
    logits: Tensor, valid: Tensor, joint_bits: int, *, floor: float = 0.0
) -> tuple[Tensor, Tensor]:
    """E H[q] and H[E q] in nats, for q(c) = prod_m sigmoid(+-logit_m) over bit strings c.

    Args:
        logits: [N, D], of bit m being 1; float32 or float64.
        valid: bool [N], the rows that count.
        joint_bits: H[E q] is that of blocks of so many neighbouring bits, added up.
        floor: probabilities of E q below it count as it inside the logarithm.

    Returns:
        Two scalars, 0 if no row is valid; differentiable once.

    Numerics:
        Within a block of b bits, E q is the mean of outer products of the distributions of its two
        halves: one matrix product of [2^(b/2), N] and [N, 2^(b/2)], and two more of that size for
        the gradient, which is written out. Memory N 2^(b/2) + 2^b.
    """
    return _bit_entropies(logits, valid, joint_bits, floor)[:2]


# Not left to autograd, which would keep and pass over every partial product of bits.
def _bit_entropies_of(
    logits: Tensor, valid: Tensor, joint_bits: int, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """E H[q], H[E q] and E q of all blocks, one after another."""
    logits, valid, count = _counted(logits, valid)
    with torch.autocast(logits.device.type, enabled=False):
        if joint_bits == 1:
            ones = valid.to(logits.dtype)
            either = ones @ torch.sigmoid(-logits), ones @ torch.sigmoid(logits)
            means = torch.stack(either, -1).flatten() / count
        else:
            blocks = logits.split(joint_bits, dim=1)
            halves = [[bit_strings(half, valid) for half in _halves(block)] for block in blocks]
            means = torch.cat([(left.T @ right).flatten() for left, right in halves]) / count
        spread = -(means * means.clamp_min(_least(means, floor)).log()).sum()
        return bit_entropy(logits, valid) / count, spread, means


_bit_entropies_op = torch.library.custom_op(
    "vqkern::bit_entropies", _bit_entropies_of, mutates_args=()
)


@_bit_entropies_op.register_fake
def _(logits, valid, joint_bits, floor):
    strings = sum(2 ** block.shape[1] for block in logits.split(joint_bits, dim=1))
    return logits.new_empty(()), logits.new_empty(()), logits.new_empty(strings)


@torch.library.custom_op("vqkern::bit_entropies_backward", mutates_args=())
def _bit_entropies_backward_op(
    own: Tensor,
    spread: Tensor,
    logits: Tensor,
    valid: Tensor,
    means: Tensor,
    joint_bits: int,
    floor: float,
) -> Tensor:
    """The gradient to logits, given those to E H[q] and to H[E q]."""
    logits, valid, count = _counted(logits, valid)
    least = _least(means, floor)
    slopes = (means.clamp_min(least).log() + (means >= least)) * (-spread / count)
    both = torch.sigmoid(logits) * torch.sigmoid(-logits)
    grad = logits * both * (-own / count)
    with torch.autocast(logits.device.type, enabled=False):
        if joint_bits == 1:
            grad.addcmul_(both, slopes[1::2] - slopes[::2])
        else:
            through = torch.empty_like(logits)
            blocks = logits.split(joint_bits, dim=1), through.split(joint_bits, dim=1)
            sizes = [2 ** block.shape[1] for block in blocks[0]]
            for block, out, slope in zip(*blocks, slopes.split(sizes), strict=True):
                parts = _halves(block)
                left, right = (bit_strings(part, valid) for part in parts)
                slope = slope.reshape(left.shape[1], right.shape[1])
                to_left, to_right = _halves(out)
                bit_strings_slope(parts[0], valid, left, right @ slope.T, to_left)
                bit_strings_slope(parts[1], valid, right, left @ slope, to_right)
            grad += through
    return grad.masked_fill_(~valid[:, None], 0)


@_bit_entropies_backward_op.register_fake
def _(own, spread, logits, valid, means, joint_bits, floor):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_bit_entropies_backward = transformable(_bit_entropies_backward_op)


def _counted(logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both contiguous, logits 0 where not valid; the number of valid rows, at least 1."""
    return (
        logits.masked_fill(~valid[:, None], 0).contiguous(),
        valid.contiguous(),
        valid.sum().clamp_min(1),
    )


def _halves(block: Tensor) -> tuple[Tensor, Tensor]:
    bits = block.shape[1]
    return block.split([(bits + 1) // 2, bits // 2], dim=1)


def _least(means: Tensor, floor: float) -> float:
    return max(floor, torch.finfo(means.dtype).tiny)


def _setup_context(ctx, inputs, output):
    logits, valid, ctx.joint_bits, ctx.floor = inputs
    means = output[2]
    ctx.mark_non_differentiable(means)
    ctx.save_for_backward(logits, valid, means)


def _backward(ctx, own, spread, _means):
    grad = _bit_entropies_backward(own, spread, *ctx.saved_tensors, ctx.joint_bits, ctx.floor)
    return grad, None, None, None


_bit_entropies = direct(_bit_entropies_of, _bit_entropies_op, _setup_context, _backward)
