"""`squared_mmd`: the squared maximum mean discrepancy between two point sets."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import backend as backends
from ..checks import common_dtype, require_float, require_matrix, require_same_device
from ..direct import direct, needs_grad, undifferentiated
from . import reference

# Multiples of the mean heuristic used when no bandwidths are given.
DEFAULT_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
# The C++ and Triton kernels keep the bandwidths of a call in a fixed small table.
MOST_BANDWIDTHS = 64
ESTIMATORS = ("biased", "unbiased")


def squared_mmd(
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor | Sequence[float] | None = None,
    *,
    estimator: str = "biased",
    backend: str = "auto",
) -> Tensor:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y), k(a, b) = sum_i exp(-|a - b|^2 / b_i).

    The alignment loss of MMD VQ (VQ-Transplant eq. 5); with its sigma_i, b_i = 2 sigma_i^2.

    Args:
        x: points [N, D], floating point.
        y: points [M, D], on the device of `x`.
        bandwidths: the b_i [B], positive, in units of squared distance. None: `mean_bandwidth(x,
            y)` times (1/4, 1/2, 1, 2, 4), detached.
        estimator: ``"biased"`` (V-statistic, the papers') or ``"unbiased"`` (drops i = j; may be
            negative).
        backend: ``"auto"``, ``"torch"``, ``"cpp"`` or ``"triton"``.

    Returns:
        Scalar, float32 (float64 if an input is), differentiable with respect to `x` and `y`;
        gradients are computed in the same sweep as the value. 0 if all points are equal.

    Raises:
        TypeError: `x` or `y` is not a floating-point tensor.
        ValueError: shapes or devices do not fit, a set has too few points, a bandwidth is not
            positive and finite, or estimator or backend is unknown.

    Numerics:
        Points are centred on their common mean; memory grows with N + M. "torch" works in float64.
        "cpp" takes float32 points in float32, sums of more than 32 pairs in float64, by products of
        centred points, or by differences (half as long again) where kernels are so narrow that the
        products' rounding would show. It estimates what rounding does to the difference of the two
        sets' pulls, and where that may exceed 1e-5 of the largest gradient, or 1e-6 of the value
        and 1e-9 of the means that cancel in it, it sweeps again in float64 (two to four times as
        long): small sets, sets that nearly agree point by point. "triton" takes
        points as two float16 parts, adds pulls in 64-bit integers, decides on the device by the
        same estimate, and sums more than eight bandwidths in float64. The same inputs give the
        same bits. A non-finite point gives a non-finite value.
    """
    require_float("squared_mmd", "x", x)
    require_float("squared_mmd", "y", y)
    require_matrix("squared_mmd", "x", x, rows="N", columns="D")
    require_matrix("squared_mmd", "y", y, rows="M", columns="D")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"squared_mmd: x {list(x.shape)} and y {list(y.shape)} must have the same D"
        )
    require_same_device("squared_mmd", x=x, y=y)
    if estimator not in ESTIMATORS:
        raise ValueError(f"squared_mmd: estimator must be one of {ESTIMATORS}, got {estimator!r}")
    least = 1 if estimator == "biased" else 2
    for name, points in (("x", x), ("y", y)):
        if len(points) < least:
            raise ValueError(
                f"squared_mmd: {name} must hold at least {least} point(s) for the {estimator} "
                f"estimator, got {len(points)}"
            )
    if bandwidths is None:
        mean = mean_bandwidth(x, y)
        # Multiples from the host would be a copy, which no CUDA graph can hold.
        bandwidths = torch.stack([mean * multiple for multiple in DEFAULT_MULTIPLES])
    else:
        bandwidths = _checked_bandwidths(bandwidths, x.device)

    def kernel_support() -> str | None:
        if len(bandwidths) > MOST_BANDWIDTHS:
            return f"more than {MOST_BANDWIDTHS} bandwidths run on backend='torch' only"
        return None

    def triton_support() -> str | None:
        if common_dtype(x, y) == torch.float64:
            return "float64 inputs do not run on backend='triton'"
        return kernel_support()

    chosen = backends.choose(
        "squared_mmd",
        backend,
        x.device,
        {"torch": backends.always, "cpp": kernel_support, "triton": triton_support},
    )
    grad = torch.is_grad_enabled()
    value, _, _ = _squared_mmd(
        x,
        y,
        bandwidths,
        estimator == "unbiased",
        grad and needs_grad(x),
        grad and needs_grad(y),
        chosen,
    )
    return value


def mean_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance between distinct points of the joint sample: the mean heuristic.

    b = (2 n sum |z|^2 - 2 |sum z|^2) / (n^2 - n), twice the sum of the channels' variances, over
    the n points of x [N, D] and y [M, D] together, which needs no pairwise pass. Float64 scalar,
    detached, floored at 1e-12 of the mean squared norm (and above zero), so that equal points give
    a squared MMD of 0 and not an error.
    """
    joint = torch.cat([x.detach(), y.detach()]).double()
    n = len(joint)
    variance, mean = torch.var_mean(joint, 0)
    floor = 1e-12 * (variance * ((n - 1) / n) + mean.square()).sum()
    spread = torch.maximum(2 * variance.sum(), floor)
    return spread.clamp_min(torch.finfo(torch.float32).tiny * 16)


def _checked_bandwidths(bandwidths: Tensor | Sequence[float], device: torch.device) -> Tensor:
    result = torch.as_tensor(bandwidths, dtype=torch.float64).detach()
    if result.dim() != 1 or len(result) == 0:
        raise ValueError(
            f"squared_mmd: bandwidths must be a non-empty list, got shape {list(result.shape)}"
        )
    # Only host values are looked at: a check of device values would stop the GPU in every step.
    if result.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = ~(result.isfinite() & (result > 0))
        if bool(wrong.any()):
            raise ValueError(
                "squared_mmd: bandwidths must be positive and finite, got "
                f"{float(result[wrong][0])}"
            )
        if device.type == "cuda":
            return _on_device(tuple(result.tolist()), device)
    return result.to(device)


@functools.lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Host values on a device, copied once: no CUDA graph can hold a copy from the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)


def _squared_mmd_of(
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    unbiased: bool,
    x_grad: bool,
    y_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value and its gradients to x and y, empty where they are not asked for."""
    if backend == "cpp":
        from . import native

        return native.squared_mmd(x, y, bandwidths, unbiased, x_grad, y_grad)
    if backend == "triton":
        from . import triton_kernels

        return triton_kernels.squared_mmd(x, y, bandwidths, unbiased, x_grad, y_grad)
    return reference.squared_mmd(x, y, bandwidths, unbiased, x_grad, y_grad)


_squared_mmd_op = torch.library.custom_op("vqkern::squared_mmd", _squared_mmd_of, mutates_args=())


@_squared_mmd_op.register_fake
def _(x, y, bandwidths, unbiased, x_grad, y_grad, backend):
    dtype = common_dtype(x, y)
    return (
        x.new_empty((), dtype=dtype),
        x.new_empty(x.shape if x_grad else (0,), dtype=dtype),
        x.new_empty(y.shape if y_grad else (0,), dtype=dtype),
    )


# An op without a derivative of its own: asking for a second derivative raises. It takes x and y, on
# which the saved gradient depends, so that autograd knows what a second derivative would need.
def _squared_mmd_backward_of(grad: Tensor, saved: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return grad * saved


_squared_mmd_backward_op = torch.library.custom_op(
    "vqkern::squared_mmd_backward", _squared_mmd_backward_of, mutates_args=()
)


@_squared_mmd_backward_op.register_fake
def _(grad, saved, x, y):
    return torch.empty_like(saved)


_squared_mmd_backward = undifferentiated(_squared_mmd_backward_of, _squared_mmd_backward_op)


def _setup_context(ctx, inputs, output):
    x, y, _, _, ctx.x_grad, ctx.y_grad, _ = inputs
    _, gx, gy = output
    ctx.mark_non_differentiable(gx, gy)
    ctx.save_for_backward(gx, gy, x, y)


def _backward(ctx, grad_value, _gx, _gy):
    gx, gy, x, y = ctx.saved_tensors
    to_x = to_y = None
    if ctx.x_grad:
        to_x = _squared_mmd_backward(grad_value, gx, x, y).to(x.dtype)
    if ctx.y_grad:
        to_y = _squared_mmd_backward(grad_value, gy, x, y).to(y.dtype)
    return to_x, to_y, None, None, None, None, None


_squared_mmd = direct(_squared_mmd_of, _squared_mmd_op, _setup_context, _backward)
