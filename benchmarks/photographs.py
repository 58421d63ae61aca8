"""The training figures: `vqkern train` on the photographs by its own recipes, seed by seed.

    python benchmarks/photographs.py --threads 1            # all of it; goes on where it stopped
    python benchmarks/photographs.py --runs rq var --seeds 0

Every run is its recipe in vqkern/recipes and a seed. Measured is at the end of a run and at the
steps named in RUNS; 0 is the tokenizer before the first step. quantization_error, psnr and ssim are
of the held-out regions, as `vqkern eval` gives them; error_crops, utilization and perplexity of
131,072 tokens of random crops that are neither held out nor those of the training. Rows go to
results/photographs_cpu.csv; rows whose recipe, or that of the run they start from, is no longer the
same are made anew. For fvq, linear and what is named after them, error and usage are over 195
tokens a code, and `reachable` is how many of as many codes are used where they are latents of other
crops.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from compare import RESULTS
from record import commit
from torch import Tensor

import vqkern
from vqkern.bench import Case, environment
from vqkern.data import CropSampler, load_photographs
from vqkern.evaluate import evaluate, held_out_photographs
from vqkern.metrics import quantization_error, usages
from vqkern.tokenizers import Tokenizer, from_pretrained
from vqkern.training.batches import training_samples
from vqkern.training.build import build_tokenizer_of
from vqkern.training.config import load_recipe, to_mapping
from vqkern.training.engine import CHECKPOINTS, train
from vqkern.training.recipe import Recipe
from vqkern.training.state import FREE, State
from vqkern.training.trained import Trained

COLUMNS = (
    "run,seed,step,steps,recipe,start,quantization_error,psnr,ssim,error_crops,tokens,utilization,"
    "perplexity,reachable,seconds,threads,settings,hardware,vqkern,torch,python,system,commit,utc"
).split(",")
HELD_OUT = ("quantization_error", "psnr", "ssim")
# Settings that rows may be older than, at what they were then.
YOUNGER = (("optim.codebook_weight_decay", 0.0),)
BATCH, STREAM = 64, 1  # training draws its crops from stream 0


@dataclass(frozen=True)
class Run:
    """recipe: its name. start: the run whose tokenizer it starts from. early: steps measured.
    codes: a run whose quantizer the result is measured with, too, in a row `NAME with CODES`.
    more: settings other than the recipe's. tokens: over which error_crops and usage are measured.
    reachable: whether the result is compared with latents as codes."""

    recipe: str
    start: str | None = None
    early: tuple[int, ...] = ()
    codes: str | None = None
    more: tuple[str, ...] = ()
    tokens: int = 1 << 17
    reachable: bool = False


# As many tokens a code as FVQ counts, 50,000 images of 256.
MANY = {"tokens": 195 << 16, "reachable": True}
NAMED = ("--quantizer.name", "linear")
LINEAR = (
    *NAMED,
    *("--quantizer.options", "{commitment: 0.25, init: normal, scale: 0.45, start: identity}"),
)
PLAIN = ("--optim.codebook_weight_decay", "0")
# Four channels: the presets' own starts, faster codes, four times as many tokens a step.
FOUR = (
    *("--tokenizer.architecture.latent_dim", "4", "--quantizer.options", "{commitment: 0.25}"),
    *("--data.batch", "64", "--optim.steps", "700", "--optim.warmup", "70"),
    *("--optim.codebook_lr", "2e-3", "--optim.codebook_weight_decay", "3"),
)
RUNS = {
    "base": Run("photographs-base", early=(100,)),
    "stage-1": Run("photographs-stage-1", "base", (0,)),
    "stage-2": Run("photographs-stage-2", "stage-1"),
    "joint": Run("photographs-stage-2-joint", "stage-1"),
    # As many decoder steps on the base's own codes: what a longer training alone brings, and
    # whether a decoder that never saw the new codes does as well with them.
    "base-decoder": Run("photographs-stage-2", "base", codes="stage-1"),
    # Early is after a tenth of the steps.
    "rq": Run("photographs-rq", early=(60,)),
    "var": Run("photographs-var", early=(60,)),
    "mgvq": Run("photographs-mgvq", early=(60,)),
    "vaevq": Run("photographs-vaevq", early=(60,)),
    # Early are the end of the plateau, then the rates fall, and half of that fall.
    "fvq": Run("photographs-fvq", early=(300, 650), **MANY),
    "linear": Run("photographs-fvq", early=(300, 650), more=LINEAR, **MANY),
    "fvq-plain": Run("photographs-fvq", early=(300, 650), more=PLAIN, **MANY),
    "linear-plain": Run("photographs-fvq", early=(300, 650), more=(*LINEAR, *PLAIN), **MANY),
    "fvq-4": Run("photographs-fvq", early=(210, 455), more=FOUR, **MANY),
    "linear-4": Run(
        "photographs-fvq",
        early=(210, 455),
        more=(*FOUR, *PLAIN, *NAMED),
        **MANY,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--out", type=Path, default=RESULTS / "photographs_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wanted = [(name, seed) for seed in args.seeds for name in RUNS if name in args.runs]
    left = [pair for pair in wanted if not complete(*pair, read(args.out))]
    began = time.perf_counter()
    for done, (name, seed) in enumerate(left):
        gone = time.perf_counter() - began
        about = f", about {gone / done * (len(left) - done) / 60:.0f} min left" if done else ""
        print(f"{name}, seed {seed}: run {done + 1} of {len(left)}{about}", flush=True)
        if not make(name, seed, args.folder, args.out):
            return 1
    print(summary(read(args.out)))
    return 0


def recipe_of(name: str, seed: int, start: Path | None = None) -> Recipe:
    """The recipe as it stands, with its seed, `start`, and the checkpoints that are measured."""
    run = RUNS[name]
    more = [*run.more, "--run.seed", str(seed), "--run.device", "cpu", "--run.sample_every", "0"]
    early = [step for step in run.early if step]
    if early:
        more += ["--run.save_every", str(math.gcd(*early)), "--run.keep", "100"]
    if run.start is not None:
        more += ["--tokenizer.pretrained", str(start)]
    return load_recipe(run.recipe, more)


def settings(name: str, seed: int) -> str:
    """Names all that a run's figures depend on, the recipes of its starts included."""
    run = RUNS[name]
    described = to_mapping(recipe_of(name, seed))
    kept = {
        f"{part}.{key}": value
        for part in ("tokenizer", "quantizer", "data", "loss", "optim")
        for key, value in described[part].items()
        if f"{part}.{key}" not in FREE and (f"{part}.{key}", value) not in YOUNGER
    }
    text = json.dumps([described["trainer"], kept, seed], sort_keys=True)
    if run.start is not None:
        text += settings(run.start, seed)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def place(name: str, seed: int, folder: Path) -> Path:
    """The folder of a run."""
    return folder / f"{name}-{seed}-{settings(name, seed)}"


def complete(name: str, seed: int, rows: list[dict]) -> bool:
    made = settings(name, seed)
    steps = {row["step"] for row in rows if row["run"] == name and row["settings"] == made}
    return steps >= {str(step) for step in (*RUNS[name].early, recipe_of(name, seed).optim.steps)}


def make(name: str, seed: int, folder: Path, out: Path) -> bool:
    """Trains one run, after its start where that is missing, and measures it; False if stopped."""
    run = RUNS[name]
    for other in filter(None, (run.start, run.codes)):
        there = place(other, seed, folder) / "tokenizer"
        if not there.is_dir() and not make(other, seed, folder, out):
            return False
    start = run.start and place(run.start, seed, folder)
    recipe, where = recipe_of(name, seed, start), place(name, seed, folder)
    if train(recipe, where).signal is not None:
        return False
    measured = [(name, step, tokenizer_at(recipe, where, step)) for step in run.early]
    last = recipe.optim.steps
    measured.append((name, last, tokenizer_at(recipe, where, last)))
    if run.codes is not None:
        other = from_pretrained(place(run.codes, seed, folder) / "tokenizer")
        both = tokenizer_at(recipe, where, last).transplant(other.quantizer).eval()
        measured.append((f"{name} with {run.codes}", last, both))
    rows = []
    for label, step, tokenizer in measured:
        held_out = evaluate(tokenizer, held_out_photographs())
        figures = {key: held_out[key] for key in HELD_OUT}
        figures |= on_crops(tokenizer, recipe, run.tokens)
        if run.reachable and step == last:
            figures["reachable"] = reachable(tokenizer, recipe, run.tokens)
        rows.append(
            {
                "run": label,
                "seed": seed,
                "step": step,
                "steps": last,
                "recipe": run.recipe,
                "start": run.start or "",
                "tokens": run.tokens,
                **{key: f"{value:.6g}" for key, value in figures.items()},
                "seconds": f"{seconds(where, recipe.data.batch, step):.1f}",
                "threads": torch.get_num_threads(),
                "settings": settings(name, seed),
                **environment(Case(1, 1, 1), commit()),
            }
        )
        shown = ", ".join(f"{key} {rows[-1][key]}" for key in figures)
        print(f"  {label}, step {step}: {shown}", flush=True)
    write(out, rows)
    return True


def tokenizer_at(recipe: Recipe, where: Path, step: int) -> Tokenizer:
    """The tokenizer of a run after `step` steps, with averaged weights where there are."""
    torch.manual_seed(recipe.run.seed)
    samples = training_samples(recipe.data, recipe.run.seed)
    tokenizer = build_tokenizer_of(recipe, samples)
    if step:
        state = State(recipe, Trained(tokenizer, recipe.trainer), torch.device("cpu"))
        state.resume(where / CHECKPOINTS / f"step-{step:08d}")
        if state.average is not None:
            state.average.swap()
    return tokenizer.eval()


@torch.no_grad()
def on_crops(tokenizer: Tokenizer, recipe: Recipe, tokens: int) -> dict[str, float]:
    """Quantization error and usage over crops that training does not see."""
    quantizer, errors = tokenizer.quantizer, []
    quantizer.reset_usage()
    for latent in latents(tokenizer, recipe, tokens, STREAM):
        quantized, _, _ = quantizer(latent)
        place = latent[:, : quantized.shape[1]]  # of a variational latent the mean
        errors.append(float(quantization_error(place, quantized, channel_dim=1)))
    found = usages(quantizer)
    return {
        "error_crops": statistics.mean(errors),
        "utilization": statistics.mean(usage.utilization for usage in found),
        "perplexity": statistics.mean(usage.perplexity for usage in found),
    }


@torch.no_grad()
def reachable(tokenizer: Tokenizer, recipe: Recipe, tokens: int) -> float:
    """The share of as many codes that is used where codes are latents, of crops of a third kind."""
    k = tokenizer.quantizer.codebook_size
    pool = [as_rows(latent) for latent in latents(tokenizer, recipe, 8 * k, STREAM + 1)]
    codes = torch.cat(pool)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(recipe.run.seed))
    codes = codes[order[:k]].contiguous()
    hit = torch.zeros(k, dtype=torch.bool)
    for latent in latents(tokenizer, recipe, tokens, STREAM):
        hit[vqkern.nearest_code(as_rows(latent), codes).index] = True
    return float(hit.float().mean())


def latents(tokenizer: Tokenizer, recipe: Recipe, tokens: int, stream: int) -> Iterator[Tensor]:
    """Latents [64, C, h, w] of random crops, `tokens` in all."""
    pictures, regions = load_photographs()
    sampler = CropSampler(pictures, regions, recipe.data.crop, recipe.run.seed, stream)
    of_batch = BATCH * (recipe.data.crop // tokenizer.config.factor) ** 2
    for step in range(tokens // of_batch):
        yield tokenizer.latent(sampler.batch(step, BATCH))


def as_rows(latent: Tensor) -> Tensor:
    return latent.movedim(1, -1).flatten(0, -2).contiguous()


def seconds(where: Path, batch: int, step: int) -> float:
    """Wall time of the steps up to `step`, from the run's log."""
    total, before = 0.0, 0
    for line in (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["step"] <= step:
            total += (record["step"] - before) * batch / record["images_per_second"]
            before = record["step"]
    return total


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, new: list[dict]) -> None:
    """Puts rows into the file in place of those of the same run and seed, whole or not at all."""
    replaced = {(row["run"], str(row["seed"])) for row in new}
    rows = [row for row in read(path) if (row["run"], row["seed"]) not in replaced] + new
    order = list(RUNS)
    rows.sort(
        key=lambda row: (
            order.index(row["run"].split(" with ")[0]),
            row["run"],
            int(row["seed"]),
            int(row["step"]),
        )
    )
    part = path.with_suffix(".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def summary(rows: list[dict]) -> str:
    """A table in Markdown: means over seeds, the smallest and largest of several in brackets."""
    lines = [
        "| run | step | seeds | error | error, crops | utilization | PSNR | SSIM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["run"], row["step"]), []).append(row)
    for (name, step), group in groups.items():
        cells = [spread(group, "quantization_error", 3), spread(group, "error_crops", 3)]
        cells += [spread(group, "utilization", 1, 100) + " %"]
        cells += [spread(group, "psnr", 2), spread(group, "ssim", 3)]
        lines.append(f"| {name} | {step} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(rows: list[dict], column: str, digits: int, scale: float = 1.0) -> str:
    values = [float(row[column]) * scale for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
