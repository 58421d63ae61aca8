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


@pytest.mark.parametrize("name", [*MOVING, "ema_sphere", "online_var"])
def test_they_are_refused_where_nothing_follows_them_in_what_is_checkpointed(name):
    """torch stops such a pass as soon as it has what it wants, before any code would move again."""
    torch.manual_seed(3)
    options = {"patch_sizes": (1, 2)} if "var" in name else {}
    q = vqkern.build_quantizer(name, dim=4, codebook_size=16, **options)
    encoder = torch.nn.Linear(4, 4)
    z = torch.randn(10, 2, 2, 4)
    quantized, _, loss = checkpoint(lambda x: tuple(q(encoder(x))), z, use_reentrant=False)
    with pytest.raises(RuntimeError, match="has moved the codes since; leave the quantizer out"):
        (quantized.square().sum() + loss).backward()


class Own(torch.nn.Module):
    """A rule with the four methods and no base."""

    def attach(self, codes):
        self.codes = [codes]

    def loss(self, z, nearest, index):
        return z.new_zeros(())

    @torch.no_grad()
    def step(self, z, index):
        self.codes[0].weight += 1

    def reset(self, moved=None):
        pass


@pytest.mark.parametrize("reentrant", [False, True])
def test_rules_of_one_s_own_are_refused_as_well(reentrant):
    q = vqkern.quantizers.VectorQuantizer(vqkern.quantizers.Table(8, 4), update=Own())
    z = torch.randn(40, 4, requires_grad=True)
    total = checkpoint(lambda x: q(2 * x).quantized.square().sum(), z, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="Own has moved the codes since"):
        total.backward()
