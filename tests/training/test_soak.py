"""Fifty kills at random moments, also inside a save: every run goes on, no checkpoint is lost."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
import train_ranks
from safetensors.torch import load_file

from vqkern.training.checkpoint import complete_checkpoints, damage, newest_checkpoint

KILLS = 50
FREQUENT = {"run": {"save_every": 1, "keep": 3}, "optim": {"steps": 60}}


def step_of(path: Path | None) -> int:
    return 0 if path is None else int(path.name.removeprefix("step-"))


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train_ranks.run(whole, **FREQUENT) == [0]
    expected = states_of(whole)
    kills, finished, last = 0, 0, 0
    while kills < KILLS:
        process = train_ranks.start_doomed(out, 1000 + kills + finished, FREQUENT)
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
