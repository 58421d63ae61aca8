"""The C++ kernel's launcher; the certified exact search is csrc/cpu/search.h."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backend as backends
from ..checks import common_dtype
from . import certificate


def nearest_code(z: Tensor, codes: Tensor, metric: str = "l2") -> tuple[Tensor, Tensor]:
    """Index int64 [N] and distance [N]; CPU tensors z [N, D], codes [K, D].

    The distance is float64 if one of them is, else float32.
    """
    index, distance, counts = search(z, codes, metric=metric)
    counts.pop("scores")
    certificate.record(z.shape[0], **counts)
    return index, distance


def search(
    z: Tensor, codes: Tensor, kernel: str = "", metric: str = "l2"
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Index, distance, and how the rows were decided, by one of the module's `cpu_kernels()`.

    The counts: `certified` rows (decided among `candidates` codes in all), `scanned` rows (compared
    with every code), `invalid` rows (not finite), and how many `scores` the screens computed.
    """
    dtype = common_dtype(z, codes)
    z = z.detach().to(dtype).contiguous()
    codes = codes.detach().to(dtype).contiguous()
    n, d = z.shape
    index, distance = z.new_empty(n, dtype=torch.int64), z.new_empty(n)
    counts = backends.native().nearest_code(
        z.data_ptr(),
        codes.data_ptr(),
        n,
        codes.shape[0],
        d,
        index.data_ptr(),
        distance.data_ptr(),
        metric == "cosine",
        dtype == torch.float64,
        torch.get_num_threads(),
        kernel,
    )
    return index, distance, counts
