"""What one rank of `tests/quantizers/test_ranks.py` does; a module of its own so that it can start.

The batches of all ranks in a row are the same whatever the number of ranks; with two ranks the
second is empty in the first step, and one rank gets a NaN and an infinite row.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

import vqkern

STEPS = 3
SIZES = {
    1: ([6], [6], [6]),
    2: ([6, 0], [1, 5], [4, 2]),
    4: ([2, 0, 1, 3], [0, 5, 0, 1], [1, 1, 1, 3]),
}


class Shifted(torch.nn.Module):
    """A quantizer behind an encoder that is one vector, through which NaN has no gradient."""

    def __init__(self, quantizer: torch.nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer
        channels = getattr(quantizer, "in_channels", quantizer.dim)
        self.shift = torch.nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return self.quantizer(x + self.shift)


def batch(step: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, channels, 4, 4, generator=generator)
    x[3, 0, 1, 2], x[5, 1, 0, 0] = math.nan, math.inf
    return x


def run(rank: int, folder: str, jobs: list[tuple[str, dict, float]]) -> None:
    """Trains every job in runs of 1, 2 and 4 ranks; saves all parameters and buffers per step."""
    torch.set_num_threads(1)
    for world in SIZES:
        if rank < world:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world
            )
            result = {name: steps(rank, world, options, lr) for name, options, lr in jobs}
            features = batch(0, 3).movedim(1, -1)[slice_of(rank, world, 0)].reshape(-1, 3)
            result["kmeans"] = [{"codes": vqkern.quantizers.kmeans(features, 20)}]
            torch.save(result, f"{folder}/{world}-{rank}.pt")
            dist.destroy_process_group()


def slice_of(rank: int, world: int, step: int) -> slice:
    start = sum(SIZES[world][step][:rank])
    return slice(start, start + SIZES[world][step][rank])


def steps(rank: int, world: int, options: dict, lr: float) -> list[dict]:
    torch.manual_seed(0)
    quantizer = vqkern.build_quantizer(**options, channel_dim=1)
    model = torch.nn.parallel.DistributedDataParallel(
        Shifted(quantizer), find_unused_parameters=True
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    states = []
    for step in range(STEPS):
        x = batch(step, len(model.module.shift))[slice_of(rank, world, step)]
        torch.manual_seed(100 * step + rank)
        quantized, _, loss = model(x)
        optimizer.zero_grad()
        (loss + 1e-3 * quantized.nan_to_num().square().sum()).backward()
        optimizer.step()
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        states.append({key: value.detach().clone() for key, value in state.items()})
    return states
