"""GroupedResidualVQ, with the constructor, results and keys of vector-quantize-pytorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops.checks import require_index
from .options import require_numbers
from .residual_vq import ResidualVQ, agreed_seed


class GroupedResidualVQ(nn.Module):
    """The channels in `groups` equal parts, each with a ResidualVQ of its own (HiFi-Codec, 2023).

    The arguments are those of vector-quantize-pytorch's class of this name; further ones go to
    every `ResidualVQ`. Indices and losses get a first axis of groups.

    Raises:
        ValueError: dim is not a multiple of groups, or an option is not supported.
    """

    def __init__(
        self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs
    ) -> None:
        super().__init__()
        require_numbers("GroupedResidualVQ", dim=dim, groups=groups)
        if dim % groups:
            raise ValueError(
                f"GroupedResidualVQ: dim must be a multiple of groups, got {dim} and {groups}"
            )
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList(
            ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **kwargs)
            for _ in range(groups)
        )

    @property
    def codebooks(self) -> Tensor:
        """[groups, layers, K, D]."""
        return torch.stack([part.codebooks for part in self.rvqs])

    @property
    def split_dim(self) -> int:
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of every group and layer, [groups, layers, B, ..., D]."""
        pairs = zip(self.rvqs, self._by_group(indices), strict=True)
        return torch.stack([part.get_codes_from_indices(index) for part, index in pairs])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What `forward` gives for these indices [groups, B, ..., layers] in eval mode, channels
        last."""
        pairs = zip(self.rvqs, self._by_group(indices), strict=True)
        return torch.cat([part.get_output_from_indices(index) for part, index in pairs], -1)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """(quantized like x, index [groups, B, ..., layers], loss [groups, layers]), and all codes
        if asked for."""
        if x.shape[self.split_dim] != self.dim:
            raise ValueError(
                f"GroupedResidualVQ: x must have {self.dim} channels at dimension "
                f"{self.split_dim}, got {list(x.shape)}"
            )
        # All groups drop the same layers.
        seed = agreed_seed(x.device) if self.training else None
        results = [
            part(
                chunk,
                mask=mask,
                indices=indices,
                return_all_codes=return_all_codes,
                sample_codebook_temp=sample_codebook_temp,
                freeze_codebook=freeze_codebook,
                rand_quantize_dropout_fixed_seed=seed,
            )
            for part, chunk in zip(self.rvqs, x.chunk(self.groups, self.split_dim), strict=True)
        ]
        quantized, index, loss, *codes = zip(*results, strict=True)
        result = torch.cat(quantized, self.split_dim), torch.stack(index), torch.stack(loss)
        return (*result, *codes)

    def _by_group(self, indices: Tensor) -> Tensor:
        require_index("GroupedResidualVQ", "indices", indices)
        if indices.shape[:1] != (self.groups,):
            raise ValueError(
                f"GroupedResidualVQ: indices must have {self.groups} groups in the first "
                f"dimension, got {list(indices.shape)}"
            )
        return indices
