"""`ste-toy`: what the straight-through estimator does to codes that must move (FVQ figure 2).

`trajectory`: one latent z_e in the plane and one fixed target t, SGD on |z_q - t|^2 and the
codebook loss. The estimator hands z_e the gradient at z_q, and the code follows z_e a step behind:
both spiral into the target. The paper gives no numbers; we take the mean distance of z_q from z_e,
how far z_e runs past the target (over the first distance of z_q), and the step from which on z_q
stays at it.

`usage`: codes trained by Adam on features that start apart from them, by the codebook loss alone.
A free table moves only the codes that are hit, a linear map moves all of them together, VQBridge
each of them. The paper prints 3 % for the table and 100 % for VQBridge, on ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..ops import nearest_code
from ..quantizers import Gradient, Linear, Table, VQBridge
from ..training.stages import BETAS
from .frame import Cell, Experiment, Row, Work
from .gaussian_shift import shifted
from .moving import Moving, Rule, load_state, measure, state_of, take_step
from .tables import draw, format_table, percent

METHODS = ("table", "linear", "vqbridge")


@dataclass(frozen=True)
class SteToy:
    """Settings.

    Attributes:
        codes, steps, lr: of the trajectory; lr is that of SGD on z_e, codes and projectors.
        start, target, arrived: where z_e and the target lie, and what counts as being there.
        shift: mean of the features of `usage` in every channel, whose codes start at N(0, I).
        usage_lr: of Adam there.
    """

    codes: int = 16
    steps: int = 1500
    lr: float = 0.005
    start: tuple[float, float] = (-1.0, -0.5)
    target: tuple[float, float] = (3.0, 2.0)
    arrived: float = 0.05
    shift: float = 2.0
    usage_lr: float = 3e-3
    moving: Moving = replace(Moving(), codes=4096, features=8192, steps=600, test_features=65536)
    seed: int = 0


def cells(settings: SteToy) -> list[Cell]:
    return [{"part": part, "method": m} for part in ("trajectory", "usage") for m in METHODS]


def units(settings: SteToy, cell: Cell) -> int:
    return settings.steps if cell["part"] == "trajectory" else settings.moving.steps


def projected(method: str, codes: int, dim: int) -> nn.Module:
    """The codes of a method: a table, or one behind a projector; all are trained."""
    table = Table(codes, dim)
    if method == "table":
        return table
    return Linear(table) if method == "linear" else VQBridge(table)


def run_cell(settings: SteToy, cell: Cell, work: Work) -> Row:
    if cell["part"] == "usage":
        return usage(settings, cell["method"], work)
    z_e, z_q = trajectory(settings, cell["method"])
    work.advance(settings.steps)
    distance = (z_q - torch.tensor(settings.target)).norm(dim=1)
    # The last step outside: from then on z_q stays where it should be.
    outside = (distance > settings.arrived).nonzero()
    arrival = int(outside[-1]) + 1 if len(outside) else 0
    straight = float(distance[0]) or 1.0
    return {
        "gap": float((z_e - z_q).norm(dim=1).mean()),
        "early_gap": float((z_e - z_q)[: settings.steps // 5].norm(dim=1).mean()),
        "overshoot": float(overshoot(z_e, settings)) / straight,
        "arrival": arrival,
        "utilization": None,
        "trail": " ".join(f"{x:.3f},{y:.3f}" for x, y in z_q[:: max(1, len(z_q) // 50)].tolist()),
    }


def overshoot(z_e: Tensor, settings: SteToy) -> Tensor:
    """How far z_e runs past the target along the line from where it started."""
    target = torch.tensor(settings.target)
    direction = target - z_e[0]
    return ((z_e - target) @ (direction / direction.norm())).max().clamp_min(0)


def trajectory(settings: SteToy, method: str) -> tuple[Tensor, Tensor]:
    """z_e and z_q [steps, 2] of one run."""
    torch.manual_seed(settings.seed)
    codes = projected(method, settings.codes, 2)
    z = torch.tensor(settings.start, requires_grad=True)
    target = torch.tensor(settings.target)
    optimizer = torch.optim.SGD([z, *codes.parameters()], lr=settings.lr)
    seen_e, seen_q = [], []
    for _ in range(settings.steps):
        places = codes()
        nearest = places[nearest_code(z.detach(), places.detach()).index]
        seen_e.append(z.detach().clone())
        seen_q.append(nearest.detach().clone())
        quantized = z + (nearest - z).detach()
        loss = (quantized - target).square().sum() + (z.detach() - nearest).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(seen_e), torch.stack(seen_q)


def usage(settings: SteToy, method: str, work: Work) -> Row:
    """How many codes are in use after training on shifted features."""
    s = settings.moving
    torch.manual_seed(settings.seed)
    codes = projected(method, s.codes, s.dim)
    optimizer = torch.optim.Adam(codes.parameters(), lr=settings.usage_lr, betas=BETAS)
    rule = Rule(codes, Gradient(), 1.0, None, optimizer)
    first = 0
    if work.resumed is not None:
        first = load_state(rule, work.resumed)
        work.advance(first)
    features = shifted(settings.shift, s.dim)
    valid = torch.ones(s.features, dtype=torch.bool)
    for step in range(first, s.steps):
        generator = torch.Generator().manual_seed((settings.seed + 1) * 1_000_003 + step)
        take_step(rule, features(s.features, generator), valid, step, s)
        work.advance(1)
        work.offer(lambda done=step + 1: state_of(rule, done))
    generator = torch.Generator().manual_seed((settings.seed + 1) * 1_000_003 - 1)
    with torch.no_grad():
        found = measure(features(s.test_features, generator), codes())
    return {"error": found["error"], "utilization": found["utilization"]}


def table(rows: list[Row]) -> str:
    paper = {
        ("trajectory", "table"): "a spiral",
        ("trajectory", "vqbridge"): "straight pieces, z_q on z_e",
        ("usage", "table"): "3 %",
        ("usage", "linear"): "in between",
        ("usage", "vqbridge"): "100 %",
    }
    lines = []
    for row in rows:
        numbers = [row.get(name) for name in ("gap", "early_gap", "overshoot")]
        lines.append(
            [
                f"{row['part']}, {row['method']}",
                *(None if v is None else f"{v:.3f}" for v in numbers),
                row.get("arrival"),
                percent(row["utilization"]),
                paper.get((row["part"], row["method"])),
            ]
        )
    head = ["part", "|z_e - z_q|", "first fifth", "overshoot", "there at", "utilization", "paper"]
    return format_table(head, lines)


def plot(rows: list[Row], path: Path) -> None:
    lines = []
    for row in rows:
        if row["part"] == "trajectory":
            points = [tuple(map(float, p.split(","))) for p in str(row["trail"]).split()]
            lines.append((row["method"], *map(list, zip(*points, strict=True)), "o-"))
    panels = [{"x": "x", "y": "y", "lines": lines, "title": "z_q"}] if lines else []
    used = [
        (r["method"], [i], [r["utilization"]], "s")
        for i, r in enumerate(row for row in rows if row["part"] == "usage")
    ]
    if used:
        panels.append({"x": "method", "y": "utilization", "lines": used, "title": "usage"})
    draw(path, panels)


EXPERIMENT = Experiment(
    name="ste-toy",
    source="FVQ, figure 2",
    full=SteToy(),
    quick=SteToy(moving=replace(SteToy().moving, codes=1024, features=4096, steps=150)),
    cells=cells,
    units=units,
    measure=run_cell,
    table=table,
    plot=plot,
)
