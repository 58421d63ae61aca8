"""`Tokenizer`: images to code indices and back."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkern.quantizers import build_quantizer
from vqkern.tokenizers.conv import ConvConfig, Decoder, Encoder, build_encoder_decoder

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder.

    Args:
        config: Shape of the encoder and the decoder.
        encoder: Images [B, 3, H, W] to latents [B, D, H/f, W/f].
        quantizer: Quantizer of D channels with `channel_dim=1`.
        decoder: Latents to images.

    Raises:
        ValueError: the quantizer does not take the encoder's channels.
    """

    def __init__(
        self, config: ConvConfig, encoder: Encoder, quantizer: nn.Module, decoder: Decoder
    ) -> None:
        super().__init__()
        _check_fits(config, quantizer)
        self.config = config
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def latent(self, images: Tensor) -> Tensor:
        """Latents [B, D, H/f, W/f] before quantization, float32.

        Args:
            images: floating point [B, 3, H, W] in [-1, 1]; H and W multiples of f.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: another shape, or sides that are not multiples of f.
        """
        self._check_images(images)
        return self.encoder(images.to(self._weight()).contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Code indices int64 [B, H/f, W/f] of images as in `latent`."""
        return self.quantizer.encode(self.latent(images))

    def decode(self, index: Tensor) -> Tensor:
        """Images float32 [B, 3, H, W], clamped to [-1, 1], of indices [B, H/f, W/f]."""
        return self.decoder(self.quantizer.decode(index)).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`, in [-1, 1]; arguments and errors as in `latent`."""
        return self.decode(self.encode(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as the decoder gives them, not clamped, and the quantizer's loss: for training."""
        quantized, _, loss = self.quantizer(self.latent(images))
        return self.decoder(quantized), loss

    def transplant(self, quantizer: nn.Module) -> "Tokenizer":
        """A new tokenizer: copies of this encoder and decoder around another quantizer.

        Nothing is shared with this tokenizer; `quantizer` itself becomes part of the new one.

        Raises:
            ValueError: the quantizer does not take the encoder's channels.
        """
        _check_fits(self.config, quantizer)
        weight = self._weight()
        return Tokenizer(
            self.config,
            copy.deepcopy(self.encoder),
            quantizer.to(weight.device),
            copy.deepcopy(self.decoder),
        ).train(self.training)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors into `folder`, which is made where missing.

        Raises:
            ValueError: the quantizer was not built by `build_quantizer` and has no `config`.
        """
        from safetensors.torch import save

        config = getattr(self.quantizer, "config", None)
        if config is None:
            raise ValueError(
                f"quantizer: {type(self.quantizer).__name__} has no config to save; "
                f"expected one built by vqkern.build_quantizer"
            )
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        described = {
            "format": "vqkern-tokenizer",
            "format_version": FORMAT_VERSION,
            "architecture": {"name": "conv", **asdict(self.config)},
            "quantizer": config,
        }
        text = json.dumps(described, indent=2) + "\n"
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        _write_whole(path / WEIGHTS_FILE, save(tensors))
        _write_whole(path / CONFIG_FILE, text.encode("utf-8"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer that `save_pretrained` wrote, on the CPU and in eval mode.

        Raises:
            ValueError: a file is missing, damaged, of another format version, or does not hold the
                tensors that its config asks for, all of them finite.
        """
        return _load(Path(folder))

    def _weight(self) -> Tensor:
        return next(self.encoder.parameters())

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: expected a floating-point tensor in [-1, 1], got {got}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape [B, 3, H, W], got {list(images.shape)}")
        factor = self.config.factor
        height, width = images.shape[2:]
        if not height or not width or height % factor or width % factor:
            raise ValueError(
                f"images: sides {height} x {width} are not multiples of {factor}; "
                f"crop or pad them first"
            )


def build_tokenizer(config: ConvConfig, quantizer: nn.Module) -> Tokenizer:
    """A tokenizer with fresh weights, drawn from torch's global generator.

    Raises:
        ValueError: the quantizer does not take `config.latent_dim` channels at dimension 1.
    """
    encoder, decoder = build_encoder_decoder(config)
    return Tokenizer(config, encoder, quantizer, decoder)


def from_pretrained(folder: str | Path) -> Tokenizer:
    """See `Tokenizer.from_pretrained`."""
    return Tokenizer.from_pretrained(folder)


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that an interruption leaves the old one or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _check_fits(config: ConvConfig, quantizer: nn.Module) -> None:
    dim = getattr(quantizer, "dim", None)
    if dim != config.latent_dim:
        raise ValueError(
            f"quantizer: takes {dim} channels, expected the encoder's {config.latent_dim}"
        )
    channel_dim = getattr(quantizer, "channel_dim", None)
    if channel_dim != 1:
        raise ValueError(
            f"quantizer: channel_dim is {channel_dim}, expected 1 (feature maps [B, D, H, W])"
        )


def _load(folder: Path) -> Tokenizer:
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ValueError(f"tokenizer file {str(path)!r} is missing")
    architecture, quantizer_config = _read_config(config_path)
    try:
        quantizer = build_quantizer(**quantizer_config)
        tokenizer = build_tokenizer(ConvConfig(**architecture), quantizer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer file {str(config_path)!r}: {error}") from error
    tensors = _read_tensors(weights_path, tokenizer.state_dict())
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()


def _read_config(path: Path) -> tuple[dict, dict]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer file {str(path)!r} cannot be read: {error}") from error
    if not isinstance(described, dict) or described.get("format") != "vqkern-tokenizer":
        raise ValueError(f"tokenizer file {str(path)!r} is not a vqkern tokenizer's config")
    if described.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"tokenizer file {str(path)!r} has format version {described.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}"
        )
    architecture, quantizer = described.get("architecture"), described.get("quantizer")
    if not isinstance(architecture, dict) or architecture.get("name") != "conv":
        raise ValueError(f"tokenizer file {str(path)!r}: architecture must be one named 'conv'")
    if not isinstance(quantizer, dict):
        raise ValueError(f"tokenizer file {str(path)!r}: quantizer must be an object")
    return {k: v for k, v in architecture.items() if k != "name"}, quantizer


def _read_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"tokenizer file {str(path)!r} cannot be read: {error}") from error
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"tokenizer file {str(path)!r}: tensor {name!r} is missing")
        if name not in expected:
            raise ValueError(f"tokenizer file {str(path)!r}: tensor {name!r} is not expected")
        got, wanted = tensors[name], expected[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise ValueError(
                f"tokenizer file {str(path)!r}: tensor {name!r} is {got.dtype} {list(got.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)}"
            )
        if got.is_floating_point() and not bool(got.isfinite().all()):
            raise ValueError(f"tokenizer file {str(path)!r}: tensor {name!r} is not finite")
    return tensors
