import math

import pytest
import torch
from support import HAS_NATIVE

import vqkern
from vqkern.ops.take_codes import take_codes

BACKENDS = ["torch", *(["cpp"] if HAS_NATIVE else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "n,k,d", [(0, 3, 2), (1, 1, 1), (1000, 7, 5), (500, 3000, 3), (63, 10, 130)]
)
def test_equals_a_float64_loop(backend, n, k, d):
    z, index = torch.randn(n, d), torch.randint(-1, k, (n,))
    count, total = vqkern.code_sums(z, index, k, backend=backend)
    expected_count = torch.zeros(k, dtype=torch.int64)
    expected = torch.zeros(k, d, dtype=torch.float64)
    for row, code in zip(z.double(), index.tolist(), strict=True):
        if code >= 0:
            expected_count[code] += 1
            expected[code] += row
    assert torch.equal(count, expected_count)
    assert torch.equal(total, expected.float())  # the same sums in the same order: the same bits


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipped_rows_are_never_read(backend):
    z = torch.randn(5, 2)
    z[1] = math.nan
    z[4] = math.inf
    count, total = vqkern.code_sums(z, torch.tensor([0, -1, 2, 0, -1]), 3, backend=backend)
    assert count.tolist() == [2, 0, 1]
    torch.testing.assert_close(total[0], z[0] + z[3])
    assert bool(total.isfinite().all())


@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
def test_threads_do_not_change_a_bit():
    z, index = torch.randn(20000, 9), torch.randint(0, 300, (20000,))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(vqkern.code_sums(z, index, 300, backend="cpp").total)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_half_and_opcheck(backend):
    z = torch.randn(12, 40).T[::2]
    index = torch.randint(0, 4, (40,))[::2]
    expected = vqkern.code_sums(z.contiguous(), index.contiguous(), 4)
    assert torch.equal(vqkern.code_sums(z, index, 4, backend=backend).total, expected.total)
    half = vqkern.code_sums(z.half(), index, 4, backend=backend).total
    assert half.dtype == torch.float32
    arguments = (z.contiguous().requires_grad_(), index, 4, backend)
    torch.library.opcheck(torch.ops.vqkern.code_sums.default, arguments)


def test_gradients_of_sums_and_codes():
    z = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 2, 2, -1, 1, 0, 0, 2, -1])
    assert torch.autograd.gradcheck(lambda z: vqkern.code_sums(z, index, 4).total, (z,))
    assert torch.autograd.gradgradcheck(lambda z: vqkern.code_sums(z, index, 4).total, (z,))
    inside = index.clamp_min(0)
    codes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda codes: take_codes(codes, inside), (codes,))


def test_take_codes_of_no_code_is_nan_and_has_no_gradient():
    codes = torch.randn(4, 3, requires_grad=True)
    rows = take_codes(codes, torch.tensor([[1, -1], [3, 1]]))
    assert rows.shape == (2, 2, 3) and bool(rows[0, 1].isnan().all())
    rows.nan_to_num().sum().backward()
    assert torch.equal(codes.grad, torch.tensor([0.0, 2, 0, 1])[:, None].expand(4, 3))
    arguments = (codes, torch.tensor([0, 2]))
    torch.library.opcheck(torch.ops.vqkern.take_codes.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [4, -2, 1 << 40])
def test_an_index_out_of_range_is_named(backend, wrong):
    index = torch.tensor([0, wrong, 1])
    with pytest.raises(IndexError, match=rf"index\[1\] is {wrong}; it must be in \[0, 4\)"):
        vqkern.code_sums(torch.randn(3, 2), index, 4, backend=backend)
    with pytest.raises(IndexError, match=rf"index\[0, 1\] is {wrong}"):
        take_codes(torch.randn(4, 2), index.view(1, 3))


@pytest.mark.parametrize(
    "call,error,message",
    [
        (
            lambda: vqkern.code_sums(torch.ones(3, 2), torch.zeros(2).long(), 4),
            ValueError,
            r"index must have shape \[3\].*got \[2\]",
        ),
        (
            lambda: vqkern.code_sums(torch.ones(3, 2), torch.zeros(3), 4),
            TypeError,
            "index must be an integer",
        ),
        (
            lambda: vqkern.code_sums(torch.ones(3), torch.zeros(3).long(), 4),
            ValueError,
            r"z must have shape \[N, D\]",
        ),
        (
            lambda: vqkern.code_sums(torch.ones(3, 2), torch.zeros(3).long(), 0),
            ValueError,
            "num_codes must be a whole number of at least 1",
        ),
        (
            lambda: vqkern.code_sums(torch.ones(3, 2), torch.zeros(3, device="meta").long(), 4),
            ValueError,
            "index is on meta",
        ),
    ],
    ids=["length", "float-index", "vector", "no-codes", "device"],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
