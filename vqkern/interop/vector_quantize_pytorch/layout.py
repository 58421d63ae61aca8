"""How VectorQuantize brings its input to rows, one matrix a codebook, and its output back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops.checks import require_float, require_index


def has_channels_first(layer: nn.Module) -> bool:
    """Whether x has its channels at dimension 1."""
    return layer.accept_image_fmap or layer.accept_3d_fmap or not layer.channel_last


def to_sequence(layer: nn.Module, x: Tensor) -> tuple[torch.Size, Tensor]:
    """The shape of x without channels, and x as [B, N, dim]."""
    require_float("VectorQuantize", "x", x)
    dims = (4,) if layer.accept_image_fmap else (5,) if layer.accept_3d_fmap else (3, 2)
    first = has_channels_first(layer) and x.dim() > 2
    axis = 1 if first else -1
    if x.dim() not in dims or x.shape[axis] != layer.dim:
        raise ValueError(
            f"VectorQuantize: x must have {' or '.join(map(str, dims))} dimensions and "
            f"{layer.dim} channels at dimension {axis}, got {list(x.shape)}"
        )
    last = x.movedim(1, -1) if first else x
    return last.shape[:-1], last.reshape(len(last), last.shape[1:-1].numel(), layer.dim)


def checked_mask(x: Tensor, mask: Tensor | None, lens: Tensor | None) -> Tensor | None:
    """The bool mask [B, N] that `mask` or `lens` says, None where neither is given."""
    if lens is not None:
        if mask is not None:
            raise ValueError("VectorQuantize: mask and lens exclude each other")
        require_index("VectorQuantize", "lens", lens)
        mask = torch.arange(x.shape[1], device=x.device) < lens[:, None]
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise ValueError(f"VectorQuantize: mask must be bool {list(x.shape[:2])}, got {got}")
    return mask


def split_heads(layer: nn.Module, x: Tensor) -> Tensor:
    """[B, N, heads D] as rows [heads, B N, D], or [1, B heads N, D] with one codebook for all."""
    batch, length, width = x.shape
    x = x.reshape(batch, length, layer.heads, width // layer.heads)
    if layer.separate_codebook_per_head:
        return x.permute(2, 0, 1, 3).flatten(1, 2)
    return x.transpose(1, 2).reshape(1, -1, width // layer.heads)


def join_heads(layer: nn.Module, rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse: [B, N, heads D]."""
    batch, length = shape
    dim = rows.shape[-1]
    if layer.separate_codebook_per_head:
        x = rows.reshape(layer.heads, batch, length, dim).permute(1, 2, 0, 3)
    else:
        x = rows.reshape(batch, layer.heads, length, dim).transpose(1, 2)
    return x.reshape(batch, length, layer.heads * dim)


def rows_mask(layer: nn.Module, mask: Tensor | None, rows: Tensor) -> Tensor:
    """The mask of rows [heads, N, D]; all of them without one."""
    if mask is None:
        return torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    if layer.separate_codebook_per_head:
        return mask.reshape(1, -1).expand(rows.shape[:2])
    return mask[:, None].expand(-1, layer.heads, -1).reshape(1, -1)
