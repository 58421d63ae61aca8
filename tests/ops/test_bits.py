"""Passes over bits in C++ against the same in plain PyTorch, at any number of threads."""

import math

import pytest
import torch
from passes import SIZES, needs_native, plain

from vqkern.ops import bits
from vqkern.quantizers.rounding import sign_values


@needs_native
@pytest.mark.parametrize("n,d", SIZES)
class TestAgainstPlain:
    def test_signs(self, n, d, threads, monkeypatch):
        d = min(d, 63)
        z = torch.randn(2 * d, n).T[:, ::2]
        z[torch.rand(n, d) < 0.1] = 0.0
        for row, value in zip(range(0, n, 7), (math.nan, math.inf, -math.inf) * n, strict=False):
            z[row, d // 2] = value
        index = bits.sign_index(z)
        assert torch.equal(index, plain(monkeypatch, bits.sign_index, z))
        finite = z.isfinite().all(-1)
        assert torch.equal(index >= 0, finite)
        values = bits.sign_values(index, d, 0.75)
        wanted = plain(monkeypatch, bits.sign_values, index, d, 0.75)
        torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
        assert bool(values[~finite].isnan().all())
        assert torch.equal(values[finite] > 0, z[finite] > 0)
        assert bool((values[finite].abs() == 0.75).all())

    def test_bit_strings_and_their_gradient(self, n, d, threads, monkeypatch):
        wide = 3 * torch.randn(n, d + 4)
        logits, valid = wide[:, : min(d, 9)], torch.rand(n) > 0.2
        wide[~valid] = math.nan
        strings = bits.bit_strings(logits, valid)
        torch.testing.assert_close(
            strings, plain(monkeypatch, bits.bit_strings, logits, valid), rtol=1e-5, atol=1e-30
        )
        assert torch.allclose(strings.sum(1), valid.float())
        grad, outs = torch.randn_like(strings), [torch.full_like(wide, 5.0) for _ in range(2)]
        parts = [out[:, : logits.shape[1]] for out in outs]
        bits.bit_strings_slope(logits, valid, strings, grad.clone(), parts[0])
        plain(monkeypatch, bits.bit_strings_slope, logits, valid, strings, grad.clone(), parts[1])
        torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-6)
        assert not parts[0][~valid].any() and bool((outs[0][:, logits.shape[1] :] == 5).all())

    def test_bit_entropy(self, n, d, threads, monkeypatch):
        logits, valid = 50 * torch.randn(n, d), torch.rand(n) > 0.2
        logits[~valid] = math.nan
        wanted = plain(monkeypatch, bits.bit_entropy, logits.double(), valid)
        torch.testing.assert_close(
            bits.bit_entropy(logits, valid).double(), wanted, rtol=1e-6, atol=1e-7
        )


@needs_native
def test_results_do_not_depend_on_threads():
    logits, valid = torch.randn(5000, 16), torch.rand(5000) > 0.1
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        seen.append(bits.bit_entropy(logits, valid))
    torch.set_num_threads(1)
    assert seen[0] == seen[1] == seen[2]


def test_more_bits_than_an_index_has_are_refused():
    with pytest.raises(ValueError, match="sign_index: rows must have at most 63 channels, got 64"):
        bits.sign_index(torch.ones(2, 64))


@pytest.mark.parametrize("wrong", [-2, 8])
def test_an_index_that_is_not_that_of_a_code_is_named(wrong):
    with pytest.raises(IndexError, match=rf"sign_values: index\[1\] is {wrong}.*\[0, 8\)"):
        sign_values(torch.tensor([0, wrong]), 3, 1.0)
