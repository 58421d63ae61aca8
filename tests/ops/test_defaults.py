"""torch's default type and device are the user's: results do not depend on them."""

from __future__ import annotations

import contextlib

import pytest
import torch

import vqkern
from vqkern.ops import moments

Z = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
CODES = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
INDEX = torch.arange(300) % 64
LAYERS = ["vanilla", "ema", "online", "wasserstein", "vanilla_sphere", "vanilla_vp2", "fsq", "lfq"]
LAYERS += ["bsq", "vanilla_rq"]
OPS = {
    "nearest_code": lambda: vqkern.nearest_code(Z, CODES),
    "code_sums": lambda: vqkern.code_sums(Z, INDEX, 64),
    "squared_mmd": lambda: vqkern.squared_mmd(Z, CODES.requires_grad_()),
    "gaussian_w2": lambda: vqkern.gaussian_w2(Z, CODES.requires_grad_()),
    "moments": lambda: moments(Z),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


def built(name):
    torch.manual_seed(0)
    size = {"fsq": 3**8, "lfq": 2**8, "bsq": 2**8}.get(name, 64)
    return vqkern.build_quantizer(name, dim=8, codebook_size=size)


def outcome(q):
    """What a training step, codes looked up and an evaluation give."""
    z = Z.clone().requires_grad_()
    torch.manual_seed(3)
    result = q.train()(z)
    (result.quantized.sin().sum() + result.loss).backward()
    q.eval()
    index = q.encode(Z)
    statistics = [b.detach().clone() for b in q.buffers()]
    codes = [p.detach().clone() for p in q.parameters()]
    grads = [p.grad for p in q.parameters() if p.grad is not None]
    return [*result, z.grad, q.decode(index), index, *statistics, *codes, *grads]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_do_not_depend_on_torch_s_defaults(name, default):
    expected = outcome(built(name))
    q = built(name)
    with DEFAULTS[default]():
        found = outcome(q)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", OPS)
def test_operators_do_not_depend_on_torch_s_defaults(name, default):
    expected = OPS[name]()
    with DEFAULTS[default]():
        found = OPS[name]()
    if isinstance(found, torch.Tensor):
        found, expected = [found], [expected]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_a_layer_built_under_another_default_keeps_statistics_in_float32():
    with default_dtype(torch.bfloat16):
        q = built("ema")
    assert q.update.count.dtype == torch.float32 and q.update.total.dtype == torch.float32
