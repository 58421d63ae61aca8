"""`take_codes`: the codes behind indices; its gradient is a `code_sums`."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import require_float, require_index, require_matrix, require_same_device
from .code_sums.api import code_sums
from .direct import direct
from .rows import require_in_range, take_rows


def take_codes(codes: Tensor, index: Tensor) -> Tensor:
    """codes[index], where index -1 gives a row of NaN and no gradient.

    Args:
        codes: codebook [K, D], floating point.
        index: integer [...], in [0, K) or -1.

    Returns:
        [..., D] in the dtype of `codes`. The gradient to `codes` is the deterministic segment sum
        of the incoming rows, which costs memory for N * D + K * D and no N x K one-hot.

    Raises:
        TypeError: `codes` is not floating point or `index` not integer.
        ValueError: `codes` is not a matrix or the devices differ.
        IndexError: an index is below -1 or not below K.
    """
    require_float("take_codes", "codes", codes)
    require_matrix("take_codes", "codes", codes, rows="K", columns="D")
    require_index("take_codes", "index", index)
    require_same_device("take_codes", codes=codes, index=index)
    return _take_codes(codes, index.long())


def _take_codes_of(codes: Tensor, index: Tensor) -> Tensor:
    require_in_range("take_codes", index, len(codes))
    return take_rows(codes, index.reshape(-1)).view(*index.shape, codes.shape[1])


_take_codes_op = torch.library.custom_op("vqkern::take_codes", _take_codes_of, mutates_args=())


@_take_codes_op.register_fake
def _(codes: Tensor, index: Tensor) -> Tensor:
    return codes.new_empty(*index.shape, codes.shape[1])


def _setup_context(ctx, inputs, output):
    codes, index = inputs
    ctx.save_for_backward(index)
    ctx.num_codes, ctx.dtype = len(codes), codes.dtype


def _backward(ctx, grad):
    (index,) = ctx.saved_tensors
    sums = code_sums(grad.reshape(-1, grad.shape[-1]), index.reshape(-1), ctx.num_codes)
    return sums.total.to(ctx.dtype), None


_take_codes = direct(_take_codes_of, _take_codes_op, _setup_context, _backward)
