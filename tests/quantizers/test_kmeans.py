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


class TestInit:
    """`init=latents`: codes start from data, in every structure whose codes are free tables."""

    @pytest.mark.parametrize("name", ["vanilla", "ema", "online", "mmd", "wasserstein"])
    def test_is_kmeans_of_the_latents(self, name):
        z = torch.randn(2, 3, 10, 10) * 3 + 20
        z[0, 1, 2, 3] = float("nan")
        q = vqkern.build_quantizer(name, dim=3, codebook_size=16, channel_dim=1, init=z)
        assert torch.equal(q.codes, kmeans(z.movedim(1, -1).reshape(-1, 3), 16))
        assert "init" not in q.config
        again = vqkern.build_quantizer(**q.config)
        again.load_state_dict(q.state_dict())
        assert torch.equal(again.codes, q.codes)
        before = q.codes.clone()
        q(z)
        if name == "ema":  # its statistics start at the codes, not at what was there before
            kept = (q.codes - before).norm(dim=1) / before.norm(dim=1)
            assert float(kept.max()) < 0.1

    @pytest.mark.parametrize(
        "name,options",
        [
            ("vanilla_halves", {}),
            ("ema_vp2", {}),
            ("vanilla_groups", {"groups": 2}),
            ("ema_vp2_halves", {}),
            ("vanilla_sphere", {}),
            ("ema_rq", {"depth": 3, "shared": False}),
        ],
        ids=str,
    )
    def test_of_structures(self, name, options):
        z = torch.randn(500, 4) * torch.tensor([5.0, 1.0, 1.0, 0.1]) + 30
        sizes = {"dim": 4, "codebook_size": 16, **options}
        started = vqkern.build_quantizer(name, init=z, **sizes).eval()
        drawn = vqkern.build_quantizer(name, **sizes).eval()
        scale = z / z.norm(dim=1, keepdim=True) if "sphere" in name else z
        error, unaware = ((q(z).quantized - scale).square().mean() for q in (started, drawn))
        assert float(error) < 0.05 * float(unaware)

    def test_what_has_no_free_table_refuses(self):
        z = torch.randn(100, 4)
        for name in ("linear", "fvq", "vaevq"):
            with pytest.raises(TypeError, match="start_from needs a free table, this is"):
                vqkern.build_quantizer(name, dim=4, codebook_size=16).start_from(
                    torch.cat([z, z], 1) if name == "vaevq" else z
                )
        with pytest.raises(TypeError, match="start_from needs free tables.*MultiScale cannot"):
            vqkern.build_quantizer("vanilla_var", dim=4, codebook_size=16).start_from(z)
        with pytest.raises(TypeError, match="start_from needs a codebook of its own for each"):
            vqkern.build_quantizer("vanilla_rq", dim=4, codebook_size=16, init=z)
        with pytest.raises(ValueError, match="finite features"):
            vqkern.build_quantizer("ema", dim=4, codebook_size=101, init=z)


def test_bad_input_is_named():
    z = torch.randn(10, 2)
    z[0] = float("nan")
    with pytest.raises(ValueError, match="got 9 finite features"):
        kmeans(z, 10)
    with pytest.raises(ValueError, match=r"start must have shape \[4, 2\], got \[3, 2\]"):
        kmeans(z, 4, start=z[:3])
    with pytest.raises(TypeError, match="features must be floating point"):
        kmeans(z.long(), 4)
