"""`nearest_code` in C++ at the edges of its tiles, groups, blocks, integer formats and bounds.

Most vectors here have whole coordinates, so that int64 arithmetic, which shares nothing with the
kernels, decides. Where codes lie closer together than a format resolves, only the bound keeps the
nearest among the candidates: such data shows a bound that is too small.
"""

import math
import mmap
from fractions import Fraction

import pytest
import torch
from support import HAS_NATIVE, SEARCH_KERNELS, float64_distances

from vqkern.ops.nearest_code import native

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
every_kernel = pytest.mark.parametrize("kernel", SEARCH_KERNELS)


def whole(most, *shape):
    """Whole numbers in [-most, most]."""
    return torch.randint(-most, most + 1, shape)


def nearest_whole(z, codes):
    """argmin |e|^2 - 2 z.e of int64 vectors, ties to the lowest index; no sum may leave 63 bits."""
    longest, widest = codes.double().norm(dim=1).max(), z.double().norm(dim=1).max()
    assert longest * max(longest, 2 * widest) < 2.0**62
    score = codes.square().sum(1) - 2 * (z @ codes.T)
    least = score.amin(1, keepdim=True)
    return torch.where(score == least, torch.arange(len(codes)), len(codes)).amin(1)


def check(kernel, z, codes, dtype=torch.float32):
    """The kernel's indices of whole vectors are the oracle's; returns how rows were decided."""
    rows, table = z.to(dtype), codes.to(dtype)
    assert torch.equal(rows.long(), z) and torch.equal(table.long(), codes)
    index, distance, counts = native.search(rows, table, kernel)
    expected = nearest_whole(z, codes)
    wrong = (index != expected).nonzero().flatten()
    assert len(wrong) == 0, f"{len(wrong)} of {len(z)} rows, first {int(wrong[0])}"
    # Squares of differences may leave int64; float64 holds them to 2^-50 or better.
    true = (z - codes[expected]).double().square().sum(1)
    torch.testing.assert_close(distance.double(), true, rtol=1.2e-7, atol=0)
    return counts


def odd(most, *shape):
    """Odd numbers of either sign, of the size of `most`."""
    return (torch.randint(most // 4, most // 2, shape) * 2 + 1) * (whole(1, *shape) * 2 + 1).sign()


def without_sum(most, n, d):
    """Whole numbers whose sum is 0: a constant vector has the same product with all of them."""
    numbers = whole(most, n, d)
    return numbers - numbers.roll(1, dims=1)


def shell(centre, count, radius):
    """Whole vectors at one distance from a centre, but for their rounding to whole numbers."""
    directions = torch.nn.functional.normalize(torch.randn(count, len(centre)).double(), dim=1)
    return centre + (radius * directions).round().long()


def among_zeros(codes, count):
    """Shuffled with `count` vectors of one small number, positive or negative, in some channel.

    The zeros of the others are the median, and so the centre, of every channel, and no two codes
    are equal.
    """
    d, i = codes.shape[1], torch.arange(count)
    fill = torch.zeros(count, d, dtype=torch.int64)
    fill[i, i % d] = (1 + i // (2 * d)) * (1 - 2 * (i // d % 2))
    table = torch.cat([codes, fill])
    return table[torch.randperm(len(table))]


class TestSizes:
    @every_kernel
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_few_rows_are_measured_and_more_are_screened(self, kernel, n):
        counts = check(kernel, whole(3, n, 9), whole(3, 333, 9))
        assert (counts["scanned"], counts["certified"]) == ((n, 0) if n <= 2 else (0, n))

    @every_kernel
    @pytest.mark.parametrize("threads", [1, 2, 4])
    @pytest.mark.parametrize("k", [1, 2, 3, 5, 63, 64, 65, 200])
    def test_a_scan_sees_every_code(self, kernel, threads, k):
        codes = torch.arange(k)[:, None] * torch.tensor([1, 2])
        torch.set_num_threads(threads)
        for wanted in {0, k // 2, k - 1}:
            check(kernel, codes[wanted : wanted + 1], codes)

    @every_kernel
    @pytest.mark.parametrize("d", [1, 2, 6, 7, 15, 16, 17, 23, 24, 31, 32, 33, 47, 49, 255, 257])
    def test_channels(self, kernel, d):
        codes = whole(4, 100, d)
        check(kernel, torch.cat([codes[-5:], whole(4, 20, d)]), codes)
        check(kernel, codes[-5:] * 1000 + whole(300, 5, d), codes * 1000)

    @every_kernel
    @pytest.mark.parametrize("d", [4095, 4096, 4097])
    def test_channels_at_the_limit_of_int8(self, kernel, d):
        codes = whole(8, 70, d)
        check(kernel, codes[[0, 33, 69]] + whole(9, 3, d), codes)

    # D decides how many tiles of 8, 16 or 32 codes make a group: eight at D = 8, one at D = 512.
    @every_kernel
    @pytest.mark.parametrize(
        "d,edges",
        [(8, (8, 16, 32, 64, 128, 256, 512)), (128, (32, 64, 128)), (512, (32, 64))],
        ids=["D8", "D128", "D512"],
    )
    def test_tiles_and_groups(self, kernel, d, edges):
        for k in {1, *(edge + off for edge in edges for off in (-1, 0, 1))}:
            codes = whole(8, k, d)
            ends = codes[[0, k // 2, max(k - 2, 0), k - 1]]
            check(kernel, torch.cat([ends, whole(8, 3, d)]), codes)

    @every_kernel
    @pytest.mark.parametrize("k", [4095, 4097, 8193, 16383, 16384, 16385, 16641])
    def test_blocks_of_many_groups(self, kernel, k):
        """At most 64 groups are screened at once: 16384 codes of 32-code tiles at D = 8."""
        codes = whole(20, k, 8)
        ends = codes[[*range(0, k, 1000), k - 257, k - 256, k - 2, k - 1]]
        check(kernel, torch.cat([ends, whole(20, 9, 8)]), codes)

    @every_kernel
    @pytest.mark.parametrize("k", [127, 129, 255, 257, 511, 512, 513, 545, 1025])
    def test_blocks_of_many_bytes(self, kernel, k):
        """A block fits the cache: 512 codes of 512 int8 channels, fewer in wider formats."""
        codes = whole(8, k, 512)
        check(kernel, codes[[0, k // 2, k - 33, k - 32, k - 2, k - 1]], codes)

    @every_kernel
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("n", [11, 12, 13, 767, 768, 769, 1535, 1536, 1537])
    def test_panels_and_chunks(self, kernel, threads, n):
        torch.set_num_threads(threads)
        check(kernel, whole(8, n, 7), whole(8, 41, 7))


class TestCandidates:
    @every_kernel
    @pytest.mark.parametrize("d", [3, 8, 40])
    @pytest.mark.parametrize("ties", [15, 16, 17, 18, 33, 400])
    def test_more_near_ties_than_a_row_holds(self, kernel, ties, d):
        """No format tells codes of a shell apart; a row holds sixteen until it measures them."""
        rows = whole(1 << 22, 5, d)
        codes = among_zeros(torch.cat([shell(row, ties, 1 << 12) for row in rows]), 6 * ties)
        counts = check(kernel, rows, codes)
        assert counts["certified"] == 5

    @every_kernel
    def test_more_near_ties_than_are_worth_measuring(self, kernel):
        rows = whole(1 << 22, 3, 8)
        codes = among_zeros(torch.cat([shell(row, 1500, 1 << 12) for row in rows]), 5000)
        counts = check(kernel, rows, codes)
        assert counts["certified"] + counts["scanned"] == 3

    @every_kernel
    def test_ties_of_all_groups_go_to_the_lowest_index(self, kernel):
        first = whole(50, 40, 8)
        codes = torch.cat([first, whole(50, 2000, 8) + 200, first.flip(0), first])
        check(kernel, torch.cat([first, first + whole(1, 40, 8)]), codes)


class TestBounds:
    @every_kernel
    @pytest.mark.parametrize("d", [3, 8, 20])
    def test_the_longest_codes_come_last(self, kernel, d):
        """Near 0 and near 2 z scores are next to nothing; float32 rounds those of long codes."""
        rows = whole(1 << 22, 8, d)
        short = whole(2, 500, d)
        long = torch.cat([2 * row + whole(2, 60, d) for row in rows])
        check(kernel, rows, torch.cat([short, long]))

    @every_kernel
    @pytest.mark.parametrize("d", [2, 3, 7, 8, 16])
    @pytest.mark.parametrize("radius", [1 << 12, 1 << 16, 1 << 18])
    def test_rows_that_the_format_holds(self, kernel, d, radius):
        """Corners of a cube round to themselves: all error is the codes'."""
        rows = (1 << 20) * (2 * torch.randint(0, 2, (40, d)) - 1)
        near = torch.cat([shell(row, 24, radius) for row in rows.unique(dim=0)])
        check(kernel, rows, among_zeros(near, 2 * len(near)))

    @every_kernel
    @pytest.mark.parametrize("d", [4, 8])
    @pytest.mark.parametrize("noise", [2, 4, 7, 10, 12])
    def test_codes_that_the_format_holds(self, kernel, d, noise):
        """Codes of -1, 0 and 1 round to themselves: all error is the rows', halfway between."""
        steps = torch.arange(-1, 2)
        codes = (1 << 20) * torch.cartesian_prod(*[steps] * d)
        halfway = (1 << 19) * (2 * torch.randint(0, 2, (60, d)) - 1)
        check(kernel, halfway + whole(1 << noise, 60, d), codes[torch.randperm(len(codes))])

    @every_kernel
    @pytest.mark.parametrize("d", [256, 1024])
    def test_sums_that_grow_and_cancel(self, kernel, d):
        """z.e climbs for D / 2 channels and falls back to 0: float32 rounds large partial sums.

        One-hot codes far away keep the centre at 0.
        """
        sign = torch.ones(d, dtype=torch.int64)
        sign[d // 2 :] = -1
        rows = sign * odd(1 << 24, 20, 1)
        near = 256 + torch.cat([without_sum(16, 100, d // 2), without_sum(16, 100, d // 2)], 1)
        far = torch.eye(d, dtype=torch.int64)[torch.arange(512) % d] << 27
        check(kernel, rows, torch.cat([far, near]))

    @every_kernel
    @pytest.mark.parametrize("shift", [0, 10, 20])
    def test_equal_products_with_far_rows(self, kernel, shift):
        """|z - e|^2 loses in float64 what tells the codes apart; so does the bound it gives."""
        rows = (odd(1 << 24, 40, 1) << shift).expand(40, 8)
        check(kernel, rows, 32 + without_sum(20, 1500, 8))

    @every_kernel
    @pytest.mark.parametrize("size", [1 << 26, 1 << 32, 1 << 40])
    def test_equal_products_with_rows_that_float32_rounds(self, kernel, size):
        """Float32 stand-ins of such rows are off by more than the codes are long."""
        rows = odd(size, 40, 1).expand(40, 8)
        check(kernel, rows, 32 + without_sum(20, 1500, 8), torch.float64)

    @every_kernel
    @pytest.mark.parametrize("shift", [13, 27, 40])
    @pytest.mark.parametrize("d", [2, 8, 33])
    def test_rows_far_longer_than_codes(self, kernel, d, shift):
        """|z - e|^2 of such rows is so large that float64 rounds away what tells codes apart."""
        codes = whole(40, 1500, d)
        check(kernel, whole(8, 60, d) << shift, codes)

    @every_kernel
    @pytest.mark.parametrize("power", [40, 57, 61, 66, 74, 85, 89, 100, 120])
    @pytest.mark.parametrize("d, k", [(8, 700), (33, 1500)])
    def test_rows_of_any_length(self, kernel, d, k, power):
        """What integers leave of a long row, squared, is beyond float32; its neighbours are not."""
        whole_rows, codes = whole(8, 60, d), whole(40, k, d)
        times = torch.where(torch.arange(60) % 7 == 0, 2.0**power, 1.0)
        index, _, counts = native.search(whole_rows * times[:, None], codes.float(), kernel)
        assert torch.equal(index[times == 1], nearest_whole(whole_rows[times == 1], codes))
        # So long a row takes the code farthest in its direction, of those the shortest.
        product, squares = whole_rows @ codes.T, codes.square().sum(1)
        order = 2 * int(squares.max()) * product - squares
        expected = torch.where(order == order.amax(1, keepdim=True), torch.arange(k), k).amin(1)
        assert torch.equal(index[times > 1], expected[times > 1])
        assert counts["certified"] + counts["scanned"] == 60

    @every_kernel
    @pytest.mark.parametrize("shift", [13, 20, 26])
    @pytest.mark.parametrize("d", [2, 8, 33])
    def test_codes_far_longer_than_rows(self, kernel, d, shift):
        """Many codes have one length: a dot product far smaller than it decides."""
        codes = whole(2, 1500, d)
        check(kernel, whole(40, 60, d), codes[codes.any(1)] << shift)

    @every_kernel
    @pytest.mark.parametrize("shift", [12, 24])
    @pytest.mark.parametrize("d", [2, 8, 33])
    def test_long_float64_rows_that_float32_rounds(self, kernel, d, shift):
        """The stand-ins of the screens are off by 2^-24 of rows that are far longer than codes."""
        codes = whole(1 << 10, 1500, d)
        check(kernel, whole(1 << (10 + shift), 60, d), codes, torch.float64)

    @every_kernel
    def test_float64_near_ties_that_float32_merges(self, kernel):
        rows = whole(1 << 28, 20, 8)
        near = torch.cat([shell(row, 20, 1 << 7) for row in rows])
        check(kernel, rows, among_zeros(near, 800), torch.float64)

    @every_kernel
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_cosines_that_a_format_merges(self, kernel, dtype):
        """One cone around each row: the largest cosine in float64, where it is clear."""
        d, ties = 8, 30
        rows = torch.randn(20, d, dtype=dtype)
        spread = 1e-2 * torch.nn.functional.normalize(torch.randn(20, ties, d), dim=-1)
        codes = rows[:, None] * (1 + spread) * torch.exp(torch.randn(20, ties, 1))
        codes = torch.cat([codes.flatten(0, 1), torch.randn(500, d)]).to(dtype)
        index = native.search(rows, codes, kernel, "cosine")[0]
        unit = torch.nn.functional.normalize
        cosine = unit(rows.double(), dim=1) @ unit(codes.double(), dim=1).T
        best = cosine.topk(2, dim=1)
        clear = best.values[:, 0] - best.values[:, 1] > 1e-13
        assert clear.sum() >= 15
        assert torch.equal(index[clear], best.indices[clear, 0])


class TestIntegers:
    @every_kernel
    @pytest.mark.parametrize("d", [4096, 4097, 90_000])
    def test_aligned_vectors_of_the_widest_components(self, kernel, d):
        """All 127 or -127, but for one channel each: sums as large as int8 makes them.

        Sums of products with codes offset by 128 leave 32 bits at 82,900 channels.
        """
        codes = torch.full((100, d), -127)
        codes[::3] = 127
        codes[torch.arange(100), torch.arange(100) * 40] //= 2
        check(kernel, torch.cat([codes[[3, 42, 66, 99, 50]], -codes[[5, 6]]]), codes)

    @every_kernel
    @pytest.mark.parametrize("d", [2, 7, 16, 64])
    def test_one_hot_and_aligned_vectors_of_the_largest_norm(self, kernel, d):
        """A one-hot vector has its whole norm in one int16; parallel ones have the largest sum."""
        size = 1 << 20
        hot = torch.cat([size * torch.eye(d, dtype=torch.int64)] * 2) * whole(1, 2 * d, 1)
        aligned = (size // math.isqrt(d)) * (2 * torch.randint(0, 2, (60, 1)) - 1)
        codes = torch.cat([hot, aligned.expand(60, d)]) + whole(64, 2 * d + 60, d)
        check(kernel, torch.cat([codes[::7], -codes[::9], whole(size, 5, d)]), codes)

    @every_kernel
    @pytest.mark.parametrize("times", [4, 10, 30, 1000, 100_000])
    def test_half_norms_beyond_the_cut_bound_nothing(self, kernel, times):
        """The near codes stand across the rows; a group of codes far out lies in their direction.

        Were a cut half norm of the latter taken for the true one, they would score lower.
        """
        axis = torch.randint(1, 8, (1280,))
        near = (64 * torch.eye(8).long()[axis]) * (2 * torch.randint(0, 2, (1280, 1)) - 1)
        near += whole(2, 1280, 8)
        far = torch.tensor([64 * times, 0, 0, 0, 0, 0, 0, 0]) + whole(2, 256, 8)
        codes = torch.cat([near[:256], far, near[256:]])
        check(kernel, torch.tensor([64, 0, 0, 0, 0, 0, 0, 0]) + whole(1, 30, 8), codes)

    @every_kernel
    @pytest.mark.parametrize("times", [30, 1000, 100_000])
    def test_codes_of_all_lengths_in_one_group(self, kernel, times):
        codes = whole(64, 700, 8)
        codes[::9] *= times
        codes[-1] *= times
        check(kernel, torch.cat([codes[::50], whole(64, 30, 8)]), codes)

    @every_kernel
    def test_one_code_far_out(self, kernel):
        codes = whole(100, 700, 8)
        for at in (0, 300, 699):
            table = codes.clone()
            table[at] = 1 << 24
            check(kernel, torch.cat([table[[at, at - 1]], whole(100, 30, 8)]), table)

    @every_kernel
    def test_one_tight_cluster_off_centre(self, kernel):
        offset = (1 << 22) + whole(1000, 1, 9)
        codes = offset + whole(20, 900, 9)
        check(kernel, torch.cat([offset + whole(20, 50, 9), whole(1 << 22, 20, 9)]), codes)

    @every_kernel
    def test_panels_have_their_own_scale(self, kernel):
        """Panels of rows that grow, and shrink, by 2^12; the last is partly filled."""
        codes = whole(100, 500, 8)
        for shifts in ((0, 4, 8, 12), (12, 8, 4, 0)):
            rows = torch.cat([whole(100, 32, 8) << shift for shift in shifts])
            check(kernel, rows[:-5], codes)


def lazy_zeros(n, d):
    """float32 zeros of which no page takes memory before it is written."""
    try:
        pages = mmap.mmap(-1, 4 * n * d, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no lazy memory of {4 * n * d} bytes: {error}")
    return torch.frombuffer(pages, dtype=torch.float32).view(n, d)


def test_rows_beyond_two_to_the_31_elements():
    """All rows but the last four are not finite, and the pages between hold nothing."""
    z = lazy_zeros(2052, 1 << 20)
    z[:-4, 0] = math.nan
    z[-4:, 0] = torch.tensor([3.0, 1.0, 2.0, 0.0])
    codes = torch.zeros(4, 1 << 20)
    codes[:, 0] = torch.arange(4)
    index, distance, counts = native.search(z, codes)
    assert index[-5:].tolist() == [-1, 3, 1, 2, 0] and distance[-4:].tolist() == [0] * 4
    assert counts["invalid"] == 2048 and counts["certified"] == 4


class TestRowsAndThreads:
    @every_kernel
    def test_a_row_does_not_depend_on_its_neighbours(self, kernel):
        z, codes = torch.randn(60, 9), torch.randn(800, 9)
        z[::7] *= 1e6
        z[3::11] *= 1e-6
        z[20] = math.nan
        index, distance, _ = native.search(z, codes, kernel)
        for row in range(60):
            # One row is scanned, three are screened.
            for others in (0, 2):
                among = torch.cat([z[row : row + 1], torch.randn(others, 9)])
                again = native.search(among, codes, kernel)
                assert int(again[0][0]) == int(index[row])
                assert torch.equal(again[1][0], distance[row])

    @every_kernel
    def test_threads_do_not_change_a_bit(self, kernel):
        z, codes = torch.randn(1700, 9), torch.randn(600, 9)
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(native.search(z, codes, kernel))
        for again in results[1:]:
            assert torch.equal(again[0], results[0][0]) and torch.equal(again[1], results[0][1])
            assert again[2] == results[0][2]

    @every_kernel
    def test_codes_that_are_not_finite_fill_tiles_and_groups(self, kernel):
        """The one finite code is the last; then others join it, and the bad values sit at ends."""
        codes = torch.randn(700, 9)
        codes[:-1, 8] = math.nan
        z = torch.randn(5, 9)
        assert native.search(z, codes, kernel)[0].tolist() == [699] * 5
        codes[256:300, 8] = 1.0
        codes[300:310, 0] = torch.tensor([math.inf, -math.inf]).repeat(5)
        usable = codes.isfinite().all(1).nonzero().flatten()
        expected = usable[float64_distances(z, codes[usable]).argmin(1)]
        assert torch.equal(native.search(z, codes, kernel)[0], expected)

    @every_kernel
    def test_rows_that_are_not_finite_touch_no_other(self, kernel):
        codes = whole(8, 300, 7)
        z = torch.cat([codes[:30], codes[-10:]])
        rows = z.float()
        bad = torch.tensor([0, 11, 12, 13, 25, 39])
        rows[bad, [0, 6, 3, 6, 0, 6]] = torch.tensor([math.nan, math.inf, -math.inf] * 2)
        index, distance, counts = native.search(rows, codes.float(), kernel)
        assert counts["invalid"] == 6
        assert index[bad].tolist() == [-1] * 6 and distance[bad].tolist() == [math.inf] * 6
        expected = nearest_whole(z, codes)
        expected[bad] = -1
        assert torch.equal(index, expected)


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_long_rows_whose_products_cancel(kernel):
    """Products far larger than the half norms add up to zero, but for their float32 rounding."""
    half = torch.randn(300, 64)
    half /= half.norm(dim=-1, keepdim=True)
    half *= 1 + 1e-6 * torch.rand(300, 1)
    codes = torch.cat([half, -half], 1)
    z = torch.full((24, 128), 1.0) * 10.0 ** torch.linspace(2, 6, 24)[:, None]
    index, _, _ = native.search(z, codes, kernel)
    rows = [[Fraction(v) for v in code] for code in codes.tolist()]
    norms = [sum(v * v for v in row) for row in rows]
    sums = [sum(row) for row in rows]
    for i in range(24):
        scale = Fraction(z[i, 0].item())
        scores = [norm - 2 * scale * total for norm, total in zip(norms, sums, strict=True)]
        assert index[i] == scores.index(min(scores))


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_rows_so_long_that_float64_distances_are_noise(kernel):
    z = torch.randn(40, 2) * 1e12
    codes = torch.randn(700, 2)
    index, _, _ = native.search(z, codes, kernel)
    norms = [sum(Fraction(v) ** 2 for v in code) for code in codes.tolist()]
    for i, row in enumerate(z.tolist()):
        a, b = (Fraction(v) for v in row)
        scores = [
            norm - 2 * (a * Fraction(x) + b * Fraction(y))
            for norm, (x, y) in zip(norms, codes.tolist(), strict=True)
        ]
        assert index[i] == scores.index(min(scores))
