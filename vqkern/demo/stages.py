"""The stages of a demonstration: train, transplant, adapt, and measure after each."""

import time
from dataclasses import asdict
from math import log10
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkern.data import (
    CropSampler,
    Picture,
    Region,
    default_region,
    list_images,
    load_folder,
    load_photographs,
    to_float,
)
from vqkern.demo.settings import DemoSettings
from vqkern.metrics import psnr, quantization_error, ssim
from vqkern.quantizers import build_quantizer
from vqkern.report import Curve, Row, RunRecord, Strip
from vqkern.report.environment import PeakMemory, describe_environment
from vqkern.terminal import name_stage, stage_bar
from vqkern.tokenizers import Tokenizer, build_tokenizer
from vqkern.training import (
    OnStep,
    StepReport,
    adapt_decoder,
    encode_pool,
    substitute,
    train_from_scratch,
)
from vqkern.training.transplant import as_feature_map

HELD_OUT_SIDE = 128
MAX_PICTURES = 64  # they are kept in memory, and a demonstration gains nothing from more
# Streams of random crops, so that no use sees another's crops.
BASE, POOL, FRESH, ADAPT = range(4)


POOL_BATCH = 64
# Relative durations of one step, for the bar's remaining time alone.
COST = {
    "base tokenizer": 0.09,
    "latents for training": 0.06,
    "latents for counting": 0.06,
    "stage I, vanilla": 0.08,
    "stage I, mmd": 0.3,
    "stage II, decoder": 0.07,
    "measuring": 2.0,
}
CURVE_LABELS = {"pixel": "PSNR of training crops (dB)", "error": "quantization error"}


class Demo:
    """One run: what its stages share, and the record that they fill."""

    def __init__(
        self, settings: DemoSettings, device: torch.device, out: Path, command: str
    ) -> None:
        self.settings, self.device, self.out = settings, device, out
        pictures, self.regions = _load(settings.data)
        self.pictures = pictures
        originals = [r.cut(p.pixels) for p, r in zip(pictures, self.regions, strict=True)]
        self.held_out = to_float(torch.stack(originals)).to(device)
        self.samplers = [
            CropSampler(pictures, self.regions, settings.crop, settings.seed, stream)
            for stream in (BASE, POOL, FRESH, ADAPT)
        ]
        self.usage_tokens = settings.usage_tokens_per_code * settings.codebook_size
        self.memory = PeakMemory(device)
        described = asdict(settings)
        described["images"] = [
            {"name": p.name, "source": p.source, "held_out": asdict(r)}
            for p, r in zip(pictures, self.regions, strict=True)
        ]
        self.record = RunRecord(
            title="vqkern demo",
            command=command,
            settings=described,
            environment=describe_environment(device),
            usage_tokens=self.usage_tokens,
            memory_note=self.memory.note,
            strips=[
                Strip(p.name, p.source, image.cpu())
                for p, image in zip(pictures, self.held_out, strict=True)
            ],
        )
        size = f"{settings.codebook_size:,}"
        self.names = {
            "base": f"base vanilla {settings.base_codebook_size:,}",
            "vanilla": f"vanilla {size}",
            "drawn": f"untrained codes drawn from features {size}",
            "mmd-stage-1": f"MMD {size} stage I",
            "mmd-stage-2": f"MMD {size} stage II",
        }
        self.stage, self.slug, self.done, self.steps = "the start", "base", 0, 0
        self.current: Tokenizer | None = None
        self.bar = stage_bar(self._plan())

    def run(self) -> None:
        """All stages in turn; each one's figures are in the record as soon as it is finished."""
        s = self.settings
        self._begin("base")
        torch.manual_seed(s.seed)
        base = self.current = self._base_tokenizer()
        watch = self._watch("base tokenizer", s.base.steps, "base tokenizer / vanilla")
        train_from_scratch(base, self.samplers[BASE], s.base, watch)
        tokens = max(s.pool_tokens, s.codebook_size)
        self.pool = self._encode("latents for training", base, POOL, tokens)
        self.fresh = self._encode("latents for counting", base, FRESH, self.usage_tokens)
        self._finish(base)

        self._begin("vanilla")
        self._stage_1(base, "vanilla", "stage I / vanilla")

        self._begin("drawn")
        torch.manual_seed(s.seed)
        drawn = self.current = base.transplant(self._quantizer("vanilla"))
        order = torch.randperm(len(self.pool))[: s.codebook_size]
        drawn.quantizer.load_codes(self.pool[order.to(self.pool.device)])
        self._finish(drawn.eval())

        self._begin("mmd-stage-1")
        mmd = self._stage_1(base, "mmd", "stage I / MMD", alignment=s.alignment)

        self._begin("mmd-stage-2")
        watch = self._watch("stage II, decoder", s.adaptation.steps, "stage II / decoder")
        adapt_decoder(mmd, self.samplers[ADAPT], s.adaptation, watch)
        self._finish(mmd)

    def save_unfinished(self) -> None:
        """Saves the tokenizer of the stage that was interrupted, under a name that says so."""
        if self.current is not None and self.names[self.slug] not in self.record.usage:
            self.current.save_pretrained(self.out / "tokenizers" / f"{self.slug}-interrupted")

    def _base_tokenizer(self) -> Tokenizer:
        s = self.settings
        quantizer = build_quantizer(
            "vanilla",
            dim=s.network.latent_dim,
            codebook_size=s.base_codebook_size,
            channel_dim=1,
            commitment=s.commitment,
        )
        return build_tokenizer(s.network, quantizer).to(self.device)

    def _quantizer(self, name: str, **options) -> nn.Module:
        s = self.settings
        return build_quantizer(
            name,
            dim=s.network.latent_dim,
            codebook_size=s.codebook_size,
            channel_dim=1,
            **options,
        )

    def _stage_1(self, base: Tokenizer, name: str, curve: str, **options) -> Tokenizer:
        s = self.settings
        torch.manual_seed(s.seed)
        tokenizer = self.current = base.transplant(self._quantizer(name, **options))
        watch = self._watch(f"stage I, {name}", s.substitution.steps, curve)
        substitute(tokenizer.quantizer, self.pool, s.substitution, s.seed, watch)
        self._finish(tokenizer)
        return tokenizer

    def _encode(self, stage: str, tokenizer: Tokenizer, stream: int, tokens: int) -> Tensor:
        sampler = self.samplers[stream]
        watch = self._watch(stage, _pool_batches(self.settings, tokens), None)
        return encode_pool(tokenizer, sampler, tokens, POOL_BATCH, watch)

    def _begin(self, slug: str) -> None:
        self.slug = slug
        self.memory.reset()

    def _watch(self, stage: str, steps: int, curve: str | None) -> OnStep:
        """Names the stage, and gives the callback that moves the bar and keeps the curves."""
        self.stage, self.done, self.steps = stage, 0, steps
        name_stage(self.bar, stage)
        curves: dict[str, Curve] = {}

        def on_step(report: StepReport) -> None:
            self.done = report.step
            self.bar.update(COST[stage])
            for key, value in report.values.items() if curve else ():
                if key not in CURVE_LABELS:
                    continue
                if key not in curves:
                    curves[key] = Curve(curve, CURVE_LABELS[key])
                    self.record.curves.append(curves[key])
                curves[key].steps.append(report.step)
                curves[key].values.append(_decibels(value) if key == "pixel" else value)

        return on_step

    @torch.no_grad()
    def _finish(self, tokenizer: Tokenizer) -> None:
        """Measures and saves a finished tokenizer."""
        name = self.names[self.slug]
        self.stage, self.done, self.steps = f"measuring {name}", 0, 1
        name_stage(self.bar, "measuring")
        tokenizer.save_pretrained(self.out / "tokenizers" / self.slug)
        quantizer = tokenizer.quantizer
        quantizer.reset_usage()
        error = torch.zeros((), dtype=torch.float64)
        counts = torch.zeros(quantizer.codebook_size, dtype=torch.int64)
        for rows in self.fresh.split(32768):
            latent = as_feature_map(rows)
            quantized, index, _ = quantizer(latent)
            error += quantization_error(latent, quantized, channel_dim=1).cpu() * len(rows)
            counts += torch.bincount(index.flatten(), minlength=len(counts)).cpu()
        usage = quantizer.usage()
        images = tokenizer.reconstruct(self.held_out)
        decibels = psnr(images, self.held_out)
        row = Row(
            name=name,
            codebook_size=quantizer.codebook_size,
            quantization_error=float(error) / len(self.fresh),
            utilization=usage.utilization,
            perplexity=usage.perplexity,
            psnr=float(decibels.mean()),
            ssim=float(ssim(images, self.held_out).mean()),
            tokens_per_second=self._speed(tokenizer),
            peak_memory=self.memory.read(),
        )
        for strip, image, value in zip(self.record.strips, images.cpu(), decibels, strict=True):
            strip.reconstructions.append((name, image, float(value)))
        self.record.usage[name] = counts.sort(descending=True).values
        self.record.rows.append(row)
        self.bar.update(COST["measuring"])

    def _speed(self, tokenizer: Tokenizer) -> float:
        """Tokens per second from images to indices, over four batches after one of warm-up."""
        batches = [self.samplers[FRESH].batch(i, POOL_BATCH).to(self.device) for i in range(5)]
        tokenizer.encode(batches[0])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        tokens = sum(tokenizer.encode(batch).numel() for batch in batches[1:])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return tokens / (time.perf_counter() - start)

    def _plan(self) -> float:
        """The whole run in units of about one second on two cores, for the bar."""
        s = self.settings
        pools = _pool_batches(s, max(s.pool_tokens, s.codebook_size))
        return (
            s.base.steps * COST["base tokenizer"]
            + pools * COST["latents for training"]
            + _pool_batches(s, self.usage_tokens) * COST["latents for counting"]
            + s.substitution.steps * (COST["stage I, vanilla"] + COST["stage I, mmd"])
            + s.adaptation.steps * COST["stage II, decoder"]
            + len(self.names) * COST["measuring"]
        )


def _decibels(squared_error: float) -> float:
    """PSNR of images in [-1, 1] with this mean squared error."""
    return 10 * log10(4 / max(squared_error, 1e-12))


def _pool_batches(settings: DemoSettings, tokens: int) -> int:
    per_batch = POOL_BATCH * (settings.crop // settings.network.factor) ** 2
    return -(-tokens // per_batch)


def _load(data: str | None) -> tuple[list[Picture], list[Region]]:
    if data is None:
        return load_photographs()
    found = len(list_images(data))
    if found > MAX_PICTURES:
        print(f"{data} holds {found} images; the demo takes the first {MAX_PICTURES}, by name.")
    pictures = load_folder(data, MAX_PICTURES)
    return pictures, [default_region(picture, HELD_OUT_SIDE) for picture in pictures]
