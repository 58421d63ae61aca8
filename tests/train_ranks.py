"""Ranks of a small training run in processes of their own, for the tests of the engine.

A module of its own so that processes can start in it. `KILL` makes a rank kill itself, as `kill -9`
from outside would, at a moment that is the same in every run.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import torch

RECIPE = {
    "trainer": "from_scratch",
    "tokenizer": {
        "architecture": {
            "name": "conv",
            "latent_dim": 4,
            "widths": [8, 16],
            "blocks": [1, 1],
            "groups": 4,
        },
        "start_images": 8,
    },
    "quantizer": {"name": "mmd", "codebook_size": 64},
    "data": {"crop": 32, "batch": 8, "micro_batch": 2, "workers": 2},
    "loss": {
        "pixel": "charbonnier",
        "adversarial": {
            "discriminator": "patchgan",
            "width": 8,
            "layers": 2,
            "adaptive": True,
            "augment": ["colour", "translation", "cutout"],
            "bcr": 0.1,
            "lecam": 0.01,
            "start": 3,
        },
    },
    "optim": {"steps": 20, "lr": 1e-3, "codebook_lr": 0.01, "warmup": 2, "ema": 0.99},
    "run": {"save_every": 7, "log_every": 5, "sample_every": 0, "device": "cpu"},
}


def merged(recipe: dict, changes: dict) -> dict:
    """`recipe` with the values of `changes`, group by group."""
    new = dict(recipe)
    for key, value in changes.items():
        deeper = isinstance(value, dict) and isinstance(new.get(key), dict)
        new[key] = merged(new[key], value) if deeper else value
    return new


def run(out: Path, ranks: int = 1, kill: str | None = None, **changes: dict) -> list[int]:
    """Trains in `ranks` processes; their exit codes, -9 for those that were killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server imports torch once and forks clean ranks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "vqkern.training.engine"])
    recipe = merged(RECIPE, changes)
    processes = [
        context.Process(target=rank_of_run, args=(str(out), rank, ranks, port, recipe, kill))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"rank {processes.index(process)} hangs")
    return [process.exitcode for process in processes]


def rank_of_run(out: str, rank: int, ranks: int, port: int, recipe: dict, kill: str | None) -> None:
    from vqkern.training import checkpoint, engine
    from vqkern.training.config import from_mapping
    from vqkern.training.recipe import Recipe

    torch.set_num_threads(1)
    if ranks > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(ranks))
    finish, report, complete = engine._finish, engine._update, checkpoint._complete

    def finish_and_keep(folder, state, *others):
        finish(folder, state, *others)
        torch.save(state.tensors(), folder / f"rank-{rank}-of-{ranks}.pt")

    def killed_in_step_8(state, values):
        report(state, values)
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed_in_second_save(part, final, step, described):
        if step == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        complete(part, final, step, described)

    engine._finish = finish_and_keep
    if kill == "step 8":
        engine._update = killed_in_step_8
    elif kill == "save 14" and rank == 0:
        checkpoint._complete = killed_in_second_save
    engine.train(from_mapping(Recipe, recipe), out)


def start_doomed(out: Path, seed: int, changes: dict) -> multiprocessing.process.BaseProcess:
    """A run in a process of its own that kills itself at a random moment, as `seed` has it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "vqkern.training.engine"])
    recipe = merged(RECIPE, changes)
    process = context.Process(target=_doomed, args=(str(out), recipe, seed))
    process.start()
    return process


def _doomed(out: str, recipe: dict, seed: int) -> None:
    from vqkern.training import checkpoint

    chance = random.Random(seed)
    if seed % 2:  # somewhere between the first byte of a save and the removal of old ones
        names = ["_make_room", "_write", "_complete", "_remove_old"]
        name = chance.choice(names)
        original, left = getattr(checkpoint, name), chance.randint(1, 3)

        def killing(*given):
            nonlocal left
            left -= 1
            if left == 0:
                delay = chance.random() * 0.01
                threading.Thread(target=_kill_after, args=(delay,), daemon=True).start()
            original(*given)

        setattr(checkpoint, name, killing)
    else:
        delay = chance.random() * 2.0
        threading.Thread(target=_kill_after, args=(delay,), daemon=True).start()
    rank_of_run(out, 0, 1, 0, recipe, None)


def _kill_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
