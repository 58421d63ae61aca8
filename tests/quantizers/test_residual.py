"""Residual quantization against plain loops."""

import pytest
import torch
import torch.nn.functional as F

from vqkern.quantizers import EMA, MMD, Halves, Residual, Table, VectorQuantizer


def part(codes=7, dim=3, **options):
    return VectorQuantizer(Table(codes, dim), **options)


@torch.no_grad()
def greedy(row, tables):
    """Tokens and sum of one row, in float64."""
    rest, tokens = row.double(), []
    for table in tables:
        squared = [float((rest - code.double()).square().sum()) for code in table]
        tokens.append(squared.index(min(squared)))
        rest = rest - table[tokens[-1]].double()
    return tokens, row.double() - rest


@pytest.mark.parametrize("shared", [True, False])
def test_stages_quantize_what_is_left(shared):
    q = Residual(part() if shared else [part(5), part(6), part(7)], depth=3)
    tables = [q.codes[0 if shared else d] for d in range(3)]
    z = torch.randn(25, 3)
    result = q(z)
    expected = [greedy(row, tables) for row in z]
    assert result.index.tolist() == [tokens for tokens, _ in expected]
    sums = torch.stack([total for _, total in expected])
    torch.testing.assert_close(q.decode(result.index).double(), sums, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.quantized.double(), sums, rtol=1e-6, atol=1e-6)
    for first in (1, 2, 3):
        partial = sum(tables[d][result.index[:, d]] for d in range(first))
        torch.testing.assert_close(q.decode(result.index, first=first), partial)
    usages = q.usage()
    assert [u.tokens for u in usages] == ([75] if shared else [25] * 3)


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_is_rq_vaes_over_depth(shared):
    options = {"commitment": 0.3}
    q = Residual(part(**options) if shared else [part(5, **options), part(6, **options)], depth=2)
    tables = [q.codes[0 if shared else d].detach() for d in range(2)]
    z = torch.randn(25, 3, requires_grad=True)
    result = q(z)
    result.loss.backward()
    # Commitment on the sums; every stage's codebook loss moves its own code alone.
    free_z = z.detach().clone().requires_grad_()
    free = [table.clone().requires_grad_() for table in tables]
    one = free[0] if shared else None
    loss, before = 0.0, torch.zeros(25, 3)
    for d in range(2):
        own = one if shared else free[d]
        code = own[result.index[:, d]]
        total = before + code.detach()
        loss = loss + 0.3 * F.mse_loss(free_z, total) + F.mse_loss(before + code, z.detach())
        before = total
    loss = loss / 2
    loss.backward()
    torch.testing.assert_close(result.loss, loss)
    torch.testing.assert_close(z.grad, free_z.grad)
    for number, stage in enumerate(q.parts):
        torch.testing.assert_close(stage.parametrisation.weight.grad, free[number].grad)


def test_a_shared_codebook_takes_one_step_with_the_features_of_all_stages():
    q = Residual(part(4, update=EMA(0.75)), depth=3)
    table = q.codes[0].clone()
    z = torch.randn(20, 3)
    index = q(z).index
    # The codes of all three stages are those before the step.
    assert index.tolist() == [greedy(row, [table] * 3)[0] for row in z]
    count, total = torch.ones(4), table.clone()
    features = [[] for _ in range(4)]
    for row, tokens in zip(z, index.tolist(), strict=True):
        for k in tokens:
            features[k].append(row)
            row = row - table[k]
    for k in range(4):
        count[k] = 0.75 * count[k] + 0.25 * len(features[k])
        total[k] = 0.75 * total[k] + 0.25 * sum(features[k], torch.zeros(3))
        expected = total[k] / count[k] if features[k] else table[k]
        torch.testing.assert_close(q.codes[0][k], expected, rtol=1e-4, atol=1e-5)


def test_an_alignment_sees_the_features_of_all_stages():
    seen = []

    def spy(features, valid, codes):
        seen.append((features.shape, int(valid.sum()), codes.shape))
        return codes.sum() * 0.0

    z = torch.randn(2, 5, 3)
    Residual(part(alignment=spy), depth=4)(z)
    Residual([part(alignment=spy), part(alignment=spy)])(z)
    assert seen == [((40, 3), 40, (7, 3)), ((10, 3), 10, (7, 3)), ((10, 3), 10, (7, 3))]
    q = Residual(part(alignment=MMD()), depth=2)
    q(z).loss.backward()
    assert bool((q.parts[0].parametrisation.weight.grad != 0).any(1).all())


def test_stages_of_halves():
    q = Residual([Halves([part(), part(6)]), Halves([part(), part(5)])]).eval()
    z = torch.randn(9, 6)
    index = q.encode(z)
    assert index.shape == (9, 2, 2)
    for row, own in zip(z, index, strict=True):
        for half in range(2):
            tables = [stage.codes[half] for stage in q.parts]
            assert greedy(row[3 * half :][:3], tables)[0] == own[half].tolist()


def test_half_precision_codes_are_summed_in_float32():
    q = Residual(part(50, 4), depth=4).half().eval()
    z = torch.randn(30, 4).half()
    index = q.encode(z)
    exact = q.codes[0].detach().double()[index].sum(1)
    assert torch.equal(q.decode(index), exact.float().half())


def test_the_estimator_acts_on_the_sum():
    def double(z, nearest):
        return 2 * z + (nearest - 2 * z).detach()

    z = torch.randn(5, 3, requires_grad=True)
    for q in (
        Residual(part(estimator=double), depth=2),
        Residual(part(), depth=2, estimator=double),
    ):
        (gradient,) = torch.autograd.grad(q(z).quantized.sum(), z)
        assert bool((gradient == 2).all())


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"one quantizer, or one a stage \(3\), got 2"):
        Residual([part(), part()], depth=3)
    with pytest.raises(ValueError, match=r"same channels, got \[3, 4\]"):
        Residual([part(), part(dim=4)])
    with pytest.raises(ValueError, match="depth must be a whole number of at least 1, got 2.0"):
        Residual(part(), depth=2.0)
    q = Residual(part(), depth=3)
    with pytest.raises(ValueError, match="first must be a whole number from 1 to 3, got 4"):
        q.decode(torch.zeros(2, 3).long(), first=4)
    with pytest.raises(ValueError, match=r"index must have 3 tokens.*\[2, 2\]"):
        q.decode(torch.zeros(2, 2).long(), first=1)
