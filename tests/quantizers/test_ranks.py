"""Several ranks: bit-equal after every step, and statistics are those of all ranks together."""

import multiprocessing
import multiprocessing.connection

import pytest
import rank_steps
import torch
from support import grid_names, grid_sizes

# Rules with statistics see all ranks as one: with any number of ranks they give the same codes.
POOLED = {
    "ema pooled": {"name": "ema"},
    "ema revived": {"name": "ema", "revive_after": 1},
    "ema smoothed": {"name": "ema", "smoothing": 1e-3, "decay": 0.5},
    "online pooled": {"name": "online", "codebook_weight": 0.0, "decay": 0.5},
    "online far": {"name": "online", "codebook_weight": 0.0, "decay": 0.5, "anchor": "far"},
}
JOBS = {name: {"name": name} for name in grid_names()} | POOLED
JOBS["linear_rq by index"] = {"name": "linear_rq", "estimator": "index_backprop"}
WORLDS = tuple(rank_steps.SIZES)


WHOLE = {name: {"name": name} for name in grid_names(whole=True)}


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    return train(JOBS, tmp_path_factory.mktemp("ranks"), 240)


def train(jobs: dict, folder, timeout: float):
    """Per number of ranks, what every rank saved: job -> step -> name -> tensor."""
    # The server imports torch once and forks clean ranks: a fork of this process would inherit its
    # threads, and a fresh interpreter per rank would take most of the time to start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo"])
    work = [
        # The gradients of ranks with different numbers of rows are averaged; the rest is pooled.
        (job, {**grid_sizes(options["name"]), **options}, 0.0 if job in POOLED else 0.1)
        for job, options in jobs.items()
    ]
    ranks = [
        context.Process(target=rank_steps.run, args=(rank, str(folder), work))
        for rank in range(max(WORLDS))
    ]
    for rank in ranks:
        rank.start()
    running = {rank.sentinel: rank for rank in ranks}
    while running:
        ended = multiprocessing.connection.wait(running, timeout=timeout)
        failed = [running.pop(sentinel).exitcode for sentinel in ended]
        if not ended or any(failed):  # the others would wait for it until they time out
            for rank in running.values():
                rank.kill()
            pytest.fail(f"a rank ended with exit codes {failed}" if ended else "the ranks hang")
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in WORLDS
    }


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("job", [*JOBS, "kmeans"])
def test_ranks_are_bit_equal_after_every_step(states, world, job):
    first, *others = (rank[job] for rank in states[world])
    for step, state in enumerate(first):
        assert all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())
        for other in others:
            for key, value in state.items():
                assert torch.equal(value, other[step][key]), f"step {step}: {key}"


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("job", [*POOLED, "kmeans"])
def test_statistics_are_those_of_one_rank_with_all_rows(states, world, job):
    for alone, together in zip(states[1][0][job], states[world][0][job], strict=True):
        for key, value in alone.items():
            if "shift" not in key:
                torch.testing.assert_close(together[key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.slow
def test_every_preset_in_every_structure_is_bit_equal_on_all_ranks(tmp_path):
    from vqkern.quantizers import CODEBOOK_FREE, PRESETS, STRUCTURES

    assert len(WHOLE) >= len(STRUCTURES) * (len(PRESETS) - 1) + 2 * len(CODEBOOK_FREE)
    # Rank 1 has no rows in the first step, another one rows that are not finite.
    assert rank_steps.SIZES[2][0] == [6, 0] and rank_steps.SIZES[4][0][1] == 0
    states = train(WHOLE, tmp_path, 1800)
    for job in WHOLE:
        for world in WORLDS[1:]:
            test_ranks_are_bit_equal_after_every_step(states, world, job)
        test_something_moved_and_usage_counts_all_ranks(states, job)


@pytest.mark.parametrize("job", JOBS)
def test_something_moved_and_usage_counts_all_ranks(states, job):
    before, *_, after = states[4][0][job]
    floats = [key for key, value in before.items() if value.is_floating_point()]
    # Without a codebook, only the encoder moves.
    own = [key for key in floats if "shift" not in key] or floats
    assert any(not torch.equal(before[key], after[key]) for key in own)
    counts = [v for k, v in after.items() if k.endswith("counter.count")]
    if len(counts) == 1 and "_" not in job:
        assert int(counts[0].sum()) == rank_steps.STEPS * (6 * 16 - 2)
