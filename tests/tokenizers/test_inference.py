"""Images of any size, tiles, batches, parts of the tokens, autocast and compilation."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqkern import build_quantizer
from vqkern.data import CropSampler, load_photographs, to_float
from vqkern.tokenizers import ConvConfig, Tiles, VQGANConfig, build_tokenizer
from vqkern.tokenizers.blocks import ResBlock
from vqkern.tokenizers.tiles import in_tiles
from vqkern.training import FromScratch, train_from_scratch

CONFIG = VQGANConfig(
    latent_dim=4, z_channels=4, width=8, multipliers=(1, 2, 2), attention=(2,), blocks=1, groups=4
)


def tokenizer(name="vanilla", config=CONFIG, codebook_size=32, **options):
    torch.manual_seed(0)
    dim = config.latent_dim
    q = build_quantizer(name, dim=dim, codebook_size=codebook_size, channel_dim=1, **options)
    return build_tokenizer(config, q).eval()


def images(height=32, width=24, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 17), (30, 24), (33, 63)], ids=str)
def test_any_size_is_padded_by_its_own_edge(size):
    t = tokenizer()
    x = images(*size)
    height, width = (-(-side // 4) for side in size)
    index = t.encode(x)
    assert index.shape == (2, height, width)
    rows = torch.arange(4 * height).clamp_max(size[0] - 1)
    columns = torch.arange(4 * width).clamp_max(size[1] - 1)
    padded = x[:, :, rows][:, :, :, columns]
    assert torch.equal(index, t.encode(padded)) and torch.equal(
        index, t.quantizer.encode(t.latent(padded))
    )
    out = t.reconstruct(x)
    assert out.shape == x.shape and torch.equal(out, t.decode(index, size=size))
    assert torch.equal(out, t.decode(index)[:, :, : size[0], : size[1]])


def test_sizes_that_the_tokens_do_not_cover_are_named():
    t = tokenizer()
    index = t.encode(images())
    for size in [(33, 24), (28, 24), (32, 20), (0, 24)]:
        with pytest.raises(ValueError, match=f"size: latents of 32 x 24 .* {size[0]} x {size[1]}"):
            t.decode(index, size=size)


@pytest.mark.parametrize("name", ["vanilla", "mmd_halves", "ema_rq", "vanilla_var", "fsq"])
def test_no_image_at_all(name):
    options = {"patch_sizes": (1, 2, 8)} if "var" in name else {}
    size = 256 if name == "fsq" else 32
    t = tokenizer(name, codebook_size=size, **options)
    x = images(32, 32)
    index, none = t.encode(x), t.encode(x[:0])
    assert none.shape == (0, *index.shape[1:]) and none.dtype == torch.int64
    assert t.decode(none).shape == (0, 3, 32, 32) and t.reconstruct(x[:0]).shape == (0, 3, 32, 32)
    assert t.latent(x[:0]).shape == (0, 4, 8, 8)
    assert t.reconstruct(x[:0], tiles=Tiles(16, 4)).shape == (0, 3, 32, 32)


def test_batches_are_images_one_by_one():
    t = tokenizer()
    x = images(count=3)
    one_by_one = torch.cat([t.latent(image[None]) for image in x])
    torch.testing.assert_close(t.latent(x), one_by_one, rtol=1e-5, atol=1e-6)


class Blur(nn.Module):
    """A network whose outputs see `reach` inputs on either side, and nothing else."""

    def __init__(self, reach):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 2 * reach + 1, padding=reach, padding_mode="zeros")

    def forward(self, x):
        return self.conv(x)


class Copy(nn.Module):
    """In the place of a norm: what comes after may write over what it gives."""

    def forward(self, x):
        return x.clone()


@pytest.mark.parametrize("length", [(40, 40), (33, 52), (8, 21)], ids=str)
@pytest.mark.parametrize("size", [8, 16, 64])
def test_with_the_whole_reach_in_the_halo_tiles_are_the_whole(length, size):
    network = Blur(3)
    x = torch.randn(2, 3, *length)
    whole = network(x)
    seen = []

    def counted(window):
        seen.append(tuple(window.shape[2:]))
        return network(window)

    tiled = in_tiles(counted, x, size, 3, into=1, out_of=1)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)
    assert len(set(seen)) == 1 and seen[0] <= (size + 6, size + 6)
    if size == 8:
        less = in_tiles(network, x, size, 2, into=1, out_of=1)
        assert not torch.allclose(less, whole, rtol=1e-5, atol=1e-5)


def test_tiles_scale_down_and_up():
    down = nn.AvgPool2d(4)
    x = torch.randn(1, 3, 40, 24)
    assert torch.equal(in_tiles(down, x, 16, 4, into=1, out_of=4), down(x))
    up = nn.Upsample(scale_factor=4)
    assert torch.equal(in_tiles(up, x, 16, 4, into=4, out_of=1), up(x))


def test_tiles_of_a_network_without_norms_are_exact_and_with_them_near():
    """Norms and attention see one tile: that is all the difference there is."""
    t = tokenizer()
    x = images(96, 64, 1)
    one_tile = Tiles(96, 0)
    assert torch.equal(t.encode(x, tiles=one_tile), t.encode(x))
    assert torch.equal(t.reconstruct(x, tiles=one_tile), t.reconstruct(x))
    local = VQGANConfig(
        latent_dim=4, z_channels=4, width=8, multipliers=(1, 2, 2), attention=(), blocks=1, groups=4
    )
    t = tokenizer(config=local)
    for part in (t.encoder, t.decoder):
        part.mid.attn_1 = nn.Identity()
        for block in [m for m in part.modules() if isinstance(m, ResBlock)]:
            block.norm1 = block.norm2 = Copy()
        part.norm_out = Copy()
    latent = t.latent(x)
    with torch.no_grad():
        tiled = in_tiles(t._encoded, x, 32, 32, into=1, out_of=4)
        torch.testing.assert_close(tiled, latent, rtol=1e-5, atol=1e-6)
        decoded = t.decode_latent(latent)
        tiled = t.decode_latent(latent, tiles=Tiles(32, 32))
        torch.testing.assert_close(tiled, decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_trained_tokenizer_in_tiles():
    """512 x 512 and 2560 x 1440 within what docs/tokenizers.md says; seams go with the halo."""
    pictures, regions = load_photographs()
    torch.manual_seed(0)
    q = build_quantizer("vanilla", dim=8, codebook_size=256, channel_dim=1, commitment=0.024)
    t = build_tokenizer(ConvConfig(), q)
    sampler = CropSampler(pictures, regions, 64, 0)
    train_from_scratch(t, sampler, FromScratch(steps=40, batch=8, start_crops=64))
    photograph = to_float(pictures[0].pixels)[None]
    for height, width, size, halo in ((512, 512, 256, 64), (1440, 2560, 512, 128)):
        x = F.interpolate(photograph, (height, width), mode="bicubic").clamp(-1, 1)
        with torch.inference_mode():
            index = t.encode(x)
            whole = t.decode(index)
            same, largest = [], []
            for tiles in (Tiles(size, 0), Tiles(size, halo)):
                same.append(float((t.encode(x, tiles=tiles) == index).double().mean()))
                largest.append(float((t.decode(index, tiles=tiles) - whole).abs().max()))
        assert min(same) > 0.9 and same[1] >= same[0], same
        assert largest[1] < 0.75 * largest[0] and largest[1] < 0.2, largest


def test_tiles_of_any_image():
    t = tokenizer()
    x = images(45, 70, 2)
    out = t.reconstruct(x, tiles=Tiles(16, 8))
    assert out.shape == x.shape and t.encode(x, tiles=Tiles(16, 8)).shape == (2, 12, 18)
    for tiles, message in (
        (Tiles(18, 8), "size 18 is not a multiple of 4"),
        (Tiles(16, 6), "halo 6 is not a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=f"tiles: {message}"):
            t.encode(x, tiles=tiles)
    with pytest.raises(ValueError, match="halo: .* -1"):
        Tiles(16, -1)
    with pytest.raises(ValueError, match="size: .* 0"):
        Tiles(0, 0)


@pytest.mark.parametrize(
    ("name", "parts"), [("vanilla_groups", 4), ("ema_rq", 4), ("vanilla_var", 3)]
)
def test_decoding_the_first_groups_stages_or_scales(name, parts):
    options = {"patch_sizes": (1, 2, 8)} if "var" in name else {}
    t = tokenizer(name, **options)
    x = images(32, 32)
    index, whole = t.encode(x), t.reconstruct(x)
    assert torch.equal(t.decode(index, first=parts), whole)
    latents = [t.quantizer.decode(index, first=m) for m in range(1, parts + 1)]
    for m, latent in enumerate(latents, 1):
        assert torch.equal(t.reconstruct(x, first=m), t.decode_latent(latent))
    if name == "vanilla_groups":
        assert not latents[0][:, 1:].any() and latents[0][:, :1].any()
    with pytest.raises(ValueError, match="first: VectorQuantizer has no groups"):
        tokenizer().decode(tokenizer().encode(x), first=1)


def test_multi_scale_maps_are_of_one_size():
    t = tokenizer("vanilla_var", patch_sizes=(1, 2, 8))
    with torch.inference_mode():
        assert t.encode(images(30, 32)).shape == (2, 1 + 4 + 64)  # padded to it
        for size in ((32, 24), (36, 36), (16, 16)):
            with pytest.raises(ValueError, match="maps of 8 x 8, the last of patch_sizes"):
                t.encode(images(*size))


def test_indices_out_of_range_and_shapes_are_named():
    t = tokenizer()
    index = t.encode(images())
    for bad in (32, -2, 2**62):
        index[0, 0, 0] = bad
        with pytest.raises(IndexError):
            t.decode(index)
    with pytest.raises(TypeError):
        t.decode(index.float())
    with pytest.raises(ValueError, match=r"latent: expected shape \[B, 4, h, w\]"):
        t.decode(torch.zeros(3, dtype=torch.long))
    index[0, 0, 0] = -1
    assert bool(t.decode(index)[0].isnan().any())


@pytest.mark.parametrize("name", ["vanilla", "mmd_var", "fvq", "vanilla_sphere"])
def test_autocast_leaves_quantization_exact(name):
    options = {"patch_sizes": (1, 2, 8)} if "var" in name else {}
    t = tokenizer(name, codebook_size=64, **options)
    x = images(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        latent, index, out = t.latent(x), t.encode(x), t.reconstruct(x)
        rebuilt, loss = t(x)
    assert latent.dtype == out.dtype == torch.float32
    assert not torch.equal(latent, t.latent(x))  # the encoder did run in bfloat16
    assert torch.equal(index, t.quantizer.encode(latent))
    assert bool(out.isfinite().all()) and loss.dtype == torch.float32
    half = tokenizer(name, codebook_size=64, **options).bfloat16()
    assert half.latent(x).dtype == torch.float32 and half.reconstruct(x).dtype == torch.float32


def test_compiled_networks_give_the_same():
    t, plain = tokenizer(), tokenizer()
    keys = list(t.state_dict())
    t.compile(backend="eager", fullgraph=True)
    x = images()
    torch.testing.assert_close(t.latent(x), plain.latent(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(t.reconstruct(x), plain.reconstruct(x), rtol=1e-4, atol=1e-4)
    assert list(t.state_dict()) == keys
    new = t.transplant(build_quantizer("mmd", dim=4, codebook_size=8, channel_dim=1))
    assert torch.equal(new.latent(x), plain.latent(x))


@pytest.mark.slow
def test_compiled_by_inductor():
    """Encoder and decoder of both architectures; of batches of two sizes."""
    small = ConvConfig(latent_dim=4, widths=(16, 16), blocks=(1, 1))
    for config in (CONFIG, small):
        t, plain = tokenizer(config=config), tokenizer(config=config)
        t.compile()
        for count in (2, 3):
            x = images(count=count)
            with torch.no_grad():
                torch.testing.assert_close(t.latent(x), plain.latent(x), rtol=1e-4, atol=1e-5)
                latent = plain.latent(x)
                whole, compiled = plain.decode_latent(latent), t.decode_latent(latent)
            torch.testing.assert_close(compiled, whole, rtol=1e-4, atol=1e-4)
        assert torch.equal(t.encode(x), t.quantizer.encode(t.latent(x)))


def test_channels_last_throughout():
    """No layer copies its input into another layout."""
    t = tokenizer(config=dataclasses.replace(CONFIG, width=16))
    layouts = []

    def look(module, inputs):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in t.modules():
        if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
            module.register_forward_pre_hook(look)
    t.reconstruct(images(16, 24))
    assert len(layouts) > 40 and all(layouts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 12}, "width: 12 is not a multiple of groups = 32"),
        ({"latent_dim": 0}, "latent_dim: expected an integer >= 1, got 0"),
        ({"multipliers": ()}, "multipliers: expected a list"),
        ({"attention": (5,)}, "attention: expected numbers of levels from 0 to 4"),
        ({"attention": 3}, "attention: .* 3"),
        ({"quant_kernel": 2}, "quant_kernel: expected an odd number, got 2"),
        ({"quant_groups": 3}, "latent_dim: 8 is not a multiple of quant_groups = 3"),
        ({"variational": 1}, "variational: expected true or false, got 1"),
        ({"blocks": 10**6}, "blocks: expected at most 64, got 1000000"),
    ],
)
def test_bad_configs_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        VQGANConfig(**settings)
