"""Rounding channels by themselves, as operators.

FSQ's: bounded by a tanh and rounded, index and gradient. That of one bit a channel: signs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import bits
from ..ops.direct import direct, undifferentiated
from ..ops.rows import join_digits, require_in_range


def _bounded(rows: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(z + shift) and bound(z) of rows [N, D]; terms [5, D]: half, offset, shift, width
    and the last digit."""
    half, offset, shift, *_ = terms
    tanh = (rows + shift).tanh_()
    return tanh, torch.mul(tanh, half).sub_(offset)


def _finite(rows: Tensor) -> Tensor:
    # x - x is 0 for finite x alone.
    return (rows - rows == 0).all(-1)


# Not left to autograd, which would keep and pass over every step between.
def _round_index_of(rows: Tensor, terms: Tensor, sizes: Sequence[int]) -> Tensor:
    """Joint index int64 [N] of rows [N, D]; -1 where a row is not finite."""
    _, bounded = _bounded(rows, terms)
    digits = bounded.round_().add_(terms[3]).clamp_(torch.zeros_like(terms[4]), terms[4])
    digits = digits.nan_to_num_(0).long()
    return join_digits(digits, sizes).masked_fill_(~_finite(rows), -1)


_round_index_op = torch.library.custom_op("vqkern::round_index", _round_index_of, mutates_args=())
round_index = undifferentiated(_round_index_of, _round_index_op)


@_round_index_op.register_fake
def _(rows: Tensor, terms: Tensor, sizes: Sequence[int]) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.int64)


def _round_channels_of(rows: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """The values that rows [N, D] are rounded to, NaN where a row is not finite, and the slope of
    the bound, 0 there."""
    half, _, _, width, last = terms
    tanh, values = _bounded(rows, terms)
    # As the index has it: no value lies below the first or above the last. The quotient is
    # decode's, float32.
    values.round_().add_(width).clamp_(torch.zeros_like(last), last).sub_(width)
    values = (values.float() / width.float()).to(rows.dtype)
    slope = tanh.square_().neg_().add_(1).mul_(half / width)
    broken = ~_finite(rows)[:, None]
    return values.masked_fill_(broken, torch.nan), slope.masked_fill_(broken, 0)


_round_channels_op = torch.library.custom_op(
    "vqkern::round_channels", _round_channels_of, mutates_args=()
)


@_round_channels_op.register_fake
def _(rows, terms):
    return torch.empty_like(rows), torch.empty_like(rows)


def _slopes_of(grad: Tensor, slope: Tensor, values: Tensor) -> Tensor:
    return torch.mul(grad, slope).masked_fill_(values.isnan(), 0)


_slopes_op = torch.library.custom_op("vqkern::round_channels_backward", _slopes_of, mutates_args=())
_slopes = undifferentiated(_slopes_of, _slopes_op)


@_slopes_op.register_fake
def _(grad, slope, values):
    return torch.empty_like(slope)


def _setup_context(ctx, inputs, output):
    values, slope = output
    ctx.mark_non_differentiable(slope)
    ctx.save_for_backward(slope, values)


def _backward(ctx, grad, _grad_slope):
    return _slopes(grad, *ctx.saved_tensors), None


_round_channels = direct(_round_channels_of, _round_channels_op, _setup_context, _backward)


def round_channels(rows: Tensor, terms: Tensor) -> Tensor:
    """The values that rows [N, D] are rounded to; the gradient passes the rounding straight through
    and the bound as it is. A row that is not finite gives NaN, and no gradient.
    """
    return _round_channels(rows, terms)[0]


_sign_index_op = torch.library.custom_op("vqkern::sign_index", bits.sign_index, mutates_args=())
sign_index = undifferentiated(bits.sign_index, _sign_index_op)


@_sign_index_op.register_fake
def _(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.int64)


def _sign_values_of(index: Tensor, dim: int, magnitude: float) -> Tensor:
    require_in_range("sign_values", index, 2**dim)
    return bits.sign_values(index, dim, magnitude)


_sign_values_op = torch.library.custom_op("vqkern::sign_values", _sign_values_of, mutates_args=())
_sign_values = undifferentiated(_sign_values_of, _sign_values_op)


@_sign_values_op.register_fake
def _(index: Tensor, dim: int, magnitude: float) -> Tensor:
    return index.new_empty(index.shape[0], dim, dtype=torch.float32)


def sign_values(index: Tensor, dim: int, magnitude: float) -> Tensor:
    """float32 [..., dim]: +-magnitude by the bits of index [...]; NaN for -1.

    Raises:
        IndexError: an index is below -1 or not below 2^dim.
    """
    values = _sign_values(index.reshape(-1).long(), dim, magnitude)
    return values.reshape(*index.shape, dim)
