"""A base tokenizer: encoder, codebook and decoder trained together."""

from dataclasses import dataclass

import torch
from torch import nn

from vqkern.data import CropSampler
from vqkern.metrics import quantization_error
from vqkern.tokenizers import Tokenizer
from vqkern.tokenizers.conv import start_at_principal_components
from vqkern.training.stages import (
    BETAS,
    OnStep,
    StepReport,
    check_counts,
    check_finite,
    check_rates,
    linear_decay,
    set_learning_rates,
)


@dataclass(frozen=True)
class FromScratch:
    """Settings of `train_from_scratch`.

    Attributes:
        steps: Optimizer steps.
        batch: Crops a step.
        lr: Peak learning rate of encoder and decoder (Adam), falling linearly to 0.
        codebook_lr: The same for the codes, which move on a scale of their own.
        quantizer_weight: Weight of the quantizer's loss beside the mean squared pixel error.
        warmup: Steps over which the learning rates rise.
        clip: Largest norm of the gradient of encoder and decoder.
        start_crops: Crops whose principal components the linear paths start at.
    """

    steps: int = 600
    batch: int = 16
    lr: float = 2e-3
    codebook_lr: float = 0.05
    quantizer_weight: float = 1.0
    warmup: int = 20
    clip: float = 1.0
    start_crops: int = 256

    def __post_init__(self) -> None:
        check_counts(self, ("steps", "batch", "start_crops"))
        check_counts(self, ("warmup",), minimum=0)
        check_rates(self, ("lr", "codebook_lr", "quantizer_weight", "clip"))


def train_from_scratch(
    tokenizer: Tokenizer,
    sampler: CropSampler,
    settings: FromScratch,
    on_step: OnStep | None = None,
) -> None:
    """Trains a whole tokenizer in place: mean squared pixel error plus the quantizer's loss.

    This is the short loop of `vqkern demo`, eq. 2 of VQ-Transplant with the pixel and the quantizer
    term. The perceptual and the adversarial term are in `vqkern.training.train`, by the recipe
    `vq-transplant-from-scratch`. Reports `pixel` (mean squared error of images in
    [-1, 1]), `error` (quantization error) and `loss`. Whether it ends, fails or is interrupted, the
    tokenizer is left in eval mode, as the last finished step made it.

    Raises:
        ValueError: the loss is not finite; the images are too few for the starting point.
    """
    device = next(tokenizer.parameters()).device
    tokenizer.train()
    networks = [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]
    optimizer = torch.optim.Adam(
        [
            {"params": networks, "peak_lr": settings.lr},
            {"params": tokenizer.quantizer.parameters(), "peak_lr": settings.codebook_lr},
        ],
        betas=BETAS,
    )
    try:
        # A step number that training never reaches, so that the crops are others.
        first = sampler.batch(settings.steps, settings.start_crops).to(device)
        start_at_principal_components(tokenizer.encoder, tokenizer.decoder, first)
        for step in range(settings.steps):
            set_learning_rates(optimizer, linear_decay(step, settings.steps, settings.warmup))
            images = sampler.batch(step, settings.batch).to(device)
            latent = tokenizer.latent(images)
            quantized, _, quantizer_loss = tokenizer.quantizer(latent)
            pixel = (tokenizer.decoder(quantized) - images).square().mean()
            loss = pixel + settings.quantizer_weight * quantizer_loss
            value = check_finite(loss, "training from scratch", step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(networks, settings.clip)
            optimizer.step()
            if on_step is not None:
                error = quantization_error(latent.detach(), quantized.detach(), channel_dim=1)
                values = {"pixel": float(pixel.detach()), "error": float(error), "loss": value}
                on_step(StepReport(step + 1, settings.steps, values))
    finally:
        tokenizer.eval()
