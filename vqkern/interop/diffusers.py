"""diffusers' `VectorQuantizer`, the one inside its `VQModel`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .adapter import Adapter, embedding_refusal, only_has, spread_like
from .table import entry, per_item, quantize_map, require_map, uniform_table


class VectorQuantizer(Adapter):
    """Vector quantization of feature maps [B, vq_embed_dim, H, W].

    Args:
        n_e: number of codes K.
        vq_embed_dim: channels.
        beta: weight of the commitment; with `legacy`, of the codebook loss instead.
        remap, unknown_index: not supported; remap must be None.
        sane_index_shape: indices [B, H, W] rather than [B H W].

    Raises:
        ValueError: `remap` is given.
    """

    library = "diffusers"
    attributes = ("n_e", "vq_embed_dim", "beta", "legacy", "remap", "sane_index_shape", "embedding")

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        beta: float,
        remap: str | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        if remap is not None:
            raise ValueError(f"VectorQuantizer: remap must be None here, got {remap!r}")
        self.n_e, self.vq_embed_dim, self.beta, self.legacy = n_e, vq_embed_dim, beta, legacy
        self.remap, self.re_embed, self.sane_index_shape = None, n_e, sane_index_shape
        self.embedding = uniform_table(n_e, vq_embed_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """(z_q like z, loss, (None, None, index)); the loss is not 0 in eval mode.

        A position that is not finite gets index -1 and NaN, and counts nowhere.
        """
        weight = self.embedding.weight
        require_map("VectorQuantizer", "z", z, weight.shape[1])
        quantized, loss, index = quantize_map(z, weight, self.beta, legacy=self.legacy)
        if self.sane_index_shape:
            index = index.reshape(len(z), *z.shape[2:])
        return quantized, loss, (None, None, index)

    def get_codebook_entry(self, indices: Tensor, shape: tuple | None) -> Tensor:
        """The codes behind indices [B H W], as [B, C, H, W] where shape is (B, H, W, C)."""
        table = self.embedding.weight
        return entry("VectorQuantizer", table, indices, shape, first=True, channel_at=3)

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        if module.remap is not None:
            return "option remap is not supported"
        return embedding_refusal(module, (module.n_e, module.vq_embed_dim)) or only_has(
            module, "embedding.weight"
        )

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        return per_item(spread_like(module.embedding.weight, items, generator))
