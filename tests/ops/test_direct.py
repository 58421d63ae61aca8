"""Calls that go past torch's dispatcher: only where the operator would do the same."""

import pytest
import torch
from support import HAS_NATIVE

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
