"""Projectors around a quantizer, trained with it while encoder and decoder rest (VQ-Transplant)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.checks import common_dtype, require_whole
from .base import Quantizer, QuantizeResult, require_weight
from .pulls import two_pulls
from .structure import checked_parts
from .usage import Usage

FORMS = ("around", "after")
MOST_HIDDEN, MOST_LAYERS = 2**16, 64


class Projector(nn.Module):
    """3 x 3 convolutions with GroupNorm and SiLU between them; x + that with a residual.

    Args:
        channels: of the input.
        out: of the output.
        hidden: channels between the convolutions.
        layers: number of convolutions, at least 2.
        residual: whether the input is added; None: where channels stay.
    """

    def __init__(
        self, channels: int, out: int, *, hidden: int, layers: int, residual: bool | None = None
    ) -> None:
        super().__init__()
        widths = [channels, *[hidden] * (layers - 1), out]
        # 32 groups in the released programs; narrow projectors have fewer.
        groups = next(n for n in (32, 16, 8, 4, 2, 1) if hidden % n == 0)
        modules: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            if number:
                modules += [nn.GroupNorm(groups, before), nn.SiLU()]
            modules.append(nn.Conv2d(before, after, 3, padding=1))
        self.layers = nn.Sequential(*modules)
        self.residual = channels == out if residual is None else residual
        if self.residual:
            # It starts near the identity: what a codebook is aligned to first is the encoder's own.
            with torch.no_grad():
                self.layers[-1].weight.mul_(0.1)
                self.layers[-1].bias.zero_()

    def forward(self, maps: Tensor) -> Tensor:
        """maps [B, H, W, channels], channels last, float32 or float64 -> [B, H, W, out]."""
        with torch.autocast(maps.device.type, enabled=False):
            x = maps.movedim(-1, 1)
            weight = self.layers[0].weight
            y = self.layers(x.to(weight.dtype)).to(maps.dtype)
            return (x + y if self.residual else y).movedim(1, -1)


class Projected(Quantizer):
    """A quantizer between projectors: z -> before -> quantizer -> after, of feature maps.

    ``"around"`` is the fixed-scale setting: three convolutions before and three after, with
    residuals; the gradient of what follows reaches the quantizer and the encoder straight through.
    ``"after"`` is the multi-scale setting: six convolutions after the quantizer alone, which sees
    quantized latents without their gradient; the encoder gets that of the output all the same.

        loss = the part's loss, of projected latents
               + feature_weight mse(quantized, sg z) + feature_commitment mse(z, sg quantized)

    The first pull reaches projectors and codes alone, the second z alone: where the encoder trains
    along, the output's gradient to z must not carry z away from it (VQ-Transplant appendix C).

    A map is projected as a whole: one position that is not finite, or masked, leaves it out. Only
    the outermost structure can be projected.

    Args:
        part: the quantizer, of latents with `part.dim` channels, last.
        dim: channels of z; None: the part's. Where they differ, the projectors have no residuals
            (unifying view: fewer or more channels for scalar quantizers); form "around" only.
        form: "around" or "after".
        hidden: channels inside the projectors, 1,024 as released.
        layers: convolutions of a projector; None: 3 around, 6 after.
        residual: whether projectors add their input; None: where channels stay. The released
            scalar quantizers have none.
        feature_weight: of the pull of the output to z; 1 as released.
        feature_commitment: of the pull of z to the output, beta of appendix C. Where the encoder
            rests, it is in the loss and moves nothing.
        channel_dim: where z [B, H, W, dim] or [B, dim, H, W] has its channels.

    Raises:
        ValueError: an argument is out of range.
    """

    nests = False
    one_token = False
    takes_maps = True
    structure: tuple[str, dict] | None = None

    def __init__(
        self,
        part: Quantizer,
        *,
        dim: int | None = None,
        form: str = "around",
        hidden: int = 1024,
        layers: int | None = None,
        residual: bool | None = None,
        feature_weight: float = 1.0,
        feature_commitment: float = 0.25,
        channel_dim: int = -1,
    ) -> None:
        checked_parts("Projected", [part])
        dim = part.dim if dim is None else dim
        super().__init__(dim, channel_dim=channel_dim)
        if form not in FORMS:
            raise ValueError(f"Projected: form must be one of {FORMS}, got {form!r}")
        if form == "after" and dim != part.dim:
            raise ValueError(
                f"Projected: the part must have {dim} channels for the form 'after', got "
                f"{part.dim}: nothing brings latents to other channels before it"
            )
        layers = (3 if form == "around" else 6) if layers is None else layers
        require_whole("Projected: hidden", hidden, 1, MOST_HIDDEN)
        require_whole("Projected: layers", layers, 2, MOST_LAYERS)
        if residual not in (None, True, False) or (residual and dim != part.dim):
            raise ValueError(
                f"Projected: residual must be None, False, or True where channels stay, got "
                f"{residual!r} with {dim} channels around {part.dim}"
            )
        require_weight("feature_weight", feature_weight)
        require_weight("feature_commitment", feature_commitment)
        self.form = form
        self.feature_weight = feature_weight
        self.feature_commitment = feature_commitment
        own = {"hidden": hidden, "layers": layers, "residual": residual}
        self.before = Projector(dim, part.dim, **own) if form == "around" else None
        self.part = part
        self.after = Projector(part.dim, dim, **own)

    @property
    def codebook_size(self) -> int:
        """Codes of a token of the part."""
        return self.part.codebook_size

    @property
    def codes(self) -> Tensor | list:
        """The part's codes, in the projected space."""
        return self.part.codes

    def usage(self) -> Usage | list:
        return self.part.usage()

    def reset_usage(self) -> None:
        self.part.reset_usage()

    def load_codes(self, codes: Tensor | list) -> None:
        """Overwrites the part's codes."""
        self.part.load_codes(codes)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizeResult:
        maps, usable = self._to_maps(z)
        finite, unmasked = usable, torch.ones_like(usable)
        if mask is not None:
            unmasked = self._checked_mask(mask, maps.shape[:-1], z.device).flatten(1).all(1)
            usable = finite & unmasked
        valid = _per_map(usable)
        # Zeros, not NaN, go through the convolutions: a gradient of 0 times NaN would be NaN.
        clean = torch.where(valid, maps, 0)
        projected = self._into(clean)
        target = torch.where(valid, projected, torch.nan)
        part = self.part
        codes = part._snapshot()
        with torch.no_grad():
            index = part._assign(target, codes)
            part._count(index, _per_map(unmasked)[..., 0].expand(maps.shape[:-1]))
        nearest = part._take(codes, index)
        chosen = torch.where(valid, nearest.detach(), 0).to(common_dtype(nearest))
        loss = maps.new_zeros((), dtype=torch.float32)
        if not self.training:
            quantized = self.after(chosen)
        else:
            quantized, still = self._outward(clean, projected, chosen, index, codes)
            loss = part._learn(target, nearest, index, codes)
            rows = (x.reshape(-1, self.dim) for x in (clean, still))
            everywhere = valid[..., 0].expand(maps.shape[:-1]).reshape(-1)
            weights = self.feature_commitment, self.feature_weight
            loss = loss + two_pulls(*rows, everywhere, *weights)
        quantized = torch.where(valid, quantized, torch.nan).to(z.dtype)
        if mask is not None:
            quantized = torch.where(_per_map(unmasked), quantized, z.movedim(self.channel_dim, -1))
        return QuantizeResult(quantized.movedim(-1, self.channel_dim), index, loss)

    def _outward(
        self, z: Tensor, projected: Tensor, chosen: Tensor, index: Tensor, codes
    ) -> tuple[Tensor, Tensor]:
        """The output in training, and the same with a gradient to projectors and codes, not z."""
        if self.form == "after":  # straight through to z, past the projector
            still = self.after(chosen)
            return still + (z - z.detach()), still
        chosen = chosen.to(projected.dtype)
        quantized = self.after(self.part._estimate(projected, chosen, index, codes))
        if not z.requires_grad:
            return quantized, quantized
        again = self._into(z.detach())
        return quantized, self.after(self.part._estimate(again, chosen, index, codes))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        maps, finite = self._to_maps(z)
        projected = self._into(torch.where(_per_map(finite), maps, 0))
        target = torch.where(_per_map(finite), projected, torch.nan)
        return self.part._assign(target, self.part._snapshot())

    def decode(self, index: Tensor, *, first: int | None = None) -> Tensor:
        """The maps behind indices; of the first groups, stages or scales only where given.

        A map with a token of -1 is NaN throughout.

        Raises:
            ValueError: `first` is given and the part has nothing of which it could be.
        """
        chosen = self.part.decode(index, first=first)
        complete = _per_map(chosen.flatten(1).isfinite().all(1))
        maps = self.after(torch.where(complete, chosen, 0).to(common_dtype(chosen)))
        return torch.where(complete, maps, torch.nan).movedim(-1, self.channel_dim)

    def fold(self) -> Projected:
        """The same projectors around the folded part: its codes in plain tables."""
        part = self.part.fold()
        folded = copy.deepcopy(self, {id(self.part): part})
        folded.config = None
        if self.config is not None and self.structure is not None and part.config is not None:
            suffix, own = self.structure
            inner = {
                k: v
                for k, v in part.config.items()
                if k not in ("name", "dim", "codebook_size", "channel_dim")
            }
            kept = {k: self.config[k] for k in ("dim", "codebook_size")}
            name = f"{part.config['name']}_{suffix}"
            folded.config = {**inner, **kept, **own, "name": name}
        return folded.train(self.training)

    def _into(self, maps: Tensor) -> Tensor:
        return maps if self.before is None else self.before(maps)

    def _to_maps(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z as [B, H, W, dim], at least float32, and which of the maps are finite, [B]."""
        maps = self._to_latents(z)
        if maps.dim() != 4:
            raise ValueError(
                f"Projected: z must be feature maps with {self.dim} channels at dimension "
                f"{self.channel_dim}, four dimensions in all, got {list(z.shape)}"
            )
        maps = maps.to(common_dtype(maps))
        return maps, maps.detach().flatten(1).isfinite().all(1)


def _per_map(flags: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return flags[:, None, None, None]


def projected(
    build: Callable[..., Quantizer],
    dim: int,
    codebook_size: int,
    *,
    projector_form: str = "around",
    projector_dim: int | None = None,
    projector_hidden: int = 1024,
    projector_layers: int | None = None,
    projector_residual: bool | None = None,
    feature_weight: float = 1.0,
    feature_commitment: float = 0.25,
    channel_dim: int = -1,
) -> Projected:
    """Any quantizer between projectors, with `projector_dim` channels of its own where given."""
    require_whole("projector_hidden", projector_hidden, 1, MOST_HIDDEN)
    if projector_layers is not None:
        require_whole("projector_layers", projector_layers, 2, MOST_LAYERS)
    inner = dim if projector_dim is None else projector_dim
    return Projected(
        build(dim=inner, codebook_size=codebook_size),
        dim=dim,
        form=projector_form,
        hidden=projector_hidden,
        layers=projector_layers,
        residual=projector_residual,
        feature_weight=feature_weight,
        feature_commitment=feature_commitment,
        channel_dim=channel_dim,
    )


# Only around everything else, so no structure of its own that others could contain.
WRAPPERS = {"projected": projected}
