"""`accelerate`: what it replaces, what it leaves and says, and that nothing else changes."""

import copy
import io

import pytest
import torch
from interop import originals
from interop.pairs import var_case
from support import golden
from torch import nn

import vqkern
from vqkern.interop import Report


def golden_tokenizers():
    """Tokenizers of every family with the codes of the golden data."""
    taming, _, _ = golden("taming_quantizer")
    llamagen, _, _ = golden("llamagen_quantizer")
    var = originals.VAR.VectorQuantizer2(64, 32, False, v_patch_nums=(1, 2, 3, 4))
    var.load_state_dict(var_case("var_tokenizer")[0])
    layers = {
        "taming": originals.Taming.VectorQuantizer2(128, 16, 0.25, legacy=False),
        "taming legacy": originals.Taming.VectorQuantizer2(128, 16, 0.25, sane_index_shape=True),
        "diffusers": originals.Diffusers.VectorQuantizer(128, 16, 0.25, legacy=False),
        "llamagen": originals.LlamaGen.VectorQuantizer(256, 8, 0.25, 0.0, True, True),
        "llamagen euclidean": originals.LlamaGen.VectorQuantizer(256, 8, 0.25, 0.0, False, False),
        "var": var,
        "var znorm": originals.VAR.VectorQuantizer2(64, 8, True, v_patch_nums=(1, 2, 3, 4)),
    }
    for name, layer in layers.items():
        if name.startswith("var"):
            continue
        state = llamagen if name.startswith("llamagen") else taming
        layer.embedding.weight.data.copy_(state["quantize.embedding.weight"])
    return {
        name: originals.Tokenizer(layer, layer.embedding.weight.shape[1])
        for name, layer in layers.items()
    }


NAMES = list(golden_tokenizers())


def losses_of(value):
    if torch.is_tensor(value):
        return [value] if value.is_floating_point() and value.requires_grad else []
    return (
        [t for part in value for t in losses_of(part)] if isinstance(value, (tuple, list)) else []
    )


def train(model, optimizer, steps, first=0):
    curve = []
    for number in range(first, first + steps):
        images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(number))
        torch.manual_seed(number)
        output, rest = model(images)
        loss = (output - images).square().mean() + sum(t.sum() for t in losses_of(rest))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(loss.detach()))
    return torch.tensor(curve)


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_goes_on_as_it_was(name):
    torch.manual_seed(3)
    model = golden_tokenizers()[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before, keys = list(model.parameters()), list(model.state_dict())
    quantize = model.quantize

    report = vqkern.accelerate(model)

    assert [entry.name for entry in report.replaced] == ["quantize"] and not report.left
    assert model.quantize is quantize and type(quantize).__name__ in report.replaced[0].kind
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    images = torch.randn(4, 3, 4, 4)
    for mode in (False, True):
        model.train(mode), twin.train(mode)
        found, expected = model(images), twin(images)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    found = train(model, optimizer, 5, first=2)
    expected = train(twin, twin_optimizer, 5, first=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)
    # States load both ways.
    twin.load_state_dict(model.state_dict())
    model.load_state_dict(twin.state_dict())


class Autoencoder(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 8), nn.Linear(8, 3)
        self.quantizer = quantizer

    def forward(self, images):
        x = images.flatten(2).transpose(1, 2)
        quantized, *rest = self.quantizer(self.encoder(x))
        return self.decoder(quantized).transpose(1, 2).reshape(images.shape), rest


def library_models():
    library = pytest.importorskip("vector_quantize_pytorch")
    return {
        "ema": library.VectorQuantize(8, 64, threshold_ema_dead_code=1),
        "cosine": library.VectorQuantize(8, 64, use_cosine_sim=True),
        "k-means": library.VectorQuantize(8, 16, kmeans_init=True),
        "learnable": library.VectorQuantize(8, 64, learnable_codebook=True, ema_update=False),
        "heads": library.VectorQuantize(8, 64, heads=2, codebook_dim=4),
        "residual": library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32),
        "shared": library.ResidualVQ(
            dim=8, num_quantizers=3, codebook_size=32, shared_codebook=True
        ),
        "grouped": library.GroupedResidualVQ(dim=8, groups=2, num_quantizers=2, codebook_size=16),
        "sim": library.SimVQ(8, 64),
    }


LIBRARY = ["ema", "cosine", "k-means", "learnable", "heads", "residual", "shared", "grouped", "sim"]


@pytest.mark.parametrize("name", LIBRARY)
def test_a_model_of_the_library_goes_on_as_it_was(name):
    torch.manual_seed(4)
    model = Autoencoder(library_models()[name])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if name != "k-means":
        train(model, optimizer, 2)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    random_state = torch.get_rng_state()
    states = copy.deepcopy(model.state_dict())

    report = vqkern.accelerate(model)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert not report.left and len(report.replaced) == {
        "residual": 3,
        "shared": 3,
        "grouped": 4,
    }.get(name, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, states[key]), key
    found = train(model, optimizer, 4, first=2)
    expected = train(twin, twin_optimizer, 4, first=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_the_report_says_what_was_left_and_why():
    library = pytest.importorskip("vector_quantize_pytorch")
    model = nn.ModuleDict(
        {
            "good": library.VectorQuantize(8, 64),
            "stochastic": library.VectorQuantize(8, 64, stochastic_sample_codes=True),
            "affine": library.VectorQuantize(8, 64, affine_param=True),
            "fsq": library.FSQ([8, 5]),
            "lfq": library.LFQ(codebook_size=16),
            "latent": library.LatentQuantize(levels=[5, 5], dim=8),
            "plain": nn.Linear(3, 3),
        }
    )
    report = vqkern.accelerate(model)
    assert [entry.name for entry in report.replaced] == ["good"]
    reasons = {entry.name: entry.reason for entry in report.left}
    assert list(reasons) == ["stochastic", "affine", "fsq", "lfq", "latent"]
    assert "stochastic_sample_codes" in reasons["stochastic"]
    assert "affine_param" in reasons["affine"]
    text = str(report)
    assert text.startswith("replaced 1, left 5")
    assert "good: vector-quantize-pytorch VectorQuantize, 64 x 8" in text
    again = vqkern.accelerate(model)
    assert not again.replaced and again.left[0].reason == "it is accelerated already"


def test_calls_beyond_what_is_supported_run_the_modules_own_code():
    library = pytest.importorskip("vector_quantize_pytorch")
    layer = library.VectorQuantize(8, 64).eval()
    twin = copy.deepcopy(layer)
    vqkern.accelerate(layer)
    x, target = torch.randn(2, 5, 8), torch.randint(0, 64, (2, 5))
    torch.testing.assert_close(layer(x, indices=target)[1], twin(x, indices=target)[1])
    assert torch.equal(layer(x, topk=3)[1], twin(x, topk=3)[1])


def test_a_subclass_of_the_library_is_left():
    library = pytest.importorskip("vector_quantize_pytorch")

    class Doubled(library.VectorQuantize):
        def forward(self, x):
            return super().forward(2 * x)

    (entry,) = vqkern.accelerate(nn.Sequential(Doubled(8, 64))).left
    assert entry.name == "0" and entry.reason == "it is a VectorQuantize with code of its own"


def test_the_model_itself_hooks_and_other_references():
    library = pytest.importorskip("vector_quantize_pytorch")
    layer = library.VectorQuantize(8, 64)
    calls = []
    layer.register_forward_hook(lambda module, args, output: calls.append(output[1].shape))
    bound = layer.forward
    report = vqkern.accelerate(layer)
    assert report.replaced[0].hooks == 1 and "1 hook kept" in str(report)
    assert "(the model itself)" in str(report)
    assert not calls  # the probe runs on copies without them
    layer(torch.randn(2, 5, 8))
    assert calls == [(2, 5)] and callable(bound)


def test_copies_and_pickles_stay_accelerated():
    model = golden_tokenizers()["taming"]
    vqkern.accelerate(model)
    images = torch.randn(2, 3, 4, 4)
    expected = model(images)[0]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert hasattr(type(other.quantize), "accelerated_by")
        assert isinstance(other.quantize, originals.Taming.VectorQuantizer2)
        assert torch.equal(other(images)[0], expected)
        other.load_state_dict(model.state_dict())


def test_device_dtype_and_mode_stay():
    model = golden_tokenizers()["taming"].double().eval()
    model.quantize.embedding.weight.requires_grad_(False)
    vqkern.accelerate(model)
    assert model.quantize.embedding.weight.dtype == torch.float64 and not model.quantize.training
    assert not model.quantize.embedding.weight.requires_grad
    assert model(torch.randn(2, 3, 4, 4, dtype=torch.float64))[0].dtype == torch.float64


class Twisted:
    """Modules that look like the known ones and compute something else."""

    class ByProduct(originals.Taming.VectorQuantizer2):
        def index_of(self, rows):
            return (rows @ self.embedding.weight.T).argmax(1)

    class ByAngle(originals.Taming.VectorQuantizer2):
        def index_of(self, rows):
            unit = nn.functional.normalize
            return (unit(rows, dim=-1) @ unit(self.embedding.weight, dim=-1).T).argmax(1)

    class SecondNearest(originals.Taming.VectorQuantizer2):
        def index_of(self, rows):
            return originals.all_distances(rows, self.embedding.weight).topk(2, 1, False)[1][:, 1]

    class OtherBeta(originals.Taming.VectorQuantizer2):
        def forward(self, z):
            quantized, loss, info = super().forward(z)
            return quantized, 2 * loss, info

    class WithEma(originals.Taming.VectorQuantizer2):
        def forward(self, z):
            result = super().forward(z)
            if self.training:
                self.embedding.weight.data.mul_(0.999)
            return result

    class ExtraOutput(originals.Taming.VectorQuantizer2):
        def forward(self, z):
            return *super().forward(z), None

    class Failing(originals.Taming.VectorQuantizer2):
        def forward(self, z):
            raise RuntimeError("only on Tuesdays")

    class NoisyInTraining(originals.Taming.VectorQuantizer2):
        def forward(self, z):
            return super().forward(z + 0.1 * torch.randn_like(z) * self.training)


TWISTED = {
    "ByProduct": "not the nearest codes",
    "ByAngle": "not the nearest codes",
    "SecondNearest": "not the nearest codes",
    "OtherBeta": "differs",
    "ExtraOutput": "returns 6 values",
    "Failing": "its own code fails on a probe: RuntimeError: only on Tuesdays",
    "NoisyInTraining": "in training",
}


@pytest.mark.parametrize("name", list(TWISTED))
def test_what_computes_something_else_is_left(name):
    cls = getattr(Twisted, name)
    cls.__name__ = "VectorQuantizer2"
    layer = cls(64, 8, 0.25)
    layer.embedding.weight.data.normal_()
    before = type(layer)
    report = vqkern.accelerate(originals.Tokenizer(layer, 8))
    assert not report.replaced and TWISTED[name] in report.left[0].reason
    assert type(layer) is before


def test_a_module_that_moves_its_codes_itself_is_left():
    Twisted.WithEma.__name__ = "VectorQuantizer2"
    layer = Twisted.WithEma(64, 8, 0.25)
    before = layer.embedding.weight.detach().clone()
    report = vqkern.accelerate(layer)
    assert "differs" in report.left[0].reason
    assert torch.equal(layer.embedding.weight, before)


def hostile():
    def plain(**options):
        layer = originals.Taming.VectorQuantizer2(64, 8, 0.25, **options)
        layer.embedding.weight.data.normal_()
        return layer

    limited = plain()
    limited.embedding = nn.Embedding(64, 8, max_norm=1.0)
    wrapped = plain()
    wrapped.embedding = nn.Sequential(wrapped.embedding)
    patched = plain()
    patched.forward = lambda z: z
    wrong_size = plain()
    wrong_size.n_e = 65
    extra = plain()
    extra.register_buffer("counts", torch.zeros(64))
    broken = plain()
    broken.embedding.weight.data[3] = torch.nan
    sampled = originals.LlamaGen.VectorQuantizer(64, 8, 0.25, 0.1, True, True)
    one_scale = originals.VAR.VectorQuantizer2(64, 8, False, v_patch_nums=(4,))
    parametrized = plain()
    nn.utils.parametrizations.weight_norm(parametrized.embedding)
    return {
        "remapped": (plain(remap="used.npy"), "remap"),
        "max_norm": (limited, "max_norm"),
        "wrapped embedding": (wrapped, "not a plain nn.Embedding"),
        "patched forward": (patched, "replaced on the instance"),
        "wrong size": (wrong_size, "shape [64, 8], not [65, 8]"),
        "extra buffer": (extra, "it has counts"),
        "entropy": (sampled, "entropy_loss_ratio"),
        "one scale": (one_scale, "one scale"),
        "parametrized": (parametrized, "not a plain nn.Embedding"),
        "meta": (plain().to("meta"), "meta device"),
        "nan code": (broken, ""),
    }


@pytest.mark.parametrize("name", list(hostile()))
def test_hostile_modules_are_left_with_a_reason(name):
    layer, reason = hostile()[name]
    report = vqkern.accelerate(layer)
    assert not report.replaced and len(report.left) == 1
    assert reason in report.left[0].reason


def test_a_module_without_a_table_and_one_with_equal_codes():
    class VectorQuantizer2(nn.Module):
        n_e, e_dim, beta, legacy, remap, sane_index_shape = 0, 8, 0.25, True, None, False
        embedding = None

    report = vqkern.accelerate(VectorQuantizer2())
    assert "NoneType, not a plain nn.Embedding" in report.left[0].reason
    equal = originals.Taming.VectorQuantizer2(64, 8, 0.25)
    equal.embedding.weight.data.zero_()
    assert vqkern.accelerate(equal).replaced
    z = torch.randn(2, 8, 3, 3)
    assert not equal(z)[2][2].any()


def test_what_is_no_quantizer_is_not_mentioned():
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 4), vqkern.interop.VectorQuantize(8, 16))
    assert vqkern.accelerate(model) == Report()
    own = vqkern.build_quantizer("vanilla", dim=8, codebook_size=16)
    assert vqkern.accelerate(own) == Report()
    with pytest.raises(TypeError, match="model must be an nn.Module, got dict"):
        vqkern.accelerate({})


def test_an_unknown_quantizer_is_mentioned_but_not_what_contains_a_known_one():
    class VQModel(nn.Module):
        def __init__(self, quantize):
            super().__init__()
            self.quantize = quantize

    class MyVectorQuantizer(nn.Module):
        pass

    report = vqkern.accelerate(VQModel(golden_tokenizers()["taming"].quantize))
    assert [entry.name for entry in report.replaced] == ["quantize"] and not report.left
    report = vqkern.accelerate(VQModel(MyVectorQuantizer()))
    assert [entry.name for entry in report.left] == ["quantize"]


def test_it_works_under_no_grad_and_inference_mode():
    for context in (torch.no_grad, torch.inference_mode):
        model = golden_tokenizers()["taming"]
        with context():
            assert vqkern.accelerate(model).replaced


def test_import_does_not_load_the_drop_ins():
    import subprocess
    import sys

    code = (
        "import sys, vqkern; assert 'vqkern.interop' not in sys.modules; "
        "assert 'accelerate' in dir(vqkern); vqkern.accelerate; "
        "assert 'vqkern.interop' in sys.modules; "
        "assert 'vector_quantize_pytorch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
