"""gaussian_w2: inputs x [N, D], y [K, D]; output (value, gradient of y [K, D])."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cases import Case
from .base import Call, Contestant, Output, backend_note, not_twice


def _value_and_gradient(loss: Callable[[Tensor], Tensor], y: Tensor) -> Call:
    leaf = y.detach().requires_grad_()

    def call() -> Output:
        with torch.enable_grad():
            value = loss(leaf)
        return value.detach(), *torch.autograd.grad(value, leaf)

    return call


def _auto(case: Case, x: Tensor, y: Tensor) -> Call:
    from ... import gaussian_w2

    return _value_and_gradient(lambda leaf: gaussian_w2(x, leaf), y)


def _reference(case: Case, x: Tensor, y: Tensor) -> Call:
    from ... import gaussian_w2

    return _value_and_gradient(lambda leaf: gaussian_w2(x, leaf, backend="torch"), y)


def _eigh_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-12).sqrt()) @ vectors.mT


def _autograd(dtype: torch.dtype, x: Tensor, y: Tensor) -> Call:
    """Covariances, eigh and autograd through its eigenvectors, as public trainers write it."""

    def loss(leaf: Tensor) -> Tensor:
        a, b = x.to(dtype), leaf.to(dtype)
        s1, s2 = a.T.cov(), b.T.cov()
        root = _eigh_root(s1)
        cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(1e-12).sqrt().sum()
        apart = (a.mean(0) - b.mean(0)).square().sum()
        return apart + s1.trace() + s2.trace() - 2 * cross

    return _value_and_gradient(loss, y)


def _autograd_float32(case: Case, x: Tensor, y: Tensor) -> Call:
    return _autograd(torch.float32, x, y)


def _autograd_float64(case: Case, x: Tensor, y: Tensor) -> Call:
    return _autograd(torch.float64, x, y)


def _scipy(case: Case, x: Tensor, y: Tensor) -> Call:
    import numpy as np
    from scipy.linalg import sqrtm

    def call() -> Output:
        a, b = x.double().numpy(), y.double().numpy()
        s1, s2 = np.cov(a.T).reshape(case.d, -1), np.cov(b.T).reshape(case.d, -1)
        centred = b - b.mean(0)
        apart = b.mean(0) - a.mean(0)
        # S1 S2 is not symmetric; its root is, up to similarity, that of S1^1/2 S2 S1^1/2.
        root = sqrtm(s1 @ s2).real
        t = np.linalg.solve(root, s1)
        value = apart @ apart + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)
        pull = 2 / case.k * apart + 2 / (case.k - 1) * (centred - centred @ t.T)
        return torch.tensor(value), torch.from_numpy(pull)

    return call


def _pot(case: Case, x: Tensor, y: Tensor) -> Call:
    import ot

    def loss(leaf: Tensor) -> Tensor:
        a, b = x.double(), leaf.double()
        # Its own covariances are biased: it is given ours.
        fitted = a.mean(0), b.mean(0), a.T.cov(), b.T.cov()
        return ot.gaussian.bures_wasserstein_distance(*fitted) ** 2

    return _value_and_gradient(loss, y)


GAUSSIAN_W2 = (
    Contestant("vqkern", _auto, note=backend_note, ours=True),
    Contestant("vqkern torch reference", _reference, limit=not_twice),
    Contestant("torch eigh + autograd, float32", _autograd_float32),
    Contestant("torch eigh + autograd, float64", _autograd_float64),
    Contestant(
        "scipy sqrtm, float64",
        _scipy,
        needs=(("scipy", "pip install scipy"),),
        note=lambda case: "with our closed form for the gradient",
        devices=("cpu",),
    ),
    Contestant("POT, float64", _pot, needs=(("ot", "pip install POT"),)),
)


def floors(case: Case, x: Tensor, y: Tensor) -> dict[str, Call]:
    """What no implementation can do without: one pass that reads the codes and writes their
    gradient, and one D x D eigendecomposition in float64."""
    gradient = torch.empty_like(y)
    covariance = y.double().T.cov()
    return {
        "one pass over the codes": lambda: torch.mul(y, 2, out=gradient),
        # As a gradient is: memory that is new to the process has to be made ready first.
        "one pass into new memory": lambda: torch.mul(y, 2),
        "one D x D eigh": lambda: torch.linalg.eigh(covariance),
    }
