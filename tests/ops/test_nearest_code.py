"""Exactness of `nearest_code` by every kernel of this CPU, against oracles that share no code."""

import math
from fractions import Fraction

import pytest
import torch
from support import (
    HAS_NATIVE,
    SEARCH_KERNELS,
    SEARCHES,
    assert_no_regret,
    float64_distances,
    lattice_oracle,
    search,
)

import vqkern
from vqkern.ops.nearest_code import native

SHAPES = [
    (1, 1, 1),
    (63, 31, 2),
    (100, 33, 3),
    (12, 32, 8),
    (13, 65, 17),
    (50, 500, 33),
    (7, 300, 256),
]


@pytest.mark.parametrize("which", SEARCHES)
@pytest.mark.parametrize("n,k,d", SHAPES)
def test_integer_lattice_bit_for_bit(which, n, k, d):
    z = torch.randint(-8, 9, (n, d)).float()
    codes = torch.randint(-8, 9, (k, d)).float()
    index, distance = search(which, z, codes)
    expected, squared = lattice_oracle(z, codes)
    assert torch.equal(index, expected)
    assert torch.equal(distance, squared.float())


@pytest.mark.parametrize("which", SEARCHES)
def test_lattice_with_many_ties(which):
    z = torch.randint(-2, 3, (400, 3)).float()
    codes = torch.randint(-2, 3, (300, 3)).float()
    index, distance = search(which, z, codes)
    expected, squared = lattice_oracle(z, codes)
    assert torch.equal(index, expected)
    assert torch.equal(distance, squared.float())


@pytest.mark.parametrize("which", SEARCHES)
@pytest.mark.parametrize("offset", [0, 10, 100, 1000])
@pytest.mark.parametrize("n,k,d", SHAPES[1:])
def test_no_regret_off_centre(which, offset, n, k, d):
    z, codes = torch.randn(n, d) + offset, torch.randn(k, d) + offset
    index, distance = search(which, z, codes)
    assert_no_regret(z, codes, index)
    expected = float64_distances(z, codes).gather(1, index[:, None]).squeeze(-1)
    torch.testing.assert_close(distance, expected.float(), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("which", SEARCHES)
def test_near_duplicates_on_the_sphere(which):
    base = torch.nn.functional.normalize(torch.randn(40, 64), dim=-1)
    codes = torch.nn.functional.normalize(base.repeat(8, 1) + 1e-7 * torch.randn(320, 64), dim=-1)
    z = torch.nn.functional.normalize(base + 1e-7 * torch.randn(40, 64), dim=-1)
    assert_no_regret(z, codes, search(which, z, codes)[0])


@pytest.mark.parametrize("which", SEARCHES)
def test_duplicated_codes_give_the_lowest_index(which):
    codes = torch.randn(20, 5).repeat(30, 1)
    z = torch.randn(50, 5)
    index, _ = search(which, z, codes)
    assert bool((index < 20).all())


@pytest.mark.parametrize("which", SEARCHES)
def test_all_codes_equal_overflows_the_candidates_and_stays_right(which):
    codes = torch.ones(3000, 4)
    index, distance = search(which, torch.zeros(5, 4), codes)
    assert index.tolist() == [0] * 5
    assert distance.tolist() == [4.0] * 5


@pytest.mark.parametrize("which", SEARCHES)
@pytest.mark.parametrize("d", [6, 16, 33])
def test_permuted_codes_tie_in_real_arithmetic(which, d):
    """Codes that permute one another's channels are equally far from a constant row."""
    first = torch.randn(d)
    codes = torch.stack([first[torch.randperm(d)] for _ in range(64)])
    z = torch.randn(30, 1).expand(30, d)
    assert search(which, z, codes)[0].tolist() == [0] * 30


@pytest.mark.parametrize("which", SEARCHES)
def test_differences_below_float64_are_still_decided(which):
    """Two codes whose squared distances differ by less than float64 can hold."""
    tiny = 2.0**-100
    z = torch.tensor([[1.0, 0.0]])
    codes = torch.tensor([[0.0, 2 * tiny], [0.0, tiny]])
    near, far = (
        sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(z[0].tolist(), row, strict=True))
        for row in (codes[1].tolist(), codes[0].tolist())
    )
    assert near < far and float(near) == float(far)
    assert search(which, z, codes)[0].item() == 1


@pytest.mark.parametrize("which", SEARCHES)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-5, 1e5, 1e18, 1e30])
def test_any_magnitude(which, scale):
    z, codes = torch.randn(40, 7) * scale, torch.randn(90, 7) * scale
    assert_no_regret(z, codes, search(which, z, codes)[0])


@pytest.mark.parametrize("which", SEARCHES)
def test_one_code_far_out_leaves_the_others_exact(which):
    codes = torch.randn(200, 4)
    codes[17] = 3e38
    z = torch.randn(60, 4)
    z[5] = -3e38
    assert_no_regret(z, codes, search(which, z, codes)[0])


@pytest.mark.parametrize("which", SEARCHES)
def test_rows_that_are_not_finite(which):
    z, codes = torch.randn(30, 6), torch.randn(70, 6)
    clean, _ = search(which, z, codes)
    z[3, 2], z[9, 0], z[20, 5] = math.nan, math.inf, -math.inf
    index, distance = search(which, z, codes)
    bad = torch.zeros(30, dtype=torch.bool)
    bad[[3, 9, 20]] = True
    assert index[bad].tolist() == [-1] * 3
    assert distance[bad].tolist() == [math.inf] * 3
    assert torch.equal(index[~bad], clean[~bad])


@pytest.mark.parametrize("which", SEARCHES)
def test_codes_that_are_not_finite_are_never_chosen(which):
    z, codes = torch.randn(50, 6), torch.randn(70, 6)
    codes[::3, 1] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(8)
    index, _ = search(which, z, codes)
    usable = codes.isfinite().all(-1).nonzero().squeeze(-1)
    expected, _ = search("reference", z, codes[usable])
    assert torch.equal(index, usable[expected])
    codes[:] = math.nan
    index, distance = search(which, z, codes)
    assert index.tolist() == [-1] * 50 and distance.tolist() == [math.inf] * 50


@pytest.mark.parametrize("which", SEARCHES)
def test_negative_zero_equals_zero(which):
    codes = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    assert search(which, torch.tensor([[-0.0, 1.0], [0.0, 1.0]]), codes)[0].tolist() == [0, 0]


@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_threads_and_batches_do_not_change_a_bit(kernel):
    z, codes = torch.randn(1000, 9), torch.randn(777, 9)
    torch.set_num_threads(1)
    index, distance, _ = native.search(z, codes, kernel)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        again = native.search(z, codes, kernel)
        assert torch.equal(again[0], index) and torch.equal(again[1], distance)
    for row in (0, 11, 12, 500, 999):
        alone = native.search(z[row : row + 1], codes, kernel)
        assert alone[0] == index[row] and alone[1] == distance[row]


@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
@pytest.mark.parametrize("d", [1, 7, 8, 9, 40, 101])
def test_every_kernel_gives_the_same_bits(d):
    """Squares are added up in eight chains, then those, whatever the instruction set."""
    z, codes = torch.randn(60, d), torch.randn(70, d)
    results = [native.search(z, codes, kernel)[:2] for kernel in SEARCH_KERNELS]
    index, distance = results[0]
    apart = torch.nn.functional.pad((z.double() - codes[index].double()).square(), (0, -d % 8))
    chains = torch.zeros(len(z), 8, dtype=torch.float64)
    for eight in apart.split(8, dim=1):
        chains += eight
    pairs = (chains[:, 0:2] + chains[:, 4:6]) + (chains[:, 2:4] + chains[:, 6:8])
    assert torch.equal(distance, pairs.sum(1).float())
    for other in results[1:]:
        assert torch.equal(other[0], index) and torch.equal(other[1], distance)


@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_chains_are_added_in_one_order(kernel):
    """Two squares below half a unit of 1 + 2^-24 tip it over float32's tie if they meet first."""
    small = 0.63 * 2.0**-26
    code = torch.tensor([[1, 0, small, 0, 2.0**-12, 0, small, 0]])
    _, distance, _ = native.search(torch.zeros(3, 8), code, kernel)
    assert distance.tolist() == [1 + 2.0**-23] * 3


@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
@pytest.mark.parametrize("kernel", SEARCH_KERNELS)
def test_the_screen_decides_ordinary_rows(kernel):
    """A full scan would be right too, and far too slow: the counts show who decided."""
    z, codes = torch.randn(500, 8), torch.randn(20000, 8)
    _, _, counts = native.search(z, codes, kernel)
    assert counts["certified"] == 500 and counts["scanned"] == 0
    assert counts["candidates"] <= 10 * 500
    unit = torch.nn.functional.normalize(codes, dim=1)
    _, _, counts = native.search(1e-12 * z[:5], unit, kernel)
    assert counts["scanned"] == 5


@pytest.mark.parametrize("backend", ["torch", *(["cpp"] if HAS_NATIVE else [])])
class TestPublicFunction:
    def test_any_batch_shape_and_strides(self, backend):
        z, codes = torch.randn(2, 6, 3, 5), torch.randn(40, 12)[:, ::2]
        moved = z.movedim(1, -1)
        result = vqkern.nearest_code(moved, codes, backend=backend)
        assert result.index.shape == result.distance.shape == (2, 3, 5)
        flat = vqkern.nearest_code(moved.reshape(-1, 6), codes.contiguous(), backend=backend)
        assert torch.equal(result.index.reshape(-1), flat.index)
        single = vqkern.nearest_code(moved[0, 0, 0], codes, backend=backend)
        assert single.index.shape == () and single.index == result.index[0, 0, 0]

    def test_expanded_rows_and_the_same_tensor_twice(self, backend):
        codes = torch.randn(40, 6)
        expanded = codes[3].expand(9, 6)
        assert vqkern.nearest_code(expanded, codes, backend=backend).index.tolist() == [3] * 9
        result = vqkern.nearest_code(codes, codes, backend=backend)
        assert torch.equal(result.index, torch.arange(40)) and not result.distance.any()

    def test_empty_batch(self, backend):
        result = vqkern.nearest_code(torch.empty(0, 3, 4), torch.randn(5, 4), backend=backend)
        assert result.index.shape == (0, 3) and result.index.dtype == torch.int64

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_inputs_are_taken_at_their_exact_values(self, backend, dtype):
        z, codes = torch.randn(60, 12, dtype=dtype) + 3, torch.randn(90, 12, dtype=dtype) + 3
        result = vqkern.nearest_code(z, codes, backend=backend)
        exact = vqkern.nearest_code(z.double(), codes.double())
        assert torch.equal(result.index, exact.index)
        assert result.distance.dtype == torch.float32
        mixed = vqkern.nearest_code(z, codes.float(), backend=backend)
        assert torch.equal(mixed.index, exact.index)

    def test_gradients_of_the_distance(self, backend):
        z = torch.randn(20, 5, requires_grad=True)
        codes = torch.randn(30, 5, requires_grad=True)
        upstream = torch.randn(20)
        result = vqkern.nearest_code(z, codes, backend=backend)
        to_z, to_codes = torch.autograd.grad(result.distance, (z, codes), upstream)
        difference = 2 * upstream[:, None] * (z - codes[result.index]).detach()
        torch.testing.assert_close(to_z, difference)
        expected = torch.zeros(30, 5).index_add_(0, result.index, -difference)
        torch.testing.assert_close(to_codes, expected)

    def test_rows_that_are_not_finite_get_no_gradient(self, backend):
        values = torch.randn(6, 3)
        values[2, 1] = math.nan
        z = values.requires_grad_()
        codes = torch.randn(4, 3, requires_grad=True)
        vqkern.nearest_code(z, codes, backend=backend).distance.nan_to_num(
            posinf=0
        ).sum().backward()
        assert not z.grad[2].any() and z.grad[0].any()
        assert bool(codes.grad.isfinite().all())

    def test_a_second_derivative_raises(self, backend):
        z = torch.randn(4, 3, requires_grad=True)
        distance = vqkern.nearest_code(z, torch.randn(5, 3), backend=backend).distance
        (gradient,) = torch.autograd.grad(distance.sum(), z, create_graph=True)
        with pytest.raises(RuntimeError, match="nearest_code_backward"):
            gradient.sum().backward()

    def test_opcheck(self, backend):
        z = torch.randn(7, 3, requires_grad=True)
        codes = torch.randn(5, 3, requires_grad=True)
        arguments = (z, codes, "l2", backend)
        torch.library.opcheck(torch.ops.vqkern.nearest_code.default, arguments)

    def test_compiles_in_one_graph(self, backend):
        def loss(z, codes):
            result = vqkern.nearest_code(z, codes, backend=backend)
            return result.distance.sum() + result.index.sum()

        z = torch.randn(9, 4, requires_grad=True)
        codes = torch.randn(11, 4)
        (expected,) = torch.autograd.grad(loss(z, codes), z)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (gradient,) = torch.autograd.grad(compiled(z, codes), z)
        assert torch.equal(gradient, expected)


def test_cosine_picks_the_largest_cosine():
    z, codes = torch.randn(80, 7), torch.randn(60, 7) * torch.rand(60, 1) * 100
    result = vqkern.nearest_code(z, codes, metric="cosine")
    unit = torch.nn.functional.normalize
    cosine = unit(z.double(), dim=-1) @ unit(codes.double(), dim=-1).T
    assert torch.equal(result.index, cosine.argmax(-1))
    torch.testing.assert_close(result.distance, 1 - cosine.amax(-1).float(), rtol=0, atol=1e-6)


def test_cosine_ties_zero_codes_and_zero_rows():
    row = torch.randn(5)
    codes = torch.stack([torch.zeros(5), 2 * row, 4 * row, -row])
    z = torch.stack([row, -row, torch.zeros(5)])
    result = vqkern.nearest_code(z, codes, metric="cosine")
    assert result.index.tolist() == [1, 3, 0]
    assert result.distance[2] == 1
    zero = vqkern.nearest_code(z, torch.zeros(3, 5), metric="cosine")
    assert zero.index.tolist() == [0, 0, 0] and zero.distance.tolist() == [1, 1, 1]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_gradcheck(metric):
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    codes = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def distance(z, codes):
        return vqkern.nearest_code(z, codes, metric=metric).distance

    assert torch.autograd.gradcheck(distance, (z, codes))


def test_float64_values_far_beyond_float32():
    z = torch.randn(20, 3, dtype=torch.float64) * 1e200
    codes = torch.randn(30, 3, dtype=torch.float64) * 1e200
    index, _ = vqkern.nearest_code(z, codes)
    assert torch.equal(index, float64_distances(z * 1e-200, codes * 1e-200).argmin(-1))


@pytest.mark.parametrize(
    "call,error,message",
    [
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(4, 5)),
            ValueError,
            r"z must have shape \[..., 5\].*got \[2, 3\]",
        ),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(0, 3)),
            ValueError,
            "codes is empty",
        ),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3).long(), torch.ones(4, 3)),
            TypeError,
            "z must be floating point.*int64",
        ),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(4, 3).int()),
            TypeError,
            "codes must be floating point.*int32",
        ),
        (
            lambda: vqkern.nearest_code([[1.0]], torch.ones(4, 1)),
            TypeError,
            "z must be a torch.Tensor, got list",
        ),
        (lambda: vqkern.nearest_code(torch.tensor(1.0), torch.ones(4, 1)), ValueError, r"got \[\]"),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(3)),
            ValueError,
            r"codes must have shape \[K, D\]",
        ),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(4, 3, device="meta")),
            ValueError,
            "codes is on meta but z is on cpu",
        ),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(4, 3), metric="dot"),
            ValueError,
            "metric must be one of.*'dot'",
        ),
        (
            lambda: vqkern.nearest_code(torch.ones(2, 3), torch.ones(4, 3), backend="gpu"),
            ValueError,
            "backend='gpu' is not one of",
        ),
    ],
    ids=[
        "wrong-d",
        "empty-codebook",
        "integer-z",
        "integer-codes",
        "not-a-tensor",
        "scalar",
        "codes-1d",
        "other-device",
        "metric",
        "backend",
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_triton_without_a_gpu_says_so():
    from vqkern import backend

    if backend.triton_interprets():
        pytest.skip("Triton interprets on the CPU in this process")
    with pytest.raises(ValueError, match="backend='triton' cannot run here"):
        vqkern.nearest_code(torch.ones(2, 3), torch.ones(4, 3), backend="triton")
