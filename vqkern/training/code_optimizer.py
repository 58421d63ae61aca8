"""The optimiser that moves codes well."""

from __future__ import annotations

import torch
from torch import nn

from .stages import BETAS


def code_optimizer(codes: nn.Module, *, lr: float = 0.1) -> torch.optim.Adam:
    """Adam for the codes of a quantizer, with the settings this package's own trainers use.

    The codebook loss and every alignment give each code a gradient of size 1/K, and a code with few
    features a smaller one still. SGD needs a rate for each K, and one that suits the code with
    three features a step diverges on the code that receives them all. Adam divides by the
    gradient's own size: one rate serves every K. Let it fall to 0 (`linear_decay` of
    `vqkern.training.stages`): what is left of the error at a constant rate is the codes' jitter.

    Args:
        codes: a quantizer or a parametrisation; its parameters that require a gradient are moved.
        lr: peak rate, in units of the codes: at 0.1 a code crosses a unit distance in ten steps.
            Kept as the groups' `peak_lr`, which `set_learning_rates` scales.

    Returns:
        torch.optim.Adam with betas (.9, .95) (VQ-Transplant, appendix A) and an epsilon of 1e-15:
        that of 1e-8 is not small beside gradients of 1/K.

    Raises:
        ValueError: nothing in `codes` requires a gradient, or lr is not positive and finite.
    """
    if not isinstance(lr, (int, float)) or not 0 < lr < float("inf"):
        raise ValueError(f"code_optimizer: lr must be positive and finite, got {lr!r}")
    moved = [parameter for parameter in codes.parameters() if parameter.requires_grad]
    if not moved:
        raise ValueError(
            "code_optimizer: no parameter of codes requires a gradient; codes that an EMA moves "
            "need no optimiser"
        )
    optimizer = torch.optim.Adam(moved, lr=lr, betas=BETAS, eps=1e-15)
    optimizer.param_groups[0]["peak_lr"] = lr
    return optimizer
