"""Moments of points, and what the C++ kernels do between them and a gradient."""

import math

import mpmath
import numpy as np
import pytest
import torch
from support import CPU_KERNELS, HAS_NATIVE, relative_error, value_and_gradients

import vqkern
from vqkern.ops.gaussian_w2 import merge, moments, native, reference

BACKENDS = ["torch", *(["cpp"] if HAS_NATIVE else [])]
needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")


def test_moments_merge_to_those_of_all_points():
    x = torch.randn(50, 4, dtype=torch.float64) + 1000
    pieces = [moments(x[a:b]) for a, b in ((0, 1), (1, 1), (1, 2), (2, 30), (30, 50))]
    joint = pieces[0]
    for piece in pieces[1:]:
        joint = merge(joint, piece)
    assert float(joint.count) == 50
    torch.testing.assert_close(joint.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(joint.covariance, x.T.cov(), rtol=1e-11, atol=1e-13)
    y = torch.randn(30, 4, dtype=torch.float64)
    torch.testing.assert_close(
        vqkern.gaussian_w2(joint, y), vqkern.gaussian_w2(x, y), rtol=1e-11, atol=0
    )
    both = vqkern.gaussian_w2(joint, moments(y.float()))
    assert both.dtype == torch.float64
    x = x[:8].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: vqkern.gaussian_w2(merge(moments(a[:3]), moments(a[3:])), y), (x,)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_that_do_not_count_may_hold_anything(backend):
    x, valid = torch.randn(3, 40, 5), torch.rand(3, 40) > 0.5
    valid[2] = False
    dirty = torch.where(valid[..., None], x, math.nan).requires_grad_()
    got = moments(dirty, valid, backend=backend)
    assert got.count.tolist() == valid.sum(-1).tolist()
    for i in (0, 1):
        torch.testing.assert_close(got.mean[i], x[i, valid[i]].double().mean(0))
        torch.testing.assert_close(got.covariance[i], x[i, valid[i]].double().T.cov())
    assert not got.mean[2].any() and not got.covariance[2].any()
    (got.mean.sum() + got.covariance.square().sum()).backward()
    assert bool(dirty.grad.isfinite().all()) and not dirty.grad[~valid].any()
    clean = x[0, valid[0]].clone().requires_grad_()
    alone = moments(clean, backend=backend)
    (alone.mean.sum() + alone.covariance.square().sum()).backward()
    torch.testing.assert_close(dirty.grad[0, valid[0]], clean.grad)


KERNEL_SHAPES = [(1, 0, 3), (1, 1, 1), (2, 5, 3), (1, 4097, 7), (3, 100, 16), (2, 700, 33)]


@needs_native
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("b,n,d", KERNEL_SHAPES)
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_every_cpu_kernel(kernel, b, n, d, masked):
    x = torch.randn(b, n, d) * torch.linspace(0.01, 2, d) + 50
    valid = torch.rand(b, n) > 0.4 if masked else None
    if masked:
        x[~valid] = math.nan
    want = reference.moments(x, valid)
    for got, expected in zip(native.moments(x, valid, kernel), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    matrix, offset = torch.randn(b, d, d).double(), torch.randn(b, d).double()
    matrix = matrix + matrix.mT
    got = native.pull_back(x, valid, want[1], matrix, offset, kernel)
    expected = reference.pull_back(x, valid, want[1], matrix, offset)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def covariance(d, rank, scales):
    roots = torch.randn(d, rank, dtype=torch.float64) / rank**0.5 * scales[:, None]
    return (roots @ roots.T)[None]


@needs_native
@pytest.mark.parametrize("d", [1, 2, 16, 32])
@pytest.mark.parametrize("features", ["full", "graded", "half", "one", "none", "channels missing"])
def test_any_factor_of_the_features_covariance_will_do(features, d):
    """A Cholesky factor with pivots in place of the symmetric root: channels of any scale, any
    rank."""
    scales, rank = torch.ones(d, dtype=torch.float64), 2 * d
    if features == "graded":
        scales = torch.logspace(-6, 0, d, dtype=torch.float64)
    elif features == "channels missing":
        scales[::3] = 0
    elif features != "full":
        rank = {"half": max(1, d // 2), "one": 1, "none": 1}[features]
        scales *= features != "none"
    means = torch.randn(2, 1, d, dtype=torch.float64).unbind()
    both = covariance(d, rank, scales), covariance(d, 2 * d, torch.ones(d, dtype=torch.float64))
    got = native.value_and_gradients(means, both, None, False)
    want = reference.value_and_gradients(means, both, None, False)
    torch.testing.assert_close(got.value, want.value, rtol=1e-7, atol=0)
    assert relative_error(got.codes, want.codes) < 1e-6
    assert torch.equal(got.mean, want.mean)


@needs_native
@pytest.mark.parametrize("d", [1, 2, 3, 7, 8, 15, 16, 17, 31, 32])
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_rotations_of_every_cpu_kernel(kernel, d):
    """Of a batch, one problem with repeated eigenvalues."""
    ones = torch.ones(d, dtype=torch.float64)
    s1 = torch.cat([covariance(d, 2 * d, ones), torch.eye(d, dtype=torch.float64)[None]])
    s2 = torch.cat([covariance(d, 3 * d, ones), 4 * torch.eye(d, dtype=torch.float64)[None]])
    m_x, m_y = torch.randn(2, 2, d, dtype=torch.float64)
    value, pull_x, pull_y = native._solve((m_x, s1), (m_y, s2), None, True, True, kernel)
    want = reference.value_and_gradients((m_x, m_y), (s1, s2), None, True)
    torch.testing.assert_close(value, want.value, rtol=1e-11, atol=0)
    for pull, matrix, mean, sign in (
        (pull_x, want.features, m_x, -1),
        (pull_y, want.codes, m_y, 1),
    ):
        assert relative_error(pull[:, :-2], matrix) < 1e-9
        assert torch.equal(pull[:, -2], mean) and torch.equal(pull[:, -1], sign * want.mean)


def exact_transport(s1, s2, ridge):
    """T = A (A S2 A + e I)^{-1/2} A, A = S1^{1/2}, with 50 digits."""

    def apply(matrix, function):
        values, vectors = mpmath.eigsy((matrix + matrix.T) / 2)
        return vectors * mpmath.diag([function(v) for v in values]) * vectors.T

    with mpmath.workdps(50):
        root = apply(mpmath.matrix(s1.tolist()), mpmath.sqrt)
        between = root * mpmath.matrix(s2.tolist()) * root
        found = root * apply(between, lambda v: 1 / mpmath.sqrt(v + ridge)) * root
        return torch.from_numpy(np.array(found.tolist(), dtype=float))


@needs_native
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_channels_a_hundred_thousand_times_as_narrow_keep_their_digits(kernel):
    """Eigenvalues of a product of covariances lose six of them."""
    d, ridge = 6, 1e-20
    scales = torch.logspace(-5, 0, d, dtype=torch.float64)
    s1, s2 = covariance(d, 2 * d, scales), covariance(d, 2 * d, scales.flip(0))
    mean = torch.zeros(1, d, dtype=torch.float64)
    _, _, pull = native._solve((mean, s1), (mean, s2), ridge, False, True, kernel)
    want = torch.eye(d, dtype=torch.float64) - exact_transport(s1[0], s2[0], ridge)
    moved = scales.flip(0)
    assert relative_error(pull[0, :-2] * moved, want * moved) < 1e-13


@needs_native
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_multiples_of_one_row_end_as_nothing(kernel):
    """Each rotation leaves rounding of them, which is a multiple of the row again."""
    for d in range(2, 33):
        s1 = torch.eye(d, dtype=torch.float64)[None]
        for rank in (1, max(1, d // 3)):
            s2 = covariance(d, rank, torch.ones(d, dtype=torch.float64))
            mean = torch.zeros(1, d, dtype=torch.float64)
            value, pull_x, pull_y = native._solve((mean, s1), (mean, s2), 1e-8, True, True, kernel)
            want = reference.value_and_gradients((mean, mean), (s1, s2), 1e-8, True)
            torch.testing.assert_close(value, want.value, rtol=1e-7, atol=0)
            # Moved points: in directions without any the gradient is not determined so far.
            for pull, matrix, s in ((pull_x, want.features, s1), (pull_y, want.codes, s2)):
                torch.testing.assert_close(pull[:, :-2] @ s, matrix @ s, rtol=0, atol=1e-6)


@needs_native
@pytest.mark.parametrize("exponent", [-400, 400])
def test_covariances_of_any_size(exponent):
    """Their squares' squares are in no double's range; scaled by a power of two, nothing rounds."""
    mean = torch.zeros(1, 9, dtype=torch.float64)
    s1, s2 = (covariance(9, 20, torch.ones(9, dtype=torch.float64)) for _ in range(2))
    value, _, pull = native._solve((mean, s1), (mean, s2), None, False, True)
    scale = 2.0**exponent
    sides = (mean, s1 * scale), (mean, s2 * scale)
    scaled, _, same = native._solve(*sides, None, False, True)
    assert torch.equal(scaled, value * scale) and torch.equal(same, pull)


@needs_native
@pytest.mark.parametrize("d", [4, 8, 16])
def test_both_gradients_are_as_good_as_one(d):
    """In channels of very different scale, the other way round in either set."""
    scales = 10 ** torch.linspace(-4, 4, d)
    x, y = torch.randn(3 * d, d) * scales, torch.randn(3 * d, d) * scales.flip(0)
    _, gx, gy = value_and_gradients(lambda a, b: vqkern.gaussian_w2(a, b, backend="cpp"), x, y)
    for own, other, got in ((x, y, gx), (y, x, gy)):
        leaf = own.clone().requires_grad_()
        vqkern.gaussian_w2(other, leaf, backend="cpp").backward()
        assert torch.equal(leaf.grad, got)


@needs_native
def test_a_pass_over_each_set_is_all_that_a_value_takes(monkeypatch):
    x, y = torch.randn(50, 40), torch.randn(60, 40)
    passes, moments_of = [], native.moments

    def counted(points, valid):
        passes.append(points.shape[1])
        return moments_of(points, valid)

    monkeypatch.setattr(native, "moments", counted)
    value = vqkern.gaussian_w2(x, y.requires_grad_(), backend="cpp")
    assert sorted(passes) == [50, 60] and value > 0


@needs_native
def test_threads_do_not_change_a_bit():
    x, y = torch.randn(9000, 8), torch.randn(5000, 8)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            value_and_gradients(lambda a, b: vqkern.gaussian_w2(a, b, backend="cpp"), x, y)
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
