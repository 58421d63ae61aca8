"""Random numbers of the experiments that move codes: where codes start, features of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..quantizers import Table
from .frame import State

# features(n, generator) -> [n, D]
Features = Callable[[int, torch.Generator], Tensor]


class Sizes(Protocol):
    """What `moving.Moving` says of sizes, and the seed."""

    codes: int
    dim: int
    test_features: int
    seed: int


class Draws(Protocol):
    """Codes [K, D] from N(0, I), features [n, D] of a step and those that figures are counted on.

    Steps are asked for in order; a resumed run starts with `load_state` of what `state` gave.
    """

    def table(self) -> Table: ...

    def step(self, features: Features, n: int, step: int) -> Tensor: ...

    def test(self, features: Features) -> Tensor: ...

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...


class Numbered:
    """Every step draws from generators seeded by its number, so that nothing is to be kept."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def table(self) -> Table:
        torch.manual_seed(self.sizes.seed)
        return Table(self.sizes.codes, self.sizes.dim)

    def step(self, features: Features, n: int, step: int) -> Tensor:
        # The MMD term draws its subset from torch's own generator.
        torch.manual_seed(self._stream(step))
        return features(n, torch.Generator().manual_seed(self._stream(step)))

    def test(self, features: Features) -> Tensor:
        generator = torch.Generator().manual_seed(self._stream(-1))
        return features(self.sizes.test_features, generator)

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        pass

    def _stream(self, step: int) -> int:
        return (self.sizes.seed + 1) * 1_000_003 + step


class Released:
    """The random numbers behind the published rows of Wasserstein VQ (Fang et al. 2025).

    One generator with seed 12 draws the codes, as many numbers again for the start of an embedding
    that is not used, and then, in turns, the features of a step and those that the log counts on:
    before the first step, after it, and after every hundredth.
    """

    SEED, EVERY = 12, 100

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.generator = torch.Generator()
        self.tested: Tensor | None = None

    def table(self) -> Table:
        self.generator.manual_seed(self.SEED)
        torch.manual_seed(self.SEED)  # of what a method draws beside these
        table = Table(self.sizes.codes, self.sizes.dim)
        with torch.no_grad():
            table.weight.normal_(generator=self.generator)
            torch.empty_like(table.weight).normal_(generator=self.generator)
        return table

    def step(self, features: Features, n: int, step: int) -> Tensor:
        if step == 0:
            self._draw_test(features)
        z = features(n, self.generator)
        self.tested = None
        if step == 0 or (step + 1) % self.EVERY == 0:
            self.tested = self._draw_test(features)
        return z

    def test(self, features: Features) -> Tensor:
        return self._draw_test(features) if self.tested is None else self.tested

    def state(self) -> State:
        kept = {"draws.generator": self.generator.get_state()}
        return kept if self.tested is None else kept | {"draws.tested": self.tested}

    def load_state(self, state: State) -> None:
        self.generator.set_state(state["draws.generator"])
        self.tested = state.get("draws.tested")

    def _draw_test(self, features: Features) -> Tensor:
        return features(self.sizes.test_features, self.generator)
