"""`nearest_code`: index of and distance to the nearest of K codes, exact on every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import backend as backends
from ..checks import common_dtype, require_float, require_matrix, require_same_device
from ..code_sums.api import code_sums
from ..direct import direct, transformable
from . import reference

METRICS = ("l2", "cosine")
MOST_CUDA_CHANNELS = 256
MOST_CUDA_CODES = 2**30


class NearestCode(NamedTuple):
    """`index` int64 [...] and `distance` float32 (float64 for float64 inputs) [...]."""

    index: Tensor
    distance: Tensor


def nearest_code(
    z: Tensor, codes: Tensor, *, metric: str = "l2", backend: str = "auto"
) -> NearestCode:
    """The nearest code of every vector: argmin_k |z - e_k|^2, or argmax_k cos(z, e_k).

    Args:
        z: vectors [..., D], floating point, any strides.
        codes: codebook [K, D], K >= 1, on the device of `z`; its dtype may differ.
        metric: ``"l2"`` (distance: squared L2) or ``"cosine"`` (distance: 1 - cosine; a code of
            zeros has no direction and is chosen only where all codes are zeros; but a row of zeros
            has cosine 0 with every code and gets the first, whatever that is).
        backend: ``"auto"``, ``"torch"``, ``"cpp"``, ``"triton"`` or ``"cuda"`` (Hopper GPUs).

    Returns:
        NearestCode(index [...], distance [...]). `distance` is differentiable with respect to both
        arguments, in reverse mode; `index` is not. A row with a NaN or an infinity gets index -1
        and distance +inf and no gradient; a code with one is never chosen.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit, the codebook is empty, or the metric or the
            backend is unknown or cannot run here.

    Numerics:
        The index is that of real arithmetic on the inputs as given, ties to the lowest index: a
        screen with a proved error bound keeps all codes that could be nearest, and those are
        decided exactly; `certificates` counts how. float16 and bfloat16 are taken at their exact
        values. The distance is summed in float64, in an order that is fixed on each backend.
        Memory grows with N * D + K * D, never with N * K. Same inputs, same bits.
    """
    require_float("nearest_code", "z", z)
    require_float("nearest_code", "codes", codes)
    require_matrix("nearest_code", "codes", codes, rows="K", columns="D")
    if codes.shape[0] == 0:
        raise ValueError("nearest_code: codes is empty (K = 0); it must hold at least one code")
    if z.dim() == 0 or z.shape[-1] != codes.shape[1]:
        raise ValueError(
            f"nearest_code: z must have shape [..., {codes.shape[1]}] to match codes "
            f"{list(codes.shape)}, got {list(z.shape)}"
        )
    require_same_device("nearest_code", z=z, codes=codes)
    if metric not in METRICS:
        raise ValueError(f"nearest_code: metric must be one of {METRICS}, got {metric!r}")
    chosen = _choose(z, codes, metric, backend)
    if z.dim() == 2:
        distance, index = _nearest_code(z, codes, metric, chosen)
        return NearestCode(index, distance)
    distance, index = _nearest_code(z.reshape(-1, z.shape[-1]), codes, metric, chosen)
    return NearestCode(index.reshape(z.shape[:-1]), distance.reshape(z.shape[:-1]))


def _choose(z: Tensor, codes: Tensor, metric: str, backend: str) -> str:
    def gpu_support() -> str | None:
        if metric != "l2":
            return f"metric={metric!r} runs on backend='torch' there"
        if common_dtype(z, codes) == torch.float64:
            return "float64 inputs run on backend='torch' there"
        return None

    def cuda_support() -> str | None:
        if codes.shape[1] > MOST_CUDA_CHANNELS:
            return f"more than {MOST_CUDA_CHANNELS} channels run on backend='triton'"
        if len(codes) > MOST_CUDA_CODES:
            return f"it takes at most {MOST_CUDA_CODES} codes"
        return gpu_support()

    return backends.choose(
        "nearest_code",
        backend,
        z.device,
        {
            "torch": backends.always,
            "cpp": backends.always,
            "triton": gpu_support,
            "cuda": cuda_support,
        },
    )


# The distance comes first: torch.library.opcheck adds outputs up, and an integer cannot take a
# float.
def _nearest_code_of(z: Tensor, codes: Tensor, metric: str, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "cpp":
        from . import native

        index, distance = native.nearest_code(z, codes, metric)
    elif backend == "cuda":
        from . import hopper

        index, distance = hopper.nearest_code(z, codes)
    elif backend == "triton":
        from . import triton_kernels

        index, distance = triton_kernels.nearest_code(z, codes)
    else:
        index, distance = reference.nearest_code(z, codes, metric)
    return distance, index


_nearest_code_op = torch.library.custom_op(
    "vqkern::nearest_code", _nearest_code_of, mutates_args=()
)


@_nearest_code_op.register_fake
def _(z: Tensor, codes: Tensor, metric: str, backend: str) -> tuple[Tensor, Tensor]:
    n = z.shape[0]
    return z.new_empty(n, dtype=common_dtype(z, codes)), z.new_empty(n, dtype=torch.int64)


# The backward is an op without a derivative of its own: asking for a second derivative raises.
@torch.library.custom_op("vqkern::nearest_code_backward", mutates_args=())
def _nearest_code_backward_op(
    grad: Tensor, z: Tensor, codes: Tensor, index: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    dtype = common_dtype(z, codes)
    valid = (index >= 0)[:, None]
    nearest = codes[index.clamp_min(0)].to(dtype)
    # Rows without a code may hold NaN, and NaN * 0 is NaN: replace, do not multiply.
    vectors = torch.where(valid, z.to(dtype), nearest)
    if metric == "l2":
        z_grad = 2 * grad[:, None] * (vectors - nearest)
        code_grad = -z_grad
    else:
        # d(1 - cos)/da = -(unit b - cos unit a) / |a|, and 0 at a = 0.
        z_norm = vectors.norm(dim=-1, keepdim=True)
        code_norm = nearest.norm(dim=-1, keepdim=True)
        defined = valid & (z_norm > 0) & (code_norm > 0)
        z_unit, code_unit = vectors / z_norm, nearest / code_norm
        cosine = (z_unit * code_unit).sum(-1, keepdim=True)
        z_grad = -grad[:, None] * (code_unit - cosine * z_unit) / z_norm
        code_grad = -grad[:, None] * (z_unit - cosine * code_unit) / code_norm
        z_grad = torch.where(defined, z_grad, 0)
        code_grad = torch.where(defined, code_grad, 0)
    z_grad = torch.where(valid, z_grad, 0)
    code_grad = torch.where(valid, code_grad, 0)
    total = code_sums(code_grad, index, len(codes)).total
    return z_grad.to(z.dtype), total.to(codes.dtype)


@_nearest_code_backward_op.register_fake
def _(grad, z, codes, index, metric):
    return torch.empty_like(z, memory_format=torch.contiguous_format), torch.empty_like(
        codes, memory_format=torch.contiguous_format
    )


_nearest_code_backward = transformable(_nearest_code_backward_op)


def _setup_context(ctx, inputs, output):
    z, codes, ctx.metric, _ = inputs
    _, index = output
    ctx.mark_non_differentiable(index)
    ctx.save_for_backward(z, codes, index)


def _backward(ctx, grad_distance, _grad_index):
    z, codes, index = ctx.saved_tensors
    z_grad, codes_grad = _nearest_code_backward(grad_distance, z, codes, index, ctx.metric)
    return z_grad, codes_grad, None, None


_nearest_code = direct(_nearest_code_of, _nearest_code_op, _setup_context, _backward)
