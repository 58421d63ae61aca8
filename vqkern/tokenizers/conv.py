"""A small convolutional encoder and decoder, quick enough to train on a CPU.

Each is the sum of two paths. A linear path maps every patch of f x f pixels to D channels and back;
it can start at the principal components of training patches, which spares the thousands of steps
that a deep network spends on finding them. A convolutional path adds what a linear map cannot: a
pixel (un)shuffle at the image end, so that no convolution ever runs at full resolution, and
residual blocks at the scales below it (by default 1/4 and 1/8).

The encoder ends in a standardisation with one common scale: its latents have mean 0 per channel and
an average variance of 1, which is the scale on which codebooks drawn from N(0, I) start. It is not
a whitening: channels keep their relative variances, and with them their share of the code space.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkern.tokenizers.config_checks import LONGEST, check_positive_int, check_positive_ints

# Where log-variances start: a deviation of an eighth of the latents' own. At 0 the decoder's first
# steps would see as much noise as latent.
LOG_VARIANCE = -4.0
EPS = 1e-6  # beside the variance


@dataclass(frozen=True)
class ConvConfig:
    """Shape of the encoder and of the decoder that mirrors it.

    Attributes:
        latent_dim: Channels D of the latent.
        shuffle: Side in pixels of the patches that the pixel (un)shuffle turns into channels.
        widths: Channels at 1/shuffle, 1/(2 shuffle), ... of the image; the last is the latent's.
        blocks: Residual blocks at each scale, one count per width.
        groups: Groups of every GroupNorm; must divide every width.
        variational: Whether the encoder gives a mean and a log-variance, 2 D channels.

    Raises:
        ValueError: a value is out of range, or lists and groups do not fit.
    """

    latent_dim: int = 8
    shuffle: int = 4
    widths: tuple[int, ...] = (48, 96)
    blocks: tuple[int, ...] = (2, 2)
    groups: int = 8
    variational: bool = False

    def __post_init__(self) -> None:
        for name in ("latent_dim", "shuffle", "groups"):
            check_positive_int(name, getattr(self, name))
        object.__setattr__(self, "widths", check_positive_ints("widths", self.widths))
        object.__setattr__(self, "blocks", check_positive_ints("blocks", self.blocks, LONGEST))
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"blocks: expected one count for each of the {len(self.widths)} widths, "
                f"got {list(self.blocks)}"
            )
        if not isinstance(self.variational, bool):
            raise ValueError(f"variational: expected true or false, got {self.variational!r}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"widths: {width} is not a multiple of groups = {self.groups}")

    @property
    def factor(self) -> int:
        """Image pixels per latent position along each side, f."""
        return self.shuffle * 2 ** (len(self.widths) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels that the encoder gives, D or 2 D."""
        return self.latent_dim * (2 if self.variational else 1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), both convolutions 3 x 3 at constant width."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        # Every block starts as the identity: the first steps then train a shallow network.
        _zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Standardize(nn.Module):
    """(x - mean per channel) / one common scale, by running averages over the training steps.

    Training and evaluation give the same latents. A batch's own statistics would take its
    brightness out of them, and the decoder would learn to do without. The gradient is nevertheless
    that of the batch's own: mean and scale get none, so that no step can drive them (batch
    renormalisation, Ioffe 2017, algorithm 1 with r and d unlimited). They start at 0 and 1 where
    nothing else sets them, and follow by `momentum` a step: slowly, as batches may be small.
    """

    def __init__(self, channels: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.mean.dtype)  # autocast gives 16 bits, too few for statistics
        if not self.training:
            return (x - _of_channels(self.mean)) * (self.variance + EPS).rsqrt()
        mean = x.mean((0, 2, 3))
        variance = (x - _of_channels(mean)).square().mean()
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            off = mean - self.mean
            # About the running mean: batches differ in their means, and that is variance too.
            self.variance.lerp_(variance + off.square().mean(), self.momentum)
            scale = (self.variance + EPS).rsqrt()
            r, d = (variance + EPS).sqrt() * scale, off * scale
        own = (x - _of_channels(mean)) * (variance + EPS).rsqrt()
        return own * r + _of_channels(d)


def _of_channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


class Encoder(nn.Module):
    """Images [B, 3, H, W] to standardised latents [B, D, H/f, W/f].

    A variational one adds D channels, the log-variances of the standardised latents: the
    convolutional path alone gives them.
    """

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        widths = config.widths
        self.linear = nn.Sequential(
            nn.PixelUnshuffle(config.factor),
            nn.Conv2d(3 * config.factor**2, config.latent_dim, 1),
        )
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.shuffle),
            nn.Conv2d(3 * config.shuffle**2, widths[0], 3, padding=1),
        ]
        for scale, (width, count) in enumerate(zip(widths, config.blocks, strict=True)):
            if scale:
                layers.append(nn.Conv2d(widths[scale - 1], width, 2, stride=2))
            layers += [ResidualBlock(width, config.groups) for _ in range(count)]
        head = _zero(nn.Conv2d(widths[-1], config.latent_channels, 1))
        with torch.no_grad():
            head.bias[config.latent_dim :] = LOG_VARIANCE
        layers += [nn.GroupNorm(config.groups, widths[-1]), nn.SiLU(), head]
        self.convolutional = nn.Sequential(*layers)
        self.standardize = Standardize(config.latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        linear = self.linear(images)
        means = linear.shape[1]
        more = self.convolutional(images)
        latent = self.standardize(linear + more[:, :means])
        return latent if more.shape[1] == means else torch.cat([latent, more[:, means:]], 1)


class Decoder(nn.Module):
    """Latents [B, D, h, w] to images [B, 3, f*h, f*w], not clamped."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        widths, blocks = config.widths[::-1], config.blocks[::-1]
        self.linear = nn.Sequential(
            nn.Conv2d(config.latent_dim, 3 * config.factor**2, 1),
            nn.PixelShuffle(config.factor),
        )
        layers: list[nn.Module] = [nn.Conv2d(config.latent_dim, widths[0], 1)]
        for scale, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if scale:
                # 1 x 1 to four times the width, then a shuffle: a transposed convolution without
                # its checkerboard, at the cost of the lower resolution.
                layers += [nn.Conv2d(widths[scale - 1], 4 * width, 1), nn.PixelShuffle(2)]
            layers += [ResidualBlock(width, config.groups) for _ in range(count)]
        head = _zero(nn.Conv2d(widths[-1], 3 * config.shuffle**2, 3, padding=1))
        layers += [
            nn.GroupNorm(config.groups, widths[-1]),
            nn.SiLU(),
            head,
            nn.PixelShuffle(config.shuffle),
        ]
        self.convolutional = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.linear(latent) + self.convolutional(latent)


def build_encoder_decoder(config: ConvConfig) -> tuple[Encoder, Decoder]:
    """Fresh encoder and decoder with weights in channels_last, from torch's global generator.

    channels_last is what oneDNN's and cuDNN's convolutions want; it changes no result's meaning.
    """
    encoder, decoder = Encoder(config), Decoder(config)
    return (
        encoder.to(memory_format=torch.channels_last),
        decoder.to(memory_format=torch.channels_last),
    )


@torch.no_grad()
def start_at_principal_components(encoder: Encoder, decoder: Decoder, images: Tensor) -> None:
    """Sets both linear paths to the leading principal components of the images' f x f patches.

    Channel i is component i divided by the fourth root of its variance: half way between the
    components' own scales, at which one channel holds most of the variance, and a whitening, at
    which the faintest channel would cost as many codes as the brightest. The decoder's path is the
    exact inverse on the components' span.

    Args:
        images: float [B, 3, H, W], at least D + 1 patches in all.

    Raises:
        ValueError: fewer patches than that, or more channels than a patch has values.
    """
    unshuffle, into = encoder.linear
    out_of = decoder.linear[0]
    channels = into.out_channels
    patches = unshuffle(images).movedim(1, -1).flatten(0, -2).double()
    if len(patches) <= channels or channels > patches.shape[1]:
        raise ValueError(
            f"images: {len(patches)} patches of {patches.shape[1]} values cannot give {channels} "
            f"principal components; expected at least {channels + 1} patches of {channels} values"
        )
    mean = patches.mean(0)
    variance, components = torch.linalg.eigh(torch.cov(patches.T))
    variance, components = variance.flip(0)[:channels], components.flip(1)[:, :channels]
    # Flat images leave directions without variance; the floor keeps them finite.
    gain = variance.clamp_min(1e-6).pow(-0.25)
    latent_variance = (variance * gain.square()).mean()
    into.weight.copy_((components * gain).T[:, :, None, None])
    into.bias.copy_(-(mean @ components) * gain)
    out_of.weight.copy_((components / gain * (latent_variance + EPS).sqrt())[:, :, None, None])
    out_of.bias.copy_(mean)
    encoder.standardize.mean.zero_()
    encoder.standardize.variance.copy_(latent_variance)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
