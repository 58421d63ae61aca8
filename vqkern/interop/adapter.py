"""What the drop-in classes share: how one takes over a module of the library it stands in for."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """Base of the classes that look like another library's quantizer.

    A subclass keeps that class's constructor, attributes, return values and state-dict keys. The
    methods in `takes_over` use nothing but those attributes, so they also run on a module of the
    other library: `take_over` gives it a class with them in place of its own.
    """

    library: str = ""
    takes_over: tuple[str, ...] = ("forward",)

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why `module`, of the class this one stands in for, cannot be taken over; None: it can."""
        raise NotImplementedError

    @classmethod
    def example(cls, module: nn.Module, items: int, generator: torch.Generator) -> Tensor:
        """An input of `items` items along its first dimension, spread like the codes."""
        raise NotImplementedError

    @classmethod
    def codebook_shape(cls, module: nn.Module) -> tuple[int, ...]:
        """(K, D), or (heads, K, D), for the report."""
        return tuple(module.embedding.weight.shape)

    @classmethod
    def prepare(cls, twin: nn.Module) -> None:
        """Brings a copy into a state in which one step says what all steps do."""

    @classmethod
    def call(cls, twin: nn.Module, x: Tensor) -> Any:
        """All that the methods taken over give for an input, the quantized tensor first."""
        return twin.forward(x)

    def _beyond(self, method: str, what: str, *args: Any, **options: Any) -> Any:
        """A call that this class does not compute; a module taken over still has its own code."""
        name = type(self).__name__
        raise ValueError(f"{name}.{method}: {what} is not supported here; see docs/interop.md")


@functools.cache
def taken_over(adapter: type[Adapter], original: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `original` with the methods that `adapter` takes over."""

    def _beyond(self, method: str, what: str, *args: Any, **options: Any) -> Any:
        return getattr(original, method)(self, *args, **options)

    def __reduce_ex__(self, protocol: int):
        # The class is made at run time: a pickle names the two it is made of.
        return _rebuild, (adapter, original), self.__dict__

    methods = {name: adapter.__dict__[name] for name in adapter.takes_over}
    return type(
        original.__name__,
        (original,),
        {
            **methods,
            "_beyond": _beyond,
            "__reduce_ex__": __reduce_ex__,
            "__module__": original.__module__,
            "__doc__": original.__doc__,
            "accelerated_by": adapter,
        },
    )


def _rebuild(adapter: type[Adapter], original: type[nn.Module]) -> nn.Module:
    cls = taken_over(adapter, original)
    return cls.__new__(cls)


def take_over(module: nn.Module, adapter: type[Adapter]) -> None:
    """Gives `module` the methods of `adapter`; parameters, buffers, hooks and identity stay."""
    module.__class__ = taken_over(adapter, type(module))


def spread_like(rows: Tensor, items: int, generator: torch.Generator) -> Tensor:
    """[items, D]: random vectors with the codes' mean and one and a half times their spread.

    Wide enough that nearest by distance, by angle and by product are mostly different codes.
    """
    noise = torch.randn(items, rows.shape[1], generator=generator).to(rows.device)
    wide = rows.detach().float()
    largest = wide.abs().max()
    spread = wide.std(0, correction=0).clamp_min(1e-3 * torch.where(largest > 0, largest, 1.0))
    return (wide.mean(0) + 1.5 * spread * noise).to(rows.dtype)


def embedding_refusal(module: nn.Module, shape: tuple[int, int]) -> str | None:
    """Why `module.embedding` is not a plain table [K, D] of this shape; None: it is."""
    table = getattr(module, "embedding", None)
    if type(table) is not nn.Embedding:
        return f"embedding is a {type(table).__name__}, not a plain nn.Embedding"
    if tuple(table.weight.shape) != shape:
        return f"embedding.weight has shape {list(table.weight.shape)}, not {list(shape)}"
    for option in ("max_norm", "padding_idx"):
        if getattr(table, option) is not None:
            return f"its embedding has {option}={getattr(table, option)!r}"
    if table.sparse or table.scale_grad_by_freq:
        return "its embedding has sparse or frequency-scaled gradients"
    return None


def only_has(module: nn.Module, *prefixes: str) -> str | None:
    """Why the module's tensors are not those of its class; None: they all begin with a prefix."""
    for name in (n for n, _ in (*module.named_parameters(), *module.named_buffers())):
        if not name.startswith(prefixes):
            return f"it has {name}, which the class it is named after does not have"
    return None
