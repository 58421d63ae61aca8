"""The sampler: every image once an epoch, ranks share batches, any stop resumes exactly."""

import itertools

import pytest

from vqkern.data import EpochSampler


def batches(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize("length", [1, 5, 24, 101])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_every_image_comes_once_an_epoch(length, batch):
    keys = sum(batches(EpochSampler(length, batch, seed=3), 3 * length), [])
    for epoch in range(3):
        part = keys[epoch * length : (epoch + 1) * length]
        assert {key.epoch for key in part} == {epoch}
        assert sorted(key.number for key in part) == list(range(length))


def test_the_order_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(50, 4, seed=1)
    third = sampler.order(3).tolist()
    assert EpochSampler(50, 10, seed=1, rank=1, world=2).order(3).tolist() == third
    for other in (sampler.order(2), EpochSampler(50, 4, seed=2).order(3)):
        assert other.tolist() != third
    assert EpochSampler(50, 4, seed=None).order(9).tolist() == list(range(50))


@pytest.mark.parametrize("world", [2, 3, 4, 12])
def test_ranks_share_the_batches_of_one_process(world):
    whole = batches(EpochSampler(31, 12, seed=0), 9)
    ranks = [batches(EpochSampler(31, 12, 0, rank, world), 9) for rank in range(world)]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
@pytest.mark.parametrize("world", [1, 2, 6])
def test_a_stopped_run_goes_on_with_any_number_of_ranks(stop, world):
    first = EpochSampler(20, 6, seed=5)
    whole = batches(first, 12)
    first.position = 6 * stop
    resumed = []
    for rank in range(world):
        sampler = EpochSampler(20, 6, 5, rank, world)
        sampler.load_state_dict(first.state_dict())
        resumed.append(batches(sampler, 12 - stop))
    assert [sum(parts, []) for parts in zip(*resumed, strict=True)] == whole[stop:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "length and batch_size: got 0 and 4"),
        ((5, 0), "length and batch_size: got 5 and 0"),
        ((5, 4, -1), "seed: got -1"),
        ((5, 4, 0, 2, 2), "rank and world: got 2 and 2"),
        ((5, 4, 0, 0, 3), "batch_size: got 4, expected a multiple of the 3 ranks"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 1, this run has 0"),
        ({"length": 9}, "length is 9, this run has 10"),
        ({"position": -1}, "position is -1"),
        ({"position": True}, "position is True"),
        ({"position": "4"}, "position is '4'"),
    ],
)
def test_states_of_other_runs_are_refused(change, message):
    sampler = EpochSampler(10, 2)
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**sampler.state_dict(), **change})
    with pytest.raises(ValueError, match="state: expected position, seed and length"):
        sampler.load_state_dict({})
