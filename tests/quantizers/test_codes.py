"""Parametrisations: what they compute, which gradients flow, what they cost."""

import pytest
import torch
from support import golden

import vqkern
from vqkern.quantizers import MLP5, Linear, Table, VQBridge


@pytest.mark.parametrize(
    "num_codes,kind,printed",
    [
        (16384, Linear, "1.07"),
        (16384, MLP5, "5.37"),
        (16384, VQBridge, "4.30"),
        (262144, Linear, "17.18"),
        (262144, MLP5, "85.90"),
        (262144, VQBridge, "55.89"),
    ],
)
def test_cost_is_that_of_the_papers_table_10(num_codes, kind, printed):
    with torch.device("meta"):
        billions = kind(Table(num_codes, 256)).macs() / 1e9
    assert f"{billions:.2f}" == printed or billions == pytest.approx(float(printed), rel=2e-3)


@pytest.mark.parametrize("kind", [Linear, MLP5, VQBridge])
def test_cost_is_what_runs(kind):
    """Counted while it runs, by PyTorch's own counter (two FLOPs each)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    codes = kind(Table(100, 8))
    # The counter does not see into the fused attention of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        codes()
    assert counter.get_total_flops() == 2 * codes.macs()
    assert Table(100, 8).macs() == 0


def test_linear_codes_and_their_gradients():
    for table in (Table(20, 3), Table(20, 3).requires_grad_(False)):
        codes = Linear(table)
        weight, bias = codes.embedding_proj.weight, codes.embedding_proj.bias
        expected = torch.stack([weight @ row + bias for row in table.weight])
        torch.testing.assert_close(codes(), expected)
        codes()[7].sum().backward()
        torch.testing.assert_close(weight.grad, table.weight[7].expand(3, 3))
        torch.testing.assert_close(bias.grad, torch.ones(3))
        if table.weight.requires_grad:
            others = torch.arange(20) != 7
            assert not table.weight.grad[others].any() and table.weight.grad[7].any()
        else:
            assert table.weight.grad is None
    assert Linear(Table(20, 3), bias=False).embedding_proj.bias is None


def test_mlp_is_five_layers_with_gelu_between():
    codes = MLP5(Table(20, 3)).double()
    x = codes.embedding.weight
    for number, layer in enumerate(codes.layers):
        x = x @ layer.weight.T + layer.bias
        if number < 4:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(codes(), x)
    wide = MLP5(Table(2000, 64))().std()
    assert 0.2 < wide < 2


@pytest.mark.parametrize(
    "init,width", [("normal", 1.0), ("scaled", 1 / 8), ("uniform", 3**-0.5 / 900)]
)
def test_initial_widths(init, width):
    weight = Table(900, 64, init=init).weight
    assert float(weight.detach().std()) == pytest.approx(width, rel=0.05)
    if init == "uniform":
        assert float(weight.detach().abs().max()) <= 1 / 900


def test_the_scale_is_a_factor_of_the_start():
    tables = []
    for scale in (1.0, 0.25):
        torch.manual_seed(0)
        tables.append(Table(30, 4, scale=scale).weight)
    assert torch.equal(tables[0] * 0.25, tables[1])
    for scale in (0, -1.0, float("inf"), True, "1"):
        with pytest.raises(ValueError, match="scale must be a finite number above 0, got"):
            Table(30, 4, scale=scale)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_starts_with_the_codes_it_maps(bias):
    table = Table(30, 4)
    assert torch.equal(Linear(table, bias=bias, start="identity")(), table.weight)
    assert not torch.allclose(Linear(table, bias=bias)(), table.weight)
    with pytest.raises(ValueError, match="start must be one of.*'zero'"):
        Linear(table, start="zero")


def test_they_nest():
    codes = Linear(Linear(Table(9, 4)))
    assert codes().shape == (9, 4) and codes.macs() == 2 * 9 * 16
    with pytest.raises(TypeError, match="Linear: embedding must be a code parametrisation.*int"):
        Linear(9)


def test_preset_options_reach_the_codes():
    q = vqkern.build_quantizer("simvq", dim=4, codebook_size=9)
    assert [n for n, p in q.named_parameters() if p.requires_grad] == [
        "parametrisation.embedding_proj.weight",
        "parametrisation.embedding_proj.bias",
    ]
    q = vqkern.build_quantizer("linear", dim=4, codebook_size=9, bias=False)
    assert len([p for p in q.parameters() if p.requires_grad]) == 2
    q = vqkern.build_quantizer("fvq", dim=4, codebook_size=64, variant="dit", hidden=16, depth=1)
    assert len(q.parametrisation.qbridge.blocks) == 1
    q = vqkern.build_quantizer(
        "linear", dim=4, codebook_size=900, init="normal", scale=0.5, start="identity"
    )
    assert 0.45 < float(q.codes.detach().std()) < 0.55
    q = vqkern.build_quantizer("fvq", dim=4, codebook_size=900, start="gathered", scale=0.5)
    assert 0.3 < float(q.codes.detach().std()) < 0.7
    with pytest.raises(ValueError, match="'simvq' has no option 'patch'; it has init, bias"):
        vqkern.build_quantizer("simvq", dim=4, codebook_size=9, patch=3)
    with pytest.raises(TypeError, match="load_codes needs a free table, this is Linear"):
        q = vqkern.build_quantizer("simvq", dim=4, codebook_size=9)
        q.load_codes(torch.zeros(9, 4))


@pytest.mark.parametrize("legacy", [False, True])
def test_tamings_quantizer(legacy):
    """Both placements of beta in the first VQGAN's loss, and its gradients."""
    state, _, out = golden("taming_quantizer")
    weights = {"commitment": 1.0, "codebook_weight": 0.25} if legacy else {"commitment": 0.25}
    q = vqkern.build_quantizer("vanilla", dim=16, codebook_size=128, channel_dim=1, **weights)
    q.load_codes(state["quantize.embedding.weight"])
    z = out["z"].clone().requires_grad_()
    result = q(z)
    assert torch.equal(result.index, out["indices"])
    torch.testing.assert_close(result.quantized, out["z_q"], rtol=1e-4, atol=1e-4)
    expected = out["loss_legacy_true" if legacy else "loss"]
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=0)
    if not legacy:
        result.loss.backward()
        torch.testing.assert_close(z.grad, out["grad_loss.z"], rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(
            q.parametrisation.weight.grad,
            out["grad_loss.quantize.embedding.weight"],
            rtol=1e-4,
            atol=1e-8,
        )


def test_llamagens_quantizer():
    """Unit latents and codes: indices, losses, and gradients through both normalisations."""
    state, _, out = golden("llamagen_quantizer")
    q = vqkern.build_quantizer("vanilla_sphere", dim=8, codebook_size=256, channel_dim=1)
    q.load_codes(state["quantize.embedding.weight"])
    z = out["z"].clone().requires_grad_()
    result = q(z)
    assert torch.equal(result.index.flatten(), out["indices"])
    torch.testing.assert_close(result.quantized, out["z_q"], rtol=1e-4, atol=1e-5)
    expected = out["train_vq_loss"] + out["train_commit_loss"]
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=0)
    result.loss.backward()
    torch.testing.assert_close(z.grad, out["grad_losses.z"], rtol=1e-4, atol=1e-8)
    (table,) = q.parameters()
    expected = out["grad_losses.quantize.embedding.weight"]
    torch.testing.assert_close(table.grad, expected, rtol=1e-4, atol=1e-8)
    decoded = q.decode(result.index)
    torch.testing.assert_close(decoded, out["code_entry"], rtol=1e-4, atol=1e-5)
