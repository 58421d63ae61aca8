"""`bounds`: Propositions 2 and 3 of the unifying view, checked on numbers.

Proposition 2: over all distributions in [-1, 1]^d, the largest optimal error of VQ and that of SQ
lie between d / (4 K^(2/d)) and 8 d / K^(2/d). Proposition 3: where the data lie in a subspace of
d_eff dimensions, VQ's optimum is at most 8 d d_eff / K^(2/d_eff), while on the diagonal PQ with M
parts has at least M/4 K^(-2/M) and SQ at least d/4 K^(-2/d).

`sq` is the error that one-dimensional k-means in every channel reaches on a sample, `pq` that of
k-means in two parts and `vq` that of k-means, or of the narrower kind where that is lower: each is
at least the optimum, so that an upper bound which holds for it holds for the optimum. What must not
be too high is bounded from below without a search (`floor`): on the cube by balls, than which no
cells of equal volume have a smaller second moment, and on the diagonal by evenly spaced levels,
which are optimal there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..ops import nearest_code
from ..quantizers import kmeans
from .frame import Cell, Experiment, Row, Work
from .tables import draw, format_table


@dataclass(frozen=True)
class Bounds:
    """Settings: codebook sizes and dimensions of the data, and how the optima are searched."""

    dims: tuple[int, ...] = (2, 4, 8)
    codebook_sizes: tuple[int, ...] = (256, 4096, 16384)
    effective_dims: tuple[int, ...] = (1, 2, 3)
    vectors_per_code: int = 32
    iterations: int = 10
    seed: int = 0


def cells(settings: Bounds) -> list[Cell]:
    prop2 = [
        {"check": "proposition 2", "data": data, "dim": d, "codebook_size": k}
        for data in ("cube", "clipped normal", "corners")
        for d in settings.dims
        for k in settings.codebook_sizes
    ]
    top = max(settings.dims)
    prop3 = [
        {"check": "proposition 3", "data": f"subspace {e}", "dim": top, "codebook_size": k}
        for e in settings.effective_dims
        for k in settings.codebook_sizes
    ]
    diagonal = [
        {"check": "proposition 3", "data": "diagonal", "dim": top, "codebook_size": k}
        for k in settings.codebook_sizes
    ]
    return prop2 + prop3 + diagonal


def units(settings: Bounds, cell: Cell) -> int:
    return cell["codebook_size"]


def measure(settings: Bounds, cell: Cell, work: Work) -> Row:
    d, k = cell["dim"], cell["codebook_size"]
    n = min(max(settings.vectors_per_code * k, 20_000), 500_000)
    generator = torch.Generator().manual_seed((settings.seed + 1) * 1_000_003 + 31 * d + k)
    x = sample(cell["data"], n, d, generator)
    vq = kmeans_error(x, k, settings)
    pq = sum(kmeans_error(part, math.isqrt(k), settings) for part in x.chunk(2, dim=1))
    levels = max(1, int(k ** (1 / d) + 1e-9))
    sq = sum(kmeans_error(x[:, i : i + 1], levels, settings) for i in range(d))
    # Levels of channels are codebooks of parts, and those are a codebook: none does worse.
    pq = min(pq, sq)
    vq = min(vq, pq)
    found = {"vq": vq, "pq": pq, "sq": sq}
    work.advance(k)
    if cell["check"] == "proposition 2":
        lower, upper = d / (4 * k ** (2 / d)), 8 * d / k ** (2 / d)
        floor = ball_bound(d, k) if cell["data"] == "cube" else None
        holds = max(vq, sq) <= upper and (floor is None or floor >= lower)
        return {**found, "floor": floor, "lower": lower, "upper": upper, "holds": int(holds)}
    if cell["data"] == "diagonal":
        # Evenly spaced levels are optimal for a uniform coordinate: d / (3 n^2) for n levels.
        exact = {m: diagonal_optimum(d, k, m) for m in range(1, d + 1) if d % m == 0}
        # The proposition's own rate at M parts, for every M.
        holds = all(value >= m / 4 * k ** (-2 / m) for m, value in exact.items())
        lower, upper = d / 4 * k ** (-2 / d), 8 * d / k**2
        holds = holds and exact[d] >= lower and exact[1] <= upper
        return {**found, "floor": exact[d], "lower": lower, "upper": upper, "holds": int(holds)}
    effective = int(str(cell["data"]).split()[-1])
    upper = 8 * d * effective / k ** (2 / effective)
    return {**found, "floor": None, "lower": None, "upper": upper, "holds": int(vq <= upper)}


def sample(data: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    """Vectors [n, d] in [-1, 1]^d."""
    if data == "cube":
        return torch.rand(n, d, generator=generator) * 2 - 1
    if data == "clipped normal":
        return torch.randn(n, d, generator=generator).mul_(0.5).clamp_(-1, 1)
    if data == "corners":
        corner = torch.randint(2, (n, d), generator=generator) * 2.0 - 1
        return corner * (1 - 0.2 * torch.rand(n, d, generator=generator))
    if data == "diagonal":
        return (torch.rand(n, 1, generator=generator) * 2 - 1).repeat(1, d)
    effective = int(data.split()[-1])
    basis = torch.linalg.qr(torch.randn(d, effective, generator=generator))[0]
    inside = torch.rand(n, effective, generator=generator) * 2 - 1
    # An orthonormal basis keeps |x|_inf <= |x|_2 <= sqrt(effective).
    return inside @ basis.T / effective**0.5


def kmeans_error(x: Tensor, k: int, settings: Bounds) -> float:
    """Mean squared error, summed over channels, of the codes that k-means finds."""
    codes = kmeans(x.contiguous(), k, iterations=settings.iterations, seed=settings.seed)
    return float(nearest_code(x.contiguous(), codes).distance.double().mean())


def ball_bound(d: int, k: int) -> float:
    """A lower bound of any K codes' error on the uniform cube [-1, 1]^d: balls of equal volume.

    d / (d + 2) r^2 with K V_d r^d = 2^d.
    """
    volume = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    return d / (d + 2) * (2**d / (k * volume)) ** (2 / d)


def diagonal_optimum(d: int, k: int, parts: int) -> float:
    """A lower bound of the best error on the diagonal of `parts` codebooks of joint size K.

    A part of d/M channels with n levels has (d/M) / (3 n^2); with prod n = K the sum is least at
    equal n = K^(1/M), which need not be whole.
    """
    return d / (3 * k ** (2 / parts))


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        numbers = [row[name] for name in ("vq", "pq", "sq", "floor", "lower", "upper")]
        lines.append(
            [
                f"{row['check']}, {row['data']}",
                row["dim"],
                row["codebook_size"],
                *(None if v in (None, "") else f"{v:.3g}" for v in numbers),
                "holds" if row["holds"] else "BROKEN",
            ]
        )
    head = ["check", "d", "K", "VQ", "PQ", "SQ", "floor", "lower", "upper", "paper's bounds"]
    return format_table(head, lines)


def plot(rows: list[Row], path: Path) -> None:
    panels = []
    for data in dict.fromkeys((r["data"], r["dim"]) for r in rows if r["dim"] == 8):
        mine = [r for r in rows if (r["data"], r["dim"]) == data]
        sizes = [r["codebook_size"] for r in mine]
        lines = [
            (name, sizes, [r[name] for r in mine], style)
            for name, style in (
                ("vq", "o-"),
                ("pq", "o-"),
                ("sq", "o-"),
                ("lower", ":"),
                ("upper", ":"),
            )
            if all(r[name] is not None for r in mine)
        ]
        axes = {"x": "codebook size", "y": "error", "log_x": True, "log_y": True}
        panels.append({**axes, "lines": lines, "title": f"{data[0]}, d = {data[1]}"})
    if panels:
        draw(path, panels)


EXPERIMENT = Experiment(
    name="bounds",
    source="Unifying view, propositions 2 and 3",
    full=Bounds(),
    quick=Bounds(codebook_sizes=(256, 4096), iterations=5),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
