"""`code_sums` at the edges of its pieces, with absent codes, skipped rows and sums that cancel."""

import math
import mmap
import random

import pytest
import torch
from support import HAS_NATIVE

import vqkern

BACKENDS = ["torch", *(["cpp"] if HAS_NATIVE else [])]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
native_only = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")


def in_token_order(z, index, k):
    """Counts and float32 sums: Python floats, added one after the other, are float64."""
    count = [0] * k
    total = [[0.0] * z.shape[1] for _ in range(k)]
    for row, code in zip(z.tolist(), index.tolist(), strict=True):
        if code < 0:
            continue
        count[code] += 1
        for d, value in enumerate(row):
            total[code][d] += value
    return torch.tensor(count), torch.tensor(total, dtype=torch.float64).float()


def check(backend, z, index, k):
    count, total = vqkern.code_sums(z, index, k, backend=backend)
    expected_count, expected = in_token_order(z, index, k)
    assert torch.equal(count, expected_count)
    assert torch.equal(total, expected)


@every_backend
@pytest.mark.parametrize("run", [1, 511, 512, 513, 1023, 1024, 1025, 2048])
def test_runs_at_the_edges_of_pieces(backend, run):
    """One run of that length between two others, its tokens scattered."""
    index = torch.cat([torch.full((run,), 3), torch.full((40,), 0), torch.full((513,), 6)])
    index = index[torch.randperm(len(index))]
    check(backend, torch.randn(len(index), 3), index, 8)


@every_backend
def test_few_tokens_of_very_many_codes(backend):
    k = 100_003
    index = torch.tensor([0, k - 1, 5, 256, 255, k - 1, 511, 512, k - 2, -1])
    z = torch.randn(10, 3)
    count, total = vqkern.code_sums(z, index, k, backend=backend)
    assert int(count.sum()) == 9 and int((count > 0).sum()) == 8
    present = index.unique()[1:]
    compact = torch.searchsorted(present, index)
    compact[-1] = -1
    expected_count, expected = in_token_order(z, compact, len(present))
    assert torch.equal(count[present], expected_count) and torch.equal(total[present], expected)
    total[present] = 0
    assert not total.any()


@every_backend
@pytest.mark.parametrize("absent", ["all", "first", "last", "even"])
def test_absent_codes_hold_zeros(backend, absent):
    codes = {"all": [-1], "first": [2, 3, 4], "last": [0, 1, 2], "even": [1, 3]}[absent]
    index = torch.tensor(random.Random(0).choices(codes, k=700))
    check(backend, torch.randn(700, 5), index, 5)


@every_backend
def test_skipped_rows_between_others_hold_anything(backend):
    z = torch.randn(900, 4)
    index = torch.randint(0, 3, (900,))
    index[::3] = -1
    z[::3] = torch.tensor([math.nan, math.inf, -math.inf, 3e38])
    index[0], z[0] = 0, 1.0
    index[-1], z[-1] = -1, math.nan
    check(backend, z, index, 3)


@every_backend
def test_values_that_are_not_finite_stay_in_their_code(backend):
    z = torch.randn(60, 3)
    index = torch.arange(60) % 4
    z[2, 1], z[6, 2] = math.nan, math.inf
    total = vqkern.code_sums(z, index, 4, backend=backend).total
    assert total[2].isfinite().tolist() == [True, False, False]
    assert bool(total[[0, 1, 3]].isfinite().all())


@every_backend
def test_float64_sums_in_token_order(backend):
    """Values from 2^-60 to 2^60: another order, or float32 sums, would give other numbers."""
    values = 2.0 ** torch.randint(-60, 61, (1500, 2)) * torch.randn(1500, 2)
    index = torch.randint(0, 4, (1500,))
    # What cancels leaves the rounding of all that came before.
    z = torch.cat([values, -values.flip(0)])
    check(backend, z, torch.cat([index, index.flip(0)]), 4)


@native_only
@pytest.mark.parametrize("k", [255, 256, 257, 1000])
def test_threads_share_blocks_of_codes(k):
    z, index = torch.randn(5000, 3), torch.randint(-1, k, (5000,))
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        check("cpp", z, index, k)


@native_only
def test_vectors_beyond_two_to_the_31_elements():
    """Only the last four rows have a code; no page before them is read, or takes memory."""
    n, d = (1 << 15) + 4, 1 << 16
    try:
        pages = mmap.mmap(-1, 4 * n * d, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no lazy memory of {4 * n * d} bytes: {error}")
    z = torch.frombuffer(pages, dtype=torch.float32).view(n, d)
    z[-4:, 0] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    index = torch.full((n,), -1)
    index[-4:] = torch.tensor([0, 1, 1, 0])
    count, total = vqkern.code_sums(z, index, 2, backend="cpp")
    assert count.tolist() == [2, 2] and total[:, 0].tolist() == [9, 6]
