"""The variational latent of VAEVQ: a Gaussian per token, of which a sample is quantized."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .alignment import Alignment
from .base import require_weight
from .codes import Table
from .estimators import Estimator, estimate, straight_through
from .pulls import two_pulls
from .updates import Gradient
from .vector import VectorQuantizer

FORMS = ("paper", "released")


class Branches(NamedTuple):
    """What the shared decoder of VAEVQ decodes, `sampled` and `quantized`, shaped like the mean;
    `index` and `loss` as in QuantizeResult."""

    sampled: Tensor
    quantized: Tensor
    index: Tensor
    loss: Tensor


class VariationalQuantizer(VectorQuantizer):
    """A vector quantizer of Gaussian latents N(mean, diag(std^2)) (VAEVQ, VLQ and RCS).

    z has 2 dim channels, the mean and then the log-variance, which is clamped to [-30, 20]. In
    training z_c = mean + std noise (eq. 1) is quantized (eq. 2); in eval mode the mean is, and
    `encode`, `decode`, masked positions and the result know the mean alone.

    loss = rcs_weight RCS + kl_weight KL + alignment
           + commitment mse(z_c, sg z_q) + codebook_weight mse(sg z_c, z_q), means over tokens:
        RCS = 1/2 mean over channels of ((z_q - mean) / sg std)^2 (eq. 7, per channel as released);
            it moves the codes, too, and takes the place of the two pulls between z_c and z_q,
            which are for the paper's ablations without it.
        KL = 1/2 sum over channels of mean^2 + std^2 - 1 - log std^2.

    Args:
        codes: the parametrisation; the released one is ``Linear(Table(K, dim, init="scaled"))``.
        alignment: `PriorWasserstein(0.1)` in the paper (DCR, eq. 11); None for nothing.
        rcs_weight: lambda_rcs of eq. 12.
        kl_weight: of KL. The paper names none; 2.56e-4 is latent diffusion's 1e-6 times the sum
            over an image of 256 tokens.
        commitment, codebook_weight: of the two pulls; 0.25 and 1 where `rcs_weight` is 0.
        form: ``"paper"``, or ``"released"``: the mean is quantized in training as well, RCS has a
            gradient to std, and z_q = mean + std sg(eps) + q - sg q with eps = (q - mean) / std, so
            that the decoder's gradient reaches mean, std and codes; it has no other estimator.
        channel_dim: where z has its channels.
        estimator: of the paper's form: (z_c, nearest) -> quantized, or an object like
            `IndexBackprop`.
    """

    def __init__(
        self,
        codes: nn.Module,
        *,
        alignment: Alignment | None = None,
        rcs_weight: float = 1.0,
        kl_weight: float = 2.56e-4,
        commitment: float = 0.0,
        codebook_weight: float = 0.0,
        form: str = "paper",
        channel_dim: int = -1,
        estimator: Estimator = straight_through,
    ) -> None:
        super().__init__(
            codes,
            update=Gradient(codebook_weight),
            alignment=alignment,
            commitment=commitment,
            channel_dim=channel_dim,
            estimator=estimator,
        )
        require_weight("rcs_weight", rcs_weight)
        require_weight("kl_weight", kl_weight)
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}")
        if form == "released" and estimator is not straight_through:
            raise ValueError(
                f"form='released' has an estimator of its own, got estimator {estimator!r}"
            )
        self.rcs_weight = rcs_weight
        self.kl_weight = kl_weight
        self.form = form

    @property
    def in_channels(self) -> int:
        """Mean and log-variance: 2 dim."""
        return 2 * self.dim

    def branches(
        self, z: Tensor, mask: Tensor | None = None, *, noise: Tensor | None = None
    ) -> Branches:
        """As `forward`, with the sampled branch, which a trainer decodes, too (eq. 3 and 4).

        Args:
            z, mask: as for `forward`.
            noise: of the sample, shaped like the mean; None draws it. In eval mode the sample is
                the mean.
        """
        latents = self._to_latents(z)
        usable, counted = self._masked(latents, mask)
        if noise is not None:
            noise = noise.movedim(self.channel_dim, -1)
        sampled, quantized, index, loss = self._branches(usable, counted, noise)
        if mask is not None:
            mean = latents[..., : self.dim]
            sampled, quantized = (
                torch.where(counted[..., None], x, mean) for x in (sampled, quantized)
            )
        sampled, quantized = (x.movedim(-1, self.channel_dim) for x in (sampled, quantized))
        return Branches(sampled, quantized, index, loss)

    def _quantize(self, latents: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._branches(latents, counted, None)[1:]

    def _branches(
        self, latents: Tensor, counted: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, log_variance = latents.chunk(2, dim=-1)
        if not self.training:
            return mean, *super()._quantize(mean, counted)
        log_variance = log_variance.clamp(-30, 20).float()
        noise = torch.randn_like(mean) if noise is None else noise
        sampled = mean + ((log_variance / 2).exp() * noise).to(mean.dtype)
        target = sampled if self.form == "paper" else mean
        # The clamp makes an infinite log-variance finite; such a row is not usable all the same.
        target = torch.where(latents.isfinite().all(-1, keepdim=True), target, torch.nan)
        codes = self._snapshot()
        index = self._assign(target, codes)
        self._count(index, counted)
        valid = (index >= 0)[..., None]
        nearest = self._take(codes, index)
        # Rows left out become N(0, 1) at 0, whose terms are 0: NaN * 0 must not reach a gradient.
        place, log_variance, chosen = (
            torch.where(valid, x.float(), 0) for x in (mean, log_variance, nearest)
        )
        std = (log_variance / 2).exp()
        deviation = (chosen - place) / (std.detach() if self.form == "paper" else std)
        tokens = valid.sum().clamp_min(1)
        rcs = 0.5 * deviation.square().sum() / (tokens * self.dim)
        kl = 0.5 * (place.square() + log_variance.exp() - 1 - log_variance).sum() / tokens
        loss = self.rcs_weight * rcs + self.kl_weight * kl
        if self.commitment or self.update.weight:
            rows = (x.reshape(-1, self.dim) for x in (target, nearest))
            weights = self.commitment, self.update.weight
            loss = loss + two_pulls(*rows, valid.flatten(), *weights)
        if self.alignment is not None:
            rows = sampled.reshape(-1, self.dim)
            loss = loss + self.alignment(rows, valid.flatten(), codes.clone())
        if self.form == "paper":
            own = nearest.detach().to(mean.dtype)
            quantized = estimate(self.estimator, sampled, own, index, codes)
        else:
            moved = mean + (std * deviation.detach()).to(mean.dtype)
            quantized = straight_through(moved + (nearest - nearest.detach()), nearest.detach())
            quantized = quantized.to(mean.dtype)
        return sampled, quantized, index, loss

    def _around(self, table: Table) -> tuple[VectorQuantizer, dict]:
        _, options = super()._around(table)
        own = {
            "rcs_weight": self.rcs_weight,
            "kl_weight": self.kl_weight,
            "commitment": self.commitment,
            "codebook_weight": self.update.weight,
            "form": self.form,
        }
        quantizer = VariationalQuantizer(
            table, **own, channel_dim=self.channel_dim, estimator=self.estimator
        )
        return quantizer, {
            **options,
            **own,
            "name": "vaevq",
            "parametrisation": "table",
            "dcr_weight": 0.0,
        }
