"""Batches of cropped images, decoded by worker processes beside the training step."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqkern.data.draws import Draws
from vqkern.data.named_crops import Crop
from vqkern.data.quarantine import Damage, Quarantine
from vqkern.data.sampler import EpochSampler, Key
from vqkern.data.sources import ImageSource, fingerprint
from vqkern.terminal import one_line

CROP_STREAM = 1
MAX_REPLACEMENTS = 32


class Batch(NamedTuple):
    """Images of one rank and where they come from.

    images: uint8 [B, 3, S, S], channels_last; `vqkern.data.to_float` brings them to [-1, 1].
    numbers: int64 [B], places in the source. names: B names. damaged: what could not be read.
    """

    images: Tensor
    numbers: Tensor
    names: list[str]
    damaged: list[Damage]


class CroppedImages(Dataset):
    """A source's images, cropped. The crop of a visit depends on (seed, epoch, number) alone.

    Args:
        source: Where the images come from.
        crop: What is made of them.
        seed: Seed of random crops, >= 0.
    """

    def __init__(self, source: ImageSource, crop: Crop, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed: got {seed}, expected an integer >= 0")
        self.source, self.crop, self.seed = source, crop, seed

    def __len__(self) -> int:
        return len(self.source)

    def read(self, number: int, draws: Draws | None) -> np.ndarray | Damage:
        """Image `number` as uint8 [S, S, 3], or what is wrong with it."""
        try:
            return np.asarray(self.crop(self.source.load(number), draws))
        except (ValueError, OSError) as error:
            reason = one_line(error)
            return Damage(self.source.names[number], reason)

    def draws(self, key: Key) -> Draws | None:
        """The random numbers of one visit; None where the crop needs none."""
        if not self.crop.is_random:
            return None
        return Draws(self.seed, CROP_STREAM, key.epoch, key.number)


class Loader:
    """The batches of a training run, without end; goes on exactly where a run was stopped.

    What is yielded depends on the sources' files, the seeds and the sampler's position, not on the
    number of workers. A damaged image is replaced by the next one of the source that can be read,
    so batches keep their size on all ranks; `quarantine` counts and names it, and raises above the
    allowed share.

    Args:
        images: The data set.
        sampler: Which of its images come when. The loader moves its position forward.
        quarantine: Where damaged images go; None makes one with the default share.
        workers: Processes that decode; 0 decodes in this one.

    Raises:
        ValueError: the sampler is made for another number of images.
    """

    def __init__(
        self,
        images: CroppedImages,
        sampler: EpochSampler,
        quarantine: Quarantine | None = None,
        workers: int = 0,
    ) -> None:
        if sampler.length != len(images):
            raise ValueError(f"sampler: made for {sampler.length} images, there are {len(images)}")
        rejected = images.source.rejected
        self.images, self.sampler, self.workers = images, sampler, workers
        if quarantine is None:
            quarantine = Quarantine(len(images) + len(rejected))
        self.quarantine = quarantine
        self.quarantine.add(rejected)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the sampler's position on, which counts what was yielded, not what the
        workers have read ahead."""
        for batch in _load(_Replacing(self.images), self.sampler, self.workers):
            self.quarantine.add(batch.damaged)
            self.sampler.position += self.sampler.batch_size
            yield batch

    def state_dict(self) -> dict:
        """What a checkpoint needs to go on after the batch that was yielded last."""
        return {
            "sampler": self.sampler.state_dict(),
            "crop_seed": self.images.seed,
            "source": fingerprint(self.images.source),
            "quarantine": self.quarantine.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: a state of another source or seed.
        """
        wanted = {"crop_seed": self.images.seed, "source": fingerprint(self.images.source)}
        for name, value in wanted.items():
            if state.get(name) != value:
                raise ValueError(f"state: {name} is {state.get(name)!r}, this run has {value!r}")
        self.sampler.load_state_dict(state["sampler"])
        self.quarantine.load_state_dict(state["quarantine"])


def ordered_batches(
    images: CroppedImages, batches: Iterable[list[int]], workers: int = 0
) -> Iterator[Batch]:
    """One pass over given images, for evaluation and export: damaged ones are left out.

    Args:
        images: The data set, with a crop that is not random.
        batches: The numbers of the images of each batch. A batch may come back smaller, or empty.
        workers: Processes that decode.

    Raises:
        ValueError: the crop is random.
    """
    if images.crop.is_random:
        raise ValueError(f"images: the crop {images.crop.name!r} is random, expected a fixed one")
    keys = ([Key(0, number) for number in batch] for batch in batches)
    return _load(_Skipping(images), keys, workers)


class _Replacing(Dataset):
    """A damaged image becomes the next that can be read, cropped with the visit's own numbers."""

    def __init__(self, images: CroppedImages) -> None:
        self.images = images

    def __getitems__(self, keys: list[Key]) -> Batch:
        images, damaged, found = self.images, [], []
        for key in keys:
            for ahead in range(MAX_REPLACEMENTS):
                number = (key.number + ahead) % len(images)
                pixels = images.read(number, images.draws(key))
                if not isinstance(pixels, Damage):
                    found.append((number, pixels))
                    break
                damaged.append(pixels)
            else:
                raise ValueError(
                    f"{MAX_REPLACEMENTS} images in a row are damaged; the last: {pixels.reason}"
                )
        return _batch(images, found, damaged)


class _Skipping(Dataset):
    """Damaged images are left out."""

    def __init__(self, images: CroppedImages) -> None:
        self.images = images

    def __getitems__(self, keys: list[Key]) -> Batch:
        damaged, found = [], []
        for key in keys:
            pixels = self.images.read(key.number, None)
            if isinstance(pixels, Damage):
                damaged.append(pixels)
            else:
                found.append((key.number, pixels))
        return _batch(self.images, found, damaged)


def _batch(images: CroppedImages, found: list, damaged: list[Damage]) -> Batch:
    side = images.crop.size
    pixels = np.empty((len(found), side, side, 3), np.uint8)
    for place, (_, image) in enumerate(found):
        pixels[place] = image
    numbers = [number for number, _ in found]
    return Batch(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.tensor(numbers, dtype=torch.int64),
        [images.source.names[number] for number in numbers],
        damaged,
    )


def _load(dataset: Dataset, batches: Iterable[list[Key]], workers: int) -> Iterator[Batch]:
    if workers < 0:
        raise ValueError(f"workers: got {workers}, expected an integer >= 0")
    return iter(
        DataLoader(
            dataset,
            batch_sampler=_Sampler(batches),
            num_workers=workers,
            collate_fn=_as_it_is,
            # Without one of its own, every pass would move torch's global generator.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )
    )


class _Sampler:
    """Gives DataLoader any iterable of batches."""

    def __init__(self, batches: Iterable[list[Key]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


def _as_it_is(batch: Batch) -> Batch:
    return batch
