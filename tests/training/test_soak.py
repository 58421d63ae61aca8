"""Fifty kills at random moments, also inside a save: every run goes on, no checkpoint is lost."""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import train_ranks
from safetensors.torch import load_file

from vqkern.training.checkpoint import complete_checkpoints, damage, newest_checkpoint

KILLS = 50
FREQUENT = {"run": {"save_every": 1, "keep": 3}, "optim": {"steps": 60}}


def start(out, seed):
    """A run in a process of its own that kills itself at a random moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "vqkern.training.engine"])
    recipe = train_ranks.merged(train_ranks.RECIPE, FREQUENT)
    process = context.Process(target=doomed, args=(str(out), recipe, seed))
    process.start()
    return process


def doomed(out, recipe, seed):
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
                threading.Thread(target=kill_after, args=(delay,), daemon=True).start()
            original(*given)

        setattr(checkpoint, name, killing)
    else:
        delay = chance.random() * 2.0
        threading.Thread(target=kill_after, args=(delay,), daemon=True).start()
    train_ranks.rank_of_run(out, 0, 1, 0, recipe, None)


def kill_after(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def step_of(path: Path | None) -> int:
    return 0 if path is None else int(path.name.removeprefix("step-"))


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train_ranks.run(whole, **FREQUENT) == [0]
    expected = states_of(whole)
    kills, finished, last = 0, 0, 0
    while kills < KILLS:
        process = start(out, 1000 + kills + finished)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        folder = out / "checkpoints"
        assert all(damage(path) is None for path in complete_checkpoints(folder))
        newest = step_of(newest_checkpoint(folder))
        assert newest >= last  # what was complete before is still there, or something newer
        last = newest
        if process.exitcode == 0:  # it got through: the same bits, and once more from the start
            assert_same(states_of(out), expected)
            shutil.rmtree(out)
            finished, last = finished + 1, 0
    assert train_ranks.run(out, **FREQUENT) == [0]
    assert_same(states_of(out), expected)


def states_of(out):
    files = newest_checkpoint(out / "checkpoints").glob("*.safetensors")
    return {name: t for file in files for name, t in load_file(file).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
