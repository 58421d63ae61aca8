"""A base tokenizer from scratch: it learns, it is reproducible, and it survives an interruption."""

import pytest
import torch

from vqkern import build_quantizer
from vqkern.data import CropSampler, load_photographs
from vqkern.metrics import psnr
from vqkern.tokenizers import ConvConfig, build_tokenizer
from vqkern.training import FromScratch, train_from_scratch
from vqkern.training.stages import linear_decay

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ConvConfig(latent_dim=4, widths=(8, 16), blocks=(1, 1), groups=4)
SETTINGS = FromScratch(steps=25, batch=4, warmup=2, start_crops=16)


@pytest.fixture
def one_thread():
    """Tiny networks are quicker on one thread than two threads are at waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokenizer():
    torch.manual_seed(0)
    quantizer = build_quantizer("vanilla", dim=4, codebook_size=64, channel_dim=1, commitment=0.02)
    return build_tokenizer(SMALL, quantizer)


def sampler(stream=0):
    return CropSampler(load_photographs()[0][:1], None, 32, seed=0, stream=stream)


def test_it_learns_and_repeats_itself_bit_for_bit():
    crops = sampler(1).batch(0, 32)
    trained, reports = [], []
    for _ in range(2):
        t = tokenizer()
        train_from_scratch(t, sampler(), SETTINGS, reports.append)
        trained.append(t)
    assert not trained[0].training
    for a, b in zip(*(t.state_dict().values() for t in trained), strict=True):
        assert torch.equal(a, b)
    started = tokenizer()
    train_from_scratch(started, sampler(), FromScratch(steps=1, lr=0.0, codebook_lr=0.0))
    gain = psnr(trained[0].reconstruct(crops), crops) - psnr(started.reconstruct(crops), crops)
    assert float(gain.mean()) > 1.0
    values = reports[24].values
    assert reports[24].step == 25 and values["pixel"] < reports[0].values["pixel"]
    assert values.keys() == {"pixel", "error", "loss"}


def test_every_part_is_trained():
    t = tokenizer()
    before = {name: value.clone() for name, value in t.named_parameters()}
    train_from_scratch(t, sampler(), SETTINGS)
    still = [name for name, value in t.named_parameters() if torch.equal(before[name], value)]
    assert still == []


def test_interruption_leaves_a_usable_tokenizer():
    t = tokenizer()

    def interrupt(report):
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_from_scratch(t, sampler(), SETTINGS, interrupt)
    assert not t.training
    assert bool(t.reconstruct(sampler().batch(0, 2)).isfinite().all())


def test_a_loss_that_is_not_finite_is_named():
    t = tokenizer()
    with torch.no_grad():
        t.decoder.convolutional[0].bias[0] = float("nan")
        for parameter in t.decoder.convolutional[-2].parameters():
            parameter.fill_(1.0)
    with pytest.raises(ValueError, match="training from scratch: the loss became nan at step 1"):
        train_from_scratch(t, sampler(), SETTINGS)


def test_learning_rate_rises_then_falls_to_almost_zero():
    rates = [linear_decay(step, 10, warmup=2) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 0.6, 0.8]) and rates[9] == pytest.approx(0.1)
    assert linear_decay(0, 10) == 1.0
