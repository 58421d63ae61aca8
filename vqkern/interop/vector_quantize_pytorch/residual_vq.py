"""ResidualVQ, with the constructor, results and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from ...distributed import sum_over_ranks
from ...ops.checks import require_index
from ...ops.take_codes import take_codes
from ..terms import directional
from .options import require_numbers
from .vector_quantize import VectorQuantize

NOT_HERE = {"implicit_neural_codebook": False, "beam_size": None, "eval_beam_size": None}


class ResidualVQ(nn.Module):
    """Every layer quantizes what the layers before it left; indices get a last axis of layers.

    The arguments are those of vector-quantize-pytorch's class of this name; further ones go to the
    `VectorQuantize` of every layer. `loss` has one value a layer.

    Raises:
        ValueError: an option is not supported, or two exclude each other.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: list[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        **vq_kwargs,
    ) -> None:
        super().__init__()
        given = locals()
        for option, off in NOT_HERE.items():
            if given[option] != off:
                raise ValueError(
                    f"ResidualVQ: {option} must be {off!r} here, got {given[option]!r}; "
                    "docs/interop.md lists what is supported"
                )
        if heads != 1:
            raise ValueError(f"ResidualVQ: heads must be 1, got {heads!r}")
        sizes = codebook_size if isinstance(codebook_size, tuple) else None
        if sizes is None:
            if num_quantizers is None:
                raise ValueError(
                    "ResidualVQ: num_quantizers must be given, or codebook_size be a tuple"
                )
            require_numbers("ResidualVQ", num_quantizers=num_quantizers)
            sizes = (codebook_size,) * num_quantizers
        if num_quantizers not in (None, len(sizes)):
            raise ValueError(
                f"ResidualVQ: codebook_size has {len(sizes)} sizes, num_quantizers is "
                f"{num_quantizers!r}"
            )
        if shared_codebook and len(set(sizes)) > 1:
            raise ValueError(f"ResidualVQ: shared_codebook needs one codebook_size, got {sizes}")
        if not 0 <= quantize_dropout_cutoff_index < len(sizes):
            raise ValueError(
                "ResidualVQ: quantize_dropout_cutoff_index must be in "
                f"[0, {len(sizes)}), got {quantize_dropout_cutoff_index!r}"
            )
        require_numbers("ResidualVQ", quantize_dropout_multiple_of=quantize_dropout_multiple_of)
        width = dim if codebook_dim is None else codebook_dim
        require_numbers("ResidualVQ", dim=dim, codebook_dim=width)
        self.num_quantizers, self.codebook_sizes = len(sizes), sizes
        self.codebook_dim = width
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.accept_image_fmap = accept_image_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.has_projections = width != dim
        self.project_in = nn.Linear(dim, width) if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(width, dim) if self.has_projections else nn.Identity()
        options = {
            **vq_kwargs,
            "return_zeros_for_masked_padding": return_zeros_for_masked_padding,
        }
        if shared_codebook:
            options |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            options |= {
                "ema_update": False,
                "learnable_codebook": True,
                "route_gradients_to_input": False,
                "commitment_weight": 0.0,
            }
        self.layers = nn.ModuleList(
            VectorQuantize(width, size, accept_image_fmap=accept_image_fmap, **options)
            for size in sizes
        )
        self.shared_codebook, self.diveq = shared_codebook, diveq
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.quantize_dropout = quantize_dropout and self.num_quantizers > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        if shared_codebook:
            for layer in self.layers:
                layer._codebook = self.layers[0]._codebook

    @property
    def codebook_size(self) -> int:
        return self.codebook_sizes[0]

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """[layers, K, D], a tuple where sizes differ."""
        codes = tuple(layer.codebook for layer in self.layers)
        return torch.stack(codes) if self.uniform_codebook_size else codes

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of every layer, [layers, B, ..., D]; -1 (dropped) and missing layers give 0."""
        require_index("ResidualVQ", "indices", indices)
        given = indices.shape[-1] if indices.dim() else 0
        if not 1 <= given <= self.num_quantizers:
            raise ValueError(
                f"ResidualVQ: indices must have up to {self.num_quantizers} layers in the last "
                f"dimension, got {list(indices.shape)}"
            )
        codes = []
        for number, layer in enumerate(self.layers):
            if number < given:
                index = indices[..., number]
                found = take_codes(layer.codebook, index)
                codes.append(torch.where((index >= 0)[..., None], found, 0))
            else:
                codes.append(torch.zeros_like(codes[0]))
        return torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What `forward` gives for these indices in eval mode, channels last."""
        return self.project_out(self.get_codes_from_indices(indices).sum(0))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """(quantized like x, index [B, ..., layers], loss [layers]), and all codes if asked for.

        Args:
            x: [B, N, dim], or a map [B, dim, H, W] as constructed.
            mask, sample_codebook_temp: as in VectorQuantize.
            rand_quantize_dropout_fixed_seed: chooses how many layers `quantize_dropout` leaves.
        """
        for name, value in (("indices", indices), ("beam_size", beam_size)):
            if value is not None:
                raise ValueError(f"ResidualVQ: {name}= is not supported; see docs/interop.md")
        if mask is not None and self.accept_image_fmap:
            raise ValueError("ResidualVQ: mask must be None with accept_image_fmap")
        axis = 1 if self.accept_image_fmap else -1
        if self.has_projections and axis == 1:
            rest = self.project_in(x.movedim(1, -1)).movedim(-1, 1)
        else:
            rest = self.project_in(x)
        start, total = rest, torch.zeros_like(rest)
        last = self._last_layer(x.device, rand_quantize_dropout_fixed_seed)
        index, losses, features = [], [], []
        for number, layer in enumerate(self.layers):
            if number > last:
                index.append(torch.full_like(index[0], -1))
                losses.append(torch.zeros_like(losses[0]))
                continue
            features.append(rest)
            quantized, found, loss = layer(
                rest,
                mask=mask,
                freeze_codebook=freeze_codebook,
                sample_codebook_temp=sample_codebook_temp,
            )
            index.append(found)
            losses.append(loss)
            passed = quantized.detach()
            if self.quant_grad_frac > 0:
                share = self.quant_grad_frac
                passed = share * quantized + (1 - share) * passed
            rest = rest - passed
            total = total + quantized
        if self.training and self.shared_codebook:
            self._settle_shared(torch.stack([f.movedim(axis, -1) for f in features], -2))
        if self.diveq:
            total = directional(start, total, 5e-3)
        if self.has_projections and axis == 1:
            total = self.project_out(total.movedim(1, -1)).movedim(-1, 1)
        else:
            total = self.project_out(total)
        if mask is not None:
            fill = torch.zeros_like(total) if self.return_zeros_for_masked_padding else x
            total = torch.where(mask[..., None], total, fill)
        result = total, torch.stack(index, -1), torch.stack(losses)
        return (*result, self.get_codes_from_indices(result[1])) if return_all_codes else result

    def _last_layer(self, device: torch.device, seed: int | None) -> int:
        if not (self.training and self.quantize_dropout):
            return self.num_quantizers - 1
        seed = agreed_seed(device) if seed is None else seed
        chosen = random.Random(seed)
        last = chosen.randrange(self.quantize_dropout_cutoff_index, self.num_quantizers)
        multiple = self.quantize_dropout_multiple_of
        return -(-(last + 1) // multiple) * multiple - 1

    def _settle_shared(self, features: Tensor) -> None:
        """One step of a shared codebook, with the features [B, ..., layers, D] of all layers."""
        layer = self.layers[0]
        if layer.ema_update:
            layer._codebook.update_ema()
            layer.update_in_place_optimizer()
        layer.expire_codes_(features)


def agreed_seed(device: torch.device) -> int:
    """A random seed that is the same on all ranks."""
    draw = torch.randint(0, 10_000, (), device=device)
    sum_over_ranks(draw)
    return int(draw)
