"""Training images by number, and the batches of a rank from any step on.

Step s of a run takes images s B .. (s + 1) B - 1, B the batch over all ranks, and each image is a
function of its number and the seed. So the data position of a run is its step, whatever the number
of ranks, workers or micro-batches.
"""

import hashlib
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqkern.data import (
    Crop,
    CroppedImages,
    CropSampler,
    Damage,
    EpochSampler,
    Quarantine,
    load_photographs,
    open_source,
    to_float,
)
from vqkern.training.recipe import DataSettings
from vqkern.training.signals import SIGNALS


class Samples(Protocol):
    """Image `number` of an endless list, float32 [3, S, S] in [-1, 1]; numbers from 0.

    `identity` is of the set of images: a run goes on only with the one it began with.
    """

    identity: str

    def __getitem__(self, number: int) -> Tensor:
        """Raises ValueError where the image cannot be read."""


class PictureSamples:
    """Random crops of pictures in memory."""

    identity = "pictures in memory"

    def __init__(self, sampler: CropSampler) -> None:
        self.sampler = sampler

    def __getitem__(self, number: int) -> Tensor:
        return self.sampler.batch(number, 1)[0].contiguous()


def every_image_of(path: str, crop: Crop, seed: int = 0) -> CroppedImages:
    """The images of a path, all of them: figures and orders of a run are those of a whole set.

    Raises:
        ValueError: see `open_source`; something there was left out when it was listed.
    """
    images = CroppedImages(open_source(path), crop, seed)
    for damage in images.source.rejected:
        raise ValueError(
            f"data {path!r}: {damage.name!r}: {damage.reason}; `vqkern data pack` leaves it out"
        )
    return images


class SourceSamples:
    """A source's images, each once an epoch: `vqkern.data`'s order of a seed, and its crops.

    Args:
        images: What is read and how it is cropped. Its seed is that of the order too.
        max_damaged: The share of the images that may be damaged; in place of such a one comes the
            next of the order that is not. 0: the first ends the run.
    """

    def __init__(self, images: CroppedImages, max_damaged: float = 0.0) -> None:
        self.images = images
        self.order = EpochSampler(len(images), batch_size=1, seed=images.seed)
        self.quarantine = Quarantine(len(images), max_damaged)

    @property
    def identity(self) -> str:
        names = "\0".join(self.images.source.names)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self.images)} images, {digest[:16]}"

    def __getitem__(self, number: int) -> Tensor:
        for at in range(number, number + len(self.images)):
            (key,) = self.order.keys(at)
            pixels = self.images.read(key.number, self.images.draws(key))
            if not isinstance(pixels, Damage):
                return to_float(torch.tensor(pixels).permute(2, 0, 1)).contiguous()
            if self.quarantine.max_share == 0:
                raise ValueError(
                    f"{pixels.reason}; with --data.max_damaged 0.01, say, the next takes its place"
                )
            for damage in self.quarantine.add([pixels]):
                print(f"left out: {damage.reason}", file=sys.stderr, flush=True)
        raise ValueError("no image can be read")


def training_samples(data: DataSettings, seed: int) -> Samples:
    """The images that a recipe names.

    Raises:
        ValueError: see `load_photographs`, `every_image_of` and `CropSampler`.
    """
    if data.folder is not None:
        crop = Crop(data.crop_kind, data.crop, data.flip)
        if data.max_damaged == 0:
            return SourceSamples(every_image_of(data.folder, crop, seed))
        return SourceSamples(CroppedImages(open_source(data.folder), crop, seed), data.max_damaged)
    pictures, regions = load_photographs()
    return PictureSamples(CropSampler(pictures, regions, data.crop, seed))


@dataclass(frozen=True)
class Share:
    """A rank's part of every batch: `count` micro-batches of `size` images.

    Raises:
        ValueError: the ranks and micro-batches do not divide the batch.
    """

    batch: int
    rank: int
    ranks: int
    size: int

    @classmethod
    def of(cls, data: DataSettings, rank: int, ranks: int) -> "Share":
        own, rest = divmod(data.batch, ranks)
        if rest:
            raise ValueError(f"data.batch: {data.batch} images cannot be shared by {ranks} ranks")
        # With more ranks than the recipe was written for, a micro-batch is at most the rank's part.
        size = own if data.micro_batch is None else min(data.micro_batch, own)
        if own % size:
            raise ValueError(
                f"data.micro_batch: a rank's {own} images are not a multiple of {size}"
            )
        return cls(data.batch, rank, ranks, size)

    @property
    def count(self) -> int:
        return self.batch // self.ranks // self.size

    def numbers(self, step: int) -> list[list[int]]:
        """The images of each micro-batch of a step."""
        first = step * self.batch + self.rank * self.count * self.size
        starts = range(first, first + self.count * self.size, self.size)
        return [list(range(start, start + self.size)) for start in starts]


class _Numbers:
    """The numbers of every micro-batch; a list of them would be as long as the training."""

    def __init__(self, share: Share, steps: range) -> None:
        self.share, self.steps = share, steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from self.share.numbers(step)


class Unreadable(str):
    """In place of a batch: why an image could not be read."""


class _Careful(Dataset):
    """An error crosses the boundary of a process as a value, with its message alone."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> Tensor | Unreadable:
        try:
            return self.samples[number]
        except (ValueError, OSError) as error:
            return Unreadable(error)


def micro_batches(
    samples: Samples, share: Share, steps: range, workers: int
) -> Generator[Tensor | Unreadable, None, None]:
    """The rank's micro-batches [size, 3, S, S] of the given steps, in order; to be closed."""
    loader = DataLoader(
        _Careful(samples),
        batch_sampler=_Numbers(share, steps),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_parent if workers else None,
        # A generator of its own: the loader draws a seed, which must not come out of the training's
        # random numbers.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    main = threading.current_thread() is threading.main_thread()
    # torch's handler, of this loader or one before, raises wherever the training is when a process
    # dies; a dead one is missed at the next batch as well, where what is done can be saved.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if workers and main else None
    try:
        yield from batches
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        # Here and now: the processes ignore the signal by which Python would end them at exit.
        del batches


def _collate(images: list) -> Tensor | Unreadable:
    for image in images:
        if isinstance(image, Unreadable):
            return image
    return torch.stack(images)


def _leave_signals_to_the_parent(worker: int) -> None:
    # Schedulers signal every process of a job; it is the training that decides what to do.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
