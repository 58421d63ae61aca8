"""`nearest_code` in C++ where many codes, or many rows, are equal: one of each kind is searched."""

import math

import pytest
import torch
from support import HAS_NATIVE, SEARCH_KERNELS

from vqkern.ops.nearest_code import native, reference

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
every_kernel = pytest.mark.parametrize("kernel", SEARCH_KERNELS)


def repeated(kinds, count, how):
    """`count` vectors of a few kinds, and the first place of the kind of each."""
    n = len(kinds)
    which = {
        "in turns": torch.arange(count) % n,
        "side by side": (torch.arange(count) * n // count).clamp_max(n - 1),
        "anywhere": torch.randint(n, (count,)),
        "one of most": torch.where(torch.rand(count) < 0.9, 0, torch.arange(count) % n),
    }[how]
    first = torch.stack([(which == kind).nonzero()[0, 0] for kind in which.tolist()])
    return kinds[which], first


HOW = ["in turns", "side by side", "anywhere", "one of most"]


@every_kernel
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_codes_have_the_index_of_the_first(kernel, how, metric, dtype):
    codes, first = repeated(torch.randn(37, 5, dtype=dtype), 900, how)
    z = torch.randn(50, 5, dtype=dtype)
    index, distance, counts = native.search(z, codes, kernel, metric)
    expected, true = reference.nearest_code(z, codes, metric)
    assert torch.equal(index, expected) and torch.equal(first[index], index)
    torch.testing.assert_close(distance, true.to(dtype), rtol=1e-6, atol=1e-6)
    assert counts["certified"] + counts["scanned"] == 50


@every_kernel
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_repeated_rows_have_one_answer(kernel, how, metric):
    kinds = torch.randn(37, 6)
    kinds[3] = 0
    z, _ = repeated(kinds, 700, how)
    z[5] = math.nan
    codes = torch.randn(600, 6)
    index, distance, counts = native.search(z, codes, kernel, metric)
    # Each beside two others, too few to be looked through for equals.
    for row in range(0, 700, 31):
        alone = native.search(
            torch.cat([z[row : row + 1], torch.randn(2, 6)]), codes, kernel, metric
        )
        assert int(alone[0][0]) == int(index[row])
        assert torch.equal(alone[1][0], distance[row])
    assert counts["invalid"] == 1 and counts["certified"] + counts["scanned"] == 699


@every_kernel
def test_rows_of_zeros_among_codes_of_one_length_are_scanned_once(kernel):
    """No screen tells such codes apart; the rows count as scanned all the same."""
    codes = torch.nn.functional.normalize(torch.randn(3000, 8), dim=1)
    z = torch.zeros(400, 8)
    z[::2] = codes[:200] * 0.9
    index, distance, counts = native.search(z, codes, kernel)
    exact = codes.double().square().sum(1)
    assert index[::2].tolist() == list(range(200))
    assert torch.equal(index[1::2], exact.argmin().expand(200))
    torch.testing.assert_close(distance[1::2].double(), exact.min().expand(200), rtol=1e-6, atol=0)
    assert counts["scanned"] == 200 and counts["certified"] == 200


@every_kernel
@pytest.mark.parametrize("value", [0.0, 1.5, math.nan, math.inf])
def test_all_codes_equal(kernel, value):
    index, distance, counts = native.search(
        torch.randn(40, 7), torch.full((5000, 7), value), kernel
    )
    assert index.tolist() == [0 if math.isfinite(value) else -1] * 40
    assert bool(distance.isfinite().all()) == math.isfinite(value)
    assert counts["certified"] + counts["scanned"] == 40


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_of_either_sign_are_equal(kernel, dtype):
    codes = torch.where(torch.rand(4000, 30) < 0.5, 0.0, -0.0).to(dtype)  # no two alike in signs
    codes[0] = 9.0
    index, distance, counts = native.search(torch.randn(30, 30, dtype=dtype), codes, kernel)
    assert index.tolist() == [1] * 30 and bool(distance.isfinite().all())
    # Were they no repeats, all would have to be measured, and the rows left to the scan.
    assert counts["certified"] == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_codes_that_differ_in_signs_alone(dtype):
    """With few hashes for them, each would be compared with most others: minutes."""
    k, d = 1 << 16, 17
    codes = (2 * ((torch.arange(k)[:, None] >> torch.arange(d)) & 1) - 1).to(dtype)
    codes[: k // 16] = codes[-1].clone()
    z = codes[[5, -1, -2, 40_000]] * 0.5
    assert native.search(z, codes)[0].tolist() == [0, 0, k - 2, 40_000]


@every_kernel
@pytest.mark.parametrize("times", [7, 8, 40])
def test_a_few_equal_codes_beside_many_others(kernel, times):
    """On both sides of what counts as many."""
    codes = torch.randn(40 * 64, 5)
    codes[:times] = codes[3].clone()
    z = torch.cat([codes[3:4] + 1e-3 * torch.randn(20, 5), torch.randn(20, 5)])
    index, distance, _ = native.search(z, codes, kernel)
    expected, true = reference.nearest_code(z, codes, "l2")
    assert torch.equal(index, expected) and bool((index[:20] == 0).all())
    torch.testing.assert_close(distance, true.float(), rtol=1e-6, atol=1e-6)
