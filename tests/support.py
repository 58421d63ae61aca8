"""What the tests share: the tolerance table, the kernels to try, independent oracles."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from vqkern import backend
from vqkern.ops.nearest_code import native, reference

# Relative to the norm of the float64 result.
TOLERANCE = {
    "mmd_value": 1e-5,
    "mmd_gradient": 1e-5,
    "float32": 2e-6,
}

NATIVE = backend.native()
HAS_NATIVE = not isinstance(NATIVE, ImportError)
CPU_KERNELS = list(NATIVE.cpu_kernels()) if HAS_NATIVE else []
# By its instruction set's name alone, a search screens few codes as it does many.
FEW_CODES = [f"{name} few codes" for name in ("AVX-512", "AVX2", "portable") if name in CPU_KERNELS]
SEARCH_KERNELS = [*CPU_KERNELS, *FEW_CODES]
SEARCHES = ["reference", *SEARCH_KERNELS]


def search(
    which: str, z: torch.Tensor, codes: torch.Tensor, metric: str = "l2"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and distance by the reference or by one of the native kernels."""
    if which == "reference":
        return reference.nearest_code(z, codes, metric)
    # So few rows are not screened at all; here the screens are meant.
    enough = z.repeat(5, 1) if len(z) <= 2 else z
    index, distance, _ = native.search(enough, codes, which, metric)
    return index[: len(z)], distance[: len(z)]


def lattice_oracle(z: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact nearest codes of integer-valued points, by integer arithmetic, ties to the lowest."""
    z, codes = z.long(), codes.long()
    squared = (z[:, None] - codes[None]).square().sum(-1)
    least = squared.amin(-1, keepdim=True)
    first = torch.where(squared == least, torch.arange(len(codes)), len(codes)).amin(-1)
    return first, least.squeeze(-1)


def float64_distances(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Direct differences, no expansion: relative error below (D + 3) 2^-53."""
    return (z.double()[:, None] - codes.double()[None]).square().sum(-1)


def exact_cosine_order(z: list[float], codes: list[list[float]]) -> int:
    """Lowest index of the largest cosine with z, in rational arithmetic; codes are not zero."""
    rows = [[Fraction(v) for v in row] for row in codes]
    target = [Fraction(v) for v in z]

    def signed_square(row: list[Fraction]) -> Fraction:
        dot = sum(a * b for a, b in zip(target, row, strict=True))
        return dot * abs(dot) / sum(b * b for b in row)

    values = [signed_square(row) for row in rows]
    return values.index(max(values))


def assert_no_regret(z: torch.Tensor, codes: torch.Tensor, index: torch.Tensor) -> None:
    """The chosen code is at the least distance, and the first of those that float64 calls equal."""
    squared = float64_distances(z, codes)
    least = squared.amin(-1)
    chosen = squared.gather(1, index[:, None]).squeeze(-1)
    width = 4 * (z.shape[1] + 3) * 2.0**-53 * least
    assert bool((chosen <= least + width).all()), float((chosen - least).max())
    clear = (squared <= (least + width)[:, None]).sum(-1) == 1
    assert torch.equal(squared.argmin(-1)[clear], index[clear])


def relative_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    return float((result.double() - truth.double()).norm() / truth.double().norm())


def golden(name: str) -> tuple[dict, dict, dict]:
    """State, inputs and outputs of a public reference program, from tests/data/NAME.safetensors.

    Weights are stored as int8 times a power of two, exact in float32.
    """
    from pathlib import Path

    from safetensors.torch import load_file

    tensors = load_file(Path(__file__).parent / "data" / f"{name}.safetensors")
    parts = {"state": {}, "in": {}, "out": {}}
    for key, value in tensors.items():
        part, rest = key.split("/", 1)
        if part == "scale":
            continue
        if part == "state" and value.dtype == torch.int8:
            value = value.float() * tensors[f"scale/{rest}"]
        parts[part][rest] = value
    return parts["state"], parts["in"], parts["out"]


BITS = {"halves": 4, "vp2": 8, "groups": 2, "rq": 8, "var": 8}  # of 8 channels, a bit each
# Without a codebook, there is none to put on a sphere.
NO_GRID = ("fsq_sphere", "lfq_sphere", "bsq_sphere")


def grid_names(whole: bool = False) -> list[str]:
    """The points of the grid that the tests go over: every preset, every structure, and a diagonal
    of presets in structures; or, for slow tests, every preset in every structure."""
    from vqkern.quantizers import CODEBOOK_FREE, PRESETS, STRUCTURES

    parts = [name for name in PRESETS if name != "vaevq"]  # whose parts would need 2 dim channels
    structures = list(STRUCTURES)
    if whole:
        inside = [f"{name}_{s}" for name in (*parts, *CODEBOOK_FREE) for s in structures]
        inside = [n for n in inside if n not in NO_GRID]
        return [*PRESETS, *CODEBOOK_FREE, "mgvq", *inside]
    diagonal = [f"{name}_{structures[i % len(structures)]}" for i, name in enumerate(parts)]
    around = [f"vanilla_{structure}" for structure in structures]
    return [*dict.fromkeys([*PRESETS, *CODEBOOK_FREE, "mgvq", *around, *diagonal])]


def grid_sizes(name: str) -> dict:
    """Sizes at which those tests build one."""
    if name in ("fsq", "lfq", "bsq"):
        return {"dim": 6, "codebook_size": 64}
    base, _, structure = name.partition("_")
    if base in ("fsq", "lfq", "bsq") and structure in BITS:
        maps = {"patch_sizes": (1, 2, 4)} if structure == "var" else {}
        return {"dim": 8, "codebook_size": 2 ** BITS[structure], **maps}
    maps = {"patch_sizes": (1, 2, 4)} if name.endswith("_var") else {}
    return {"dim": 8, "codebook_size": 64, **maps}


def value_and_gradients(function: Callable, *points: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A function's value and its gradient with respect to each of its arguments."""
    leaves = [p.detach().requires_grad_() for p in points]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)
