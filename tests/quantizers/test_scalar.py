"""FSQ, LFQ and BSQ against their definitions, written out by element."""

import math
import subprocess
import sys
from itertools import product as every

import pytest
import torch

from vqkern.quantizers import BSQ, FSQ, LFQ
from vqkern.quantizers.entropy import bit_entropies


def fsq_value(z, levels, bound):
    """One channel of FSQ in Python's floats."""
    offset = 0.5 if levels % 2 == 0 else 0.0
    if bound == "published":
        half = (levels - 1) * (1 - 1e-3) / 2
        shift = math.tan(offset / half)
    else:
        half = (levels - 1) * (1 + 1e-3) / 2
        shift = math.atanh(offset / half)
    return round(math.tanh(z + shift) * half - offset) / (levels // 2)


class TestFSQ:
    def test_a_saturated_channel_of_many_levels_keeps_to_its_digits(self):
        """With so many levels the centred bound reaches half a step beyond the last value."""
        q = FSQ((1002, 4), bound="centred")
        index = q.encode(torch.tensor([[1e4, 1e4], [-1e4, 1e4]]))
        assert index.tolist() == [1001 + 3 * 1002, 3 * 1002]

    @pytest.mark.parametrize("commitment", [0.0, 0.25])
    def test_quantized_is_what_the_index_decodes_to(self, commitment):
        q = FSQ((5, 6, 7, 8), commitment=commitment)
        z = (3 * torch.randn(50, 4, dtype=torch.float64)).requires_grad_()
        with torch.no_grad():
            z[3, 1] = math.nan
        result = q(z)
        decoded = q.decode(result.index)
        assert torch.equal(result.quantized.float().nan_to_num(9), decoded.nan_to_num(9))
        (result.quantized.nan_to_num().sum() + result.loss).backward()
        assert bool(z.grad.isfinite().all()) and not z.grad[3].any()

    @pytest.mark.parametrize("bound", ["published", "centred"])
    def test_every_channel_by_its_definition(self, bound):
        levels = (2, 3, 4, 5, 8, 9)
        q = FSQ(levels, bound=bound).eval()
        assert q.dim == 6 and q.codebook_size == math.prod(levels)
        z = torch.randn(200, 6) * 3
        quantized, index, _ = q(z)
        for row, got, token in zip(z.tolist(), quantized.tolist(), index.tolist(), strict=True):
            wanted = [fsq_value(v, n, bound) for v, n in zip(row, levels, strict=True)]
            assert got == pytest.approx(wanted, abs=1e-7)
            joint, base = 0, 1
            for value, n in zip(wanted, levels, strict=True):
                joint += base * (round(value * (n // 2)) + n // 2)
                base *= n
            assert token == joint

    @pytest.mark.parametrize("bound", ["published", "centred"])
    @pytest.mark.parametrize("levels", [2, 3, 4, 5, 7, 8, 16])
    def test_every_value_is_reached_and_none_beyond(self, bound, levels):
        q = FSQ([levels], bound=bound).eval()
        z = torch.linspace(-9, 9, 4001)[:, None]
        index = q.encode(z)
        assert index.unique().tolist() == list(range(levels))
        assert bool((index.diff() >= 0).all())
        expected = (torch.arange(levels) - levels // 2) / (levels // 2)
        assert torch.equal(q.codes[:, 0], expected)
        if bound == "centred" or levels % 2:
            assert q(torch.zeros(1, 1)).quantized == 0

    def test_codes_are_in_the_order_of_the_index(self):
        q = FSQ((3, 2, 4))
        rows = [(a, b, c) for c, b, a in every((-2, -1, 0, 1), (-1, 0), (-1, 0, 1))]
        expected = torch.tensor(rows) / torch.tensor([1, 1, 2])
        assert torch.equal(q.codes, expected)

    def test_the_gradient_is_that_of_the_bounded_latent(self):
        levels = torch.tensor([4.0, 5.0])
        q = FSQ((4, 5))
        z = torch.randn(10, 2, requires_grad=True)
        upstream = torch.randn(10, 2)
        (gradient,) = torch.autograd.grad(q(z).quantized, z, upstream)
        half = (levels - 1) * (1 - 1e-3) / 2
        shift = torch.tensor([math.tan(0.5 / half[0]), 0.0])
        slope = half * (1 - (z + shift).tanh() ** 2) / torch.tensor([2.0, 2.0])
        torch.testing.assert_close(gradient, upstream * slope)

    def test_the_commitment_where_it_is_asked_for(self):
        q = FSQ((5, 5), commitment=0.5)
        z = torch.randn(10, 2)
        bounded = (z.tanh() * 2 * (1 - 1e-3)) / 2
        result = q(z)
        expected = 0.5 * (bounded - q.decode(result.index)).square().mean()
        torch.testing.assert_close(result.loss, expected)
        assert FSQ((5, 5))(z).loss == 0

    def test_a_row_that_is_not_finite_gets_no_gradient(self):
        z = torch.tensor([[0.3, 1.0], [math.nan, 1.0], [0.1, math.inf]], requires_grad=True)
        result = FSQ((5, 4), commitment=1.0)(z)
        assert result.index[1:].tolist() == [-1, -1] and bool(result.quantized[1:].isnan().all())
        result.loss.backward()
        assert bool(z.grad[0].all()) and not z.grad[1:].any()

    def test_bfloat16_latents_reach_all_codes(self):
        """Index arithmetic in bfloat16 would reach half of them."""
        q = FSQ((8, 8, 8, 5)).eval()
        z = (torch.rand(60_000, 4) * 5 - 2.5).bfloat16()
        assert len(q.encode(z).unique()) > 0.95 * q.codebook_size
        assert torch.equal(q.bfloat16().encode(z), q.encode(z.float()))

    @pytest.mark.parametrize("levels", [(), (1, 3), (2.0,), (True, 2)], ids=str)
    def test_bad_levels_are_named(self, levels):
        with pytest.raises(ValueError, match="levels must be whole numbers of at least 2"):
            FSQ(levels)

    def test_bad_bound_is_named(self):
        with pytest.raises(ValueError, match="bound must be 'published' or 'centred', got 'tan'"):
            FSQ((3,), bound="tan")


def soft_entropies(u, magnitude, temperature):
    """E H[q] and H[E q] with the softmax over all codes, in float64."""
    bits = torch.tensor(list(every((-1.0, 1.0), repeat=u.shape[1])), dtype=torch.float64)
    squared = (u.double()[:, None] - magnitude * bits[None]).square().sum(-1)
    q = (-squared / temperature).softmax(-1)
    own = -(q * q.clamp_min(1e-300).log()).sum(-1).mean()
    mean = q.mean(0)
    return own, -(mean * mean.clamp_min(1e-300).log()).sum()


class TestBits:
    @pytest.mark.parametrize("dim", [1, 2, 5])
    def test_lfq_is_the_sign(self, dim):
        q = LFQ(dim).eval()
        z = torch.randn(40, dim)
        z[0] = 0.0
        quantized, index, _ = q(z)
        assert torch.equal(quantized, torch.where(z > 0, 1.0, -1.0))
        assert torch.equal(index, sum((z[:, m] > 0).long() << m for m in range(dim)))
        assert index[0] == 0
        nearest = torch.cdist(z[1:], q.codes).argmin(-1)
        assert torch.equal(index[1:], nearest)

    def test_bsq_is_the_sign_on_the_sphere(self):
        q = BSQ(5).eval()
        z = torch.randn(40, 5)
        quantized, index, _ = q(z)
        torch.testing.assert_close(quantized, z.sign() / math.sqrt(5))
        torch.testing.assert_close(quantized.norm(dim=1), torch.ones(40))
        assert torch.equal(index, torch.cdist(z / z.norm(dim=1, keepdim=True), q.codes).argmin(-1))

    def test_gradients(self):
        z = torch.randn(10, 4, requires_grad=True)
        upstream = torch.randn(10, 4)
        (gradient,) = torch.autograd.grad(LFQ(4)(z).quantized, z, upstream)
        assert torch.equal(gradient, upstream)
        (gradient,) = torch.autograd.grad(BSQ(4)(z).quantized, z, upstream)
        (expected,) = torch.autograd.grad(z / z.norm(dim=1, keepdim=True), z, upstream)
        torch.testing.assert_close(gradient, expected)
        zero = torch.zeros(1, 4, requires_grad=True)
        result = BSQ(4, commitment=1.0)(zero)
        (result.quantized.sum() + result.loss).backward()
        assert not zero.grad.any()

    @pytest.mark.parametrize("name,temperature", [("lfq", 0.5), ("lfq", 0.01), ("bsq", 1.0)])
    @pytest.mark.parametrize("dim", [1, 6])
    def test_the_loss_is_that_of_the_softmax_over_all_codes(self, name, temperature, dim):
        make = {"lfq": LFQ, "bsq": BSQ}[name]
        weights = {"entropy_weight": 0.7, "diversity": 1.3, "commitment": 0.2}
        q = make(dim, **weights, temperature=temperature, joint_bits=dim)
        z = torch.randn(30, dim, requires_grad=True)
        result = q(z)
        u = z / z.norm(dim=1, keepdim=True) if name == "bsq" else z
        own, spread = soft_entropies(u, q.magnitude, temperature)
        expected = 0.7 * (own - 1.3 * spread) + 0.2 * (u - q.decode(result.index)).square().mean()
        torch.testing.assert_close(result.loss.double(), expected, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(result.loss, z, retain_graph=True)
        (truth,) = torch.autograd.grad(expected, z)
        torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("bits", [1, 2, 3, 5])
    def test_blocks_of_bits_add_up_and_bound_the_joint_entropy(self, bits):
        logits = torch.randn(50, 5).double()
        valid = torch.rand(50) > 0.3
        logits[~valid] = math.nan
        logits.requires_grad_()
        own, spread = bit_entropies(logits, valid, bits)
        u = logits[valid] / 4
        assert torch.allclose(own, soft_entropies(u, 1.0, 1.0)[0])
        blocks = [soft_entropies(block, 1.0, 1.0)[1] for block in u.split(bits, dim=1)]
        torch.testing.assert_close(spread, sum(blocks))
        assert spread.item() >= soft_entropies(u, 1.0, 1.0)[1].item() - 1e-12
        (gradient,) = torch.autograd.grad(own - spread, logits)
        assert bool(gradient.isfinite().all()) and not gradient[~valid].any()

    def test_entropies_at_the_extremes(self):
        hard = torch.tensor([[900.0, -900.0], [-900.0, 900.0]], requires_grad=True)
        own, spread = bit_entropies(hard, torch.ones(2, dtype=torch.bool), 2)
        assert own == 0 and spread.item() == pytest.approx(math.log(2))
        (gradient,) = torch.autograd.grad(own - spread, hard)
        assert bool(gradient.isfinite().all())
        none = bit_entropies(hard, torch.zeros(2, dtype=torch.bool), 2)
        assert none == (0, 0)

    @pytest.mark.parametrize(
        "make",
        [
            "from vqkern.quantizers import LFQ; q = LFQ(18, temperature=0.5)",
            "from vqkern.interop.vector_quantize_pytorch import LFQ\n"
            "q = LFQ(dim=18, codebook_size=2**18)",
        ],
        ids=["grid", "interop"],
    )
    def test_memory_never_holds_tokens_by_codes(self, make):
        """2,000 x 2^18 float32 would be 2 GB."""
        script = (
            f"import resource, torch\n{make}\n"
            "def step(n): q(torch.randn(1, n, 18, requires_grad=True))[2].backward()\n"
            "step(2)\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "step(2000)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 64 * 1024  # KiB

    def test_weight_zero_leaves_the_entropies_out(self):
        assert LFQ(4, entropy_weight=0.0, commitment=0.0)(torch.randn(5, 4)).loss == 0

    def test_many_bits(self):
        q = LFQ(40, joint_bits=10).eval()
        z = torch.randn(9, 40)
        index = q(z).index
        assert q.codebook_size == 2**40 and torch.equal(q.decode(index), z.sign())
        assert len(q.usage()) == 40 and q.usage()[7].codes_hit <= 2
        with pytest.raises(ValueError, match=r"codes would be a table of 1099511627776.*2\^24"):
            _ = q.codes
        with pytest.raises(ValueError, match="BSQ: a joint index.*does not fit in int64"):
            BSQ(64)

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
            ({"temperature": 0}, "temperature must be positive, got 0"),
            ({"entropy_weight": -1}, "entropy_weight must be a finite number.*-1"),
            ({"joint_bits": 25}, "joint_bits must be a whole number from 1 to 24, got 25"),
        ],
        ids=str,
    )
    def test_bad_arguments_are_named(self, options, message):
        for make in (LFQ, BSQ):
            with pytest.raises(ValueError, match=message):
                make(**{"dim": 4, **options})
