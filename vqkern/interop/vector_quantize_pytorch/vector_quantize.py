"""VectorQuantize, with the constructor, results and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...distributed import number_of_ranks
from ...ops.checks import require_index
from ...ops.take_codes import take_codes
from ...quantizers.base import require_weight
from ...quantizers.estimators import rotation_trick
from ...quantizers.estimators import straight_through as pass_through
from ..adapter import Adapter, spread_like
from ..terms import directional, l2norm, mse, orthogonality
from . import codebook as books
from . import layout
from . import options as supported


class LossBreakdown(NamedTuple):
    """The unweighted terms of the loss."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class VectorQuantize(Adapter):
    """Vector quantization with exact search and memory for N x D + K x D.

    The arguments are those of vector-quantize-pytorch's class of this name, in its order; one that
    is not supported (docs/interop.md) raises unless it has its default. Codes move by moving
    averages unless `learnable_codebook`; the gradient reaches z by the rotation trick unless it is
    off.

    Raises:
        ValueError: an option is not supported, or two exclude each other.
    """

    library = "vector-quantize-pytorch"
    takes_over = ("forward",)

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
    ) -> None:
        super().__init__()
        supported.require_supported("VectorQuantize", locals())
        supported.require_numbers(
            "VectorQuantize", dim=dim, codebook_size=codebook_size, heads=heads
        )
        if codebook_dim is not None:
            supported.require_numbers("VectorQuantize", codebook_dim=codebook_dim)
        for name, weight in (
            ("commitment_weight", commitment_weight),
            ("orthogonal_reg_weight", orthogonal_reg_weight),
            ("threshold_ema_dead_code", threshold_ema_dead_code),
            ("eps", eps),
            ("sample_codebook_temp", sample_codebook_temp),
        ):
            require_weight(name, weight)
        if not 0 <= decay <= 1:
            raise ValueError(f"VectorQuantize: decay must be in [0, 1], got {decay!r}")
        ema_update, learnable, rotation_trick = supported.resolve(
            dim=dim,
            ema_update=ema_update,
            learnable_codebook=learnable_codebook,
            rotation_trick=rotation_trick,
            directional_reparam=directional_reparam,
            vq_bridge=vq_bridge,
            use_cosine_sim=use_cosine_sim,
            threshold_ema_dead_code=threshold_ema_dead_code,
            orthogonal_reg_weight=orthogonal_reg_weight,
            sync_update_v=sync_update_v,
        )
        self.dim, self.heads, self.codebook_size = dim, heads, codebook_size
        self.separate_codebook_per_head = separate_codebook_per_head
        codebook_dim = dim if codebook_dim is None else codebook_dim
        inner = codebook_dim * heads
        self.has_projections = inner != dim
        self.project_in = self.project_out = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, inner)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(inner))
            self.project_out = nn.Linear(inner, dim)

        self.has_commitment_loss = commitment_weight > 0 and not directional_reparam
        self.commitment_weight = commitment_weight
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.learnable_codebook = learnable
        self.rotation_trick = rotation_trick
        self.directional_reparam = directional_reparam
        self.directional_reparam_variance = directional_reparam_variance
        self.route_gradients_to_input = route_gradients_to_input
        self.sync_update_v = sync_update_v
        self.use_cosine_sim = use_cosine_sim
        self.stochastic_sample_codes = stochastic_sample_codes
        self.sample_codebook_temp = sample_codebook_temp
        self.freeze_codebook = freeze_codebook
        self.channel_last = channel_last
        self.accept_image_fmap, self.accept_3d_fmap = accept_image_fmap, accept_3d_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding

        self._codebook = books.Codebook(
            codebook_dim,
            codebook_size,
            num_codebooks=heads if separate_codebook_per_head else 1,
            learnable_codebook=learnable or self.has_codebook_orthogonal_loss,
            use_cosine_sim=use_cosine_sim,
            kmeans_init=kmeans_init,
            vq_bridge=vq_bridge,
        )
        self._codebook.configure(
            decay=decay,
            eps=eps,
            ema_update=ema_update,
            manual_ema_update=manual_ema_update,
            threshold_ema_dead_code=threshold_ema_dead_code,
            kmeans_iters=kmeans_iters,
            use_ddp=number_of_ranks() > 1 if sync_codebook is None else sync_codebook,
            sync_kmeans=sync_kmeans,
        )
        self.in_place_codebook_optimizer = (
            in_place_codebook_optimizer(self._codebook.parameters())
            if in_place_codebook_optimizer is not None
            else None
        )
        self.manual_in_place_optimizer_update = manual_in_place_optimizer_update

    @property
    def ema_update(self) -> bool:
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes [K, D], [heads, K, D] with separate codebooks."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        embed = self._codebook.embed
        shape = embed.shape if self.separate_codebook_per_head else embed.shape[1:]
        if codes.shape != shape:
            raise ValueError(f"codebook must have shape {list(shape)}, got {list(codes.shape)}")
        embed.data.copy_(codes if self.separate_codebook_per_head else codes[None])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes behind indices [B, ...], heads joined; index -1 gives NaN."""
        require_index("VectorQuantize", "indices", indices)
        if self.separate_codebook_per_head and self.heads > 1:
            if indices.shape[-1:] != (self.heads,):
                raise ValueError(
                    f"VectorQuantize: indices must be [..., {self.heads}], got "
                    f"{list(indices.shape)}"
                )
            parts = zip(self._codebook.embed, indices.unbind(-1), strict=True)
            codes = torch.cat([take_codes(e, i) for e, i in parts], dim=-1)
        else:
            codes = take_codes(self._codebook.embed[0], indices)
            codes = codes.flatten(-2) if self.heads > 1 else codes
        return codes.movedim(-1, 1) if layout.has_channels_first(self) else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What `forward` gives for these indices in eval mode."""
        codes = self.get_codes_from_indices(indices)
        if not layout.has_channels_first(self):
            return self.project_out(codes)
        return self.project_out(codes.movedim(1, -1)).movedim(-1, 1)

    def expire_codes_(self, x: Tensor) -> None:
        """Sets little-used codes on features of x [B, ..., dim], in training mode."""
        if self.training and self._codebook.threshold_ema_dead_code > 0:
            rows = layout.split_heads(self, x.reshape(1, -1, x.shape[-1]))
            rows = l2norm(rows) if self.use_cosine_sim else rows
            books.revive(self._codebook, rows, rows.new_ones(rows.shape[:2], dtype=torch.bool))

    def update_in_place_optimizer(self) -> None:
        """A step of the optimiser of the codes, if there is one; gradients are averaged over
        ranks."""
        _step_in_place(self)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Callable | None = None,
        ema_update_weight: Tensor | Callable | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """(quantized like x, index, loss), and a LossBreakdown if asked for.

        Args:
            x: [B, N, dim], [B, dim], or with channels first as the constructor says.
            sample_codebook_temp: this once, of the draw with `stochastic_sample_codes`.
            mask: bool [B, N], or `lens` [B]: where it is False, x is not quantized: the output is
                0 (or x), the index -1, and it counts nowhere.
            freeze_codebook: this once, moves no codes.
            ema_update_weight: of every code's step, [K] or a function of (sums, counts).
            ema_update: this once, whether codes move by averages.

        A row of x that is not finite gets index -1 and NaN, and counts nowhere. The other arguments
        need the distances to all codes: a module that `accelerate` took over computes those calls
        by its library's code, one made here raises ValueError.
        """
        beyond = {
            "indices": indices,
            "topk": topk,
            "codebook_transform_fn": codebook_transform_fn,
            "accum_ema_update": accum_ema_update or None,
        }
        names = [name for name, value in beyond.items() if value is not None]
        if names:
            given = {
                "mask": mask,
                "lens": lens,
                "sample_codebook_temp": sample_codebook_temp,
                "freeze_codebook": freeze_codebook,
                "return_loss_breakdown": return_loss_breakdown or None,
                "ema_update_weight": ema_update_weight,
                "ema_update": ema_update,
                **beyond,
            }
            given = {name: value for name, value in given.items() if value is not None}
            return self._beyond("forward", ", ".join(f"{n}=" for n in names), x, **given)

        book = self._codebook
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        tokens, sequence = layout.to_sequence(self, x)
        mask = layout.checked_mask(sequence, mask, lens)

        projected = self.project_in(sequence)
        rows = layout.split_heads(self, projected)
        compared = rows  # what the commitment of masked input is compared with
        rows = l2norm(rows) if self.use_cosine_sim else rows
        wanted = layout.rows_mask(self, mask, rows)
        if not bool(book.initted):
            books.start_from(book, rows, wanted)

        codes = books.effective_codes(book)
        index = _choose(self, rows, codes, sample_codebook_temp)
        # Before they move: `codes` is the codebook itself.
        nearest = books.take(codes, index).type(x.dtype)
        in_place = zero = rows.new_zeros((), dtype=torch.float32)
        learns = self.training and not frozen
        if learns:
            _move(book, rows, torch.where(wanted, index, -1), ema_update_weight, ema_update)
        if learns and self.in_place_codebook_optimizer is not None:
            in_place = _optimise_in_place(self, nearest, rows, wanted & (index >= 0))
            codes = books.effective_codes(book)
            index = _choose(self, rows, codes, sample_codebook_temp)
            nearest = books.take(codes, index).type(x.dtype)

        quantized, loss = nearest, zero
        commit = orthogonal = zero
        if self.training:
            loss = zero.clone().requires_grad_()
            if x.requires_grad and self.route_gradients_to_input:
                quantized = _estimate(self, rows, nearest)
            if self.sync_update_v > 0:
                quantized = quantized + self.sync_update_v * (quantized - quantized.detach())
            if self.has_commitment_loss:
                target = rows
                if mask is not None and not self.has_projections and self.heads == 1:
                    target = compared
                moving = self.learnable_codebook and not frozen
                pulled = nearest if moving else nearest.detach()
                commit = mse(pulled, target, wanted & (index >= 0))
                loss = loss + commit * self.commitment_weight
            if self.has_codebook_orthogonal_loss:
                orthogonal = orthogonality(_regularised_codes(self, index))
                loss = loss + orthogonal * self.orthogonal_reg_weight

        quantized = self.project_out(layout.join_heads(self, quantized, sequence.shape[:2]))
        index = layout.join_heads(self, index[..., None], sequence.shape[:2])
        index = index if self.heads > 1 else index[..., 0]
        if mask is not None:
            fill = torch.zeros_like(sequence)
            fill = fill if self.return_zeros_for_masked_padding else sequence
            quantized = torch.where(mask[..., None], quantized, fill)
            index = torch.where(mask[..., None] if self.heads > 1 else mask, index, -1)

        index = index.reshape(*tokens, *index.shape[2:])
        quantized = quantized.reshape(*tokens, quantized.shape[-1])
        if layout.has_channels_first(self) and x.dim() > 2:
            quantized = quantized.movedim(-1, 1)
        if not return_loss_breakdown:
            return quantized, index, loss
        return quantized, index, loss, LossBreakdown(commit, zero, orthogonal, in_place)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, heads={self.heads}"

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        return supported.refusal(module)

    @classmethod
    def codebook_shape(cls, module: nn.Module) -> tuple[int, ...]:
        heads, *shape = module._codebook.embed.shape
        return tuple(shape) if heads == 1 else (heads, *shape)

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        embed = module._codebook.embed
        if module.has_projections:
            rows = torch.randn(items, module.dim, generator=generator).to(embed)
        else:
            heads = [spread_like(e, items, generator) for e in embed]
            rows = torch.cat(heads * (module.heads // len(heads)), dim=1)
        ones = [1] * (2 if module.accept_image_fmap else 3 if module.accept_3d_fmap else 1)
        if layout.has_channels_first(module):
            return rows.reshape(items, -1, *ones)
        return rows[:, None]

    @classmethod
    def prepare(cls, twin: nn.Module) -> None:
        book = twin._codebook
        if not bool(book.initted):
            noise = torch.randn_like(book.embed)
            book.embed.data.copy_(l2norm(noise) if book.use_cosine_sim else noise)
            book.embed_avg.data.copy_(book.embed)
            book.initted.data.fill_(True)


def _choose(layer: nn.Module, rows: Tensor, codes: Tensor, temperature: float | None) -> Tensor:
    """Index [heads, N] of the nearest code; of one drawn at random if the layer trains so."""
    # A module that was taken over does not draw: it would have been left.
    if layer.training and getattr(layer, "stochastic_sample_codes", False):
        temperature = layer.sample_codebook_temp if temperature is None else temperature
        if temperature > 0:
            return books.draw_codes(layer._codebook, rows, codes, temperature)
    return books.assign(layer._codebook, rows, codes)


def _move(
    book: nn.Module,
    rows: Tensor,
    index: Tensor,
    weight: Tensor | Callable | None,
    ema_update: bool | None,
) -> None:
    """A step of the moving averages and the revival of little-used codes."""
    averages = book.ema_update if ema_update is None else ema_update
    revives = book.threshold_ema_dead_code > 0
    if not averages and not revives:
        return
    books.average(book, rows, index, weight)
    if averages and not book.manual_ema_update:
        books.codes_from_averages(book)
    if revives:
        books.revive(book, rows.detach(), index >= 0)


def _estimate(layer: nn.Module, rows: Tensor, nearest: Tensor) -> Tensor:
    if layer.directional_reparam:
        return directional(rows, nearest, layer.directional_reparam_variance)
    estimator = rotation_trick if layer.rotation_trick else pass_through
    return estimator(rows, nearest.detach())


def _optimise_in_place(layer: nn.Module, nearest: Tensor, rows: Tensor, valid: Tensor) -> Tensor:
    loss = mse(nearest, rows.detach(), valid)
    loss.backward()
    if not layer.manual_in_place_optimizer_update:
        _step_in_place(layer)
    return loss.detach()


def _step_in_place(layer: nn.Module) -> None:
    optimizer = layer.in_place_codebook_optimizer
    if optimizer is None:
        return
    if layer._codebook.use_ddp and number_of_ranks() > 1:
        for parameter in layer._codebook.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= number_of_ranks()
    optimizer.step()
    optimizer.zero_grad()


def _regularised_codes(layer: nn.Module, index: Tensor) -> Tensor:
    codes = layer._codebook.embed
    if layer.orthogonal_reg_active_codes_only:
        codes = codes[:, index[index >= 0].unique()]
    limit = layer.orthogonal_reg_max_codes
    if limit is not None and codes.shape[1] > limit:
        codes = codes[:, torch.randperm(codes.shape[1], device=codes.device)[:limit]]
    return codes
