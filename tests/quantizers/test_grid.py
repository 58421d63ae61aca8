"""What every point of the grid keeps to: a matrix generated from PRESETS, so new ones join it."""

import ast
import copy
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from support import grid_names, grid_sizes

import vqkern
from vqkern.quantizers import CODEBOOK_FREE, PRESETS, VectorQuantizer, presets


def build(name, **options):
    torch.manual_seed(1)
    return vqkern.build_quantizer(name, **grid_sizes(name), channel_dim=1, **options)


def latents(q, batch=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, getattr(q, "in_channels", q.dim), 4, 4, generator=generator)


def each_codes(codes):
    """The tables of a quantizer: `codes` is one of them, or a list for structures."""
    return [t for c in codes for t in each_codes(c)] if isinstance(codes, list) else [codes]


def seeded(q, *arguments, **options):
    torch.manual_seed(11)
    return q(*arguments, **options)


def equal(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def skip_repetitions(name):
    """Tracing is slow: a structure is traced around `vanilla`, a parametrisation on its own."""
    base, _, structure = name.partition("_")
    if structure and base != "vanilla":
        pytest.skip(f"traced as {base} and as vanilla_{structure}")


@pytest.mark.parametrize("name", grid_names())
class TestGrid:
    def test_counts_outlast_a_cast_of_all_that_a_module_holds(self, name):
        plain, cast = build(name), build(name).type(torch.float32)
        for q in (plain, cast):
            seeded(q, latents(q))
        assert str(cast.usage()) == str(plain.usage())
        halves = build(name).type(torch.bfloat16)
        halves(latents(halves).bfloat16())

    def test_round_trip_in_eval_mode(self, name):
        q = build(name)
        z = latents(q)
        seeded(q, z)  # a training step first: codes that move must not matter
        q.eval()
        result = q(z)
        assert result.quantized.shape == (3, q.dim, 4, 4) and result.index.dtype == torch.int64
        assert result.loss == 0 and result.loss.shape == ()
        assert torch.equal(q.encode(z), result.index)
        assert torch.equal(q.decode(result.index), result.quantized)
        assert torch.equal(q(z).quantized, result.quantized)

    def test_training_gives_the_codes_forward_and_a_gradient_backward(self, name):
        q = build(name)
        z = latents(q).requires_grad_()
        before = copy.deepcopy(q)
        result = seeded(q, z)
        if getattr(q, "keep_probabilities", None) is None:  # nested masking drops groups at random
            codes = before.decode(result.index).detach()
            torch.testing.assert_close(result.quantized.detach(), codes, rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(result.quantized.square().sum(), z, retain_graph=True)
        assert bool(gradient.isfinite().all()) and gradient.any()
        assert result.loss.dtype == torch.float32 and result.loss.shape == ()
        if result.loss.requires_grad:
            result.loss.backward()
        for key, parameter in q.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, key
            else:
                assert parameter.grad is not None, key
                assert bool(parameter.grad.isfinite().all()), key
                # A key's bias has no effect on attention: its gradient may vanish, no other's.
                assert parameter.grad.any(), key

    def test_the_decoders_gradient_does_not_reach_the_codes(self, name):
        q = build(name)
        trained = [p for p in q.parameters() if p.requires_grad]
        if not isinstance(q, VectorQuantizer) or not trained:
            pytest.skip("what else a structure trains is in its own tests")
        quantized = seeded(q, latents(q).requires_grad_()).quantized
        gradients = torch.autograd.grad(quantized.square().sum(), trained, allow_unused=True)
        assert all(g is None or not g.any() for g in gradients)

    def test_eval_mode_has_no_gradient_in_its_loss_and_moves_nothing(self, name):
        q = build(name).eval()
        state = copy.deepcopy(q.state_dict())
        assert not q(latents(q).requires_grad_()).loss.requires_grad
        assert all(torch.equal(v, state[k]) for k, v in q.state_dict().items())

    def test_saved_and_loaded_it_goes_on_bit_for_bit(self, name, tmp_path):
        from safetensors.torch import load_file, save_file

        q = build(name)
        seeded(q, latents(q))
        save_file({k: v.contiguous() for k, v in q.state_dict().items()}, tmp_path / "q")
        again = vqkern.build_quantizer(**json.loads(json.dumps(q.config)))
        again.load_state_dict(load_file(tmp_path / "q"))
        z = latents(q, seed=5)
        one, other = seeded(q, z), seeded(again, z)
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(each_codes(q.codes), each_codes(again.codes), strict=True):
            assert torch.equal(a, b)

    def test_fold_changes_nothing(self, name):
        q = build(name)
        seeded(q, latents(q))
        q.eval()
        folded = q.fold()
        z = latents(q, seed=6)
        one, other = q(z), folded(z)
        assert torch.equal(one.index, other.index) and torch.equal(one.quantized, other.quantized)
        assert torch.equal(folded.encode(z), one.index)
        for a, b in zip(each_codes(q.codes), each_codes(folded.codes), strict=True):
            assert torch.equal(a, b)
        again = vqkern.build_quantizer(**json.loads(json.dumps(folded.config))).eval()
        again.load_state_dict(folded.state_dict())
        assert torch.equal(again(z).quantized, one.quantized)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_inputs(self, name, dtype):
        q = build(name)
        z = latents(q).to(dtype)
        result = seeded(q, z)
        assert result.quantized.dtype == dtype and result.loss.dtype == torch.float32
        assert bool(result.quantized.isfinite().all()) and bool(result.loss.isfinite())
        q.eval()
        result = q(z)
        assert torch.equal(result.index, q.encode(z))
        assert torch.equal(result.quantized, q.decode(result.index).to(dtype))

    def test_a_half_precision_quantizer(self, name):
        q = build(name).bfloat16()
        z = latents(q).bfloat16()
        seeded(q, z)
        q.eval()
        result = q(z)
        assert result.quantized.dtype == torch.bfloat16
        assert torch.equal(q.decode(q.encode(z)).bfloat16(), result.quantized)
        assert torch.equal(q.fold()(z).quantized, result.quantized)

    def test_autocast_touches_neither_indices_nor_codes(self, name):
        q = build(name)
        z = latents(q)
        expected, quantized = q.encode(z), q.eval()(z).quantized
        q.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(q.encode(z), expected)
            loss = seeded(q, z.requires_grad_()).loss
            assert loss.dtype == torch.float32 and bool(loss.isfinite())
        q = build(name).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(q(z).quantized, quantized)

    def test_masked_positions_pass_through_and_count_nowhere(self, name):
        q = build(name).eval()
        if getattr(q, "takes_maps", False):
            pytest.skip("quantizes maps as a whole; its own tests say what a mask means there")
        z = latents(q)
        mask = torch.rand(3, 4, 4) > 0.4
        result, unmasked = q(z, mask=mask), q(z)
        inputs, outputs = z[:, : q.dim].movedim(1, -1), result.quantized.movedim(1, -1)
        assert torch.equal(outputs[~mask], inputs[~mask])
        assert bool((result.index[~mask] == -1).all())
        assert torch.equal(result.index[mask], unmasked.index[mask])
        usage = build(name).eval()
        usage(z, mask=mask)
        for one in usage.usage() if isinstance(usage.usage(), list) else [usage.usage()]:
            assert one.tokens > 0 and one.tokens % int(mask.sum()) == 0  # one or more a position
        q.train()
        z = z.masked_fill(~mask[:, None], math.nan).requires_grad_()
        result = seeded(q, z, mask=mask)
        assert bool(result.loss.isfinite())
        if result.loss.requires_grad:
            (gradient,) = torch.autograd.grad(result.loss, z)
            assert not gradient.movedim(1, -1)[~mask].any() and bool(gradient.isfinite().all())

    def test_bad_rows_harm_nothing(self, name):
        q = build(name)
        z = latents(q)
        z[0, 1, 2, 3], z[1, 0, 0, 0], z[2, q.dim - 1, 1, 1] = math.nan, math.inf, -math.inf
        bad = ~z.isfinite().all(1)
        z.requires_grad_()
        result = seeded(q, z)
        assert bool(result.loss.isfinite())
        if result.loss.requires_grad:
            result.loss.backward()
            assert bool(z.grad.isfinite().all())
        for key, parameter in q.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), key
        assert all(bool(c.isfinite().all()) for c in each_codes(q.codes))
        if not getattr(q, "takes_maps", False):
            outputs, index = result.quantized.movedim(1, -1), result.index.view(3, 4, 4, -1)
            # Of several tokens, those of the channels that are not finite.
            assert bool((index[bad] == -1).any(-1).all())
            assert bool(outputs[bad].isnan().any(-1).all())
            assert bool((index[~bad] >= 0).all()) and bool(outputs[~bad].isfinite().all())
        q.eval()
        result = q(z)
        assert torch.equal(q.encode(z), result.index)
        assert equal(q.decode(result.index), result.quantized)

    def test_no_row_at_all(self, name):
        q = build(name)
        before = [c.detach().clone() for c in each_codes(q.codes)]
        result = seeded(q, latents(q)[:0])
        assert result.quantized.shape == (0, q.dim, 4, 4) and bool(result.loss.isfinite())
        assert all(torch.equal(a, b) for a, b in zip(each_codes(q.codes), before, strict=True))

    def test_compiles_in_one_graph(self, name):
        skip_repetitions(name)
        q = build(name)
        compiled = torch.compile(copy.deepcopy(q), fullgraph=True, backend="eager")
        z = latents(q).requires_grad_()
        expected, result = seeded(q, z), seeded(compiled, z)
        assert torch.equal(result.index, expected.index)
        torch.testing.assert_close(result.loss, expected.loss)
        outcomes = [
            torch.autograd.grad(one.loss + one.quantized.square().sum(), z)[0]
            for one in (expected, result)
        ]
        torch.testing.assert_close(*outcomes)

    def test_encode_and_decode_export(self, name):
        skip_repetitions(name)

        class Encode(torch.nn.Module):
            def __init__(self, quantizer):
                super().__init__()
                self.quantizer = quantizer

            def forward(self, z):
                return self.quantizer.encode(z)

        class Decode(Encode):
            def forward(self, index):
                return self.quantizer.decode(index)

        q = build(name).eval()
        z = latents(q)
        index = q.encode(z)
        encode = torch.export.export(Encode(q), (z,)).module()
        decode = torch.export.export(Decode(q), (index,)).module()
        other = latents(q, seed=9)
        assert torch.equal(encode(other), q.encode(other))
        assert torch.equal(decode(index.flip(0)), q.decode(index.flip(0)))


def test_the_documented_options_are_those_there_are():
    page = Path(__file__).parents[2] / "docs" / "quantizers.md"
    table = page.read_text(encoding="utf-8").split("Their options, and what they are")[1]
    built = {**PRESETS, **CODEBOOK_FREE, **{f"_{s}": b for s, b in presets._SUFFIXES.items()}}
    seen = {}
    for row in table.split("All take")[0].splitlines()[4:]:
        if not row:
            continue
        names, options = row.strip("| ").split(" | ", 1)
        for name in re.findall(r"`(\w+)`", names):
            found = dict(re.findall(r"`(\w+)=([^`]*)`", options))
            seen[name] = {key: ast.literal_eval(value) for key, value in found.items()}
    for name, options in seen.items():
        own = {k: p.default for k, p in inspect.signature(built[name]).parameters.items()}
        rest = {k: p.default for k, p in inspect.signature(PRESETS["vanilla"]).parameters.items()}
        for key, value in options.items():
            assert (own[key] if key in own else rest[key]) == value, (name, key)
        general = {"dim", "codebook_size", "channel_dim", "estimator", "build", "options"}
        assert set(own) - general <= set(options), name
    assert {n for n, b in built.items() if set(inspect.signature(b).parameters) - general} - set(
        seen
    ) <= {"mlp"}
