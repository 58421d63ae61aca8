"""What the in-memory stages of a demonstration share: reports, learning rates, checks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# AdamW's betas in VQ-Transplant, appendix A: a short memory of the squared gradient suits codes,
# most of which receive a gradient in few steps only.
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class StepReport:
    """One finished training step.

    Attributes:
        step: Steps done so far, 1 .. steps.
        steps: Steps in all.
        values: What the loop measured in this step, by name.
    """

    step: int
    steps: int
    values: dict[str, float]


OnStep = Callable[[StepReport], None]


def check_finite(loss: Tensor, loop: str, step: int) -> float:
    """The loss as a number.

    Raises:
        ValueError: it is NaN or infinite. Nothing has been updated with it then.
    """
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise ValueError(
            f"{loop}: the loss became {value} at step {step + 1}; "
            f"a smaller learning rate or finite inputs are needed"
        )
    return value


def linear_decay(step: int, steps: int, warmup: int = 0) -> float:
    """Factor of the learning rate in step 0 .. steps-1: up over `warmup` steps, linearly to 0."""
    return min(1.0, (step + 1) / (warmup + 1)) * (1.0 - step / steps)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's rate to its own `peak_lr` times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def check_counts(settings: object, names: tuple[str, ...], minimum: int = 1) -> None:
    """Raises ValueError unless the named attributes are integers >= `minimum`."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name}: expected an integer >= {minimum}, got {value!r}")


def check_rates(settings: object, names: tuple[str, ...]) -> None:
    """Raises ValueError unless the named attributes are finite numbers >= 0."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
