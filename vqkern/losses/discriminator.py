"""The discriminator of a GAN: its loss, its regularisers, and the generator's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkern.distributed import number_of_ranks, sum_over_ranks


class AdversarialLoss(NamedTuple):
    """Losses of logits: of the discriminator (real, fake) and of the generator (fake)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def _logistic(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def _non_saturating(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


# hinge: Lim & Ye 2017, the generator's loss being -D(fake). non_saturating: Goodfellow et al. 2014,
# -log sigmoid D(fake). hinge_non_saturating: the discriminator's side of the first and the
# generator's of the second, as VAEVQ's program has them.
ADVERSARIAL: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(_hinge, lambda fake: -fake.mean()),
    "non_saturating": AdversarialLoss(_logistic, _non_saturating),
    "hinge_non_saturating": AdversarialLoss(_hinge, _non_saturating),
}


class LeCAM(nn.Module):
    """LeCAM (Tseng et al. 2021, eq. 3): logits are held near the average of the other side.

    mean relu(D(x) - a_fake)^2 + mean relu(a_real - D(x^))^2, a the exponential moving averages of
    the mean logits over all ranks. The averages are buffers, so that they are saved; before the
    first step they are unset and the term is 0.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        now = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
        sum_over_ranks(now)
        now /= number_of_ranks()
        started = self.steps > 0
        average_real, average_fake = self.averages.clone()
        term = F.relu(real - average_fake).square().mean()
        term = term + F.relu(average_real - fake).square().mean()
        with torch.no_grad():
            moved = self.averages.lerp(now, 1 - self.decay)
            self.averages.copy_(torch.where(started, moved, now))
            self.steps += 1
        return torch.where(started, term, 0)


class Discriminator(nn.Module):
    """A network that tells real images from fake, and its loss: `forward(real, fake)`.

    loss = adversarial + lecam_weight LeCAM + bcr_weight (mse(D(T x), D(x)) + mse(D(T x^), D(x^))),
    the last being balanced consistency (bCR, Zhao et al. 2021) under a strong augmentation T.

    Args:
        network: Images [B, 3, H, W] in [-1, 1] to logits of any shape.
        kind: One of `ADVERSARIAL`.
        augment: Changes what the network sees, real and fake, in training both sides.
        strong: T; needed where bcr_weight > 0.
        bcr_weight, lecam_weight: 0 leaves the term out; it is not computed then.

    Raises:
        ValueError: an unknown kind, or consistency without a strong augmentation.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        kind: str = "hinge",
        augment: Callable[[Tensor], Tensor] | None = None,
        strong: Callable[[Tensor], Tensor] | None = None,
        bcr_weight: float = 0.0,
        lecam_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ADVERSARIAL:
            raise ValueError(f"kind: expected one of {sorted(ADVERSARIAL)}, got {kind!r}")
        if bcr_weight and strong is None:
            raise ValueError("strong: bcr_weight > 0 needs an augmentation, got None")
        self.network = network
        self.loss = ADVERSARIAL[kind]
        self.augment = augment or _as_is
        self.strong = strong
        self.bcr_weight = bcr_weight
        self.lecam_weight = lecam_weight
        self.lecam = LeCAM() if lecam_weight else None

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's loss, and [mean D(real), mean D(fake)] to look at."""
        seen_real, seen_fake = self.augment(real), self.augment(fake.detach())
        # One call for each side: a normalisation over the batch must not mix them.
        on_real, on_fake = self._logits(seen_real), self._logits(seen_fake)
        loss = self.loss.discriminator(on_real, on_fake)
        if self.lecam is not None:
            loss = loss + self.lecam_weight * self.lecam(on_real, on_fake)
        if self.bcr_weight:
            for seen, logits in ((seen_real, on_real), (seen_fake, on_fake)):
                loss = loss + self.bcr_weight * F.mse_loss(self._logits(self.strong(seen)), logits)
        return loss, torch.stack([on_real.detach().mean(), on_fake.detach().mean()])

    def generator_loss(self, fake: Tensor) -> Tensor:
        """What the decoder that made `fake` is to lower."""
        return self.loss.generator(self._logits(self.augment(fake)))

    def _logits(self, images: Tensor) -> Tensor:
        return self.network(images).float()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, *, largest: float = 1e4
) -> Tensor:
    """VQGAN's balance (Esser et al. 2021, eq. 7): |grad of one| / (|grad of the other| + 1e-4).

    The gradients are those of the decoder's last layer. The result is the mean over ranks, so that
    all of them train with the same loss, clamped to [0, largest] and detached.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight = of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)
    weight = weight.detach().float().clamp(0, largest)
    sum_over_ranks(weight)
    return weight / number_of_ranks()


def _as_is(images: Tensor) -> Tensor:
    return images
