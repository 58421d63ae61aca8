"""VAEVQ's latent against the released program and against the paper's equations."""

import math

import pytest
import torch
from support import golden

import vqkern
from vqkern.quantizers import MMD, Linear, PriorWasserstein, Table, VariationalQuantizer

VALUES = {"rtol": 1e-5, "atol": 1e-6}
GRADIENTS = {"rtol": 1e-4, "atol": 1e-6}


def released(name, **options):
    state, inputs, outputs = golden(name)
    codes = Linear(Table(64, 16))
    codes.load_state_dict(state)
    q = VariationalQuantizer(codes, form="released", channel_dim=1, **options)
    leaves = {key: inputs[key].clone().requires_grad_() for key in ("mu", "logvar")}
    leaves |= dict(codes.named_parameters())
    z = torch.cat([leaves["mu"], leaves["logvar"]], dim=1)
    return q, z, leaves, inputs, outputs


@pytest.mark.parametrize("name", ["vaevq", "vaevq_clamp"])
class TestAgainstTheReleasedProgram:
    def test_both_branches_and_the_index(self, name):
        q, z, _, inputs, out = released(name)
        result = q.branches(z, noise=inputs["noise"])
        torch.testing.assert_close(result.sampled, out["z_c"], **VALUES)
        torch.testing.assert_close(result.quantized, out["z_quant"], rtol=1e-5, atol=2e-6)
        assert torch.equal(result.index.flatten(), out["indices"])
        assert torch.equal(q.encode(z).flatten(), out["indices"])

    @pytest.mark.parametrize("term", ["rcs", "kl", "zc", "zq", "total"])
    def test_losses_and_their_gradients_alone(self, name, term):
        weights = {"rcs_weight": float(term in ("rcs", "total")), "kl_weight": float(term == "kl")}
        q, z, leaves, inputs, out = released(name, **weights)
        result = q.branches(z, noise=inputs["noise"])
        value = result.loss
        if term == "kl":  # theirs is a sum over the image, ours a mean over its tokens
            value = value * 64
        if term in ("rcs", "kl"):
            torch.testing.assert_close(value, out[term], **VALUES)
        if term in ("zc", "total"):
            value = value + (result.sampled * inputs["w_c"]).sum()
        if term in ("zq", "total"):
            value = value + (result.quantized * inputs["w_q"]).sum()
        value.backward()
        for key, leaf in leaves.items():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(gradient, out[f"grad_{term}.{key}"], **GRADIENTS)


def test_eval_mode_is_the_released_one():
    q, z, _, inputs, out = released("vaevq")
    q.eval()
    result = q(z)
    torch.testing.assert_close(q.codes, out["projected_codebook"], **VALUES)
    assert torch.equal(result.index.flatten(), out["eval_indices"])
    torch.testing.assert_close(result.quantized, out["eval_z_q"], rtol=1e-5, atol=2e-6)
    branches = q.branches(z)
    assert torch.equal(branches.sampled, inputs["mu"]) and branches.loss == 0
    assert torch.equal(branches.quantized, result.quantized)


def paper(**options):
    torch.manual_seed(1)
    q = VariationalQuantizer(Linear(Table(30, 4, init="scaled")), **options)
    mean = torch.randn(50, 4).requires_grad_()
    log_variance = (torch.randn(50, 4) - 1).requires_grad_()
    return q, mean, log_variance, torch.cat([mean, log_variance], dim=1)


class TestThePapersForm:
    def test_the_sample_is_what_is_quantized(self):
        q, mean, log_variance, z = paper()
        noise = torch.randn(50, 4)
        result = q.branches(z, noise=noise)
        sampled = mean + (log_variance / 2).exp() * noise
        torch.testing.assert_close(result.sampled, sampled)
        assert torch.equal(result.index, torch.cdist(sampled, q.codes).argmin(1))
        assert not torch.equal(result.index, q.encode(z))
        torch.testing.assert_close(result.quantized, q.codes[result.index])

    def test_rcs_moves_mean_and_codes_but_not_the_variance(self):
        q, mean, log_variance, z = paper(kl_weight=0.0, rcs_weight=3.0)
        result = q.branches(z, noise=torch.randn(50, 4))
        difference = q.codes[result.index].detach() - mean.detach()
        variance = log_variance.detach().exp()
        expected = 3.0 * 0.5 * (difference.square() / variance).sum(1).mean() / 4
        torch.testing.assert_close(result.loss, expected)
        result.loss.backward()
        torch.testing.assert_close(mean.grad, -3.0 * difference / variance / (50 * 4))
        assert not log_variance.grad.any()
        count, total = vqkern.code_sums(3.0 * difference / variance / 200, result.index, 30)
        torch.testing.assert_close(
            q.parametrisation.embedding_proj.bias.grad, total.sum(0), rtol=1e-4, atol=1e-6
        )

    def test_kl_is_that_of_gaussians(self):
        q, mean, log_variance, z = paper(kl_weight=2.0, rcs_weight=0.0)
        normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
        expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
        torch.testing.assert_close(q(z).loss, 2.0 * expected.sum(1).mean())

    def test_the_decoders_gradient_reaches_the_sample_straight_through(self):
        q, mean, log_variance, z = paper()
        noise, upstream = torch.randn(50, 4), torch.randn(50, 4)
        result = q.branches(z, noise=noise)
        parameters = list(q.parameters())
        gradients = torch.autograd.grad(
            result.quantized, [mean, log_variance, *parameters], upstream, allow_unused=True
        )
        torch.testing.assert_close(gradients[0], upstream)
        std = (log_variance.detach() / 2).exp()
        torch.testing.assert_close(gradients[1], upstream * noise * std / 2)
        assert all(g is None or not g.any() for g in gradients[2:])

    def test_masked_and_bad_rows(self):
        q, _, _, z = paper()
        z = z.detach().clone()
        z[0, 1], z[1, 5], z[2, 7] = math.nan, math.inf, math.nan
        z.requires_grad_()
        mask = torch.rand(50) > 0.3
        mask[:4] = True
        result = q(z, mask=mask)
        assert result.index[:3].tolist() == [-1] * 3 and result.index[3] >= 0
        assert bool(result.quantized[:3].isnan().all())
        assert torch.equal(result.quantized[~mask], z[~mask, :4])
        assert q.usage()._replace(perplexity=0).tokens == int(mask.sum()) - 3
        result.loss.backward()
        assert bool(z.grad.isfinite().all()) and not z.grad[:3].any() and not z.grad[~mask].any()

    def test_the_draw_follows_the_seed(self):
        q, _, _, z = paper()
        torch.manual_seed(5)
        first = q(z)
        assert not torch.equal(q(z).index, first.index)
        torch.manual_seed(5)
        assert torch.equal(q(z).index, first.index)


def prior(y):
    """`prior_w2` in a form that shares nothing with the package's."""
    root = torch.linalg.eigvalsh(torch.cov(y.T)).clamp_min(0).sqrt()
    return y.mean(0).square().sum() + root.square().sum() - 2 * root.sum()


def test_all_codes_are_pulled_to_the_prior():
    q, _, _, z = paper(alignment=PriorWasserstein(0.1), kl_weight=0.0, rcs_weight=0.0)
    loss = q(z).loss
    torch.testing.assert_close(loss, 0.1 * prior(q.codes))
    loss.backward()
    assert bool((q.parametrisation.embedding.weight.grad.abs().sum(1) > 0).all())


def test_the_preset_is_the_papers():
    q = vqkern.build_quantizer("vaevq", dim=4, codebook_size=30)
    assert (q.rcs_weight, q.alignment.weight, q.form) == (1.0, 0.1, "paper")
    assert q.in_channels == 8 and q.dim == 4
    assert q.parametrisation.embedding.weight.requires_grad
    q = vqkern.build_quantizer("vaevq", dim=4, codebook_size=30, dcr_weight=0.0)
    assert q.alignment is None


def test_any_alignment_sees_the_sample():
    q, _, _, z = paper(alignment=MMD(), kl_weight=0.0, rcs_weight=0.0)
    noise = torch.randn(50, 4)
    result = q.branches(z, noise=noise)
    valid = torch.ones(50, dtype=torch.bool)
    torch.testing.assert_close(result.loss, MMD()(result.sampled, valid, q.codes))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"form": "print"}, "form must be one of.*'print'"),
        ({"rcs_weight": -1.0}, "rcs_weight must be a finite number.*-1.0"),
        ({"dcr_weight": math.inf}, "dcr_weight must be a finite number.*inf"),
        ({"parametrisation": "mlp"}, "parametrisation must be 'linear' or 'table', got 'mlp'"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        vqkern.build_quantizer("vaevq", dim=4, codebook_size=8, **options)
    q = vqkern.build_quantizer("vaevq", dim=4, codebook_size=8)
    with pytest.raises(ValueError, match=r"z must have 8 channels at dimension -1, got \[2, 4\]"):
        q(torch.ones(2, 4))


@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_two_pulls_stand_in_where_rcs_is_left_out(form):
    """VAEVQ's ablations: without RCS the codes follow the latents as in VQGAN."""
    weights = {"rcs_weight": 0.0, "kl_weight": 0.0, "commitment": 0.25, "codebook_weight": 2.0}
    q, mean, log_variance, z = paper(form=form, **weights)
    noise = torch.randn(50, 4)
    result = q.branches(z, noise=noise)
    latents = mean + (log_variance / 2).exp() * noise if form == "paper" else mean
    chosen = q.codes[result.index]
    expected = 0.25 * (latents - chosen.detach()).square().mean()
    expected = expected + 2.0 * (latents.detach() - chosen).square().mean()
    torch.testing.assert_close(result.loss, expected)
    leaves = [mean, log_variance, *q.parametrisation.parameters()]
    options = {"allow_unused": True, "materialize_grads": True}
    mine = torch.autograd.grad(result.loss, leaves, **options)
    for own, other in zip(mine, torch.autograd.grad(expected, leaves, **options), strict=True):
        torch.testing.assert_close(own, other)
    assert all(g.any() for g in mine[2:])
    folded = q.fold()
    assert folded.commitment == 0.25 and folded.update.weight == 2.0
    assert vqkern.build_quantizer(**folded.config).update.weight == 2.0
