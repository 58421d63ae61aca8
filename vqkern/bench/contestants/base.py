"""What a contestant is, and what the contestants of several ops share."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

from ..cases import Case

Output = Tensor | tuple[Tensor, ...]
Call = Callable[[], Output]

# Larger score matrices are split by rows. 2^26 float32 scores are 256 MB: of 2^20 ... 2^26 the
# fastest for addmm + argmin on the CPUs tried.
CHUNK_SCORES = 1 << 26
REFERENCE_SCORES = 1 << 24  # the float64 specification is for checking, not for speed


KEOPS = (("pykeops", "pip install pykeops"),)


def _no_limit(case: Case) -> str | None:
    return None


@dataclass(frozen=True)
class Contestant:
    """One way of computing an op.

    Attributes:
        name: as the table shows it.
        prepare: (case, *inputs) -> the timed call. A module-level function, so that a child process
            can find it by name.
        needs: pairs (module it imports, command that installs it); the first is the peer itself.
        limit: (case) -> None if it runs this case, else the reason it does not.
        note: (case) -> what a reader of its figures must know, or "".
        ours: whether it is this package's own default; times are given relative to it.
        devices: the types of device it runs on; elsewhere it is no contestant at all.
        memory: those of them on which its peak memory can be seen: not on the CPU where a cold call
            does other work, such as compiling; not on CUDA where it bypasses torch's allocator.
    """

    name: str
    prepare: Callable[..., Call]
    needs: tuple[tuple[str, str], ...] = ()
    limit: Callable[[Case], str | None] = _no_limit
    note: Callable[[Case], str] = lambda case: ""
    ours: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    memory: tuple[str, ...] = ("cpu", "cuda")

    def runs_on(self, device: str) -> bool:
        """Whether it is a contestant on a device at all."""
        return torch.device(device).type in self.devices

    def package(self) -> str:
        """Distribution and version of the peer, such as "faiss-cpu 1.15.1", or ""."""
        if not self.needs:
            return ""
        module = self.needs[0][0]
        names = _distributions().get(module, [module])
        try:
            return f"{names[0]} {metadata.version(names[0])}"
        except metadata.PackageNotFoundError:
            return module


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def resolved_backend(case: Case) -> str:
    """The backend that `backend="auto"` gives this case."""
    from ... import backend as backends

    def not_slow() -> str | None:
        return None

    # float16, bfloat16 and float32 inputs: every op supports them on every backend it has.
    known = dict.fromkeys(backends.BACKENDS, not_slow)
    return backends.choose(case.op, "auto", torch.device(case.device), known)


def backend_note(case: Case) -> str:
    """The note of this package's own default."""
    return f"backend {resolved_backend(case)}"


def not_twice(case: Case) -> str | None:
    """The limit of the torch reference: it does not run where it is this package's own default."""
    return "auto is the torch reference here" if resolved_backend(case) == "torch" else None


def reference_limit(case: Case) -> str | None:
    """The limit of a torch reference that scores every pair in float64."""
    if not_twice(case) is not None:
        return not_twice(case)
    if case.n * case.k > REFERENCE_SCORES:
        return f"the float64 reference is timed up to {power_of_two(REFERENCE_SCORES)}"
    return None


def power_of_two(scores: int) -> str:
    """ "N x K = 2^24" for 1 << 24."""
    return f"N x K = 2^{scores.bit_length() - 1}"


def scores_limit(scores: int, reason: str) -> Callable[[Case], str | None]:
    """A limit: at most `scores` = N x K, a power of two, because of `reason`."""

    def limit(case: Case) -> str | None:
        return f"{reason}: up to {power_of_two(scores)}" if case.n * case.k > scores else None

    return limit


def chunk_rows(case: Case, scores: int = CHUNK_SCORES) -> int:
    """Rows a chunk, so that a chunk of the score matrix holds at most `scores` entries."""
    return max(1, min(case.n, scores // case.k))


def chunk_note(scores: int = CHUNK_SCORES) -> Callable[[Case], str]:
    """A note that says how many rows a chunk has, if there is more than one chunk."""

    def note(case: Case) -> str:
        rows = chunk_rows(case, scores)
        return f"in chunks of {rows} rows" if rows < case.n else ""

    return note


def memory_limit(case: Case, needed: int, what: str) -> str | None:
    """A reason if `what` needs more bytes than two thirds of the memory of the case's device."""
    if torch.device(case.device).type == "cuda":
        owner, available = "this GPU", torch.cuda.mem_get_info(case.device)[1]
    else:
        owner = "this machine"
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 3 * needed <= 2 * available:
        return None
    return f"{what} would take {needed / 1e9:.0f} GB; {owner} has {available / 1e9:.0f} GB"


def keops_compiles(case: Case) -> str | None:
    """A reason if KeOps has no compiler to work with."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    if any(shutil.which(name) for name in names if name):
        return None
    return "KeOps compiles its formula, and there is no C++ compiler here"


def keops_lazy_tensor():
    """KeOps' LazyTensor, without its remarks on the terminal."""
    import pykeops

    pykeops.set_verbose(False)
    from pykeops.torch import LazyTensor

    return LazyTensor
