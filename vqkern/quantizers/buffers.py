"""Buffers that a cast of their module leaves in the type they were made in."""

from __future__ import annotations

from torch import nn


class KeepsBufferTypes(nn.Module):
    """`.half()`, `.bfloat16()` and `.type()` move its buffers to another device at most.

    Moving averages that decay by .999 need float32, interpolation matrices float64, counts int64.
    """

    def _apply(self, fn, recurse: bool = True):
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        if any(buffer.is_meta and not self._buffers[name].is_meta for name, buffer in kept.items()):
            self.remake_buffers()
        for name, buffer in kept.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def remake_buffers(self) -> None:
        """After `to_empty`: buffers that no state dict has hold what they were made with."""
