"""Calls that go past torch's dispatcher: only where the operator would do the same."""

import pytest
import torch
from support import HAS_NATIVE
from torch.utils._pytree import tree_map

import vqkern
from vqkern.ops.direct import is_ordinary

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")


def index_of(z, codes):
    return vqkern.nearest_code(z, codes, backend="cpp").index


def distance_and_value(z, codes):
    distance = vqkern.nearest_code(z, codes, backend="cpp").distance.sum()
    return distance + vqkern.gaussian_w2(z, codes, backend="cpp")


def test_a_default_device_is_not_where_results_of_others_go():
    z, codes = torch.randn(50, 7), torch.randn(60, 7, requires_grad=True)
    want = distance_and_value(z, codes)
    (gradient,) = torch.autograd.grad(want, codes)
    with torch.device("meta"):
        assert not is_ordinary(z)
        got = distance_and_value(z, codes)
        (again,) = torch.autograd.grad(got, codes)
    assert got.device.type == "cpu" and torch.equal(got, want) and torch.equal(again, gradient)


def test_negated_tensors_are_not_what_their_memory_says():
    negated = torch.tensor([[1 + 2j]]).conj().imag
    assert negated.is_neg() and index_of(negated, torch.tensor([[2.0], [-2.0]])).tolist() == [1]
    z, codes = torch.randn(50, 7), torch.randn(60, 7)
    assert torch.equal(distance_and_value(torch._neg_view(z), codes), distance_and_value(-z, codes))


def test_zeros_without_memory():
    zeros = torch._efficientzerotensor((3, 7))
    codes = torch.randn(60, 7)
    assert torch.equal(index_of(zeros, codes), index_of(torch.zeros(3, 7), codes))


def w2(z, codes):
    return vqkern.gaussian_w2(z, codes, backend="cpp")


def prior(z, codes):
    return vqkern.prior_w2(codes, backend="cpp") + vqkern.prior_w2(z, backend="cpp")


class Wrapped(torch.Tensor):
    """A tensor around another: operators get the one inside, and give plain ones."""

    @staticmethod
    def __new__(cls, inside):
        outside = torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)
        outside.inside = inside
        return outside

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        def inner(t):
            return t.inside if isinstance(t, cls) else t

        return function(*tree_map(inner, arguments), **tree_map(inner, options or {}))


@pytest.mark.parametrize("kind", ["negated", "zero", "wrapped"])
@pytest.mark.parametrize("function", [distance_and_value, w2, prior])
def test_gradients_of_tensors_that_are_not_their_memory(function, kind):
    """What is saved for the pass back is no more what its memory says than it was before."""
    if kind == "zero":
        odd = [torch._efficientzerotensor((n, 7)).requires_grad_() for n in (50, 60)]
        plain = [torch.zeros(n, 7, requires_grad=True) for n in (50, 60)]
        used = odd
    else:
        plain = [torch.randn(n, 7, requires_grad=True) for n in (50, 60)]
        odd = [(-p.detach() if kind == "negated" else p.detach()).clone() for p in plain]
        odd = [
            o.requires_grad_() if kind == "negated" else Wrapped(o).requires_grad_() for o in odd
        ]
        used = [torch._neg_view(o) for o in odd] if kind == "negated" else odd
    function(*used).backward()
    function(*plain).backward()
    for got, want in zip(odd, plain, strict=True):
        assert torch.equal(got.grad, -want.grad if kind == "negated" else want.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_hooks_may_save_tensors_in_another_type(dtype):
    z, codes = torch.randn(50, 7), torch.randn(60, 7, requires_grad=True)
    for back in (lambda t: t, lambda t: t.float()):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.to(dtype), back):
            value = w2(z, codes)
        (got,) = torch.autograd.grad(value, codes)
        (want,) = torch.autograd.grad(w2(z, codes), codes)
        tolerance = 1e-6 if dtype == torch.float64 else 0.02
        assert float((got - want).norm()) <= tolerance * float(want.norm())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_is_of_the_call_not_of_its_result():
    z, codes = torch.randn(50, 7), torch.randn(60, 7)
    traced = torch.jit.trace(index_of, (z, codes), check_trace=False)
    other = torch.randn(50, 7)
    assert torch.equal(traced(other, codes), index_of(other, codes))


def test_features_without_a_gradient_are_not_kept():
    """Neither their memory, nor what they were when the loss was taken."""
    with torch.inference_mode():
        made = torch.randn(50, 7)
    codes = torch.randn(60, 7, requires_grad=True)
    vqkern.gaussian_w2(made, codes, backend="cpp").backward()
    z = torch.randn(50, 7)
    value = vqkern.gaussian_w2(z, codes, backend="cpp")
    z.zero_()
    value.backward()


def test_subnormal_numbers_are_told_apart_whatever_the_thread_does_with_them():
    z = torch.arange(1, 40, dtype=torch.float32)[:, None] * torch.tensor([1e-44, 3e-45])
    codes = z[torch.randperm(39)]
    want = index_of(z, codes)
    assert torch.equal(codes[want], z)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot take subnormal numbers as 0")
    try:
        got = index_of(z, codes)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got, want)
