"""`Tokenizer`: images to code indices and back."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkern.tokenizers.conv import ConvConfig, build_encoder_decoder
from vqkern.tokenizers.tiles import Tiles, in_tiles
from vqkern.tokenizers.vqgan import VQGANConfig, build_vqgan

Config = ConvConfig | VQGANConfig


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder.

    Autocast reaches the encoder and the decoder alone: latents are quantized in float32, so that
    indices are those of the latents that the encoder gave.

    Args:
        config: Sizes of the encoder and the decoder.
        encoder: Images [B, 3, H, W] to latents [B, D, H/f, W/f].
        quantizer: Quantizer of D channels with `channel_dim=1`; None for continuous latents, which
            `transplant` gives one.
        decoder: Latents to images.
        original: Format of the public file that the networks came from, for `to_original`.

    Raises:
        ValueError: the quantizer does not take the encoder's channels.
    """

    def __init__(
        self,
        config: Config,
        encoder: nn.Module,
        quantizer: nn.Module | None,
        decoder: nn.Module,
        *,
        original: str | None = None,
    ) -> None:
        super().__init__()
        check_fits(config, quantizer)
        self.config = config
        self.original = original
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def latent(self, images: Tensor) -> Tensor:
        """Latents [B, D, H/f, W/f] as the quantizer takes them, float32.

        With a variational encoder these are the means, or means and log-variances [B, 2 D, ...] for
        a quantizer that takes both, as VAEVQ's.

        Args:
            images: floating point [B, 3, H, W] in [-1, 1]; H and W multiples of f.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: another shape, or sides that are not multiples of f.
        """
        self._check_images(images)
        factor = self.config.factor
        height, width = images.shape[2:]
        if height % factor or width % factor:
            raise ValueError(
                f"images: sides {height} x {width} are not multiples of {factor}; "
                f"crop or pad them first"
            )
        return self._taken(self._encoded(images))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, D, H/f, W/f] of a variational encoder; images as in `latent`.

        The log-variance is clamped to [-30, 20], as LDM's and VAEVQ's programs do.

        Raises:
            ValueError: the encoder gives no variances.
        """
        if self.config.latent_channels == self.config.latent_dim:
            raise ValueError("posterior: this encoder gives latents without variances")
        self._check_images(images)
        mean, log_variance = self._encoded(images).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    @torch.no_grad()
    def encode(self, images: Tensor, *, tiles: Tiles | None = None) -> Tensor:
        """Code indices int64 [B, ceil(H/f), ceil(W/f)] and the quantizer's own token axes.

        Args:
            images: as in `latent`, but of any size: sides are padded to multiples of f by repeating
                the last row and column.
            tiles: None encodes the image as a whole. Tiles take the memory of one of them, and give
                other latents than the whole: norms and attention see a tile only.

        Raises:
            TypeError: as in `latent`.
            ValueError: another shape, no quantizer, tiles that are not multiples of f, or a map
                that a multi-scale quantizer is not made for.
        """
        self._require_quantizer("encode")
        latent = self._any_size(images, tiles)
        with self._exact():
            return self.quantizer.encode(latent)

    def decode(
        self,
        index: Tensor,
        *,
        size: tuple[int, int] | None = None,
        first: int | None = None,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Images float32 [B, 3, H, W], clamped to [-1, 1], of indices [B, H/f, W/f].

        Args:
            index: as `encode` gives it; -1 decodes to NaN.
            size: height and width of the image that was encoded, to cut off what was padded.
            first: decodes the first groups, residual stages or scales alone, of quantizers that
                have them (MGVQ, table 6).
            tiles: as in `encode`.

        Raises:
            TypeError, IndexError, ValueError: `index` is not an integer tensor, not in the range of
                the codes, or of another shape.
        """
        self._require_quantizer("decode")
        with self._exact():
            part = {} if first is None else {"first": first}
            latent = self.quantizer.decode(index, **part)
        return self.decode_latent(latent, size=size, tiles=tiles)

    def decode_latent(
        self,
        latent: Tensor,
        *,
        size: tuple[int, int] | None = None,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Images as `decode` gives them, of latents [B, D, h, w].

        Raises:
            ValueError: another shape, or a size that these latents do not cover.
        """
        config = self.config
        if latent.ndim != 4 or latent.shape[1] != config.latent_dim:
            raise ValueError(
                f"latent: expected shape [B, {config.latent_dim}, h, w], got {list(latent.shape)}"
            )
        factor = config.factor
        whole = tuple(side * factor for side in latent.shape[2:])
        height, width = whole if size is None else size
        covered = all(b - factor < a <= b for a, b in zip((height, width), whole, strict=True))
        if not covered:
            raise ValueError(
                f"size: latents of {whole[0]} x {whole[1]} pixels cannot be those of an image of "
                f"{height} x {width}"
            )
        weight = self._weight()
        latent = latent.to(weight).contiguous(memory_format=torch.channels_last)
        if tiles is None:
            images = self.decoder(latent)
        else:
            images = in_tiles(self.decoder, latent, *tiles.over(factor), into=factor, out_of=1)
        return images[:, :, :height, :width].float().clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, *, first: int | None = None, tiles: Tiles | None = None
    ) -> Tensor:
        """What decoding makes of encoded images, in their size; arguments as in `encode`, `decode`.

        Without a quantizer, the latents (of a variational encoder the means) are decoded.
        """
        if self.quantizer is not None:
            index = self.encode(images, tiles=tiles)
            return self.decode(index, size=tuple(images.shape[2:]), first=first, tiles=tiles)
        latent = self._any_size(images, tiles)
        return self.decode_latent(latent, size=tuple(images.shape[2:]), tiles=tiles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as the decoder gives them, not clamped, and the quantizer's loss: for training."""
        latent = self.latent(images)
        loss = latent.new_zeros(())
        if self.quantizer is not None:
            with self._exact():
                latent, _, loss = self.quantizer(latent)
        return self.decoder(latent.to(self._weight().dtype)), loss

    def compile(self, **options) -> None:
        """Compiles the encoder and the decoder in place, with options of `torch.compile`.

        The quantizer is left as it is: its kernels are compiled already.
        """
        self.encoder.compile(**options)
        self.decoder.compile(**options)

    def transplant(self, quantizer: nn.Module) -> Tokenizer:
        """A new tokenizer: copies of this encoder and decoder around another quantizer.

        Nothing is shared with this tokenizer; `quantizer` itself becomes part of the new one.
        VQ-Transplant's projectors are part of a quantizer, with ``_projected`` in its name.

        Raises:
            ValueError: the quantizer does not take the encoder's channels.
        """
        check_fits(self.config, quantizer)
        return Tokenizer(
            self.config,
            copy.deepcopy(self.encoder),
            quantizer.to(self._weight().device),
            copy.deepcopy(self.decoder),
            original=self.original,
        ).train(self.training)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors into `folder`, which is made where missing.

        Raises:
            ValueError: the quantizer was not built by `build_quantizer` and has no `config`, or a
                weight is not float32.
        """
        from vqkern.tokenizers.pretrained import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer that `save_pretrained` wrote, on the CPU and in eval mode.

        Raises:
            ValueError: a file is missing, damaged, of another format version, or does not hold the
                tensors that its config asks for, all of them finite.
        """
        from vqkern.tokenizers.pretrained import from_pretrained

        return from_pretrained(folder)

    def to_original(self, path: str | Path, format: str | None = None) -> None:
        """Writes a public file that the format's own program reads.

        See `vqkern.tokenizers.to_original`.
        """
        from vqkern.tokenizers.original import to_original

        to_original(self, path, format)

    def _weight(self) -> Tensor:
        return next(self.encoder.parameters())

    def _exact(self) -> torch.autocast:
        """Keeps autocast away from the quantizer."""
        return torch.autocast(self._weight().device.type, enabled=False)

    def _encoded(self, images: Tensor) -> Tensor:
        """What the encoder gives, at least float32."""
        images = images.to(self._weight()).contiguous(memory_format=torch.channels_last)
        encoded = self.encoder(images)
        return encoded if encoded.dtype == torch.float64 else encoded.float()

    def _taken(self, encoded: Tensor) -> Tensor:
        """The channels of it that the quantizer takes."""
        takes = getattr(self.quantizer, "in_channels", self.config.latent_dim)
        return encoded[:, :takes]

    def _any_size(self, images: Tensor, tiles: Tiles | None) -> Tensor:
        """Latents of images of any size."""
        self._check_images(images)
        factor = self.config.factor
        missing = [-side % factor for side in images.shape[2:]]
        if any(missing):
            images = F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        if tiles is None:
            return self._taken(self._encoded(images))
        return self._taken(
            in_tiles(self._encoded, images, *_pixels(tiles, factor), into=1, out_of=factor)
        )

    def _require_quantizer(self, name: str) -> None:
        if self.quantizer is None:
            raise ValueError(
                f"{name}: this tokenizer has continuous latents and no quantizer; "
                f"transplant one first"
            )

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: expected a floating-point tensor in [-1, 1], got {got}")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(
                f"images: expected shape [B, 3, H, W] with sides of at least 1, "
                f"got {list(images.shape)}"
            )


def build_tokenizer(config: Config, quantizer: nn.Module | None) -> Tokenizer:
    """A tokenizer with fresh weights, drawn from torch's global generator.

    Raises:
        ValueError: the quantizer does not take `config.latent_dim` channels at dimension 1.
    """
    encoder, decoder = build_networks(config)
    return Tokenizer(config, encoder, quantizer, decoder)


def build_networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """A fresh encoder and decoder of either architecture."""
    build = build_vqgan if isinstance(config, VQGANConfig) else build_encoder_decoder
    return build(config)


def check_fits(config: Config, quantizer: nn.Module | None) -> None:
    """A quantizer must take the channels of the encoder, and give the decoder's.

    Raises:
        ValueError: it does not.
    """
    if quantizer is None:
        return
    dim = getattr(quantizer, "dim", None)
    if dim != config.latent_dim:
        raise ValueError(
            f"quantizer: takes {dim} channels, expected the encoder's {config.latent_dim}"
        )
    takes = getattr(quantizer, "in_channels", dim)
    if takes not in (dim, config.latent_channels):
        raise ValueError(
            f"quantizer: takes means and log-variances, {takes} channels; the encoder gives "
            f"{config.latent_channels}, it is not variational"
        )
    channel_dim = getattr(quantizer, "channel_dim", None)
    if channel_dim != 1:
        raise ValueError(
            f"quantizer: channel_dim is {channel_dim}, expected 1 (feature maps [B, D, H, W])"
        )


def _pixels(tiles: Tiles, factor: int) -> tuple[int, int]:
    tiles.over(factor)
    return tiles.size, tiles.halo
