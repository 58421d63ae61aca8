"""Facts of the machine: its processor, its memory, and the device that a user asks for."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import torch


def cpu_name() -> str:
    """The processor's name, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def add_device_argument(parser: argparse._ActionsContainer, default: str = "auto") -> None:
    """Adds `--device`, whose value is checked as soon as it is read; `choose_device` takes it."""
    what = "auto, cpu, cuda or cuda:i (%(default)s)"
    parser.add_argument("--device", type=device_argument, default=default, help=what)


def device_argument(text: str) -> str:
    """An argparse type: "auto", or a device that can be used here."""
    reason = device_defect(text, auto=True)
    if reason is not None:
        raise argparse.ArgumentTypeError(reason)
    return text


def choose_device(name: str, asked_by: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, "cuda" this rank's GPU.

    Args:
        asked_by: The flag or key that `name` is from; the error begins with it.

    Raises:
        ValueError: there is no such device here.
    """
    reason = device_defect(name, auto=True)
    if reason is not None:
        raise ValueError(f"{asked_by}: {reason}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def device_defect(name: str, auto: bool = False) -> str | None:
    """What is wrong with a device's name, or None if it can be used here.

    Args:
        auto: Whether "auto" is a name, too.
    """
    if auto and name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        known = "'auto', 'cpu' or 'cuda[:i]'" if auto else "'cpu' or 'cuda[:i]'"
        return f"must be {known}, got {name!r}"
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return f"{name!r} was asked for, but torch finds no CUDA device here"
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            return f"{name!r} was asked for, but torch finds {count} CUDA devices here"
    return None


def reset_peak_memory() -> bool:
    """Starts `peak_since_reset` anew; False where the kernel has no such switch."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as switch:
            switch.write("5")  # resets VmHWM, and nothing else
        return peak_since_reset() > 0
    except (OSError, KeyError):
        return False


def resident_memory() -> int:
    """Resident bytes of this process, where `reset_peak_memory` works."""
    return _status_bytes("VmRSS")


def peak_since_reset() -> int:
    """The most resident bytes since the last `reset_peak_memory`, where that works."""
    return _status_bytes("VmHWM")


def peak_since_start() -> int:
    """The most resident bytes in the life of this process; a child inherits its parent's."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(key: str) -> int:
    with open("/proc/self/status", encoding="utf-8") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return int(fields[key].split()[0]) * 1024
