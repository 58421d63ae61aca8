"""Entropies of soft assignments to binary codes, without an array of tokens x codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    with torch.autocast(logits.device.type, enabled=False):
        for block in logits.split(joint_bits, dim=1):
            middle = (block.shape[1] + 1) // 2
            left = _bit_strings(block[:, :middle])
            right = _bit_strings(block[:, middle:])
            left = torch.where(valid[:, None], left, 0)
            mean = left.T @ right / count
            least = max(floor, torch.finfo(mean.dtype).tiny)
            spread = spread - (mean * mean.clamp_min(least).log()).sum()
    return own, spread


def _bit_strings(logits: Tensor) -> Tensor:
    """The probabilities [N, 2^b] of all bit strings; of no bits, ones [N, 1]."""
    probability = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        pair = torch.stack((torch.sigmoid(-bit), torch.sigmoid(bit)), dim=1)
        probability = (probability[:, :, None] * pair[:, None, :]).flatten(1)
    return probability
