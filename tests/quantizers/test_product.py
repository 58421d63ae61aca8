"""Halves, groups and products against plain loops, and MGVQ against the released program."""

import math
from itertools import product as every
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vqkern
from vqkern.quantizers import EMA, Groups, Halves, Product, Table, VectorQuantizer
from vqkern.quantizers.joint_index import JointCounter, join_index, joint_size, split_index

GOLDEN = Path(__file__).parents[1] / "data" / "structures.safetensors"


def golden(case):
    tensors = load_file(GOLDEN)
    return {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(case + "/")}


@torch.no_grad()
def nearest(row, table):
    """Index of the nearest code of one row, in float64."""
    squared = [float((row.double() - code.double()).square().sum()) for code in table]
    return squared.index(min(squared))


def quantizers(*shapes, **options):
    return [VectorQuantizer(Table(k, d), **options) for k, d in shapes]


def test_halves_are_two_searches():
    q = Halves(quantizers((11, 3), (7, 3)))
    z = torch.randn(9, 6)
    result = q(z)
    expected = [[nearest(row[:3], q.codes[0]), nearest(row[3:], q.codes[1])] for row in z]
    assert result.index.tolist() == expected
    loss = 0.0
    for half, part in enumerate(q.parts):
        own = z[:, 3 * half : 3 * half + 3]
        error = (own - part.codes[result.index[:, half]]).square().mean()
        loss += 1.25 * float(error.detach()) / 2
    assert float(result.loss.detach()) == pytest.approx(loss, rel=1e-5)
    assert [u.tokens for u in q.usage()] == [9, 9]
    assert q.codebook_size == 11


def test_groups_need_not_be_equally_wide():
    q = Groups(quantizers((5, 1), (6, 4), (7, 2))).eval()
    z = torch.randn(8, 7)
    expected = [
        [nearest(r[:1], q.codes[0]), nearest(r[1:5], q.codes[1]), nearest(r[5:], q.codes[2])]
        for r in z
    ]
    assert q.encode(z).tolist() == expected
    assert torch.equal(
        q(z).quantized,
        torch.stack([torch.cat([q.codes[g][k] for g, k in enumerate(row)]) for row in expected]),
    )


def test_a_product_is_the_nearest_of_all_its_codes():
    q = Product(quantizers((3, 2), (5, 1), (4, 3))).eval()
    assert q.codebook_size == 60 and q.dim == 6
    table = q.decode(torch.arange(60))
    for t, (k3, k2, k1) in enumerate(every(range(4), range(5), range(3))):
        assert t == k1 + 3 * k2 + 3 * 5 * k3  # unifying view eq. 5, from 0
        assert torch.equal(table[t], torch.cat([q.codes[0][k1], q.codes[1][k2], q.codes[2][k3]]))
    z = torch.randn(40, 6)
    index = q(z).index
    assert index.tolist() == [nearest(row, table) for row in z]
    counts = torch.bincount(index, minlength=60)
    assert q.usage().codes_hit == int((counts > 0).sum())
    frequency = counts[counts > 0] / 40
    assert q.usage().perplexity == pytest.approx(
        math.exp(-float((frequency * frequency.log()).sum()))
    )
    q.reset_usage()
    assert q.usage() == (0, 0, 0.0, 0.0, 60, 0)


def test_a_product_of_products_has_one_token():
    inner = [Product(quantizers((3, 2), (5, 2))) for _ in range(2)]
    q = Product(inner).eval()
    assert q.codebook_size == 225 and q.factors == [3, 5, 3, 5]
    z = torch.randn(20, 8)
    own = [part.encode(half) for part, half in zip(q.parts, z.split(4, -1), strict=True)]
    assert torch.equal(q.encode(z), own[0] + 15 * own[1])


@pytest.mark.parametrize(
    "sizes", [(2,), (7, 1, 3), (1, 1), (2,) * 63, (2**31, 2**32), (2**62, 2, 1), (3**20, 3**19)]
)
def test_joint_indices_are_exact_to_the_end_of_int64(sizes):
    total = math.prod(sizes)
    assert joint_size("test", sizes) == total <= 2**63
    wanted = [0, 1, total // 2, total - 2, total - 1]
    wanted = [w for w in wanted if 0 <= w < total]
    rows = []
    for w in wanted:  # in Python's integers
        digits = []
        for n in sizes:
            digits.append(w % n)
            w //= n
        rows.append(digits)
    digits = torch.tensor(rows)
    assert join_index(digits, sizes).tolist() == wanted
    assert torch.equal(split_index(torch.tensor(wanted), sizes), digits)
    assert split_index(torch.tensor([-1]), sizes).tolist() == [[-1] * len(sizes)]
    digits[0, -1] = -1
    assert join_index(digits, sizes)[0] == -1


def test_a_joint_index_beyond_int64_is_refused():
    with pytest.raises(ValueError, match="64-bit|does not fit in int64; at most 2"):
        joint_size("Product", (2**32, 2**32))
    with pytest.raises(ValueError, match="FSQ: a joint index of .*does not fit in int64"):
        vqkern.quantizers.FSQ([3] * 40)
    for wrong in (15, -2):
        with pytest.raises(IndexError, match=rf"index\[1\] is {wrong}; .*\[0, 15\), or -1"):
            split_index(torch.tensor([0, wrong]), (3, 5))


def test_split_index_is_a_proper_op():
    index = torch.tensor([[0, 14], [-1, 7]])
    torch.library.opcheck(torch.ops.vqkern.split_index, (index, [3, 5]))


def test_usage_above_two_to_the_24_is_by_digit():
    small, large = JointCounter((2**12, 2**12)), JointCounter((2**12, 2**12, 2))
    assert small.joint and not large.joint
    assert sum(b.numel() for b in large.buffers()) < 10_000
    digits = torch.randint(2**12, (50, 3))
    digits[:, 2] %= 2
    counted = torch.rand(50) > 0.2
    large.add(join_index(digits, large.sizes), counted)
    usages = large.usage()
    assert [u.tokens for u in usages] == [int(counted.sum())] * 3
    assert [u.codes_hit for u in usages] == [len(d.unique()) for d in digits[counted].T]
    large.reset()
    assert [u.tokens for u in large.usage()] == [0, 0, 0]


def test_ema_parts_move_by_their_own_features():
    q = Halves([VectorQuantizer(Table(4, 2), update=EMA(0.5)) for _ in range(2)])
    before = [codes.clone() for codes in q.codes]
    z = torch.randn(30, 4)
    index = q(z).index
    for half in range(2):
        own = z[:, 2 * half : 2 * half + 2]
        for k in range(4):
            mine = own[index[:, half] == k]
            moved = (before[half][k] + mine.sum(0)) / (1 + len(mine))
            expected = moved if len(mine) else before[half][k]
            torch.testing.assert_close(q.codes[half][k], expected)


class TestNestedMasking:
    def build(self, probabilities, groups=4):
        return Groups(quantizers(*[(6, 2)] * groups), keep_probabilities=probabilities)

    def test_defaults(self):
        default = vqkern.quantizers.default_keep_probabilities
        assert default(4) == pytest.approx((0.1, 0.1, 0.1, 0.7))
        for groups in (1, 2, 3, 8, 16):
            assert len(default(groups)) == groups and sum(default(groups)) == pytest.approx(1)
        q = vqkern.build_quantizer("mgvq", dim=16, codebook_size=9, groups=8)
        assert q.keep_probabilities == default(8)

    def test_the_draw_has_the_given_distribution(self):
        probabilities = (0.2, 0.0, 0.5, 0.3)
        keep = self.build(probabilities).draw_keep(20_000)
        share = [float((keep == m).float().mean()) for m in range(1, 5)]
        assert share == pytest.approx(probabilities, abs=0.02) and share[1] == 0
        assert len(self.build(probabilities).draw_keep(0)) == 0
        with pytest.raises(ValueError, match="draw_keep needs keep_probabilities"):
            self.build(None).draw_keep(3)

    def test_samples_keep_their_first_groups_and_all_tokens_and_losses(self):
        q = self.build((0.25,) * 4)
        z = torch.randn(5, 3, 8, requires_grad=True)
        keep = torch.tensor([4, 1, 3, 2, 0])
        masked, whole = q(z, keep=keep), q(z, keep=4)
        assert torch.equal(masked.index, whole.index) and torch.equal(masked.loss, whole.loss)
        (gradient,) = torch.autograd.grad(masked.quantized.sum(), z)
        for sample, m in enumerate(keep.tolist()):
            kept, dropped = slice(0, 2 * m), slice(2 * m, 8)
            assert torch.equal(masked.quantized[sample, :, kept], whole.quantized[sample, :, kept])
            assert not masked.quantized[sample, :, dropped].any()
            assert bool((gradient[sample, :, kept] == 1).all())
            assert not gradient[sample, :, dropped].any()
        decoded = q.decode(masked.index, first=keep)
        torch.testing.assert_close(decoded, masked.quantized)

    def test_training_draws_eval_keeps_all(self):
        q = self.build((1.0, 0.0, 0.0, 0.0))
        z = torch.randn(5, 8)
        assert not q(z).quantized[:, 2:].any()
        assert bool(q.eval()(z).quantized[:, 2:].any())

    def test_all_groups_can_be_dropped_beyond_the_fourth_too(self):
        q = self.build((0.0,) * 5 + (1.0, 0.0, 0.0), groups=8)
        quantized = q(torch.randn(3, 16)).quantized
        assert not quantized[:, 12:].any() and bool(quantized[:, :12].any(1).all())

    def test_masked_positions_still_pass_through(self):
        q = self.build((1.0, 0.0, 0.0, 0.0))
        z = torch.randn(2, 3, 8)
        mask = torch.tensor([[True, False, True], [True, True, False]])
        quantized = q(z, mask).quantized
        assert torch.equal(quantized[~mask], z[~mask]) and not quantized[mask][:, 2:].any()

    def test_bad_keep_is_named(self):
        q = self.build(None)
        with pytest.raises(ValueError, match="keep must be a whole number from 0 to 4, got 5"):
            q(torch.ones(2, 8), keep=5)
        with pytest.raises(ValueError, match=r"keep must have shape \[2\].*got \[3\]"):
            q(torch.ones(2, 8), keep=torch.ones(3).long())
        with pytest.raises(TypeError, match="keep must be an integer"):
            q(torch.ones(2, 8), keep=torch.ones(2))


def test_the_released_mgvq():
    """Codes and latents on the sphere, four groups: released indices, outputs and gradients."""
    g = golden("mgvq")
    q = vqkern.build_quantizer(
        "vanilla_sphere_groups",
        dim=32,
        codebook_size=64,
        groups=4,
        channel_dim=1,
        codebook_weight=0.0,
    )
    q.load_codes(g["codes"].split(64))
    z = g["z"].requires_grad_()
    result = q.eval()(z)
    assert torch.equal(result.index.reshape(-1, 4), g["indices"])
    torch.testing.assert_close(result.quantized, g["z_q"], rtol=0, atol=1e-6)
    for first in range(5):
        partial = q.decode(result.index, first=first)
        torch.testing.assert_close(partial, g[f"partial.{first}"], rtol=0, atol=1e-6)
    commitment = q.train()(z).loss
    torch.testing.assert_close(commitment, g["train_commit_loss"].mean(), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(commitment, z)  # of the mean over groups, there of the sum
    torch.testing.assert_close(4 * gradient, g["grad_commit.z"], rtol=1e-4, atol=1e-9)
    for part in q.parts:
        part.parts[0].update.weight, part.parts[0].commitment = 1.0, 0.0
    torch.testing.assert_close(q(z).loss, g["train_vq_loss"].mean(), rtol=1e-5, atol=0)


def test_the_sphere_at_its_edges():
    from vqkern.quantizers.sphere import on_sphere

    z = torch.tensor([[3.0, 4.0], [0, 0], [1e30, 0], [1e-30, 1e-30], [math.inf, 1], [math.nan, 1]])
    z.requires_grad_()
    unit = on_sphere(z)
    half = math.sqrt(0.5)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [1, 0], [half, half]])
    torch.testing.assert_close(unit[:4], expected)
    assert bool(unit[4:].isnan().all())
    (gradient,) = torch.autograd.grad(torch.nan_to_num(unit[:, 0]).sum(), z)
    torch.testing.assert_close(gradient[0], torch.tensor([0.16 / 1.25, -0.12 / 1.25]))
    assert not gradient[[1, 4, 5]].any()
    assert torch.autograd.gradcheck(on_sphere, torch.randn(3, 5, requires_grad=True).double())
