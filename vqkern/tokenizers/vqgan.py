"""The encoder and the decoder of the VQGAN family: taming, LDM, LlamaGen, FVQ and VAR.

They differ in sizes alone, and those are `VQGANConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqkern.tokenizers.blocks import Downsample, Level, Middle, Upsample, norm, swish
from vqkern.tokenizers.config_checks import LONGEST, check_positive_int, check_positive_ints


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of the encoder and of the decoder that mirrors it.

    Attributes:
        latent_dim: Channels D that are quantized.
        z_channels: Channels between the networks and the convolutions next to the quantizer.
        width: Channels at full resolution.
        multipliers: Channels of every level over `width`, full resolution first; each level after
            the first has half the size of the one before.
        blocks: Residual blocks a level in the encoder; the decoder has one more.
        attention: Numbers of the levels whose blocks are followed by attention.
        quant_kernel: Side of the convolutions before and after the quantizer, odd: 3 in VAR.
        quant_groups: Groups of these convolutions, MGVQ's own channels for every codebook.
        variational: Whether the encoder gives a mean and a log-variance, 2 D channels.
        groups: Groups of every GroupNorm.

    Raises:
        ValueError: a value is out of range, or two do not fit.
    """

    latent_dim: int = 8
    z_channels: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    quant_kernel: int = 1
    quant_groups: int = 1
    variational: bool = False
    groups: int = 32

    def __post_init__(self) -> None:
        for name in ("latent_dim", "z_channels", "width", "quant_groups", "groups"):
            check_positive_int(name, getattr(self, name))
        for name in ("blocks", "quant_kernel"):
            check_positive_int(name, getattr(self, name), LONGEST)
        object.__setattr__(
            self, "multipliers", check_positive_ints("multipliers", self.multipliers)
        )
        levels = len(self.multipliers)
        attention = self.attention
        listed = isinstance(attention, (list, tuple))
        if not listed or any(number not in range(levels) for number in attention):
            raise ValueError(
                f"attention: expected numbers of levels from 0 to {levels - 1}, got {attention!r}"
            )
        object.__setattr__(self, "attention", tuple(sorted(set(attention))))
        if not isinstance(self.variational, bool):
            raise ValueError(f"variational: expected true or false, got {self.variational!r}")
        if self.quant_kernel % 2 == 0:
            raise ValueError(f"quant_kernel: expected an odd number, got {self.quant_kernel}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"width: {width} is not a multiple of groups = {self.groups}")
        for name in ("latent_dim", "z_channels"):
            if getattr(self, name) % self.quant_groups:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is not a multiple of quant_groups = "
                    f"{self.quant_groups}"
                )

    @property
    def factor(self) -> int:
        """Image pixels per latent position along each side, f."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        return tuple(self.width * m for m in self.multipliers)

    @property
    def latent_channels(self) -> int:
        """Channels that the encoder gives: D, or 2 D with log-variances."""
        return self.latent_dim * (2 if self.variational else 1)


class Encoder(nn.Module):
    """Images [B, 3, H, W] to latents [B, D, H/f, W/f], or [B, 2 D, ...] with log-variances."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, moments = config.widths, 2 if config.variational else 1
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.width
        for number, out in enumerate(widths):
            level = Level(channels, out, config.blocks, config.groups, number in config.attention)
            if number + 1 < len(widths):
                level.downsample = Downsample(out)
            self.down.append(level)
            channels = out
        self.mid = Middle(channels, config.groups)
        self.norm_out = norm(channels, config.groups)
        z_channels = moments * config.z_channels
        self.conv_out = nn.Conv2d(channels, z_channels, 3, padding=1)
        self.quant_conv = _quant_conv(config, z_channels, config.latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """What the convolution before the quantizer is given."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [B, D, h, w] to images [B, 3, f h, f w], not clamped."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = config.widths
        channels = widths[-1]
        self.post_quant_conv = _quant_conv(config, config.latent_dim, config.z_channels)
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config.groups)
        levels = []
        for number in reversed(range(len(widths))):
            out = widths[number]
            level = Level(
                channels, out, config.blocks + 1, config.groups, number in config.attention
            )
            if number:
                level.upsample = Upsample(out)
            levels.append(level)
            channels = out
        # Numbered like the encoder's, full resolution first; run from the other end.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = norm(channels, config.groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(latent)))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(swish(self.norm_out(x)))


def build_vqgan(config: VQGANConfig) -> tuple[Encoder, Decoder]:
    """Fresh encoder and decoder with weights in channels_last, from torch's global generator."""
    encoder, decoder = Encoder(config), Decoder(config)
    return (
        encoder.to(memory_format=torch.channels_last),
        decoder.to(memory_format=torch.channels_last),
    )


def _quant_conv(config: VQGANConfig, channels: int, out: int) -> nn.Conv2d:
    kernel = config.quant_kernel
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=config.quant_groups)
