"""The one place that knows which backends exist, whether they can run here, and which one a call
gets.

``torch`` is the reference and runs everywhere; ``cpp`` is the native CPU module; ``triton`` and
``cuda`` run on NVIDIA GPUs. ``auto`` takes the fastest one that is installed and supports the call.
A backend asked for by name runs or raises: nothing falls back silently.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

# Fastest first: `auto` takes the first that is available and supports the call.
BACKENDS = ("cuda", "triton", "cpp", "torch")
_FOR_CUDA = ("cuda", "triton")

# What an op says about one backend: None if it supports the call, else the reason it does not.
Support = Callable[[], str | None]


class BackendUnavailable(ValueError):
    """A backend asked for by name cannot run this call; the message says why and what helps."""


class Status(NamedTuple):
    """Whether a backend can run in this process, and if not, why."""

    available: bool
    reason: str


def _load_native() -> ModuleType | ImportError:
    if importlib.util.find_spec("vqkern._native") is None:
        return ImportError(
            "the native module was not built (reinstall with a C++ compiler and without "
            "VQKERN_BUILD=none)"
        )
    try:
        return importlib.import_module("vqkern._native")
    except Exception as error:  # a broken binary may fail in any way; the import must survive
        return ImportError(f"the native module is broken ({type(error).__name__}: {error})")


_HOPPER_ABI = 1  # vqkern_hopper_abi() in csrc/cuda/api.cu


def _load_hopper() -> ctypes.CDLL | ImportError:
    path = Path(__file__).with_name("_hopper.so")
    if not path.exists():
        return ImportError(
            "its kernels were not built (reinstall where nvcc is found and without "
            "VQKERN_BUILD=none or cpp)"
        )
    try:
        library = ctypes.CDLL(str(path))
        found = library.vqkern_hopper_abi()
    except (OSError, AttributeError) as error:
        return ImportError(f"its kernels are broken ({error})")
    if found != _HOPPER_ABI:
        return ImportError(
            f"its kernels are of another version ({found}, not {_HOPPER_ABI}); reinstall"
        )
    return library


# Found out once, at import: under torch.compile constants are fine, and calls break the graph.
_NATIVE = _load_native()
_CPU_KERNELS = "" if isinstance(_NATIVE, ImportError) else ", ".join(_NATIVE.cpu_kernels())
_HOPPER = _load_hopper()
_NO_HOPPER = str(_HOPPER) if isinstance(_HOPPER, ImportError) else ""
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def native() -> ModuleType | ImportError:
    """The compiled CPU module, or the error that importing it raised."""
    return _NATIVE


def hopper() -> ctypes.CDLL | ImportError:
    """The compiled CUDA kernels for Hopper GPUs, or why there are none."""
    return _HOPPER


def _why_no_hopper(device: torch.device) -> str:
    """Why the CUDA kernels cannot run on a device; empty if they can."""
    if device.type != "cuda":
        return f"it runs on CUDA tensors, these are on {device}"
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) != (9, 0):
        return "its kernels are for Hopper GPUs (compute capability 9.0); Triton serves others"
    return _NO_HOPPER


def triton_interprets() -> bool:
    """True if Triton is loaded and was told to interpret kernels on the CPU, which tests do."""
    triton = sys.modules.get("triton")
    return triton is not None and bool(triton.knobs.runtime.interpret)


def status(device: torch.device | str = "cpu") -> dict[str, Status]:
    """Which backends can run on tensors of `device`, and the reason for each that cannot."""
    return {name: _status_of(name, torch.device(device)) for name in BACKENDS}


def _status_of(name: str, where: torch.device) -> Status:
    missing = _why_not(name, where)
    if missing:
        return Status(False, missing)
    if name == "torch":
        return Status(True, f"torch {torch.__version__}")
    if name == "cpp":
        return Status(True, _CPU_KERNELS)
    interprets = name == "triton" and where.type != "cuda"
    return Status(True, "interpreted on the CPU, for tests" if interprets else "")


def _why_not(name: str, where: torch.device) -> str:
    """Why a backend cannot run on a device; empty if it can."""
    if name == "torch":
        return ""
    if name == "cuda":
        return _why_no_hopper(where)
    device = where.type
    if name == "cpp":
        if isinstance(_NATIVE, ImportError):
            return str(_NATIVE)
        return "" if device == "cpu" else f"it runs on CPU tensors, these are on {device}"
    if not _HAS_TRITON:
        return "triton is not installed (pip install triton)"
    if device == "cuda" or triton_interprets():
        return ""
    if torch.cuda.is_available():
        return f"it runs on CUDA tensors, these are on {device}"
    return "it needs an NVIDIA GPU and this machine has none that torch can see"


def choose(op: str, requested: str, device: torch.device, supports: Mapping[str, Support]) -> str:
    """The backend that a call of `op` gets.

    Args:
        op: the public function's name, for messages.
        requested: ``"auto"`` or one of `BACKENDS`.
        device: where the tensors are.
        supports: for each backend that implements `op`, a function that returns None if it supports
            this call or the reason it does not.

    Raises:
        BackendUnavailable: `requested` is not a backend, or cannot run this call.
    """
    if requested == "auto":
        for name in BACKENDS:
            # An interpreter is never what a user wants by default.
            if name not in supports or (name in _FOR_CUDA and device.type != "cuda"):
                continue
            if not _why_not(name, device) and supports[name]() is None:
                return name
        raise BackendUnavailable(f"{op}: no backend supports this call on {device}")
    if requested not in BACKENDS:
        raise BackendUnavailable(
            f"{op}: backend={requested!r} is not one of 'auto', "
            + ", ".join(repr(name) for name in reversed(BACKENDS) if name in supports)
        )
    if requested not in supports:
        raise BackendUnavailable(
            f"{op}: backend={requested!r} does not implement it; "
            f"it has {', '.join(sorted(supports))} (backend='auto' chooses among them)"
        )
    missing = _why_not(requested, device)
    if missing:
        raise BackendUnavailable(f"{op}: backend={requested!r} cannot run here: {missing}")
    reason = supports[requested]()
    if reason is not None:
        raise BackendUnavailable(
            f"{op}: backend={requested!r} does not support this call: {reason}"
        )
    return requested


def always() -> None:
    """Support without conditions."""
    return None
