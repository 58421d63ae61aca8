"""index_backprop against the dense formula of the softmax over all codes, and its edges."""

import math

import pytest
import torch
from support import relative_error

from vqkern.ops import index_backprop as module
from vqkern.ops.index_backprop import index_backprop


def dense(z, codes, index, temperature, scores):
    """P^T C with P = hard + soft - sg[soft], as published."""
    score = z @ codes.T if scores == "dot" else -torch.cdist(z, codes).square() / 2
    soft = (score / temperature).softmax(1)
    hard = torch.nn.functional.one_hot(index, len(codes)).to(soft)
    return (hard + soft - soft.detach()) @ codes


def problem(n, k, d, offset=0.0, dtype=torch.float32):
    z = (torch.randn(n, d, dtype=torch.float64) + offset).to(dtype)
    codes = (torch.randn(k, d, dtype=torch.float64) + offset).to(dtype)
    index = torch.cdist(z.double(), codes.double()).argmin(1)
    upstream = torch.randn(n, d, dtype=torch.float64).to(dtype)
    return z.requires_grad_(), codes.requires_grad_(), index, upstream


def gradients(call, z, codes, upstream):
    return torch.autograd.grad(call(z, codes), (z, codes), upstream)


def truth(z, codes, index, upstream, temperature=1.0, scores="distance"):
    wide = z.detach().double().requires_grad_(), codes.detach().double().requires_grad_()
    return gradients(lambda a, b: dense(a, b, index, temperature, scores), *wide, upstream.double())


@pytest.mark.parametrize("scores", ["distance", "dot"])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("n,k,d", [(1, 1, 1), (7, 3, 2), (63, 100, 5), (700, 1030, 4)], ids=str)
def test_is_the_dense_formula(scores, temperature, n, k, d):
    z, codes, index, upstream = problem(n, k, d, dtype=torch.float64)

    def ours(z, codes):
        return index_backprop(z, codes, index, temperature=temperature, scores=scores)

    assert torch.equal(ours(z, codes), codes[index])
    expected = truth(z, codes, index, upstream, temperature, scores)
    for got, wanted in zip(gradients(ours, z, codes, upstream), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tile,rows", [(1, 1), (64, 7), (1 << 12, 300)])
def test_tiles_change_nothing_but_rounding(monkeypatch, tile, rows):
    z, codes, index, upstream = problem(130, 90, 3, dtype=torch.float64)
    expected = truth(z, codes, index, upstream)
    monkeypatch.setitem(module._TILE, "cpu", tile)
    monkeypatch.setattr(module, "_ROWS", rows)
    got = gradients(lambda a, b: index_backprop(a, b, index), z, codes, upstream)
    for one, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_precision_and_dtypes(dtype, offset):
    z, codes, index, upstream = problem(300, 200, 8, offset, dtype)
    got = gradients(lambda a, b: index_backprop(a, b, index), z, codes, upstream)
    for one, wanted in zip(got, truth(z, codes, index, upstream), strict=True):
        assert one.dtype == dtype
        assert relative_error(one, wanted) < max(1e-5, 2 * torch.finfo(dtype).eps)


def test_autocast_rounds_nothing():
    z, codes, index, upstream = problem(50, 40, 8)
    expected = gradients(lambda a, b: index_backprop(a, b, index), z, codes, upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(lambda a, b: index_backprop(a, b, index), z, codes, upstream)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_rows_and_codes_that_are_not_finite_take_no_part():
    z, codes, index, upstream = problem(20, 12, 3, dtype=torch.float64)
    keep = torch.arange(20) != 4
    expected = truth(z[keep].detach(), codes[:11].detach(), index[keep] % 11, upstream[keep])
    spoiled, others = z.detach().clone(), codes.detach().clone()
    spoiled[4], others[11, 1] = math.nan, math.inf
    chosen = torch.where(keep, index % 11, -1)
    out = index_backprop(spoiled.requires_grad_(), others.requires_grad_(), chosen)
    assert bool(out[4].isnan().all()) and torch.equal(out[keep], others[chosen[keep]])
    z_grad, codes_grad = torch.autograd.grad(out, (spoiled, others), upstream)
    torch.testing.assert_close(z_grad[keep], expected[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(codes_grad[:11], expected[1], rtol=1e-9, atol=1e-11)
    assert not z_grad[4].any() and not codes_grad[11].any()


def test_nothing_to_do():
    codes = torch.randn(5, 3, requires_grad=True)
    for z, index in (
        (torch.randn(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.full((4, 3), math.nan), torch.full((4,), -1)),
    ):
        z.requires_grad_()
        grads = gradients(
            lambda a, b, i=index: index_backprop(a, b, i), z, codes, torch.ones_like(z)
        )
        assert not any(bool(g.any()) for g in grads)


def test_memory_never_holds_tokens_by_codes():
    """The largest array of the backward is a tile, z or the codes."""
    n, k, d = 3000, 5000, 4
    z, codes, index, upstream = (t.detach() for t in problem(n, k, d))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        task = module._Problem.prepare(upstream, z, codes, index, 1.0, "distance")
        module._gradients(task)
    assert 0 < largest <= module._TILE["cpu"] + module._ROWS < n * k // 50


def test_is_a_proper_op():
    z, codes, index, _ = problem(6, 5, 3)
    torch.library.opcheck(module._index_backprop_op, (z, codes, index, 0.5, "dot"))
    loss = index_backprop(z, codes, index).square().sum()
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()


@pytest.mark.parametrize(
    "change,kind,message",
    [
        ({"z": torch.ones(3, 2).long()}, TypeError, "z must be floating point"),
        ({"codes": torch.ones(4)}, ValueError, r"codes must have shape \[K, D\]"),
        ({"codes": torch.ones(4, 3)}, ValueError, r"must fit, got \[3, 2\], \[4, 3\] and \[3\]"),
        ({"codes": torch.ones(0, 2)}, ValueError, "with K >= 1"),
        ({"index": torch.tensor([0, 1])}, ValueError, r"and \[2\]"),
        ({"index": torch.tensor([0.0, 1, 2])}, TypeError, "index must be an integer tensor"),
        ({"index": torch.tensor([0, 4, 2])}, IndexError, r"index\[1\] is 4"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive"),
        ({"scores": "l2"}, ValueError, "scores must be one of.*'l2'"),
    ],
    ids=str,
)
def test_bad_input_is_named(change, kind, message):
    arguments = {"z": torch.ones(3, 2), "codes": torch.ones(4, 2), "index": torch.tensor([0, 1, 2])}
    with pytest.raises(kind, match=message):
        index_backprop(**{**arguments, **change})
