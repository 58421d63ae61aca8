"""The blocks that the VQGAN family's encoders and decoders are made of.

Names are those of the state dicts of VAR's tokenizer; `formats.py` maps the other layouts to them.
Query, key and value are one 1 x 1 convolution, which is faster than three and computes the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the family's epsilon, 1e-6."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x), in place where no gradient is recorded: x is always a norm's own output."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x)))))), convolutions 3 x 3.

    The shortcut is a 1 x 1 convolution where the channels change, and has no parameters otherwise.
    """

    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = norm(out, groups)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(self.norm2(h)))
        return h + self.nin_shortcut(x)


class AttnBlock(nn.Module):
    """x + proj_out(softmax(q k^T / sqrt(C)) v), one head over all positions of the map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # Positions of a channels_last map are rows already: no copy.
        rows = self.qkv(self.norm(x)).permute(0, 2, 3, 1)
        rows = rows.reshape(batch, 1, height * width, 3 * channels)
        query, key, value = rows.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + self.proj_out(mixed)


class Downsample(nn.Module):
    """Half the size: zeros at the right and at the bottom, then a 3 x 3 convolution, stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: every position repeated, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: `count` residual blocks, each followed by attention where asked for."""

    def __init__(self, channels: int, out: int, count: int, groups: int, attention: bool) -> None:
        super().__init__()
        widths = [channels] + [out] * count
        self.block = nn.ModuleList(ResBlock(widths[i], out, groups) for i in range(count))
        self.attn = nn.ModuleList(AttnBlock(out, groups) for _ in range(count if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))
