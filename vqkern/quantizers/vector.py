"""The vector quantizer: a code parametrisation, an update rule and an alignment, composed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import nearest_code
from ..ops.take_codes import take_codes
from .alignment import Alignment
from .base import Quantizer, require_weight
from .codes import Table
from .estimators import (
    Estimator,
    estimate,
    estimator_option,
    require_estimator,
    straight_through,
)
from .kmeans import kmeans
from .pulls import masked_mse, pulled_through, two_pulls
from .updates import Gradient, table_of
from .usage import Usage, UsageCounter, runs_again


class VectorQuantizer(Quantizer):
    """Replaces every latent by the nearest code, exactly.

    loss = commitment * mse(z, sg e) + update.loss + alignment, means over tokens and channels.

    Args:
        codes: the parametrisation, a module whose call gives the codes [K, dim]. Autocast never
            reaches it: indices are those of its codes in their own precision.
        update: how codes move; None is `Gradient()`.
        alignment: what pulls the codes' distribution to the features; None for nothing.
        commitment: weight of the pull of the encoder to its codes (beta).
        channel_dim: where z has its channels: -1, or 1 for feature maps.
        estimator: through which the gradient reaches z in training: (z, nearest) -> quantized, or
            an object like `IndexBackprop`.
    """

    def __init__(
        self,
        codes: nn.Module,
        *,
        update: nn.Module | None = None,
        alignment: Alignment | None = None,
        commitment: float = 0.25,
        channel_dim: int = -1,
        estimator: Estimator = straight_through,
    ) -> None:
        super().__init__(codes.dim, channel_dim=channel_dim)
        require_weight("commitment", commitment)
        if alignment is not None and not callable(alignment):
            raise ValueError(
                f"alignment must be an Alignment, its config or None, got {alignment!r}"
            )
        require_estimator(estimator)
        self.parametrisation = codes
        self.update = Gradient() if update is None else update
        self.update.attach(codes)
        self.alignment = alignment
        self.commitment = commitment
        self.estimator = estimator
        self.counter = UsageCounter(codes.num_codes)
        self.register_load_state_dict_post_hook(_forget_other_codes)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        codes_came = any(key.startswith(prefix + "parametrisation.") for key in state_dict)
        statistics = [f"{prefix}update.{name}" for name, _ in self.update.named_buffers()]
        *_, errors = rest
        self._loading = codes_came and not all(key in state_dict for key in statistics), errors

    @property
    def codebook_size(self) -> int:
        return self.parametrisation.num_codes

    @property
    def codes(self) -> Tensor:
        if isinstance(self.parametrisation, Table):  # nothing to compute that autocast could reach
            return self.parametrisation()
        device = self.counter.count.device.type
        # Autocast does not know "meta", on which a model's shapes are worked out without memory.
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            return self.parametrisation()

    def _snapshot(self) -> Tensor:
        if self.training and type(self.update) is not Gradient and runs_again():
            name = type(self.update).__name__
            raise RuntimeError(
                f"{name}: a forward pass runs again inside of a backward pass, as in activation "
                f"checkpointing, but {name} has moved the codes since; leave the quantizer out of "
                "what is checkpointed"
            )
        return self.codes

    def _assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(latents.detach(), codes.detach()).index

    def _take(self, codes: Tensor, index: Tensor) -> Tensor:
        return take_codes(codes, index)

    def _estimators(self) -> list[Estimator]:
        return [self.estimator]

    def _estimate(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        return estimate(self.estimator, latents, nearest, index, codes)

    def _train(self, latents: Tensor, index: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        nearest = take_codes(codes, index)
        if self.estimator is straight_through and type(self.update) is Gradient:
            rows, valid = latents.reshape(-1, self.dim), index.flatten() >= 0
            weights = self.commitment, self.update.weight
            quantized, loss = pulled_through(rows, nearest.reshape(rows.shape), valid, *weights)
            return quantized.reshape(latents.shape), loss + self._settle(latents, index, codes)
        # Before the step, which may overwrite the codes.
        quantized = self._estimate(latents, nearest.detach().to(latents.dtype), index, codes)
        return quantized, self._learn(latents, nearest, index, codes)

    def _learn(self, latents: Tensor, nearest: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        rows, nearest = latents.reshape(-1, self.dim), nearest.reshape(-1, self.dim)
        index = index.flatten()
        if type(self.update) is Gradient:
            loss = two_pulls(rows, nearest, index >= 0, self.commitment, self.update.weight)
        else:
            loss = self.commitment * masked_mse(rows, nearest.detach(), index >= 0)
            loss = loss + self.update.loss(rows, nearest, index)
        return loss + self._settle(rows, index, codes)

    def _settle(self, latents: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        rows, index = latents.reshape(-1, self.dim), index.flatten()
        loss = rows.new_zeros((), dtype=torch.float32)
        if self.alignment is not None:
            # A copy: the update rule may overwrite codes that an alignment keeps for its gradient.
            loss = loss + self.alignment(rows, index >= 0, codes.clone())
        self.update.step(rows, index)
        return loss

    def _count(self, index: Tensor, counted: Tensor) -> None:
        self.counter.add(index.flatten(), counted.flatten())

    def usage(self) -> Usage:
        return self.counter.usage()

    def reset_usage(self) -> None:
        self.counter.reset()

    @torch.no_grad()
    def load_codes(self, codes: Tensor) -> None:
        """Overwrites a free table with codes [K, dim]; the update rule's statistics start anew.

        Raises:
            TypeError: the codes are not a free table, which alone can take any values.
            ValueError: wrong shape, or a value is not finite.
        """
        self._require_table("load_codes")
        weight = table_of("load_codes", self.parametrisation)
        if codes.shape != weight.shape:
            raise ValueError(f"codes must have shape {list(weight.shape)}, got {list(codes.shape)}")
        if not bool(codes.isfinite().all()):
            raise ValueError("codes must be finite, got NaN or infinity")
        weight.copy_(codes)
        self.update.reset()

    def _start_from(self, rows: Tensor) -> None:
        self._require_table("start_from")
        self.load_codes(kmeans(rows, self.codebook_size))

    def _require_table(self, name: str) -> None:
        if not isinstance(self.parametrisation, Table):
            raise TypeError(
                f"{name} needs a free table, this is {type(self.parametrisation).__name__}"
            )

    def fold(self) -> VectorQuantizer:
        """A plain quantizer with the effective codes as its table, and nothing that moves them."""
        codes = self.codes.detach()
        folded, options = self._around(Table(*codes.shape))
        folded.to(device=codes.device, dtype=codes.dtype).load_codes(codes)
        folded.config = {
            "dim": self.dim,
            "codebook_size": self.codebook_size,
            "channel_dim": self.channel_dim,
            **options,
        }
        return folded.train(self.training)

    def _around(self, table: Table) -> tuple[VectorQuantizer, dict]:
        """A quantizer like this one around a table moved by gradients, and how to build it."""
        quantizer = VectorQuantizer(
            table,
            commitment=self.commitment,
            channel_dim=self.channel_dim,
            estimator=self.estimator,
        )
        return quantizer, {
            "name": "vanilla",
            "commitment": self.commitment,
            **estimator_option(self.estimator),
        }


def _forget_other_codes(quantizer: VectorQuantizer, _incompatible) -> None:
    """Where codes came without the statistics of their rule, as from a quantizer of another."""
    codes_came_alone, errors = quantizer.__dict__.pop("_loading", (False, []))
    if codes_came_alone and not errors:
        quantizer.update.reset()
