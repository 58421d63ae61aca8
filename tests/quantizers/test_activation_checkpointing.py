"""A forward pass that is run again in the backward pass says and does what it did before."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import vqkern

STILL = ["vanilla", "mmd", "simvq", "fvq", "fsq", "lfq", "bsq", "vanilla_rq", "vanilla_vp2", "mgvq"]
MOVING = ["ema", "online", "ema_rq"]


def build(name):
    torch.manual_seed(3)
    return vqkern.build_quantizer(name, dim=4, codebook_size=625 if name == "fsq" else 16)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", STILL)
def test_gradients_and_usage_are_those_of_one_pass(name, reentrant):
    gradients, usages = [], []
    z = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    for again in (False, True):
        q, leaf = build(name), z.clone().requires_grad_()

        def step(x, q=q):
            quantized, _, loss = q(2 * x)
            return quantized.square().sum() + loss

        torch.manual_seed(4)
        total = checkpoint(step, leaf, use_reentrant=reentrant) if again else step(leaf)
        total.backward()
        gradients.append([leaf.grad, *(p.grad for p in q.parameters())])
        usages.append(q.usage())
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert usages[0] == usages[1]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MOVING)
def test_codes_that_have_moved_since_are_refused(name, reentrant):
    q, z = build(name), torch.randn(40, 4, requires_grad=True)

    def step(x):
        quantized, _, loss = q(2 * x)
        return quantized.square().sum() + loss

    total = checkpoint(step, z, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="has moved the codes since; leave the quantizer out"):
        total.backward()
