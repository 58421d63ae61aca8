"""The C++ kernel's launcher; the certified exact search is csrc/cpu/nearest_code.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backend as backends


def nearest_code(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Index int64 [N] and squared distance float32 [N]; CPU tensors z [N, D], codes [K, D]."""
    index, distance, _ = search(z, codes)
    return index, distance


def search(z: Tensor, codes: Tensor, kernel: str = "") -> tuple[Tensor, Tensor, dict[str, int]]:
    """Index, distance, and how the rows were decided, by one of the module's `cpu_kernels()`.

    The counts: `certified` rows (decided among `candidates` codes in all), `scanned` rows (compared
    with every code), `invalid` rows (not finite).
    """
    z = z.detach().float().contiguous()
    codes = codes.detach().float().contiguous()
    index = torch.empty(len(z), dtype=torch.int64)
    distance = torch.empty(len(z), dtype=torch.float32)
    counts = backends.native().nearest_code(
        z.data_ptr(),
        codes.data_ptr(),
        z.shape[0],
        codes.shape[0],
        codes.shape[1],
        index.data_ptr(),
        distance.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return index, distance, counts
