"""The specification of the Gaussian operations: moments in float64, roots by symmetric eigh.

With features of mean m_x and covariance S1, codes of mean m_y and covariance S2, A = S1^{1/2},
C = A S2 A and a ridge e >= 0:

    value = |m_x - m_y|^2 + tr S1 + tr S2 - 2 tr (C + e I)^{1/2}
    d value / d S2 = I - T,    T  = A (C + e I)^{-1/2} A
    d value / d S1 = I - T',   T' = B (B S1 B + e I)^{-1/2} B,   B = S2^{1/2}

Roots are functions of eigenvalues, and no derivative goes through eigenvectors: repeated
eigenvalues are as good as others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# ridge=None is this fraction of the mean eigenvalue of C.
RELATIVE_RIDGE = 1e-14


class Roots(NamedTuple):
    """What value and gradients need of the D x D problem, float64.

    trace: tr (C + e I)^{1/2} [B]. inverse_trace: tr (C + e I)^{-1/2} [B]. missed: tr S1 - tr T S2 T
    [B], the features' variance that T does not reach, e tr A (C + e I)^{-1} A. to_codes: T
    [B, D, D]. to_features: T' [B, D, D], or None where it was not asked for.
    """

    trace: Tensor
    inverse_trace: Tensor
    missed: Tensor
    to_codes: Tensor
    to_features: Tensor | None


def moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count [B], mean [B, D] and unbiased covariance [B, D, D] of x [B, N, D], float64.

    valid [B, N] bool says which rows count; None: all. What is not counted may hold anything. The
    mean of no row is 0, and the covariance of fewer than two rows too.
    """
    rows = x.detach().double()
    if valid is None:
        count = torch.full((len(x),), float(x.shape[1]), dtype=torch.float64, device=x.device)
        shift = rows[:, :1].sum(1, keepdim=True)  # 0 where there is no row
    else:
        count = valid.sum(-1).double()
        rows = torch.where(valid[..., None], rows, 0)
        first = torch.where(valid, valid.cumsum(-1), 0) == 1
        shift = torch.where(first[..., None], rows, 0).sum(1, keepdim=True)
    # Relative to one of them, equal points are exactly 0, and points far off lose no digits.
    shifted = rows - shift
    if valid is not None:
        shifted = torch.where(valid[..., None], shifted, 0)
    mean = shifted.sum(-2, keepdim=True) / count.clamp_min(1)[:, None, None]
    centred = shifted - mean
    if valid is not None:
        centred = torch.where(valid[..., None], centred, 0)
    covariance = centred.mT @ centred / (count - 1).clamp_min(1)[:, None, None]
    return count, (mean + shift)[:, 0], covariance


def pull_back(
    x: Tensor, valid: Tensor | None, mean: Tensor, matrix: Tensor, offset: Tensor
) -> Tensor:
    """Row k of the result is matrix (x_k - mean) + offset, or 0 where it is not valid; [B, N, D].

    float64 for float64 points, else float32. matrix [B, D, D] is symmetric; it, mean and offset
    [B, D] are float64.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    centred = x.detach().double() - mean[:, None]
    result = torch.baddbmm(offset[:, None], centred, matrix).to(dtype)
    return result if valid is None else torch.where(valid[..., None], result, 0)


def square_root(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric root [B, D, D] of a positive semidefinite matrix, its eigenvalues' roots [B, D] and
    its eigenvectors [B, D, D], whose columns belong to them."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp_min(0).sqrt()
    return (vectors * roots[:, None]) @ vectors.mT, roots, vectors


def transport(s1: Tensor, s2: Tensor, ridge: Tensor) -> Roots:
    """`Roots` without T' for s1, s2 [B, D, D] and ridge e [B].

    At ridge 0 the inverse root leaves out eigenvalues that rounding cannot tell from 0: sets that
    vary in different directions have nothing in common.
    """
    a, _, _ = square_root(s1)
    values, vectors = torch.linalg.eigh(a @ s2 @ a)
    negligible = _rounding(s1, s2)[:, None]
    common = (s1 * s2).sum((-2, -1))[:, None] > negligible
    values = torch.where(common, values.clamp_min(0), 0)
    ridge = ridge[:, None]
    shifted = values + ridge
    root = shifted.sqrt()
    kept = (ridge > 0) | (shifted > negligible)
    inverse = kept / torch.where(kept, root, 1.0)
    factor = a @ vectors
    scaled = factor * inverse[:, None]
    # In the directions left out, nothing of S1 is reached.
    reach = factor.square().sum(-2)
    missed = torch.where(kept, ridge * inverse.square(), 1.0)
    return Roots(
        root.sum(-1),
        inverse.sum(-1),
        torch.linalg.vecdot(reach, missed),
        scaled @ factor.mT,
        None,
    )


def _rounding(s1: Tensor, s2: Tensor) -> Tensor:
    """What rounding may have made of tr C = <S1, S2> [B]."""
    summed = torch.linalg.vecdot(s1.abs().flatten(1), s2.abs().flatten(1))
    return s1.shape[-1] * torch.finfo(torch.float64).eps * summed


def roots(s1: Tensor, s2: Tensor, ridge: Tensor, to_features: bool) -> Roots:
    """`Roots` of covariances s1, s2 [B, D, D] and ridge e [B], float64, by eigh.

    NaN for a problem that is not finite.
    """
    finite = (s1 + s2).sum((-2, -1)).isfinite() & ridge.isfinite()
    if not bool(finite.all()):  # eigh takes no such matrix
        nan = torch.where(finite, 0.0, torch.nan)
        s1, s2 = (torch.where(finite[:, None, None], s, 0) for s in (s1, s2))
        found = roots(s1, s2, torch.where(finite, ridge, 0), to_features)
        return Roots(*(f if f is None else f + nan.view(-1, *[1] * (f.dim() - 1)) for f in found))
    found = transport(s1, s2, ridge)
    if to_features:
        found = found._replace(to_features=transport(s2, s1, ridge).to_codes)
    return found


class Gradients(NamedTuple):
    """Value [B] and its derivatives with respect to m_y [B, D], S1 and S2 [B, D, D] (None if not
    asked for); that with respect to m_x is minus that of m_y. float64."""

    value: Tensor
    mean: Tensor
    features: Tensor | None
    codes: Tensor


def value_and_gradients(
    means: tuple[Tensor, Tensor],
    covariances: tuple[Tensor, Tensor],
    ridge: float | None,
    to_features: bool,
    solve: Callable[[Tensor, Tensor, Tensor, bool], Roots] = roots,
    relative: float | None = None,
) -> Gradients:
    """The squared 2-Wasserstein distance of batches of Gaussians, as the module says.

    `ridge` None is `relative` tr(C), by default RELATIVE_RIDGE / D, and the gradients know that it
    depends on S1 and S2. `solve` finds the `Roots`. What is not finite gives NaN throughout.
    """
    (m_x, m_y), (s1, s2) = means, covariances
    b, d, _ = s1.shape
    apart = m_y - m_x
    flat_x, flat_y = s1.reshape(b, d * d), s2.reshape(b, d * d)
    overlap = torch.linalg.vecdot(flat_x, flat_y)  # tr C
    overlap = torch.where(overlap <= _rounding(s1, s2), 0, overlap)
    if relative is None:
        relative = RELATIVE_RIDGE / d
    if ridge is not None:
        relative = 0.0
    epsilon = overlap * relative if ridge is None else torch.full_like(overlap, ridge)
    found = solve(s1, s2, epsilon, to_features)
    eye = torch.eye(d, dtype=s1.dtype, device=s1.device)
    rest = eye - found.to_codes
    flat_rest = rest.reshape(b, d * d)
    variance_y = flat_y[:, :: d + 1].sum(-1)
    total = flat_x[:, :: d + 1].sum(-1) + variance_y
    # Two ways to the same number: the second cancels nothing where the sets agree, and the first
    # does not multiply rounding by T where the codes are nearly rank-deficient.
    direct = total - 2 * found.trace
    factored = torch.linalg.vecdot((rest @ s2).reshape(b, d * d), flat_rest) + found.missed
    factored = factored - 2 * epsilon * found.inverse_trace
    near = torch.linalg.vecdot(flat_rest, flat_rest) * variance_y < total
    value = torch.linalg.vecdot(apart, apart) + torch.where(near, factored, direct)
    share = (relative * found.inverse_trace)[:, None, None]
    features = None
    if found.to_features is not None:
        features = torch.addcmul(eye - found.to_features, share, s2, value=-1)
    return Gradients(value, 2 * apart, features, torch.addcmul(rest, share, s1, value=-1))


def value_and_pulls(
    features: Tensor | tuple[Tensor, Tensor],
    y: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
    moments: Callable = moments,
    solve: Callable = value_and_gradients,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The value [...], float64 if `double`, else float32, and what `map_points` needs of x, if
    asked for, and y [..., K, D].

    `features` are points [..., N, D], or the mean [..., D] and covariance [..., D, D] of such.
    `moments` and `solve` do as the functions of this module.
    """
    _, m_y, s2 = moments(flat(y, 2), None)
    if isinstance(features, tuple):
        m_x, s1 = flat(features[0], 1), flat(features[1], 2)
    else:
        _, m_x, s1 = moments(flat(features, 2), None)
    found = solve((m_x, m_y), (s1, s2), ridge, x_grad)
    pull_x = None
    if x_grad:
        pull_x = _pull(features.shape[-2], m_x, found.features, -found.mean)
    pull_y = _pull(y.shape[-2], m_y, found.codes, found.mean)
    value = found.value.to(torch.float64 if double else torch.float32)
    return value.reshape(y.shape[:-2]), pull_x, pull_y


def flat(t: Tensor, dimensions: int) -> Tensor:
    """`t` with one dimension in front of its last few."""
    return t.reshape(t.shape[: t.dim() - dimensions].numel(), *t.shape[t.dim() - dimensions :])


def _pull(n: int, mean: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """From the derivatives of a value by covariance and mean of n points, the gradient of each."""
    return torch.cat([matrix * (2 / (n - 1)), mean[:, None], offset[:, None] / n], 1)


def map_points(
    points: tuple[Tensor | None, Tensor | None],
    pulls: tuple[Tensor | None, Tensor | None],
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """grad (A (p - m) + o) for every point p of one or two sets [..., N, D], in its dtype, where
    `pulls` [B, D + 2, D] stack A, m and o, and grad is [...]. None where there are no points."""
    factor = grad.double().reshape(-1, 1, 1)
    return tuple(
        None if p is None else _map(p, pull, factor) for p, pull in zip(points, pulls, strict=True)
    )


def _map(points: Tensor, pull: Tensor, grad: Tensor) -> Tensor:
    pull_matrix, mean, offset = pull[:, :-2], pull[:, -2], pull[:, -1:]
    pulled = pull_back(flat(points, 2), None, mean, grad * pull_matrix, (grad * offset)[:, 0])
    return pulled.to(points.dtype).reshape(points.shape)
