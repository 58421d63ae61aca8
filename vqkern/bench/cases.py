"""What is measured: a case is an op, a shape, a data set and a seed, and makes its own inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..machine import device_defect

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _gaussian(n: int, k: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)


def _sphere(n: int, k: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    z, codes = _gaussian(n, k, d, generator)
    tiny = torch.finfo(torch.float32).tiny
    return (
        z.div_(z.norm(dim=-1, keepdim=True).clamp_min_(tiny)),
        codes.div_(codes.norm(dim=-1, keepdim=True).clamp_min_(tiny)),
    )


def _near(n: int, k: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    z, codes = _gaussian(n, k, d, generator)
    return z.mul_(1e-3).add_(codes[torch.randint(k, (n,), generator=generator)]), codes


def _flat(n: int, k: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    z, codes = _gaussian(n, k, d, generator)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    codes[:, ::2] *= 1e-4
    return z, codes @ turn


def _offset(n: int, k: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    z, codes = _gaussian(n, k, d, generator)
    return z.add_(100), codes.add_(100)


def _duplicates(n: int, k: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    z, codes = _gaussian(n, (k + 1) // 2, d, generator)
    return z, codes[torch.randperm(k, generator=generator) % len(codes)]


# Each makes vectors [N, D] and codes [K, D], float32 on the CPU.
DATA: dict[str, Callable[[int, int, int, Generator], tuple[Tensor, Tensor]]] = {
    "gaussian": _gaussian,  # both N(0, I)
    "sphere": _sphere,  # both on the unit sphere
    "near": _near,  # every vector within 1e-3 a channel of some code
    "flat": _flat,  # codes with standard deviation 1e-4 in half of their directions, turned
    "offset": _offset,  # both N(100, I): unit variance far from the origin
    "duplicates": _duplicates,  # every code twice, shuffled: every row is an exact tie
}


@dataclass(frozen=True)
class Case:
    """One problem: `n` vectors (or points), `k` codes (or points of the other set), `d` channels.

    Raises:
        ValueError: a field is out of range or unknown, or the device is not there.
    """

    n: int
    k: int
    d: int
    data: str = "gaussian"
    op: str = "nearest_code"
    dtype: str = "float32"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        from .operations import OPERATIONS

        for name in ("n", "k", "d"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Case: {name} must be an integer of at least 1, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Case: seed must be an integer of at least 0, got {self.seed!r}")
        for name, known in (("data", DATA), ("op", OPERATIONS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Case: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        reason = device_defect(self.device)
        if reason is not None:
            raise ValueError(f"Case: device: {reason}")

    def vectors_and_codes(self) -> tuple[Tensor, Tensor]:
        """Vectors [N, D] and codes [K, D]: the same values on every device, from the seed alone."""
        generator = torch.Generator().manual_seed(self.seed)
        made = DATA[self.data](self.n, self.k, self.d, generator)
        z, codes = (t.to(self.device, DTYPES[self.dtype]) for t in made)
        return z, codes

    def label(self) -> str:
        """One line for people: op, shape, data set, seed, dtype, device."""
        shape = f"N={self.n} K={self.k} D={self.d}"
        return f"{self.op}  {shape}  {self.data}, seed {self.seed}, {self.dtype}, {self.device}"
