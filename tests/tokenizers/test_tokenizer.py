"""Tokenizer: shapes, round trips, transplant, and files that are whole or named."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqkern import build_quantizer
from vqkern.tokenizers import ConvConfig, Tokenizer, build_tokenizer, from_pretrained
from vqkern.tokenizers.conv import EPS, Standardize, start_at_principal_components

SMALL = ConvConfig(latent_dim=4, widths=(8, 8), blocks=(1, 1), groups=4)


def quantizer(name="vanilla", codebook_size=16, dim=4, **options):
    return build_quantizer(name, dim=dim, codebook_size=codebook_size, channel_dim=1, **options)


def tokenizer(config=SMALL, **options):
    torch.manual_seed(0)
    built = build_tokenizer(config, quantizer(dim=config.latent_dim, **options))
    for name, parameter in built.named_parameters():
        if "quantizer" not in name:  # the heads start at zero; tests need every path alive
            torch.nn.init.normal_(parameter, std=0.1)
    return built.eval()


def images(height=32, width=24, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(8, 8), (32, 24), (64, 8)], ids=str)
def test_shapes_and_range(size):
    t = tokenizer()
    x = images(*size)
    latent, index = t.latent(x), t.encode(x)
    height, width = size[0] // 8, size[1] // 8
    assert latent.shape == (2, 4, height, width) and latent.dtype == torch.float32
    assert index.shape == (2, height, width) and index.dtype == torch.int64
    out = t.reconstruct(x)
    assert out.shape == x.shape and float(out.abs().max()) <= 1
    assert torch.equal(out, t.decode(index))


def test_codes_are_the_nearest_ones():
    t = tokenizer()
    latent = t.latent(images()).movedim(1, -1)
    distance = (latent[..., None, :] - t.quantizer.codes).square().sum(-1)
    assert torch.equal(t.encode(images()), distance.argmin(-1))


def test_another_factor():
    config = ConvConfig(latent_dim=4, shuffle=2, widths=(8, 8, 8, 8), blocks=(1,) * 4, groups=4)
    assert config.factor == 16
    assert tokenizer(config).reconstruct(images(32, 48)).shape == (2, 3, 32, 48)


def test_variational_adds_log_variances_and_changes_no_mean(tmp_path):
    config = dataclasses.replace(SMALL, variational=True)
    t, plain = tokenizer(config, name="vaevq"), tokenizer()
    fresh = build_tokenizer(config, quantizer("vaevq"))
    _, log_variance = fresh.posterior(images())
    assert log_variance.unique().item() == -4  # a smaller deviation than the latents' own, 1
    assert t.latent(images()).shape == (2, 8, 4, 3)
    own, other = t.encoder.state_dict(), plain.encoder.state_dict()
    t.encoder.load_state_dict(
        {k: torch.cat([v, own[k][4:]]) if v.shape != own[k].shape else v for k, v in other.items()}
    )
    mean, log_variance = t.posterior(images())
    torch.testing.assert_close(mean, plain.latent(images()))
    assert log_variance.std() > 0
    t.save_pretrained(tmp_path / "t")
    assert from_pretrained(tmp_path / "t").config == config
    assert torch.equal(from_pretrained(tmp_path / "t").latent(images()), t.latent(images()))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(1, 3, 0, 16), ValueError, r"sides of at least 1, got \[1, 3, 0, 16\]"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"\[B, 3, H, W\] .* got \[1, 1, 16, 16\]"),
        (torch.zeros(3, 16, 16), ValueError, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "uint8"),
        ("photo.png", TypeError, "str"),
    ],
)
def test_bad_images_are_named(bad, error, message):
    for call in (tokenizer().encode, tokenizer().latent, tokenizer().reconstruct):
        with pytest.raises(error, match=f"images: .*{message}"):
            call(bad)


def test_training_asks_for_sides_that_fit():
    for call in (tokenizer().latent, tokenizer()):
        with pytest.raises(ValueError, match="images: .*12 x 16 are not multiples of 8"):
            call(torch.zeros(1, 3, 12, 16))


def test_standardisation_is_the_same_in_training_and_evaluation():
    torch.manual_seed(0)
    layer = Standardize(4)
    shift = torch.tensor([1.0, -2.0, 0.0, 3.0]).view(1, 4, 1, 1)
    for _ in range(500):
        # Batches as different as photographs are: each has a brightness of its own.
        x = 3 * torch.randn(8, 4, 2, 2) + shift + 2 * torch.randn(1, 4, 1, 1)
        trained = layer.train()(x)
    assert torch.allclose(trained, layer.eval()(x), atol=1e-5)
    assert float(layer(x + 5).mean() - layer(x).mean()) > 1  # brightness gets through
    many = 3 * torch.randn(4000, 4, 2, 2) + shift + 2 * torch.randn(4000, 4, 1, 1)
    assert layer(many).mean((0, 2, 3)).abs().max() < 0.5
    assert float(layer(many).square().mean()) == pytest.approx(1, abs=0.15)


def test_standardisation_gives_mean_and_scale_no_gradient():
    torch.manual_seed(0)
    layer = Standardize(4).double()
    layer.mean += 0.5
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    (layer(x) * weights).sum().backward()
    centred = x.detach() - x.detach().mean((0, 2, 3), keepdim=True)
    assert x.grad.abs().max() > 0.1
    assert x.grad.sum((0, 2, 3)).abs().max() < 1e-9
    assert abs(float((x.grad * centred).sum())) < 1e-4  # of EPS beside the variance
    # A standardisation by the batch's own statistics has the same gradient, up to the scale.
    own = x.detach().clone().requires_grad_()
    middle = own.mean((0, 2, 3), keepdim=True)
    deviation = ((own - middle).square().mean() + EPS).sqrt()
    ((own - middle) / deviation * weights).sum().backward()
    ratio = float(deviation.detach() / (layer.variance + EPS).sqrt())
    assert torch.allclose(x.grad, own.grad * ratio)


def test_principal_components_beat_any_other_start():
    torch.manual_seed(0)
    t = build_tokenizer(SMALL, quantizer()).eval()
    x = torch.nn.functional.avg_pool2d(images(256, 256, 4), 4).repeat_interleave(4, -1)
    x = x.repeat_interleave(4, -2)
    start_at_principal_components(t.encoder, t.decoder, x)
    error = (t.decoder(t.latent(x)) - x).square().mean()
    patches = torch.nn.functional.pixel_unshuffle(x, 8).movedim(1, -1).reshape(-1, 192)
    values = torch.linalg.svdvals(patches - patches.mean(0)).square()
    assert error.item() == pytest.approx(float(values[4:].sum() / patches.numel()), rel=1e-3)
    assert t.latent(x).square().mean().item() == pytest.approx(1, rel=1e-2)
    with pytest.raises(ValueError, match="images: 1 patches"):
        start_at_principal_components(t.encoder, t.decoder, x[:1, :, :8, :8])


def test_transplant_shares_nothing_and_keeps_the_networks():
    old = tokenizer()
    new = old.transplant(quantizer("mmd", 64))
    assert torch.equal(old.latent(images()), new.latent(images()))
    assert len(new.quantizer.codes) == 64 and len(old.quantizer.codes) == 16
    before = {name: value.clone() for name, value in old.state_dict().items()}
    with torch.no_grad():
        for value in [*new.parameters(), *new.buffers()]:
            value.zero_()
    assert all(torch.equal(before[name], value) for name, value in old.state_dict().items())


@pytest.mark.parametrize("name", ["transplant", "build"])
def test_wrong_quantizers_are_named(name):
    def use(q):
        return tokenizer().transplant(q) if name == "transplant" else build_tokenizer(SMALL, q)

    with pytest.raises(ValueError, match="quantizer: takes 5 channels, expected the encoder's 4"):
        use(quantizer(dim=5))
    with pytest.raises(ValueError, match="channel_dim is -1, expected 1"):
        use(build_quantizer("vanilla", dim=4, codebook_size=8))


@pytest.mark.parametrize("name", ["vanilla", "ema", "mmd"])
def test_saved_and_loaded_bit_for_bit(tmp_path, name):
    t = tokenizer().transplant(quantizer(name, 32, commitment=0.5))
    t.encoder.standardize.mean.copy_(torch.arange(4.0))
    t.save_pretrained(tmp_path / "a")
    for loaded in (from_pretrained(tmp_path / "a"), Tokenizer.from_pretrained(str(tmp_path / "a"))):
        assert not loaded.training and loaded.config == t.config
        assert loaded.quantizer.config == t.quantizer.config
        assert loaded.state_dict().keys() == t.state_dict().keys()
        for key, value in t.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key]), key
        assert torch.equal(t.reconstruct(images()), loaded.reconstruct(images()))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_what_a_folder_cannot_hold_is_not_saved(tmp_path):
    half = tokenizer().bfloat16()
    with pytest.raises(ValueError, match="is torch.bfloat16; a folder holds float32"):
        half.save_pretrained(tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_quantizer_without_a_config_cannot_be_saved(tmp_path):
    t = tokenizer()
    t.quantizer.config = None
    with pytest.raises(ValueError, match="has no config"):
        t.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def poison(tensors):
    tensors["decoder.linear.0.bias"][3] = float("nan")


DAMAGE = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json.*missing"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors.*missing"),
    "not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json.*cannot be read"),
    "another JSON": (lambda d: (d / "config.json").write_text("[1]"), "not a JSON object"),
    "newer format": (lambda d: edit_config(d, format_version=2), "format version 2, expected 1"),
    "unknown network": (lambda d: edit_config(d, architecture={"name": "x"}), "architecture"),
    "bad network": (
        lambda d: edit_config(d, architecture={"name": "conv", "widths": [7, 8]}),
        "config.json.*widths: 7",
    ),
    "unknown setting": (
        lambda d: edit_config(d, architecture={"name": "conv", "depth": 7}),
        "config.json.*depth",
    ),
    "unknown quantizer": (
        lambda d: edit_config(d, quantizer={"name": "x", "dim": 4, "codebook_size": 4}),
        "config.json.*'x'",
    ),
    "no quantizer": (lambda d: edit_config(d, quantizer=3), "quantizer must be an object"),
    "cut weights": (
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-9]
        ),
        "model.safetensors.*cannot be read",
    ),
    "tensor gone": (
        lambda d: edit_tensors(d, lambda t: t.pop("decoder.linear.0.bias")),
        "missing keys 'decoder.linear.0.bias'",
    ),
    "tensor too many": (
        lambda d: edit_tensors(d, lambda t: t.update(x=torch.zeros(1))),
        "unexpected keys 'x'",
    ),
    "another shape": (
        lambda d: edit_tensors(d, lambda t: t.update({"decoder.linear.0.bias": torch.zeros(3)})),
        r"is torch.float32 \[3\], expected torch.float32 \[192\]",
    ),
    "another dtype": (
        lambda d: edit_tensors(
            d, lambda t: t.update({"decoder.linear.0.bias": torch.zeros(192).half()})
        ),
        "is torch.float16",
    ),
    "not finite": (lambda d: edit_tensors(d, poison), "decoder.linear.0.bias' is not finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_named(tmp_path, damage):
    tokenizer().save_pretrained(tmp_path / "t")
    breaks, message = DAMAGE[damage]
    breaks(tmp_path / "t")
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(tmp_path / "t")
    assert str(tmp_path / "t") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (12, 8)}, "widths: 12 is not a multiple of groups = 8"),
        ({"widths": ()}, "widths: expected a list"),
        ({"widths": (8,), "blocks": (1, 1)}, "blocks: expected one count"),
        ({"latent_dim": 0}, "latent_dim: expected an integer >= 1, got 0"),
        ({"shuffle": 1.5}, "shuffle: .* 1.5"),
        ({"blocks": (0, 1)}, "blocks: .* 0"),
        ({"variational": 1}, "variational: expected true or false, got 1"),
    ],
)
def test_bad_configs_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvConfig(**settings)
