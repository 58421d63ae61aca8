"""Exact comparison of squared distances, for the pairs that float64 cannot tell apart.

Whether |z - a|^2 is less than, equal to or greater than |z - b|^2 is decided in real arithmetic:
every difference and square is split into float64 parts that add up to it without error (Dekker's
two-product and Knuth's two-sum), and the parts are added with ``math.fsum``, which rounds the exact
sum once and so has the right sign, zero included. Over- and underflow of the squares are excluded
by a power-of-two scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SPLITTER = 134217729.0  # 2^27 + 1: splits a float64 into two halves of 26 bits


def _two_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    high = a - b
    virtual = high - a
    return high, (a - (high - virtual)) - (b + virtual)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    high = a * b
    a_high = a * _SPLITTER
    a_high = a_high - (a_high - a)
    b_high = b * _SPLITTER
    b_high = b_high - (b_high - b)
    a_low, b_low = a - a_high, b - b_high
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


def squared_difference_parts(z: Tensor, e: Tensor) -> Tensor:
    """Float64 parts [P, 6 D] whose exact sum along the last axis is |z - e|^2; z, e [P, D]."""
    high, low = _two_difference(z, e)
    parts = (*_two_product(high, high), *_two_product(2 * high, low), *_two_product(low, low))
    return torch.cat(parts, dim=-1)


def compare_distances(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sign of |z - a|^2 - |z - b|^2 in real arithmetic, int8 [P]; finite float64 [P, D]."""
    same = (a == b).all(-1)  # duplicated codes are the usual tie, and need no arithmetic
    sign = torch.zeros(len(z), dtype=torch.int8)
    rows = (~same).nonzero().squeeze(-1)
    if len(rows) == 0:
        return sign.to(z.device)
    z, a, b = (t[rows].cpu() for t in (z, a, b))
    largest = torch.stack([t.abs().amax(-1) for t in (z, a, b)]).amax(0).clamp_min(1e-300)
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)[:, None]
    z, a, b = z * scale, a * scale, b * scale
    parts = torch.cat([squared_difference_parts(z, a), -squared_difference_parts(z, b)], dim=-1)
    sums = [math.fsum(row) for row in parts.tolist()]
    sign[rows.cpu()] = torch.tensor([(s > 0) - (s < 0) for s in sums], dtype=torch.int8)
    return sign.to(device=rows.device)


def compare_cosines(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sign of cos(z, b) - cos(z, a) in real arithmetic (negative: a is nearer), int8 [P].

    z.a / |a| and z.b / |b| are compared by sign and then by (z.a)^2 |b|^2 against (z.b)^2 |a|^2, in
    rational arithmetic: products of sums have no short float64 expansion. z, a, b float64 [P, D],
    finite, a and b not zero.
    """
    from fractions import Fraction

    result = []
    for zr, ar, br in zip(z.tolist(), a.tolist(), b.tolist(), strict=True):
        if ar == br:
            result.append(0)
            continue
        zf, af, bf = ([Fraction(v) for v in row] for row in (zr, ar, br))
        za = sum(x * y for x, y in zip(zf, af, strict=True))
        zb = sum(x * y for x, y in zip(zf, bf, strict=True))
        left = za * abs(za) * sum(x * x for x in bf)
        right = zb * abs(zb) * sum(x * x for x in af)
        result.append((right > left) - (right < left))
    return torch.tensor(result, dtype=torch.int8, device=z.device)
