"""The Triton kernels on a GPU: exactness, determinism, and the layers that use them."""

import math

import pytest
import torch
from support import assert_no_regret, lattice_oracle, relative_error

import vqkern

pytestmark = pytest.mark.gpu

SHAPES = [
    (1, 1, 1),
    (63, 100, 3),
    (1000, 4097, 8),
    (129, 5000, 17),
    (300, 3000, 64),
    (65, 700, 257),
    (65, 700, 300),
    (300, 9000, 512),
]


@pytest.fixture(params=["triton", "cuda"])
def nearest(request):
    """The search by one backend, of CPU tensors."""
    state = vqkern.backend.status("cuda")[request.param]
    if not state.available:
        pytest.skip(f"{request.param}: {state.reason}")

    def search(z, codes):
        if request.param == "cuda" and codes.shape[1] > 256:
            pytest.skip("cuda: more than 256 channels")
        result = vqkern.nearest_code(z.cuda(), codes.cuda(), backend=request.param)
        return result.index.cpu(), result.distance.cpu()

    return search


def test_small_lattice(nearest):
    """Every kernel of the search, the sums and the MMD, small enough for compute-sanitizer."""
    z, codes = torch.randint(-3, 4, (65, 9)).float(), torch.randint(-3, 4, (300, 9)).float()
    index, _ = nearest(z, codes)
    assert torch.equal(index, lattice_oracle(z, codes)[0])
    nearest(z, torch.ones(300, 9))
    sums = vqkern.code_sums(z.cuda(), index.cuda(), 300, backend="triton")
    assert int(sums.count.sum()) == 65
    y = codes.cuda().requires_grad_()
    vqkern.squared_mmd(z.cuda(), y, [2.0, 8.0], backend="triton").backward()
    vqkern.gaussian_w2(z.cuda(), y, backend="triton").backward()
    assert bool(y.grad.isfinite().all())
    for d in (9, 70):  # more points, of few and of many channels: in float32
        x, y = torch.randn(600, d).cuda(), torch.randn(600, d).cuda().requires_grad_()
        for rates in ([2.0, 8.0], [2.0, 4.0, 8.0]):
            vqkern.squared_mmd(x, y, rates, backend="triton").backward()
        assert bool(y.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n,k,d", SHAPES)
def test_integer_lattice_bit_for_bit(nearest, n, k, d, dtype):
    z = torch.randint(-8, 9, (n, d)).to(dtype)
    codes = torch.randint(-8, 9, (k, d)).to(dtype)
    index, distance = nearest(z, codes)
    expected, squared = lattice_oracle(z, codes)
    assert torch.equal(index, expected)
    assert torch.equal(distance, squared.float())


@pytest.mark.parametrize("offset", [0, 10, 100, 1000])
@pytest.mark.parametrize("n,k,d", SHAPES)
def test_no_regret_off_centre(nearest, n, k, d, offset):
    z, codes = torch.randn(n, d) + offset, torch.randn(k, d) + offset
    assert_no_regret(z, codes, nearest(z, codes)[0])


def test_ties_and_values_that_are_not_finite(nearest):
    codes = torch.randn(20, 5).repeat(30, 1)
    z = torch.randn(50, 5)
    z[7, 2], codes[0, 0] = math.nan, math.inf
    index, distance = nearest(z, codes)
    assert index[7] == -1 and distance[7] == math.inf
    rest = torch.arange(50) != 7
    assert bool((index[rest] >= 1).all()) and bool((index[rest] <= 20).all())
    expected = vqkern.nearest_code(z, codes, backend="torch").index
    assert torch.equal(index, expected)


def test_all_codes_equal(nearest):
    index, distance = nearest(torch.zeros(9, 4), torch.ones(20000, 4))
    assert not index.any() and bool((distance == 4).all())


@pytest.mark.parametrize("n,k,d", [(4096, 65536, 16), (512, 16384, 256), (3, 262144, 32)])
def test_large_codebooks_agree_with_the_cpu_and_250_runs_agree(nearest, n, k, d):
    z, codes = torch.randn(n, d), torch.randn(k, d)
    index, distance = nearest(z, codes)
    expected = vqkern.nearest_code(z, codes)
    assert torch.equal(index, expected.index)
    assert torch.equal(distance, expected.distance)
    for _ in range(250):
        again = nearest(z, codes)
        assert torch.equal(again[0], index) and torch.equal(again[1], distance)


def test_code_sums():
    z, index = torch.randn(20000, 33), torch.randint(-1, 3000, (20000,))
    expected = vqkern.code_sums(z, index, 3000)
    runs = [vqkern.code_sums(z.cuda(), index.cuda(), 3000, backend="triton") for _ in range(20)]
    assert torch.equal(runs[0].count.cpu(), expected.count)
    torch.testing.assert_close(runs[0].total.cpu(), expected.total, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(run.total, runs[0].total) for run in runs)


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize(
    "n,m,d,rates",
    [
        (500, 700, 8, (1, 2, 4)),
        (900, 1300, 3, (1, 2, 4)),
        (3000, 5000, 16, (1, 2, 4, 8, 16)),
        (3000, 5000, 16, (1, 3, 5, 7, 9)),
        (900, 1300, 32, (1, 2, 4)),
        (900, 1300, 32, (1, 3, 5)),
        (100, 90, 64, (1, 2, 4)),
    ],
)
def test_squared_mmd(n, m, d, rates, offset):
    x, y = torch.randn(n, d) + offset, 1.2 * torch.randn(m, d) + offset
    widths = [float(d) * rate for rate in rates]
    double = [t.double().requires_grad_() for t in (x, y)]
    truth = vqkern.squared_mmd(*double, widths)
    truth.backward()
    single = [t.cuda().requires_grad_() for t in (x, y)]
    value = vqkern.squared_mmd(*single, widths, backend="triton")
    value.backward()
    assert abs(float(value) - float(truth)) < 1e-6 * 2 * len(widths)
    for got, want in zip(single, double, strict=True):
        assert relative_error(got.grad.cpu(), want.grad) < 1e-5


@pytest.mark.parametrize("n,k,d", [(500, 700, 3), (3000, 65536, 16), (900, 800, 64), (99, 99, 70)])
@pytest.mark.parametrize("offset", [0, 20])
def test_gaussian_w2(n, k, d, offset):
    """In the D x D problem: one launch up to 64 channels, matrix products above."""
    mix = torch.randn(d, d) / d**0.5
    x, y = torch.randn(n, d) + offset, 1.2 * torch.randn(k, d) @ mix + offset
    double = [t.double().requires_grad_() for t in (x, y)]
    truth = vqkern.gaussian_w2(*double) + vqkern.prior_w2(double[1])
    truth.backward()
    runs = []
    for _ in range(20):
        single = [t.cuda().requires_grad_() for t in (x, y)]
        value = vqkern.gaussian_w2(*single) + vqkern.prior_w2(single[1])
        value.backward()
        runs.append((value.detach(), *(t.grad for t in single)))
    assert float(runs[0][0]) == pytest.approx(float(truth), rel=1e-6)
    for got, want in zip(runs[0][1:], double, strict=True):
        assert relative_error(got.cpu(), want.grad) < 1e-5
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_gaussian_w2_of_a_batch():
    """Each pair is solved as if it were alone."""
    x, y = torch.randn(40, 300, 32), 1.2 * torch.randn(40, 400, 32) + 1
    double = y.double().requires_grad_()
    truth = vqkern.gaussian_w2(x.double(), double)
    truth.sum().backward()
    single = y.cuda().requires_grad_()
    value = vqkern.gaussian_w2(x.cuda(), single)
    value.sum().backward()
    torch.testing.assert_close(value.double().cpu(), truth, rtol=1e-6, atol=0)
    for got, want in zip(single.grad.cpu(), double.grad, strict=True):
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("d", [16, 64])
def test_gaussian_w2_in_a_graph(d):
    """A captured call counts its programs' arrivals from 0 at every replay, on other points too."""
    x, y = torch.randn(3000, d).cuda(), (1.2 * torch.randn(5000, d)).cuda().requires_grad_()

    def step():
        value = vqkern.gaussian_w2(x, y)
        return value.detach(), *torch.autograd.grad(value, y)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        x.copy_(torch.randn(3000, d, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("d", [16, 64])
def test_gaussian_w2_of_nearly_flat_codes(d):
    spread = torch.ones(d).masked_fill(torch.arange(d) % 2 == 0, 1e-4)
    turn = torch.linalg.qr(torch.randn(d, d)).Q
    x, y = torch.randn(3000, d), torch.randn(5000, d) * spread @ turn
    double = y.double().requires_grad_()
    vqkern.gaussian_w2(x.double(), double).backward()
    single = y.cuda().requires_grad_()
    vqkern.gaussian_w2(x.cuda(), single).backward()
    assert relative_error(single.grad.cpu(), double.grad) < 1e-3


@pytest.mark.parametrize("name", ["vanilla", "ema", "mmd", "wasserstein"])
def test_a_layer_trains(name):
    q = vqkern.build_quantizer(name, dim=8, codebook_size=4096, channel_dim=1).cuda()
    z = torch.randn(4, 8, 16, 16, device="cuda", requires_grad=True)
    result = q(z)
    (result.quantized.sum() + result.loss).backward()
    assert bool(z.grad.isfinite().all()) and bool(q.codes.isfinite().all())
    q.eval()
    assert torch.equal(q.decode(q.encode(z)), q(z).quantized)
