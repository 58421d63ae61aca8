"""squared_mmd: inputs x [N, D], y [K, D], bandwidths [B]; output (value, gradient of y [K, D])."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..cases import Case
from .base import (
    KEOPS,
    Call,
    Contestant,
    Output,
    backend_note,
    keops_compiles,
    keops_lazy_tensor,
    memory_limit,
    reference_limit,
)


def _auto(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    return lambda: _value_and_gradient(x, y, bandwidths, "auto")


def _reference(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    return lambda: _value_and_gradient(x, y, bandwidths, "torch")


def _value_and_gradient(x: Tensor, y: Tensor, bandwidths: Tensor, backend: str) -> Output:
    from ... import squared_mmd

    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        value = squared_mmd(x, leaf, bandwidths, backend=backend)
        return value.detach(), torch.autograd.grad(value, leaf)[0]


def _dense(rates: Tensor, x: Tensor, y: Tensor) -> Tensor:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.addmm(b.square().sum(-1), a, b.T, alpha=-2)
        squared = (squared + a.square().sum(-1, keepdim=True)).clamp_min(0)
        return sum(torch.exp(-rate * squared).mean() for rate in rates)

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def _through_autograd(loss: Callable[[Tensor], Tensor], y: Tensor) -> Call:
    def call() -> Output:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            value = loss(leaf)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

    return call


def _autograd(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    rates = bandwidths.to(x.dtype).reciprocal()
    return _through_autograd(lambda leaf: _dense(rates, x, leaf), y)


def _compiled(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    rates = bandwidths.to(x.dtype).reciprocal()
    dense = torch.compile(_dense, dynamic=False)
    call = _through_autograd(lambda leaf: dense(rates, x, leaf), y)
    call()
    return call


def _autograd_limit(case: Case) -> str | None:
    # Autograd keeps a matrix a bandwidth, of which there are five, and some more on the way.
    kept = case.k * case.k + case.n * case.k
    return memory_limit(case, kept * 4 * 8, "what autograd keeps")


def _compiled_limit(case: Case) -> str | None:
    return keops_compiles(case) and "torch.compile has no C++ compiler" or _autograd_limit(case)


def _keops(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    LazyTensor = keops_lazy_tensor()
    rates = bandwidths.reciprocal().tolist()

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = ((LazyTensor(a[:, None]) - LazyTensor(b[None])) ** 2).sum(-1)
        kernel = sum((-rate * squared).exp() for rate in rates)
        # The sum over many pairs is left to torch, in float64.
        return kernel.sum(1).double().mean() / len(b)

    return _through_autograd(
        lambda leaf: mean_kernel(x, x) + mean_kernel(leaf, leaf) - 2 * mean_kernel(x, leaf), y
    )


def _geomloss(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    from geomloss import SamplesLoss

    # exp(-|a - b|^2 / (2 blur^2)), and half of the squared MMD, a bandwidth at a time.
    losses = [
        SamplesLoss("gaussian", blur=math.sqrt(width / 2), backend="tensorized")
        for width in bandwidths.tolist()
    ]
    return _through_autograd(lambda leaf: 2 * sum(loss(x, leaf) for loss in losses), y)


SQUARED_MMD = (
    Contestant("vqkern", _auto, note=backend_note, ours=True),
    Contestant("vqkern torch reference", _reference, limit=reference_limit),
    Contestant("torch kernel matrices + autograd", _autograd, limit=_autograd_limit),
    Contestant(
        "torch.compile of them",
        _compiled,
        limit=_compiled_limit,
        note=lambda case: "compiled before the clock starts",
        memory=(),
    ),
    Contestant(
        "geomloss, tensorized",
        _geomloss,
        needs=(("geomloss", "pip install geomloss"),),
        limit=_autograd_limit,
        note=lambda case: "one kernel loss a bandwidth",
    ),
    # It compiles on its first calls, which a cold measurement of memory would see.
    Contestant("KeOps + autograd", _keops, needs=KEOPS, limit=keops_compiles, memory=()),
)
