"""The configuration of a demonstration."""

from dataclasses import dataclass, replace

from vqkern.quantizers import MMD
from vqkern.tokenizers import ConvConfig
from vqkern.training import Adaptation, FromScratch, Substitution


@dataclass(frozen=True)
class DemoSettings:
    """The resolved configuration of a demonstration; `--quick` and tests use smaller ones.

    Attributes:
        codebook_size: K of the large codebooks; base_codebook_size: of the one trained jointly.
        crop: Side of the training crops in pixels.
        commitment: Weight of the base quantizer's pull on its encoder. Small on purpose: a strong
            pull folds the latents onto a few codes, and leaves a larger codebook nothing to gain.
        pool_tokens: Latents of random crops that stage I draws from. Twenty for every code: with
            eight the codes fit the pool itself, and serve fresh crops less well.
        usage_tokens_per_code: Tokens over which usage is counted, per code of the large codebook.
        seed, threads: Together they determine every figure but speed and memory.
    """

    codebook_size: int = 65536
    base_codebook_size: int = 1024
    crop: int = 64
    commitment: float = 0.024
    pool_tokens: int = 1310720
    usage_tokens_per_code: int = 4
    network: ConvConfig = ConvConfig()
    base: FromScratch = FromScratch()
    substitution: Substitution = Substitution(steps=300, tokens=16384, lr=0.15)
    # The finest kernels are as wide as the distance between neighbouring codes: coarser ones alone
    # do not see a code that lies just beside the features, and it stays unused.
    alignment: MMD = MMD(
        weight=1.0,
        multiples=(2**-11, 2**-9, 2**-7, 2**-5, 2**-3, 0.5, 2.0),
        max_features=4096,
        max_codes=16384,
    )
    adaptation: Adaptation = Adaptation()
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    data: str | None = None
    out: str = "runs/demo"


def quick(settings: DemoSettings) -> DemoSettings:
    """Settings that finish in about 20 seconds: every stage runs, none of them converges."""
    return replace(
        settings,
        codebook_size=min(settings.codebook_size, 2048),
        base_codebook_size=128,
        pool_tokens=16384,
        base=replace(settings.base, steps=40, batch=8, start_crops=64),
        substitution=replace(settings.substitution, steps=60, tokens=2048),
        alignment=replace(settings.alignment, max_features=1024, max_codes=1024),
        adaptation=replace(settings.adaptation, steps=20, batch=8),
    )
