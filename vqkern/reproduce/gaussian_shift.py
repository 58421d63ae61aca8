"""`gaussian-shift`: codes that start at N(0, I) and features from N(m, I), m = 0 .. 8.

The published rows are those of Wasserstein VQ (Fang et al. 2025): 16,384 codes of 8 channels,
50,000 features a step, 2,000 steps, figures on 200,000 features. The methods `vanilla`, `ema`,
`online`, `linear` and `wasserstein` have the published hyper-parameters: SGD with momentum .9 at
rate 1 (vanilla), 3 (online, wasserstein) or .02 (linear map with bias over a frozen table); the
mean squared error summed over channels, for Wasserstein .1 times that plus 10 times the unsquared
distance; EMA with decay .9 and counts that start at 0. These are the settings of the released
program. `wasserstein-logged` has those of the runs whose rows are published, which are others up to
m = 5, and their random numbers (see `logged`).

`ours-*` share one optimiser (see `vqkern.training.code_optimizer`) and revive codes that stay
unused: `ours-none` is that alone, `ours-mmd` and `ours-wasserstein` add an alignment. `wide-mmd`
has our optimiser, no revival, and the bandwidths 4b .. b/4 about the mean squared distance b, the
common choice.
"""

from __future__ import annotations

import torch

from .draws import Draws, Features, Released
from .moving import Moving
from .shifts import SMALL, Shifts, over_shifts
from .tables import published


def shifted(shift: float, dim: int) -> Features:
    """Features from N(shift, I)."""
    return lambda n, generator: torch.randn(n, dim, generator=generator).add_(shift)


METHODS = (
    "vanilla",
    "ema",
    "online",
    "linear",
    "wasserstein",
    "wasserstein-logged",
    "wide-mmd",
    "ours-none",
    "ours-wasserstein",
    "ours-mmd",
)


def logged(method: str, shift: float) -> str:
    """The settings of a method at a shift, those of `wasserstein-logged` by its published logs.

    With the seed of the released program and its order of draws (`draws.Released`), the errors that
    the logs give for step 0 come out to seven digits, and those for step 1 with one pair of rate
    and weight at each shift: 2 and 1 up to m = 4, 3 and .5 at m = 5, 3 and .1 from m = 6 on.
    """
    if method != "wasserstein-logged":
        return method
    if shift <= 4:
        return "wasserstein-2-1"
    return "wasserstein-3-.5" if shift < 6 else "wasserstein"


def released(method: str, settings: Moving) -> Draws | None:
    """The random numbers of a method."""
    return Released(settings) if method == "wasserstein-logged" else None


EXPERIMENT = over_shifts(
    name="gaussian-shift",
    source="Wasserstein VQ (Fang et al. 2025), Gaussian features with a shifted mean",
    full=Shifts((0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)),
    quick=Shifts((0.0, 4.0, 8.0), SMALL),
    methods=METHODS,
    features=shifted,
    paper=lambda: published("gaussian_shift"),
    symbol="shift",
    axis="mean shift m",
    title="Gaussian shift",
    settings_of=logged,
    draws_of=released,
)
