"""Gradient estimators: value, gradient, and the rows where they are not defined."""

import math

import pytest
import torch

import vqkern
from vqkern.quantizers import rotation_trick, straight_through


def test_straight_through_is_the_code_forward_and_the_identity_backward():
    z, q, upstream = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3), torch.randn(5, 3)
    out = straight_through(z, q)
    torch.testing.assert_close(out, q)
    assert torch.equal(torch.autograd.grad(out, z, upstream)[0], upstream)


def test_rotation_trick_is_the_scaled_rotation_of_the_plane():
    """R is built from two Gram-Schmidt vectors, not from reflections; the gradient is s R^T g."""
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    q, upstream = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    out = rotation_trick(z, q)
    torch.testing.assert_close(out, q)
    (gradient,) = torch.autograd.grad(out, z, upstream)
    for row in range(6):
        a, b = z[row].detach(), q[row]
        u = a / a.norm()
        w = b - (b @ u) * u
        v = w / w.norm()
        cosine, sine = (b @ u) / b.norm(), w.norm() / b.norm()
        plane, turn = torch.stack([u, v]), torch.stack([cosine, -sine, sine, cosine]).view(2, 2)
        rotation = torch.eye(4).double() + plane.T @ (turn - torch.eye(2)) @ plane
        torch.testing.assert_close(rotation @ u, b / b.norm())
        expected = b.norm() / a.norm() * rotation.T @ upstream[row]
        torch.testing.assert_close(gradient[row], expected)


def test_the_angle_of_the_gradient_is_kept():
    z = torch.randn(50, 8, requires_grad=True)
    q = torch.randn(50, 8)
    upstream = torch.randn(50, 8)
    (gradient,) = torch.autograd.grad(rotation_trick(z, q), z, upstream)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        cosine(gradient, z.detach()), cosine(upstream, q), rtol=1e-4, atol=1e-5
    )


def test_rows_without_a_rotation_pass_straight_through():
    z = torch.tensor([[0.0, 0], [1, 2], [1, 2], [math.nan, 1], [1e-30, 0]], requires_grad=True)
    q = torch.tensor([[1.0, 0], [0, 0], [-2, -4], [math.nan, math.nan], [1e30, 0]])
    out = rotation_trick(z, q)
    upstream = torch.randn(5, 2)
    (gradient,) = torch.autograd.grad(out, z, upstream)
    assert torch.equal(gradient, upstream)
    torch.testing.assert_close(out, q, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    z = torch.randn(9, 4, requires_grad=True, dtype=dtype)
    out = rotation_trick(z, torch.randn(9, 4, dtype=dtype))
    assert out.dtype == dtype
    out.sum().backward()
    assert bool(z.grad.isfinite().all())


def test_presets_take_them_by_name():
    q = vqkern.build_quantizer("simvq", dim=4, codebook_size=20, estimator="rotation")
    z = torch.randn(10, 4, requires_grad=True)
    result = q(z)
    upstream = torch.randn(10, 4)
    (gradient,) = torch.autograd.grad(result.quantized, z, upstream, retain_graph=True)
    nearest = q.decode(result.index).detach()
    (expected,) = torch.autograd.grad(rotation_trick(z, nearest), z, upstream)
    assert torch.equal(gradient, expected) and not torch.equal(gradient, upstream)
    assert q.fold().config["estimator"] == "rotation"
    with pytest.raises(ValueError, match="estimator must be one of.*'straight'"):
        vqkern.build_quantizer("vanilla", dim=4, codebook_size=20, estimator="straight")
