"""`fair`: the quantizers of the unifying view's table 3 on one fixed set of features.

A small convolutional tokenizer is trained on the bundled photographs, as `vqkern demo` does. Its
encoder's latents, made white once for all, are the features; every quantizer has the same number of
tokens and codes (conditions 1 and 2 of the paper) and is trained on them by stage I of
VQ-Transplant. Codes go back through the whitening to the same decoder, which nobody adapts.

The scalar quantizers have a grid that nothing fits to the latents. The paper trains convolutions
around every quantizer; here the grid's codes pass through one affine map, fitted to the training
features by least squares, and its errors are those after that map.

At 12 channels K is 4,096: LFQ and BSQ have a bit a channel and no other choice, and FSQ two levels
a channel, with which its tanh was never meant to be used. LFQ and BSQ take the same signs: after an
affine map they are the same quantizer. The error is |z - q|^2 summed over channels of unit
variance. The paper's figures are for ImageNet and K = 65,536: what can be
compared is the order, and Spearman's correlation of error with PSNR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data import CropSampler, load_photographs, to_float
from ..metrics import psnr
from ..quantizers import MMD, Wasserstein, build_quantizer
from ..tokenizers import ConvConfig, Tokenizer, build_tokenizer
from ..training import (
    FromScratch,
    Substitution,
    code_optimizer,
    encode_pool,
    train_from_scratch,
)
from ..training.stages import linear_decay, set_learning_rates
from ..training.transplant import as_feature_map
from .frame import Cell, Experiment, Row, Work
from .moving import LADDER
from .tables import draw, format_table, percent, published

FAMILIES = ("vanilla", "ema", "online", "wasserstein", "mmd")
METHODS = (*FAMILIES, *(f"{name}_vp2" for name in FAMILIES), "fsq", "lfq", "bsq")


@dataclass(frozen=True)
class Fair:
    """Settings.

    Attributes:
        bits: log2 K, and the latent's channels, as LFQ and BSQ have it.
        network, base: the tokenizer whose features are quantized, and its training.
        base_codes: of the codebook that it is trained with.
        pool, test: features for training and for measuring, of different crops.
        substitution: training of each quantizer.
        crop: side of the training crops in pixels.
    """

    bits: int = 12
    network: ConvConfig = ConvConfig(latent_dim=12)
    base: FromScratch = FromScratch()
    base_codes: int = 1024
    pool: int = 131072
    test: int = 65536
    substitution: Substitution = Substitution(steps=400, tokens=4096, lr=0.05)
    crop: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network.latent_dim != self.bits:
            raise ValueError(
                f"bits must be the latent's {self.network.latent_dim} channels, got {self.bits}"
            )


class Features(NamedTuple):
    """The tokenizer, the map of its latents to white features, and features of two sets of crops.

    white = (latent - mean) @ whiten; latent = white @ restore + mean.
    """

    tokenizer: Tokenizer
    mean: Tensor
    whiten: Tensor
    restore: Tensor
    pool: Tensor
    test: Tensor
    images: Tensor


def cells(settings: Fair) -> list[Cell]:
    return [{"method": method} for method in METHODS]


def units(settings: Fair, cell: Cell) -> int:
    return settings.substitution.steps


def measure(settings: Fair, cell: Cell, work: Work) -> Row:
    features = _features(settings, work.path.parent)
    name = cell["method"]
    torch.manual_seed(settings.seed)
    quantizer = build(name, settings)
    if name in ("fsq", "lfq", "bsq"):
        work.advance(settings.substitution.steps)
    else:
        move(quantizer, features.pool, settings, work)
    quantizer.eval()
    error, utilization = judge(quantizer, features, name)
    return {"error": error, "utilization": utilization, "psnr": reconstruct(quantizer, features)}


def move(quantizer: nn.Module, pool: Tensor, settings: Fair, work: Work) -> None:
    """Stage I on features [N, D]: the quantizer's own loss, or its moving averages alone."""
    stage = settings.substitution
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = None
    if any(p.requires_grad for p in quantizer.parameters()):
        optimizer = code_optimizer(quantizer, lr=stage.lr)
    quantizer.train()
    for step in range(stage.steps):
        chosen = torch.randint(len(pool), (stage.tokens,), generator=generator)
        loss = quantizer(as_feature_map(pool[chosen])).loss
        if optimizer is not None:
            set_learning_rates(optimizer, linear_decay(step, stage.steps))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        work.advance(1)


def build(name: str, settings: Fair) -> nn.Module:
    """A quantizer of table 3, its alignment weighted as there."""
    options: dict = {"channel_dim": 1}
    family = name.removesuffix("_vp2")
    if family == "mmd":
        options["alignment"] = MMD(weight=0.5, multiples=LADDER, max_features=2048)
    elif family == "wasserstein":
        options["alignment"] = Wasserstein(weight=0.2)
    return build_quantizer(name, dim=settings.bits, codebook_size=2**settings.bits, **options)


def whitening(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, whitening and its inverse of latents [N, D], in float32."""
    mean = latents.double().mean(0)
    covariance = torch.cov(latents.double().T)
    values, vectors = torch.linalg.eigh(covariance)
    root = values.clamp_min(1e-12).sqrt()
    whiten = vectors / root @ vectors.T
    return mean.float(), whiten.float(), (vectors * root @ vectors.T).float()


def affine_fit(codes: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and offset of the affine map of codes [N, D] nearest to features [N, D]."""
    ones = torch.ones(len(codes), 1, dtype=torch.float64)
    design = torch.cat([codes.double(), ones], dim=1)
    solution = torch.linalg.lstsq(design, features.double()).solution
    return solution[:-1].float(), solution[-1].float()


@torch.no_grad()
def judge(quantizer: nn.Module, features: Features, name: str) -> tuple[float, float]:
    """Error and utilization on the test features; fits the affine map of a scalar quantizer."""
    quantizer.affine = None
    if name in ("fsq", "lfq", "bsq"):
        quantizer.affine = affine_fit(quantize(quantizer, features.pool)[0], features.pool)
    decoded, index = quantize(quantizer, features.test)
    error = (features.test - decoded).double().square().sum(1).mean()
    return float(error), len(index.unique()) / quantizer.codebook_size


def quantize(quantizer: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, D], after the affine map if there is one, and their indices [N]."""
    index = quantizer.encode(as_feature_map(rows))
    decoded = quantizer.decode(index)[0, :, :, 0].T
    affine = getattr(quantizer, "affine", None)
    if affine is not None:
        decoded = decoded @ affine[0] + affine[1]
    return decoded, index.flatten()


@torch.no_grad()
def reconstruct(quantizer: nn.Module, features: Features) -> float:
    """Mean PSNR of the held-out regions in dB."""
    latent = features.tokenizer.latent(features.images)
    batch, dim, height, width = latent.shape
    rows = latent.movedim(1, -1).reshape(-1, dim)
    decoded, _ = quantize(quantizer, (rows - features.mean) @ features.whiten)
    restored = (decoded @ features.restore + features.mean).reshape(batch, height, width, dim)
    images = features.tokenizer.decoder(restored.movedim(-1, 1).contiguous()).clamp(-1, 1)
    return float(psnr(images, features.images).mean())


# The tokenizer of the run that is going on: cells of one process share it.
_CACHE: dict[tuple[str, Fair], Features] = {}


def _features(settings: Fair, out: Path) -> Features:
    """The features, from the tokenizer that `out` holds or from one that is trained now."""
    key = (str(out), settings)
    if key not in _CACHE:
        _CACHE.clear()
        _CACHE[key] = _make_features(settings, out / "tokenizer")
    return _CACHE[key]


def _make_features(settings: Fair, folder: Path) -> Features:
    pictures, regions = load_photographs()
    samplers = [
        CropSampler(pictures, regions, settings.crop, settings.seed, stream) for stream in range(3)
    ]
    # Its config is written last, so that a folder which has one is whole.
    if (folder / "config.json").exists():
        tokenizer = Tokenizer.from_pretrained(folder)
    else:
        torch.manual_seed(settings.seed)
        codes = {"codebook_size": settings.base_codes, "channel_dim": 1, "commitment": 0.024}
        native = build_quantizer("vanilla", dim=settings.bits, **codes)
        tokenizer = build_tokenizer(settings.network, native)
        train_from_scratch(tokenizer, samplers[0], settings.base)
        tokenizer.save_pretrained(folder)
    tokenizer.eval()
    pool = encode_pool(tokenizer, samplers[1], settings.pool)
    test = encode_pool(tokenizer, samplers[2], settings.test)
    mean, whiten, restore = whitening(pool)
    cut = [r.cut(p.pixels) for p, r in zip(pictures, regions, strict=True)]
    return Features(
        tokenizer,
        mean,
        whiten,
        restore,
        (pool - mean) @ whiten,
        (test - mean) @ whiten,
        to_float(torch.stack(cut)),
    )


def spearman(x: list[float], y: list[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    a, b = (_ranks(torch.tensor(v, dtype=torch.float64)) for v in (x, y))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    below = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)
    return below + (equal + 1) / 2


def table(rows: list[Row]) -> str:
    paper = {row["method"]: row for row in published("fair")}
    lines = []
    for row in sorted(rows, key=lambda row: row["error"]):
        theirs = paper[row["method"]]
        lines.append(
            [
                row["method"],
                f"{row['error']:.4f}",
                f"{theirs['error']:.3f}",
                percent(row["utilization"], 1),
                percent(theirs["utilization"], 1),
                f"{row['psnr']:.2f}",
                f"{theirs['psnr']:.2f}",
            ]
        )
    head = ["method", "error", "paper", "utilization", "paper", "PSNR", "paper"]
    text = format_table(head, lines)
    if len(rows) < 3:
        return text
    ours, theirs = (
        [
            spearman([r[key] for r in table], [r["psnr"] for r in table])
            for key in ("error", "utilization")
        ]
        for table in (rows, [paper[row["method"]] for row in rows])
    )
    orders = spearman([r["error"] for r in rows], [paper[r["method"]]["error"] for r in rows])
    return (
        f"{text}\n"
        f"Spearman, error and PSNR: {ours[0]:.3f} (paper's table: {theirs[0]:.3f}); "
        f"utilization and PSNR: {ours[1]:.3f} ({theirs[1]:.3f}); "
        f"our errors and the paper's: {orders:.3f}"
    )


def plot(rows: list[Row], path: Path) -> None:
    lines = [(row["method"], [row["error"]], [row["psnr"]], "o") for row in rows]
    panel = {"x": "quantization error", "y": "PSNR (dB)", "lines": lines}
    used = [(row["method"], [row["utilization"]], [row["psnr"]], "o") for row in rows]
    draw(path, [panel, {"x": "utilization", "y": "PSNR (dB)", "lines": used}])


EXPERIMENT = Experiment(
    name="fair",
    source="Unifying view, table 3 (substitution phase)",
    full=Fair(),
    quick=Fair(
        bits=8,
        network=ConvConfig(latent_dim=8),
        base=replace(FromScratch(), steps=60, batch=8, start_crops=64),
        pool=16384,
        test=16384,
        substitution=Substitution(steps=100, tokens=2048, lr=0.05),
    ),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
