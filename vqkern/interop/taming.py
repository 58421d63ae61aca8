"""taming-transformers' `VectorQuantizer2`: the quantizer of VQGAN and of the models built on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .adapter import Adapter, embedding_refusal, only_has, spread_like
from .table import entry, per_item, quantize_map, require_map, uniform_table


class VectorQuantizer2(Adapter):
    """Vector quantization of feature maps [B, e_dim, H, W].

    Args:
        n_e: number of codes K.
        e_dim: channels.
        beta: weight of the commitment; with `legacy`, of the codebook loss instead.
        remap, unknown_index: not supported; remap must be None.
        sane_index_shape: indices [B, H, W] rather than [B H W].

    Raises:
        ValueError: `remap` is given.
    """

    library = "taming-transformers"
    attributes = ("n_e", "e_dim", "beta", "legacy", "remap", "sane_index_shape", "embedding")

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        if remap is not None:
            raise ValueError(f"{type(self).__name__}: remap must be None here, got {remap!r}")
        self.n_e, self.e_dim, self.beta, self.legacy = n_e, e_dim, beta, legacy
        self.remap, self.re_embed, self.sane_index_shape = None, n_e, sane_index_shape
        self.embedding = uniform_table(n_e, e_dim)

    def forward(
        self,
        z: Tensor,
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """(z_q like z, loss, (None, None, index)); the loss is not 0 in eval mode.

        A position that is not finite gets index -1 and NaN, and counts nowhere.
        """
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise ValueError(
                "VectorQuantizer2: temp, rescale_logits and return_logits must be left alone, got "
                f"{temp!r}, {rescale_logits!r}, {return_logits!r}"
            )
        return quantize(self, z)

    def get_codebook_entry(self, indices: Tensor, shape: tuple | None) -> Tensor:
        """The codes behind indices [B H W], as [B, e_dim, H, W] where shape is (B, H, W, e_dim)."""
        table = self.embedding.weight
        name = type(self).__name__
        return entry(name, table, indices, shape, first=True, channel_at=3)

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        if module.remap is not None:
            return "option remap is not supported"
        codes, channels = cls.attributes[:2]
        shape = (getattr(module, codes), getattr(module, channels))
        return embedding_refusal(module, shape) or only_has(module, "embedding.weight")

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        return per_item(spread_like(module.embedding.weight, items, generator))


def quantize(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
    """The forward pass of a module with the attributes of `VectorQuantizer2`."""
    weight = module.embedding.weight
    require_map(type(module).__name__, "z", z, weight.shape[1])
    quantized, loss, index = quantize_map(z, weight, module.beta, legacy=module.legacy)
    if module.sane_index_shape:
        index = index.reshape(len(z), *z.shape[2:])
    return quantized, loss, (None, None, index)
