"""What `accelerate` did, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Replaced:
    """A quantizer that now runs here.

    name: as in `model.named_modules()`; "" for the model itself. kind: library and class. shape:
    (K, D), or (heads, K, D). hooks: registered on it or on a part, and still there.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    hooks: int


@dataclass(frozen=True)
class Left:
    """A quantizer that runs as before, and the reason."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was replaced and what was left, in the order of `model.named_modules()`."""

    replaced: tuple[Replaced, ...] = ()
    left: tuple[Left, ...] = ()

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, left {len(self.left)}"]
        for entry in self.replaced:
            sizes = " x ".join(f"{size:,}" for size in entry.shape)
            many = "s" * (entry.hooks != 1)
            hooks = f", {entry.hooks} hook{many} kept" if entry.hooks else ""
            lines.append(f"  replaced {_path(entry.name)}: {entry.kind}, {sizes}{hooks}")
        for entry in self.left:
            lines.append(f"  left     {_path(entry.name)}: {entry.kind}: {entry.reason}")
        return "\n".join(lines)


def _path(name: str) -> str:
    return name or "(the model itself)"
