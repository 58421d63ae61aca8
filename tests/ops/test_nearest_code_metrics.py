"""`nearest_code` by cosine and in float64, by every kernel of this CPU."""

import math
from fractions import Fraction

import pytest
import torch
from support import HAS_NATIVE, SEARCHES, exact_cosine_order, float64_distances, search

import vqkern


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x.double(), dim=-1)


@pytest.mark.parametrize("which", SEARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestCosine:
    @pytest.mark.parametrize("n,k,d", [(100, 33, 3), (63, 300, 8), (50, 700, 33), (9, 90, 256)])
    def test_the_largest_cosine_whatever_the_lengths(self, which, dtype, n, k, d):
        z = torch.randn(n, d, dtype=dtype) * torch.exp(3 * torch.randn(n, 1))
        codes = torch.randn(k, d, dtype=dtype) * torch.exp(3 * torch.randn(k, 1))
        index, distance = search(which, z, codes, "cosine")
        cosine = unit(z) @ unit(codes).T
        assert distance.dtype == dtype
        assert torch.equal(index, cosine.argmax(-1))
        torch.testing.assert_close(distance, (1 - cosine.amax(-1)).to(dtype), rtol=0, atol=1e-7)

    def test_ties_in_real_arithmetic(self, which, dtype):
        """Codes that are multiples of one another, on a lattice where cosines tie exactly."""
        codes = torch.randint(-2, 3, (150, 3), dtype=dtype)
        codes = codes[codes.any(-1)] * 3 ** torch.randint(0, 4, (len(codes[codes.any(-1)]), 1))
        z = torch.randint(-2, 3, (60, 3), dtype=dtype)
        z = z[z.any(-1)]
        index, _ = search(which, z, codes, "cosine")
        assert index.tolist() == [exact_cosine_order(row, codes.tolist()) for row in z.tolist()]

    def test_near_duplicates_of_one_direction(self, which, dtype):
        base = torch.randn(1, 12, dtype=dtype)
        eps = 1e-6 if dtype == torch.float32 else 1e-15
        codes = base * (1 + eps * torch.randn(90, 12, dtype=dtype))
        z = base * (1 + eps * torch.randn(8, 12, dtype=dtype))
        index, _ = search(which, z, codes, "cosine")
        assert index.tolist() == [exact_cosine_order(row, codes.tolist()) for row in z.tolist()]

    def test_zeros_and_what_is_not_finite(self, which, dtype):
        row = torch.randn(5, dtype=dtype)
        nan, zero = torch.full((5,), math.nan, dtype=dtype), torch.zeros(5, dtype=dtype)
        codes = torch.stack([nan, zero, 2 * row, 4 * row, -row])
        z = torch.stack([row, -row, zero, nan])
        index, distance = search(which, z, codes, "cosine")
        assert index.tolist() == [2, 4, 1, -1]
        assert distance[2:].tolist() == [1, math.inf]
        index, distance = search(which, z, torch.stack([nan, zero, zero]), "cosine")
        assert index.tolist() == [1, 1, 1, -1] and distance[:3].tolist() == [1, 1, 1]
        index, _ = search(which, z, torch.stack([nan, nan]), "cosine")
        assert index.tolist() == [-1] * 4

    def test_lengths_at_the_ends_of_the_range(self, which, dtype):
        limits = torch.finfo(dtype)
        z = torch.randn(20, 4, dtype=dtype)
        codes = torch.randn(40, 4, dtype=dtype)
        expected, _ = search(which, z, codes, "cosine")
        # Powers of two change no bit of the mantissa, and no cosine.
        up = 2.0 ** (math.log2(limits.max) // 1 - 4)
        down = 2.0 ** (math.log2(limits.tiny) // 1 + 30)
        for a, b in ((up, down), (down, up), (up, up)):
            assert torch.equal(search(which, z * a, codes * b, "cosine")[0], expected)


@pytest.mark.parametrize("which", SEARCHES)
class TestFloat64:
    @pytest.mark.parametrize("offset", [0.0, 1e3, 1e9])
    @pytest.mark.parametrize("n,k,d", [(100, 33, 3), (63, 300, 8), (9, 90, 256)])
    def test_no_regret(self, which, offset, n, k, d):
        z = torch.randn(n, d, dtype=torch.float64) + offset
        codes = torch.randn(k, d, dtype=torch.float64) + offset
        index, distance = search(which, z, codes)
        squared = float64_distances(z, codes)
        assert torch.equal(index, squared.argmin(-1))
        torch.testing.assert_close(distance, squared.amin(-1), rtol=1e-13, atol=0)

    def test_values_that_float32_cannot_tell_apart(self, which):
        base = torch.randn(50, 6, dtype=torch.float64)
        codes = base + 1e-12 * torch.randn(50, 6, dtype=torch.float64)
        z = codes[:30] + 1e-14 * torch.randn(30, 6, dtype=torch.float64)
        codes = torch.cat([base, codes])
        assert torch.equal(search(which, z, codes)[0], torch.arange(50, 80))

    def test_permuted_codes_tie_in_real_arithmetic(self, which):
        first = torch.randn(9, dtype=torch.float64)
        codes = torch.stack([first[torch.randperm(9)] for _ in range(40)])
        z = torch.randn(7, 1, dtype=torch.float64).expand(7, 9)
        assert search(which, z, codes)[0].tolist() == [0] * 7

    def test_differences_far_below_float64(self, which):
        """1 + 2^-200 against 1 + 2^-198 in the squared distance."""
        z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        codes = torch.tensor([[0.0, 2.0**-99], [0.0, 2.0**-100]], dtype=torch.float64)
        assert search(which, z, codes)[0].tolist() == [1]

    @pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])
    def test_any_magnitude(self, which, scale):
        z = torch.randn(20, 3, dtype=torch.float64)
        codes = torch.randn(60, 3, dtype=torch.float64)
        expected = float64_distances(z, codes).argmin(-1)
        assert torch.equal(search(which, z * scale, codes * scale)[0], expected)

    def test_one_row_and_one_code_far_out(self, which):
        z = torch.randn(20, 3, dtype=torch.float64)
        codes = torch.randn(60, 3, dtype=torch.float64)
        codes[7], z[4] = 1e200, -1e250
        index, _ = search(which, z, codes)
        scaled = z.clone()
        scaled[4] = -1e100
        others = torch.cat([codes[:7], codes[8:]])
        expected = float64_distances(scaled, others).argmin(-1)
        expected += (expected >= 7).long()
        keep = torch.arange(20) != 4
        assert torch.equal(index[keep], expected[keep])
        # That row's squared distances overflow float64; rationals tell which is the least.
        row = [Fraction(v) for v in z[4].tolist()]
        squared = [
            sum((a - Fraction(b)) ** 2 for a, b in zip(row, code, strict=True))
            for code in codes.tolist()
        ]
        assert index[4] == squared.index(min(squared))


@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
def test_the_public_function_takes_both_to_the_native_module(monkeypatch):
    from vqkern.ops.nearest_code import native

    seen = []
    search_natively = native.search
    monkeypatch.setattr(
        native, "search", lambda *args, **kwargs: seen.append(1) or search_natively(*args, **kwargs)
    )
    z, codes = torch.randn(7, 3), torch.randn(9, 3)
    vqkern.nearest_code(z, codes, metric="cosine")
    result = vqkern.nearest_code(z.double(), codes)
    assert len(seen) == 2 and result.distance.dtype == torch.float64
