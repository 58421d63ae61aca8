"""Images per second of a trainer with this package's quantizer and vector-quantize-pytorch's.

    python benchmarks/training_speed.py --codes 16384 65536

The trainer is that of `vqkern train`: the small tokenizer of the photographs' recipes (f = 8,
8 channels), 16 crops of 128 x 128 a step, which are 4,096 tokens, forward, loss, backward and AdamW
for encoder and decoder. The quantizers are `VectorQuantize` with its default options (codes moved
by averages, rotation trick), the library's own and the drop-in, on the same codes; the tokenizer
without a quantizer says what a step costs besides. Times are taken in turns in one process, peak
memory in a process for each. Adds to results/training_speed_cpu.csv.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from compare import RESULTS
from record import commit
from torch import Tensor, nn

from vqkern.bench import Case
from vqkern.bench.measure import interleave
from vqkern.bench.memory import return_free_heap
from vqkern.bench.report import environment
from vqkern.machine import (
    peak_since_reset,
    peak_since_start,
    reset_peak_memory,
    resident_memory,
)
from vqkern.tokenizers import build_tokenizer
from vqkern.training.batches import training_samples
from vqkern.training.build import config_of
from vqkern.training.config import load_recipe
from vqkern.training.engine import Losses, _generator_pass, _update, rate_factor, set_rates
from vqkern.training.state import State
from vqkern.training.trained import Trained

BATCH, CROP, D = 16, 128, 8
TOKENS = BATCH * (CROP // 8) ** 2
LIBRARY, DROP_IN, NOTHING = "vector-quantize-pytorch", "vqkern.interop", "no quantizer"
COLUMNS = (
    "contestant,codes,tokens,dim,batch,crop,median_s,best_s,rounds,images_per_s,library_over_it,"
    "indices_equal,extra_bytes,threads,hardware,vqkern,backend,torch,python,system,commit,utc"
).split(",")


class Quantizer(nn.Module):
    """A `VectorQuantize` as a tokenizer's quantizer."""

    dim, channel_dim = D, 1

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, index, loss = self.layer(z)
        return quantized, index, loss.sum()


class Nothing(nn.Module):
    """Latents as they are."""

    dim, channel_dim = D, 1

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z, z.new_zeros(0), z.new_zeros(())


def quantizer(contestant: str, codes: int) -> nn.Module:
    if contestant == NOTHING:
        return Nothing()
    if contestant == DROP_IN:
        from vqkern.interop import VectorQuantize
    else:
        from vector_quantize_pytorch import VectorQuantize
    return Quantizer(VectorQuantize(D, codes, accept_image_fmap=True))


class Trainer:
    """`vqkern train`'s step on one batch of crops."""

    def __init__(self, contestant: str, codes: int) -> None:
        self.recipe = load_recipe("photographs-base", ["--data.crop", str(CROP)])
        torch.manual_seed(0)
        config = config_of(self.recipe.tokenizer.architecture)
        tokenizer = build_tokenizer(config, quantizer(contestant, codes))
        self.state = State(self.recipe, Trained(tokenizer, "from_scratch"), torch.device("cpu"))
        self.losses = Losses(self.recipe.loss, self.state)
        samples = training_samples(self.recipe.data, 0)
        self.images = torch.stack([samples[number] for number in range(BATCH)])

    def step(self) -> None:
        set_rates(self.state, rate_factor(self.recipe.optim, self.state.step))
        self.state.undo.keep()
        values, _ = _generator_pass(self.state.model, self.losses, [self.images], False, self.state)
        _update(self.state, values)

    def layer(self) -> nn.Module:
        return self.state.model.tokenizer.quantizer


def times(codes: int, seconds: float) -> list[dict]:
    """Rows of all contestants at K = `codes`."""
    trainers = {name: Trainer(name, codes) for name in (LIBRARY, DROP_IN, NOTHING)}
    trainers[DROP_IN].layer().load_state_dict(trainers[LIBRARY].layer().state_dict())
    latent = trainers[LIBRARY].state.model.tokenizer.latent(trainers[LIBRARY].images)
    with torch.no_grad():
        index = [trainers[name].layer().eval()(latent)[1] for name in (LIBRARY, DROP_IN)]
    equal = float((index[0] == index[1]).double().mean())
    calls: dict[str, Callable[[], None]] = {name: t.step for name, t in trainers.items()}
    expected = {}
    for name, call in calls.items():
        trainers[name].state.model.train()
        call()
        start = time.perf_counter()
        call()
        expected[name] = time.perf_counter() - start
    samples, errors = interleave(calls, expected, seconds)
    if errors:
        raise SystemExit(f"failed: {errors}")
    theirs = statistics.median(samples[LIBRARY])
    return [
        {
            "contestant": name,
            "codes": codes,
            "median_s": f"{statistics.median(taken):.5f}",
            "best_s": f"{min(taken):.5f}",
            "rounds": len(taken),
            "images_per_s": f"{BATCH / statistics.median(taken):.2f}",
            "library_over_it": f"{theirs / statistics.median(taken):.2f}",
            "indices_equal": "" if name == NOTHING else f"{equal:.5f}",
        }
        for name, taken in samples.items()
    ]


def peak(name: str, codes: int) -> int:
    """Bytes of a first step on top of tokenizer, optimizer and images, gradients included."""
    Trainer(name, 256).step()
    trainer = Trainer(name, codes)
    gc.collect()
    return_free_heap()
    resets = reset_peak_memory()
    before = resident_memory() if resets else peak_since_start()
    trainer.step()
    return (peak_since_reset() if resets else peak_since_start()) - before


def write(path: Path, rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda row: int(row["codes"]))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--codes", nargs="+", type=int, default=[16384, 65536])
    parser.add_argument("--seconds", type=float, default=40.0, help="timed rounds of a K")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_speed_cpu.csv")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(peak(args.one, *args.codes))
        return 0
    rows = []
    if args.out.exists():
        with open(args.out, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["codes"]) not in args.codes]
    for codes in args.codes:
        for row in times(codes, args.seconds):
            command = [sys.executable, __file__, "--one", row["contestant"], "--codes", str(codes)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            extra = int(answer.stdout.split()[-1])
            print(
                f"K={codes:6} {row['contestant']:24} {row['images_per_s']:>8} images/s  "
                f"{row['library_over_it']:>6}x  {extra / 2**20:8.1f} MiB",
                flush=True,
            )
            shape = {"tokens": TOKENS, "dim": D, "batch": BATCH, "crop": CROP}
            where = environment(Case(TOKENS, codes, D), commit())
            threads = torch.get_num_threads()
            rows.append({**shape, "threads": threads, **where, **row, "extra_bytes": extra})
            write(args.out, rows)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    raise SystemExit(main())
