"""The drop-ins of vector-quantize-pytorch beside that library itself, on the same weights."""

import copy
import re
from importlib.metadata import metadata

import pytest
import torch
from interop.pairs import assert_same_state, both
from support import assert_no_regret
from torch import nn

from vqkern import interop

library = pytest.importorskip("vector_quantize_pytorch")

OPTIONS = {
    "default": {},
    "straight through": {"rotation_trick": False, "commitment_weight": 0.25},
    "no commitment": {"commitment_weight": 0.0},
    "cosine": {"use_cosine_sim": True},
    "cosine, revival": {"use_cosine_sim": True, "threshold_ema_dead_code": 2},
    "revival": {"threshold_ema_dead_code": 2, "decay": 0.5},
    "k-means": {"kmeans_init": True, "kmeans_iters": 3},
    "k-means, cosine": {"kmeans_init": True, "use_cosine_sim": True},
    "narrow codes": {"codebook_dim": 4},
    "normed projection": {"codebook_dim": 4, "layernorm_after_project_in": True},
    "heads": {"heads": 4, "codebook_dim": 2},
    "own heads": {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
    "own heads, revival": {
        "heads": 2,
        "codebook_dim": 4,
        "separate_codebook_per_head": True,
        "threshold_ema_dead_code": 1,
    },
    "channels first": {"channel_last": False},
    "maps": {"accept_image_fmap": True},
    "volumes": {"accept_3d_fmap": True},
    "learnable": {"learnable_codebook": True, "ema_update": False},
    "learnable, synchronous": {
        "learnable_codebook": True,
        "ema_update": False,
        "rotation_trick": False,
        "sync_update_v": 0.2,
    },
    "in place": {
        "learnable_codebook": True,
        "ema_update": False,
        "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.5),
    },
    "directional": {"directional_reparam": True, "threshold_ema_dead_code": 1},
    "orthogonal": {"orthogonal_reg_weight": 10, "orthogonal_reg_max_codes": 20},
    "orthogonal, active": {"orthogonal_reg_weight": 1, "orthogonal_reg_active_codes_only": True},
    "frozen": {"freeze_codebook": True},
    "manual": {"manual_ema_update": True},
    "no gradient to input": {"route_gradients_to_input": False},
}
INPUTS = {
    "channels first": (3, 8, 10),
    "maps": (3, 8, 3, 4),
    "volumes": (2, 8, 2, 3, 2),
    # A cluster of one vector leaves a rest of rounding errors: enough vectors for every code.
    "k-means": (3, 200, 8),
    "k-means, cosine": (3, 200, 8),
}


def step(layer, optimizer, x, **arguments):
    torch.manual_seed(2)
    leaf = x.clone().requires_grad_()
    quantized, index, loss = layer(leaf, **arguments)[:3]
    weight = torch.linspace(-1, 1, quantized.numel()).reshape(quantized.shape)
    total = (quantized * weight).sum() + loss.sum()
    if optimizer is not None:
        optimizer.zero_grad()
    total.backward()
    if optimizer is not None:
        optimizer.step()
    return quantized.detach(), index, loss.detach(), leaf.grad


def optimizer_of(layer):
    parameters = list(layer.parameters())
    return torch.optim.SGD(parameters, lr=0.1) if parameters else None


@pytest.mark.parametrize("name", list(OPTIONS))
def test_vector_quantize_trains_and_infers_alike(name):
    theirs, ours = both("VectorQuantize", 8, 40, **OPTIONS[name])
    shape = INPUTS.get(name, (3, 10, 8))
    optimizers = optimizer_of(theirs), optimizer_of(ours)
    for number in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        expected = step(theirs, optimizers[0], x)
        found = step(ours, optimizers[1], x)
        assert torch.equal(found[1], expected[1])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_same_state(theirs, ours)
    theirs.eval(), ours.eval()
    expected, found = theirs(x), ours(x)
    assert torch.equal(found[1], expected[1]) and float(found[2]) == 0
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    # Its own decoding forgets to project maps, and to join heads that share a codebook.
    if name not in ("channels first", "maps", "volumes", "heads"):
        again = theirs.get_output_from_indices(found[1])
        torch.testing.assert_close(ours.get_output_from_indices(found[1]), again)
    torch.testing.assert_close(
        ours.get_output_from_indices(found[1]), found[0], rtol=1e-5, atol=1e-6
    )
    # And back: the library takes our state.
    fresh = library.VectorQuantize(8, 40, **OPTIONS[name])
    fresh.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}], ids=["l2", "cosine"])
def test_masks_and_lengths_count_alike(options, zeros):
    options = {**options, "return_zeros_for_masked_padding": zeros}
    theirs, ours = both("VectorQuantize", 8, 40, **options)
    x, lens = torch.randn(3, 10, 8), torch.tensor([10, 4, 0])
    for arguments in ({"lens": lens}, {"mask": torch.rand(3, 10) > 0.4}):
        for a, b in zip(
            step(ours, None, x, **arguments), step(theirs, None, x, **arguments), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert_same_state(theirs, ours)


def test_one_token_breakdown_weights_and_freezing():
    theirs, ours = both("VectorQuantize", 8, 40)
    x = torch.randn(5, 8)
    for arguments in (
        {},
        {"freeze_codebook": True},
        {"ema_update": False},
        {"ema_update_weight": torch.rand(40)},
        {"ema_update_weight": lambda total, count: (count > 0).float()},
        {"sample_codebook_temp": 0.5},
    ):
        a = step(ours, None, x, **arguments)
        for u, v in zip(a, step(theirs, None, x, **arguments), strict=True):
            torch.testing.assert_close(u, v, rtol=1e-4, atol=1e-5)
        assert_same_state(theirs, ours)
    a, b = ours(x, return_loss_breakdown=True), theirs(x, return_loss_breakdown=True)
    assert a[3]._fields == b[3]._fields
    torch.testing.assert_close(torch.stack(tuple(a[3])), torch.stack(tuple(b[3])))


def test_indices_agree_wherever_theirs_are_right():
    theirs, ours = both("VectorQuantize", 8, 2000)
    offset = 50.0
    theirs.codebook = torch.randn(2000, 8) + offset
    ours.load_state_dict(theirs.state_dict())
    theirs.eval(), ours.eval()
    x = torch.randn(1, 1000, 8) + offset
    index, expected = ours(x)[1][0], theirs(x)[1][0]
    assert_no_regret(x[0], ours.codebook, index)
    wrong = index != expected
    assert 0 < int(wrong.sum()) < 100  # at this offset float32 distances are wrong for some
    squared = (x[0].double()[:, None] - ours.codebook.double()).square().sum(-1)
    here, there = (squared.gather(1, i[:, None])[wrong] for i in (index, expected))
    assert bool((here < there).all())


RESIDUAL = {
    "default": {},
    "sizes": {"codebook_size": (10, 20, 30), "num_quantizers": None},
    "shared": {"shared_codebook": True},
    "narrow": {"codebook_dim": 4},
    "k-means": {"kmeans_init": True},
    "dropout": {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1},
    "gradient": {"quant_grad_frac": 0.3, "rotation_trick": False},
    "diveq": {"diveq": True, "threshold_ema_dead_code": 1},
}


@pytest.mark.parametrize("name", list(RESIDUAL))
def test_residual_vq_trains_and_infers_alike(name):
    options = {"dim": 8, "num_quantizers": 3, "codebook_size": 30, **RESIDUAL[name]}
    theirs, ours = both("ResidualVQ", **options)
    optimizers = optimizer_of(theirs), optimizer_of(ours)
    for number in range(3):
        length = 300 if name == "k-means" else 12
        x = torch.randn(3, length, 8, generator=torch.Generator().manual_seed(number))
        expected = step(theirs, optimizers[0], x)
        found = step(ours, optimizers[1], x)
        assert torch.equal(found[1], expected[1])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_same_state(theirs, ours)
    theirs.eval(), ours.eval()
    mask = torch.rand(x.shape[:2]) > 0.5
    for arguments in ({"return_all_codes": True}, {"mask": mask}):
        seen = []
        for layer in (theirs, ours):
            torch.manual_seed(2)  # DiVeQ adds noise in eval mode, too
            seen.append(layer(x, **arguments))
        for a, b in zip(*seen, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    if name != "diveq":
        out, index, _ = ours(x)
        torch.testing.assert_close(ours.get_output_from_indices(index), out, rtol=1e-4, atol=1e-5)


SIM = {
    "default": {},
    "straight through": {"rotation_trick": False, "channel_first": True},
    "narrow": {"frozen_codebook_dim": 4, "commitment_weight": 2.0},
}


@pytest.mark.parametrize("name", list(SIM))
def test_sim_vq_trains_and_infers_alike(name):
    theirs, ours = both("SimVQ", 8, 40, **SIM[name])
    optimizers = optimizer_of(theirs), optimizer_of(ours)
    for number in range(2):
        shape = (3, 8, 4, 5) if SIM[name].get("channel_first") else (3, 10, 8)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        found, expected = step(ours, optimizers[1], x), step(theirs, optimizers[0], x)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_same_state(theirs, ours)
    codes = theirs.indices_to_codes(found[1])
    torch.testing.assert_close(ours.indices_to_codes(found[1]), codes)


GROUPED = {
    "default": {},
    "shared": {"shared_codebook": True},
    "dropout": {"quantize_dropout": True},
}


@pytest.mark.parametrize("name", list(GROUPED))
def test_grouped_residual_vq_trains_and_infers_alike(name):
    options = {"dim": 8, "groups": 2, "num_quantizers": 3, "codebook_size": 30, **GROUPED[name]}
    theirs, ours = both("GroupedResidualVQ", **options)
    for number in range(3):
        x = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(number))
        found, expected = step(ours, None, x), step(theirs, None, x)
        assert torch.equal(found[1], expected[1])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_same_state(theirs, ours)
    theirs.eval(), ours.eval()
    for a, b in zip(ours(x, return_all_codes=True), theirs(x, return_all_codes=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    out, index, _ = ours(x)
    torch.testing.assert_close(ours.get_output_from_indices(index), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.codebooks, theirs.codebooks)
    # Its own fails on maps that are not square.
    maps = interop.GroupedResidualVQ(**options, accept_image_fmap=True).eval()
    maps.load_state_dict(ours.state_dict())
    result = maps(x.transpose(1, 2).unflatten(-1, (3, 4)))
    assert torch.equal(result[1].flatten(2, 3), index)
    assert torch.equal(result[0].flatten(2).transpose(1, 2), out)
    with pytest.raises(ValueError, match="indices must have 2 groups in the first"):
        ours.get_codes_from_indices(index[:1])
    with pytest.raises(ValueError, match="8 channels at dimension -1"):
        ours(x[..., :6])


@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_codes_are_drawn_by_their_scores(cosine, monkeypatch):
    monkeypatch.setattr("vqkern.interop.vector_quantize_pytorch.codebook.PAIRS", 6 * 1000)
    options = {"stochastic_sample_codes": True, "sample_codebook_temp": 0.5, "ema_update": False}
    layer = interop.VectorQuantize(4, 6, use_cosine_sim=cosine, **options)
    layer.codebook = nn.functional.normalize(torch.randn(6, 4), dim=-1)
    z = nn.functional.normalize(torch.randn(4), dim=-1)
    score = layer.codebook @ z if cosine else -(layer.codebook - z).norm(dim=-1)
    x = z.repeat(1, 20_500, 1)
    x[0, 7, 2] = torch.nan
    for temperature in (None, 0.2):
        index = layer(x, sample_codebook_temp=temperature)[1][0]
        assert index[7] == -1 and int((index < 0).sum()) == 1
        share = torch.bincount(index[index >= 0], minlength=6) / 20_499
        # Five standard deviations of a share of one half.
        wanted = (score / (temperature or 0.5)).softmax(0)
        torch.testing.assert_close(share, wanted, atol=5 * 0.5 / 20_499**0.5, rtol=0)
    nearest = int(score.argmax())
    assert bool((layer(x, sample_codebook_temp=0.0)[1][0, 8:] == nearest).all())
    layer.eval()
    assert bool((layer(x)[1][0, 8:] == nearest).all())


def test_stages_draw_at_the_temperature_of_the_call():
    options = {"num_quantizers": 2, "codebook_size": 8, "stochastic_sample_codes": True}
    layer = interop.ResidualVQ(dim=4, ema_update=False, **options)
    x = torch.randn(1, 400, 4)
    wild = layer(x, sample_codebook_temp=100.0)[1]
    assert bool((torch.bincount(wild[..., 0].flatten(), minlength=8) > 20).all())
    nearest = layer.eval()(x)[1]
    assert torch.equal(layer.train()(x, sample_codebook_temp=0.0)[1], nearest)


def readme_examples():
    """The examples of its README, as its installed distribution carries them."""
    about = metadata("vector_quantize_pytorch")
    text = about["Description"] or about.get_payload()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    imported = r"from vector_quantize_pytorch import (\w+)\s"
    named = [(re.search(imported, block).group(1), block) for block in blocks]
    return [(cls, block) for cls, block in named if hasattr(interop, cls)]


EXAMPLES = readme_examples()


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[cls for cls, _ in EXAMPLES])
def test_readme_examples_run_with_the_import_changed(number):
    cls, text = EXAMPLES[number]
    packages = ["vqkern.interop", "vector_quantize_pytorch"]
    seen = []
    # Its own LFQ takes a minute for an example.
    for package in packages[:1] if cls == "LFQ" else packages:
        block = text.replace("from vector_quantize_pytorch", f"from {package}")
        namespace = {}
        try:
            exec(block, namespace)
        except (AssertionError, ValueError) as error:
            # One example is refused by the library itself.
            seen.append(type(error))
            continue
        tensors = {k: v for k, v in namespace.items() if isinstance(v, torch.Tensor)}
        seen.append({name: (t.shape, t.dtype) for name, t in tensors.items()})
    assert seen[0] == seen[-1] or seen == [ValueError, AssertionError]
    assert isinstance(seen[0], dict) or cls == "VectorQuantize"


def test_the_readme_has_examples_of_every_class():
    assert {cls for cls, _ in EXAMPLES} == {
        "VectorQuantize",
        "ResidualVQ",
        "GroupedResidualVQ",
        "FSQ",
        "LFQ",
        "SimVQ",
    }


@pytest.mark.parametrize(
    "cls,options",
    [
        ("VectorQuantize", {"sample_codebook_temp": -1.0}),
        ("VectorQuantize", {"straight_through": True}),
        ("VectorQuantize", {"affine_param": True}),
        ("VectorQuantize", {"commitment_use_cross_entropy_loss": True}),
        ("VectorQuantize", {"codebook_diversity_loss_weight": 0.1}),
        ("VectorQuantize", {"decay": 1.5}),
        ("VectorQuantize", {"heads": 0}),
        ("VectorQuantize", {"codebook_dim": 2.5}),
        ("VectorQuantize", {"commitment_weight": float("nan")}),
        ("VectorQuantize", {"use_cosine_sim": True, "learnable_codebook": True}),
        ("ResidualVQ", {"beam_size": 4}),
        ("ResidualVQ", {"implicit_neural_codebook": True}),
        ("ResidualVQ", {"heads": 2}),
        ("ResidualVQ", {"quantize_dropout_cutoff_index": 7}),
        ("ResidualVQ", {"affine_param": True}),
        ("GroupedResidualVQ", {"groups": 3}),
        ("FSQ", {"bound_hard_clamp": True}),
        ("FSQ", {"force_quantization_f32": False}),
        ("FSQ", {"levels": [2, 3]}),
        ("FSQ", {"noise_dropout": 0.5}),
        ("LFQ", {"cosine_sim_project_in": True}),
        ("LFQ", {"codebook_size": 100}),
        ("LFQ", {"has_projections": False}),
        ("LFQ", {"frac_per_sample_entropy": 0.0}),
        ("SimVQ", {"codebook_size": -1}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_option_that_is_not_supported_is_named(cls, options):
    needed = {
        "VectorQuantize": {"dim": 8, "codebook_size": 16},
        "ResidualVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
        "GroupedResidualVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
        "FSQ": {"levels": [5, 5]},
        "LFQ": {"codebook_size": 16, "dim": 8},
        "SimVQ": {"dim": 8, "codebook_size": 16},
    }[cls]
    with pytest.raises(ValueError, match=next(iter(options))):
        getattr(interop, cls)(**{**needed, **options})


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"topk": 2}, "topk= is not supported"),
        ({"indices": torch.zeros(2, 5, dtype=torch.long)}, "indices= is not supported"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask must be bool \[2, 5\]"),
        ({"mask": torch.ones(2, 5)}, r"mask must be bool \[2, 5\]"),
        ({"mask": torch.ones(2, 5) > 0, "lens": torch.tensor([1, 2])}, "exclude each other"),
    ],
)
def test_wrong_calls_are_named(arguments, message):
    layer = interop.VectorQuantize(8, 16)
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(2, 5, 8), **arguments)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="8 channels at dimension -1"):
        interop.VectorQuantize(8, 16)(torch.randn(2, 5, 7))
    with pytest.raises(ValueError, match="4 dimensions and 8 channels at dimension 1"):
        interop.VectorQuantize(8, 16, accept_image_fmap=True)(torch.randn(2, 5, 8))
    with pytest.raises(TypeError, match="floating point"):
        interop.VectorQuantize(8, 16)(torch.ones(2, 5, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="codebook must have shape"):
        interop.VectorQuantize(8, 16).codebook = torch.zeros(16, 7)
    with pytest.raises(IndexError, match="16"):
        interop.VectorQuantize(8, 16).get_codes_from_indices(torch.tensor([[16]]))
    with pytest.raises(ValueError, match="up to 2 layers"):
        residual = interop.ResidualVQ(dim=8, num_quantizers=2, codebook_size=16)
        residual.get_codes_from_indices(torch.zeros(1, 5, 3, dtype=torch.long))
    maps = interop.ResidualVQ(dim=8, num_quantizers=2, codebook_size=16, accept_image_fmap=True)
    assert maps(torch.randn(2, 8, 3, 4))[1].shape == (2, 3, 4, 2)
    with pytest.raises(ValueError, match="mask must be None"):
        maps(torch.randn(2, 8, 3, 4), mask=torch.ones(2, 12) > 0)
    with pytest.raises(ValueError, match="5 channels"):
        interop.SimVQ(5, 16)(torch.randn(2, 3, 4))


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"kmeans_init": True}])
def test_a_nan_never_reaches_the_codebook(options):
    layer = interop.VectorQuantize(8, 16, threshold_ema_dead_code=2, **options)
    x = torch.randn(2, 20, 8)
    x[0, 3, 1], x[1, 7, 2] = torch.nan, torch.inf
    quantized, index, loss = layer(x)
    assert index[0, 3] == index[1, 7] == -1 and bool(quantized[0, 3].isnan().all())
    assert int((index == -1).sum()) == 2 and bool(loss.isfinite())
    assert all(bool(buffer.isfinite().all()) for buffer in layer.buffers())


def test_empty_input_and_half_precision():
    layer = interop.VectorQuantize(8, 16)
    before = layer.codebook.clone()
    quantized, index, loss = layer(torch.randn(2, 0, 8, requires_grad=True))
    assert quantized.shape == (2, 0, 8) and index.shape == (2, 0) and float(loss.detach()) == 0
    assert bool(layer.codebook.isfinite().all())
    half = copy.deepcopy(layer).bfloat16()
    assert half._codebook.cluster_size.dtype == half._codebook.embed_avg.dtype == torch.float32
    quantized, _, loss = half(torch.randn(2, 5, 8, dtype=torch.bfloat16, requires_grad=True))
    assert quantized.dtype == torch.bfloat16
    (quantized.float().sum() + loss).backward()
    assert before.shape == half.codebook.shape


def test_bridge_maps_the_codes():
    bridge = nn.Linear(8, 8)
    theirs = library.VectorQuantize(8, 40, vq_bridge=copy.deepcopy(bridge))
    ours = interop.VectorQuantize(8, 40, vq_bridge=bridge)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 10, 8)
    for a, b in zip(step(ours, None, x), step(theirs, None, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours._codebook.vq_bridge.weight.grad, theirs._codebook.vq_bridge.weight.grad
    )
