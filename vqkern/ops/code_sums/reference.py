"""The specification of `code_sums`: sort by (code, token), then sum each run in order."""

from __future__ import annotations

import torch
from torch import Tensor


def code_sums(z: Tensor, index: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """count int64 [K] and total [K, D] (float64 for float64 z, else float32)."""
    out_dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    tokens = (index >= 0).nonzero().squeeze(-1)
    code, order = index[tokens].sort(stable=True)
    tokens = tokens[order]
    present, lengths = torch.unique_consecutive(code, return_counts=True)
    count = torch.zeros(num_codes, dtype=torch.int64, device=z.device)
    total = torch.zeros(num_codes, z.shape[1], dtype=out_dtype, device=z.device)
    if len(tokens):
        count[present] = lengths
        sums = torch.segment_reduce(z[tokens].double(), "sum", lengths=lengths)
        total[present] = sums.to(out_dtype)
    return count, total
