"""The Triton kernels against their references, interpreted on the CPU.

What an interpreter cannot show (races, alignment, tensor-core rounding) needs a GPU.
"""

import math

import pytest
import torch
from interpreting import INTERPRETED, interpreted

import vqkern

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings it")

from vqkern.ops.code_sums import reference as sums_reference  # noqa: E402
from vqkern.ops.code_sums import triton_kernels as sums  # noqa: E402
from vqkern.ops.gaussian_w2 import iteration  # noqa: E402
from vqkern.ops.gaussian_w2 import reference as gaussian_reference  # noqa: E402
from vqkern.ops.gaussian_w2 import triton_solve as gaussian  # noqa: E402
from vqkern.ops.nearest_code import reference as nearest_reference  # noqa: E402
from vqkern.ops.nearest_code import triton_decide as decide  # noqa: E402
from vqkern.ops.nearest_code import triton_kernels as nearest  # noqa: E402
from vqkern.ops.nearest_code import triton_rounding as rounding  # noqa: E402
from vqkern.ops.squared_mmd import reference as mmd_reference  # noqa: E402
from vqkern.ops.squared_mmd import triton_kernels as mmd  # noqa: E402

SCANNED = nearest.SCANNED.value
SCREENED = nearest.SCREENED.value


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN and absurd integers, so that what a kernel forgets to write shows."""
    allocate = torch.empty

    def empty(*shape, **options):
        fresh = allocate(*shape, **options)
        return fresh.fill_(torch.nan if fresh.is_floating_point() else 99)

    if INTERPRETED:
        monkeypatch.setattr(torch, "empty", empty)


def lattice(n, d, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, (n, d), generator=generator).to(dtype)


def normal(n, d, seed, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_nearest(z, codes, splits=None):
    """Index and distance are the reference's, bit for bit; returns how many rows were scanned."""
    index, distance, state = nearest._search(z, codes, splits)
    expected_index, expected_distance = nearest_reference.nearest_code(z, codes, "l2")
    assert torch.equal(index, expected_index)
    assert torch.equal(distance, expected_distance)
    return int((state == SCANNED).sum())


SIZES = [(0, 33, 3), (1, 1, 1), (7, 31, 3), (9, 32, 17), (8, 33, 33), (40, 100, 8), (6, 300, 4)]


@pytest.mark.parametrize(("n", "k", "d"), SIZES)
@interpreted
def test_lattice_is_bit_for_bit(n, k, d):
    assert_nearest(lattice(n, d, 0), lattice(k, d, 1))


HALVES = [
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
]


@pytest.mark.parametrize(("z_dtype", "code_dtype"), HALVES, ids=str)
@interpreted
def test_mixed_dtypes_are_taken_exactly(z_dtype, code_dtype):
    assert_nearest(lattice(8, 8, 2, z_dtype), lattice(50, 8, 3, code_dtype))
    assert_nearest(normal(8, 5, 2, z_dtype), normal(50, 5, 3, code_dtype))


@pytest.mark.parametrize("offset", [0, 10, 100, 1000])
@interpreted
def test_offsets_do_not_matter(offset):
    assert assert_nearest(normal(20, 8, 4) + offset, normal(200, 8, 5) + offset) == 0


@interpreted
def test_ordinary_rows_are_screened():
    assert assert_nearest(normal(40, 16, 6), normal(300, 16, 7)) == 0


@interpreted
def test_channels_beyond_one_block():
    assert_nearest(normal(3, 300, 8), normal(40, 300, 9))


@interpreted
def test_duplicated_codes_give_the_lowest_index():
    codes = normal(20, 8, 10).repeat(3, 1)
    index, _, _ = nearest._search(normal(12, 8, 11), codes, None)
    assert int(index.max()) < 20
    assert_nearest(normal(12, 8, 11), codes)


@interpreted
def test_permuted_codes_tie_in_real_arithmetic():
    # Equal rows of z see all permutations of a code at one distance, which float64 sums differ on.
    base = normal(1, 6, 12)[0]
    generator = torch.Generator().manual_seed(13)
    codes = torch.stack([base[torch.randperm(6, generator=generator)] for _ in range(40)])
    z = torch.tensor([0.3, -1.7, 0.0])[:, None].expand(3, 6)
    index, _, _ = nearest._search(z, codes, None)
    assert index.tolist() == [0, 0, 0]


@interpreted
def test_differences_far_below_float64_decide():
    codes = torch.tensor([[1, 2.0**-60], [1, 0.0], [0, 1.0], [1, 2.0**-61]])
    assert nearest.nearest_code(torch.zeros(1, 2), codes)[0].tolist() == [1]


@interpreted
def test_equal_codes_overflow_and_are_scanned():
    assert assert_nearest(normal(3, 4, 14), torch.full((300, 4), 0.25)) == 3
    # Thirty-two groups of one code each: no list holds them.
    codes = torch.cat([normal(32, 4, 15)] * 32)
    assert assert_nearest(normal(3, 4, 16), codes) == 3


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@interpreted
def test_splits_do_not_matter(splits):
    assert_nearest(normal(4, 8, 17), normal(500, 8, 18), splits)
    assert_nearest(lattice(4, 3, 17), lattice(500, 3, 18), splits)


@pytest.mark.parametrize("shared", [1, 3, 1024])
@interpreted
def test_a_scan_sees_every_block(monkeypatch, shared):
    """Groups that fp16 cannot tell apart make a scan; the nearest codes lie all over."""
    monkeypatch.setattr(decide, "_SCAN_SHARED", shared)
    monkeypatch.setattr(decide, "_SCAN_PARTS", 4)
    codes = normal(32, 4, 36).repeat(32, 1) + 1e-6 * normal(1024, 4, 37)
    rows = torch.tensor([3, 300, 700, 1020])
    assert assert_nearest(codes[rows], codes) == 4
    assert torch.equal(nearest.nearest_code(codes[rows], codes)[0], rows)


@pytest.mark.parametrize("listed", [[], [5], [7, 2, 0], list(range(9, -1, -1))])
@interpreted
def test_only_listed_rows_are_searched(listed):
    z, codes = normal(10, 5, 43), normal(300, 5, 44)
    z[7], codes[9, 0] = math.nan, math.inf
    (rows,) = decide.no_rows(10, z.device)
    rows.row[: len(listed)] = torch.tensor(listed, dtype=torch.int32)
    rows.count[0] = len(listed)
    index, distance = torch.full((10,), -5), torch.full((10,), -5.0)
    nearest.search_rows(z, codes, rows, index, distance)
    expected = vqkern.nearest_code(z, codes, backend="torch")
    for row in range(10):
        if row in listed:
            assert index[row] == expected.index[row] and distance[row] == expected.distance[row]
        else:
            assert index[row] == -5 and distance[row] == -5


@interpreted
def test_an_empty_list_rounds_nothing(monkeypatch):
    """No kernel writes to memory: what is made for it still holds what it was made with."""
    untouched = torch.Tensor.new_full
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, *shape, **kind: untouched(t, shape, 7, **kind)
    )
    (none,) = decide.no_rows(10, torch.device("cpu"))
    codes = rounding.round_codes(normal(300, 5, 44), 16, 64, none)
    assert all(bool((t == 7).all()) for t in codes[2:])
    rows = rounding.round_rows(normal(10, 5, 43), codes, 16, none)
    assert all(bool((t == 7).all()) for t in rows)


def tied_rows():
    """Rows whose nearest codes are one vector, and the list of all but the last row."""
    codes = normal(150, 6, 41).repeat(2, 1)
    z = codes[[3, 40, 149, 7]] + 1e-3 * normal(4, 6, 42)
    (tied,) = decide.no_rows(4, z.device)
    tied.row[:3], tied.count[0] = torch.tensor([2, 0, 1]), 3
    return z, codes, tied, torch.full((4,), -5), torch.full((4,), -5.0)


@interpreted
def test_ties_among_candidates():
    z, codes, tied, index, distance = tied_rows()
    candidates = torch.full((4, 32), -1, dtype=torch.int32)
    for row, code in enumerate([3, 40, 149, 7]):
        candidates[row, :3] = torch.tensor([code + 150, 60, code])
    decide.settle_codes(z, codes, candidates, tied, index, distance)
    assert index.tolist() == [3, 40, 149, -5]
    expected = vqkern.nearest_code(z, codes, backend="torch").distance
    assert torch.equal(distance[:3], expected[:3]) and distance[3] == -5


@interpreted
def test_ties_among_groups():
    """Kept groups count where they are within their list and not above the bound."""
    z, codes, tied, index, distance = tied_rows()
    kept = torch.zeros(2, 4, 4, 8, 2, dtype=torch.int32)
    bounds = kept.view(torch.float32)
    count = torch.zeros(2, 4, 4, dtype=torch.int32)
    for row, code in enumerate([3, 40, 149, 7]):
        # The later of the two groups comes first, in another list.
        for place, group in enumerate([(code + 150) // 64, code // 64]):
            split, quarter = place, 3 * place
            bounds[split, row, quarter, 0, 0], kept[split, row, quarter, 0, 1] = 1.0, group
            count[split, row, quarter] = 1
        # Row 0's own group is too far away; what lies beyond a count is nothing.
    bounds[1, 0, 3, 0, 0] = 3.0
    bounds[:, :, :, 7, 0] = -1.0
    upper = torch.tensor([[2.0] * 4, [5.0] * 4])
    decide.settle_groups(z, codes, kept, count, upper, 64, tied, index, distance)
    assert index.tolist() == [153, 40, 149, -5]


@interpreted
def test_permuted_codes_of_all_magnitudes_tie():
    """Their float64 sums differ by the order of the terms, and the first code's is not least."""
    base = normal(1, 6, 38)[0] * torch.tensor([1, 1e-3, 30, 1e-5, 0.1, 1e-2])
    generator = torch.Generator().manual_seed(39)
    codes = torch.stack([base[torch.randperm(6, generator=generator)] for _ in range(40)])
    z = normal(8, 1, 40).expand(8, 6)
    keys = torch.zeros(8, 40, dtype=torch.float64)
    for d in range(6):
        keys += (z.double()[:, d, None] - codes.double()[None, :, d]).square()
    assert (keys.amin(1) < keys[:, 0]).any()  # float64 alone would err here
    assert nearest.nearest_code(z, codes)[0].tolist() == [0] * 8


@interpreted
def test_not_finite():
    z, codes = normal(9, 5, 19), normal(70, 5, 20)
    z[2, 1], z[4, 0], z[5, 4] = torch.inf, torch.nan, -torch.inf
    codes[3:60, 2] = torch.nan
    codes[60, 0] = torch.inf
    assert_nearest(z, codes)
    codes[:] = torch.nan
    index, distance, _ = nearest._search(z, codes, None)
    assert (index == -1).all() and (distance == torch.inf).all()


@interpreted
def test_strides():
    wide = normal(20, 16, 21)
    assert_nearest(wide[:, ::2], normal(8, 60, 22).T)
    assert_nearest(wide[0, :8].expand(3, 8), normal(60, 9, 22)[:, 1:])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("size", [1e38, 1e30, 1e-30, 1e-38, 1e-43])
@interpreted
def test_magnitudes(size):
    z = torch.tensor([[1e-30, 2e-30], [3e38, 1e38], [-3e38, 3e38], [1e-44, 0], [0, -0.0], [1, 1]])
    assert_nearest(z, normal(40, 2, 23) * size)


@interpreted
def test_an_outlier_costs_no_precision():
    codes = normal(200, 8, 24)
    codes[7] = 3e3
    assert assert_nearest(normal(10, 8, 25), codes) == 0


@pytest.mark.parametrize(("d", "offset", "dtype"), [
    (8, 0, torch.float32), (40, 0, torch.float32), (8, 30, torch.float32), (8, 0, torch.float16),
])  # fmt: skip
@interpreted
def test_screen_bounds_hold(d, offset, dtype):
    """U is above the true minimum, and no group's kept bound is above the group's true minimum."""
    # Five tiles over two splits: three groups for each quarter, and two.
    z, codes = normal(30, d, 26, dtype) + offset, normal(640, d, 27, dtype)
    screen = nearest._screen(z, codes, 2)
    scale = 2.0 ** (rounding.TOP_EXPONENT.value - (int(screen.spread.frexp().exponent) - 1))
    e = (codes.double() - screen.centre.double()) * scale
    true = e.square().sum(-1) / 2 - (z.double() - screen.centre.double()) * scale @ e.T
    assert (screen.upper.double().amin((1, 2)) >= true.amin(-1)).all()
    groups = true.unflatten(1, (-1, screen.tile.codes // 4)).amin(-1)
    depth = nearest.KEPT.value
    lower, group = (t[:, :, :depth].flatten(1) for t in (screen.lower, screen.group))
    kept = lower < torch.inf
    assert int(kept.sum()) == 30 * 4 * (3 + 2)
    assert torch.equal(screen.lower, screen.lower.sort(2).values)
    assert (lower.double() <= groups.gather(1, group.long() * kept))[kept].all()


@interpreted
def test_public_op_with_gradients():
    z, codes = normal(5, 3, 28).requires_grad_(), normal(9, 3, 29).requires_grad_()
    index, distance = vqkern.nearest_code(z, codes, backend="triton")
    got = torch.autograd.grad(distance.sum(), (z, codes))
    _, expected = vqkern.nearest_code(z, codes, backend="torch")
    assert torch.equal(distance, expected)
    for a, b in zip(got, torch.autograd.grad(expected.sum(), (z, codes)), strict=True):
        assert torch.equal(a, b)


SUMS = {
    "nothing": (0, 3, 4, torch.float32),
    "one": (1, 1, 1, torch.float32),
    "half": (63, 7, 33, torch.float16),
    "long runs": (2100, 3, 5, torch.float32),
    "one long run, wide": (1100, 1, 130, torch.bfloat16),
    "few of many codes": (40, 2000, 3, torch.float32),
}


@pytest.mark.parametrize("case", SUMS)
@interpreted
def test_code_sums(case):
    n, k, d, dtype = SUMS[case]
    z = normal(n, d, 30, dtype)
    index = torch.randint(-1, k, (n,), generator=torch.Generator().manual_seed(31))
    z[index < 0] = torch.nan
    count, total = sums.code_sums(z, index, k)
    expected_count, expected_total = sums_reference.code_sums(z, index, k)
    assert torch.equal(count, expected_count)
    # Both add float64 in a fixed order, not the same one, and round to float32 once.
    torch.testing.assert_close(total, expected_total, rtol=2.0**-22, atol=1e-12)
    assert torch.equal(sums.code_sums(z, index, k)[1], total)


@interpreted
def test_code_sums_of_strided_vectors():
    z, index = normal(4, 70, 32).T, torch.arange(70) % 3
    assert torch.equal(sums.code_sums(z, index, 4)[1], sums.code_sums(z.contiguous(), index, 4)[1])
    assert int(sums.code_sums(z, index * 0 - 1, 4)[0].sum()) == 0


# n, m, d, bandwidths, offset
MMDS = {
    "single points": (1, 1, 1, (1.0,), 0),
    "a ladder": (70, 66, 8, (1.0, 2.0, 4.0, 8.0), 0),
    "a ladder, far off": (70, 40, 3, (8.0, 4.0, 2.0), 100),
    "no ladder": (33, 40, 33, (10.0, 3.0, 40.0), 0),
    "wide": (20, 9, 130, (100.0,), 0),
}


@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
@pytest.mark.parametrize("case", MMDS)
@interpreted
def test_squared_mmd(case, unbiased):
    n, m, d, bandwidths, offset = MMDS[case]
    if unbiased and n == 1:
        n = m = 2
    x, y = normal(n, d, 33) + offset, 1.2 * normal(m, d, 34) + offset
    bandwidths = torch.tensor(bandwidths, dtype=torch.float64)
    for x_grad, y_grad in ((True, True), (True, False), (False, True), (False, False)):
        got = mmd.squared_mmd(x, y, bandwidths, unbiased, x_grad, y_grad)
        want = mmd_reference.squared_mmd(
            x.double(), y.double(), bandwidths, unbiased, x_grad, y_grad
        )
        assert got[0].dtype == torch.float32
        torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=1e-6 * len(bandwidths))
        for a, b in zip(got[1:], want[1:], strict=True):
            largest = float(b.abs().max()) if b.numel() else 0.0
            torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-6 * largest)


# Calls of few points are summed in float64; these are what others come to. n, m, d, bandwidths.
SWEEPS = {
    "one rate": (70, 130, 3, (4.0,)),
    "two rates": (70, 130, 8, (4.0, 8.0)),
    "three rates": (130, 70, 16, (4.0, 8.0, 16.0)),
    "four rates": (200, 70, 9, (32.0, 8.0, 16.0, 4.0)),
    "five rates": (300, 330, 16, (4.0, 8.0, 16.0, 32.0, 64.0)),
    "six rates": (70, 130, 20, (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)),
    "seven rates": (70, 130, 5, (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)),
    "no ladder": (70, 200, 16, (10.0, 3.0, 40.0)),
    "no ladder, 32 channels": (130, 200, 32, (10.0, 30.0)),
    "wide": (70, 200, 70, (64.0, 128.0, 256.0, 512.0)),
    "wide, no ladder": (130, 70, 130, (100.0, 300.0)),
}


@pytest.mark.parametrize("case", SWEEPS)
@interpreted
def test_sums_of_squared_mmd_in_float32(case):
    n, m, d, bandwidths = SWEEPS[case]
    x, y = normal(n, d, 36), 1.3 * normal(m, d, 37) + 0.4
    bandwidths = torch.tensor(bandwidths, dtype=torch.float64)
    mean = torch.cat([x, y]).double().mean(0)
    for x_grad, y_grad in ((True, True), (True, False), (False, True), (False, False)):
        value = torch.full((), torch.nan)
        grads = [
            torch.full(s.shape if asked else (0,), torch.nan)
            for s, asked in ((x, x_grad), (y, y_grad))
        ]
        wanted = mmd._swept(x, y, mean, bandwidths, 0, value, *grads)
        assert not wanted
        want = mmd_reference.squared_mmd(x.double(), y.double(), bandwidths, False, x_grad, y_grad)
        torch.testing.assert_close(value.double(), want[0], rtol=1e-6, atol=0)
        for got, expected in zip(grads, want[1:], strict=True):
            largest = float(expected.abs().max()) if expected.numel() else 0.0
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=4e-6 * largest)


@interpreted
def test_squared_mmd_of_equal_and_of_bad_points():
    bandwidths = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = torch.full((5, 3), 7.0)
    value, gx, gy = mmd.squared_mmd(x, x[:2], bandwidths, False, True, True)
    assert float(value) == 0 and not gx.any() and not gy.any()
    x[1, 1] = torch.nan
    assert mmd.squared_mmd(x, x[:2], bandwidths, False, False, False)[0].isnan()
    strided = normal(6, 8, 35)
    a = mmd.squared_mmd(strided[:, ::2], strided[::2, ::2], bandwidths, False, True, True)
    b = mmd.squared_mmd(
        strided[:, ::2].clone(), strided[::2, ::2].clone(), bandwidths, False, True, True
    )
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# sets, points, channels
POINT_SETS = [(1, 1, 1), (2, 5, 3), (1, 300, 7), (2, 65, 33)]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("b", "n", "d"), POINT_SETS)
@interpreted
def test_moments_and_pull_back(b, n, d, masked):
    x = normal(b * n, d, 36).reshape(b, n, d) * torch.linspace(0.01, 2, d) + 20
    valid = None
    if masked:
        valid = torch.rand(b, n, generator=torch.Generator().manual_seed(37)) > 0.4
        x[~valid] = torch.nan
    want = gaussian_reference.moments(x, valid)
    for a, e in zip(gaussian.moments(x, valid), want, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)
    matrix = normal(b * d, d, 38).double().reshape(b, d, d)
    matrix, offset = matrix + matrix.mT, normal(b, d, 39).double()
    got = gaussian.pull_back(x, valid, want[1], matrix, offset)
    expected = gaussian_reference.pull_back(x, valid, want[1], matrix, offset)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@interpreted
def test_moments_of_halves_and_strides(dtype):
    x = normal(50, 14, 40, dtype)[None, :, ::2]
    for a, e in zip(gaussian.moments(x, None), gaussian_reference.moments(x, None), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)


def pairs(d):
    """Four pairs of means and covariances: ordinary, without variance in some directions of y,
    without any, NaN."""
    points = [normal(4 * (d + 9), d, seed).reshape(4, -1, d) + seed for seed in (41, 42)]
    points[0] *= torch.linspace(0.1, 3, d)
    (m_x, s1), (m_y, s2) = (gaussian_reference.moments(p, None)[1:] for p in points)
    s2[1, : d // 2] = s2[1, :, : d // 2] = 0
    s2[2] = 0
    s1[3] *= torch.nan
    return (m_x, m_y), (s1, s2)


@pytest.mark.parametrize("ridge", [None, 0.5], ids=["least", "large"])
@pytest.mark.parametrize("d", [1, 5, 33])
@interpreted
def test_the_pairs_problem(d, ridge):
    """The iteration in one program, and that of matrix products, against roots by eigh."""
    means, covariances = pairs(d)
    want = gaussian_reference.value_and_gradients(
        means, covariances, ridge, True, relative=iteration.LEAST_RIDGE
    )
    products = gaussian_reference.value_and_gradients(
        means, covariances, ridge, True, iteration.roots, iteration.LEAST_RIDGE
    )
    for got in (gaussian.value_and_gradients(means, covariances, ridge, True), products):
        for a, e in zip(got, want, strict=True):
            one = [0, 2, 3]
            torch.testing.assert_close(a[one], e[one], rtol=1e-7, atol=1e-7, equal_nan=True)
            # In an empty direction this derivative is nearly infinite; no point has a share in it.
            assert (a[1] - e[1]).norm() <= 1e-2 * e[1].norm()


@interpreted
def test_schedules_end_where_they_may():
    """Roots of a level and above are at 1 after its steps, and all after the last."""
    steps = iteration.schedule(iteration.COMMON)
    least = iteration.LEAST_RIDGE**0.5
    levels = iter((*iteration.COMMON, least))
    root = torch.logspace(-8, 0, 2000, dtype=torch.float64)
    at = root.clone()
    for a, b, may_end in steps:
        at = a * at - b * at**3
        if may_end:
            level = next(levels)
            assert (at[root >= level] - 1).abs().max() < 1e-12
    assert may_end and next(levels, None) is None


@interpreted
def test_gaussian_w2_with_gradients():
    x, y = normal(60, 5, 43).requires_grad_(), (normal(50, 5, 44) * 2 + 1).requires_grad_()
    for function in (vqkern.gaussian_w2, lambda x, y, **o: vqkern.prior_w2(y, **o) + x.sum()):
        value = function(x, y, backend="triton")
        got = torch.autograd.grad(value, (x, y))
        expected = function(x.double(), y.double(), backend="torch")
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        for a, b in zip(got, torch.autograd.grad(expected, (x, y)), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


# Error-free products, and sums over lanes that each write what they take for the same.
UNCONTRACTED = {
    "_rescore_kernel",
    "_ties_of_codes_kernel",
    "_ties_of_groups_kernel",
    "_scan_kernel",
    "_join_kernel",
    "_sum_pieces_kernel",
    "_join_pieces_kernel",
    "prepare_kernel",
    "sweep_kernel",
    "_solve_kernel",
}


@interpreted
def test_no_compiler_may_contract_what_must_be_rounded(monkeypatch):
    """An interpreter never does; a compiler may where a launch does not say otherwise."""
    from triton.runtime.interpreter import GridExecutor

    launched, launch = {}, GridExecutor.__call__

    def recorded(self, *arguments, **options):
        launched.setdefault(self.fn.__name__, []).append(options.get("enable_fp_fusion"))
        return launch(self, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    test_ties_among_candidates()
    test_ties_among_groups()
    test_equal_codes_overflow_and_are_scanned()
    sums.code_sums(normal(1100, 1, 1), torch.zeros(1100, dtype=torch.int64), 2)
    sets, rates = (normal(4, 3, 2), normal(5, 3, 3)), torch.ones(1, dtype=torch.float64)
    value, gx, gy = mmd.squared_mmd(*sets, rates, False, True, True)
    mmd._swept(*sets, torch.zeros(3, dtype=torch.float64), rates, 0, value, gx, gy)
    vqkern.gaussian_w2(normal(4, 3, 4), normal(5, 3, 5), backend="triton")
    assert UNCONTRACTED <= launched.keys()
    assert not any(any(launched[name]) or None in launched[name] for name in UNCONTRACTED)
