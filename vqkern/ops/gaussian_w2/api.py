"""`gaussian_w2`, `prior_w2` and `covariance_sqrt`: distances of fitted Gaussians."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import common_dtype
from ..direct import needs_grad, transformable
from . import reference
from .moments import Moments, choose_backend, moments_by, passes, require_points
from .points import of_points


def gaussian_w2(
    x: Tensor | Moments,
    y: Tensor | Moments,
    *,
    ridge: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Squared 2-Wasserstein distance of the Gaussians fitted to two point sets.

    |m_x - m_y|^2 + tr S1 + tr S2 - 2 tr (C + e I)^{1/2} with means m, unbiased covariances S1 of x
    and S2 of y, C = S1^{1/2} S2 S1^{1/2} and ridge e: the alignment loss of Wasserstein VQ (Fang et
    al. 2025; VAEVQ, closed form in its appendix).

    Args:
        x: points [..., N, D], floating point, or their `Moments`, from `moments` and
            `merge` in `vqkern.ops`.
        y: points [..., K, D] or their `Moments`, on the device of `x`; leading dimensions, those of
            `x`, are independent problems.
        ridge: e, at least 0, in units of C (variance squared). None: 1e-14 tr(C) / D. It lowers the
            value by at most 2 D sqrt(e).
        backend: ``"auto"``, ``"torch"``, ``"cpp"`` or ``"triton"``.

    Returns:
        [...], float32 (float64 if an input tensor is, or none is a tensor), differentiable with
        respect to `x` and `y`. Code k has the gradient (2/K)(m_y - m_x) + (2/(K-1))(I - T)(y_k -
        m_y), T = A (C + e I)^{-1/2} A, A = S1^{1/2}; x by symmetry. It is exactly that of the
        ridged value: that ridge=None depends on C is part of it.

    Raises:
        TypeError: `x` or `y` is neither a floating-point tensor nor float64 `Moments`.
        ValueError: shapes, leading dimensions or devices do not fit, a set has fewer than two
            points, the ridge is negative or not finite, or the backend cannot run this call.

    Numerics:
        Sums and the D x D problem are float64; "cpp" with up to 32 channels keeps the digits of
        channels a hundred thousand times narrower than others, where eigendecompositions lose up to
        4e-5 of the gradient. Repeated eigenvalues are as good as others. Where codes have no
        variance in some direction (fewer codes than channels, equal codes), the distance has a
        kink, of whose subgradients this is the one that leaves such a direction to the means alone:
        codes that are all equal move with their mean. At ridge 0 the same holds for eigenvalues of
        C that rounding cannot tell from 0; a ridge above 0 that is below D 2^-52 of the largest
        leaves the gradient in their directions to rounding. So does a variance of the codes in some
        direction that is below 2^-48 of their largest, where the features are wide. "triton" has no
        eigendecomposition and takes a ridge of at least 3e-14 tr(C), also for None; the gradient of
        codes that are rank-deficient, or 10,000 times narrower in some directions than in others,
        is then right to 1e-3, and that of others to float32. A point that is not finite gives NaN,
        and NaN gradients.
    """
    (mean_x, device_x, dtype_x), (mean_y, device_y, dtype_y) = _side("x", x), _side("y", y)
    if mean_x != mean_y:
        raise ValueError(
            "gaussian_w2: x and y must have the same D and the same leading dimensions, got means "
            f"of shape {list(mean_x)} and {list(mean_y)}"
        )
    if device_x != device_y:
        raise ValueError(
            f"gaussian_w2: x is on {device_x} but y is on {device_y}; both must be on one device"
        )
    _require_ridge("gaussian_w2", ridge)
    float64 = torch.float64 in (dtype_x, dtype_y)
    chosen = choose_backend("gaussian_w2", backend, device_y, float64)
    return _distance(x, y, ridge, float64 or dtype_x is dtype_y is None, chosen)


def prior_w2(y: Tensor, *, ridge: float | None = None, backend: str = "auto") -> Tensor:
    """|m|^2 + tr S - 2 tr (S + e I)^{1/2}: the pull of all codes to the prior N(0, I).

    VAEVQ eq. 11 (distribution consistency regularisation), as the paper writes it. Its minimum, at
    mean 0 and covariance I, is -D and not 0: D + prior_w2(y) is the squared 2-Wasserstein distance
    of the fitted Gaussian to N(0, I).

    Args:
        y: points [..., K, D], floating point; leading dimensions are independent sets.
        ridge, backend: as those of `gaussian_w2`, with C = S.

    Returns:
        [...], float32 (float64 for float64 points), differentiable: code k has the gradient (2/K) m
        + (2/(K-1))(I - (S + e I)^{-1/2})(y_k - m).

    Raises:
        TypeError, ValueError: as `gaussian_w2`.

    Numerics:
        As `gaussian_w2`.
    """
    _require_two("prior_w2", "y", y)
    _require_ridge("prior_w2", ridge)
    double = y.dtype == torch.float64
    chosen = choose_backend("prior_w2", backend, y.device, double)
    *lead, _, d = y.shape
    mean = torch.zeros(*lead, d, dtype=torch.float64, device=y.device)
    identity = torch.eye(d, dtype=torch.float64, device=y.device).expand(*mean.shape, d)
    normal = Moments(mean.new_empty(0), mean, identity)
    return of_points(normal, y, ridge, double, chosen) - d


class CovarianceSqrt(NamedTuple):
    """mean [..., D], unbiased covariance [..., D, D] and its symmetric square root [..., D, D]."""

    mean: Tensor
    covariance: Tensor
    sqrt: Tensor


def covariance_sqrt(y: Tensor) -> CovarianceSqrt:
    """Mean, unbiased covariance S and symmetric positive semidefinite root S^{1/2} of points.

    Args:
        y: points [..., K, D], floating point; leading dimensions are independent sets.

    Returns:
        `CovarianceSqrt` in float32 (float64 for float64 points), differentiable. The root's
        gradient solves S^{1/2} X + X S^{1/2} = G in closed form, and is 0 between two directions
        without variance.

    Raises:
        TypeError: `y` is not a floating-point tensor.
        ValueError: `y` has fewer than two dimensions or fewer than two points.

    Numerics:
        Float64 inside, root by eigh. A point that is not finite gives NaN.
    """
    _require_two("covariance_sqrt", "y", y)
    double = y.dtype == torch.float64
    of = moments_by(y, None, choose_backend("covariance_sqrt", "auto", y.device, double))
    *lead, d, _ = of.covariance.shape
    root, _, _ = _square_root(of.covariance.reshape(-1, d, d))
    dtype = common_dtype(y)
    return CovarianceSqrt(
        of.mean.to(dtype), of.covariance.to(dtype), root.reshape(*lead, d, d).to(dtype)
    )


def _require_two(op: str, name: str, points: Tensor) -> None:
    require_points(op, name, points)
    if points.shape[-2] < 2:
        raise ValueError(
            f"{op}: {name} must hold at least 2 points, for a covariance; got {points.shape[-2]}"
        )


def _require_ridge(op: str, ridge: float | None) -> None:
    if ridge is None:
        return
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)):
        raise TypeError(f"{op}: ridge must be a number or None, got {type(ridge).__name__}")
    if not 0 <= ridge <= sys.float_info.max:
        raise ValueError(f"{op}: ridge must be finite and at least 0, got {ridge}")


def _side(
    name: str, points: Tensor | Moments
) -> tuple[tuple[int, ...], torch.device, torch.dtype | None]:
    """The shape of a checked side's mean, its device, and the points' dtype, None for moments."""
    if isinstance(points, Moments):
        _require_moments("gaussian_w2", name, points)
        return tuple(points.mean.shape), points.mean.device, None
    _require_two("gaussian_w2", name, points)
    *lead, _, d = points.shape
    return (*lead, d), points.device, points.dtype


def _require_moments(op: str, name: str, x: Moments) -> None:
    count, mean, covariance = x
    fits = mean.dim() > 0 and covariance.shape == (*mean.shape, mean.shape[-1])
    if not fits or mean.shape[:-1] != count.shape:
        raise ValueError(
            f"{op}: moments {name} must have count [...], mean [..., D] and covariance "
            f"[..., D, D], got {list(count.shape)}, {list(mean.shape)} and {list(covariance.shape)}"
        )
    if any(t.dtype != torch.float64 for t in x):
        raise TypeError(f"{op}: moments {name} must be float64, got {[t.dtype for t in x]}")
    # Only host values are looked at: a check of device values would stop the GPU in every step.
    if count.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool((count < 2).any()):
            raise ValueError(
                f"{op}: moments {name} must be of at least 2 points, got {float(count.min()):g}"
            )


def _distance(
    x: Tensor | Moments, y: Tensor | Moments, ridge: float | None, double: bool, backend: str
) -> Tensor:
    """The distance of checked sets."""
    grad = torch.is_grad_enabled()
    if isinstance(y, Moments) and not isinstance(x, Moments) and not (grad and _needs_grad(y)):
        x, y = y, x  # it is the same
    if not isinstance(y, Moments) and not (isinstance(x, Moments) and grad and _needs_grad(x)):
        return of_points(x, y, ridge, double, backend)
    x, y = (p if isinstance(p, Moments) else moments_by(p, None, backend) for p in (x, y))
    d = x.mean.shape[-1]
    flat = [t for p in (x, y) for t in (p.mean.reshape(-1, d), p.covariance.reshape(-1, d, d))]
    value, _, _, _ = _gaussian_w2(*flat, ridge, grad and _needs_grad(x), double, backend)
    return value.reshape(x.mean.shape[:-1])


def _needs_grad(of: Moments) -> bool:
    return needs_grad(of.mean) or needs_grad(of.covariance)


@torch.library.custom_op("vqkern::gaussian_w2", mutates_args=())
def _gaussian_w2_op(
    m_x: Tensor,
    s1: Tensor,
    m_y: Tensor,
    s2: Tensor,
    ridge: float | None,
    x_grad: bool,
    double: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value [B] and its gradients to m_y [B, D], S1 (empty if not asked for) and S2 [B, D, D]."""
    found = passes(backend).value_and_gradients((m_x, m_y), (s1, s2), ridge, x_grad)
    value = found.value.to(torch.float64 if double else torch.float32)
    features = found.features if x_grad else s1.new_empty(0)
    return value, found.mean, features, found.codes


@_gaussian_w2_op.register_fake
def _(m_x, s1, m_y, s2, ridge, x_grad, double, backend):
    b, d = m_y.shape
    return (
        m_y.new_empty(b, dtype=torch.float64 if double else torch.float32),
        m_y.new_empty(b, d),
        m_y.new_empty((b, d, d) if x_grad else (0,)),
        m_y.new_empty(b, d, d),
    )


# Without a derivative of its own: asking for a second derivative raises. It takes the moments, on
# which the saved gradient depends, so that autograd knows what a second derivative would need.
@torch.library.custom_op("vqkern::gaussian_w2_backward", mutates_args=())
def _gaussian_w2_backward_op(
    grad: Tensor,
    mean: Tensor,
    features: Tensor,
    codes: Tensor,
    m_x: Tensor,
    s1: Tensor,
    m_y: Tensor,
    s2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.double()[:, None]
    to_features = features.clone()
    if len(features):
        to_features = grad[..., None] * features
    return grad * mean, to_features, grad[..., None] * codes


@_gaussian_w2_backward_op.register_fake
def _(grad, mean, features, codes, m_x, s1, m_y, s2):
    return torch.empty_like(mean), torch.empty_like(features), torch.empty_like(codes)


_gaussian_w2_backward = transformable(_gaussian_w2_backward_op)


def _setup_context(ctx, inputs, output):
    *moments, _, ctx.x_grad, _, _ = inputs
    _, mean, features, codes = output
    ctx.mark_non_differentiable(mean, features, codes)
    ctx.save_for_backward(mean, features, codes, *moments)


def _backward(ctx, grad, _mean, _features, _codes):
    mean, features, codes = _gaussian_w2_backward(grad, *ctx.saved_tensors)
    to_x = (-mean, features) if ctx.x_grad else (None, None)
    return *to_x, mean, codes, None, None, None, None


_gaussian_w2 = transformable(_gaussian_w2_op, _setup_context, _backward)


@torch.library.custom_op("vqkern::square_root", mutates_args=())
def _square_root_op(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    finite = matrix.isfinite().all(-1).all(-1)[:, None]
    found = reference.square_root(torch.where(finite[..., None], matrix, 0))
    nan = torch.where(finite, 0.0, torch.nan)
    return found[0] + nan[..., None], found[1] + nan, found[2].contiguous()


@_square_root_op.register_fake
def _(matrix):
    return torch.empty_like(matrix), matrix.new_empty(matrix.shape[:2]), torch.empty_like(matrix)


@torch.library.custom_op("vqkern::square_root_backward", mutates_args=())
def _square_root_backward_op(
    grad: Tensor, roots: Tensor, vectors: Tensor, matrix: Tensor
) -> Tensor:
    inside = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
    both = roots[:, :, None] + roots[:, None]
    # Between two directions without variance the root's slope is infinite; 0 is a finite choice.
    negligible = matrix.shape[-1] * torch.finfo(torch.float64).eps ** 0.5 * roots[:, -1:, None]
    inside = torch.where(both <= negligible, 0, inside / both)
    return vectors @ inside @ vectors.mT


@_square_root_backward_op.register_fake
def _(grad, roots, vectors, matrix):
    return torch.empty_like(matrix)


_square_root_backward = transformable(_square_root_backward_op)


def _root_context(ctx, inputs, output):
    _, roots, vectors = output
    ctx.mark_non_differentiable(roots, vectors)
    ctx.save_for_backward(roots, vectors, inputs[0])


def _root_backward(ctx, grad, _roots, _vectors):
    return _square_root_backward(grad, *ctx.saved_tensors)


_square_root = transformable(_square_root_op, _root_context, _root_backward)
