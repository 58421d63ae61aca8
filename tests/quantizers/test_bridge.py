"""VQBridge: the released program's numbers, any K, and a start that is worth training from."""

import copy

import pytest
import torch
from support import golden

import vqkern
from vqkern.quantizers import Gradient, Table, VectorQuantizer, VQBridge
from vqkern.quantizers.bridge import default_patch, sincos_positions

VARIANTS = {"fvq_bridge_vit": "vit", "fvq_bridge_dit": "dit", "fvq_bridge_vit_initscale": "vit"}


def released(name):
    """The released program's quantizer, loaded key by key from its checkpoint."""
    state, inputs, outputs = golden(name)
    codes = VQBridge(Table(256, 16), patch=16, hidden=64, variant=VARIANTS[name])
    codes.load_state_dict(state)
    q = VectorQuantizer(codes, update=Gradient(1.0), commitment=0.25, channel_dim=1)
    return q, inputs, outputs


@pytest.mark.parametrize("name", VARIANTS)
class TestAgainstTheReleasedProgram:
    def test_codes_and_indices(self, name):
        q, inputs, out = released(name)
        torch.testing.assert_close(q.codes, out["bridged_codebook"], rtol=1e-4, atol=1e-5)
        tokens = q.parametrisation.qbridge.x_embedder(q.parametrisation.embedding())
        torch.testing.assert_close(tokens, out["tokens_after_embed"][0], rtol=1e-4, atol=1e-5)
        result = q.eval()(inputs["z"])
        assert torch.equal(result.index.flatten(), out["indices"])
        torch.testing.assert_close(result.quantized, out["z_q"], rtol=1e-4, atol=1e-5)
        folded = q.fold()
        assert torch.equal(folded.codes, q.codes) and isinstance(folded.parametrisation, Table)
        assert torch.equal(folded.encode(inputs["z"]).flatten(), out["indices"])

    def test_losses_and_every_gradient(self, name):
        q, inputs, out = released(name)
        z = inputs["z"].requires_grad_()
        loss = q(z).loss
        expected = out["train_vq_loss"] + out["train_commit_loss"]
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)
        loss.backward()
        parameters = dict(q.parametrisation.named_parameters())
        compared = 0
        for key, value in out.items():
            head, _, rest = key.partition(".")
            if head == "grad_losses":
                gradient = z.grad if rest == "z" else parameters[rest].grad
                torch.testing.assert_close(gradient, value, rtol=1e-3, atol=1e-6)
                compared += 1
        assert compared >= 2


def test_positions_are_the_released_ones():
    state, _, _ = golden("fvq_bridge_dit")
    torch.testing.assert_close(sincos_positions(4, 64)[None], state["qbridge.pos_embed"])


@pytest.mark.parametrize("variant", ["vit", "dit", "paper"])
def test_shapes_are_those_of_the_full_size_checkpoint(variant):
    with torch.device("meta"):
        shapes = {
            key: list(value.shape)
            for key, value in VQBridge(Table(16384, 256), variant=variant).state_dict().items()
        }
    embed = [256, 4096] if variant == "paper" else [256, 256, 4, 4]
    assert shapes.pop("embedding.weight") == [16384, 256]
    assert shapes.pop("qbridge.x_embedder.proj.weight") == embed
    assert shapes.pop("qbridge.x_embedder.proj.bias") == [256]
    if variant == "dit":
        assert shapes.pop("qbridge.pos_embed") == [1, 1024, 256]
        assert shapes.pop("qbridge.y_embedder.embedding_table.weight") == [1, 256]
        assert shapes.pop("qbridge.final_layer.adaLN_modulation.1.weight") == [512, 256]
        assert shapes.pop("qbridge.final_layer.adaLN_modulation.1.bias") == [512]
    for block in range(2):
        expected = {"attn.qkv": (768, 256), "attn.proj": (256, 256)}
        expected |= {"mlp.fc1": (512, 256), "mlp.fc2": (256, 512)}
        if variant == "dit":
            expected["adaLN_modulation.1"] = (1536, 256)
        for key, (out, into) in expected.items():
            assert shapes.pop(f"qbridge.blocks.{block}.{key}.weight") == [out, into]
            assert shapes.pop(f"qbridge.blocks.{block}.{key}.bias") == [out]
    assert shapes.pop("qbridge.final_layer.linear.weight") == [4096, 256]
    assert shapes.pop("qbridge.final_layer.linear.bias") == [4096]
    assert not shapes


def test_the_papers_variant_is_equations_8_to_11():
    """Written out with explicit loops and softmax, in float64."""
    torch.manual_seed(2)
    bridge = VQBridge(Table(21, 3), patch=4, hidden=8, heads=2, depth=1).double()
    raw, part = bridge.embedding.weight.detach(), bridge.qbridge

    def normalise(x):
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, unbiased=False, keepdim=True) + 1e-6
        ).sqrt()

    runs = [
        torch.cat([*raw[4 * g : 4 * g + 4], *torch.zeros(max(0, 4 * g + 4 - 21), 3).double()])
        for g in range(6)
    ]
    h = normalise(torch.stack(runs) @ part.x_embedder.proj.weight.T + part.x_embedder.proj.bias)
    block = part.blocks[0]
    qkv = normalise(h) @ block.attn.qkv.weight.T + block.attn.qkv.bias
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 8 * i + 4 * head : 8 * i + 4 * head + 4] for i in range(3))
        heads.append(torch.softmax(q @ k.T / 2, dim=-1) @ v)
    h = h + torch.cat(heads, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
    inner = normalise(h) @ block.mlp["fc1"].weight.T + block.mlp["fc1"].bias
    gelu = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    h = h + gelu @ block.mlp["fc2"].weight.T + block.mlp["fc2"].bias
    out = normalise(h) @ part.final_layer.linear.weight.T + part.final_layer.linear.bias
    torch.testing.assert_close(bridge(), out.reshape(24, 3)[:21])


@pytest.mark.parametrize("num_codes", [1, 63, 100, 1025])
def test_any_number_of_codes(num_codes):
    bridge = VQBridge(Table(num_codes, 6), patch=8)
    codes = bridge()
    assert codes.shape == (num_codes, 6) and bridge.tokens == -(-num_codes // 8)
    assert len(codes.unique(dim=0)) == num_codes
    # The filling of the last patch is no code: nothing changes where one more code replaces it.
    codes.sum().backward()
    assert bool(bridge.embedding.weight.grad.isfinite().all())


@pytest.mark.parametrize(
    "variant,init",
    [("paper", "normal"), ("paper", "uniform"), ("vit", "normal"), ("dit", "normal")],
)
def test_codes_start_distinct_and_well_conditioned(variant, init):
    bridge = VQBridge(Table(1024, 16, init=init), patch=4, variant=variant)
    codes = bridge().detach()
    assert len(codes.unique(dim=0)) == 1024
    spectrum = torch.linalg.eigvalsh(torch.cov(codes.T))
    assert spectrum[-1] / spectrum[0] < 10 and 0.3 < codes.std() < 3
    z = torch.randn(500, 16)
    assert vqkern.nearest_code(z, codes).index.unique().numel() > 200
    zero = VQBridge(Table(1024, 16, init=init), patch=4, variant=variant, start="zero")
    assert not zero().any()


@pytest.mark.parametrize("variant", ["paper", "vit", "dit"])
def test_gathered_codes_start_beside_those_of_their_patch(variant):
    torch.manual_seed(0)
    bridge = VQBridge(Table(4096, 3), patch=16, variant=variant, start="gathered", scale=0.5)
    codes = bridge().detach()
    assert len(codes.unique(dim=0)) == 4096
    assert 0.3 < codes.std() < 0.7
    if variant == "paper":
        patches = codes.view(-1, 16, 3)
    else:  # squares of 4 x 4 in the 64 x 64 image of the codes
        patches = codes.view(16, 4, 16, 4, 3).transpose(1, 2).reshape(-1, 16, 3)
    assert 0.03 < patches.std(1).mean() < 0.07


def test_the_gradient_of_a_gathered_code_moves_its_patch_its_way():
    torch.manual_seed(0)
    shares = {}
    for start in ("spread", "gathered"):
        bridge = VQBridge(Table(256, 3), patch=16, start=start)
        before = bridge()
        wanted = torch.tensor([1.0, 0.0, 0.0])
        (before[40] @ wanted).backward()
        with torch.no_grad():
            raw = bridge.embedding.weight
            raw += 0.1 * raw.grad / raw.grad.norm()
        moved = ((bridge() - before) @ wanted)[32:48].detach()  # the patch of code 40
        shares[start] = float((moved > 0).float().mean())
    assert shares["gathered"] == 1.0 > shares["spread"]


def test_one_code_moves_all():
    """The gradient of a single code reaches every raw code and every weight."""
    bridge = VQBridge(Table(40, 4), patch=4)
    bridge()[17].square().sum().backward()
    assert bool((bridge.embedding.weight.grad.abs().sum(-1) > 0).all())
    for name, parameter in bridge.named_parameters():
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    "num_codes,patch", [(50, 1), (1024, 1), (4096, 4), (16384, 16), (65536, 64), (262144, 64)]
)
def test_patch_sizes_are_the_papers(num_codes, patch):
    assert default_patch(num_codes) == patch


def test_a_deep_copy_is_independent():
    bridge = VQBridge(Table(30, 4))
    before = bridge().detach().clone()
    other = copy.deepcopy(bridge)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert torch.equal(bridge(), before) and not torch.equal(other(), before)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"variant": "vid"}, "variant must be one of.*'vid'"),
        ({"start": "ones"}, "start must be one of.*'ones'"),
        ({"scale": 0.0}, "scale must be a finite number above 0, got 0.0"),
        ({"patch": 0}, "patch must be a whole number of at least 1, got 0"),
        ({"hidden": 66}, "hidden must be a multiple of heads 4, got 66"),
        ({"variant": "vit", "patch": 4}, "square.*codebook_size 50 and patch 4"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VQBridge(Table(50, 8), **options)
    with pytest.raises(TypeError, match="embedding must be a code parametrisation.*got Linear"):
        VQBridge(torch.nn.Linear(2, 2))
