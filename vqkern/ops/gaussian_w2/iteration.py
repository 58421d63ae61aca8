"""The D x D problem by matrix products alone, for devices where an eigendecomposition is slow.

With P = S1 S2 + e I, f(S1 S2) S1 = A f(A S2 A) A for any f, so one root of P and its inverse give
everything: tr (C + e I)^{1/2} = tr P^{1/2}, T = P^{-1/2} S1 and T' = S2 P^{-1/2}.

The coupled iteration Y <- Y q(ZY), Z <- q(ZY) Z with q(t) = a - b t, from Y = P / tr P and Z = I,
takes every root s of an eigenvalue to a s - b s^3 and tends to P^{1/2} and P^{-1/2} (Higham,
Functions of Matrices, section 6.7). Its coefficients are those that bring the interval of the roots
closest to 1 at each step, which is known beforehand: no root is below that of the ridge. Iterates
are never made symmetric: that would break ZY = YZ, on which convergence rests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import Roots

# The least ridge, as a fraction of tr(C). What rounding leaves of an empty direction disturbs the
# inverse root in the others by about 2^-53 / ridge, where an eigendecomposition tells them apart.
# Here a larger ridge would err more, in directions a ten-thousandth as wide as others, and a
# smaller one too, in codes of rank one: both stay below 1e-3 of the gradient.
LEAST_RIDGE = 3e-14
# A step aims at no interval wider than this: the widest would send the largest root to nearly 0,
# and the rounding of its neighbours with it.
_WIDEST = 10.0
_MOST_CHANNELS = 4096  # the trace of P is that of C and D ridges
# Roots of ordinary codes and features, and of such as are 10,000 times narrower in some directions,
# are at most this much smaller than the largest could be.
COMMON = (0.05, 1e-5)
_LAST_STEP = (1.5, 0.5)  # Newton's, for what rounding left


class Step(NamedTuple):
    """q(t) = a - b t; `may_end`: if the roots were at 1 before this step, it is the last."""

    a: float
    b: float
    may_end: bool


@functools.cache
def schedule(levels: tuple[float, ...] = ()) -> tuple[Step, ...]:
    """Every step, for roots in [sqrt(LEAST_RIDGE), 1] before the first.

    With `levels`, falling, there are steps on the way after which roots in [level, 1] are at 1:
    whoever looks may end there.
    """
    least = math.sqrt(LEAST_RIDGE / (1 + LEAST_RIDGE * _MOST_CHANNELS))
    lows, high = [*levels, least], 1.0
    steps: list[Step] = []
    for i in range(len(lows)):
        for a, b in [*_to_one(lows[i], high), _LAST_STEP]:
            steps.append(Step(a, b, False))
            lows = [a * low - b * low**3 for low in lows]
        steps[-1] = steps[-1]._replace(may_end=True)
        high = 1.0 + 1e-7
    return tuple(steps)


def _to_one(low: float, high: float) -> list[tuple[float, float]]:
    """Steps that bring all roots in [low, high] to 1."""
    steps = []
    while high - low > 1e-7:  # its square is below rounding after the last step
        aim = max(low, high / _WIDEST)
        # a s - b s^3 is the same at both ends of [aim, high], as far below 1 as its peak is above.
        ends = high * high + high * aim + aim * aim
        peak = math.sqrt(ends / 3)
        b = 2 / (high * aim * (high + aim) + 2 / 3 * ends * peak)
        a = b * ends
        steps.append((a, b))
        low, high = min(a * s - b * s**3 for s in (low, high)), a * peak - b * peak**3
    return steps


def least_ridge(s1: Tensor, s2: Tensor, ridge: Tensor) -> Tensor:
    """`ridge` [B], or the least that the schedule is made for."""
    return torch.maximum(ridge, LEAST_RIDGE * (s1 * s2).sum((-2, -1)))


def iterate(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The roots of y [B, D, D], whose trace is 1, and of its inverse, from z = I."""
    eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    for a, b, _ in schedule():
        q = a * eye - b * (z @ y)
        y, z = y @ q, q @ z
    return y, z


def roots(
    s1: Tensor,
    s2: Tensor,
    ridge: Tensor,
    to_features: bool,
    iterate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = iterate,
) -> Roots:
    """`Roots` of covariances s1, s2 [B, D, D] and ridge e [B], float64; see `least_ridge`.

    NaN for a problem that is not finite.
    """
    ridge = least_ridge(s1, s2, ridge)
    eye = torch.eye(s1.shape[-1], dtype=s1.dtype, device=s1.device)
    product = s1 @ s2 + ridge[:, None, None] * eye
    scale = _trace(product)[:, None, None]
    # Without any variance there is no ridge either: T is 0 and misses everything.
    flat = scale <= 0
    scale = torch.where(flat, 1, scale)
    y, z = iterate(product / scale, torch.where(flat, 0, eye))
    root, inverse = y * scale.sqrt(), z / scale.sqrt()
    to_codes = inverse @ s1
    to_codes = (to_codes + to_codes.mT) / 2
    reverse = None
    if to_features:
        reverse = s2 @ inverse
        reverse = (reverse + reverse.mT) / 2
    missed = torch.where(flat[:, 0, 0], _trace(s1), ridge * (inverse.mT * to_codes).sum((-2, -1)))
    return Roots(_trace(root), _trace(inverse), missed, to_codes, reverse)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
