"""`Trained`: a tokenizer with the part of it that a trainer moves, as one differentiable call."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqkern.metrics import quantization_error
from vqkern.quantizers.projected import Projector
from vqkern.tokenizers import Tokenizer
from vqkern.training.recipe import TRAINERS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Outcome(NamedTuple):
    """Of a forward pass over B images.

    images: float32 [V B, 3, H, W], V reconstructions of every image, one branch after the other;
        empty where the trainer decodes nothing. loss: the quantizer's. error: quantization error.
    """

    images: Tensor
    loss: Tensor
    error: Tensor


class Trained(nn.Module):
    """Images to all that the losses need; this is what DistributedDataParallel wraps.

    Encoder and decoder run under autocast where `precision` says so. The quantizer never does: its
    indices are exactly those of the latents that the encoder gave.

    Args:
        tokenizer: with `latent`, `quantizer` and `decoder`. A quantizer with `branches`, as that of
            VAEVQ, has its sampled and its quantized latents decoded by the one decoder.
        trainer: one of `TRAINERS`; what it does not name is frozen and in eval mode.
        precision: fp32, bf16 or fp16.
    """

    def __init__(self, tokenizer: Tokenizer, trainer: str, precision: str = "fp32") -> None:
        super().__init__()
        if tokenizer.quantizer is None:
            raise ValueError(
                f"trainer {trainer}: this tokenizer has continuous latents and no quantizer; "
                "stage_1 gives it one"
            )
        self.tokenizer = tokenizer
        self.parts = TRAINERS[trainer]
        self.precision = precision
        for name in ("encoder", "quantizer", "decoder"):
            if name not in self.parts:
                getattr(tokenizer, name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Trained:
        """Only the parts that are trained ever enter training mode."""
        super().train(mode)
        for name in ("encoder", "quantizer", "decoder"):
            getattr(self.tokenizer, name).train(mode and name in self.parts)
        return self

    @property
    def decodes(self) -> bool:
        return "decoder" in self.parts

    def networks(self) -> list[nn.Parameter]:
        """Parameters of encoder, decoder and the quantizer's projectors that gradients move."""
        modules = [getattr(self.tokenizer, n) for n in ("encoder", "decoder") if n in self.parts]
        modules += self._projectors()
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def code_parameters(self) -> list[nn.Parameter]:
        """Parameters of the quantizer that gradients move, but for its projectors'."""
        if "quantizer" not in self.parts:
            return []
        projectors = {id(p) for module in self._projectors() for p in module.parameters()}
        parameters = self.tokenizer.quantizer.parameters()
        return [p for p in parameters if p.requires_grad and id(p) not in projectors]

    def _projectors(self) -> list[nn.Module]:
        """Networks around the codes, which codes' rates would tear apart."""
        if "quantizer" not in self.parts:
            return []
        return [m for m in self.tokenizer.quantizer.modules() if isinstance(m, Projector)]

    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution, which sees every gradient of an image."""
        layers = [m for m in self.tokenizer.decoder.modules() if isinstance(m, nn.Conv2d)]
        return layers[-1].weight

    def forward(self, images: Tensor) -> Outcome:
        quantizer = self.tokenizer.quantizer
        with nullcontext() if "encoder" in self.parts else torch.no_grad(), self.autocast(images):
            latent = self.tokenizer.latent(images)
        with torch.autocast(images.device.type, enabled=False):
            latent = latent.float()
            if hasattr(quantizer, "branches") and self.training:
                sampled, quantized, _, loss = quantizer.branches(latent)
                decoded = torch.cat([sampled, quantized])
            else:
                quantized, _, loss = quantizer(latent)
                decoded = quantized
            place = latent[:, : quantized.shape[1]]
            error = quantization_error(place.detach(), quantized.detach(), channel_dim=1)
        if not self.decodes:
            return Outcome(images[:0], loss, error)
        with self.autocast(images):
            reconstructed = self.tokenizer.decoder(decoded)
        return Outcome(reconstructed.float(), loss, error)

    def autocast(self, images: Tensor) -> torch.autocast:
        dtype = DTYPES.get(self.precision)
        return torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None)
