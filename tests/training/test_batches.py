"""Training images by number: every image once an epoch, whatever the ranks and workers."""

import numpy as np
import pytest
import torch
from image_files import encoded, tar_bytes
from PIL import Image

from vqkern.data import Crop, CroppedImages, EpochSampler, Loader, open_source, pack, to_float
from vqkern.evaluate import folder_images
from vqkern.training.batches import Share, Unreadable, micro_batches, training_samples
from vqkern.training.recipe import DataSettings


@pytest.fixture
def folder(tmp_path):
    """Nine images of one grey each, 10, 20, ... 90, of two shapes."""
    for number in range(9):
        size = (40, 30) if number % 2 else (24, 60)
        Image.new("RGB", size, (10 * number + 10,) * 3).save(tmp_path / f"{number}.png")
    return tmp_path


def samples_of(folder, flip, seed):
    return training_samples(DataSettings(folder=str(folder), crop=16, flip=flip), seed)


def greys(images):
    return [round(float((image.mean() + 1) * 12.75)) for image in images]


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own(folder):
    samples = samples_of(folder, flip=True, seed=0)
    epochs = [greys(samples[n] for n in range(9 * e, 9 * e + 9)) for e in range(3)]
    assert all(sorted(epoch) == list(range(1, 10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert samples[3].shape == (3, 16, 16)
    other = samples_of(folder, flip=True, seed=1)
    assert epochs[0] != greys(other[n] for n in range(9))


def test_an_image_is_a_function_of_its_number(folder):
    noise = torch.randint(256, (50, 60, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(folder / "noise.png")
    first, second = (samples_of(folder, flip=True, seed=0) for _ in range(2))
    forward = [first[n] for n in range(20)]
    backward = [second[n] for n in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    views = {tuple(i.flatten()[:50].tolist()) for i in forward if float(i.std()) > 0.1}
    assert len(views) == 2  # another crop in each epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_together_read_the_batches_of_one(folder, workers):
    samples = samples_of(folder, flip=False, seed=0)

    def read(ranks, size):
        shares = [Share.of(DataSettings(batch=6, micro_batch=size), r, ranks) for r in range(ranks)]
        rows = [list(micro_batches(samples, s, range(2, 4), workers)) for s in shares]
        steps = [
            [m for row in rows for m in row[s * k : (s + 1) * k]]
            for s in range(2)
            for k in [shares[0].count]
        ]
        return [torch.cat(step) for step in steps]

    alone = read(1, None)
    expected = torch.stack([samples[n] for n in range(12, 18)])
    assert torch.equal(alone[0], expected)
    for ranks, size in ((1, 2), (2, 3), (3, 1)):
        assert all(torch.equal(a, b) for a, b in zip(alone, read(ranks, size), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_comes_as_its_message(folder, workers):
    samples = samples_of(folder, flip=False, seed=0)
    (folder / "4.png").write_bytes(b"not an image")
    share = Share.of(DataSettings(batch=9), 0, 1)
    batch = next(micro_batches(samples, share, range(1), workers))
    assert isinstance(batch, Unreadable) and "4.png" in batch and "\n" not in batch


def test_reading_draws_no_random_number_of_the_training(folder):
    samples = samples_of(folder, flip=True, seed=0)
    before = torch.get_rng_state()
    list(micro_batches(samples, Share.of(DataSettings(batch=4), 0, 1), range(2), 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_shards_are_trained_on_like_the_folder_that_they_were_packed_from(folder, tmp_path_factory):
    shards = tmp_path_factory.mktemp("shards")
    pack(CroppedImages(open_source(folder), Crop("adm", 18)), shards)
    samples = samples_of(shards, flip=False, seed=0)
    assert sorted(greys(samples[n] for n in range(9))) == list(range(1, 10))
    loader = Loader(samples.images, EpochSampler(9, batch_size=4, seed=0))
    batch = next(iter(loader))
    assert torch.equal(to_float(batch.images), torch.stack([samples[n] for n in range(4)]))


def test_evaluation_takes_every_image_or_none(folder):
    batches = list(folder_images(str(folder), 16, 4))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert greys(torch.cat(batches)) == list(range(1, 10))
    (folder / "4.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="4.png"):
        list(folder_images(str(folder), 16, 4))


def test_members_that_were_left_out_are_named(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(tar_bytes(("good.png", encoded(0)), ("../bad.png", encoded(1))))
    for read in (lambda: samples_of(path, False, 0), lambda: list(folder_images(path, 16, 4))):
        with pytest.raises(ValueError, match=r"bad.png.*contains '..'.*vqkern data pack"):
            read()


def test_the_crop_is_the_one_a_recipe_names(folder):
    noise = torch.randint(256, (64, 48, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(folder / "noise.png")
    for kind in ("adm", "var"):  # both cut the centre: the same view in every epoch
        samples = training_samples(
            DataSettings(folder=str(folder), crop=16, crop_kind=kind, flip=False), 0
        )
        views = [samples[n] for n in range(40) if float(samples[n].std()) > 0.1]
        with Image.open(folder / "noise.png") as image:
            wanted = to_float(torch.tensor(np.asarray(Crop(kind, 16)(image))).permute(2, 0, 1))
        assert len(views) == 4 and all(torch.equal(view, wanted) for view in views)
