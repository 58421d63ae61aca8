"""The contract: every base preset in every structure, nests of them, and codebook-free ones."""

import copy
import io
import math

import pytest
import torch

import vqkern
from vqkern.quantizers import (
    CODEBOOK_FREE,
    PRESETS,
    STRUCTURES,
    Gradient,
    Groups,
    Halves,
    Product,
    Table,
    VectorQuantizer,
)

# `vaevq` takes twice the channels and has no structures.
BASES = sorted(set(PRESETS) - {"vaevq"})
MATRIX = [f"{base}_{structure}" for base in BASES for structure in STRUCTURES]
NESTS = ["vanilla_vp2_halves", "ema_halves_rq", "vanilla_halves_var", "vanilla_var_halves"]
NESTS += ["vanilla_sphere_groups", "ema_vp2_vp2", "mmd_rq_groups", "vanilla_var_rq"]
FREE = [*CODEBOOK_FREE, *(f"{name}_rq" for name in CODEBOOK_FREE), "fsq_halves", "lfq_var"]
NAMES = [*MATRIX, *NESTS, "mgvq", *FREE]
SHAPE = (3, 8, 4, 4)
# Tracing takes seconds: every structure once, with the bases in turn; the rest is for the soak.
TRACED = [f"{BASES[n % len(BASES)]}_{s}" for n, s in enumerate(STRUCTURES)] + ["mgvq", "lfq"]
TRACED_TOO = sorted(set(NAMES) - set(TRACED))
TRACING = [*TRACED, *(pytest.param(name, marks=pytest.mark.slow) for name in TRACED_TOO)]


def build(name, **options):
    if "var" in name.split("_"):
        options = {"patch_sizes": (1, 2, 4), **options}
    return vqkern.build_quantizer(
        name, **{"dim": 8, "codebook_size": 256, "channel_dim": 1, **options}
    )


def rows_of(z):
    return z.movedim(1, -1)


def same(a, b):
    return torch.equal(torch.nan_to_num(a, nan=7e3), torch.nan_to_num(b, nan=7e3))


def token_shape(name, positions):
    """The index's shape by its definition: structures from the inside out, an axis each."""
    if name == "mgvq":
        return (*positions, 4)
    first, *structures = name.split("_")
    maps = "var" in structures
    axes = {"halves": 2, "groups": 4, "rq": 4}
    shape = [positions[0], 21] if maps else list(positions)
    return (*shape, *(axes[s] for s in structures if s in axes))


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_shapes_round_trip_and_eval_mode(self, name):
        q = build(name).eval()
        z = torch.randn(SHAPE)
        quantized, index, loss = q(z)
        assert quantized.shape == z.shape and quantized.dtype == z.dtype
        assert index.dtype == torch.int64 and index.shape == token_shape(name, (3, 4, 4))
        assert loss.shape == () and loss == 0
        assert torch.equal(q.encode(z), index)
        assert torch.equal(q.decode(index), quantized)
        assert bool((index >= 0).all()) and bool((index < q.codebook_size).all())
        assert bool((q.train()(z).index == index).all())

    def test_config_and_state_dict_rebuild_it_bit_for_bit(self, name):
        q = build(name)
        z = torch.randn(SHAPE)
        q(z)
        file = io.BytesIO()
        torch.save(q.state_dict(), file)
        file.seek(0)
        again = vqkern.build_quantizer(**q.config)
        again.load_state_dict(torch.load(file))
        states = q.state_dict(), again.state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        torch.manual_seed(1)
        one = q(z)
        torch.manual_seed(1)
        other = again(z)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        states = q.state_dict(), again.state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    def test_fold_changes_nothing(self, name):
        q = build(name).eval()
        z = torch.randn(SHAPE)
        folded = q.fold()
        own = {p.data_ptr() for p in q.parameters()}
        for part in folded.modules():
            if isinstance(part, VectorQuantizer):
                assert type(part.parametrisation) is Table and type(part.update) is Gradient
                assert part.alignment is None
        assert not own & {p.data_ptr() for p in folded.parameters()}
        assert all(torch.equal(a, b) for a, b in zip(folded(z), q(z), strict=True))
        again = vqkern.build_quantizer(**folded.config).eval()
        again.load_state_dict(folded.state_dict())
        assert torch.equal(again(z).quantized, q(z).quantized)
        assert torch.equal(again.decode(q.encode(z)), q(z).quantized)

    def test_gradients_flow_where_they_should_and_nowhere_else(self, name):
        torch.manual_seed(3)
        q = build(name)
        z = torch.randn(SHAPE, requires_grad=True)
        upstream = torch.randn(SHAPE)
        if name == "mgvq":
            result = q(z, keep=4)
        else:
            result = q(z)
        parameters = [p for p in q.parameters() if p.requires_grad]
        grads = torch.autograd.grad(
            result.quantized, [z, *parameters], upstream, retain_graph=True, allow_unused=True
        )
        plain = not {"fsq", "bsq", "sphere", "spherical"} & set(name.split("_")) or name.endswith(
            "_rq"
        )
        if plain:
            assert torch.equal(grads[0], upstream)
        else:
            assert bool(grads[0].isfinite().all()) and bool((grads[0] != 0).any())
        assert all(g is None or not g.any() for g in grads[1:])
        if not result.loss.requires_grad:
            assert name.startswith("fsq")  # which has no loss
            return
        loss_grads = torch.autograd.grad(result.loss, [z, *parameters], allow_unused=True)
        for gradient in loss_grads:
            assert gradient is not None and bool(gradient.isfinite().all())
            assert bool((gradient != 0).any()), "a gradient that should flow is zero"

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_inputs_are_taken_at_their_values(self, name, dtype):
        q = build(name).eval()
        z = torch.randn(SHAPE).to(dtype)
        result = q(z)
        assert result.quantized.dtype == dtype
        assert torch.equal(result.index, q(z.float()).index)
        assert torch.equal(q.decode(q.encode(z)).to(dtype), result.quantized)
        trained = q.train()(z.requires_grad_())
        assert trained.quantized.dtype == dtype and trained.loss.dtype == torch.float32
        (trained.loss + trained.quantized.float().sum()).backward()
        assert z.grad.dtype == dtype and bool(z.grad.isfinite().all())

    def test_autocast_touches_neither_indices_nor_values(self, name):
        q = build(name).eval()
        z = torch.randn(SHAPE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, decoded = q(z), q.decode(q.encode(z))
        if any(name.startswith(base) for base in ("vanilla", "ema", "mmd", *CODEBOOK_FREE)):
            assert torch.equal(inside.quantized, q(z).quantized)
            assert torch.equal(inside.index, q(z).index)
        assert torch.equal(inside.quantized, decoded.to(inside.quantized.dtype))

    def test_masked_positions_pass_through_and_count_nowhere(self, name):
        whole = "var" in name.split("_")  # a map is quantized as one
        mask = torch.ones(3, 4, 4, dtype=torch.bool)
        mask[1, 2:] = False
        left = (mask.flatten(1).all(1)[:, None, None] if whole else mask).expand(3, 4, 4)
        z = torch.randn(SHAPE, requires_grad=True)
        q = build(name)
        result = q(z, mask) if name != "mgvq" else q(z, mask, keep=3)
        assert torch.equal(rows_of(result.quantized)[~left], rows_of(z)[~left])
        index = result.index
        kept_index = index[torch.tensor([0, 2])] if whole else index[left]
        dropped_index = index[1] if whole else index[~left]
        assert bool((dropped_index == -1).all()) and bool((kept_index >= 0).all())
        if result.loss.requires_grad:
            (gradient,) = torch.autograd.grad(result.loss, z, retain_graph=True)
            assert not rows_of(gradient)[~left].any()
            assert bool(rows_of(gradient)[left].any())
        (gradient,) = torch.autograd.grad(result.quantized.sum(), z)
        assert torch.equal(rows_of(gradient)[~left], torch.ones_like(rows_of(z)[~left]))
        tokens = int((index >= 0).sum())
        assert total_tokens(q.usage(), name, index) == (tokens, 0)

    def test_a_position_that_is_not_finite_harms_nothing(self, name):
        clean = torch.randn(SHAPE)
        z = clean.clone()
        z[1, 0, 2, 3] = math.nan
        z[1, 5, 0, 0] = math.inf
        q = build(name).eval()
        result = q(z)
        assert same(q.decode(result.index), result.quantized)
        kept = torch.tensor([0, 2])
        assert torch.equal(result.index[kept], q(clean).index[kept])
        assert torch.equal(result.quantized[kept], q(clean).quantized[kept])
        assert bool((result.index[1] == -1).any())
        assert bool(result.quantized[1, 0, 2, 3].isnan())
        assert bool(result.quantized[1, 5, 0, 0].isnan())
        q.train()
        z.requires_grad_()
        result = q(z, keep=4) if name == "mgvq" else q(z)
        assert bool(result.loss.isfinite())
        if result.loss.requires_grad:
            result.loss.backward()
            assert bool(z.grad.isfinite().all())
            assert z.grad[1, 0, 2, 3] == 0 and z.grad[1, 5, 0, 0] == 0
            for parameter in q.parameters():
                assert parameter.grad is None or bool(parameter.grad.isfinite().all())
        assert all(bool(v.isfinite().all()) for v in q.state_dict().values())

    def test_one_bad_sample_more_changes_no_code(self, name):
        """A step with and without it: the same gradients, statistics and codes."""
        q = build(name)
        other = copy.deepcopy(q)
        z = torch.randn(SHAPE)
        bad = torch.full((1, *SHAPE[1:]), math.nan)
        bad[:, ::2] = math.inf
        keep = {"keep": 3} if name == "mgvq" else {}
        for each, batch in ((q, z), (other, torch.cat([z[:1], bad, z[1:]]))):
            loss = each(batch, **keep).loss
            if loss.requires_grad:
                loss.backward()
        for (key, one), two in zip(q.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7, msg=key)
            # MMD takes other features twice in the place of bad ones: finite, but not the same.
            if one.grad is not None and not name.startswith("mmd"):
                torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-7, msg=key)
        for (key, one), two in zip(q.named_buffers(), other.buffers(), strict=True):
            if not key.endswith("skipped"):  # resampling rounds by the size of the batch
                torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7, msg=key)

    def test_a_batch_of_nan_or_of_nothing_changes_no_code(self, name):
        q = build(name)
        before = copy.deepcopy(q.state_dict())
        result = q(torch.full(SHAPE, math.nan))
        assert bool((result.index == -1).all()) and bool(result.quantized.isnan().any())
        assert result.loss == 0 or name.split("_")[0] not in CODEBOOK_FREE
        result = q(torch.empty(0, 8, 4, 4))
        assert result.quantized.shape == (0, 8, 4, 4)
        assert result.index.shape == token_shape(name, (0, 4, 4)) and result.loss == 0
        codes = {k: v for k, v in q.state_dict().items() if "weight" in k}
        assert all(torch.equal(v, before[k]) for k, v in codes.items())
        q.eval()
        assert q.decode(q.encode(torch.empty(0, 8, 4, 4))).shape == (0, 8, 4, 4)


class Call(torch.nn.Module):
    """A method of a quantizer as a module, for torch.export."""

    def __init__(self, q, method):
        super().__init__()
        self.q, self.method = q, method

    def forward(self, x):
        return getattr(self.q, self.method)(x)


@pytest.mark.parametrize("name", TRACING)
def test_training_compiles_in_one_graph(name):
    torch.compiler.reset()  # all of them share the code of forward, and recompilations are limited
    torch.manual_seed(3)
    q = build(name)
    z = torch.randn(SHAPE, requires_grad=True)
    compiled = torch.compile(copy.deepcopy(q), fullgraph=True, backend="eager")
    options = {"keep": 3} if name == "mgvq" else {}
    expected, result = q(z, **options), compiled(z, **options)
    assert torch.equal(result.index, expected.index)
    torch.testing.assert_close(result.loss, expected.loss)
    (gradient,) = torch.autograd.grad(result.loss + result.quantized.sum(), z)
    (wanted,) = torch.autograd.grad(expected.loss + expected.quantized.sum(), z)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", TRACING)
def test_encode_and_decode_export(name):
    q = build(name).eval()
    z = torch.randn(SHAPE)
    encode = torch.export.export(Call(q, "encode"), (z,), strict=False).module()
    index = encode(z)
    assert torch.equal(index, q.encode(z))
    decode = torch.export.export(Call(q, "decode"), (index,), strict=False).module()
    assert torch.equal(decode(index), q.decode(index))


def total_tokens(usage, name, index):
    """(tokens, skipped), added up over parts."""
    if isinstance(usage, list):
        pairs = [total_tokens(part, name, index) for part in usage]
        return tuple(map(sum, zip(*pairs, strict=True)))
    return usage.tokens, usage.skipped


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("vanilla_rqq", {}, "name must be one of.*_halves, _vp2.*'vanilla_rqq'"),
        ("mgvq_halves", {}, "name must be one of.*'mgvq_halves'"),
        ("halves", {}, "name must be one of.*'halves'"),
        ("vanilla_rq", {"dept": 3}, "'vanilla_rq' has no option 'dept'; it has depth, shared"),
        ("vanilla_halves", {"dim": 9}, "halves: dim must be a multiple of the 2 parts, got 9"),
        ("vanilla_vp2", {"codebook_size": 200}, "to the power of 2, got 200; .* 196 and 225"),
        ("vanilla_halves_vp2", {}, r"parts\[0\] must have one token, Halves has several"),
        ("vanilla_var_var", {}, "part must not take maps, MultiScale does"),
        ("fsq_sphere", {}, "part must have one codebook.*FSQ has none"),
        ("vanilla_rq", {"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ("fsq", {"codebook_size": 255}, "fsq: codebook_size must be a whole number to the power"),
        ("fsq", {"levels": [2] * 7}, "levels must be 8 numbers whose product is.*256.*128"),
        ("lfq", {"codebook_size": 255}, "lfq: codebook_size must be 2\\^dim = 256.*got 255"),
        ("mgvq", {"keep_probabilities": [0.5, 0.5]}, "keep_probabilities must be 4 numbers"),
        ("mgvq", {"keep_probabilities": [0.5, 0.2, 0.2, 0.2]}, "add up to 1, one a group"),
        ("mgvq", {"groups": 3}, "groups: dim must be a multiple of the 3 parts, got 8"),
    ],
    ids=str,
)
def test_bad_names_and_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_parts_are_checked():
    part = VectorQuantizer(Table(5, 2))
    with pytest.raises(TypeError, match=r"parts\[0\] must be a quantizer.*got Linear"):
        Groups([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="parts is empty"):
        Groups([])
    with pytest.raises(ValueError, match="one came twice"):
        Halves([part, part])
    with pytest.raises(ValueError, match="parts must be two quantizers, got 1"):
        Halves([part])
    with pytest.raises(ValueError, match=r"parts\[0\] must have channel_dim -1, got 1"):
        Groups([VectorQuantizer(Table(5, 2), channel_dim=1)])
    masked = Groups([part], keep_probabilities=[1.0])
    with pytest.raises(ValueError, match="nested masking, which only the outermost"):
        Groups([masked])


@pytest.mark.parametrize("name", ["vanilla_halves", "vanilla_vp2", "vanilla_rq", "mgvq"])
def test_bad_input_is_named(name):
    q = build(name, channel_dim=-1)
    with pytest.raises(ValueError, match=r"z must have 8 channels at dimension -1, got \[2, 5\]"):
        q(torch.ones(2, 5))
    with pytest.raises(TypeError, match="z must be floating point"):
        q(torch.ones(2, 8).long())
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        q(torch.ones(2, 8), mask=torch.ones(2))
    with pytest.raises(TypeError, match="index must be an integer"):
        q.decode(torch.ones(2, 4))
    index = q.encode(torch.ones(3, 8))
    index[-1] = 256
    with pytest.raises(IndexError, match=r"is 256; it must be in \[0, 256\)"):
        q.decode(index)
    index[-1] = -1
    assert bool(q.decode(index)[-1].isnan().all())
    if name != "vanilla_vp2":
        with pytest.raises(ValueError, match=r"index must have \d tokens in its last dimension"):
            q.decode(torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("name", ["vanilla_halves", "vanilla_vp2", "ema_rq", "mgvq", "bsq"])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8)], ids=str)
def test_any_leading_shape(name, shape):
    q = build(name, channel_dim=-1)
    z = torch.randn(shape)
    result = q(z)
    assert result.quantized.shape == shape
    assert torch.equal(result.index, q.eval().encode(z)) or name == "ema_rq"
    assert q.decode(result.index).shape == shape
    flat = q.encode(z.reshape(-1, 8))
    assert torch.equal(q.encode(z).reshape(flat.shape), flat)


def test_a_deep_copy_is_independent():
    q = build("ema_rq_groups")
    other = copy.deepcopy(q)
    before = copy.deepcopy(q.state_dict())
    other(torch.randn(SHAPE))
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())
    assert not torch.equal(other.codes[0][0], q.codes[0][0])
    assert q.usage()[0][0].tokens == 0 and other.usage()[0][0].tokens == 4 * 48


@pytest.mark.parametrize("channel_dim", [-1, 1])
@pytest.mark.parametrize("training", [True, False])
def test_alone_and_as_the_only_part_are_one(training, channel_dim):
    """Masked and non-finite positions among the others: bit for bit, gradients and usage too."""
    alone = VectorQuantizer(Table(16, 4), channel_dim=channel_dim).train(training)
    part = VectorQuantizer(copy.deepcopy(alone.parametrisation))
    inside = Product([part], channel_dim=channel_dim).train(training)
    z = torch.randn(3, 5, 4)
    z[0, 1, 2] = torch.nan
    mask = torch.rand(3, 5) > 0.3
    found = []
    for q, table in ((alone, alone.parametrisation), (inside, part.parametrisation)):
        leaf = z.movedim(-1, channel_dim).clone().requires_grad_()
        quantized, index, loss = q(leaf, mask)
        seen = quantized.movedim(channel_dim, -1)[mask & (index >= 0)]
        if training:
            (seen.sin().sum() + loss).backward()
        found.append((quantized, index, loss, leaf.grad, table.weight.grad))
    for mine, other in zip(*found, strict=True):
        if mine is None:
            assert not training and other is None
            continue
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    assert not training or bool(found[0][-1].any())
    assert alone.usage() == inside.usage()
    assert alone.usage().tokens == int(mask.sum()) - (1 if mask[0, 1] else 0)


def test_what_stores_no_codes_refuses_them_by_name():
    for name in ("fsq", "fsq_rq"):
        q = build(name, channel_dim=-1)
        with pytest.raises(TypeError, match="load_codes needs free tables of codes, FSQ has none"):
            q.load_codes(q.codes)


def test_what_cannot_be_a_part_is_refused():
    inside = vqkern.build_quantizer("vanilla_projected", dim=4, codebook_size=16)
    variational = vqkern.build_quantizer("vaevq", dim=4, codebook_size=16)
    with pytest.raises(TypeError, match="can be part of a structure, got Projected"):
        Groups([inside])
    with pytest.raises(TypeError, match="takes 8 and gives 4"):
        Groups([variational])
