"""The C++ kernel's launcher; see csrc/cpu/code_sums.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backend as backends


def code_sums(z: Tensor, index: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """count int64 [K] and total float32 [K, D] for CPU tensors z [N, D] and index int64 [N]."""
    z = z.detach().float().contiguous()
    index = index.long().contiguous()
    count = z.new_empty(num_codes, dtype=torch.int64)
    total = z.new_empty(num_codes, z.shape[1], dtype=torch.float32)
    backends.native().code_sums(
        z.data_ptr(),
        index.data_ptr(),
        z.shape[0],
        num_codes,
        z.shape[1],
        count.data_ptr(),
        total.data_ptr(),
        torch.get_num_threads(),
    )
    return count, total
