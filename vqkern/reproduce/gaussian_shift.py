"""`gaussian-shift`: codes that start at N(0, I) and features from N(m, I), m = 0 .. 8.

The published rows are those of Wasserstein VQ (Fang et al. 2025): 16,384 codes of 8 channels,
50,000 features a step, 2,000 steps, figures on 200,000 features. The methods `vanilla`, `ema`,
`online`, `linear` and `wasserstein` have the published hyper-parameters: SGD with momentum .9 at
rate 1 (vanilla), 3 (online, wasserstein) or .02 (linear map with bias over a frozen table); the
mean squared error summed over channels, for Wasserstein .1 times that plus 10 times the unsquared
distance; EMA with decay .9 and counts that start at 0. `wasserstein-w1` is `wasserstein` with
weight 1 on the error. `ours-*` share one optimiser (see `vqkern.training.code_optimizer`) and
revive codes that stay unused: `ours-none` is that alone, `ours-mmd` and `ours-wasserstein` add an
alignment. `wide-mmd` has our optimiser, no revival, and
the bandwidths 4b .. b/4 about the mean squared distance b, the common choice.
"""

from __future__ import annotations

import torch

from .moving import METHODS, Features
from .shifts import SMALL, Shifts, over_shifts
from .tables import published


def shifted(shift: float, dim: int) -> Features:
    """Features from N(shift, I)."""
    return lambda n, generator: torch.randn(n, dim, generator=generator).add_(shift)


EXPERIMENT = over_shifts(
    name="gaussian-shift",
    source="Wasserstein VQ (Fang et al. 2025), Gaussian features with a shifted mean",
    full=Shifts((0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)),
    quick=Shifts((0.0, 4.0, 8.0), SMALL),
    methods=tuple(METHODS),
    features=shifted,
    paper=lambda: published("gaussian_shift"),
    symbol="shift",
    axis="mean shift m",
    title="Gaussian shift",
)
