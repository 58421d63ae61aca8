"""Which image comes when: an order that depends on (seed, epoch) and on nothing else."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vqkern.data.draws import permutation

ORDER_STREAM = 0  # separates the sampler's random numbers from the crops' for one seed


class Key(NamedTuple):
    """One visit of one image: what a data set needs to draw its crop."""

    epoch: int
    number: int


class EpochSampler:
    """An endless stream of images, cut into batches and shared by the ranks.

    The stream is epoch 0, epoch 1, ...; each is a permutation of all images that is a function of
    (seed, epoch). Batch `step` is the next `batch_size` places of the stream, so that every image
    comes exactly once in an epoch and a batch may reach over its end. Rank r of W gets the r-th of
    W equal parts of every batch: with the same batch size the batches do not depend on W.

    Args:
        length: Images of the data set.
        batch_size: Images of a batch of all ranks together, a multiple of `world`.
        seed: Seed, >= 0; None takes the images in their order.
        rank, world: This process and how many there are.

    Raises:
        ValueError: a number out of its range, or a batch that the ranks cannot share equally.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int | None = 0, rank: int = 0, world: int = 1
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"length and batch_size: got {length} and {batch_size}, expected >= 1")
        if seed is not None and seed < 0:
            raise ValueError(f"seed: got {seed}, expected an integer >= 0")
        if not 0 <= rank < world:
            raise ValueError(f"rank and world: got {rank} and {world}, expected 0 <= rank < world")
        if batch_size % world:
            raise ValueError(
                f"batch_size: got {batch_size}, expected a multiple of the {world} ranks"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world = rank, world
        self.position = 0
        self._orders: dict[int, np.ndarray] = {}

    @property
    def epoch(self) -> int:
        """The epoch of the next image."""
        return self.position // self.length

    def order(self, epoch: int) -> np.ndarray:
        """The images of an epoch in their order, int64 [length]."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            if self.seed is None:
                self._orders[epoch] = np.arange(self.length)
            else:
                self._orders[epoch] = permutation(self.length, self.seed, ORDER_STREAM, epoch)
        return self._orders[epoch]

    def keys(self, position: int) -> list[Key]:
        """This rank's part of the batch that begins at place `position` of the stream."""
        part = self.batch_size // self.world
        first = position + self.rank * part
        places = (divmod(place, self.length) for place in range(first, first + part))
        return [Key(epoch, int(self.order(epoch)[place])) for epoch, place in places]

    def __iter__(self) -> Iterator[list[Key]]:
        """This rank's batches from `position` on, without end; `position` itself stays."""
        position = self.position
        while True:
            yield self.keys(position)
            position += self.batch_size

    def state_dict(self) -> dict:
        """Where the stream stands: `position` counts the images of all ranks."""
        return {"position": self.position, "seed": self.seed, "length": self.length}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken, with any number of ranks.

        Raises:
            ValueError: a state of another seed or data set, or no state at all.
        """
        if not isinstance(state, dict) or not {"position", "seed", "length"} <= state.keys():
            raise ValueError("state: expected position, seed and length")
        for name in ("seed", "length"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"state: {name} is {state[name]!r}, this run has {getattr(self, name)!r}"
                )
        position = state["position"]
        if isinstance(position, bool) or not isinstance(position, int) or position < 0:
            raise ValueError(f"state: position is {position!r}, expected an integer >= 0")
        self.position = position
