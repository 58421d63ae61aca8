"""VAR's `VectorQuantizer2`: multi-scale residual quantization of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import number_of_ranks, sum_over_ranks
from ..ops.checks import require_index
from ..ops.take_codes import take_codes
from ..quantizers.multiscale import nearest_phi
from .adapter import Adapter, embedding_refusal, only_has, spread_like
from .table import nearest, require_map
from .terms import mse

Sizes = Sequence[int | tuple[int, int]]


class Phi(nn.Conv2d):
    """(1 - ratio) h + ratio conv3x3(h)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.resi_ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        return h * (1 - self.resi_ratio) + super().forward(h) * self.resi_ratio


class SharedPhi(nn.Module):
    """One phi for all scales."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi

    def __getitem__(self, depth: float) -> nn.Module:
        return self.qresi


class NearestPhi(nn.Module):
    """Several phi; a scale at `depth` in [0, 1] takes the nearest."""

    def __init__(self, phis: list[nn.Module], scales: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)
        self.scales = scales

    def __getitem__(self, depth: float) -> nn.Module:
        scale = round(depth * (self.scales - 1))
        return self.qresi_ls[nearest_phi(scale, self.scales, len(self.qresi_ls))]


class OwnPhi(nn.ModuleList):
    """A phi for every scale; by depth like `NearestPhi`, with the keys of a list."""

    def __init__(self, phis: list[nn.Module], scales: int) -> None:
        super().__init__(phis)
        self.scales = scales

    def __getitem__(self, depth: float) -> nn.Module:
        scale = round(depth * (self.scales - 1))
        return super().__getitem__(nearest_phi(scale, self.scales, len(self)))


class VectorQuantizer2(Adapter):
    """VAR's quantizer (Tian et al. 2024) of feature maps [B, Cvae, H, W].

    Args:
        vocab_size: number of codes K.
        Cvae: channels.
        using_znorm: search by angle.
        beta: weight of the commitment.
        default_qresi_counts: number of phi where share_quant_resi is 0; 0: one a scale.
        v_patch_nums: sides of the scales, the last that of the map.
        quant_resi: ratio of the convolution in phi; 0: no convolution.
        share_quant_resi: 0: a phi for every scale, 1: one for all, else so many.
    """

    library = "VAR"
    takes_over = ("forward", "f_to_idxBl_or_fhat")
    attributes = (
        "vocab_size",
        "Cvae",
        "using_znorm",
        "beta",
        "v_patch_nums",
        "quant_resi",
        "record_hit",
        "prog_si",
        "embedding",
    )

    def __init__(
        self,
        vocab_size: int,
        Cvae: int,
        using_znorm: bool,
        beta: float = 0.25,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] | None = None,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
    ) -> None:
        super().__init__()
        if not v_patch_nums:
            raise ValueError(f"VectorQuantizer2: v_patch_nums must be given, got {v_patch_nums!r}")
        self.vocab_size, self.Cvae, self.using_znorm = vocab_size, Cvae, using_znorm
        self.beta, self.v_patch_nums = beta, tuple(v_patch_nums)
        self.quant_resi_ratio = quant_resi
        scales = len(self.v_patch_nums)

        def phis(number: int) -> list[nn.Module]:
            if abs(quant_resi) <= 1e-6:
                return [nn.Identity() for _ in range(number)]
            return [Phi(Cvae, quant_resi) for _ in range(number)]

        if share_quant_resi == 0:
            self.quant_resi = OwnPhi(phis(default_qresi_counts or scales), scales)
        elif share_quant_resi == 1:
            self.quant_resi = SharedPhi(phis(1)[0])
        else:
            self.quant_resi = NearestPhi(phis(share_quant_resi), scales)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(scales, vocab_size))
        self.record_hit = 0
        self.prog_si = -1
        self.embedding = nn.Embedding(vocab_size, Cvae)

    def eini(self, eini: float) -> None:
        """Draws the codes: eini > 0, a truncated normal of that width; below 0, uniformly."""
        if eini > 0:
            nn.init.trunc_normal_(self.embedding.weight, std=eini)
        elif eini < 0:
            width = abs(eini) / self.vocab_size
            nn.init.uniform_(self.embedding.weight, -width, width)

    def forward(
        self, f_BChw: Tensor, ret_usages: bool = False
    ) -> tuple[Tensor, list[float] | None, Tensor]:
        """(f_hat like f, usages, loss), in float32; the loss is not 0 in eval mode.

        loss = mean over scales of beta mse(sg f_hat_s, f) + mse(f_hat_s, sg f). `usages`: per
        scale, the percentage of codes whose average hits, gathered in distributed training, reach
        8 % of an even share. A map with a value that is not finite gives NaN and counts nowhere.
        """
        require_map("VectorQuantizer2", "f_BChw", f_BChw, self.embedding.weight.shape[1])
        f, whole = _finite(f_BChw.float())
        target, fixed = f.permute(0, 2, 3, 1), f.detach().permute(0, 2, 3, 1)
        valid = whole.expand(len(f), 1, *f.shape[2:])[:, 0]
        loss, f_hat = f.new_zeros(()), torch.zeros_like(f)
        with torch.autocast(f.device.type, enabled=False):
            for scale, index, h in _scales(self, f, self.v_patch_nums):
                f_hat = f_hat + h
                last = f_hat.permute(0, 2, 3, 1)
                loss = loss + self.beta * mse(last.detach(), target, valid)
                loss = loss + mse(last, fixed, valid)
                if self.training and number_of_ranks() > 1:
                    _count_hits(self, scale, index[whole.flatten()])
            loss = loss / len(self.v_patch_nums)
        f_hat = torch.where(whole, f + (f_hat - f).detach(), torch.nan)
        return f_hat, _usages(self, f) if ret_usages else None, loss

    def f_to_idxBl_or_fhat(
        self, f_BChw: Tensor, to_fhat: bool, v_patch_nums: Sizes | None = None
    ) -> list[Tensor]:
        """Per scale, the indices [B, p^2] of a map, or f_hat up to it."""
        require_map("VectorQuantizer2", "f_BChw", f_BChw, self.embedding.weight.shape[1])
        sizes = v_patch_nums or self.v_patch_nums
        if _pair(sizes[-1]) != tuple(f_BChw.shape[2:]):
            raise ValueError(
                f"VectorQuantizer2: f_BChw must be a map of {_pair(sizes[-1])}, the last of "
                f"v_patch_nums, got {list(f_BChw.shape)}"
            )
        f, whole = _finite(f_BChw.detach())
        f_hat, found = torch.zeros_like(f), []
        for scale, index, h in _scales(self, f, sizes):
            if 0 <= self.prog_si < scale:
                break
            f_hat = f_hat + h
            if to_fhat:
                found.append(torch.where(whole, f_hat, torch.nan))
            else:
                found.append(torch.where(whole[:, 0, 0], index.flatten(1), -1))
        return found

    def embed_to_fhat(
        self, ms_h_BChw: list[Tensor], all_to_max_scale: bool = True, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """f_hat after every scale, or after the last one, of codes [B, Cvae, p, p] per scale."""
        if not all_to_max_scale:
            raise ValueError("VectorQuantizer2: all_to_max_scale must be True here")
        f_hats: list[Tensor] = []
        for scale, h in enumerate(ms_h_BChw):
            h = _contribution(self, h.float(), scale)
            f_hats.append(h if scale == 0 else f_hats[-1] + h)
        return f_hats[-1] if last_one else f_hats

    def idxBl_to_var_input(self, gt_ms_idx_Bl: list[Tensor]) -> Tensor | None:
        """A transformer's input in training, [B, sum p^2 - p_0^2, Cvae]; None with one scale."""
        f_hat, inputs = None, []
        for scale, following in enumerate(self.v_patch_nums[1:]):
            require_index("VectorQuantizer2", "gt_ms_idx_Bl", gt_ms_idx_Bl[scale])
            side = self.v_patch_nums[scale]
            codes = take_codes(self.embedding.weight, gt_ms_idx_Bl[scale]).transpose(1, 2)
            codes = codes.reshape(*codes.shape[:2], side, side)
            f_hat, below = self.get_next_autoregressive_input(
                scale, len(self.v_patch_nums), 0.0 if f_hat is None else f_hat, codes
            )
            assert below.shape[-1] == following
            inputs.append(below.flatten(2).transpose(1, 2))
        return torch.cat(inputs, dim=1) if inputs else None

    def get_next_autoregressive_input(
        self, si: int, SN: int, f_hat: Tensor, h_BChw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(f_hat with scale si added, it brought to the next scale's size)."""
        f_hat = f_hat + _contribution(self, h_BChw, si)
        if si == SN - 1:
            return f_hat, f_hat
        side = self.v_patch_nums[si + 1]
        return f_hat, F.interpolate(f_hat, size=(side, side), mode="area")

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        if len(module.v_patch_nums) < 2:
            return "it has one scale"
        shape = (module.vocab_size, module.Cvae)
        return embedding_refusal(module, shape) or only_has(
            module, "embedding.weight", "quant_resi.", "ema_vocab_hit_SV"
        )

    @classmethod
    def call(cls, twin: nn.Module, x: Tensor) -> tuple:
        return *twin.forward(x), *twin.f_to_idxBl_or_fhat(x.detach(), to_fhat=False)

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        height, width = _pair(module.v_patch_nums[-1])
        maps = max(2, items // 16)
        rows = spread_like(module.embedding.weight, maps * height * width, generator)
        return rows.reshape(maps, height, width, -1).permute(0, 3, 1, 2).contiguous()


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _finite(f: Tensor) -> tuple[Tensor, Tensor]:
    """f with zeros for maps that are not finite, and which are, [B, 1, 1, 1]."""
    whole = f.isfinite().flatten(1).all(1)[:, None, None, None]
    return torch.where(whole, f, 0), whole


def _scales(layer: nn.Module, f: Tensor, sizes: Sizes):
    """(scale, index [B, p, p], phi(up(codes)) [B, C, H, W]) of every scale, coarse to fine."""
    rest = f.detach()
    for scale, size in enumerate(sizes):
        height, width = _pair(size)
        below = rest
        if scale + 1 < len(sizes):
            below = F.interpolate(rest, size=(height, width), mode="area")
        rows = below.permute(0, 2, 3, 1).reshape(-1, f.shape[1])
        weight = layer.embedding.weight
        index = nearest(rows, weight, normalised=layer.using_znorm)
        index = index.reshape(len(f), height, width)
        h = take_codes(weight, index).permute(0, 3, 1, 2)
        if scale + 1 < len(sizes):
            h = F.interpolate(h, size=f.shape[2:], mode="bicubic")
        h = layer.quant_resi[scale / max(len(sizes) - 1, 1)](h.contiguous())
        rest = rest - h.detach()
        yield scale, index, h


def _contribution(layer: nn.Module, codes: Tensor, scale: int) -> Tensor:
    scales = len(layer.v_patch_nums)
    if scale + 1 < scales:
        codes = F.interpolate(codes, size=_pair(layer.v_patch_nums[-1]), mode="bicubic")
    return layer.quant_resi[scale / max(scales - 1, 1)](codes)


@torch.no_grad()
def _count_hits(layer: nn.Module, scale: int, index: Tensor) -> None:
    """A moving average of hits that forgets slower once it has seen a hundred."""
    hits = index.flatten().bincount(minlength=layer.vocab_size).float()
    sum_over_ranks(hits)
    average = layer.ema_vocab_hit_SV[scale]
    if layer.record_hit == 0:
        average.copy_(hits)
    else:
        average.lerp_(hits, 0.1 if layer.record_hit < 100 else 0.01)
    layer.record_hit += 1


def _usages(layer: nn.Module, f: Tensor) -> list[float]:
    positions = f.numel() / f.shape[1]
    margin = number_of_ranks() * positions / layer.vocab_size * 0.08
    return [float((hits >= margin).float().mean()) * 100 for hits in layer.ema_vocab_hit_SV]
