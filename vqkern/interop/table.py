"""Searches of an nn.Embedding, as taming, LlamaGen, VAR and diffusers hold their codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import nearest_code
from ..ops.checks import require_float, require_index
from ..ops.take_codes import take_codes
from .terms import mse


def uniform_table(num_codes: int, dim: int) -> nn.Embedding:
    """An embedding drawn from (-1/K, 1/K)."""
    table = nn.Embedding(num_codes, dim)
    nn.init.uniform_(table.weight, -1.0 / num_codes, 1.0 / num_codes)
    return table


def require_map(name: str, argument: str, z: Tensor, channels: int) -> None:
    """z must be a floating-point map [B, channels, H, W]."""
    require_float(name, argument, z)
    if z.dim() != 4 or z.shape[1] != channels:
        raise ValueError(
            f"{name}: {argument} must have shape [B, {channels}, H, W], got {list(z.shape)}"
        )


def nearest(rows: Tensor, table: Tensor, normalised: bool = False) -> Tensor:
    """Index [N] of the nearest code, by angle if normalised; -1 where a row is not finite."""
    metric = "cosine" if normalised else "l2"
    return nearest_code(rows.detach(), table.detach(), metric=metric).index


def quantize_map(
    z: Tensor, table: Tensor, beta: float, *, legacy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(z_q [B, D, H, W] straight through, loss, index [B H W]) of taming and diffusers.

    loss = beta mse(sg e, z) + mse(e, sg z), the weights exchanged if `legacy`.
    """
    last = z.permute(0, 2, 3, 1)
    rows = last.reshape(-1, last.shape[-1])
    index = nearest(rows, table)
    codes = take_codes(table, index)
    valid = index >= 0
    towards, back = mse(rows, codes.detach(), valid), mse(codes, rows.detach(), valid)
    loss = towards + beta * back if legacy else beta * towards + back
    quantized = (rows + (codes - rows).detach()).reshape(last.shape)
    return quantized.permute(0, 3, 1, 2).contiguous(), loss, index


def entry(
    name: str, table: Tensor, indices: Tensor, shape: tuple | None, *, first: bool, channel_at: int
) -> Tensor:
    """The codes behind indices [N]; as a map where a shape is given.

    Args:
        shape: of the map, its channels at `channel_at` (1 or 3).
        first: whether the result has its channels first.
    """
    require_index(name, "indices", indices)
    codes = take_codes(table, indices)
    if shape is None:
        return codes
    sizes = list(shape)
    if len(sizes) != 4 or sizes.pop(channel_at) != codes.shape[-1]:
        raise ValueError(
            f"{name}: shape must have 4 numbers, {codes.shape[-1]} at place {channel_at}, "
            f"got {tuple(shape)}"
        )
    if indices.numel() != sizes[0] * sizes[1] * sizes[2]:
        raise ValueError(
            f"{name}: indices must hold {sizes[0] * sizes[1] * sizes[2]} values for shape "
            f"{tuple(shape)}, got {indices.numel()}"
        )
    codes = codes.reshape(*sizes, codes.shape[-1])
    return codes.permute(0, 3, 1, 2).contiguous() if first else codes


def unit(rows: Tensor) -> Tensor:
    """Rows of unit length."""
    return F.normalize(rows, p=2, dim=-1)


def per_item(rows: Tensor) -> Tensor:
    """Rows [N, D] as N maps of one position, [N, D, 1, 1]."""
    return rows[:, :, None, None]


def usage_by_window(window: Tensor, index: Tensor, num_codes: int) -> float:
    """Pushes indices [N] into a window of the last ones, and the share of codes in it (in place).

    The window starts as zeros, which count as uses of code 0.
    """
    with torch.no_grad():
        recent = index[index >= 0][-len(window) :]
        kept = len(window) - len(recent)
        window.data[:kept] = window.data[len(recent) :].clone()
        window.data[kept:] = recent.to(window.dtype)
        return len(window.unique()) / num_codes
