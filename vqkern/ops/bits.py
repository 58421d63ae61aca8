"""Bits of channels: signs to indices and back, and what their entropies need.

As in rows.py: plain PyTorch anywhere, csrc/cpu/bits.cpp for float32 on the CPU, and no autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend as backends
from .rows import rows_apart, runs_natively


def sign_index(rows: Tensor) -> Tensor:
    """Joint index int64 [N] of rows [N, D], D < 64: bit m says whether channel m is positive.

    -1 where a row is not finite.
    """
    if rows.shape[1] > 63:
        raise ValueError(f"sign_index: rows must have at most 63 channels, got {rows.shape[1]}")
    if not runs_natively(rows):
        places = torch.arange(rows.shape[1], device=rows.device)
        index = ((rows > 0).long() << places).sum(-1)
        # x - x is 0 for finite x alone.
        return index.masked_fill_((rows - rows != 0).any(-1), -1)
    rows = rows.contiguous()
    index = rows.new_empty(len(rows), dtype=torch.int64)
    backends.native().sign_index(
        rows.data_ptr(), *rows.shape, index.data_ptr(), torch.get_num_threads()
    )
    return index


def sign_values(index: Tensor, dim: int, magnitude: float) -> Tensor:
    """float32 [N, dim]: +magnitude where the bit of index [N] is set, else -magnitude.

    An index of -1 gives NaN.
    """
    if not runs_natively(index, dtype=torch.int64):
        places = torch.arange(dim, device=index.device)
        bits = (index[:, None] >> places) & 1
        values = bits.float().mul_(2 * magnitude).sub_(magnitude)
        return values.masked_fill_((index < 0)[:, None], torch.nan)
    index = index.contiguous()
    values = index.new_empty(len(index), dim, dtype=torch.float32)
    backends.native().sign_values(
        index.data_ptr(), magnitude, *values.shape, values.data_ptr(), torch.get_num_threads()
    )
    return values


def bit_strings(logits: Tensor, valid: Tensor) -> Tensor:
    """Probabilities [N, 2^b] of the strings of b independent bits with log-odds logits [N, b].

    Column c holds the string whose bit m is (c >> m) & 1; rows that are not `valid` are 0.
    """
    n, bits = logits.shape
    if not (runs_natively(logits) and rows_apart(logits)):
        strings = valid[:, None].to(logits.dtype)
        for bit in logits.unbind(1):
            bit = torch.where(valid, bit, 0)[:, None]
            strings = torch.cat([strings * torch.sigmoid(-bit), strings * torch.sigmoid(bit)], 1)
        return strings
    strings = logits.new_empty(n, 2**bits)
    backends.native().bit_strings(
        logits.data_ptr(), logits.stride(0), valid.data_ptr(), n, bits, strings.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return strings


def bit_strings_slope(
    logits: Tensor, valid: Tensor, strings: Tensor, grad: Tensor, out: Tensor
) -> None:
    """Writes the gradient to logits [N, b] of a value with `grad` to the strings [N, 2^b] to `out`,
    laid out as logits are; 0 where not `valid`. `grad` is overwritten."""
    n, bits = logits.shape
    if not (runs_natively(logits, grad) and rows_apart(logits) and out.stride() == logits.stride()):
        grad *= strings
        for m in reversed(range(bits)):
            zero, one = grad.chunk(2, dim=1)
            bit = torch.where(valid, logits[:, m], 0)
            own = one.sum(1) * torch.sigmoid(-bit) - zero.sum(1) * torch.sigmoid(bit)
            out[:, m] = torch.where(valid, own, 0)
            grad = zero + one
        return
    backends.native().bit_strings_slope(
        logits.data_ptr(), logits.stride(0), valid.data_ptr(), n, bits, strings.data_ptr(),
        grad.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def bit_entropy(logits: Tensor, valid: Tensor) -> Tensor:
    """The sum over valid rows of the entropies, in nats, of bits with log-odds logits [N, D]."""
    if not runs_natively(logits):
        # h(sigmoid(x)) = softplus(x) - x sigmoid(x), symmetric in x, free of cancellation at -|x|.
        low = -torch.where(valid[:, None], logits, 0).abs()
        per_bit = F.softplus(low) - low * low.sigmoid()
        return torch.where(valid[:, None], per_bit, 0).sum()
    logits = logits.contiguous()
    return logits.new_tensor(
        backends.native().bit_entropy(
            logits.data_ptr(), valid.data_ptr(), *logits.shape, torch.get_num_threads()
        )
    )
