"""Entropies of soft assignments to binary codes, without an array of tokens x codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bit_entropies(logits: Tensor, valid: Tensor, joint_bits: int) -> tuple[Tensor, Tensor]:
    """E H[q] and H[E q] in nats, for q(c) = prod_m sigmoid(+-logit_m) over bit strings c.

    Args:
        logits: [N, D], of bit m being 1; float32 or float64.
        valid: bool [N], the rows that count.
        joint_bits: H[E q] is that of blocks of so many neighbouring bits, added up.

    Returns:
        Two scalars, 0 if no row is valid.

    Numerics:
        Within a block of b bits, E q is the mean of outer products of the distributions of its two
        halves: one matrix product of [2^(b/2), N] and [N, 2^(b/2)]. Memory N 2^(b/2) + 2^b.
    """
    logits = torch.where(valid[:, None], logits, 0)
    count = valid.sum().clamp_min(1)
    # h(sigmoid(x)) = softplus(x) - x sigmoid(x), symmetric in x, and free of cancellation at -|x|.
    low = -logits.abs()
    per_bit = F.softplus(low) - low * low.sigmoid()
    own = torch.where(valid[:, None], per_bit, 0).sum() / count
    spread = logits.new_zeros(())
    if joint_bits == 1:
        for sign in (logits, -logits):
            mean = torch.where(valid[:, None], sign.sigmoid(), 0).sum(0) / count
            spread = spread - (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()
        return own, spread
    with torch.autocast(logits.device.type, enabled=False):
        for block in logits.split(joint_bits, dim=1):
            spread = spread + _Spread.apply(block, valid)
    return own, spread


class _Spread(torch.autograd.Function):
    """H[E q] of one block of bits.

    Its gradient is written out, as autograd would keep and pass over every product of bits: with P
    the probabilities of all strings and w = P dH/dP, that of logit m is
    sum_c w_c (c_m - sigmoid(logit_m)).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, valid: Tensor) -> Tensor:
        left, right, _ = _halves(logits, valid)
        mean = left.T @ right / valid.sum().clamp_min(1)
        ctx.save_for_backward(logits, valid, mean)
        return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, valid, mean = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            left, right, strings = _halves(logits, valid)
            slope = mean.clamp_min(torch.finfo(mean.dtype).tiny).log().add_(1)
            slope.mul_(-grad / valid.sum().clamp_min(1))
            parts = (right @ slope.T).mul_(left), (left @ slope).mul_(right)
            pairs = list(zip(parts, strings, strict=True))
            ones = [part @ own for part, own in pairs]
            sums = [part.sum(1, keepdim=True).expand(-1, own.shape[1]) for part, own in pairs]
        return torch.cat(ones, 1) - logits.sigmoid() * torch.cat(sums, 1), None


def _halves(logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Probabilities [N, 2^b] of the strings of either half of the bits, the left ones 0 in rows
    that do not count, and the strings [2^b, b] themselves."""
    probabilities, strings = [], []
    for part in logits.split([(logits.shape[1] + 1) // 2, logits.shape[1] // 2], dim=1):
        bits = part.shape[1]
        place = torch.arange(2**bits, device=part.device)[:, None]
        ones = (place >> torch.arange(bits, device=part.device) & 1).to(part.dtype)
        # Both logarithms are sums of terms of one sign: nothing cancels.
        logs = torch.cat([F.logsigmoid(part), F.logsigmoid(-part)], 1)
        probabilities.append((logs @ torch.cat([ones, 1 - ones], 1).T).exp_())
        strings.append(ones)
    left, right = probabilities
    return torch.where(valid[:, None], left, 0), right, strings
