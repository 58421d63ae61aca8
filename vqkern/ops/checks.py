"""Argument checks that the ops share; messages name the argument, what came, what was wanted."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_float(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` must be a dense floating-point torch.Tensor."""
    require_dense(op, name, tensor)
    if tensor.dtype not in _REAL:
        raise TypeError(
            f"{op}: {name} must be floating point (float16, bfloat16, float32 or float64), "
            f"got {tensor.dtype}"
        )


def require_dense(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` must be a torch.Tensor with a place in memory for each value of a full shape."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(
            f"{op}: {name} must be a dense tensor, got a nested one; pass its values() or pad it"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{op}: {name} must be a dense tensor, got layout {tensor.layout}; "
            f"pass {name}.to_dense()"
        )


def require_index(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` must be an integer torch.Tensor, of a type whose values all fit in int64."""
    require_dense(op, name, tensor)
    real = not (tensor.is_floating_point() or tensor.is_complex())
    if not real or tensor.dtype in (torch.bool, torch.uint64):
        raise TypeError(f"{op}: {name} must be an integer tensor, got {tensor.dtype}")


def require_same_device(op: str, **tensors: Tensor) -> None:
    """All tensors must be on one device."""
    (first, reference), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.device != reference.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {first} is on {reference.device}; "
                "both must be on one device"
            )


def require_matrix(op: str, name: str, tensor: Tensor, *, rows: str, columns: str) -> None:
    """`tensor` must be two-dimensional and have at least one column."""
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(
            f"{op}: {name} must have shape [{rows}, {columns}] with {columns} >= 1, "
            f"got {list(tensor.shape)}"
        )


def require_whole(label: str, value: int, least: int = 1, most: int | None = None) -> None:
    """`value` must be a whole number of at least `least`, and at most `most` if that is given."""
    # What numpy counts with, and sizes while torch.compile traces them.
    whole = isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{label} must be a whole number {wanted}, got {value!r}")


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: both hold float16 and bfloat16 values exactly."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
