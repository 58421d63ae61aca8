"""`accelerate`: the quantizers inside a model, computed here, and everything else as it was."""

from __future__ import annotations

import re

import torch
from torch import nn

from . import diffusers, llamagen, taming, var
from .adapter import Adapter, take_over
from .probe import difference, hook_dicts
from .report import Left, Replaced, Report
from .vector_quantize_pytorch import SimVQ, VectorQuantize

PACKAGE = "vector_quantize_pytorch"
OF_PACKAGE: dict[str, type[Adapter]] = {"VectorQuantize": VectorQuantize, "SimVQ": SimVQ}
LEFT_OF_PACKAGE = {
    "FSQ": "it has no codes to search; its cost is that of its input",
    "LFQ": "its entropy counts probabilities below 1e-5 as 1e-5, the one here does not; build a "
    "vqkern.interop.LFQ instead",
}
BY_STRUCTURE: tuple[type[Adapter], ...] = (
    var.VectorQuantizer2,
    llamagen.VectorQuantizer,
    taming.VectorQuantizer2,
    diffusers.VectorQuantizer,
)
LOOKS_LIKE_ONE = re.compile(r"Quantiz|VQ|LFQ|FSQ|BSQ|FSP|Codebook")
# Modules of these are not codebooks, or are this package's own.
NOT_LOOKED_AT = ("torch", "vqkern")


def accelerate(model: nn.Module) -> Report:
    """Lets the quantizers it recognises inside a model run here, in place.

    Recognised are `VectorQuantize` (alone and inside ResidualVQ, GroupedResidualVQ and others) and
    `SimVQ` of vector-quantize-pytorch, and by their structure the quantizers of taming-transformers
    (VQGAN), LlamaGen, VAR and diffusers. A module is replaced only after it has been seen, on a
    copy and 64 random inputs, to give the same outputs, losses, gradients and updates as before.

    The module stays the object it was, with its name, parameters, buffers, device, dtype, mode,
    hooks and state-dict keys: optimisers, checkpoints and references to it go on working. What
    changes is where its forward pass is computed: indices are those of exact arithmetic, ties to
    the lowest, and memory no longer grows with vectors x codes. A call with an argument that is not
    supported here runs the module's own code.

    Args:
        model: changed in place; under torch.distributed call it on all ranks.

    Returns:
        A Report of what was replaced, and what looks like a quantizer and was left, and why.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be an nn.Module, got {type(model).__name__}")
    replaced: list[Replaced] = []
    left: list[Left] = []
    for name, module in list(model.named_modules()):
        known = (*replaced, *(entry for entry in left if entry.reason != NOT_RECOGNISED))
        if any(_is_inside(name, entry.name) for entry in known):
            continue
        adapter = _adapter_of(module)
        kind = _kind(module, adapter)
        reason = _reason_to_leave(module, adapter)
        if adapter is not None and reason is None:
            shape = adapter.codebook_shape(module)
            hooks = sum(len(hooks) for part in module.modules() for hooks in hook_dicts(part))
            take_over(module, adapter)
            replaced.append(Replaced(name, kind, shape, hooks))
        elif reason is not None:
            left.append(Left(name, kind, reason))
    # A container is named only if nothing inside it was.
    named = {entry.name for entry in (*replaced, *left)}
    left = [
        entry
        for entry in left
        if entry.reason != NOT_RECOGNISED or not any(_is_inside(n, entry.name) for n in named)
    ]
    return Report(tuple(replaced), tuple(left))


NOT_RECOGNISED = "it is not one of the quantizers that are recognised"


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (outer == "" or name.startswith(outer + "."))


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _adapter_of(module: nn.Module) -> type[Adapter] | None:
    name = type(module).__name__
    if _package(module) == PACKAGE:
        return OF_PACKAGE.get(name)
    if _package(module) in NOT_LOOKED_AT or "VectorQuantizer" not in name:
        return None
    for adapter in BY_STRUCTURE:
        if all(hasattr(module, attribute) for attribute in adapter.attributes):
            return adapter
    return None


def _kind(module: nn.Module, adapter: type[Adapter] | None) -> str:
    name = type(module).__name__
    if adapter is None:
        return f"{_package(module)} {name}" if _package(module) == PACKAGE else name
    return f"{adapter.library} {name}"


def _reason_to_leave(module: nn.Module, adapter: type[Adapter] | None) -> str | None:
    """Why a module that is, or looks like, a quantizer is left; None: it is not, or can go."""
    name = type(module).__name__
    if hasattr(type(module), "accelerated_by"):
        return "it is accelerated already"
    if adapter is None:
        if _package(module) == PACKAGE and name in LEFT_OF_PACKAGE:
            return LEFT_OF_PACKAGE[name]
        for base in type(module).__mro__[1:]:
            if base.__module__.partition(".")[0] == PACKAGE and base.__name__ in OF_PACKAGE:
                return f"it is a {base.__name__} with code of its own"
        looks = LOOKS_LIKE_ONE.search(name) and _package(module) not in NOT_LOOKED_AT
        return NOT_RECOGNISED if looks else None
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    changed = [method for method in adapter.takes_over if method in module.__dict__]
    if changed:
        return f"its {changed[0]} was replaced on the instance"
    try:
        return adapter.refusal(module) or difference(module, adapter)
    except Exception as error:  # whatever somebody else's module does, the others still matter
        return f"it is not as that class is known here: {type(error).__name__}: {error}"
