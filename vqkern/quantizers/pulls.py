"""The two pulls of VQ-VAE's loss, of latents to their codes and of codes to their latents.

On the CPU value and gradients are one pass over memory each; elsewhere a compiler fuses the passes.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ..ops.checks import common_dtype
from ..ops.direct import direct, undifferentiated
from ..ops.rows import pull_slopes, squared_difference
from .estimators import straight_through


def masked_mse(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Mean of (a - b)^2 over the channels of the valid rows [N], 0 if none is valid; float32, or
    float64 if one of them is."""
    dtype = common_dtype(a, b)
    a, b = a.to(dtype), b.to(dtype)
    if a.device.type == "cpu":
        return _masked_mse(a, b, valid, 1.0, 1.0, 1.0)[0]
    # where() before the square: NaN in a row that is left out must not reach a gradient.
    difference = torch.where(valid[:, None], a - b, 0)
    return difference.square().sum() / (valid.sum() * a.shape[1]).clamp_min(1)


def two_pulls(
    z: Tensor, codes: Tensor, valid: Tensor, commitment: float, codebook_weight: float
) -> Tensor:
    """commitment mse(z, sg codes) + codebook_weight mse(sg z, codes), as in `masked_mse`."""
    if z.device.type == "cpu":
        weights = commitment + codebook_weight, commitment, codebook_weight
        dtype = common_dtype(z, codes)
        return _masked_mse(z.to(dtype), codes.to(dtype), valid, *weights)[0]
    to_codes = commitment * masked_mse(z, codes.detach(), valid)
    return to_codes + codebook_weight * masked_mse(z.detach(), codes, valid)


def pulled_through(
    z: Tensor, codes: Tensor, valid: Tensor, commitment: float, codebook_weight: float
) -> tuple[Tensor, Tensor]:
    """`straight_through` of rows z [N, D] and their codes [N, D], and the `two_pulls` of both."""
    if z.device.type == "cpu" and z.dtype == codes.dtype == torch.float32:
        quantized, loss, _ = _pulled_through(z, codes, valid, commitment, codebook_weight)
        return quantized, loss
    quantized = straight_through(z, codes.detach().to(z.dtype))
    return quantized, two_pulls(z, codes, valid, commitment, codebook_weight)


def _numbers(count: Tensor, rows: Tensor) -> Tensor:
    """How many numbers a mean over `count` rows is of, at least 1."""
    return (count * rows.shape[1]).clamp_min(1).to(rows.dtype)


def _masked_mse_of(
    a: Tensor, b: Tensor, valid: Tensor, weight: float, a_weight: float, b_weight: float
) -> tuple[Tensor, Tensor]:
    """weight times the mean, and how many numbers it is of; the gradients are those of the mean
    times a_weight and b_weight."""
    total, count = squared_difference(a, b, valid)
    numbers = _numbers(count, a)
    return weight * total / numbers, numbers


_masked_mse_op = torch.library.custom_op("vqkern::masked_mse", _masked_mse_of, mutates_args=())


@_masked_mse_op.register_fake
def _(a, b, valid, weight, a_weight, b_weight):
    return a.new_empty(()), a.new_empty(())


def _pulled_through_of(
    z: Tensor, codes: Tensor, valid: Tensor, commitment: float, codebook_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The straight-through value, the loss, and how many numbers its mean is of."""
    quantized = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    total, count = squared_difference(z, codes, valid, quantized)
    numbers = _numbers(count, z)
    return quantized, (commitment + codebook_weight) * total / numbers, numbers


_pulled_through_op = torch.library.custom_op(
    "vqkern::pulled_through", _pulled_through_of, mutates_args=()
)


@_pulled_through_op.register_fake
def _(z, codes, valid, commitment, codebook_weight):
    return z.new_empty(z.shape), z.new_empty(()), z.new_empty(())


def _slopes_of(
    grad: Tensor,
    numbers: Tensor,
    a: Tensor,
    b: Tensor,
    valid: Tensor,
    a_weight: Optional[float],  # noqa: UP045 - the operator's schema is read from it
    b_weight: Optional[float],  # noqa: UP045
    passing: Optional[Tensor],  # noqa: UP045
) -> tuple[Tensor, Tensor]:
    """The gradients to a, plus what passes to it, and to b; empty where the weight is None."""
    slope = 2 * grad / numbers
    factors = [None if weight is None else weight * slope for weight in (a_weight, b_weight)]
    return pull_slopes(a, b, valid, factors, passing)


# An op without a derivative of its own: asking for a second derivative raises. It is given the
# rows, not their difference, because it is through them that the slopes depend on anything.
_slopes_op = torch.library.custom_op("vqkern::pull_slopes", _slopes_of, mutates_args=())
_slopes = undifferentiated(_slopes_of, _slopes_op)


@_slopes_op.register_fake
def _(grad, numbers, a, b, valid, a_weight, b_weight, passing):
    return tuple(a.new_empty((0,) if w is None else a.shape) for w in (a_weight, b_weight))


def _keep(ctx, rows, numbers, a_weight, b_weight) -> None:
    ctx.mark_non_differentiable(numbers)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(numbers, *rows)
    ctx.weights = a_weight, b_weight


def _gradients(ctx, grad: Tensor | None, passing: Tensor | None = None) -> list[Tensor | None]:
    """Those to a and b."""
    if grad is None:
        return [passing, None]
    wanted = ctx.needs_input_grad[:2]
    weights = [w if want else None for w, want in zip(ctx.weights, wanted, strict=True)]
    slopes = _slopes(grad, *ctx.saved_tensors, *weights, passing)
    return [slope if want else None for slope, want in zip(slopes, wanted, strict=True)]


def _setup_mse(ctx, inputs, output):
    *rows, _weight, a_weight, b_weight = inputs
    _keep(ctx, rows, output[1], a_weight, b_weight)


def _mse_backward(ctx, grad, _grad_numbers):
    return *_gradients(ctx, grad), None, None, None, None


def _setup_through(ctx, inputs, output):
    *rows, commitment, codebook_weight = inputs
    _keep(ctx, rows, output[2], commitment, codebook_weight)


def _through_backward(ctx, passing, grad, _grad_numbers):
    return *_gradients(ctx, grad, passing), None, None, None


_masked_mse = direct(_masked_mse_of, _masked_mse_op, _setup_mse, _mse_backward)
_pulled_through = direct(_pulled_through_of, _pulled_through_op, _setup_through, _through_backward)
