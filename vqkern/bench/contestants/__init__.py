"""Who is compared: every contestant is a name, what it needs, and how to call it.

One module an op, each with a tuple of its contestants. `prepare(case, *inputs)` does what is not
timed and returns the timed call, whose output is a tensor or a tuple of tensors.
"""

from .base import Call, Contestant, Output, resolved_backend
from .code_sums import CODE_SUMS
from .gaussian_w2 import GAUSSIAN_W2
from .gaussian_w2 import floors as gaussian_w2_floors
from .layer_step import LAYER_STEP, LAYER_STEP_EMA
from .nearest_code import NEAREST_CODE, NEAREST_CODE_COMPILED
from .squared_mmd import SQUARED_MMD

__all__ = [
    "CODE_SUMS",
    "Call",
    "Contestant",
    "GAUSSIAN_W2",
    "LAYER_STEP",
    "LAYER_STEP_EMA",
    "NEAREST_CODE",
    "NEAREST_CODE_COMPILED",
    "Output",
    "SQUARED_MMD",
    "gaussian_w2_floors",
    "resolved_backend",
]
