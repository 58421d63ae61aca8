"""The optimiser of codes: its settings, and that one rate serves every K."""

import pytest
import torch

from vqkern import build_quantizer
from vqkern.quantizers import EMA, Table, VectorQuantizer
from vqkern.training import code_optimizer
from vqkern.training.stages import linear_decay, set_learning_rates


def test_it_moves_what_requires_a_gradient():
    quantizer = build_quantizer("simvq", dim=4, codebook_size=8)
    optimizer = code_optimizer(quantizer, lr=0.2)
    moved = optimizer.param_groups[0]["params"]
    assert all(p.requires_grad for p in moved)
    assert len(moved) == sum(p.requires_grad for p in quantizer.parameters())
    set_learning_rates(optimizer, linear_decay(5, 10))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("num_codes", [4, 4096])
def test_one_rate_serves_every_codebook_size(num_codes):
    """The first step is of size lr in every channel that has a gradient, whatever K is."""
    torch.manual_seed(0)
    quantizer = build_quantizer("wasserstein", dim=4, codebook_size=num_codes)
    before = quantizer.codes.detach().clone()
    optimizer = code_optimizer(quantizer, lr=0.1)
    quantizer(torch.randn(256, 4) + 3).loss.backward()
    optimizer.step()
    moved = (quantizer.codes.detach() - before).abs()
    assert float(moved.median()) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("lr", [0, -1.0, float("inf"), float("nan"), "fast"])
def test_a_rate_that_does_not_serve_is_named(lr):
    with pytest.raises(ValueError, match="lr must be positive and finite"):
        code_optimizer(Table(4, 2), lr=lr)


def test_codes_without_a_gradient_are_named():
    with pytest.raises(ValueError, match="requires a gradient"):
        code_optimizer(VectorQuantizer(Table(4, 2), update=EMA()))
