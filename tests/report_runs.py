"""Two short training runs that differ in a learning rate, for the tests of their report."""

from pathlib import Path

import torch
import train_ranks

from vqkern.training.config import from_mapping
from vqkern.training.engine import train
from vqkern.training.recipe import Recipe

SHORT = {
    "data": {"workers": 0, "micro_batch": None, "batch": 4},
    "loss": {"adversarial": {"discriminator": "none", "start": 0}},
    "optim": {"steps": 4, "ema": None},
    "run": {"log_every": 1, "sample_every": 2, "save_every": 100},
}


def two_runs(folder: Path) -> list[Path]:
    """Trains `folder/first` and `folder/second`, four steps each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, rate in (("first", 1e-3), ("second", 2e-3)):
        described = train_ranks.merged(train_ranks.RECIPE, SHORT)
        described = train_ranks.merged(described, {"optim": {"lr": rate}})
        train(from_mapping(Recipe, described), folder / name)
    torch.set_num_threads(threads)
    return [folder / "first", folder / "second"]
