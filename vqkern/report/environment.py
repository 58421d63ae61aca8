"""What a run ran on: versions, hardware, peak memory."""

import platform
from importlib import metadata

import torch

from vqkern.machine import cpu_name, peak_since_reset, peak_since_start, reset_peak_memory

PACKAGES = ("vqkern", "torch", "numpy", "scikit-image", "matplotlib", "safetensors")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware by name, as plain text."""
    from vqkern import __version__

    facts = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = __version__ if package == "vqkern" else metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["processor"] = cpu_name()
    facts["threads"] = str(torch.get_num_threads())
    facts["device"] = "CPU"
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


class PeakMemory:
    """Peak memory since the last `reset`, in MiB.

    On CUDA: what torch's allocator held on the device. On Linux: the resident memory of the whole
    process, interpreter and libraries included. Elsewhere the operating system keeps one peak for
    the life of a process, so a later stage never shows less than an earlier one. `note` says which.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resets = device.type != "cuda" and reset_peak_memory()
        if device.type == "cuda":
            self.note = "held by torch on the GPU while that row was made and measured."
        elif self.resets:
            self.note = (
                "resident memory of the whole process, interpreter and libraries included, while "
                "that row was made and measured."
            )
        else:
            self.note = "resident memory of the whole process, from its start to that row's end."

    def reset(self) -> None:
        """Starts anew where the system can; see the class."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak_memory()

    def read(self) -> float:
        """The peak in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return (peak_since_reset() if self.resets else peak_since_start()) / 2**20
