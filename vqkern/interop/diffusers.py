"""diffusers' `VectorQuantizer`, the one inside its `VQModel`: taming's with other names."""

from __future__ import annotations

from torch import Tensor

from .taming import VectorQuantizer2, quantize


class VectorQuantizer(VectorQuantizer2):
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
        super().__init__(n_e, vq_embed_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.vq_embed_dim = vq_embed_dim

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """(z_q like z, loss, (None, None, index)); the loss is not 0 in eval mode.

        A position that is not finite gets index -1 and NaN, and counts nowhere.
        """
        return quantize(self, z)
