"""Projectors around a quantizer: the contract of the grid, on maps, and where gradients go."""

import copy
import io
import json
import math

import pytest
import torch

from vqkern import build_quantizer
from vqkern.quantizers import Projected, VectorQuantizer

NAMES = {
    "vanilla_projected": {},
    "mmd_halves_projected": {},
    "ema_rq_projected": {},
    "fvq_projected": {},
    "mmd_var_projected": {"projector_form": "after", "patch_sizes": (1, 2, 4)},
    "vanilla_var_projected": {"patch_sizes": (1, 2, 4)},
    "wasserstein_vp2_halves_projected": {},
    "fsq_projected": {"projector_dim": 3, "levels": (4, 4, 4)},
    "vanilla_groups_projected": {"projector_dim": 12},
}


def build(name, **options):
    torch.manual_seed(1)
    size = 256 if "vp2" in name else 64
    options = {**NAMES[name], "projector_hidden": 16, **options}
    return build_quantizer(name, dim=8, codebook_size=size, channel_dim=1, **options)


def maps(batch=3, seed=2):
    return torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_round_trip_in_eval_mode(self, name):
        q = build(name)
        z = maps()
        q(z)
        q.eval()
        result = q(z)
        assert result.quantized.shape == z.shape and result.index.dtype == torch.int64
        assert result.loss == 0 and not result.loss.requires_grad
        assert torch.equal(q.encode(z), result.index)
        assert torch.equal(q.decode(result.index), result.quantized)
        inner = z.movedim(1, -1) if q.before is None else q.before(z.movedim(1, -1))
        assert torch.equal(q.part.encode(inner), result.index)
        assert torch.equal(q.after(q.part.decode(result.index)).movedim(-1, 1), result.quantized)

    def test_training_moves_everything_and_reaches_the_latents(self, name):
        q = build(name)
        z = maps().requires_grad_()
        result = q(z)
        # Codes may have moved since; what came out is what these indices meant before.
        expected = build(name).eval().decode(result.index).detach()
        torch.testing.assert_close(result.quantized.detach(), expected, rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(result.quantized.square().sum(), z, retain_graph=True)
        assert bool(gradient.isfinite().all()) and gradient.any()
        result.loss.backward()
        for key, parameter in q.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.any(), key

    def test_saved_loaded_and_folded_it_is_the_same(self, name):
        q = build(name)
        q(maps())
        q.eval()
        file = io.BytesIO()
        torch.save(q.state_dict(), file)
        file.seek(0)
        again = build_quantizer(**json.loads(json.dumps(q.config))).eval()
        again.load_state_dict(torch.load(file))
        folded = q.fold()
        refolded = build_quantizer(**json.loads(json.dumps(folded.config))).eval()
        refolded.load_state_dict(folded.state_dict())
        own = {p.data_ptr() for p in q.parameters()}
        assert not own & {p.data_ptr() for p in folded.parameters()}
        z = maps(seed=3)
        for other in (again, folded, refolded):
            assert all(same(a, b) for a, b in zip(q(z), other(z), strict=True))
        assert all(
            type(m.parametrisation).__name__ == "Table"
            for m in folded.modules()
            if isinstance(m, VectorQuantizer)
        )

    def test_maps_that_are_not_finite_are_left_out_whole(self, name):
        q, clean = build(name), build(name)
        z = maps()
        z[1, 2, 0, 3] = math.nan
        torch.manual_seed(5)
        z.requires_grad_()
        result = q(z)
        assert bool((result.index[1] == -1).all()) and bool((result.index[[0, 2]] >= 0).all())
        assert bool(result.quantized[1].isnan().all())
        assert bool(result.quantized[[0, 2]].isfinite().all()) and bool(result.loss.isfinite())
        (result.loss + result.quantized[[0, 2]].sum()).backward()
        assert bool(z.grad.isfinite().all()) and not z.grad[1].any()
        for key, parameter in q.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), key
        torch.manual_seed(5)
        alone = clean(maps()[[0, 2]])
        if "mmd" not in name:  # which draws the features it compares
            torch.testing.assert_close(alone.loss, result.loss, rtol=1e-5, atol=1e-6)
        assert torch.equal(alone.index, result.index[[0, 2]])
        q.eval()
        assert same(q.decode(q.encode(z)), q(z).quantized)

    def test_masked_maps_pass_through_and_count_nowhere(self, name):
        q = build(name).eval()
        z = maps()
        mask = torch.ones(3, 4, 4, dtype=torch.bool)
        mask[0, 1, 1] = False
        result, unmasked = q(z, mask=mask), build(name).eval()(z)
        assert torch.equal(result.quantized[0], z[0]) and bool((result.index[0] == -1).all())
        assert torch.equal(result.index[1:], unmasked.index[1:])
        reference = build(name).eval()
        reference(z[1:])
        assert str(q.usage()) == str(reference.usage())
        q.train()
        z[0, 0, 1, 1] = math.nan
        assert bool(q(z, mask=mask).loss.isfinite())

    def test_autocast_half_and_no_map_at_all(self, name):
        q = build(name).eval()
        z = maps()
        expected = q(z)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(q.encode(z), expected.index)
            assert torch.equal(q(z).quantized, expected.quantized)
        half = q(z.bfloat16())
        assert half.quantized.dtype == torch.bfloat16
        assert torch.equal(q.decode(half.index).bfloat16(), half.quantized)
        double = q(z.double())
        assert torch.equal(q.decode(double.index).double(), double.quantized)
        for mode in (True, False):
            empty = q.train(mode)(z[:0])
            assert empty.quantized.shape == (0, 8, 4, 4) and bool(empty.loss.isfinite())


def test_the_loss_is_the_parts_and_the_pull_to_the_latents():
    q = build("vanilla_groups_projected", feature_weight=3.0, feature_commitment=0.5)
    z = maps()
    inner = q.before(z.movedim(1, -1))
    part = copy.deepcopy(q.part)
    expected = part(inner)
    result = q(z)
    output = q.after(expected.quantized)
    pulled = (output - z.movedim(1, -1)).square().mean()
    torch.testing.assert_close(result.quantized, output.movedim(-1, 1))
    torch.testing.assert_close(result.loss, expected.loss + 3.5 * pulled)
    assert result.index.shape == (3, 4, 4, 4)


@pytest.mark.parametrize("name", ["mmd_var_projected", "vanilla_groups_projected"])
def test_latents_are_drawn_to_the_output_and_the_output_to_latents(name):
    """Each of the two pulls alone: which of encoder, projectors and codes it moves, and where."""
    options = {"commitment": 0.0, "codebook_weight": 0.0}
    if "mmd" in name:
        options["alignment"] = {"name": "mmd", "weight": 0.0}
    z = maps().requires_grad_()

    def gradients(**weights):
        q = build(name, **options, **weights)
        result = q(z)
        parameters = dict(q.named_parameters())
        found = torch.autograd.grad(
            result.loss, [z, *parameters.values()], allow_unused=True, materialize_grads=True
        )
        return result.quantized.detach(), found[0], dict(zip(parameters, found[1:], strict=True))

    output, to_z, rest = gradients(feature_weight=0.0, feature_commitment=1.0)
    torch.testing.assert_close(to_z, 2 * (z - output).detach() / z.numel())
    assert not any(g.any() for g in rest.values())
    output, to_z, rest = gradients(feature_weight=1.0, feature_commitment=0.0)
    assert not to_z.any()
    resting = z.detach()
    q = build(name, **options, feature_weight=1.0, feature_commitment=0.0)
    q(resting).loss.backward()  # as where the encoder rests
    for key, parameter in q.named_parameters():
        alone = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(rest[key], alone)
    assert rest["after.layers.0.weight"].any()
    assert q.before is None or rest["before.layers.0.weight"].any()


def test_after_sees_quantized_latents_without_their_gradient():
    q = build("mmd_var_projected", feature_weight=0.0)
    z = maps().requires_grad_()
    quantized = q(z).quantized
    assert q.before is None and len(q.after.layers) == 6 + 2 * 5  # convolutions; norms and SiLUs
    codes = [p for n, p in q.named_parameters() if n.startswith("part.")]
    gradients = torch.autograd.grad(quantized.sum(), [z, *codes], allow_unused=True)
    assert torch.equal(gradients[0], torch.ones_like(z))
    assert all(g is None for g in gradients[1:])


@pytest.mark.parametrize(
    ("form", "counts"), [("around", (3, 3)), ("after", (0, 6))], ids=["around", "after"]
)
def test_released_widths(form, counts):
    with torch.device("meta"):
        q = build_quantizer(
            "vanilla_projected", dim=32, codebook_size=64, channel_dim=1, projector_form=form
        )
    convs = [
        [m for m in (p.modules() if p is not None else ()) if isinstance(m, torch.nn.Conv2d)]
        for p in (q.before, q.after)
    ]
    assert tuple(len(c) for c in convs) == counts
    widths = [c.out_channels for c in convs[1]]
    assert widths == [1024] * (counts[1] - 1) + [32] and convs[1][0].in_channels == 32
    assert all(c.kernel_size == (3, 3) for c in convs[1])


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("vanilla_projected", {"projector_form": "before"}, ValueError, "'before'"),
        ("vanilla_projected", {"projector_hidden": 0}, ValueError, "projector_hidden"),
        ("vanilla_projected", {"projector_layers": 1}, ValueError, "projector_layers"),
        ("vanilla_projected", {"feature_weight": -1.0}, ValueError, "feature_weight"),
        ("vanilla_projected", {"projector_form": "after", "projector_dim": 4}, ValueError, "after"),
        ("vanilla_projected_rq", {}, TypeError, "Projected"),
        ("vaevq_projected", {}, TypeError, "as many channels as it gives"),
        (
            "vanilla_projected",
            {"projector_residual": True, "projector_dim": 4},
            ValueError,
            "residual must be None, False",
        ),
        ("vanilla_projected", {"projector_width": 3}, ValueError, "no option 'projector_width'"),
    ],
)
def test_bad_options_are_named(name, options, error, message):
    with pytest.raises(error, match=message):
        build_quantizer(name, dim=8, codebook_size=16, **options)


def test_bad_latents_and_first_are_named():
    q = build("vanilla_projected")
    with pytest.raises(ValueError, match="four dimensions"):
        q(torch.zeros(5, 8))
    with pytest.raises(ValueError, match="8 channels"):
        q(torch.zeros(1, 7, 4, 4))
    with pytest.raises(ValueError, match="first: VectorQuantizer has no groups"):
        q.decode(torch.zeros(1, 4, 4, dtype=torch.long), first=1)
    halves = build("mmd_halves_projected").eval()
    index = halves.encode(maps())
    part = halves.part.decode(index, first=1)
    assert torch.equal(halves.decode(index, first=1), halves.after(part).movedim(-1, 1))
    assert isinstance(halves, Projected)
