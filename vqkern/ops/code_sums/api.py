"""`code_sums`: how many vectors each code received, and their sum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import backend as backends
from ..checks import (
    require_float,
    require_index,
    require_matrix,
    require_same_device,
    require_whole,
)
from ..direct import direct
from ..rows import require_in_range
from . import reference


class CodeSums(NamedTuple):
    """`count` int64 [K] and `total` float32 (float64 for float64 inputs) [K, D]."""

    count: Tensor
    total: Tensor


def code_sums(z: Tensor, index: Tensor, num_codes: int, *, backend: str = "auto") -> CodeSums:
    """Count and sum of the vectors assigned to each code: n_k and S_k = sum of z_i with index_i =
    k.

    These two are all that an EMA codebook (van den Oord et al. 2017, appendix A.1) and the gradient
    of the codebook loss, proportional to n_k e_k - S_k, need from the assignment.

    Args:
        z: vectors [N, D], floating point.
        index: assigned codes [N], integer, in [0, num_codes); -1 is skipped, its vector never read
            into a sum, so it may hold NaN.
        num_codes: K, at least 1.
        backend: ``"auto"``, ``"torch"``, ``"cpp"`` or ``"triton"``.

    Returns:
        CodeSums(count [K], total [K, D]); absent codes have 0 and zeros. `total` is differentiable
        with respect to `z`.

    Raises:
        TypeError: `z` is not floating point or `index` not integer.
        ValueError: shapes or devices do not fit, or the backend cannot run here.
        IndexError: an index is below -1 or not below `num_codes`.

    Numerics:
        Deterministic: each code's vectors are summed in token order on every backend and thread
        count, in float64 on the CPU, then rounded once.
    """
    require_float("code_sums", "z", z)
    require_matrix("code_sums", "z", z, rows="N", columns="D")
    require_index("code_sums", "index", index)
    if index.shape != z.shape[:1]:
        raise ValueError(
            f"code_sums: index must have shape [{z.shape[0]}] to match z {list(z.shape)}, "
            f"got {list(index.shape)}"
        )
    require_whole("code_sums: num_codes", num_codes)
    require_same_device("code_sums", z=z, index=index)

    def kernel_support() -> str | None:
        return "float64 inputs run on backend='torch' only" if z.dtype == torch.float64 else None

    chosen = backends.choose(
        "code_sums",
        backend,
        z.device,
        {"torch": backends.always, "cpp": kernel_support, "triton": kernel_support},
    )
    total, count = _code_sums(z, index, num_codes, chosen)
    return CodeSums(count, total)


# The sums come first: torch.library.opcheck adds outputs up, and an integer cannot take a float.
def _code_sums_of(z: Tensor, index: Tensor, num_codes: int, backend: str) -> tuple[Tensor, Tensor]:
    require_in_range("code_sums", index, num_codes)
    if backend == "cpp":
        from . import native

        count, total = native.code_sums(z, index, num_codes)
    elif backend == "triton":
        from . import triton_kernels

        count, total = triton_kernels.code_sums(z, index, num_codes)
    else:
        count, total = reference.code_sums(z, index, num_codes)
    return total, count


_code_sums_op = torch.library.custom_op("vqkern::code_sums", _code_sums_of, mutates_args=())


@_code_sums_op.register_fake
def _(z: Tensor, index: Tensor, num_codes: int, backend: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    return (
        z.new_empty((num_codes, z.shape[1]), dtype=dtype),
        z.new_empty(num_codes, dtype=torch.int64),
    )


def _setup_context(ctx, inputs, output):
    z, index, _, _ = inputs
    _, count = output
    ctx.mark_non_differentiable(count)
    ctx.save_for_backward(index)
    ctx.dtype = z.dtype


def _backward(ctx, grad_total, _grad_count):
    (index,) = ctx.saved_tensors
    rows = grad_total[index.clamp_min(0)]
    return torch.where((index >= 0)[:, None], rows, 0).to(ctx.dtype), None, None, None


_code_sums = direct(_code_sums_of, _code_sums_op, _setup_context, _backward)
