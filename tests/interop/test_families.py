"""The drop-ins for taming, LlamaGen, VAR and diffusers, and the originals they are compared with,
against data made with the public reference programs."""

import pytest
import torch
from interop import originals
from interop.pairs import var_case
from support import golden

from vqkern import interop

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(
    "family",
    [interop.taming.VectorQuantizer2, originals.Taming.VectorQuantizer2]
    + [interop.diffusers.VectorQuantizer, originals.Diffusers.VectorQuantizer],
    ids=["taming", "original taming", "diffusers", "original diffusers"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_taming_and_diffusers_give_what_vqgan_gave(family, legacy):
    state, _, out = golden("taming_quantizer")
    layer = family(128, 16, 0.25, legacy=legacy, sane_index_shape=True)
    layer.load_state_dict({"embedding.weight": state["quantize.embedding.weight"]})
    z = out["z"].clone().requires_grad_()
    quantized, loss, (perplexity, encodings, index) = layer(z)
    assert perplexity is None and encodings is None
    assert torch.equal(index, out["indices"])
    torch.testing.assert_close(quantized, out["z_q"], **CLOSE)
    expected = out["loss_legacy_true" if legacy else "loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    if not legacy:
        loss.backward()
        torch.testing.assert_close(z.grad, out["grad_loss.z"], rtol=1e-4, atol=1e-9)
        expected = out["grad_loss.quantize.embedding.weight"]
        torch.testing.assert_close(layer.embedding.weight.grad, expected, rtol=1e-4, atol=1e-9)
    b, c, h, w = z.shape
    entries = layer.get_codebook_entry(index.flatten(), (b, h, w, c))
    torch.testing.assert_close(entries, out["z_q"], **CLOSE)
    assert layer.get_codebook_entry(index.flatten(), None).shape == (b * h * w, c)


@pytest.mark.parametrize(
    "family",
    [interop.llamagen.VectorQuantizer, originals.LlamaGen.VectorQuantizer],
    ids=["llamagen", "original"],
)
def test_llamagen_gives_what_the_reference_gave(family):
    state, _, out = golden("llamagen_quantizer")
    layer = family(256, 8, 0.25, 0.0, True, True)
    layer.load_state_dict(
        {
            "embedding.weight": state["quantize.embedding.weight"],
            "codebook_used": torch.zeros(65536),
        }
    )
    z = out["z"].clone().requires_grad_()
    layer.eval()
    quantized, losses, (_, _, index) = layer(z)
    assert losses == (None, None, None, 0)
    assert torch.equal(index, out["indices"])
    torch.testing.assert_close(quantized, out["z_q"], **CLOSE)
    layer.train()
    _, (vq, commit, entropy, usage), _ = layer(z)
    torch.testing.assert_close(vq, out["train_vq_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(commit, out["train_commit_loss"], rtol=1e-5, atol=0)
    assert float(entropy) == 0
    # The window of the last 65,536 indices is zeros but for these.
    assert usage == len({0, *out["indices"].tolist()}) / 256
    (vq + commit).backward()
    torch.testing.assert_close(z.grad, out["grad_losses.z"], rtol=1e-4, atol=1e-8)
    expected = out["grad_losses.quantize.embedding.weight"]
    torch.testing.assert_close(layer.embedding.weight.grad, expected, rtol=1e-4, atol=1e-8)
    entries = layer.get_codebook_entry(index, shape=z.shape, channel_first=True)
    torch.testing.assert_close(entries, out["code_entry"], **CLOSE)


@pytest.mark.parametrize("name", ["var_tokenizer", "var_tokenizer_ch64"])
@pytest.mark.parametrize(
    "family",
    [interop.var.VectorQuantizer2, originals.VAR.VectorQuantizer2],
    ids=["var", "original"],
)
def test_var_gives_what_the_reference_gave(family, name):
    state, case = var_case(name)
    layer = family(64, 32, False, v_patch_nums=(1, 2, 3, 4))
    layer.load_state_dict(state)
    f = case["f"].clone().requires_grad_()
    f_hat, usages, loss = layer(f)
    assert usages is None
    torch.testing.assert_close(f_hat, case["quant_fhat_ste"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, case["quant_loss"], rtol=1e-5, atol=0)
    with torch.no_grad():
        index = layer.f_to_idxBl_or_fhat(f, to_fhat=False)
        f_hats = layer.f_to_idxBl_or_fhat(f, to_fhat=True)
    for scale in range(4):
        assert torch.equal(index[scale], case[f"idx.{scale}"].long())
        torch.testing.assert_close(f_hats[scale], case[f"fhat.{scale}"], rtol=1e-4, atol=1e-4)
    if "grad.f" in case:
        loss.backward()
        torch.testing.assert_close(f.grad, case["grad.f"], rtol=1e-4, atol=1e-7)
        expected = case["grad.quantize.embedding.weight"]
        torch.testing.assert_close(layer.embedding.weight.grad, expected, rtol=1e-3, atol=1e-7)
        for i in range(4):
            torch.testing.assert_close(
                layer.quant_resi.qresi_ls[i].weight.grad,
                case[f"grad.{i}.weight"],
                rtol=1e-3,
                atol=1e-6,
            )
    if family is interop.var.VectorQuantizer2:
        with torch.no_grad():
            inputs = layer.idxBl_to_var_input(index)
        torch.testing.assert_close(inputs, case["var_input"], rtol=1e-4, atol=1e-4)
        sides = (1, 2, 3, 4)
        codes = [
            layer.embedding(i).transpose(1, 2).reshape(2, 32, p, p)
            for i, p in zip(index, sides, strict=True)
        ]
        torch.testing.assert_close(
            layer.embed_to_fhat(codes, last_one=True), case["f_hat"], rtol=1e-4, atol=1e-4
        )


def layers():
    return {
        "taming": interop.taming.VectorQuantizer2(32, 8, 0.25),
        "llamagen": interop.llamagen.VectorQuantizer(32, 8, 0.25, 0.0, True, True),
        "llamagen euclidean": interop.llamagen.VectorQuantizer(32, 8, 0.25, 0.0, False, False),
        "var": interop.var.VectorQuantizer2(32, 8, False, v_patch_nums=(1, 2, 4)),
        "var znorm": interop.var.VectorQuantizer2(32, 8, True, v_patch_nums=(1, 2, 4)),
        "diffusers": interop.diffusers.VectorQuantizer(32, 8, 0.25),
    }


@pytest.mark.parametrize("name", list(layers()))
def test_a_nan_stays_where_it_is(name):
    layer = layers()[name]
    clean = torch.randn(3, 8, 4, 4)
    z = clean.clone()
    z[1, 2, 0, 0] = torch.nan
    quantized, loss, *_ = layer(z)
    losses = [t for t in (loss if isinstance(loss, tuple) else (loss,)) if torch.is_tensor(t)]
    if name.startswith("var"):
        losses = [layer(z)[2]]
    sum(losses).backward()
    assert all(bool(term.isfinite()) for term in losses)
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters() if p.grad is not None)
    assert bool(quantized[1].isnan().any()) and bool(quantized[[0, 2]].isfinite().all())
    expected = layer(clean)[0][[0, 2]]
    torch.testing.assert_close(quantized[[0, 2]], expected)


@pytest.mark.parametrize("name", list(layers()))
def test_wrong_input_is_named(name):
    layer = layers()[name]
    for wrong in (torch.randn(2, 8, 4), torch.randn(2, 7, 4, 4)):
        with pytest.raises(ValueError, match=r"must have shape \[B, 8, H, W\]"):
            layer(wrong)
    with pytest.raises(TypeError, match="floating point"):
        layer(torch.ones(2, 8, 4, 4, dtype=torch.long))


def test_unsupported_options_are_named():
    with pytest.raises(ValueError, match="remap must be None"):
        interop.taming.VectorQuantizer2(32, 8, 0.25, remap="used.npy")
    with pytest.raises(ValueError, match="remap must be None"):
        interop.diffusers.VectorQuantizer(32, 8, 0.25, remap="used.npy")
    with pytest.raises(ValueError, match="entropy_loss_ratio must be 0"):
        interop.llamagen.VectorQuantizer(32, 8, 0.25, 0.1, True, True)
    with pytest.raises(ValueError, match="v_patch_nums"):
        interop.var.VectorQuantizer2(32, 8, False)
    layer = interop.taming.VectorQuantizer2(32, 8, 0.25)
    with pytest.raises(ValueError, match="return_logits"):
        layer(torch.randn(1, 8, 2, 2), return_logits=True)
    with pytest.raises(ValueError, match="indices must hold 4 values"):
        layer.get_codebook_entry(torch.arange(3), (1, 2, 2, 8))
    with pytest.raises(ValueError, match="8 at place 3"):
        layer.get_codebook_entry(torch.arange(4), (1, 8, 2, 2))
    var = layers()["var"]
    with pytest.raises(ValueError, match="the last of v_patch_nums"):
        var.f_to_idxBl_or_fhat(torch.randn(1, 8, 5, 5), to_fhat=False)


def test_phi_have_the_keys_of_the_reference():
    keys = {
        0: "quant_resi.0.weight",
        1: "quant_resi.qresi.weight",
        2: "quant_resi.qresi_ls.1.weight",
        4: "quant_resi.qresi_ls.3.weight",
    }
    for share, key in keys.items():
        layer = interop.var.VectorQuantizer2(
            16, 4, False, v_patch_nums=(1, 2, 3, 4), share_quant_resi=share
        )
        assert key in layer.state_dict()
        assert layer(torch.randn(1, 4, 4, 4))[0].shape == (1, 4, 4, 4)
    bare = interop.var.VectorQuantizer2(16, 4, False, v_patch_nums=(1, 2), quant_resi=0.0)
    assert list(bare.state_dict()) == ["ema_vocab_hit_SV", "embedding.weight"]
