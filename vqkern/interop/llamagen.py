"""LlamaGen's `VectorQuantizer`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.take_codes import take_codes
from .adapter import Adapter, embedding_refusal, only_has, spread_like
from .table import entry, nearest, per_item, require_map, uniform_table, unit, usage_by_window
from .terms import mse

WINDOW = 65536


class VectorQuantizer(Adapter):
    """Vector quantization of feature maps [B, e_dim, H, W], by angle where `l2_norm`.

    Args:
        n_e: number of codes K.
        e_dim: channels.
        beta: weight of the commitment.
        entropy_loss_ratio: must be 0, as released; another needs a softmax over all codes.
        l2_norm: z and codes are brought to unit length.
        show_usage: in training mode, the share of the codes in the last 65,536 indices is returned.

    Raises:
        ValueError: `entropy_loss_ratio` is not 0.
    """

    library = "LlamaGen"
    attributes = (
        "n_e",
        "e_dim",
        "beta",
        "entropy_loss_ratio",
        "l2_norm",
        "show_usage",
        "embedding",
    )

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        entropy_loss_ratio: float,
        l2_norm: bool,
        show_usage: bool,
    ) -> None:
        super().__init__()
        if entropy_loss_ratio != 0:
            raise ValueError(
                f"VectorQuantizer: entropy_loss_ratio must be 0 here, got {entropy_loss_ratio!r}"
            )
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.entropy_loss_ratio, self.l2_norm, self.show_usage = 0.0, l2_norm, show_usage
        self.embedding = uniform_table(n_e, e_dim)
        if l2_norm:
            self.embedding.weight.data = unit(self.embedding.weight.data)
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(WINDOW))

    def forward(self, z: Tensor) -> tuple[Tensor, tuple, tuple[None, None, Tensor]]:
        """(z_q like z, (vq loss, commitment loss, entropy loss, usage), (None, None, index [N])).

        The losses are None in eval mode, the entropy loss is 0. A position that is not finite gets
        index -1 and NaN, and counts nowhere.
        """
        weight = self.embedding.weight
        require_map("VectorQuantizer", "z", z, weight.shape[1])
        last = z.permute(0, 2, 3, 1)
        rows = last.reshape(-1, last.shape[-1])
        index = nearest(rows, weight, normalised=self.l2_norm)
        codes = take_codes(weight, index)
        if self.l2_norm:
            rows, codes = unit(rows), unit(codes)
        losses: tuple = (None, None, None, 0)
        if self.training:
            usage = 0
            if self.show_usage:
                usage = usage_by_window(self.codebook_used, index, self.n_e)
            valid = index >= 0
            vq = mse(codes, rows.detach(), valid)
            commit = self.beta * mse(codes.detach(), rows, valid)
            losses = vq, commit, torch.zeros_like(vq), usage
        quantized = (rows + (codes - rows).detach()).reshape(last.shape)
        return quantized.permute(0, 3, 1, 2), losses, (None, None, index)

    def get_codebook_entry(
        self, indices: Tensor, shape: tuple | None = None, channel_first: bool = True
    ) -> Tensor:
        """The codes behind indices [N].

        Args:
            shape: of the result: (B, C, H, W), or (B, H, W, C) if not channel_first.
        """
        table = unit(self.embedding.weight) if self.l2_norm else self.embedding.weight
        place = 1 if channel_first else 3
        return entry(
            "VectorQuantizer", table, indices, shape, first=channel_first, channel_at=place
        )

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        if module.entropy_loss_ratio != 0:
            return f"option entropy_loss_ratio={module.entropy_loss_ratio!r} is not supported"
        return embedding_refusal(module, (module.n_e, module.e_dim)) or only_has(
            module, "embedding.weight", "codebook_used"
        )

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        return per_item(spread_like(module.embedding.weight, items, generator))

    @classmethod
    def prepare(cls, twin: nn.Module) -> None:
        # There it may be a parameter in a buffer's place, which its own code cannot write to.
        if "codebook_used" in twin._buffers:
            twin.codebook_used = twin.codebook_used.detach().clone()
