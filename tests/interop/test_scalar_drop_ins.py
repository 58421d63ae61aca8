"""FSQ and LFQ beside those of vector-quantize-pytorch, on the same weights."""

import pytest
import torch
from interop.pairs import assert_same_state, both

from vqkern import interop

pytest.importorskip("vector_quantize_pytorch")

FSQS = {
    "default": ([8, 5, 5, 5], {}),
    "projected": ([8, 6, 5], {"dim": 7}),
    "books": ([5, 4], {"num_codebooks": 3}),
    "symmetric": ([2, 3, 4, 5], {"preserve_symmetry": True}),
    "first": ([7, 5, 5, 5], {"channel_first": True}),
    "rotated": ([5, 5, 5, 5], {"orthogonal_rotation": True}),
    "noisy": ([5, 5], {"preserve_symmetry": True, "noise_dropout": 0.5}),
    "no indices": ([8, 5], {"return_indices": False}),
}


@pytest.mark.parametrize("name", list(FSQS))
def test_fsq_is_the_same(name):
    levels, options = FSQS[name]
    theirs, ours = both("FSQ", levels, **options)
    assert_same_state(theirs, ours)
    shapes = [(3, theirs.dim, 4)] if options.get("channel_first") else [(3, 10, theirs.dim)]
    for shape in (*shapes, (2, theirs.dim, 4, 5)):
        grads = []
        for layer in (theirs, ours):
            torch.manual_seed(2)
            z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(2)
            z.requires_grad_()
            out, index = layer(z)
            (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
            grads.append((out.detach(), z.grad, index))
        for a, b in zip(*grads, strict=True):
            if b is None:
                assert a is None
                continue
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
        if index is not None:
            codes = theirs.indices_to_codes(index)
            torch.testing.assert_close(ours.indices_to_codes(index), codes)
    if ours.return_indices:
        torch.testing.assert_close(ours.implicit_codebook, theirs.implicit_codebook)
        every = torch.arange(ours.codebook_size)
        assert torch.equal(ours.codes_to_indices(ours.implicit_codebook).long(), every)


LFQS = {
    "default": {"codebook_size": 64, "dim": 6},
    "projected": {"codebook_size": 64, "dim": 5, "commitment_loss_weight": 0.25},
    "books": {"codebook_size": 16, "num_codebooks": 2, "codebook_scale": 0.5},
    "spherical": {"codebook_size": 64, "spherical": True, "soft_clamp_input_value": 2.0},
    "softplus": {"codebook_size": 64, "experimental_softplus_entropy_loss": True},
    "rotated": {"codebook_size": 64, "orthogonal_rotation": True, "diversity_gamma": 2.0},
    "some": {"codebook_size": 64, "frac_per_sample_entropy": 0.5},
}


@pytest.mark.parametrize("name", list(LFQS))
def test_lfq_is_the_same(name):
    theirs, ours = both("LFQ", **LFQS[name])
    assert_same_state(theirs, ours)
    # Far from the boundaries, where counting small probabilities as 1e-5 changes nothing.
    x = torch.randn(4, 12, theirs.dim)
    x = x + 0.3 * x.sign()
    results = []
    for layer in (theirs, ours):
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        result, parts = layer(leaf, inv_temperature=10.0, return_loss_breakdown=True)
        (result[0].sum() + result[2]).backward()
        results.append((*result, *parts, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-4)
    theirs.eval(), ours.eval()
    a, b = theirs(x), ours(x)
    assert b._fields == a._fields
    torch.testing.assert_close(b.quantized, a.quantized)
    assert torch.equal(b.indices, a.indices)
    torch.testing.assert_close(ours.indices_to_codes(a.indices), theirs.indices_to_codes(a.indices))
    maps = torch.randn(2, theirs.dim, 3, 4)
    torch.testing.assert_close(ours(maps).quantized, theirs(maps).quantized)
    torch.testing.assert_close(ours.codebook, theirs.codebook)


def test_lfq_leaves_out_what_is_masked():
    # There, a mask makes every token a batch of its own, and the two entropies cancel.
    layer = interop.LFQ(codebook_size=64, commitment_loss_weight=0.5)
    x, mask = torch.randn(4, 12, 6), torch.rand(4, 12) > 0.3
    expected = layer(x[mask][None], inv_temperature=10.0)[2]
    torch.testing.assert_close(layer(x, inv_temperature=10.0, mask=mask)[2], expected)
    with pytest.raises(ValueError, match=r"mask must be bool \[4, 12\]"):
        layer(x, mask=mask[:2])


def test_lfq_entropies_differ_by_no_more_than_is_said():
    theirs, ours = both("LFQ", codebook_size=1024)
    x = 0.01 * torch.randn(2, 50, 10)  # all but undecided: many small probabilities
    _, a = theirs(x, return_loss_breakdown=True)
    _, b = ours(x, return_loss_breakdown=True)
    bound = 1024 * 1e-5 / 2.718
    gap = float((b.per_sample_entropy - a.per_sample_entropy).detach())
    assert -1e-4 <= gap <= bound
    torch.testing.assert_close(b.batch_entropy, a.batch_entropy, rtol=1e-4, atol=1e-4)
