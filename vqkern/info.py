"""What `vqkern info` prints: versions, hardware, and which backends can run and why not."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from . import __version__, backend, machine


def describe() -> str:
    """The whole text, one fact a line."""
    lines = [f"vqkern {__version__}", ""]
    lines.append(f"python      {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "numpy", "triton", "scikit-image", "matplotlib", "faiss-cpu"):
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        lines.append(f"{package:<11} {found}")
    lines += ["", f"cpu         {machine.cpu_name()}, {torch.get_num_threads()} threads"]
    lines.append(f"features    {torch.backends.cpu.get_cpu_capability()} as torch sees it")
    module = backend.native()
    if not isinstance(module, ImportError):
        lines.append(f"kernels     {', '.join(module.cpu_kernels())} (fastest first)")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"gpu         {', '.join(devices) or 'none'}")
    for device in ["cpu"] + (["cuda"] if devices else []):
        lines += ["", f"backends for {device} tensors, fastest first"]
        for name, state in backend.status(device).items():
            word = "yes" if state.available else "no "
            lines.append(f"  {name:<7} {word} {state.reason}".rstrip())
    return "\n".join(lines)
