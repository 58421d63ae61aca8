"""What one rank of test_drop_in_ranks.py does; a module of its own so that it can start."""

import torch
import torch.distributed as dist

from vqkern.interop import ResidualVQ, VectorQuantize

JOBS = {
    "averages": lambda: VectorQuantize(4, 16),
    "cosine": lambda: VectorQuantize(4, 16, use_cosine_sim=True),
    "heads": lambda: VectorQuantize(
        4, 16, heads=2, codebook_dim=2, separate_codebook_per_head=True
    ),
    "revival": lambda: VectorQuantize(4, 16, threshold_ema_dead_code=2),
    "k-means": lambda: VectorQuantize(4, 16, kmeans_init=True),
    "residual": lambda: ResidualVQ(
        dim=4, num_quantizers=3, codebook_size=16, quantize_dropout=True, kmeans_init=True
    ),
    "in place": lambda: VectorQuantize(
        4,
        16,
        learnable_codebook=True,
        ema_update=False,
        in_place_codebook_optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    ),
}
# Rows of each rank, step by step; a rank may have none.
SHARES = {1: ([40], [40], [40]), 2: ([40, 0], [7, 33], [20, 20])}


def run(rank: int, folder: str) -> None:
    """Trains every layer in runs of 1 and 2 ranks; saves all states."""
    torch.set_num_threads(1)
    for world, shares in SHARES.items():
        if rank >= world:
            continue
        store = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        states = {}
        for job, make in JOBS.items():
            torch.manual_seed(0)
            layer = make()
            torch.manual_seed(rank)  # ranks need not draw alike
            states[job] = []
            for step, share in enumerate(shares):
                rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(step))
                layer(rows.split(share)[rank][None])
                states[job].append({k: v.clone() for k, v in layer.state_dict().items()})
        torch.save(states, f"{folder}/{world}-{rank}.pt")
        dist.destroy_process_group()
