"""Multi-scale quantization against plain loops, and against the released VAR tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import vqkern
from vqkern.quantizers import EMA, MultiScale, Table, VectorQuantizer

GOLDEN = Path(__file__).parents[1] / "data" / "structures.safetensors"
RELEASED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def released(case):
    """The golden tensors of a case, and a quantizer with its weights."""
    tensors = load_file(GOLDEN)
    g = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(case + "/")}
    q = vqkern.build_quantizer(
        "vanilla_var", dim=32, codebook_size=64, patch_sizes=(1, 2, 3, 4), channel_dim=1
    )
    q.load_codes([g["codes"]])
    with torch.no_grad():
        for number, phi in enumerate(q.phi):
            weight = g[f"phi.{number}.weight"].float() * g[f"phi_scale.{number}.weight"]
            phi.weight.copy_(weight)
            phi.bias.copy_(g[f"phi.{number}.bias"])
    return q, g


@pytest.mark.parametrize("case", ["var_tokenizer", "var_tokenizer_ch64"])
class TestReleasedTokenizer:
    def test_indices_and_maps(self, case):
        q, g = released(case)
        index = torch.cat([g[f"idx.{scale}"] for scale in range(4)], dim=1)
        result = q.eval()(g["f"])
        assert torch.equal(result.index, index) and torch.equal(q.encode(g["f"]), index)
        torch.testing.assert_close(result.quantized, g["f_hat"], rtol=1e-5, atol=1e-6)
        for scale in range(4):
            partial = q.decode(index, first=scale + 1)
            torch.testing.assert_close(partial, g[f"fhat.{scale}"], rtol=1e-5, atol=1e-6)

    def test_inputs_of_the_next_scales(self, case):
        q, g = released(case)
        index = torch.cat([g[f"idx.{scale}"] for scale in range(4)], dim=1)
        inputs = q.next_scale_inputs(index)
        torch.testing.assert_close(inputs, g["var_input"], rtol=1e-5, atol=1e-6)
        f_hat, steps = None, []
        for scale in range(4):
            f_hat, step = q.add_scale(f_hat, scale, g[f"idx.{scale}"])
            steps.append(step)
        assert steps.pop() is None
        torch.testing.assert_close(torch.cat(steps, 1), inputs)
        torch.testing.assert_close(f_hat.movedim(-1, 1), g["f_hat"], rtol=1e-5, atol=1e-6)

    def test_loss_and_gradients(self, case):
        q, g = released(case)
        f = g["f"].requires_grad_()
        result = q(f)
        torch.testing.assert_close(result.loss, g["quant_loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(result.quantized, g["quant_fhat_ste"], rtol=1e-5, atol=1e-6)
        if "grad.f" not in g:
            return
        result.loss.backward()
        own = {"f": f, "quantize.embedding.weight": q.parts[0].parametrisation.weight}
        for number, phi in enumerate(q.phi):
            own[f"{number}.weight"], own[f"{number}.bias"] = phi.weight, phi.bias
        for name, tensor in own.items():
            truth = g[f"grad.{name}"]
            assert float((tensor.grad - truth).norm() / truth.norm()) < 1e-5, name


def test_which_convolution_a_scale_takes():
    from vqkern.quantizers.multiscale import nearest_phi

    assert [nearest_phi(s, 10, 4) for s in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    for scales in range(2, 15):
        assert [nearest_phi(s, scales, 1) for s in range(scales)] == [0] * scales
        assert [nearest_phi(s, scales, scales) for s in range(scales)] == list(range(scales))
        for k in range(2, scales):
            margin = (1 / 3 if k == 4 else 1 / 2) / k
            ticks = np.linspace(margin, 1 - margin, k)
            wanted = [int(np.abs(ticks - s / (scales - 1)).argmin()) for s in range(scales)]
            assert [nearest_phi(s, scales, k) for s in range(scales)] == wanted
    assert nearest_phi(0, 1, 1) == 0


@torch.no_grad()
def reference(q, f):
    """Tokens and maps after each scale with torch's own resampling, f [B, D, H, W] in float64."""
    table = q.codes[0].detach().double()
    rest, f_hat, side = f.double(), 0.0, f.shape[-1]
    tokens, maps, features = [], [], []
    for scale, p in enumerate(q.patch_sizes):
        small = F.interpolate(rest, (p, p), mode="area")
        rows = small.movedim(1, -1).reshape(-1, f.shape[1])
        index = torch.cdist(rows, table).argmin(-1)
        codes = table[index].reshape(len(f), p, p, -1).movedim(-1, 1)
        h = F.interpolate(codes, (side, side), mode="bicubic")
        phi = q.phi[q.phi_of_scale[scale]]
        convolved = F.conv2d(h, phi.weight.double(), phi.bias.double(), padding=1)
        h = (1 - q.ratio) * h + q.ratio * convolved
        rest, f_hat = rest - h, f_hat + h
        tokens.append(index.reshape(len(f), p * p))
        maps.append(f_hat)
        features.append(rows)
    return torch.cat(tokens, 1), maps, features


@pytest.mark.parametrize(
    "sizes,convolutions,ratio",
    [((1, 2, 3, 5), 4, 0.5), ((2, 3, 7), 1, 0.25), ((1, 4, 6), 3, 1.0), ((3,), 1, 0.0)],
)
def test_every_way_to_share_and_any_sizes(sizes, convolutions, ratio):
    part = VectorQuantizer(Table(20, 3))
    q = MultiScale(part, patch_sizes=sizes, convolutions=convolutions, ratio=ratio, channel_dim=1)
    f = torch.randn(2, 3, sizes[-1], sizes[-1])
    index, maps, _ = reference(q, f)
    result = q.eval()(f)
    assert torch.equal(result.index, index) and q.num_tokens == index.shape[1]
    for first, truth in enumerate(maps, start=1):
        decoded = q.decode(index, first=first)
        torch.testing.assert_close(decoded.double(), truth, rtol=1e-5, atol=1e-5)
    assert q.next_scale_inputs(index).shape == (2, q.num_tokens - sizes[0] ** 2, 3)
    assert q.usage()[0].tokens == 2 * q.num_tokens


def test_scales_are_weighted_and_weights_normalised():
    def loss(weights, **options):
        torch.manual_seed(0)
        part = VectorQuantizer(Table(20, 3))
        q = MultiScale(
            part, patch_sizes=(1, 2, 4), convolutions=3, scale_weights=weights, **options
        )
        f = torch.randn(2, 4, 4, 3)
        _, maps, _ = reference(q, f.movedim(-1, 1))
        errors = [float((m.movedim(1, -1) - f).square().mean()) for m in maps]
        return float(q(f).loss.detach()), errors

    value, errors = loss((1.0, 0.0, 3.0), commitment=0.5, codebook_weight=2.0)
    assert value == pytest.approx(2.5 * (errors[0] + 3 * errors[2]) / 4, rel=1e-5)
    assert loss(None)[0] == pytest.approx(1.25 * sum(errors) / 3, rel=1e-5)


def test_update_and_alignment_see_the_features_of_all_scales_at_once():
    seen = []

    def spy(features, valid, codes):
        seen.append(features[valid])
        return codes.sum() * 0.0 + 5.0

    part = VectorQuantizer(Table(6, 3), update=EMA(0.5), alignment=spy)
    q = MultiScale(part, patch_sizes=(1, 2, 4), convolutions=2, channel_dim=1)
    f = torch.randn(2, 3, 4, 4)
    table = q.codes[0].clone()
    index, _, features = reference(q, f)
    by_map = [x.reshape(2, -1, 3) for x in features]
    pooled = torch.cat(by_map, 1).reshape(-1, 3).float()
    result = q(f)
    assert torch.equal(result.index, index) and float(result.loss.detach()) > 5
    torch.testing.assert_close(seen[0], pooled, rtol=1e-4, atol=1e-5)
    tokens = index.flatten()
    for k in range(6):
        mine = pooled[tokens == k]
        expected = (table[k] + mine.sum(0)) / (1 + len(mine))
        torch.testing.assert_close(q.codes[0][k], expected, rtol=1e-4, atol=1e-5)
    # The codes are moved by averages; the convolutions by the loss.
    result.loss.backward()
    assert q.parts[0].parametrisation.weight.grad is None
    assert all(bool(phi.weight.grad.any()) for phi in q.phi)


def test_half_precision_modules_keep_exact_resampling():
    q = vqkern.build_quantizer("vanilla_var", dim=4, codebook_size=9, patch_sizes=(1, 3))
    before = [b.clone() for b in q.resample.buffers()]
    q = q.half().eval()
    assert all(torch.equal(a, b) for a, b in zip(q.resample.buffers(), before, strict=True))
    assert q.codes[0].dtype == torch.float16
    z = torch.randn(2, 3, 3, 4).half()
    assert torch.equal(q.decode(q.encode(z)).half(), q(z).quantized)
    assert not [k for k in q.state_dict() if "resample" in k]


def test_one_bad_position_or_token_leaves_the_whole_map_out():
    part = VectorQuantizer(Table(9, 3))
    q = MultiScale(part, patch_sizes=(2, 4, 8), convolutions=1, channel_dim=1)
    f = torch.randn(2, 3, 8, 8)
    f[0, 1, 7, 7] = torch.inf  # out of reach of the other corners
    result = q(f)
    assert bool((result.index[0] == -1).all()) and bool((result.index[1] >= 0).all())
    assert bool(result.quantized[0].isnan().all()) and bool(result.quantized[1].isfinite().all())
    assert (q.usage()[0].tokens, q.usage()[0].skipped) == (84, 84)
    result.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in q.parameters())
    index = q.encode(torch.randn(2, 3, 8, 8))
    index[1, -1] = -1
    decoded = q.decode(index)
    assert bool(decoded[0].isfinite().all()) and bool(decoded[1].isnan().all())


def test_the_released_sizes_and_defaults():
    q = vqkern.build_quantizer("vanilla_var", dim=2, codebook_size=5, channel_dim=1)
    assert q.patch_sizes == RELEASED and q.num_tokens == 680 and len(q.phi) == 4
    assert q(torch.randn(1, 2, 16, 16)).index.shape == (1, 680)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"patch_sizes": (2, 1)}, r"patch_sizes must be increasing.*\(2, 1\)"),
        ({"patch_sizes": ()}, "patch_sizes must be increasing"),
        ({"patch_sizes": (1, 2.0)}, "patch_sizes must be increasing whole numbers"),
        ({"convolutions": 5}, "convolutions must be from 1 to the number of scales, 3, got 5"),
        ({"ratio": 1.5}, r"ratio must be in \[0, 1\], got 1.5"),
        ({"scale_weights": (1, 1)}, "scale_weights must be 3 numbers, one a scale"),
        ({"scale_weights": (1, -1, 1)}, "scale_weights must be a finite number.*-1"),
        ({"commitment": float("inf")}, "commitment must be a finite number"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MultiScale(VectorQuantizer(Table(5, 3)), **{"patch_sizes": (1, 2, 4), **options})


def test_bad_input_is_named():
    part = VectorQuantizer(Table(5, 3))
    q = MultiScale(part, patch_sizes=(1, 2, 4), convolutions=1, channel_dim=1)
    for shape in ((3, 4, 4), (1, 3, 4, 5), (1, 3, 8, 8)):
        channel_dim = 0 if len(shape) == 3 else 1
        q.channel_dim = channel_dim
        with pytest.raises(ValueError, match="z must hold maps of 4 x 4, the last of patch_sizes"):
            q(torch.ones(shape))
    with pytest.raises(ValueError, match=r"index must be \[B, 21\], got \[2, 20\]"):
        q.decode(torch.zeros(2, 20).long())
    with pytest.raises(ValueError, match="first must be a whole number from 1 to 3, got 0"):
        q.decode(torch.zeros(2, 21).long(), first=0)
    with pytest.raises(ValueError, match="scale must be from 0 to 2, got 3"):
        q.add_scale(None, 3, torch.zeros(2, 1).long())
    with pytest.raises(ValueError, match=r"index of scale 1 must be \[B, 4\], got \[2, 1\]"):
        q.add_scale(None, 1, torch.zeros(2, 1).long())
    with pytest.raises(TypeError, match="index must be an integer"):
        q.next_scale_inputs(torch.zeros(2, 21))
