"""The drop-ins on several ranks with different numbers of rows: one codebook, that of all rows."""

import multiprocessing

import pytest
import torch
from interop import rank_layers

# Without a random draw, two ranks give what one with all rows gives.
POOLED = ("averages", "cosine", "heads")


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo"])
    ranks = [context.Process(target=rank_layers.run, args=(rank, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0, 0]
    return {name: torch.load(f"{folder}/{name}.pt") for name in ("1-0", "2-0", "2-1")}


@pytest.mark.parametrize("job", list(rank_layers.JOBS))
def test_ranks_are_bit_equal(states, job):
    for step, (one, other) in enumerate(zip(states["2-0"][job], states["2-1"][job], strict=True)):
        for key, value in one.items():
            assert bool(value.isfinite().all())
            assert torch.equal(value, other[key]), f"step {step}: {key}"
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            states["2-0"][job][0].values(), states["2-0"][job][-1].values(), strict=True
        )
    )


@pytest.mark.parametrize("job", POOLED)
def test_statistics_are_those_of_all_rows(states, job):
    for alone, together in zip(states["1-0"][job], states["2-0"][job], strict=True):
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, msg=key)
