"""Searches in few channels, where rows meet the codes in their reach alone: no less exact."""

import pytest
import torch
from support import (
    HAS_NATIVE,
    SEARCH_KERNELS,
    assert_no_regret,
    lattice_oracle,
)

from vqkern.ops.nearest_code import native

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="there is no native module")

ROWS, CODES = 3_210, 8_500  # enough for every kernel's cells; neither fills its last part
SOME = torch.arange(0, ROWS, 10)  # that an oracle looks at; all kinds of rows are among them


def assert_cells(counts, codes=CODES):
    assert counts["certified"] == ROWS
    assert 0 < counts["scores"] < 0.5 * ROWS * codes, "the rows met all codes"


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
@pytest.mark.parametrize("spread", [3, 20])
def test_lattice_bit_for_bit(kernel, spread):
    z = torch.randint(-spread, spread + 1, (ROWS, 3)).float()
    codes = torch.randint(-spread, spread + 1, (CODES, 3)).float()
    index, distance, counts = native.search(z, codes, kernel)
    expected, squared = lattice_oracle(z[SOME], codes)
    assert torch.equal(index[SOME], expected)
    assert torch.equal(distance[SOME], squared.float())
    if spread == 20:
        assert_cells(counts)


def clusters(n, generator):
    centres = torch.rand(20, 4, generator=generator) * 40
    which = torch.randint(20, (n,), generator=generator)
    return centres[which] + 0.01 * torch.randn(n, 4, generator=generator)


DATA = {
    "gaussian": lambda n, g: torch.randn(n, 4, generator=g),
    "offset": lambda n, g: torch.randn(n, 4, generator=g) + 300,
    "clusters": clusters,
    "tiny": lambda n, g: 1e-12 * torch.randn(n, 4, generator=g),
    "huge": lambda n, g: 1e12 * torch.randn(n, 4, generator=g),
    "thin": lambda n, g: torch.randn(n, 4, generator=g) * torch.tensor([1.0, 1e-3, 1e-6, 0.0]),
    "plane in many": lambda n, g: torch.randn(n, 2, generator=g) @ torch.ones(2, 24).tril(12),
}


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
@pytest.mark.parametrize("data", DATA)
def test_no_regret(kernel, data):
    generator = torch.Generator().manual_seed(3)
    z, codes = DATA[data](ROWS, generator), DATA[data](CODES, generator)
    index, _, counts = native.search(z, codes, kernel)
    assert_no_regret(z[SOME], codes, index[SOME])
    assert_cells(counts)


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_a_few_rows_and_codes_are_far_out_or_not_finite(kernel):
    z, codes = torch.randn(ROWS, 4), torch.randn(CODES, 4)
    z[::100] *= 1e5
    z[50] = torch.nan
    codes[::300] *= 1e6
    codes[7] = torch.inf
    codes[8, 2] = torch.nan
    index, distance, counts = native.search(z, codes, kernel)
    assert index[50] == -1 and distance[50] == torch.inf and counts["invalid"] == 1
    finite = SOME[SOME != 50]
    assert not torch.isin(index, torch.tensor([7, 8])).any()
    usable = codes.clone()
    usable[7:9] = 1e18
    assert_no_regret(z[finite], usable, index[finite])


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
@pytest.mark.parametrize("scale", [1e-37, 1e-41, 1e-22, 1e16, 1e30])
def test_scales_that_boxes_cannot_measure(kernel, scale):
    whole = torch.randint(-9, 10, (ROWS + CODES, 3)).float()
    z, codes = (whole * scale).split([ROWS, CODES])
    index, _, _ = native.search(z, codes, kernel)
    expected, _ = lattice_oracle(whole[:ROWS][SOME], whole[ROWS:])
    if scale >= 1e-22:  # smaller multiples are rounded, and no longer a lattice
        # So are these, in the last place: another code may be as near.
        unit = whole.double()
        apart = (unit[:ROWS][SOME] - unit[ROWS:][index[SOME]]).square().sum(-1)
        least = (unit[:ROWS][SOME] - unit[ROWS:][expected]).square().sum(-1)
        assert torch.equal(apart, least)
    else:
        assert_no_regret(z[SOME] * 2.0**100, codes * 2.0**100, index[SOME])


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_half_of_the_codes_have_decayed(kernel):
    z, codes = 1 + torch.randn(ROWS, 3).abs(), 1 + torch.randn(CODES, 3).abs()
    codes[: CODES // 2] = 1e-39 * torch.randn(CODES // 2, 3)  # whole parts are of these alone
    index, _, counts = native.search(z, codes, kernel)
    assert_no_regret(z[SOME], codes, index[SOME])
    assert_cells(counts)


def test_tight_clusters_are_met_in_cells_after_all():
    generator = torch.Generator().manual_seed(1)
    centres = 20 * torch.randn(2, 32, generator=generator)

    def near(n):
        which = torch.randint(2, (n,), generator=generator)
        return centres[which] + torch.randn(n, 32, generator=generator)

    z, codes = near(6_200), near(CODES)  # enough rows for every probe
    index, _, counts = native.search(z, codes)
    assert_no_regret(z[:300], codes, index[:300])
    assert counts["scores"] < 0.7 * len(z) * CODES


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_duplicated_codes_give_the_lowest_index(kernel):
    few = CODES // 20  # more of them are left out before the search
    codes = torch.randn(CODES, 3)
    codes[-few:] = codes[:few]
    index, _, counts = native.search(torch.randn(ROWS, 3), codes, kernel)
    assert (index < CODES - few).all()
    assert_cells(counts)


@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_cosine_and_float64(kernel):
    z, codes = torch.randn(ROWS, 4), torch.randn(CODES, 4)
    index, _, counts = native.search(z, codes, kernel, "cosine")
    assert_cells(counts)
    unit = torch.nn.functional.normalize
    cosines = unit(z.double()) @ unit(codes.double()).T
    best = cosines.amax(-1)
    assert (cosines.gather(1, index[:, None]).squeeze(-1) >= best - 1e-15).all()
    z, codes = z.double() + 1e-9 * torch.randn(ROWS, 4).double(), codes.double()
    index, distance, counts = native.search(z, codes, kernel)
    assert_cells(counts)
    exact = torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist").amin(-1)
    torch.testing.assert_close(distance, exact.square(), rtol=1e-12, atol=0)


def test_threads_and_batches_do_not_change_a_bit():
    z, codes = torch.randn(ROWS, 3), torch.randn(CODES, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = native.search(z, codes)[:2]
        for threads in (2, 4):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, native.search(z, codes)[:2], expected))
    finally:
        torch.set_num_threads(before)
    # So few rows are screened against all codes.
    few = native.search(z[:50], codes)
    assert few[2]["scores"] == 50 * CODES
    assert torch.equal(few[0], expected[0][:50]) and torch.equal(few[1], expected[1][:50])
