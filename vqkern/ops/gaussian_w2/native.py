"""The C++ kernels' launchers; see csrc/cpu/moments.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backend as backends


def _address(valid: Tensor | None) -> int:
    return 0 if valid is None else valid.data_ptr()


def moments(x: Tensor, valid: Tensor | None, kernel: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Count [B], mean [B, D] and covariance [B, D, D], float64, of x [B, N, D] up to float32."""
    x = x.detach().float().contiguous()
    valid = None if valid is None else valid.contiguous()
    b, n, d = x.shape
    count = torch.empty(b, dtype=torch.float64)
    mean = torch.empty(b, d, dtype=torch.float64)
    covariance = torch.empty(b, d, d, dtype=torch.float64)
    backends.native().moments(
        x.data_ptr(),
        _address(valid),
        b,
        n,
        d,
        count.data_ptr(),
        mean.data_ptr(),
        covariance.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return count, mean, covariance


def pull_back(
    x: Tensor,
    valid: Tensor | None,
    mean: Tensor,
    matrix: Tensor,
    offset: Tensor,
    kernel: str = "",
) -> Tensor:
    """matrix (x_k - mean) + offset, float32 [B, N, D], 0 where not valid; the rest float64."""
    x = x.detach().float().contiguous()
    valid = None if valid is None else valid.contiguous()
    mean, matrix, offset = mean.contiguous(), matrix.contiguous(), offset.contiguous()
    result = torch.empty_like(x)
    b, n, d = x.shape
    backends.native().pull_back(
        x.data_ptr(),
        _address(valid),
        b,
        n,
        d,
        mean.data_ptr(),
        matrix.data_ptr(),
        offset.data_ptr(),
        result.data_ptr(),
        torch.get_num_threads(),
        kernel,
    )
    return result
