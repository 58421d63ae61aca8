"""The CUDA screens for Hopper GPUs: both sides of every threshold, full lists, rows left over."""

import math

import pytest
import torch
from support import assert_no_regret, lattice_oracle

import vqkern
from vqkern import backend
from vqkern.ops.nearest_code import hopper

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_hopper():
    state = backend.status("cuda")["cuda"]
    if not state.available:
        pytest.skip(f"cuda: {state.reason}")


def nearest(z, codes):
    with vqkern.certificates() as certificate:
        result = vqkern.nearest_code(z.cuda(), codes.cuda(), backend="cuda")
    return result.index.cpu(), result.distance.cpu(), certificate


# A product more of halves, the change to int8, a product more of int8, the widest.
CHANNELS = [1, 12, 13, 24, 25, 36, 37, 48, 49, 64, 65, 128, 129, 255, 256]


@pytest.mark.parametrize("d", CHANNELS)
def test_lattice_and_certificate(d):
    z, codes = torch.randint(-8, 9, (700, d)).float(), torch.randint(-8, 9, (3000, d)).float()
    index, distance, _ = nearest(z, codes)
    expected, squared = lattice_oracle(z, codes)
    assert torch.equal(index, expected) and torch.equal(distance, squared.float())
    z, codes = torch.randn(700, d), torch.randn(3000, d)
    index, _, certificate = nearest(z, codes)
    assert_no_regret(z, codes, index)
    assert certificate.share > 0.99
    assert 700 <= certificate.candidates < 700 * 3000


# Both sides of a block of rows, of a group, of a tile and of the rows screened together.
@pytest.mark.parametrize(
    "n,k", [(255, 63), (256, 64), (257, 65), (513, 129), (1, 257), (65537, 300)]
)
@pytest.mark.parametrize("d", [5, 70])
def test_sizes(n, k, d):
    z, codes = torch.randn(n, d), torch.randn(k, d)
    index, distance, _ = nearest(z, codes)
    expected = vqkern.nearest_code(z, codes)
    assert torch.equal(index, expected.index) and torch.equal(distance, expected.distance)


@pytest.mark.parametrize("d", [8, 100])
@pytest.mark.parametrize("splits", [1, 2, 16])
def test_splits_change_nothing(d, splits):
    z, codes = torch.randn(600, d).cuda(), torch.randn(20000, d).cuda()
    z[5, 0] = math.nan
    index, distance = hopper.nearest_code(z, codes, splits=splits)
    expected = vqkern.nearest_code(z, codes, backend="triton")
    assert torch.equal(index, expected.index) and torch.equal(distance, expected.distance)


@pytest.mark.parametrize("d", [3, 48, 49, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_and_odd_addresses(d, dtype):
    z, codes = torch.randn(301, d).to(dtype), torch.randn(2000, d).to(dtype)
    expected = vqkern.nearest_code(z, codes)
    index, distance, _ = nearest(z, codes)
    assert torch.equal(index, expected.index) and torch.equal(distance, expected.distance)
    # A view that starts between 16-byte boundaries.
    flat = torch.cat([torch.zeros(1), codes.float().flatten()]).cuda()
    shifted = flat[1:].view(2000, d)
    result = vqkern.nearest_code(z.float().cuda(), shifted, backend="cuda")
    assert torch.equal(result.index.cpu(), expected.index)


@pytest.mark.parametrize("d", [8, 64])
def test_more_candidates_than_a_list_holds(d):
    """Codes packed more closely than the screen's format can tell apart, far from the origin of
    their spread: lists run over, and such rows are scanned.
    """
    centre = torch.randn(1, d) * 10
    codes = torch.cat([centre + 1e-5 * torch.randn(50000, d), torch.randn(3000, d) * 10])
    z = torch.cat([centre + 1e-5 * torch.randn(40, d), torch.randn(300, d) * 10])
    index, distance, certificate = nearest(z, codes)
    expected = vqkern.nearest_code(z, codes)
    assert certificate.scanned > 0
    assert torch.equal(index, expected.index) and torch.equal(distance, expected.distance)


@pytest.mark.parametrize("d", [8, 64])
def test_ties_outliers_and_values_that_are_not_finite(d):
    codes = torch.randn(500, d).repeat(6, 1)
    codes[7] *= 1e4
    codes[3::500, 1] = math.inf
    z = torch.randn(400, d)
    z[0, 0], z[1, 2], z[2] = math.nan, -math.inf, 0
    z[3], z[4], z[5] = 1e30, 1e-30, 3e4
    index, distance, certificate = nearest(z, codes)
    expected = vqkern.nearest_code(z, codes)
    assert torch.equal(index, expected.index) and torch.equal(distance, expected.distance)
    assert certificate.invalid == 2


@pytest.mark.parametrize("d", [8, 64])
def test_no_code_is_finite_or_all_are_one(d):
    z = torch.randn(300, d)
    index, distance, _ = nearest(z, torch.full((700, d), math.nan))
    assert bool((index == -1).all()) and bool((distance == math.inf).all())
    index, _, _ = nearest(z, torch.ones(70000, d))
    assert not index.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e18])
@pytest.mark.parametrize("d", [8, 64])
def test_any_scale(d, scale):
    z, codes = torch.randn(300, d) * scale, torch.randn(2000, d) * scale
    index, _, certificate = nearest(z, codes)
    assert torch.equal(index, vqkern.nearest_code(z, codes).index)
    assert certificate.share > 0.99


def test_in_a_graph():
    z, codes = torch.randn(5000, 8, device="cuda"), torch.randn(9000, 8, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        vqkern.nearest_code(z, codes, backend="cuda")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = vqkern.nearest_code(z, codes, backend="cuda")
    z.normal_()
    codes[3] = z[11]
    graph.replay()
    expected = vqkern.nearest_code(z, codes, backend="triton")
    assert torch.equal(result.index, expected.index)
    assert int(result.index[11]) == 3
