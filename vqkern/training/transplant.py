"""VQ-Transplant: a new quantizer for a trained tokenizer, in two stages (its section 4.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqkern.data import CropSampler
from vqkern.metrics import quantization_error
from vqkern.tokenizers import Tokenizer
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
class Substitution:
    """Settings of stage I, `substitute`.

    Attributes:
        steps: Optimizer steps.
        tokens: Latents a step, drawn from the pool with replacement.
        lr: Peak learning rate of the codes (Adam), falling linearly to 0. Adam divides by the
            gradient's size, so one rate serves every codebook size.
    """

    steps: int = 300
    tokens: int = 8192
    lr: float = 0.1

    def __post_init__(self) -> None:
        check_counts(self, ("steps", "tokens"))
        check_rates(self, ("lr",))


@dataclass(frozen=True)
class Adaptation:
    """Settings of stage II, `adapt_decoder`.

    Attributes:
        steps: Optimizer steps.
        batch: Crops a step.
        lr: Peak learning rate of the decoder (Adam), falling linearly to 0.
        warmup: Steps over which the learning rate rises.
        clip: Largest norm of the decoder's gradient.
    """

    steps: int = 200
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 10
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, ("steps", "batch"))
        check_counts(self, ("warmup",), minimum=0)
        check_rates(self, ("lr", "clip"))


@torch.no_grad()
def encode_pool(
    tokenizer: Tokenizer,
    sampler: CropSampler,
    tokens: int,
    batch: int = 64,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents of random crops, encoded once: stage I's encoder is frozen, so they can be re-used.

    Returns:
        float32 [tokens, D] on the tokenizer's device, in the order of the sampler's batches.
    """
    if tokens < 1 or batch < 1:
        raise ValueError(f"tokens and batch: expected integers >= 1, got {tokens} and {batch}")
    device = next(tokenizer.parameters()).device
    training = tokenizer.training
    tokenizer.eval()
    per_batch = batch * (sampler.size // tokenizer.config.factor) ** 2
    batches = -(-tokens // max(per_batch, 1))
    rows = []
    try:
        for step in range(batches):
            latent = tokenizer.latent(sampler.batch(step, batch).to(device))
            rows.append(latent.movedim(1, -1).flatten(0, -2))
            if on_step is not None:
                on_step(StepReport(step + 1, batches, {}))
    finally:
        tokenizer.train(training)
    return torch.cat(rows)[:tokens].contiguous()


def as_feature_map(rows: Tensor) -> Tensor:
    """Rows [N, D] as the feature map [1, D, N, 1] that a quantizer with channel_dim=1 takes."""
    return rows.T[None, :, :, None]


def substitute(
    quantizer: nn.Module,
    pool: Tensor,
    settings: Substitution,
    seed: int,
    on_step: OnStep | None = None,
) -> None:
    """Stage I: trains a new quantizer, in place, on the latents of a frozen encoder.

    The loss is the quantizer's own (VQ-Transplant eq. 3), |sg(z_e) - z_q|^2 + gamma L_unique, where
    L_unique and gamma are its alignment and that alignment's weight. Encoder and decoder take no
    part: what comes in are latents. Where no parameter learns, as with codes that move by averages
    (EMA), the forward passes are all there is. Reports `error` (quantization error of the step's
    latents) and `loss`. Ended or interrupted, the quantizer is left in eval mode.

    Args:
        quantizer: With `channel_dim=1` and D channels.
        pool: Latents float [N, D], such as `encode_pool` gives.
        seed: Seed of the order in which latents are drawn, and of torch's global generator, from
            which the alignment draws its subsets.

    Raises:
        ValueError: the pool has another shape or is empty; the loss is not finite.
    """
    if pool.ndim != 2 or not len(pool) or pool.shape[1] != quantizer.dim:
        raise ValueError(
            f"pool: expected shape [N, {quantizer.dim}] with N >= 1, got {list(pool.shape)}"
        )
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    learned = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, betas=BETAS) if learned else None
    if optimizer is not None:
        optimizer.param_groups[0]["peak_lr"] = settings.lr
    quantizer.train()
    try:
        for step in range(settings.steps):
            chosen = torch.randint(len(pool), (settings.tokens,), generator=generator)
            latent = as_feature_map(pool[chosen.to(pool.device)])
            quantized, _, loss = quantizer(latent)
            value = check_finite(loss, "stage I", step)
            if optimizer is not None:
                set_learning_rates(optimizer, linear_decay(step, settings.steps))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if on_step is not None:
                error = float(quantization_error(latent, quantized.detach(), channel_dim=1))
                on_step(StepReport(step + 1, settings.steps, {"error": error, "loss": value}))
    finally:
        quantizer.eval()


def adapt_decoder(
    tokenizer: Tokenizer,
    sampler: CropSampler,
    settings: Adaptation,
    on_step: OnStep | None = None,
) -> None:
    """Stage II: trains the decoder alone, in place, on the new quantizer's codes.

    This is the short loop of `vqkern demo`: its loss is the pixel term of VQ-Transplant eq. 4, the
    mean of |x^ - x|^2. The perceptual and the adversarial term are in `vqkern.training.train`, by
    the recipe `vq-transplant-stage-2`. Encoder and quantizer run in eval mode without gradients and
    do not change. Reports `pixel` (mean squared error of images in [-1, 1]). Ended or
    interrupted, the tokenizer is left in eval mode.

    Raises:
        ValueError: the loss is not finite.
    """
    device = next(tokenizer.parameters()).device
    tokenizer.eval()
    tokenizer.decoder.train()
    parameters = list(tokenizer.decoder.parameters())
    optimizer = torch.optim.Adam(parameters, betas=BETAS)
    optimizer.param_groups[0]["peak_lr"] = settings.lr
    try:
        for step in range(settings.steps):
            set_learning_rates(optimizer, linear_decay(step, settings.steps, settings.warmup))
            images = sampler.batch(step, settings.batch).to(device)
            with torch.no_grad():
                quantized = tokenizer.quantizer.decode(tokenizer.encode(images))
            loss = (tokenizer.decoder(quantized) - images).square().mean()
            value = check_finite(loss, "stage II", step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            if on_step is not None:
                on_step(StepReport(step + 1, settings.steps, {"pixel": value}))
    finally:
        tokenizer.eval()
