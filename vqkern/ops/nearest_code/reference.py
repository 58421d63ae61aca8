"""The specification of `nearest_code` in plain PyTorch, on any device, without an N x K tensor.

A float64 screen keeps every code that could still be the nearest, whatever its rounding did; the
few that remain are compared by their float64 distance, summed in channel order, and those that
float64 cannot tell apart in real arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..exact import compare_cosines, compare_distances
from . import certificate

EPS = 2.0**-53
_SCREEN_ELEMENTS = 1 << 21  # rows x codes of one screen tile: 16 MB of float64
_PAIR_ELEMENTS = 1 << 22  # pairs x channels looked at together


def nearest_code(z: Tensor, codes: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Index int64 [N] and distance [N] (float64 for float64 inputs, else float32) of z [N, D]."""
    out_dtype = torch.float64 if torch.float64 in (z.dtype, codes.dtype) else torch.float32
    index = torch.full((len(z),), -1, dtype=torch.int64, device=z.device)
    distance = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
    rows = z.isfinite().all(-1).nonzero().squeeze(-1)
    kept = codes.isfinite().all(-1).nonzero().squeeze(-1)
    candidates = 0
    if len(rows) and len(kept):
        problem = (_Cosine if metric == "cosine" else _SquaredL2).prepare(
            z[rows].double(), codes[kept].double()
        )
        step = max(1, _SCREEN_ELEMENTS // min(len(kept), 4096))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            best, measured = _search(problem, problem.z[part])
            candidates += measured
            index[rows[part]] = kept[best]
            distance[rows[part]] = problem.distance(problem.z[part], best)
    certificate.record(len(z), len(rows), candidates, scanned=0, invalid=len(z) - len(rows))
    return index, distance.to(out_dtype)


class _SquaredL2(NamedTuple):
    """argmin |z - e|^2, searched as the argmin of h - (z - c).(e - c), with h = |e - c|^2 / 2."""

    z: Tensor
    codes: Tensor
    centre: Tensor
    centred: Tensor
    half_norm: Tensor
    scale: float

    @classmethod
    def prepare(cls, z: Tensor, codes: Tensor) -> _SquaredL2:
        # A power of two for all values: squares neither overflow nor change.
        largest = max(float(z.abs().amax()), float(codes.abs().amax()))
        exponent = int(torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent)
        scale = 2.0 ** max(-1000, min(1000, -exponent)) if largest > 0 else 1.0
        z, codes = z * scale, codes * scale
        centre = codes.mean(0)
        centred = codes - centre
        return cls(z, codes, centre, centred, centred.square().sum(-1) / 2, scale)

    def screen(self, z: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Scores [n, k] and their error bound [n, k] for a tile of codes."""
        z = z - self.centre
        h = self.half_norm[part]
        score = torch.addmm(h, z, self.centred[part].T, alpha=-1)
        norms = z.norm(dim=-1)[:, None] * (2 * h).sqrt()
        return score, (z.shape[-1] + 8) * 4 * EPS * (norms + h)

    def key(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """|z - e|^2 [P] in channel order, and the width within which float64 proves nothing."""
        key = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        difference = z - self.codes[index]
        for channel in difference.unbind(-1):
            key += channel * channel
        return key, 2 * (z.shape[-1] + 3) * EPS * key

    def compare(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return compare_distances(z, self.codes[a], self.codes[b])

    def distance(self, z: Tensor, index: Tensor) -> Tensor:
        return self.key(z, index)[0] / self.scale / self.scale


class _Cosine(NamedTuple):
    """argmax z.e / |e|; each vector has its own power-of-two scale, which keeps cosines."""

    z: Tensor
    codes: Tensor
    norm: Tensor

    @classmethod
    def prepare(cls, z: Tensor, codes: Tensor) -> _Cosine:
        z, codes = _unit_exponent(z), _unit_exponent(codes)
        return cls(z, codes, codes.norm(dim=-1))

    def screen(self, z: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        score = -(z @ self.codes[part].T) / self.norm[part]
        # A zero code loses to every other; where all are zero, the lowest index is left.
        score = torch.where(self.norm[part] > 0, score, torch.inf if self.norm.any() else 0.0)
        # A zero row is at distance 1 from all codes, and takes the first.
        score = torch.where((z == 0).all(-1, keepdim=True), 0.0, score)
        bound = (z.shape[-1] + 8) * 4 * EPS * z.norm(dim=-1, keepdim=True)
        return score, bound.expand_as(score)

    def key(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        dot = (z * self.codes[index]).sum(-1)
        norm = self.norm[index]
        key = torch.where(norm > 0, -dot / norm, 0.0)
        return key, (z.shape[-1] + 8) * 4 * EPS * z.norm(dim=-1)

    def compare(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return compare_cosines(z, self.codes[a], self.codes[b])

    def distance(self, z: Tensor, index: Tensor) -> Tensor:
        norm = z.norm(dim=-1)
        key, _ = self.key(z, index)
        return (1 + torch.where(norm > 0, key / norm, 0.0)).clamp(0, 2)


def _unit_exponent(x: Tensor) -> Tensor:
    largest = x.abs().amax(-1, keepdim=True)
    return torch.ldexp(x, torch.where(largest > 0, -torch.frexp(largest).exponent, 0))


def _search(problem: _SquaredL2 | _Cosine, z: Tensor) -> tuple[Tensor, int]:
    """Indices [n] of the nearest of problem.codes, all of it finite, for a few rows.

    Also how many codes were compared for them behind the screen.
    """
    n, step = len(z), max(1, _SCREEN_ELEMENTS // max(1, len(z)))
    upper = torch.full((n, 1), torch.inf, dtype=torch.float64, device=z.device)
    champion = torch.full((n,), -1, dtype=torch.int64, device=z.device)
    measured = 0
    for start in range(0, len(problem.codes), step):
        score, bound = problem.screen(z, slice(start, start + step))
        upper = torch.minimum(upper, (score + bound).amin(-1, keepdim=True))
        row, code = ((score - bound) <= upper).nonzero().unbind(-1)
        measured += len(row)
        pairs = max(1, _PAIR_ELEMENTS // z.shape[-1])
        for at in range(0, len(row), pairs):
            cut = slice(at, at + pairs)
            champion = _challenge(problem, z, champion, row[cut], code[cut] + start)
    return champion, measured


def _challenge(
    problem: _SquaredL2 | _Cosine, z: Tensor, champion: Tensor, row: Tensor, code: Tensor
) -> Tensor:
    """The nearest of each row's champion (-1: none yet) and its challengers, lowest index among
    equals.

    `row` ascends, and within a row `code` ascends and is above the champion.
    """
    held = (champion >= 0).nonzero().squeeze(-1)
    row = torch.cat([held, row])
    code = torch.cat([champion[held], code])
    order = row.argsort(stable=True)
    row, code = row[order], code[order]
    key, width = problem.key(z[row], code)
    least = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
    least = least.scatter_reduce(0, row, key, "amin")
    keep = key - width <= least[row] * (1 + 4 * EPS) + width
    row, code = row[keep], code[keep]
    # The first of each row leads; later copies of it are ties that it wins.
    rank = _rank_in_row(row, len(z))
    champion = champion.clone()
    champion[row[rank == 0]] = code[rank == 0]
    rest = (rank > 0) & (problem.codes[code] != problem.codes[champion[row]]).any(-1)
    row, code = row[rest], code[rest]
    rank = _rank_in_row(row, len(z))
    for position in range(int(rank.amax()) + 1 if len(rank) else 0):
        turn = rank == position
        r, c = row[turn], code[turn]
        nearer = problem.compare(z[r], c, champion[r]) < 0
        champion[r[nearer]] = c[nearer]
    return champion


def _rank_in_row(row: Tensor, n: int) -> Tensor:
    """0, 1, 2, ... within each run of equal values of the ascending `row`."""
    counts = torch.bincount(row, minlength=n)
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
