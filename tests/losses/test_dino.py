"""The discriminator on frozen features: the transformer, what moves, what is saved."""

import pytest
import torch
from torch import nn

from vqkern.losses import DinoDiscriminator, Discriminator, VisionTransformer, load_vit


def small(**sizes):
    torch.manual_seed(0)
    network = VisionTransformer(**{"dim": 128, "depth": 4, "side": 64, "hidden": 96, **sizes})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def saved(network, path, **more):
    torch.save(network.state_dict() | more, path)
    return path


def images(count=2, side=64):
    return torch.rand(count, 3, side, side) * 2 - 1


def test_features_are_those_of_torchs_encoder_layers(tmp_path):
    """Independent of this code: nn.TransformerEncoderLayer with the same weights."""
    network = small()
    extra = {"norm.weight": torch.ones(128), "head.weight": torch.ones(3, 128)}
    loaded = load_vit(saved(network, tmp_path / "vit.pth", **extra))
    x = images()
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    state = network.state_dict()
    seen = (x * 0.5 + 0.5 - mean) / std
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    tokens = nn.functional.conv2d(seen, weight, bias, stride=16).flatten(2).transpose(1, 2)
    tokens = torch.cat([state["cls_token"].expand(2, -1, -1), tokens], 1) + state["pos_embed"]
    wanted = [tokens]
    for number in range(4):
        layer = nn.TransformerEncoderLayer(
            128, 2, 96, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        names = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        layer.load_state_dict(
            {
                f"{theirs}{kind}": state[f"blocks.{number}.{ours}{kind}"]
                for theirs, ours in names.items()
                for kind in ("weight", "bias")
            }
        )
        tokens = layer(tokens)
        wanted.append(tokens)
    for got, features in zip(loaded(x), wanted, strict=True):
        expected = (features[:, 1:] + features[:, :1]).transpose(1, 2)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    # The keys' bias is gone, and nothing depends on it.
    assert all(bool((b.attn["qkv"].bias[128:256] == 0).all()) for b in loaded.blocks)
    assert all(not p.requires_grad for p in loaded.parameters())


def test_heads_alone_are_trained_and_saved_and_the_images_get_gradients():
    features = small()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    network = DinoDiscriminator(features)
    assert not any("block" in name for name in network.state_dict())
    assert len(network.heads) == 5 and network(images(3)).shape == (3, 5 * 16)
    x = images().requires_grad_()
    network(x).sum().backward()
    assert bool((x.grad != 0).any()) and all(p.grad is not None for p in network.parameters())
    assert all(p.grad is None for p in features.parameters())
    network.train()
    assert not features.training
    discriminator = Discriminator(network)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    real, fake = images(4), images(4) * 0.2
    losses = []
    for _ in range(25):
        loss, _ = discriminator(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in features.state_dict().items())


def test_the_features_move_with_the_heads():
    features = small()
    network = DinoDiscriminator(features).double()
    assert features.pos_embed.dtype == torch.float64 and features.mean.dtype == torch.float64
    assert network(images().double()).dtype == torch.float64


def test_spectral_normalisation_bounds_every_convolution():
    network = DinoDiscriminator(small()).train()
    convolutions = [m for m in network.heads.modules() if isinstance(m, nn.Conv1d)]
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight_orig.mul_(50)
        for _ in range(30):
            network(images())
    assert len(convolutions) == 15
    for convolution in convolutions:
        norm = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, abs=0.05)


def test_tokens_are_seen_in_a_circle():
    """Rolling the tokens rolls the logits of a head: its convolutions have no ends."""
    head = DinoDiscriminator(small()).eval().heads[0]
    x = torch.randn(1, 128, 16)
    torch.testing.assert_close(head(x.roll(5, 2)), head(x).roll(5, 2))


def test_other_sizes_are_fitted():
    network = DinoDiscriminator(small()).eval()
    whole = images(1)
    assert network._fitted(whole) is whole
    assert network._fitted(images(1, 40)).shape == (1, 3, 64, 64)
    large = torch.arange(96.0).view(1, 1, 1, 96).expand(1, 3, 96, 96)
    seen = [network._fitted(large) for _ in range(60)]
    assert all(one.shape == (1, 3, 64, 64) for one in seen)
    crops = [one for one in seen if bool((one == one.round()).all())]
    assert 15 <= len(crops) <= 45 and len({float(one[0, 0, 0, 0]) for one in crops}) > 5


def test_bad_files_and_sizes_are_named(tmp_path):
    with pytest.raises(ValueError, match="dino_deitsmall16_pretrain.pth from https.*not there"):
        load_vit(tmp_path)
    broken = tmp_path / "broken.pth"
    for content in ({"pos_embed": torch.zeros(1)}, [1, 2]):
        torch.save(content, broken)
        with pytest.raises(ValueError, match="is no file like dino_deitsmall16_pretrain.pth"):
            load_vit(broken)
    broken.write_bytes(b"text")
    with pytest.raises(ValueError, match="is no file like"):
        load_vit(broken)
    with pytest.raises(ValueError, match="multiples of 64, 4 and patch = 16, got 100, 4, 64"):
        VisionTransformer(dim=100, depth=4, side=64)
