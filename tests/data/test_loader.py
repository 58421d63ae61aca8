"""The loader: the same batches for any number of workers, exact resumption, quarantine."""

import itertools

import numpy as np
import pytest
import torch
from image_files import fill_folder, pixels

from vqkern.data import (
    Crop,
    CroppedImages,
    EpochSampler,
    Folder,
    Loader,
    Quarantine,
    QuarantineError,
    ordered_batches,
)

CROP = Crop("adm_random", 16, flip=True)


@pytest.fixture
def folder(tmp_path):
    return Folder(fill_folder(tmp_path / "images", 11))


def loader(source, workers=0, seed=0, batch=4, rank=0, world=1, share=1.0):
    images = CroppedImages(source, CROP, seed)
    sampler = EpochSampler(len(source), batch, seed, rank, world)
    return Loader(images, sampler, Quarantine(len(source), share), workers)


def take(loader, count):
    return list(itertools.islice(loader, count))


def same(a, b):
    return a.names == b.names and torch.equal(a.images, b.images) and a.damaged == b.damaged


def test_batches_hold_the_images_of_their_names(folder):
    images = CroppedImages(folder, Crop("center", 32))
    for batch in take(Loader(images, EpochSampler(11, 4)), 5):
        assert batch.images.dtype == torch.uint8 and batch.images.shape == (4, 3, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for image, number, name in zip(batch.images, batch.numbers, batch.names, strict=True):
            assert folder.names[number] == name
            place = int(name[-7:-4])
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(place)[:, 4:36])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(folder, workers):
    alone = take(loader(folder), 8)
    state = torch.get_rng_state()
    together = take(loader(folder, workers), 8)
    assert all(map(same, alone, together))
    assert torch.equal(state, torch.get_rng_state())


def test_crops_change_with_the_epoch_and_the_seed(folder):
    batches = take(loader(folder, batch=11), 2)
    first, second = (dict(zip(b.names, b.images, strict=True)) for b in batches)
    assert sum(torch.equal(first[name], second[name]) for name in first) <= 3
    other = take(loader(folder, seed=1, batch=11), 1)[0]
    third = dict(zip(other.names, other.images, strict=True))
    assert sum(torch.equal(first[name], third[name]) for name in first) <= 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_exactly(folder, workers, stop):
    whole = take(loader(folder), 7)
    stopped = loader(folder, workers)
    take(stopped, stop)  # workers have read ahead by then
    state = stopped.state_dict()
    resumed = loader(folder, workers)
    resumed.load_state_dict(state)
    assert all(map(same, take(resumed, 7 - stop), whole[stop:]))


def test_a_run_goes_on_with_another_number_of_ranks(folder):
    whole = take(loader(folder), 6)
    first = loader(folder, rank=1, world=2)
    take(first, 3)
    ranks = []
    for rank in range(4):
        resumed = loader(folder, rank=rank, world=4)
        resumed.load_state_dict(first.state_dict())
        ranks.append(take(resumed, 3))
    for batch, parts in zip(whole[3:], zip(*ranks, strict=True), strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_counted_and_named(tmp_path, workers):
    source = Folder(fill_folder(tmp_path, 11, damaged=(2, 3)))
    got = loader(source, workers)
    batches = take(got, 6)
    assert all(len(batch.names) == 4 for batch in batches)
    assert all(map(same, batches, take(loader(source), 6)))
    assert [damage.name for damage in got.quarantine.damaged] == [
        "class0/002.png",
        "class1/003.png",
    ]
    assert "002.png" in got.quarantine.summary() and "2 of 11" in got.quarantine.summary()
    assert not {name for batch in batches for name in batch.names} & {
        "class0/002.png",
        "class1/003.png",
    }


def test_too_much_damage_stops_a_run(tmp_path):
    source = Folder(fill_folder(tmp_path, 11, damaged=(2, 3)))
    take(loader(source, share=2 / 11), 6)
    with pytest.raises(QuarantineError, match="2 of 11 images are damaged.*share of 0.1.*cannot"):
        take(loader(source, share=0.1), 6)
    everything = Folder(fill_folder(tmp_path, 11, damaged=range(11)))
    with pytest.raises(ValueError, match="32 images in a row are damaged"):
        take(loader(everything), 1)


def test_one_pass_in_order_leaves_damaged_images_out(tmp_path):
    source = Folder(fill_folder(tmp_path, 6, damaged=(2, 4)))  # names 0 2 4 1 3 5
    images = CroppedImages(source, Crop("adm", 16))
    for workers in (0, 2):
        batches = list(ordered_batches(images, [[0, 1], [2], [3, 4, 5]], workers))
        assert [b.numbers.tolist() for b in batches] == [[0], [], [3, 4, 5]]
        assert [len(b.damaged) for b in batches] == [1, 1, 0]
        assert batches[1].images.shape == (0, 3, 16, 16)
    with pytest.raises(ValueError, match="adm_random.*expected a fixed one"):
        ordered_batches(CroppedImages(source, CROP), [[0]])


def test_states_and_samplers_of_other_data_are_refused(folder, tmp_path):
    other = Folder(fill_folder(tmp_path / "other", 12))
    with pytest.raises(ValueError, match="sampler: made for 11 images, there are 12"):
        Loader(CroppedImages(other, CROP), EpochSampler(11, 4))
    with pytest.raises(ValueError, match="state: source is"):
        loader(other).load_state_dict(loader(folder).state_dict())
    with pytest.raises(ValueError, match="state: crop_seed is 1"):
        loader(folder).load_state_dict(loader(folder, seed=1).state_dict())
    with pytest.raises(ValueError, match="workers: got -1"):
        take(loader(folder, workers=-1), 1)
    with pytest.raises(ValueError, match="seed: got -1"):
        CroppedImages(folder, CROP, -1)


@pytest.mark.parametrize("total,share", [(0, 0.1), (5, -0.1), (5, 1.1), (5, float("nan"))])
def test_quarantine_limits_are_checked(total, share):
    with pytest.raises(ValueError, match="total|max_share"):
        Quarantine(total, share)


def test_quarantine_states_are_checked():
    with pytest.raises(TypeError, match="state: expected a mapping"):
        Quarantine(5).load_state_dict({"a": 1})
