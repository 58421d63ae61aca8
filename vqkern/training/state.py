"""What a training run carries from step to step, and how it becomes a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkern.distributed import random_state, seed_rank, set_random_state
from vqkern.losses import (
    AUGMENTATIONS,
    DiffAugment,
    DinoDiscriminator,
    Discriminator,
    PatchGAN,
    VisionTransformer,
    load_vit,
)
from vqkern.training.checkpoint import described_in, names_in, read_checkpoint
from vqkern.training.config import differences, to_mapping, with_defaults
from vqkern.training.recipe import AdversarialSettings, Recipe
from vqkern.training.trained import Trained

# Settings that a resumed run may change: none of them changes what is trained, but for the
# micro-batch, of which alignments and moving averages see one at a time; memory may ask for it.
FREE = (
    "run.device",
    "run.save_every",
    "run.log_every",
    "run.sample_every",
    "run.keep",
    "log",
    "data.micro_batch",
    "data.workers",
    "data.folder",
    "data.max_damaged",
    "tokenizer.pretrained",
)


class State:
    """Model, discriminator, optimizers, average of weights, and counters.

    Attributes:
        step: Steps done. skipped: Those without an update. streak: How many of them just now.
        images: The identity of what is trained on (`Samples`).
    """

    def __init__(
        self, recipe: Recipe, model: Trained, device: torch.device, images: str = ""
    ) -> None:
        self.recipe, self.model, self.device, self.images = recipe, model, device, images
        self.step = self.skipped = self.streak = 0
        optim, gan = recipe.optim, recipe.loss.adversarial
        code_rate = optim.lr if optim.codebook_lr is None else optim.codebook_lr
        self.optimizer = _adamw(
            [
                (model.networks(), optim.lr, optim.weight_decay),
                (model.code_parameters(), code_rate, optim.codebook_weight_decay),
            ],
            optim.betas,
        )
        self.discriminator = build_discriminator(gan)
        self.discriminator_optimizer = None
        if self.discriminator is not None:
            self.discriminator.to(device).train()
            parameters = list(self.discriminator.parameters())
            self.discriminator_optimizer = _adamw(
                [(parameters, gan.lr, gan.weight_decay)], gan.betas
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        self.average = None if optim.ema is None else Average(self._trained(), optim.ema)
        self.undo = Undo(self._moved_by_forward())

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [o for o in (self.optimizer, self.discriminator_optimizer) if o is not None]

    def network_buffers(self) -> list[Tensor]:
        """Statistics that every rank keeps of its own images: of norms, not of quantizers."""
        modules = [getattr(self.model.tokenizer, name) for name in ("encoder", "decoder")]
        if self.discriminator is not None:
            modules.append(self.discriminator.network)
        return [buffer for module in modules for buffer in _float_buffers(module).values()]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model is in eval mode and has its averaged weights."""
        self.model.eval()
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()
            self.model.train()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, by name; not the random state."""
        found = {f"model.{name}": tensor for name, tensor in _tensors_of(self.model).items()}
        names = {id(p): f"model.{name}" for name, p in self.model.named_parameters()}
        if self.discriminator is not None:
            tensors = _tensors_of(self.discriminator)
            found |= {f"discriminator.{name}": tensor for name, tensor in tensors.items()}
            parameters = self.discriminator.named_parameters()
            names |= {id(p): f"discriminator.{name}" for name, p in parameters}
        for optimizer in self.optimizers():
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    found[f"optimizer.{names[id(parameter)]}.{key}"] = value
        if self.average is not None:
            found |= {f"average.{name}": t for name, t in self.average.shadow.items()}
        return found

    def described(self) -> dict:
        return {
            "recipe": to_mapping(self.recipe),
            "step": self.step,
            "skipped": self.skipped,
            "streak": self.streak,
            "scaler": self.scaler.state_dict(),
            "images": self.images,
        }

    def resume(self, path: Path) -> None:
        """Goes on from a checkpoint; ranks that it does not know start their random numbers anew.

        Raises:
            ValueError: the checkpoint is of another recipe; each difference is named.
        """
        described = described_in(path)
        check_same_recipe(path, described.get("recipe"), to_mapping(self.recipe))
        if described.get("images") != self.images:
            raise ValueError(
                f"checkpoint {path} is of a run on other images ({described.get('images')}; here "
                f"{self.images}): their order would be another one; choose another --out"
            )
        into = self.tensors()
        random = random_state(self.device)
        known = random.keys() <= names_in(path)
        read_checkpoint(path, into | random if known else into)
        self.step, self.skipped = described["step"], described["skipped"]
        self.streak = described["streak"]
        if described["scaler"]:
            self.scaler.load_state_dict(described["scaler"])
        if known:
            set_random_state(random, self.device)
        else:
            seed_rank(self.recipe.run.seed, self.step)

    def _trained(self) -> dict[str, Tensor]:
        """What is averaged: weights, and the statistics of norms that were measured with them."""
        found = {}
        for part in self.model.parts:
            module = getattr(self.model.tokenizer, part)
            found |= {f"{part}.{name}": weight for name, weight in module.named_parameters()}
            if part != "quantizer":
                found |= {f"{part}.{name}": b for name, b in _float_buffers(module).items()}
        return found

    def _moved_by_forward(self) -> list[Tensor]:
        """Statistics, and codes that an update rule overwrites: a forward pass changes them."""
        quantizer = self.model.tokenizer.quantizer
        codes = list(quantizer.parameters()) if "quantizer" in self.model.parts else []
        buffers = [] if self.discriminator is None else list(self.discriminator.buffers())
        return [*self.model.buffers(), *codes, *buffers]


class Average:
    """Exponential moving average of weights: shadow <- d shadow + (1 - d) weight.

    d is `decay`, and (1 + n) / (10 + n) in the first steps n, so that the start is forgotten soon.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.shadow = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), list(self.weights.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages; a second call takes it back."""
        for name, weight in self.weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)


class Undo:
    """Takes back what forward passes did to statistics, for a step that is skipped."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.copies = [t.detach().clone() for t in tensors]

    @torch.no_grad()
    def keep(self) -> None:
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            copy.copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            tensor.copy_(copy)


def build_discriminator(
    gan: AdversarialSettings, features: VisionTransformer | None = None
) -> Discriminator | None:
    """The discriminator with its loss; None for `discriminator: none`.

    Args:
        features: Of the dino discriminator, in place of the recipe's file.

    Raises:
        ValueError: see `load_vit`.
    """
    if gan.discriminator == "none":
        return None
    if gan.discriminator == "dino":
        network = DinoDiscriminator(load_vit(gan.dino_file) if features is None else features)
    else:
        network = PatchGAN(gan.width, gan.layers)
    return Discriminator(
        network,
        kind=gan.kind,
        augment=DiffAugment(gan.augment) if gan.augment else None,
        strong=DiffAugment(AUGMENTATIONS),
        bcr_weight=gan.bcr,
        lecam_weight=gan.lecam,
    )


def check_same_recipe(path: Path, old: object, new: dict) -> None:
    """Raises ValueError unless two recipes differ in nothing but what a resumed run may change."""
    if not isinstance(old, dict):
        raise ValueError(f"checkpoint {path}: its manifest holds no recipe, but {old!r}")
    parted = tuple(f"{key}{mark}" for key in FREE for mark in (":", "."))
    old = with_defaults(Recipe, old)
    found = [d for d in differences(old, new) if not d.startswith(parted)]
    if found:
        raise ValueError(
            f"checkpoint {path} is of another recipe ({'; '.join(found)}); "
            f"choose another --out, or take the recipe that is saved beside it"
        )


def _float_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in module.named_buffers() if b.is_floating_point()}


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    # Not state_dict(): what it leaves out, as counts of usage, belongs to the run as well.
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _adamw(
    groups: list[tuple[list[nn.Parameter], float, float]], betas: tuple[float, float]
) -> torch.optim.AdamW | None:
    """AdamW over groups (parameters, rate, weight decay), with its state made at once, so that a
    checkpoint can be read into it; None if nothing is to be moved."""
    described = [
        {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        for parameters, rate, decay in groups
        if parameters
    ]
    if not described:
        return None
    optimizer = torch.optim.AdamW(described, betas=betas)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer
