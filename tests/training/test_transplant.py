"""The two stages of VQ-Transplant: what moves, what must not, and what they achieve."""

import pytest
import torch

from vqkern import build_quantizer, nearest_code
from vqkern.data import CropSampler, Picture
from vqkern.quantizers import MMD
from vqkern.tokenizers import ConvConfig, build_tokenizer
from vqkern.training import Adaptation, Substitution, adapt_decoder, encode_pool, substitute

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ConvConfig(latent_dim=4, widths=(8, 8), blocks=(1, 1), groups=4)


@pytest.fixture
def one_thread():
    """Tiny networks are quicker on one thread than two threads are at waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quantizer(name="vanilla", codebook_size=64, **options):
    torch.manual_seed(0)
    return build_quantizer(name, dim=4, codebook_size=codebook_size, channel_dim=1, **options)


def tokenizer():
    torch.manual_seed(1)
    return build_tokenizer(SMALL, quantizer()).eval()


def sampler(stream=0):
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, 3, 10, 10, generator=generator) * 255
    pixels = torch.nn.functional.interpolate(coarse, (80, 80), mode="bilinear")[0]
    return CropSampler([Picture("p", pixels.to(torch.uint8), "test")], None, 16, 0, stream)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def features(count=4096):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 4, generator=generator) + 5.0


def test_pool_is_what_the_encoder_gives_and_leaves_it_alone():
    t = tokenizer().train()
    before = state(t)
    pool = encode_pool(t, sampler(), 10, batch=2)
    assert same(t, before) and t.training and not pool.requires_grad
    t.eval()
    crops = torch.cat([sampler().batch(step, 2) for step in range(2)])
    expected = t.latent(crops).movedim(1, -1).reshape(-1, 4)[:10]
    assert torch.allclose(pool, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["vanilla", "mmd"])
def test_stage_1_moves_the_codes_alone(name):
    t = tokenizer().transplant(quantizer(name))
    pool = encode_pool(t, sampler(), 256)
    networks = state(t.encoder), state(t.decoder)
    codes = t.quantizer.codes.detach().clone()
    substitute(t.quantizer, pool, Substitution(steps=3, tokens=64), seed=0)
    assert same(t.encoder, networks[0]) and same(t.decoder, networks[1])
    assert not torch.equal(t.quantizer.codes, codes)
    assert not t.quantizer.training


@pytest.mark.parametrize("name", ["ema", "ema_rq", "ema_vp2"])
def test_stage_1_of_codes_that_move_by_averages(name):
    options = {"depth": 2} if name == "ema_rq" else {}
    q = quantizer(name, decay=0.5, **options)
    errors = []

    def keep(report):
        errors.append(report.values["error"])

    substitute(q, features(), Substitution(steps=30, tokens=256), 0, keep)
    assert errors[-1] < 0.2 * errors[0] and not q.training


def test_stage_1_of_a_quantizer_that_learns_nothing_measures_it():
    errors = []
    q = build_quantizer("fsq", dim=4, codebook_size=625, channel_dim=1)
    pool = features() - 5
    substitute(q, pool, Substitution(steps=2, tokens=64), 0, lambda r: errors.append(r.values))
    assert len(errors) == 2 and errors[0]["error"] > 0


def test_stage_1_with_mmd_brings_every_code_to_far_features():
    pool = features()
    fresh = features(8192)[4096:]
    used = {}
    for name in ("vanilla", "mmd"):
        q = quantizer(name)
        substitute(q, pool, Substitution(steps=120, tokens=256, lr=0.3), seed=0)
        used[name] = len(nearest_code(fresh, q.codes.detach()).index.unique())
    assert used["vanilla"] < 20 and used["mmd"] >= 50


def test_stage_1_is_determined_by_its_seed():
    results = []
    for seed in (0, 0, 1):
        q = quantizer("mmd", alignment=MMD(max_features=32, max_codes=32))
        substitute(q, features(), Substitution(steps=5, tokens=64), seed=seed)
        results.append(q.codes.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_stage_2_moves_the_decoder_alone_and_lowers_the_error():
    t = tokenizer()
    crops = sampler(1).batch(0, 16)
    before = state(t.encoder), state(t.quantizer), state(t.decoder)
    error = (t.reconstruct(crops) - crops).square().mean()
    reports = []
    adapt_decoder(t, sampler(), Adaptation(steps=20, batch=4, lr=1e-2), reports.append)
    assert same(t.encoder, before[0]) and same(t.quantizer, before[1])
    assert not same(t.decoder, before[2])
    assert (t.reconstruct(crops) - crops).square().mean() < 0.8 * error
    assert [r.step for r in reports] == list(range(1, 21)) and not t.training
    assert all(parameter.grad is None for parameter in t.encoder.parameters())


class Interrupt:
    """Raises KeyboardInterrupt, as Ctrl-C does, when a step is reported."""

    def __init__(self, step):
        self.step = step

    def __call__(self, report):
        if report.step == self.step:
            raise KeyboardInterrupt


def test_interrupted_stages_leave_what_the_finished_steps_made():
    stopped, whole = quantizer(), quantizer()
    settings = Substitution(steps=10, tokens=64)
    with pytest.raises(KeyboardInterrupt):
        substitute(stopped, features(), settings, 0, Interrupt(4))
    seen = []

    def keep(report):
        if report.step == 4:
            seen.append(whole.codes.detach().clone())

    substitute(whole, features(), settings, 0, keep)
    assert torch.equal(stopped.codes, seen[0]) and not stopped.training

    t = tokenizer()
    with pytest.raises(KeyboardInterrupt):
        adapt_decoder(t, sampler(), Adaptation(steps=5, batch=2), Interrupt(2))
    assert not t.decoder.training
    assert bool(t.reconstruct(sampler().batch(0, 2)).isfinite().all())


def test_a_loss_that_is_not_finite_stops_before_the_update():
    t = tokenizer()
    with torch.no_grad():
        t.decoder.linear[0].bias[0] = float("inf")
    before = state(t.decoder)
    with pytest.raises(ValueError, match="stage II: the loss became inf at step 1"):
        adapt_decoder(t, sampler(), Adaptation(steps=3, batch=2))
    assert same(t.decoder, before)


@pytest.mark.parametrize("pool", [torch.zeros(5, 3), torch.zeros(0, 4), torch.zeros(4)], ids=str)
def test_bad_pools_are_named(pool):
    with pytest.raises(ValueError, match=r"pool: expected shape \[N, 4\]"):
        substitute(quantizer(), pool, Substitution(steps=1), seed=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Substitution(steps=0), "steps: expected an integer >= 1, got 0"),
        (lambda: Substitution(tokens=2.5), "tokens: .* 2.5"),
        (lambda: Substitution(lr=float("nan")), "lr: expected a finite number >= 0, got nan"),
        (lambda: Adaptation(batch=True), "batch: .* True"),
        (lambda: Adaptation(warmup=-1), "warmup: .* -1"),
        (lambda: Adaptation(clip=-1.0), "clip: .* -1.0"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
