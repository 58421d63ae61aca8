"""Gradient estimators: value, gradient, and the rows where they are not defined."""

import copy
import json
import math

import pytest
import torch

import vqkern
from vqkern.quantizers import (
    PRESETS,
    STRUCTURES,
    IndexBackprop,
    Residual,
    Table,
    VectorQuantizer,
    build_quantizer,
    rotation_trick,
    straight_through,
)


def test_straight_through_is_the_code_forward_and_the_identity_backward():
    z, q, upstream = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3), torch.randn(5, 3)
    out = straight_through(z, q)
    torch.testing.assert_close(out, q)
    assert torch.equal(torch.autograd.grad(out, z, upstream)[0], upstream)


def test_rotation_trick_is_the_scaled_rotation_of_the_plane():
    """R is built from two Gram-Schmidt vectors, not from reflections; the gradient is s R^T g."""
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    q, upstream = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    out = rotation_trick(z, q)
    assert torch.equal(out, q)
    (gradient,) = torch.autograd.grad(out, z, upstream)
    for row in range(6):
        a, b = z[row].detach(), q[row]
        u = a / a.norm()
        w = b - (b @ u) * u
        v = w / w.norm()
        cosine, sine = (b @ u) / b.norm(), w.norm() / b.norm()
        plane, turn = torch.stack([u, v]), torch.stack([cosine, -sine, sine, cosine]).view(2, 2)
        rotation = torch.eye(4).double() + plane.T @ (turn - torch.eye(2)) @ plane
        torch.testing.assert_close(rotation @ u, b / b.norm())
        expected = b.norm() / a.norm() * rotation.T @ upstream[row]
        torch.testing.assert_close(gradient[row], expected)


def test_the_angle_of_the_gradient_is_kept():
    z = torch.randn(50, 8, requires_grad=True)
    q = torch.randn(50, 8)
    upstream = torch.randn(50, 8)
    (gradient,) = torch.autograd.grad(rotation_trick(z, q), z, upstream)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        cosine(gradient, z.detach()), cosine(upstream, q), rtol=1e-4, atol=1e-5
    )


def test_rows_without_a_rotation_pass_straight_through():
    z = torch.tensor([[0.0, 0], [1, 2], [1, 2], [math.nan, 1], [1e-30, 0]], requires_grad=True)
    q = torch.tensor([[1.0, 0], [0, 0], [-2, -4], [math.nan, math.nan], [1e30, 0]])
    out = rotation_trick(z, q)
    upstream = torch.randn(5, 2)
    (gradient,) = torch.autograd.grad(out, z, upstream)
    assert torch.equal(gradient, upstream)
    torch.testing.assert_close(out, q, equal_nan=True)


def test_nearly_opposite_vectors_still_have_digits():
    """The bisector is 2e-3 long there; float32 keeps four of its digits."""
    z = torch.randn(20, 6)
    q, upstream = (
        -2 * z + 4e-3 * z.norm(dim=-1, keepdim=True) * torch.randn(20, 6),
        torch.randn(20, 6),
    )
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = z.to(dtype).requires_grad_()
        gradients += torch.autograd.grad(
            rotation_trick(leaf, q.to(dtype)), leaf, upstream.to(dtype)
        )
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-3, atol=1e-3)


def test_the_rotation_is_differentiated_once():
    z = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        rotation_trick(z, torch.randn(4, 3)).square().sum(), z, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    z = torch.randn(9, 4, requires_grad=True, dtype=dtype)
    out = rotation_trick(z, torch.randn(9, 4, dtype=dtype))
    assert out.dtype == dtype
    out.sum().backward()
    assert bool(z.grad.isfinite().all())


def test_presets_take_them_by_name():
    q = vqkern.build_quantizer("simvq", dim=4, codebook_size=20, estimator="rotation")
    z = torch.randn(10, 4, requires_grad=True)
    result = q(z)
    upstream = torch.randn(10, 4)
    (gradient,) = torch.autograd.grad(result.quantized, z, upstream, retain_graph=True)
    nearest = q.decode(result.index).detach()
    (expected,) = torch.autograd.grad(rotation_trick(z, nearest), z, upstream)
    assert torch.equal(gradient, expected) and not torch.equal(gradient, upstream)
    assert q.fold().config["estimator"] == "rotation"
    with pytest.raises(ValueError, match="estimator must be one of.*'straight'"):
        vqkern.build_quantizer("vanilla", dim=4, codebook_size=20, estimator="straight")


def published(z, codes, index, temperature=1.0):
    """IBQ with an array of tokens x codes."""
    soft = (-torch.cdist(z, codes).square() / 2 / temperature).softmax(-1)
    hard = torch.nn.functional.one_hot(index, len(codes)).to(soft)
    return (hard + soft - soft.detach()) @ codes


class TestIndexBackprop:
    def test_reaches_latents_and_all_codes(self):
        q = build_quantizer("linear", dim=4, codebook_size=20, estimator="index_backprop").double()
        z, upstream = torch.randn(2, 30, 4, requires_grad=True).double(), torch.randn(2, 30, 4)
        result = q(z)
        assert torch.equal(result.quantized, q.decode(result.index))
        inputs = (z, *q.parameters())
        got = torch.autograd.grad(result.quantized, inputs, upstream.double(), retain_graph=True)
        expected = published(z, q.codes, result.index)
        wanted = torch.autograd.grad(expected, inputs, upstream.double())
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other)

    def test_codes_that_a_rule_moves_are_those_of_the_search(self):
        q = build_quantizer("ema", dim=3, codebook_size=9, decay=0.5, estimator="index_backprop")
        before = q.codes.detach().clone()
        z = torch.randn(40, 3, requires_grad=True)
        quantized, index, _ = q(z)
        assert not torch.equal(q.codes, before) and torch.equal(quantized, before[index])
        (got,) = torch.autograd.grad(quantized.square().sum(), z)
        (wanted,) = torch.autograd.grad(published(z, before, index).square().sum(), z)
        torch.testing.assert_close(got, wanted)

    def test_stages_pass_the_rest_on_with_its_gradient(self):
        parts = [VectorQuantizer(Table(7, 3), estimator=IndexBackprop(0.5)) for _ in range(3)]
        q = Residual(parts).double()
        z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
        quantized, index, _ = q(z)
        rest = z
        for number, part in enumerate(parts):
            rest = rest - published(rest, part.codes, index[:, number], 0.5)
        inputs = (z, *q.parameters())
        upstream = torch.randn(20, 3, dtype=torch.float64)
        torch.testing.assert_close(quantized, z - rest)
        for got, wanted in zip(
            torch.autograd.grad(quantized, inputs, upstream, retain_graph=True),
            torch.autograd.grad(z - rest, inputs, upstream),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted)

    @pytest.mark.parametrize("base", ["vanilla", "vanilla_halves"])
    def test_different_estimators_of_stages_are_each_ones_own(self, base):
        """Straight-through stages among others, and an option that a structure hides."""
        q = build_quantizer(f"{base}_rq", dim=4, codebook_size=20, estimator="rotation")
        assert q.estimator is rotation_trick
        mixed = Residual(
            [VectorQuantizer(Table(7, 3)), VectorQuantizer(Table(7, 3), estimator=rotation_trick)]
        )
        assert mixed.estimator is None
        z = torch.randn(5, 3, requires_grad=True)
        upstream = torch.randn(5, 3)
        (gradient,) = torch.autograd.grad(mixed(z).quantized, z, upstream)
        # The first stage is the identity: nothing of its rest has a gradient.
        torch.testing.assert_close(gradient, upstream)

    def test_the_scores_of_the_publication_on_the_sphere(self):
        results = []
        for scores in ("dot", "distance"):
            torch.manual_seed(3)
            q = build_quantizer(
                "vanilla_sphere",
                dim=4,
                codebook_size=30,
                estimator={"name": "index_backprop", "scores": scores, "temperature": 0.07},
            )
            z = torch.randn(50, 4, requires_grad=True)
            results.append(torch.autograd.grad(q(z).quantized.square().mul(z.detach()).sum(), z)[0])
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize(
        "name", [*PRESETS, *(f"vanilla_{s}" for s in STRUCTURES), "mmd_rq_halves"]
    )
    def test_every_point_of_the_grid_takes_it(self, name):
        sizes = {"patch_sizes": (1, 2, 4)} if name.endswith("_var") else {}
        q = build_quantizer(
            name, dim=4, codebook_size=64, channel_dim=1, estimator="index_backprop", **sizes
        )
        z = torch.randn(3, q.in_channels, 4, 4)
        z[1, 0, 2, 3] = math.nan
        mask = torch.ones(3, 4, 4, dtype=torch.bool)
        mask[2, 1] = False
        z.requires_grad_()
        before = copy.deepcopy(q)
        quantized, index, loss = q(z, mask)
        decoded = torch.where(mask[:, None], before.decode(index), z[:, :4])
        if name.endswith("_var"):  # a map is masked as a whole
            decoded[2] = z[2]
        torch.testing.assert_close(quantized, decoded, equal_nan=True)
        (quantized.nan_to_num().square().sum() + loss).backward()
        assert bool(z.grad.isfinite().all()) and bool(z.grad[0].any())
        assert z.grad[1, 0, 2, 3] == 0
        for key, parameter in q.named_parameters():
            if parameter.requires_grad:
                assert bool(parameter.grad.isfinite().all()), key

    def test_compiles_in_one_graph(self):
        for name in ("linear", "ema_rq"):
            q = build_quantizer(name, dim=4, codebook_size=16, estimator="index_backprop")
            compiled = torch.compile(copy.deepcopy(q), fullgraph=True, backend="aot_eager")
            z = torch.randn(9, 4, requires_grad=True)
            (wanted,) = torch.autograd.grad(q(z).quantized.square().sum(), z)
            (got,) = torch.autograd.grad(compiled(z).quantized.square().sum(), z)
            torch.testing.assert_close(got, wanted)

    def test_config_keeps_its_options(self):
        estimator = IndexBackprop(0.25, "dot")
        q = build_quantizer("simvq_halves", dim=4, codebook_size=20, estimator=estimator)
        again = build_quantizer(**json.loads(json.dumps(q.config)))
        assert again.parts[1].estimator == estimator
        assert q.fold().config["estimator"] == estimator.config

    def test_an_encoder_learns_through_it(self):
        """Distances to targets fall by the index's gradient alone: the codes stand still."""
        q = VectorQuantizer(
            Table(64, 2).requires_grad_(False), commitment=0.0, estimator=IndexBackprop(0.1)
        )
        target = q.codes[torch.randint(64, (40,))]
        z = (0.1 * torch.randn(40, 2)).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.02)
        errors = []
        for _ in range(300):
            error = (q(z).quantized - target).square().sum(-1).mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(error.item())
        assert errors[-1] < 0.1 * errors[0]

    @pytest.mark.parametrize(
        "call,kind,message",
        [
            (lambda: IndexBackprop(-1.0), ValueError, "temperature must be positive"),
            (lambda: IndexBackprop(scores="cosine"), ValueError, "scores must be one of"),
            (
                lambda: VectorQuantizer(Table(3, 2), estimator="rotation"),
                TypeError,
                "estimator must be a function.*'rotation'",
            ),
            (
                lambda: Residual(VectorQuantizer(Table(3, 2)), depth=2, estimator=IndexBackprop()),
                TypeError,
                "Residual: estimator must be a function.*give IndexBackprop",
            ),
            (
                lambda: build_quantizer(
                    "vanilla", dim=2, codebook_size=3, estimator={"name": "index_backprop", "t": 1}
                ),
                ValueError,
                "estimator 'index_backprop'.*'t'",
            ),
            (
                lambda: build_quantizer("ema", dim=2, codebook_size=3, estimator=max),
                ValueError,
                "estimator must be one of.*VectorQuantizer takes any",
            ),
            (
                lambda: build_quantizer(
                    "vaevq", dim=2, codebook_size=3, form="released", estimator="rotation"
                ),
                ValueError,
                "form='released' has an estimator of its own",
            ),
        ],
    )
    def test_bad_options_are_named(self, call, kind, message):
        with pytest.raises(kind, match=message):
            call()
