"""k-means against Lloyd's algorithm written out, and its corner cases."""

import pytest
import torch

import vqkern
from vqkern.quantizers import kmeans


def lloyd(z, codes, iterations):
    for _ in range(iterations):
        index = torch.cdist(z.double(), codes.double()).argmin(1)
        codes = torch.stack([z[index == k].double().mean(0) for k in range(len(codes))])
    return codes


def test_is_lloyds_algorithm():
    z = torch.cat([torch.randn(60, 3) + 6 * torch.randn(3) for _ in range(5)])
    start = z[torch.randperm(300)[:7]]
    result = kmeans(z, 7, iterations=6, start=start)
    torch.testing.assert_close(result.double(), lloyd(z, start, 6), rtol=1e-5, atol=1e-5)


def test_every_step_lowers_the_error_and_every_code_is_used():
    z = torch.randn(500, 4)
    errors = []
    for iterations in (0, 1, 3, 10):
        codes = kmeans(z, 32, iterations=iterations, seed=5)
        errors.append(float(vqkern.nearest_code(z, codes).distance.mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.85 * errors[0]
    assert vqkern.nearest_code(z, codes).index.unique().numel() == 32


def test_empty_clusters_are_set_on_features():
    z = torch.randn(100, 2)
    start = torch.cat([z[:3], torch.full((5, 2), 1e3)])
    codes = kmeans(z, 8, iterations=8, start=start)
    assert float(codes.abs().max()) < 5
    assert vqkern.nearest_code(z, codes).index.unique().numel() == 8


def test_is_deterministic_and_never_sees_bad_rows():
    z = torch.randn(80, 3)
    bad = torch.cat([z, torch.full((3, 3), float("nan"))])
    assert torch.equal(kmeans(z, 9, seed=1), kmeans(z.clone(), 9, seed=1))
    assert not torch.equal(kmeans(z, 9, seed=1), kmeans(z, 9, seed=2))
    assert torch.equal(kmeans(bad, 9, seed=1), kmeans(z, 9, seed=1))
    exact = kmeans(z[:9], 9)
    assert torch.equal(exact.sort(0).values, z[:9].sort(0).values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    z = torch.randn(40, 3).to(dtype)
    codes = kmeans(z, 5)
    assert codes.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(codes.float(), kmeans(z.to(codes.dtype), 5).float())


def test_starts_a_quantizer():
    z = torch.randn(400, 4) * 3 + 20
    q = vqkern.build_quantizer("ema", dim=4, codebook_size=16)
    q.load_codes(kmeans(z, q.codebook_size))
    q.eval()(z)
    assert q.usage().dead_codes == 0


def test_bad_input_is_named():
    z = torch.randn(10, 2)
    z[0] = float("nan")
    with pytest.raises(ValueError, match=r"num_codes must be in \[1, 9\], the number of finite"):
        kmeans(z, 10)
    with pytest.raises(ValueError, match=r"start must have shape \[4, 2\], got \[3, 2\]"):
        kmeans(z, 4, start=z[:3])
    with pytest.raises(TypeError, match="features must be floating point"):
        kmeans(z.long(), 4)
