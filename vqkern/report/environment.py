"""What a run ran on: versions, hardware, peak memory."""

import platform
import sys
from importlib import metadata

import torch

PACKAGES = ("vqkern", "torch", "numpy", "scikit-image", "matplotlib", "safetensors")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware by name, as plain text."""
    from vqkern import __version__
    from vqkern.info import cpu_model

    facts = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = __version__ if package == "vqkern" else metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["processor"] = cpu_model()
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
        if device.type == "cuda":
            self.note = "held by torch on the GPU while that row was made and measured."
        elif self._reset_linux():
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
            self._reset_linux()

    def read(self) -> float:
        """The peak in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            with open("/proc/self/status", encoding="ascii") as file:
                for line in file:
                    if line.startswith("VmHWM:"):
                        return int(line.split()[1]) / 1024
        except OSError:
            pass
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024

    @staticmethod
    def _reset_linux() -> bool:
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # resets VmHWM, and nothing else
        except OSError:
            return False
        return True
