import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import (
    CPU_KERNELS,
    HAS_NATIVE,
    TOLERANCE,
    relative_error,
    value_and_gradients,
)

import vqkern
from vqkern.ops.squared_mmd import mean_bandwidth, native, reference

needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
BACKENDS = ["torch", *(["cpp"] if HAS_NATIVE else [])]
GOLDEN = Path(__file__).parents[1] / "data" / "mmd_loss.safetensors"


def dense(x, y, bandwidths, estimator="biased"):
    """The formula as written, float64, all pairs at once, through autograd."""

    def kernel(a, b):
        squared = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-squared / width) for width in bandwidths)

    def inner(a):
        matrix = kernel(a, a)
        if estimator == "biased":
            return matrix.mean()
        return (matrix.sum() - matrix.diagonal().sum()) / (len(a) * (len(a) - 1))

    return inner(x) + inner(y) - 2 * kernel(x, y).mean()


def largest_error(result, truth):
    """Relative to the largest entry, which is what a step of an optimiser sees."""
    return float((result.double() - truth).abs().max() / truth.abs().max())


def assert_right(result, truth, own_means):
    """Value within 1e-6 of itself or 1e-9 of the means that cancel in it, gradients within 1e-5."""
    allowed = max(1e-6 * abs(float(truth[0])), 1e-9 * own_means)
    assert abs(float(result[0]) - float(truth[0])) <= allowed
    assert largest_error(result[1], truth[1]) < TOLERANCE["mmd_gradient"]
    assert largest_error(result[2], truth[2]) < TOLERANCE["mmd_gradient"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("offset", [0, 5, 20])
@pytest.mark.parametrize("n,m,d", [(2, 3, 1), (50, 33, 3), (100, 200, 17), (40, 1100, 8)])
def test_value_and_gradients_against_the_dense_formula(backend, estimator, offset, n, m, d):
    x, y = torch.randn(n, d) + offset, 1.3 * torch.randn(m, d) + offset + 0.2
    widths = [0.5 * d, 3.0 * d, 6.0 * d]
    truth = value_and_gradients(lambda a, b: dense(a, b, widths, estimator), x.double(), y.double())
    result = value_and_gradients(
        lambda a, b: vqkern.squared_mmd(a, b, widths, estimator=estimator, backend=backend), x, y
    )
    assert_right(result, truth, own_means(x, y, widths))


def own_means(x, y, widths):
    far = torch.full_like(x, 1e4).double()  # without a kernel to anything
    lone = dense(far[:1], far[:1] + 1e4, widths)
    return sum(float(dense(p.double(), far[:1], widths) - lone / 2) for p in (x, y))


def data_set(name, n, m, d):
    """Two sets of points that are hard in one way each."""
    x, y = torch.randn(n, d), torch.randn(m, d)
    if name == "offset 5":
        return x + 5, y + 5
    if name == "offset 20":
        return x + 20, 1.2 * y + 20
    if name == "near":  # every feature beside some code, as a good quantizer has it
        return y[torch.randint(m, (n,))] + 1e-3 * x, y
    if name == "near duplicates":  # both sets beside the same points: their pulls all but cancel
        base = torch.randn(min(n, m), d)
        return base.repeat(n // len(base), 1) + 1e-4 * x, base.repeat(m // len(base), 1) + 1e-4 * y
    if name == "modes":
        return x + 100 * torch.randint(2, (n, 1)), y + 100 * torch.randint(2, (m, 1))
    return x, y


DATA_SETS = ["gaussian", "offset 5", "offset 20", "near", "near duplicates", "modes"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n,m,d", [(50, 100, 6), (300, 600, 8)])
@pytest.mark.parametrize("name", DATA_SETS)
def test_gradients_relative_to_their_largest_entry(backend, n, m, d, name):
    """Also where the pulls of the two sets cancel: where float32 would leave 1e-2."""
    x, y = data_set(name, n, m, d)
    widths = [0.5 * d, 1.0 * d, 2.0 * d, 4.0 * d, 8.0 * d]
    truth = value_and_gradients(lambda a, b: dense(a, b, widths), x.double(), y.double())
    result = value_and_gradients(
        lambda a, b: vqkern.squared_mmd(a, b, widths, backend=backend), x, y
    )
    assert_right(result, truth, own_means(x, y, widths))


@needs_native
@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize("name", DATA_SETS)
def test_float64_where_float32_would_not_do(kernel, name):
    """The decision, and both results, at a size at which float32 may be enough."""
    x, y = data_set(name, 500, 1000, 8)
    widths = torch.tensor([2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
    truth = reference.squared_mmd(x.double(), y.double(), widths, False, True, True)
    result, wide = native.swept(x, y, widths, False, True, True, kernel)
    assert_right(result, truth, own_means(x, y, widths.tolist()))
    assert wide == (name == "near duplicates")
    # Nothing is ever taken in float32 that was given in float64.
    double, wide = native.swept(x.double(), y.double(), widths, False, True, True, kernel)
    assert wide and abs(float(double[0] - truth[0])) < 1e-14
    assert all(
        largest_error(got, want) < 1e-10 for got, want in zip(double[1:], truth[1:], strict=True)
    )


@needs_native
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_a_gradient_that_cancels_where_the_value_does_not(kernel):
    """Two clumps out of each other's reach: value 2, and pulls a thousandth of what they sum up."""
    x, y = 1e-3 * torch.randn(400, 8), 2 * torch.eye(8)[0] + 2 + 1e-3 * torch.randn(600, 8)
    widths = torch.tensor([1.0], dtype=torch.float64)
    truth = reference.squared_mmd(x.double(), y.double(), widths, False, True, True)
    result, _ = native.swept(x, y, widths, False, True, True, kernel)
    assert_right(result, truth, own_means(x, y, widths.tolist()))


@needs_native
@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize("name", ["gaussian", "offset 20", "near", "modes"])
@pytest.mark.parametrize("d", [1, 8, 23])
def test_narrow_kernels_do_not_need_float64(kernel, name, d):
    """Products of centred points would leave 1e-4 here; differences do not."""
    x, y = data_set(name, 333, 700, d)
    widths = 2.0 * d * torch.tensor([2**-11, 2**-9, 0.01, 2**-5, 0.5, 2.0], dtype=torch.float64)
    truth = reference.squared_mmd(x.double(), y.double(), widths, False, True, True)
    result, wide = native.swept(x, y, widths, False, True, True, kernel)
    assert_right(result, truth, own_means(x, y, widths.tolist()))
    assert not wide or (name, d) != ("gaussian", 8)
    alone, _ = native.swept(x, y, widths, False, False, False, kernel)
    assert abs(float(alone[0] - result[0])) < 1e-8


@needs_native
@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize("widths", [[4.0], [1, 2, 4, 8, 16], [0.7, 3, 3.1, 50]], ids=str)
def test_every_cpu_kernel(kernel, widths):
    x, y = torch.randn(330, 9), torch.randn(277, 9) * 0.8
    widths = torch.tensor(widths, dtype=torch.float64)
    truth = reference.squared_mmd(x.double(), y.double(), widths, False, True, True)
    result, wide = native.swept(x, y, widths, False, True, True, kernel)
    assert not wide
    assert abs(float(result[0] - truth[0])) < 1e-6 * len(widths)
    assert relative_error(result[1], truth[1]) < TOLERANCE["mmd_gradient"]
    assert relative_error(result[2], truth[2]) < TOLERANCE["mmd_gradient"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_program_s_formula(backend):
    data = load_file(GOLDEN)
    z, codebook = data["in/z"], data["in/codebook"]
    for name, factor in (("paper_2s2", 2.0), ("paper_s2", 1.0)):
        widths = factor * data["in/sigma2"]
        double = value_and_gradients(
            lambda a, b, w=widths: vqkern.squared_mmd(a, b, w), z.double(), codebook.double()
        )
        single = value_and_gradients(
            lambda a, b, w=widths: vqkern.squared_mmd(a, b, w, backend=backend), z, codebook
        )
        for result, rtol in ((double, 1e-9), (single, 1e-5)):
            for got, key in zip(result, ("value", "grad_z", "grad_codebook"), strict=True):
                assert relative_error(got, data[f"out/{name}_{key}"]) < rtol, (name, key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_sets_give_zero(backend):
    x = torch.randn(333, 5) + 7
    assert float(vqkern.squared_mmd(x, x, backend=backend)) == pytest.approx(0, abs=1e-7)
    assert float(vqkern.squared_mmd(x, x.clone(), backend=backend)) == pytest.approx(0, abs=1e-7)
    point = torch.ones(8, 3)
    assert float(vqkern.squared_mmd(point, point, backend=backend)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for estimator in ("biased", "unbiased"):
        assert torch.autograd.gradcheck(
            lambda x, y, e=estimator: vqkern.squared_mmd(
                x, y, [1.0, 5.0], estimator=e, backend=backend
            ),
            (x, y),
        )


def test_mean_bandwidth_is_the_mean_squared_distance_between_distinct_points():
    x, y = torch.randn(13, 4) + 3, torch.randn(9, 4)
    joint = torch.cat([x, y]).double()
    squared = torch.cdist(joint, joint).square()
    expected = squared.sum() / (22 * 21)
    torch.testing.assert_close(mean_bandwidth(x, y), expected, rtol=1e-10, atol=0)
    default = vqkern.squared_mmd(x.double(), y.double())
    explicit = dense(x.double(), y.double(), [expected * f for f in (0.25, 0.5, 1, 2, 4)])
    torch.testing.assert_close(default, explicit, rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_needs_a_gradient_gets_one(backend):
    x = torch.randn(5, 2)
    y = torch.randn(6, 2, requires_grad=True)
    vqkern.squared_mmd(x, y, backend=backend).backward()
    assert y.grad is not None and x.grad is None
    with torch.no_grad():
        assert not vqkern.squared_mmd(x, y, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_that_is_not_finite_shows(backend):
    x = torch.randn(5, 2)
    x[1, 0] = math.nan
    assert not math.isfinite(
        float(vqkern.squared_mmd(x, torch.randn(6, 2), [1.0], backend=backend))
    )


def test_a_second_derivative_raises():
    y = torch.randn(6, 2, requires_grad=True)
    value = vqkern.squared_mmd(torch.randn(5, 2), y)
    (gradient,) = torch.autograd.grad(value, y, create_graph=True)
    with pytest.raises(RuntimeError, match="squared_mmd_backward"):
        gradient.sum().backward()


@needs_native
def test_threads_do_not_change_a_bit():
    x, y = torch.randn(700, 8), torch.randn(900, 8)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(
            value_and_gradients(lambda a, b: vqkern.squared_mmd(a, b, backend="cpp"), x, y)
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_one_graph(backend):
    x = torch.randn(7, 3, requires_grad=True)
    y = torch.randn(5, 3, requires_grad=True)
    widths = torch.tensor([1.0, 2.0], dtype=torch.float64)
    arguments = (x, y, widths, False, True, True, backend)
    torch.library.opcheck(torch.ops.vqkern.squared_mmd.default, arguments)

    def loss(x, y):
        return vqkern.squared_mmd(x, y, backend=backend)

    expected = torch.autograd.grad(loss(x, y), (x, y))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(x, y), (x, y)), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2), torch.ones(3, 4)),
            ValueError,
            "must have the same D",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3), torch.ones(3, 4)),
            ValueError,
            r"x must have shape \[N, D\]",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2), torch.ones(0, 2)),
            ValueError,
            "y must hold at least 1",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(1, 2), torch.ones(3, 2), estimator="unbiased"),
            ValueError,
            "x must hold at least 2",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2), torch.ones(3, 2), [1.0, -2.0]),
            ValueError,
            "bandwidths must be positive.*-2",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2), torch.ones(3, 2), [0.0]),
            ValueError,
            "bandwidths must be positive.*got 0.0",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2), torch.ones(3, 2), []),
            ValueError,
            "bandwidths must be a non-empty",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2), torch.ones(3, 2), estimator="v"),
            ValueError,
            "estimator must be one of",
        ),
        (
            lambda: vqkern.squared_mmd(torch.ones(3, 2).long(), torch.ones(3, 2)),
            TypeError,
            "x must be floating point",
        ),
    ],
    ids=[
        "dims",
        "vector",
        "empty",
        "unbiased-of-one",
        "negative",
        "zero",
        "no-bandwidths",
        "estimator",
        "integer",
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
