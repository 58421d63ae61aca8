"""Row passes in C++ against the same in plain PyTorch, at any number of threads."""

import math

import pytest
import torch
from support import HAS_NATIVE
from torch.utils._python_dispatch import TorchDispatchMode

import vqkern
from vqkern.ops import rows
from vqkern.quantizers.base import _masked_mse_op, masked_mse, two_pulls
from vqkern.quantizers.entropy import _bit_entropies_backward, _bit_entropies_op
from vqkern.quantizers.joint_index import _join_index

needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native module was not built")
SIZES = [(0, 3), (1, 1), (63, 16), (700, 5), (300, 100)]


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def plain(monkeypatch, function, *arguments):
    """What `function` gives without the native module."""
    with monkeypatch.context() as patch:
        patch.setattr(rows, "runs_natively", lambda *_: False)
        return function(*arguments)


def some_bad(n, d):
    z = torch.randn(n, d)
    for row, value in zip(range(0, n, 7), (math.nan, math.inf, -math.inf, 0.0) * n, strict=False):
        if value == 0:
            z[row] = 0
        else:
            z[row, -1] = value
    return z


@needs_native
@pytest.mark.parametrize("n,d", SIZES)
class TestAgainstPlain:
    def test_taken_rows(self, n, d, threads, monkeypatch):
        codes, index = torch.randn(9, d), torch.randint(-1, 9, (n,))
        taken = rows.take_rows(codes, index)
        wanted = plain(monkeypatch, rows.take_rows, codes, index)
        assert torch.equal(taken.nan_to_num(7), wanted.nan_to_num(7))
        assert torch.equal(taken.isnan(), wanted.isnan())
        wide = torch.randn(9, 2 * d)[:, ::2]
        expected = plain(monkeypatch, rows.take_rows, wide, index)
        assert torch.equal(rows.take_rows(wide, index).nan_to_num(7), expected.nan_to_num(7))

    def test_digits(self, n, d, threads, monkeypatch):
        sizes = ([2, 5, 1, 8, 3] * 20)[: min(d, 16)]
        digits = torch.stack([torch.randint(-1 if m == 1 else 0, s, (n,)) for m, s in
                              enumerate(sizes)], -1)  # fmt: skip
        joint = rows.join_digits(digits, sizes)
        assert torch.equal(joint, plain(monkeypatch, rows.join_digits, digits, sizes))
        back = rows.split_digits(joint, sizes)
        assert torch.equal(back, plain(monkeypatch, rows.split_digits, joint, sizes))
        assert torch.equal(back[joint >= 0], digits[joint >= 0])

    def test_unit_rows_and_their_gradient(self, n, d, threads, monkeypatch):
        z = some_bad(n, d) * 10.0 ** torch.randint(-30, 30, (n, 1))
        unit, largest, norm = rows.unit_rows(z)
        wanted = plain(monkeypatch, rows.unit_rows, z)
        for ours, theirs in zip((unit, largest, norm), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, equal_nan=True)
        grad = torch.randn(n, d)
        slope = rows.unit_rows_slope(grad, unit, largest, norm)
        wanted = plain(monkeypatch, rows.unit_rows_slope, grad, unit, largest, norm)
        scale = largest.reciprocal()
        torch.testing.assert_close(slope / scale, wanted / scale, rtol=1e-4, atol=1e-5)

    def test_masked_difference(self, n, d, threads, monkeypatch):
        a, b = some_bad(n, d), torch.randn(n, 2 * d)[:, :d]  # rows of b lie apart
        valid = a.isfinite().all(-1)
        difference, total, count = rows.masked_difference(a, b, valid)
        wanted = plain(monkeypatch, rows.masked_difference, a.double(), b.double(), valid)
        assert torch.equal(difference, torch.where(valid[:, None], a - b, 0))
        torch.testing.assert_close(total.double(), wanted[1], rtol=1e-5, atol=1e-6)
        assert count == valid.sum()

    def test_bit_strings_and_their_gradient(self, n, d, threads, monkeypatch):
        wide = 3 * torch.randn(n, d + 4)
        logits, valid = wide[:, : min(d, 9)], torch.rand(n) > 0.2
        wide[~valid] = math.nan
        strings = rows.bit_strings(logits, valid)
        torch.testing.assert_close(
            strings, plain(monkeypatch, rows.bit_strings, logits, valid), rtol=1e-5, atol=1e-30
        )
        assert torch.allclose(strings.sum(1), valid.float())
        grad, outs = torch.randn_like(strings), [torch.full_like(wide, 5.0) for _ in range(2)]
        parts = [out[:, : logits.shape[1]] for out in outs]
        rows.bit_strings_slope(logits, valid, strings, grad.clone(), parts[0])
        plain(monkeypatch, rows.bit_strings_slope, logits, valid, strings, grad.clone(), parts[1])
        torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-6)
        assert not parts[0][~valid].any() and bool((outs[0][:, logits.shape[1] :] == 5).all())

    def test_bit_entropy(self, n, d, threads, monkeypatch):
        logits, valid = 50 * torch.randn(n, d), torch.rand(n) > 0.2
        logits[~valid] = math.nan
        wanted = plain(monkeypatch, rows.bit_entropy, logits.double(), valid)
        torch.testing.assert_close(
            rows.bit_entropy(logits, valid).double(), wanted, rtol=1e-6, atol=1e-7
        )

    def test_ema_step(self, n, d, threads, monkeypatch):
        total, count = some_bad(n, d), torch.randint(0, 3, (n,)).float()
        total[count == 0] = 0
        state = torch.rand(n) + 0.1, torch.randn(n, d), torch.randn(n, d)
        ours, theirs = ([t.clone() for t in state] for _ in range(2))
        if n:
            ours[1][0, 0] = theirs[1][0, 0] = 3e38  # over a small count: not finite
            ours[0][0] = theirs[0][0] = 1e-6
        rows.ema_step(count, total, 0.1, *ours)
        plain(monkeypatch, rows.ema_step, count, total, 0.1, *theirs)
        for mine, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
        assert bool(ours[2].isfinite().all())


@needs_native
def test_results_do_not_depend_on_threads():
    a, b, valid = torch.randn(5000, 16), torch.randn(5000, 16), torch.rand(5000) > 0.1
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        seen.append((rows.masked_difference(a, b, valid)[1], rows.bit_entropy(a, valid)))
    torch.set_num_threads(1)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("wrong,place", [(9, 700), (-2, 0)])
def test_the_first_index_out_of_range_is_named(wrong, place):
    index = torch.randint(0, 9, (3, 300))
    index.view(-1)[place] = wrong
    position = [place // 300, place % 300]
    with pytest.raises(IndexError, match=rf"op: index\[{position[0]}, {position[1]}\] is {wrong}"):
        rows.require_in_range("op", index, 9)
    rows.require_in_range("op", torch.tensor([2**63 - 1]), 2**63)


def test_two_pulls_are_two_losses():
    z = torch.randn(40, 3, requires_grad=True)
    codes = torch.randn(40, 3, requires_grad=True)
    valid = torch.rand(40) > 0.3
    loss = two_pulls(z, codes, valid, 0.25, 2.0)
    separate = 0.25 * masked_mse(z, codes.detach(), valid)
    separate = separate + 2 * masked_mse(z.detach(), codes, valid)
    torch.testing.assert_close(loss, separate)
    pairs = (torch.autograd.grad(x, (z, codes)) for x in (loss, separate))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)
    (slope,) = torch.autograd.grad(masked_mse(z, codes.detach(), valid), z, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative|autograd|implemented|grad"):
        torch.autograd.grad(slope.sum(), z)
    scaled = masked_mse(z, codes.detach(), valid) * z.mean()
    (slope,) = torch.autograd.grad(scaled, z, create_graph=True)
    with pytest.raises(RuntimeError, match="masked_mse_backward.*no autograd formula"):
        torch.autograd.grad(slope.sum(), z)


class Watched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.seen.add(function.name())
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", ["vanilla_vp2", "bsq"])
def test_what_is_watched_is_an_operator_and_has_the_same_bits(name):
    quantizer = vqkern.build_quantizer(name, dim=8, codebook_size=256)
    z = torch.randn(200, 8)

    def step():
        latents = z.clone().requires_grad_()
        result = quantizer(latents)
        (result.quantized.sum() + result.loss).backward()
        return result.quantized.detach(), result.loss.detach(), latents.grad

    plain = step()
    with Watched() as watched:
        seen = step()
    for one, other in zip(plain, seen, strict=True):
        assert torch.equal(one, other)
    wanted = {"vanilla_vp2": ("masked_mse", "take_codes"), "bsq": ("on_sphere", "bit_entropies")}
    expected = {f"vqkern::{op}" for op in wanted[name]}
    assert {name.split(".")[0] for name in watched.seen} >= expected


def test_they_are_proper_ops():
    a, b, valid = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4), torch.rand(6) > 0.3
    for op, arguments in (
        (_masked_mse_op, (a, b, valid, 1.0, 1.0, 1.0)),
        (_bit_entropies_op, (a, valid, 3, 0.0)),
        (_bit_entropies_op, (a, valid, 1, 0.0)),
        (_join_index, (torch.randint(0, 2, (5, 3)), [2, 2, 2])),
    ):
        torch.library.opcheck(op, arguments)
    means = _bit_entropies_op(a, valid, 3, 0.0)[2].detach()
    one = torch.ones(())
    torch.library.opcheck(_bit_entropies_backward, (one, one, a.detach(), valid, means, 3, 0.0))
