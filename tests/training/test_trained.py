"""What a forward pass gives: branches of a variational latent, and what stays frozen."""

import pytest
import torch
from torch import nn

from vqkern import build_quantizer
from vqkern.tokenizers import ConvConfig, build_tokenizer
from vqkern.training.recipe import LossSettings
from vqkern.training.trained import Trained


class Small(nn.Module):
    """A tokenizer in a few layers, f = 2, whose encoder gives what its quantizer takes."""

    def __init__(self, name, **more):
        super().__init__()
        torch.manual_seed(0)
        options = {"channel_dim": 1, "codebook_size": 16, **more}
        self.quantizer = build_quantizer(name, dim=4, **options)
        channels = getattr(self.quantizer, "in_channels", 4)
        self.encoder = nn.Conv2d(3, channels, 2, stride=2)
        self.decoder = nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 1))

    def latent(self, images):
        return self.encoder(images)


def test_both_branches_of_a_variational_latent_are_decoded_by_one_decoder():
    tokenizer = Small("vaevq")
    model = Trained(tokenizer, "from_scratch")
    images = torch.randn(3, 3, 8, 8)
    torch.manual_seed(1)
    outcome = model(images)
    torch.manual_seed(1)
    sampled, quantized, _, loss = tokenizer.quantizer.branches(tokenizer.latent(images))
    expected = torch.cat([tokenizer.decoder(sampled), tokenizer.decoder(quantized)])
    torch.testing.assert_close(outcome.images, expected)
    torch.testing.assert_close(outcome.loss, loss)
    assert not torch.equal(outcome.images[:3], outcome.images[3:])
    # The loss over both is the mean of the loss of each (VAEVQ eqs. 3 and 4).
    from vqkern.training.engine import Losses

    class State:
        model = None

    total, values = Losses(LossSettings(pixel="l1", quantizer_weight=0.0), State())(
        outcome, images, False
    )
    each = [(part - images).abs().mean() for part in outcome.images.split(3)]
    torch.testing.assert_close(total, (each[0] + each[1]) / 2)
    total.backward()
    assert all(p.grad is not None for p in tokenizer.decoder.parameters())
    assert set(values) == {"quantizer", "error", "pixel", "psnr", "loss"}
    assert model.eval()(images).images.shape == images.shape


def test_projectors_have_the_rate_of_networks_and_codes_their_own():
    tokenizer = Small("mmd_projected", projector_hidden=8)
    model = Trained(tokenizer, "stage_1")
    (codes,) = model.code_parameters()
    assert codes.shape == (16, 4)
    networks = {id(p) for p in model.networks()}
    around = [*tokenizer.quantizer.before.parameters(), *tokenizer.quantizer.after.parameters()]
    assert networks == {id(p) for p in around}
    assert Trained(tokenizer, "stage_2").code_parameters() == []


@pytest.mark.parametrize("trainer", ["stage_1", "stage_2", "stage_2_joint", "from_scratch"])
def test_frozen_parts_never_enter_training_mode_and_get_no_gradient(trainer):
    tokenizer = Small("vanilla")
    model = Trained(tokenizer, trainer).train()
    outcome = model(torch.randn(2, 3, 8, 8))
    loss = outcome.loss + (outcome.images.square().sum() if model.decodes else 0)
    loss.backward()
    for name in ("encoder", "quantizer", "decoder"):
        part = getattr(tokenizer, name)
        moves = name in model.parts
        assert part.training == moves
        assert all((p.grad is not None) == moves for p in part.parameters())
    given = [id(p) for p in [*model.networks(), *model.code_parameters()]]
    assert set(given) == {id(p) for p in model.parameters() if p.grad is not None}
    assert model.last_layer() is tokenizer.decoder[2].weight


@pytest.mark.parametrize("trainer", ["stage_2_joint", "from_scratch"])
def test_the_decoder_sees_in_training_what_it_sees_afterwards(trainer):
    torch.manual_seed(0)
    config = ConvConfig(latent_dim=4, widths=(8, 8), blocks=(1, 1), groups=4)
    quantizer = build_quantizer("vanilla", dim=4, codebook_size=16, channel_dim=1)
    tokenizer = build_tokenizer(config, quantizer)
    tokenizer.encoder.standardize.mean.fill_(0.25)
    images = torch.rand(4, 3, 32, 32)  # brighter than most: a batch's own statistics would hide it
    fixed = tokenizer.eval().latent(images)
    before = tokenizer.encoder.standardize.mean.clone()
    model = Trained(tokenizer, trainer).train()
    with torch.no_grad():
        model(images)
        trained = tokenizer.latent(images)
    moved = (tokenizer.encoder.standardize.mean - before).abs()
    assert bool((moved > 0).all()) and float(moved.max()) < 0.02
    assert fixed.mean((0, 2, 3)).abs().max() > 0.2
    assert torch.allclose(trained, fixed, atol=0.05)
