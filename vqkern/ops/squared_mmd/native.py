"""The C++ kernel's launcher; see csrc/cpu/squared_mmd.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backend as backends
from ..checks import common_dtype


def squared_mmd(
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    unbiased: bool,
    x_grad: bool,
    y_grad: bool,
    kernel: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Value [], gradient [N, D] and gradient [M, D]; a gradient not asked for is [0].

    float64 if an input is, else float32.
    """
    return swept(x, y, bandwidths, unbiased, x_grad, y_grad, kernel)[0]


def swept(
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    unbiased: bool,
    x_grad: bool,
    y_grad: bool,
    kernel: str = "",
) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """What `squared_mmd` returns, and whether it took float64 arithmetic."""
    dtype = common_dtype(x, y)
    x, y = x.detach().to(dtype).contiguous(), y.detach().to(dtype).contiguous()
    bandwidths = bandwidths.double().contiguous()
    gx = torch.empty_like(x) if x_grad else x.new_empty(0)
    gy = torch.empty_like(y) if y_grad else y.new_empty(0)
    value, wide = backends.native().squared_mmd(
        x.data_ptr(),
        y.data_ptr(),
        x.shape[0],
        y.shape[0],
        x.shape[1],
        bandwidths.data_ptr(),
        len(bandwidths),
        unbiased,
        gx.data_ptr() if x_grad else 0,
        gy.data_ptr() if y_grad else 0,
        dtype == torch.float64,
        torch.get_num_threads(),
        kernel,
    )
    return (x.new_tensor(value), gx, gy), wide
