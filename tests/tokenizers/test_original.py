"""Public files: the numbers of their own programs, keys of the full-size models, the way back."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizer_cases import (
    CASES,
    GOLDEN_FOLDER,
    LARGE,
    TINY,
    case,
    drawn,
    manifests,
    tiny_file,
)

from vqkern import build_quantizer
from vqkern.cli import main
from vqkern.tokenizers import (
    FORMATS,
    Tokenizer,
    build_tokenizer,
    from_original,
    from_pretrained,
)
from vqkern.tokenizers.files import Stored
from vqkern.tokenizers.original import plan
from vqkern.tokenizers.pretrained import on_meta


def relative(result, truth):
    return float((result - truth).norm() / truth.norm())


def loaded(folder: Path, name: str) -> Tokenizer:
    form, patch_sizes = (CASES | LARGE)[name]
    state = case(name)[0]
    wrapper = FORMATS[form].writes
    torch.save(state if wrapper is None else {wrapper: state, "step": 3}, folder / "public.pt")
    return from_original(form, folder / "public.pt", patch_sizes=patch_sizes)


def large(name):
    marks = [pytest.mark.slow]
    if not GOLDEN_FOLDER:
        marks.append(pytest.mark.skip(reason="VQKERN_GOLDEN names no folder of golden data"))
    return pytest.param(name, marks=marks)


@pytest.fixture(scope="module", params=[*CASES, *map(large, LARGE)])
def public(request, tmp_path_factory):
    name = request.param
    return name, loaded(tmp_path_factory.mktemp(name), name)


@torch.no_grad()
def test_latents_indices_and_images_are_the_public_programs(public):
    name, t = public
    _, inputs, outputs = case(name)
    x = inputs["x"]
    latent = t.latent(x)
    wanted = next(outputs[key] for key in ("f", "z", "mean") if key in outputs)
    assert relative(latent, wanted) < 1e-5
    images = outputs.get("rec", outputs.get("dec")).clamp(-1, 1)
    assert float((t.reconstruct(x) - images).abs().max()) < 1e-4
    if t.quantizer is None:
        mean, log_variance = t.posterior(x)
        assert torch.equal(mean, latent) and relative(log_variance, outputs["logvar"]) < 1e-5
        assert float((t.decode_latent(outputs["mean"]) - images).abs().max()) < 1e-4
        return
    index = t.encode(x)
    scales = [outputs[key] for key in sorted(outputs) if key.startswith("idx.")]
    wanted = torch.cat(scales, 1) if scales else outputs["indices"].reshape(index.shape)
    assert torch.equal(index, wanted.long())
    codes = outputs.get("f_hat", outputs.get("z_q"))
    torch.testing.assert_close(t.quantizer.decode(index), codes, rtol=1e-5, atol=1e-5)


def test_written_back_bit_for_bit(public, tmp_path):
    name, t = public
    state = case(name)[0]
    form = FORMATS[(CASES | LARGE)[name][0]]
    t.to_original(tmp_path / "back.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["back.pt"]
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    back = back if form.writes is None else back[form.writes]
    counts = set(back) - set(state)
    assert counts <= {"quantize.codebook_used", "quantize.ema_vocab_hit_SV"}
    assert set(state) <= set(back) and all(torch.equal(back[k], v) for k, v in state.items())
    assert not any(back[k].any() for k in counts)


@pytest.mark.parametrize("name", FORMATS)
def test_saved_as_our_own_it_is_the_same_and_still_goes_back(tmp_path, name):
    t = from_original(name, tiny_file(tmp_path / "a.safetensors", name))
    t.save_pretrained(tmp_path / "own")
    again = from_pretrained(tmp_path / "own")
    assert again.config == t.config and again.original == t.original == name
    for key, value in t.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    again.to_original(tmp_path / "b.safetensors")
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


MANIFESTS = manifests()


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_files_fit_the_full_size_model(name):
    """Public keys and shapes, all of them and no others after the documented drops."""
    manifest = MANIFESTS[name]
    form = FORMATS[manifest["format"]]
    stored = {k: Stored(tuple(s), torch.float32, None) for k, s in manifest["keys"].items()}
    config, options, ours = plan(form, Path(name), stored)
    networks = on_meta(config, options)
    expected = networks.state_dict(keep_vars=True)
    found = ours(expected)
    assert all(found[key].shape == tuple(expected[key].shape) for key in expected)
    fixed = sum(b.numel() for k, b in networks.named_buffers() if k.endswith("pos_embed"))
    assert sum(p.numel() for p in networks.parameters()) + fixed == manifest["parameters"]
    # Nothing stays unused but what the format says it drops, and that is counts.
    dropped = {k for k in stored if any(k.startswith(d.replace("\\", "")) for d in form.dropped)}
    assert dropped <= set(manifest["buffers"])
    used = sum(p.numel() for p in expected.values())
    assert used == sum(torch.Size(s.shape).numel() for k, s in stored.items() if k not in dropped)
    for key in ("discriminator.x", "quantize.other"):
        with pytest.raises(ValueError, match=f"unexpected keys '{key}'"):
            more = {**stored, key: Stored((1,), torch.float32, None)}
            plan(form, Path(name), more)[2](expected)


def test_loss_keys_of_the_training_program_are_left_out(tmp_path):
    t = build_tokenizer(dataclasses.replace(TINY, variational=True), None)
    t.to_original(tmp_path / "a.safetensors", "ldm-kl-f16")
    state = load_file(tmp_path / "a.safetensors")
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(())}}, tmp_path / "b.ckpt")
    again = from_original("ldm-kl-f16", tmp_path / "b.ckpt")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in t.state_dict().items())


@pytest.mark.parametrize("variant", ["vit", "dit"])
def test_fvq_bridged_and_folded(tmp_path, variant):
    q = build_quantizer(
        "fvq", dim=8, codebook_size=256, channel_dim=1, variant=variant, patch=16, hidden=16
    )
    t = build_tokenizer(TINY, q).eval()
    t.to_original(tmp_path / "bridged.pt", "fvq")
    bridged = from_original("fvq", tmp_path / "bridged.pt")
    assert bridged.quantizer.parametrisation.variant == variant
    assert all(torch.equal(v, bridged.state_dict()[k]) for k, v in t.state_dict().items())
    folded = t.transplant(q.fold())
    folded.to_original(tmp_path / "folded.pt", "fvq")
    plain = from_original("fvq", tmp_path / "folded.pt")
    assert plain.quantizer.config["name"] == "vanilla"
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(plain.reconstruct(x), bridged.reconstruct(x))
    used = torch.load(tmp_path / "folded.pt", weights_only=True)["model"]["quantize.codebook_used"]
    assert used.shape == (65536,)


TRANSPLANTS = {
    "var": ("mmd_var", {"patch_sizes": (1, 2, 8)}, "linear_var"),
    "llamagen": ("mmd_sphere", {}, "simvq_sphere"),
    "fvq": ("wasserstein", {}, "mlp"),
    "taming-vqgan": ("ema", {}, "linear"),
}


@pytest.mark.parametrize("name", TRANSPLANTS)
@pytest.mark.parametrize("which", ["table", "projected codes"])
def test_a_transplanted_quantizer_goes_back_into_the_format(tmp_path, name, which):
    preset, options, projected = TRANSPLANTS[name]
    preset = preset if which == "table" else projected
    kernel = 3 if name == "var" else 1
    config = dataclasses.replace(TINY, quant_kernel=kernel)
    q = build_quantizer(preset, dim=8, codebook_size=40, channel_dim=1, **options)
    t = build_tokenizer(config, q).eval()
    t.to_original(tmp_path / "t.pt", name)
    again = from_original(name, tmp_path / "t.pt", patch_sizes=options.get("patch_sizes"))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode(x), t.encode(x))
    torch.testing.assert_close(again.reconstruct(x), t.reconstruct(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "quantizer", "message"),
    [
        ("var", "vanilla", "holds a plain one in a MultiScale, got VectorQuantizer"),
        ("llamagen", "vanilla", "Spherical"),
        ("ldm-vq-f16", "mmd_halves", "holds a plain, got Halves"),
        ("taming-vqgan", "vanilla_projected", "got Projected"),
        ("ldm-kl-f16", "vanilla", "variational = True"),
        (None, "vanilla", "got None"),
        ("pixart", "vanilla", "expected one of 'var', 'llamagen'"),
    ],
)
def test_what_a_format_cannot_hold_is_named(tmp_path, name, quantizer, message):
    kernel = 3 if name == "var" else 1
    options = {"projector_hidden": 8} if "projected" in quantizer else {}
    q = build_quantizer(quantizer, dim=8, codebook_size=8, channel_dim=1, **options)
    t = build_tokenizer(dataclasses.replace(TINY, quant_kernel=kernel), q)
    with pytest.raises(ValueError, match=message):
        t.to_original(tmp_path / "t.pt", name)
    assert not list(tmp_path.iterdir())


LIKE = {
    "var": "'var'",
    "llamagen": "'llamagen', or 'fvq'",
    "fvq": "'llamagen', or 'fvq'",
    "ldm-kl-f16": "'ldm-kl-f16'",
    "ldm-vq-f16": "'ldm-vq-f16' or 'taming-vqgan'",
    "taming-vqgan": "'ldm-vq-f16' or 'taming-vqgan'",
}
SAME_KEYS = [{"llamagen", "fvq"}, {"ldm-vq-f16", "taming-vqgan"}]


@pytest.mark.parametrize("written", LIKE)
@pytest.mark.parametrize("read", LIKE)
def test_a_file_of_another_format_is_named(tmp_path, written, read):
    path = tiny_file(tmp_path / "t.safetensors", written)
    if written == read or {written, read} in SAME_KEYS:
        assert from_original(read, path).original == read
        return
    with pytest.raises(ValueError, match="keys '") as caught:
        from_original(read, path)
    message = str(caught.value)
    assert f"looks like {LIKE[written]}" in message and str(path) in message
    assert "missing keys" in message or "unexpected keys" in message


def test_files_that_are_no_tokenizers_are_named(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="missing keys 'encoder.conv_in.weight'.*nor of any other"):
        from_original("var", tmp_path / "a.safetensors")
    t = build_tokenizer(TINY, build_quantizer("vanilla", dim=8, codebook_size=8, channel_dim=1))
    t.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="vqkern's own"):
        from_original("llamagen", tmp_path / "own" / "model.safetensors")
    with pytest.raises(ValueError, match="patch_sizes: 'fvq' has no scales"):
        from_original("fvq", tmp_path / "a.safetensors", patch_sizes=(1, 2))
    with pytest.raises(ValueError, match="format: expected one of"):
        from_original("vqgan", tmp_path / "a.safetensors")


def test_scales_that_the_file_does_not_have_are_named(tmp_path):
    q = build_quantizer("vanilla_var", dim=8, codebook_size=8, channel_dim=1, patch_sizes=(1, 2))
    t = build_tokenizer(dataclasses.replace(TINY, quant_kernel=3), q)
    t.to_original(tmp_path / "t.pt", "var")
    with pytest.raises(ValueError, match="patch_sizes: the file has 2 scales, the default 10"):
        from_original("var", tmp_path / "t.pt")
    wider = from_original("var", tmp_path / "t.pt", patch_sizes=(1, 2, 3, 4, 8))
    x = torch.rand(1, 3, 16, 16)
    assert wider.encode(x).shape == (1, 1 + 4 + 9 + 16 + 64)


def test_mgvq_on_a_backbone_of_ours():
    """MGVQ's quantization is that of its program, also from the first groups alone."""
    state, inputs, outputs = case("mgvq_quantizer")
    q = build_quantizer("vanilla_sphere_groups", dim=32, codebook_size=64, channel_dim=1).eval()
    # One embedding of all groups, its rows in their order.
    for part, rows in zip(q.parts, state["embedding.weight"].chunk(4), strict=True):
        part.load_codes(rows)
    index = q.encode(inputs["z"])
    assert torch.equal(index.reshape(-1, 4), outputs["indices"].long())
    for first in range(1, 5):
        decoded = q.decode(index, first=first)
        torch.testing.assert_close(decoded, outputs[f"partial.{first}"], rtol=0, atol=1e-6)
    config = dataclasses.replace(TINY, latent_dim=32, z_channels=32, quant_groups=4)
    t = build_tokenizer(config, q).eval()
    assert t.encoder.quant_conv.weight.shape == (32, 8, 1, 1)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    whole = t.reconstruct(x)
    assert torch.equal(t.decode(t.encode(x), first=4), whole)
    assert not torch.equal(t.reconstruct(x, first=1), whole)


def test_vaevq_on_a_backbone_of_ours(tmp_path):
    config = dataclasses.replace(TINY, variational=True)
    q = build_quantizer("vaevq", dim=8, codebook_size=16, channel_dim=1)
    t = build_tokenizer(config, q).eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert t.latent(x).shape == (2, 16, 8, 8) and t.encode(x).shape == (2, 8, 8)
    assert torch.equal(t.encode(x), q.encode(t.latent(x)))
    assert torch.equal(t.posterior(x)[0], t.latent(x)[:, :8])
    rebuilt, loss = t.train()(x)
    loss.backward()
    assert rebuilt.shape == x.shape and t.encoder.conv_in.weight.grad.any()
    t.eval().save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path).reconstruct(x), t.reconstruct(x))


def test_continuous_latents_take_a_quantizer(tmp_path):
    t = from_original("ldm-kl-f16", tiny_file(tmp_path / "t.pt", "ldm-kl-f16"))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with pytest.raises(ValueError, match="encode: .* continuous latents"):
        t.encode(x)
    assert torch.equal(t.reconstruct(x), t.decode_latent(t.posterior(x)[0]))
    q = build_quantizer(
        "mmd_halves_projected", dim=8, codebook_size=32, channel_dim=1, projector_hidden=8
    )
    new = t.transplant(q)
    assert torch.equal(new.latent(x), t.latent(x))
    assert new.encode(x).shape == (2, 8, 8, 2)
    new.save_pretrained(tmp_path / "new")
    assert torch.equal(from_pretrained(tmp_path / "new").reconstruct(x), new.reconstruct(x))
    with pytest.raises(ValueError, match="has no place for a Projected"):
        new.to_original(tmp_path / "x.pt")


@pytest.mark.slow
def test_the_full_size_var_tokenizer(tmp_path):
    state = {k: drawn(k, s, 7) for k, s in MANIFESTS["var_ch160v4096z32"]["keys"].items()}
    torch.save(state, tmp_path / "vae.pth")
    t = from_original("var", tmp_path / "vae.pth")
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    assert t.encode(x).shape == (1, 680) and t.reconstruct(x).shape == x.shape
    t.to_original(tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert state.keys() == back.keys() and all(torch.equal(v, back[k]) for k, v in state.items())


def test_convert_leaves_a_folder_with_files_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("mine")
    assert main(["convert", "var", "nothing.pth", "--out", str(tmp_path / "out")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "out/config.json").read_text() == "mine"
