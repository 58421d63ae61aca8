"""A run that is killed goes on to the same bits; ranks agree; a run may change its ranks."""

import json

import pytest
import torch
import train_ranks
from safetensors.torch import load_file

from vqkern.training.checkpoint import complete_checkpoints, newest_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs of 20 steps, by number of ranks."""
    runs = {}
    for ranks in (1, 2):
        runs[ranks] = tmp_path_factory.mktemp(f"whole-{ranks}")
        assert train_ranks.run(runs[ranks], ranks) == [0] * ranks
    return runs


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Runs that were killed in step 8, whose newest checkpoint is that of step 7."""
    runs = {}
    for ranks in (1, 2):
        runs[ranks] = tmp_path_factory.mktemp(f"half-{ranks}")
        assert train_ranks.run(runs[ranks], ranks, kill="step 8") == [-9] * ranks
        assert [p.name for p in complete_checkpoints(runs[ranks] / "checkpoints")] == [
            "step-00000007"
        ]
    return runs


def copied(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "run")


def tensors(out):
    """Everything in the newest checkpoint, random states and all."""
    found = {}
    for file in newest_checkpoint(out / "checkpoints").glob("*.safetensors"):
        found |= load_file(file)
    return found


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(whole, half, tmp_path, ranks):
    out = copied(half[ranks], tmp_path)
    assert train_ranks.run(out, ranks) == [0] * ranks
    expected = tensors(whole[ranks])
    kinds = {name.split(".")[0] for name in expected}
    assert kinds == {"model", "discriminator", "optimizer", "average", "random"}
    assert_same(tensors(out), expected)
    assert metrics(out) == metrics(whole[ranks])
    assert [line["step"] for line in metrics(out)] == [5, 10, 15, 20]
    assert_same(*(load_file(o / "tokenizer" / "model.safetensors") for o in (out, whole[ranks])))


def test_a_kill_inside_a_save_costs_that_save_alone(whole, half, tmp_path):
    out = copied(half[1], tmp_path)
    assert train_ranks.run(out, kill="save 14") == [-9]
    left = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert left == ["step-00000007", "step-00000014.part"]
    assert train_ranks.run(out) == [0]
    assert_same(tensors(out), tensors(whole[1]))
    assert [p.name for p in complete_checkpoints(out / "checkpoints")] == [
        "step-00000014",
        "step-00000020",
    ]
    assert not list((out / "checkpoints").glob("*.part"))


def test_ranks_are_bit_equal(whole):
    first, second = (torch.load(whole[2] / f"rank-{rank}-of-2.pt") for rank in range(2))
    assert_same(first, second)
    moved = [name for name in first if name.startswith("average.") and bool(first[name].any())]
    assert len(moved) > 20
    # Averaged weights go with averaged statistics: those of the last weights would not fit them.
    mean = "encoder.standardize.mean"
    assert bool(first[f"average.{mean}"].any())
    assert not torch.equal(first[f"average.{mean}"], first[f"model.tokenizer.{mean}"])


def test_one_rank_and_two_learn_the_same_up_to_their_statistics(whole):
    one, two = metrics(whole[1])[0], metrics(whole[2])[0]
    assert one["pixel"] == pytest.approx(two["pixel"], rel=0.2) and one != two


@pytest.mark.parametrize("ranks", [1, 4])
def test_two_ranks_resume_as_other_numbers_of_ranks(half, tmp_path, ranks):
    out = copied(half[2], tmp_path)
    assert train_ranks.run(out, ranks) == [0] * ranks
    states = [torch.load(out / f"rank-{rank}-of-{ranks}.pt") for rank in range(ranks)]
    for other in states[1:]:
        assert_same(states[0], other)
    assert [line["step"] for line in metrics(out)] == [5, 10, 15, 20]
    at_7 = [f for p in complete_checkpoints(half[2] / "checkpoints") for f in p.glob("shard*")]
    before = {k: v for file in at_7 for k, v in load_file(file).items()}
    still = [
        name
        for name, value in states[0].items()
        if name.startswith("optimizer.") and torch.equal(value, before[name]) and bool(value.any())
    ]
    assert still == []


def test_a_damaged_checkpoint_is_named_and_passed_over(whole, tmp_path, capsys):
    out = copied(whole[1], tmp_path)
    newest = newest_checkpoint(out / "checkpoints")
    file = next(newest.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = []
    assert newest_checkpoint(out / "checkpoints", said.append).name == "step-00000014"
    assert len(said) == 1 and "step-00000020" in said[0] and "sha256" in said[0]
    newest.with_name("step-00000020-damaged").rename(newest)
    (newest / "manifest.json").unlink()
    newest_checkpoint(out / "checkpoints", said.append)
    assert "manifest.json' cannot be read" in said[1]
    assert train_ranks.run(out) == [0]
    assert_same(tensors(out), tensors(whole[1]))
