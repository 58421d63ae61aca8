"""Row passes in C++ against the same in plain PyTorch, at any number of threads."""

import math

import pytest
import torch
from passes import SIZES, needs_native, plain

from vqkern.ops import rows


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

    def test_squared_difference(self, n, d, threads, monkeypatch):
        a, b = some_bad(n, d), torch.randn(n, 2 * d)[:, :d]  # rows of b lie apart
        valid = a.isfinite().all(-1)
        through = torch.empty(n, d)
        total, count = rows.squared_difference(a, b, valid, through)
        assert torch.equal(total, rows.squared_difference(a, b, valid)[0])
        assert torch.equal(through[valid], (a + (b - a))[valid])
        assert bool((through[~valid] - through[~valid] != 0).any(-1).all())
        wanted, _ = plain(monkeypatch, rows.squared_difference, a.double(), b.double(), valid)
        torch.testing.assert_close(total.double(), wanted, rtol=1e-5, atol=1e-6)
        assert count == valid.sum()

    @pytest.mark.parametrize("sides", [(3.0, 5.0), (3.0, None), (None, 5.0)])
    @pytest.mark.parametrize("passes", [False, True])
    def test_pull_slopes(self, n, d, threads, sides, passes, monkeypatch):
        a, b = some_bad(n, d), torch.randn(n, 2 * d)[:, :d]
        valid = a.isfinite().all(-1)
        factors = [None if side is None else torch.tensor(side) for side in sides]
        passing = torch.randn(d, n).T if passes else None
        ours = rows.pull_slopes(a, b, valid, factors, passing)
        wanted = plain(monkeypatch, rows.pull_slopes, a, b, valid, factors, passing)
        for slope, other, side in zip(ours, wanted, sides, strict=True):
            assert slope.shape == ((0,) if side is None else (n, d))
            assert torch.equal(slope, other)
        if sides[0] is not None:
            left = 0 if passing is None else passing[~valid]
            assert bool((ours[0][~valid] == left).all())

    def test_counted_codes(self, n, d, threads, monkeypatch):
        index, counted = torch.randint(-1, 5, (n, 2))[:, 1], torch.rand(n) > 0.3
        ours, theirs = torch.ones(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)
        skipped, their_skipped = torch.tensor(3), torch.tensor(3)
        rows.count_codes(index, counted, ours, skipped)
        plain(monkeypatch, rows.count_codes, index, counted, theirs, their_skipped)
        assert skipped == their_skipped == 3 + (counted & (index < 0)).sum()
        assert torch.equal(ours, theirs)
        assert int(ours.sum()) - 5 + skipped - 3 == int(counted.sum())

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
        seen.append(rows.squared_difference(a, b, valid)[0])
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


@needs_native
def test_a_code_that_is_not_there_is_not_counted():
    hits, skipped = torch.zeros(4, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    with pytest.raises(IndexError, match=r"count_codes: index\[1\] is 4; it must be below 4"):
        rows.count_codes(torch.tensor([3, 4]), torch.ones(2, dtype=torch.bool), hits, skipped)
    assert not hits.any()


@pytest.mark.parametrize("wrong", [0, 2, 3])
def test_counts_are_whole_numbers(wrong):
    """C++ would read and write memory of another type."""
    index, hits, skipped = torch.tensor([1]), torch.zeros(4).long(), torch.zeros(()).long()
    arguments = [index, torch.ones(1, dtype=torch.bool), hits, skipped]
    arguments[wrong] = arguments[wrong].float()
    with pytest.raises(TypeError, match="must be int64, got torch.float32"):
        rows.count_codes(*arguments)


def test_shapes_that_do_not_fit_are_refused():
    """A pass in C++ would read whatever lies behind them."""
    a, valid = torch.zeros(6, 5), torch.ones(6, dtype=torch.bool)
    one = torch.ones(())
    for wrong in (
        (a, a[:2], valid), (a, a[:, :3], valid), (a, a, valid[:3]), (a, a, valid.float()),
        (a[0], a[0], valid[0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be \[N, D\] each and valid bool \[N\], got"):
            rows.squared_difference(*wrong)
        with pytest.raises(ValueError, match=r"must be \[N, D\] each and valid bool \[N\], got"):
            rows.pull_slopes(*wrong, (one, one))
    with pytest.raises(ValueError, match=r"counted must be bool \[3\] to match index, got.*\[1\]"):
        rows.count_codes(torch.tensor([1, 2, 1]), valid[:1], torch.zeros(4).long(), torch.tensor(0))
