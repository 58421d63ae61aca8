import math

import mpmath
import numpy as np
import pytest
import torch
from support import HAS_NATIVE, relative_error, value_and_gradients

import vqkern
from vqkern.ops.gaussian_w2 import Moments, iteration, moments, reference

BACKENDS = ["torch", *(["cpp"] if HAS_NATIVE else [])]
needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")


def exact(x, y, ridge=None):
    """Value and T by mpmath with 40 digits, from numpy moments; no code of the package."""
    x, y = (p.detach().double().numpy() for p in (x, y))
    d = x.shape[1]
    with mpmath.workdps(40):

        def fitted(points):
            m = mpmath.matrix(points.tolist())
            n = len(points)
            mean = [mpmath.fsum(m[:, i]) / n for i in range(d)]
            centred = mpmath.matrix(n, d)
            for i in range(n):
                for j in range(d):
                    centred[i, j] = m[i, j] - mean[j]
            return mpmath.matrix(mean), centred.T * centred / (n - 1)

        def apply(matrix, f):
            values, vectors = mpmath.eigsy((matrix + matrix.T) / 2)
            return vectors * mpmath.diag([f(max(v, 0)) for v in values]) * vectors.T

        def trace(m):
            return sum(m[i, i] for i in range(d))

        (m1, s1), (m2, s2) = fitted(x), fitted(y)
        a = apply(s1, mpmath.sqrt)
        c = a * s2 * a
        e = mpmath.mpf("1e-14") * trace(c) / d if ridge is None else mpmath.mpf(ridge)
        root = apply(c, lambda v: mpmath.sqrt(v + e))
        t = a * apply(c, lambda v: 1 / mpmath.sqrt(v + e)) * a
        apart = m2 - m1
        value = (apart.T * apart)[0] + trace(s1) + trace(s2) - 2 * trace(root)
        return float(value), np.array(t.tolist(), dtype=float)


def exact_gradient(x, y, t):
    x, y = (p.detach().double().numpy() for p in (x, y))
    k = len(y)
    centred = y - y.mean(0)
    pull = 2 / k * (y.mean(0) - x.mean(0))
    return torch.from_numpy(pull + 2 / (k - 1) * (centred - centred @ t))


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


SHAPES = [(9, 8, 2), (40, 33, 5), (30, 50, 8)]


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("n,k,d", SHAPES)
def test_value_and_both_gradients_against_forty_digits(n, k, d, offset):
    x = torch.randn(n, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64) + offset
    y = 2 * torch.randn(k, d, dtype=torch.float64) + offset + 1
    value, gx, gy = value_and_gradients(vqkern.gaussian_w2, x, y)
    truth, t = exact(x, y)
    _, t_x = exact(y, x)
    assert value.dtype == torch.float64 and abs(float(value) / truth - 1) < 1e-9
    assert relative_error(gy, exact_gradient(x, y, t)) < 1e-6
    assert relative_error(gx, exact_gradient(y, x, t_x)) < 1e-6
    for backend in BACKENDS:  # float32 points, at their exact values, to float32 rounding
        x32, y32 = x.float(), y.float()
        truth, t = exact(x32, y32)
        value, gx, gy = value_and_gradients(
            lambda a, b, c=backend: vqkern.gaussian_w2(a, b, backend=c), x32, y32
        )
        assert value.dtype == gx.dtype == gy.dtype == torch.float32
        assert abs(float(value) / truth - 1) < 2.0**-23
        assert relative_error(gy, exact_gradient(x32, y32, t)) < 2.0**-23


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_of_the_directions_nearly_flat(backend):
    """Where float32 eigh errs by 43 %."""
    d = 8
    spread = torch.ones(d, dtype=torch.float64)
    spread[::2] = 1e-4
    x = torch.randn(300, d)
    y = ((torch.randn(200, d) * spread) @ rotation(d)).float()
    _, _, gradient = value_and_gradients(
        lambda a, b: vqkern.gaussian_w2(a, b, backend=backend), x, y
    )
    truth, t = exact(x, y)
    assert relative_error(gradient, exact_gradient(x, y, t)) < 1e-6


@pytest.mark.parametrize("ridge", [None, 0.0, 1e-3, 2.0])
def test_gradients_are_those_of_the_ridged_value(ridge):
    x = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: vqkern.gaussian_w2(a, b, ridge=ridge), (x, y))
    assert torch.autograd.gradcheck(lambda b: vqkern.prior_w2(b, ridge=ridge), (y,))
    truth, t = exact(x, y, ridge)
    assert vqkern.gaussian_w2(x, y, ridge=ridge).item() == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_samples_are_at_distance_zero_and_stay(backend):
    x = torch.randn(500, 7) * torch.linspace(0.1, 3, 7) + 4
    call = lambda a, b: vqkern.gaussian_w2(a, b, backend=backend)  # noqa: E731
    value, gx, gy = value_and_gradients(call, x, x.clone())
    assert abs(float(value)) < 1e-9
    assert float(gx.abs().max()) < 1e-10 and float(gy.abs().max()) < 1e-10
    (same,) = torch.autograd.grad(call(x.requires_grad_(), x), x)
    assert float(same.abs().max()) < 1e-10


def test_nearly_equal_samples_lose_no_digits():
    x = torch.randn(60, 5, dtype=torch.float64)
    y = x + 1e-5 * torch.randn(60, 5, dtype=torch.float64)
    truth, _ = exact(x, y)
    assert float(vqkern.gaussian_w2(x, y)) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_commuting_and_repeated_eigenvalues(backend):
    """Points +-s_i e_i have diagonal covariances, with repeated eigenvalues throughout."""

    def cross(scale):
        scale = torch.tensor(scale)
        points = torch.diag(scale * math.sqrt((2 * len(scale) - 1) / 2))
        return torch.cat([points, -points])

    x, y = cross([1.0, 1.0, 1.0, 1.0]), cross([2.0, 2.0, 3.0, 3.0]) + 0.5
    value, gx, gy = value_and_gradients(
        lambda a, b: vqkern.gaussian_w2(a, b, backend=backend), x, y
    )
    assert float(value) == pytest.approx(4 * 0.25 + 1 + 1 + 4 + 4, rel=1e-6)
    shrink = 1 - 1 / torch.tensor([2.0, 2.0, 3.0, 3.0])
    torch.testing.assert_close(gy, 2 / 8 * 0.5 + 2 / 7 * shrink * (y - 0.5))
    assert float(vqkern.prior_w2(x, backend=backend)) == pytest.approx(-4, abs=1e-6)


def finite_pull(x, y, **options):
    value, gx, gy = value_and_gradients(lambda a, b: vqkern.gaussian_w2(a, b, **options), x, y)
    assert bool(value.isfinite()) and bool(gx.isfinite().all()) and bool(gy.isfinite().all())
    return value, gy


@pytest.mark.parametrize("ridge", [None, 0.0])
@pytest.mark.parametrize("backend", BACKENDS)
class TestRankDeficient:
    def test_equal_codes_move_with_their_mean(self, backend, ridge):
        x, y = torch.randn(50, 4) + 1, torch.full((9, 4), 7.3)
        value, gy = finite_pull(x, y, backend=backend, ridge=ridge)
        apart = 7.3 - x.mean(0)
        assert float(value) == pytest.approx(float(apart.square().sum() + x.var(0).sum()), rel=1e-5)
        torch.testing.assert_close(gy, (2 / 9 * apart).expand(9, 4))

    def test_one_line(self, backend, ridge):
        """Along the line it is the distance in one dimension, across it the features' variance."""
        # Whole numbers: rounded to float32, points would not lie on a line.
        line = torch.tensor([1.0, 2.0, -1.0, 0.0, 3.0], dtype=torch.float64)
        along = torch.randint(-20, 20, (40, 1)) / 16
        x, y = torch.randn(60, 5), (along * line).float()
        line /= line.norm()
        value, gy = finite_pull(x, y, backend=backend, ridge=ridge)
        s1, on_line = x.double().T.cov(), x.double() @ line
        spread, reached = y.double() @ line, (line @ s1 @ line).sqrt()
        expected = (x.double().mean(0) - y.double().mean(0)).square().sum()
        expected += s1.trace() + spread.var() - 2 * spread.std() * reached
        assert on_line.std() == pytest.approx(float(reached))
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        # T y = s1 u / (sd reached) along the line u.
        pull = torch.outer(spread - spread.mean(), line - s1 @ line / (reached * spread.std()))
        mean = 2 / 40 * (y.double().mean(0) - x.double().mean(0))
        assert relative_error(gy, mean + 2 / 39 * pull) < 1e-5

    def test_fewer_codes_than_channels(self, backend, ridge):
        x, y = torch.randn(70, 9), torch.randn(4, 9) + 1
        value, gy = finite_pull(x, y, backend=backend, ridge=ridge)
        truth, t = exact(x, y)
        assert float(value) == pytest.approx(truth, rel=1e-5)
        assert relative_error(gy, exact_gradient(x, y, t)) < 1e-5
        finite_pull(y, x, backend=backend, ridge=ridge)
        finite_pull(y, y.clone(), backend=backend, ridge=ridge)
        y = y.requires_grad_()
        (gradient,) = torch.autograd.grad(vqkern.prior_w2(y, backend=backend, ridge=ridge), y)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("ridge", [None, 0.0])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_that_vary_in_different_directions(backend, turned, ridge):
    """Nothing of either reaches the other: each is drawn to its mean alone, and rounding of their
    product, which is all there is, to nothing."""
    for seed, (d, shared) in enumerate([(2, 1), (5, 3), (12, 4), (40, 20)]):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape, generator=generator):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        turn = torch.linalg.qr(draw(d, d)).Q if turned else torch.eye(d, dtype=torch.float64)
        a, b = draw(60, shared) @ turn[:shared], draw(50, d - shared) @ turn[shared:]
        s1, s2 = a.T.cov()[None], b.T.cov()[None]
        mean = torch.zeros(1, d, dtype=torch.float64)
        of = [Moments(torch.full((1,), 60.0).double(), mean, s.requires_grad_()) for s in (s1, s2)]
        value = vqkern.gaussian_w2(*of, ridge=ridge, backend=backend)
        to_x, to_y = torch.autograd.grad(value.sum(), (s1, s2))
        total = sum(float(s.detach()[0].trace()) for s in (s1, s2))
        assert float(value.detach()) == pytest.approx(total, rel=1e-6)
        for points, slope in ((a, to_x), (b, to_y)):
            assert relative_error(points @ slope[0], points) < 1e-7


HARD = ["full", "half flat", "both half flat", "one line", "few codes", "few features", "equal"]


@pytest.mark.parametrize("d", [7, 24])
@pytest.mark.parametrize("case", HARD)
def test_matrix_products_in_place_of_an_eigendecomposition(case, d):
    """What GPUs do, on the CPU: as good on ordinary codes, within 1e-3 on any."""
    generator = torch.Generator().manual_seed(4)
    x, y, turn = (
        torch.randn(n, d, dtype=torch.float64, generator=generator) for n in (300, 200, d)
    )
    turn = torch.linalg.qr(turn).Q
    flat = torch.where(torch.arange(d) % 2 == 0, 1e-4, 1.0)
    if "half flat" in case:
        y = y * flat @ turn
    if case == "both half flat":
        x = x * flat
    if case == "one line":
        y = y[:, :1] * turn[:1]
    if case == "equal":
        y = y[:1].expand(9, d)
    x = x[: d // 2] if case == "few features" else x
    y = y[: d // 2] if case == "few codes" else y
    (_, m_x, s1), (_, m_y, s2) = (reference.moments(p[None], None) for p in (x, y))
    problem = (m_x, m_y), (s1, s2), None, True
    want = reference.value_and_gradients(*problem)
    got = reference.value_and_gradients(*problem, iteration.roots, iteration.LEAST_RIDGE)
    tolerance = 1e-8 if case == "full" else 1e-3
    close = 1e-9 if case == "full" else 5e-6
    assert got.value.item() == pytest.approx(want.value.item(), rel=close)
    for points, mean, a, b in (
        (y, m_y, got.codes, want.codes),
        (x, m_x, got.features, want.features),
    ):
        pulls = [((points - mean) @ matrix[0]) for matrix in (a, b)]
        assert float((pulls[0] - pulls[1]).norm()) <= tolerance * float(pulls[1].norm())


@pytest.mark.parametrize("backend", BACKENDS)
def test_prior_w2(backend):
    y = torch.randn(80, 6) * torch.linspace(0.3, 2, 6) + 0.3
    value, gradient = value_and_gradients(lambda a: vqkern.prior_w2(a, backend=backend), y)
    s = y.double().T.cov()
    eigenvalues, vectors = np.linalg.eigh(s.numpy())
    mean = y.double().mean(0)
    expected = float(mean.square().sum()) + float((eigenvalues - 2 * eigenvalues**0.5).sum())
    assert float(value) == pytest.approx(expected, rel=1e-6)
    t = torch.from_numpy(vectors / eigenvalues**0.5 @ vectors.T)
    want = 2 / 80 * mean + 2 / 79 * (y.double() - mean) @ (torch.eye(6) - t)
    assert relative_error(gradient, want) < 2e-7
    # Whitened by their own moments, points are at the minimum, -D.
    white = (y.double() - mean) @ t
    value, gradient = value_and_gradients(vqkern.prior_w2, white)
    assert float(value) == pytest.approx(-6, abs=1e-12) and float(gradient.abs().max()) < 1e-12


def test_covariance_sqrt():
    y = torch.randn(30, 5, dtype=torch.float64) * torch.linspace(0.5, 2, 5) + 3
    mean, covariance, root = vqkern.covariance_sqrt(y)
    torch.testing.assert_close(mean, y.mean(0))
    torch.testing.assert_close(covariance, y.T.cov())
    torch.testing.assert_close(root @ root, covariance)
    assert torch.equal(root, root.mT) or float((root - root.mT).abs().max()) < 1e-14
    assert bool((torch.linalg.eigvalsh(root) > 0).all())
    y = y[:9].requires_grad_()
    assert torch.autograd.gradcheck(lambda a: tuple(vqkern.covariance_sqrt(a)), (y,))
    # An identity covariance has one eigenvalue, five times; equal points have none but 0.
    cross = torch.cat([torch.eye(3), -torch.eye(3)]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: vqkern.covariance_sqrt(a).sqrt, (cross,))
    flat = torch.ones(4, 3, requires_grad=True)
    result = vqkern.covariance_sqrt(flat)
    assert result.sqrt.dtype == torch.float32 and not result.sqrt.any()
    (gradient,) = torch.autograd.grad(result.sqrt.sum(), flat)
    assert not gradient.any()
    assert bool(vqkern.covariance_sqrt(flat.detach() * math.nan).sqrt.isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_are_independent_problems(backend):
    x, y = torch.randn(2, 3, 20, 4), 2 * torch.randn(2, 3, 15, 4) + 1
    y[1, 2] = math.nan
    value, gx, gy = value_and_gradients(
        lambda a, b: vqkern.gaussian_w2(a, b, backend=backend).nan_to_num(0).sum(), x, y
    )
    values = vqkern.gaussian_w2(x, y, backend=backend)
    assert values.shape == (2, 3) and bool(values[1, 2].isnan())
    for i, j in ((0, 0), (1, 1)):
        alone, to_x, to_y = value_and_gradients(
            lambda a, b: vqkern.gaussian_w2(a, b, backend=backend), x[i, j], y[i, j]
        )
        torch.testing.assert_close(values[i, j], alone)
        torch.testing.assert_close(gx[i, j], to_x)
        torch.testing.assert_close(gy[i, j], to_y)
    assert vqkern.prior_w2(y, backend=backend).shape == (2, 3)
    assert vqkern.covariance_sqrt(y[0]).sqrt.shape == (3, 4, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_that_is_not_finite_shows(backend, bad):
    for side in (0, 1):
        points = [torch.randn(20, 3), torch.randn(30, 3)]
        points[side][4, 1] = bad
        results = value_and_gradients(
            lambda a, b: vqkern.gaussian_w2(a, b, backend=backend), *points
        )
        assert bool(results[0].isnan())
        assert bool(results[1 + side].isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_needs_a_gradient_gets_one(backend):
    x, y = torch.randn(9, 3), torch.randn(8, 3, requires_grad=True)
    vqkern.gaussian_w2(x, y, backend=backend).backward()
    assert y.grad is not None and x.grad is None
    vqkern.gaussian_w2(x.requires_grad_(), y.detach(), backend=backend).backward()
    assert bool(x.grad.any())
    with torch.no_grad():
        assert not vqkern.gaussian_w2(x, y, backend=backend).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_and_strided_points_are_taken_exactly(backend, dtype):
    x, y = torch.randn(40, 6).to(dtype)[:, ::2], torch.randn(3, 30).to(dtype).T
    value, gx, gy = value_and_gradients(
        lambda a, b: vqkern.gaussian_w2(a, b, backend=backend), x, y
    )
    wide = value_and_gradients(vqkern.gaussian_w2, x.double(), y.double())
    assert float(value) == pytest.approx(float(wide[0]), rel=1e-6)
    assert gx.dtype == gy.dtype == dtype
    assert relative_error(gy, wide[2]) < 2 * torch.finfo(dtype).eps


def test_a_second_derivative_raises():
    y = torch.randn(6, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        vqkern.gaussian_w2(torch.randn(5, 2), y), y, create_graph=True
    )
    with pytest.raises(RuntimeError, match="gaussian_w2_of_points_backward"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="moments_backward"):
        (gradient,) = torch.autograd.grad(moments(y)[2].sum(), y, create_graph=True)
        gradient.sum().backward()
    fitted = moments(y.detach())
    covariance = fitted.covariance.requires_grad_()
    value = vqkern.gaussian_w2(torch.randn(5, 2), fitted._replace(covariance=covariance))
    (gradient,) = torch.autograd.grad(value, covariance, create_graph=True)
    with pytest.raises(RuntimeError, match="gaussian_w2_backward"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_one_graph(backend):
    x, y = torch.randn(7, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    valid = torch.rand(1, 7) > 0.3
    torch.library.opcheck(torch.ops.vqkern.moments.default, (x[None], valid, backend))
    s = torch.eye(3, dtype=torch.float64)[None].requires_grad_()
    wider = (2 * s.detach()).requires_grad_()
    m = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(
        torch.ops.vqkern.gaussian_w2.default, (m, s, m, wider, None, True, False, backend)
    )
    y = torch.randn(1, 5, 3, requires_grad=True)
    given = m.detach(), s.detach()
    of_points = torch.ops.vqkern.gaussian_w2_of_points.default
    torch.library.opcheck(of_points, (None, *given, y, None, False, False, backend))
    both = x[None].detach().requires_grad_(), None, None, y
    torch.library.opcheck(of_points, (*both, None, True, False, backend))
    torch.library.opcheck(torch.ops.vqkern.square_root.default, (wider,))
    y = y.detach()[0].requires_grad_()

    def loss(x, y):
        prior = vqkern.prior_w2(y, backend=backend)
        return (
            vqkern.gaussian_w2(x, y, backend=backend) + prior + vqkern.covariance_sqrt(y)[2].sum()
        )

    expected = torch.autograd.grad(loss(x, y), (x, y))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(x, y), (x, y)), expected, strict=True):
        torch.testing.assert_close(got, want)


def ones(*shape):
    return torch.ones(shape)


BAD = {
    "dims": (
        lambda: vqkern.gaussian_w2(ones(3, 2), ones(3, 4)),
        ValueError,
        r"same D.*\[2\] and \[4\]",
    ),
    "batches": (
        lambda: vqkern.gaussian_w2(ones(2, 3, 2), ones(3, 3, 2)),
        ValueError,
        "same leading dimensions",
    ),
    "vector": (
        lambda: vqkern.gaussian_w2(ones(3), ones(3, 4)),
        ValueError,
        r"x must have shape \[\.\.\., N, D\] with D >= 1, got \[3\]",
    ),
    "one-feature": (
        lambda: vqkern.gaussian_w2(ones(1, 2), ones(3, 2)),
        ValueError,
        "x must hold at least 2 points.*got 1",
    ),
    "one-code": (
        lambda: vqkern.gaussian_w2(ones(3, 2), ones(1, 2)),
        ValueError,
        "y must hold at least 2 points.*got 1",
    ),
    "ridge": (
        lambda: vqkern.gaussian_w2(ones(3, 2), ones(3, 2), ridge=-1e-3),
        ValueError,
        "ridge must be finite and at least 0, got -0.001",
    ),
    "ridge-nan": (
        lambda: vqkern.prior_w2(ones(3, 2), ridge=math.nan),
        ValueError,
        "prior_w2: ridge must be finite",
    ),
    "ridge-type": (
        lambda: vqkern.prior_w2(ones(3, 2), ridge="1"),
        TypeError,
        "ridge must be a number or None, got str",
    ),
    "integer": (
        lambda: vqkern.gaussian_w2(ones(3, 2), ones(3, 2).long()),
        TypeError,
        "y must be floating point.*int64",
    ),
    "device": (
        lambda: vqkern.gaussian_w2(ones(3, 2), torch.ones(3, 2, device="meta")),
        ValueError,
        "x is on cpu but y is on meta",
    ),
    "backend": (
        lambda: vqkern.gaussian_w2(ones(3, 2).double(), ones(3, 2), backend="cpp"),
        ValueError,
        "float64 inputs run on backend='torch' only"
        if HAS_NATIVE
        else "the native module was not built",
    ),
    "moments-of-one": (
        lambda: vqkern.gaussian_w2(moments(ones(1, 2)), ones(3, 2)),
        ValueError,
        "moments x must be of at least 2 points, got 1",
    ),
    "moments-dtype": (
        lambda: vqkern.gaussian_w2(Moments(ones(), ones(2), ones(2, 2)), ones(3, 2)),
        TypeError,
        "moments x must be float64",
    ),
    "moments-shape": (
        lambda: vqkern.gaussian_w2(Moments(ones(3), ones(2), ones(2, 2)), ones(3, 2)),
        ValueError,
        "moments x must have count",
    ),
    "moments-of-no-channel": (
        lambda: vqkern.gaussian_w2(Moments(ones(), ones(), ones()), ones(3, 2)),
        ValueError,
        r"moments x must have count \[\.\.\.\], mean.*got \[\], \[\] and \[\]",
    ),
    "ridge-beyond-floats": (
        lambda: vqkern.gaussian_w2(ones(3, 2), ones(3, 2), ridge=10**400),
        ValueError,
        "ridge must be finite",
    ),
    "mask-type": (
        lambda: moments(ones(3, 2), ones(3)),
        TypeError,
        "valid must be a bool tensor, got torch.float32",
    ),
    "mask-shape": (
        lambda: moments(ones(3, 2), ones(2).bool()),
        ValueError,
        r"valid must have shape \[3\], got \[2\]",
    ),
    "root-of-one": (
        lambda: vqkern.covariance_sqrt(ones(1, 2)),
        ValueError,
        "covariance_sqrt: y must hold at least 2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
