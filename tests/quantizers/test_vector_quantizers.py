"""The contract that every quantizer keeps, for every preset; and what each preset adds."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from support import HAS_NATIVE

import vqkern
from vqkern.quantizers import EMA, MMD, Gradient, Table, VectorQuantizer

NAMES = ["vanilla", "ema", "mmd", "wasserstein"]


def build(name, **options):
    return vqkern.build_quantizer(name, **{"dim": 4, "codebook_size": 50, **options})


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    @pytest.mark.parametrize("shape,channel_dim", [((2, 5, 4), -1), ((2, 4, 5, 6), 1), ((4,), -1)])
    def test_shapes_and_eval_mode_gives_the_codes(self, name, shape, channel_dim):
        q = build(name, channel_dim=channel_dim).eval()
        z = torch.randn(shape)
        quantized, index, loss = q(z)
        spatial = z.movedim(channel_dim, -1).shape[:-1]
        assert quantized.shape == z.shape and index.shape == spatial and index.dtype == torch.int64
        assert loss == 0 and loss.shape == ()
        assert torch.equal(quantized.movedim(channel_dim, -1), q.codes[index])
        assert torch.equal(q.encode(z), index)
        assert torch.equal(q.decode(index), quantized)
        distance = torch.cdist(z.movedim(channel_dim, -1).reshape(-1, 4), q.codes)
        assert torch.equal(distance.argmin(-1), index.reshape(-1))

    def test_the_gradient_passes_straight_through(self, name):
        q = build(name, commitment=0.0)
        z = torch.randn(7, 4, requires_grad=True)
        upstream = torch.randn(7, 4)
        result = q(z)
        (gradient,) = torch.autograd.grad(result.quantized, z, upstream)
        assert torch.equal(gradient, upstream)
        torch.testing.assert_close(result.quantized, q.decode(result.index), rtol=0, atol=1e-6) if (
            name != "ema"
        ) else None

    def test_the_commitment_pulls_the_encoder_only(self, name):
        q = build(name, commitment=0.7)
        z = torch.randn(30, 4, requires_grad=True)
        before = q.codes.detach().clone()
        result = q(z)
        (gradient,) = torch.autograd.grad(result.loss, z)
        expected = 0.7 * 2 * (z - before[result.index]).detach() / z.numel()
        torch.testing.assert_close(gradient, expected)

    def test_masked_positions_pass_through_and_count_nowhere(self, name):
        z = torch.randn(2, 4, 6, requires_grad=True)
        mask = torch.rand(2, 6) > 0.4
        torch.manual_seed(5)
        masked = build(name, channel_dim=1, commitment=1.0)
        torch.manual_seed(5)
        plain = build(name, commitment=1.0)
        torch.manual_seed(6)
        result = masked(z, mask=mask)
        torch.manual_seed(6)
        alone = plain(z.movedim(1, -1)[mask])
        assert torch.equal(result.index[mask], alone.index)
        assert bool((result.index[~mask] == -1).all())
        inputs, outputs = z.movedim(1, -1), result.quantized.movedim(1, -1)
        assert torch.equal(outputs[~mask], inputs[~mask])
        torch.testing.assert_close(outputs[mask], alone.quantized)
        assert masked.usage().tokens == int(mask.sum()) == plain.usage().tokens
        if name != "mmd":  # whose feature sample is drawn at random
            torch.testing.assert_close(result.loss, alone.loss)
            torch.testing.assert_close(masked.codes, plain.codes)

    def test_a_row_that_is_not_finite_harms_nothing(self, name):
        clean = torch.randn(40, 4)
        dirty = torch.cat([clean, torch.tensor([[math.nan, 0, 0, 0], [math.inf, 0, 0, 0]])])
        dirty.requires_grad_()
        q = build(name)
        result = q(dirty)
        assert result.index[-2:].tolist() == [-1, -1]
        assert bool(result.quantized[-2:].isnan().all())
        assert bool(result.quantized[:-2].isfinite().all())
        assert bool(result.loss.isfinite())
        result.loss.backward()
        assert bool(dirty.grad.isfinite().all()) and not dirty.grad[-2:].any()
        for parameter in q.parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all())
        assert bool(q.codes.isfinite().all())
        assert (q.usage().tokens, q.usage().skipped) == (40, 2)

    def test_a_batch_without_one_usable_row(self, name):
        q = build(name)
        before = q.codes.detach().clone()
        result = q(torch.full((3, 4), math.nan))
        assert result.loss == 0 and result.index.tolist() == [-1] * 3
        assert torch.equal(q.codes, before)
        assert q(torch.empty(0, 4)).loss == 0

    def test_usage_counts_every_forward_until_reset(self, name):
        q = build(name)
        z = torch.randn(200, 4)
        index = torch.cat([q(z).index, q.eval()(z).index])
        usage = q.usage()
        counts = torch.bincount(index, minlength=50).double()
        frequency = counts[counts > 0] / 400
        assert usage.tokens == 400
        assert usage.codes_hit == int((counts > 0).sum()) == 50 - usage.dead_codes
        assert usage.utilization == usage.codes_hit / 50
        expected = float((-(frequency * frequency.log()).sum()).exp())
        assert usage.perplexity == pytest.approx(expected)
        q.encode(z)
        assert q.usage() == usage
        q.reset_usage()
        assert q.usage() == (0, 0, 0.0, 0.0, 50, 0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_the_result_has_the_dtype_of_z_and_exact_indices(self, name, dtype):
        q = build(name)
        z = torch.randn(30, 4).to(dtype)
        expected = torch.cdist(z.double(), q.codes.double()).argmin(-1)
        result = q(z)
        assert result.quantized.dtype == dtype
        assert torch.equal(result.index, expected)
        q.eval()
        assert torch.equal(q(z).quantized, q.decode(q.encode(z)).to(dtype))

    def test_autocast_does_not_touch_the_indices(self, name):
        q = build(name, dim=64, codebook_size=300)
        z = torch.randn(100, 64)
        expected = q.encode(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(q(z).index, expected)

    def test_config_and_state_dict_rebuild_it(self, name):
        q = build(name, channel_dim=1)
        q(torch.randn(2, 4, 9))
        again = vqkern.build_quantizer(**q.config)
        again.load_state_dict(q.state_dict())
        assert torch.equal(again.codes, q.codes) and again.channel_dim == 1
        z = torch.randn(2, 4, 9)
        torch.manual_seed(1)
        one = q(z)
        torch.manual_seed(1)
        other = again(z)
        assert torch.equal(one.index, other.index) and torch.equal(one.loss, other.loss)
        assert torch.equal(again.codes, q.codes)

    def test_a_deep_copy_is_independent(self, name):
        q = build(name)
        other = copy.deepcopy(q)
        before = q.codes.detach().clone()
        other.load_codes(torch.randn(50, 4))
        other(torch.randn(90, 4))
        assert torch.equal(q.codes, before) and not torch.equal(other.codes, before)

    def test_fold_keeps_the_codes(self, name):
        q = build(name).eval()
        folded = q.fold()
        z = torch.randn(20, 4)
        assert torch.equal(folded(z).quantized, q(z).quantized)
        assert torch.equal(folded.codes, q.codes) and folded.alignment is None

    @pytest.mark.parametrize("channel_dim", [-1, 1])
    def test_forward_compiles_in_one_graph(self, name, channel_dim):
        torch.manual_seed(3)
        q = build(name, channel_dim=channel_dim)
        z = torch.randn(2, 4, 4, requires_grad=True)
        compiled = torch.compile(copy.deepcopy(q), fullgraph=True, backend="aot_eager")
        expected, result = q(z), compiled(z)
        assert torch.equal(result.index, expected.index)
        torch.testing.assert_close(result.loss, expected.loss)
        (gradient,) = torch.autograd.grad(result.loss + result.quantized.sum(), z)
        (wanted,) = torch.autograd.grad(expected.loss + expected.quantized.sum(), z)
        torch.testing.assert_close(gradient, wanted)

    def test_bad_input_is_named(self, name):
        q = build(name)
        with pytest.raises(
            ValueError, match=r"z must have 4 channels at dimension -1, got \[2, 5\]"
        ):
            q(torch.ones(2, 5))
        with pytest.raises(TypeError, match="z must be floating point.*int64"):
            q(torch.ones(2, 4).long())
        with pytest.raises(TypeError, match="mask must be a bool tensor, got torch.float32"):
            q(torch.ones(2, 4), mask=torch.ones(2))
        with pytest.raises(ValueError, match=r"mask must have shape \[2\].*got \[3\]"):
            q(torch.ones(2, 4), mask=torch.ones(3).bool())
        with pytest.raises(IndexError, match=r"index\[0\] is 50"):
            q.decode(torch.tensor([50]))
        with pytest.raises(TypeError, match="index must be an integer"):
            q.decode(torch.tensor([1.0]))

    def test_no_code_decodes_to_nan(self, name):
        rows = build(name).decode(torch.tensor([3, -1]))
        assert bool(rows[1].isnan().all()) and bool(rows[0].isfinite().all())


def test_the_codebook_loss_moves_codes_to_their_features():
    q = build("vanilla", codebook_weight=3.0)
    z = torch.randn(60, 4)
    result = q(z)
    result.loss.backward()
    count, total = vqkern.code_sums(z, result.index, 50)
    expected = 3.0 * 2 * (count[:, None] * q.codes - total).detach() / z.numel()
    torch.testing.assert_close(q.parametrisation.weight.grad, expected)


def test_mmd_reaches_codes_that_no_feature_chose_and_leaves_the_encoder_alone():
    q = build("mmd", commitment=0.0, codebook_weight=0.0, alignment=MMD(weight=2.0))
    z = torch.randn(60, 4, requires_grad=True)
    result = q(z)
    result.loss.backward()
    assert bool((q.parametrisation.weight.grad.abs().sum(-1) > 0).all())
    assert not z.grad.any()
    codes = q.codes.detach().requires_grad_()
    expected = 2.0 * vqkern.squared_mmd(
        z.detach(),
        codes,
        vqkern.ops.squared_mmd.__globals__["mean_bandwidth"](z.detach(), codes)
        * torch.tensor(MMD().multiples),
    )
    torch.testing.assert_close(result.loss, expected)


def test_mmd_of_samples_is_reproducible_and_bounded():
    alignment = MMD(max_features=16, max_codes=8)
    z, valid = torch.randn(500, 4), torch.ones(500, dtype=torch.bool)
    codes = torch.randn(90, 4, requires_grad=True)
    torch.manual_seed(1)
    first = alignment(z, valid, codes)
    torch.manual_seed(1)
    assert torch.equal(alignment(z, valid, codes), first)
    first.backward()
    assert int((codes.grad.abs().sum(-1) > 0).sum()) == 8
    # Invalid rows are never drawn, even if almost all are.
    valid[:] = False
    valid[7] = True
    z[~valid] = math.nan
    assert bool(alignment(z, valid, codes).isfinite())


def test_ema_is_the_moving_average_of_its_features():
    q = build("ema", decay=0.9, codebook_size=6)
    assert not any(p.requires_grad for p in q.parameters())
    count, total = torch.ones(6), q.codes.clone()
    for _ in range(5):
        z = torch.randn(20, 4)
        codes = q.codes.clone()
        index = q(z).index
        assignment = F.one_hot(index, 6).float()
        count = 0.9 * count + 0.1 * assignment.sum(0)
        total = 0.9 * total + 0.1 * assignment.T @ z
        hit = assignment.sum(0) > 0
        expected = torch.where(hit[:, None], total / count[:, None], codes)
        torch.testing.assert_close(q.codes.data, expected)
    frozen = q.codes.clone()
    q.eval()(torch.randn(20, 4))
    assert torch.equal(q.codes, frozen)


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_ema_statistics_stay_float32(cast):
    q = cast(build("ema"))
    assert q.update.count.dtype == q.update.total.dtype == torch.float32
    assert q.codes.dtype != torch.float32
    q(torch.randn(9, 4, dtype=q.codes.dtype))


def test_load_codes_restarts_the_statistics_and_refuses_bad_codes():
    q = build("ema")
    q(torch.randn(80, 4))
    codes = torch.randn(50, 4)
    q.load_codes(codes)
    assert torch.equal(q.codes, codes) and torch.equal(q.update.total, codes)
    with pytest.raises(ValueError, match=r"codes must have shape \[50, 4\], got \[3, 4\]"):
        q.load_codes(torch.ones(3, 4))
    with pytest.raises(ValueError, match="codes must be finite"):
        q.load_codes(codes * math.nan)


def test_the_training_loss_memory_never_holds_tokens_by_codes(tmp_path):
    """512 x 65,536 float32 would be 128 MB; a step must stay far below."""
    if not HAS_NATIVE:
        pytest.skip("the reference's tiles are larger than this bound")
    import subprocess
    import sys

    script = (
        "import resource, torch, vqkern\n"
        "q = vqkern.build_quantizer('vanilla', dim=4, codebook_size=65536)\n"
        "q(torch.randn(8, 4)).loss.backward()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "q(torch.randn(4096, 4)).loss.backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = int(
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    )
    assert grown < 64 * 1024  # KiB; 4,096 x 65,536 float32 would be 1 GiB


def test_composed_by_hand():
    q = VectorQuantizer(Table(30, 3), update=EMA(0.5), alignment=None, commitment=0.1)
    assert q.config is None and q.codebook_size == 30
    q = VectorQuantizer(Table(30, 3), update=Gradient(2.0), alignment=MMD(weight=0.1))
    q(torch.randn(10, 3)).loss.backward()


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"name": "vannila"}, "name must be one of.*'vannila'"),
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"codebook_size": 2.5}, "codebook_size must be a whole number.*2.5"),
        ({"decay": 0.5}, "'vanilla' has no option 'decay'; it has init, commitment"),
        ({"name": "ema", "decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"init": "zeros"}, "init must be one of.*'zeros'"),
        ({"commitment": float("nan")}, "commitment must be a finite number.*nan"),
        ({"codebook_weight": "x"}, "codebook_weight must be a finite number.*'x'"),
        ({"channel_dim": "x"}, "channel_dim must be a whole number, got 'x'"),
        ({"name": "ema", "decay": "x"}, r"decay must be in \[0, 1\), got 'x'"),
        ({"name": "mmd", "alignment": "mmd"}, "alignment must be an Alignment.*'mmd'"),
        ({"name": "mmd", "alignment": {"name": "mmmd"}}, "alignment must be one of.*'mmmd'"),
        ({"name": "mmd", "alignment": {"name": "mmd", "wait": 1}}, "alignment 'mmd'.*wait"),
    ],
    ids=str,
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        vqkern.build_quantizer(**{"name": "vanilla", "dim": 4, "codebook_size": 8, **arguments})


def test_bad_mmd_options_are_named():
    with pytest.raises(ValueError, match="bandwidths must be positive"):
        MMD(bandwidths=(1.0, 0.0))
    with pytest.raises(ValueError, match="max_codes must be a whole number of at least 2, got 1"):
        MMD(max_codes=1)
