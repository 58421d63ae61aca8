"""Update rules, one by one: each against its formula, and what must never happen."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from vqkern.ops.rows import ema_step
from vqkern.quantizers import (
    EMA,
    MMD,
    Gradient,
    Linear,
    Online,
    Revival,
    Table,
    VectorQuantizer,
)
from vqkern.quantizers.anchors import farthest_features, nearest_features, random_features

RULES = {
    "ema": lambda: EMA(0.9),
    "ema smoothed": lambda: EMA(0.9, smoothing=1e-3),
    "revival": lambda: Revival(after=2),
    "revival of ema": lambda: Revival(EMA(0.9), after=2),
    "online": lambda: Online(decay=0.5),
    "online far": lambda: Online(decay=0.5, anchor="far"),
    "online ema": lambda: Online(EMA(0.9), decay=0.5),
}


def build(rule, num_codes=12, dim=3, **options):
    return VectorQuantizer(Table(num_codes, dim), update=rule, **options)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ema_stays_near_float64_for_a_hundred_thousand_steps(whole):
    """Decay .999; the oracle is the sum that the recursion unrolls to, in float64."""
    steps, decay = 100_000, 0.999
    batch = torch.randn(7, 2) + 0.3
    picks = torch.randint(4, (steps, 7))
    rule = EMA(decay)
    table = Table(4, 2)
    rule.attach(table)
    start = table.weight.double().clone()
    hot = F.one_hot(picks, 4).double()
    age = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    weight = (1 - decay) * decay**age
    count = decay**steps + torch.einsum("s,snk->k", weight, hot)
    total = start * decay**steps + torch.einsum("s,snk,nd->kd", weight, hot, batch.double())
    if whole:
        for pick in picks:
            rule.step(batch, pick)
    else:  # all but the last by their recursion alone, on the sums of all steps made at once
        counts, totals = hot.sum(1).float(), torch.einsum("snk,nd->skd", hot.float(), batch)
        state = rule.count, rule.total, table.weight
        for one, sums in zip(counts[:-1].unbind(), totals[:-1].unbind(), strict=True):
            ema_step(one, sums, 1 - decay, *state)
        rule.step(batch, picks[-1])
    torch.testing.assert_close(rule.count.double(), count, rtol=1e-4, atol=0)
    torch.testing.assert_close(rule.total.double(), total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(table.weight.double(), total / count[:, None], rtol=0, atol=1e-4)


def test_laplace_smoothing_is_that_of_the_common_implementations():
    q = build(EMA(0.9, smoothing=0.01), num_codes=6)
    count, total = torch.ones(6), q.codes.clone()
    for _ in range(5):
        z = torch.randn(20, 3)
        index = q(z).index
        assignment = F.one_hot(index, 6).float()
        count = 0.9 * count + 0.1 * assignment.sum(0)
        total = 0.9 * total + 0.1 * assignment.T @ z
        smoothed = (count + 0.01) / (count.sum() + 6 * 0.01) * count.sum()
        torch.testing.assert_close(q.codes.data, total / smoothed[:, None])


def test_a_sum_that_overflows_leaves_its_code_alone():
    q = build(EMA(0.5), num_codes=2, dim=1)
    q.load_codes(torch.tensor([[0.0], [3e38]]))
    q(torch.tensor([[3e38], [3e38], [0.1], [0.3]]))
    assert q.codes[1] == 3e38 and float(q.codes[0]) == pytest.approx(0.2 / 1.5 * 1.0, rel=1)
    assert bool(q.update.total.isfinite().all())


class TestRevival:
    def test_a_code_is_revived_after_so_many_idle_steps_and_forgotten(self):
        q = build(Revival(EMA(0.9), after=3), num_codes=3)
        codes = torch.tensor([[0.0, 0, 0], [50, 50, 50], [90, 90, 90]])
        q.load_codes(codes)
        for step in range(3):
            z = torch.randn(10, 3)
            q(z)
            moved = (q.codes != codes).any(-1)
            assert moved[1:].tolist() == [step == 2] * 2
        rows = q.codes[1:]
        assert all(bool((z == row).all(-1).any()) for row in rows)
        assert not torch.equal(rows[0], rows[1])
        assert torch.equal(q.update.rule.total[1:], rows)
        assert q.update.rule.count[1:].tolist() == [1, 1]
        assert q.update.idle.tolist() == [0, 0, 0]

    def test_works_with_gradients_and_an_alignment(self):
        q = build(Revival(after=1), alignment=MMD())
        before = q.codes.detach().clone()
        q(torch.randn(5, 3)).loss.backward()
        assert not torch.equal(q.codes, before)
        assert bool(q.parametrisation.weight.grad.isfinite().all())

    def test_the_same_seed_draws_the_same_and_another_does_not(self):
        def run(seed):
            torch.manual_seed(7)
            q = build(Revival(after=1, seed=seed))
            for _ in range(3):
                q(torch.randn(9, 3))
            return q.codes

        assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))

    def test_a_resumed_run_draws_what_the_unbroken_one_draws(self):
        torch.manual_seed(3)
        q = build(Revival(EMA(0.9), after=2))
        batches = torch.randn(6, 5, 3)
        for z in batches[:3]:
            q(z)
        other = build(Revival(EMA(0.9), after=2))
        other.load_state_dict(q.state_dict())
        for z in batches[3:]:
            q(z), other(z)
        assert torch.equal(q.codes, other.codes)

    def test_random_features_are_valid_uniform_and_never_twice(self):
        z, valid = torch.arange(40.0)[:, None], torch.arange(40) % 3 > 0
        z[~valid] = math.nan
        wanted = torch.arange(30) % 2 > 0
        seen = torch.zeros(40)
        for draw in range(400):
            rows, found = random_features(z, valid, wanted, torch.tensor(draw))
            assert torch.equal(found, wanted)
            places = rows[found, 0].long()
            assert len(places.unique()) == 15 and bool(valid[places].all())
            seen[places] += 1
        expected = 400 * 15 / 26
        chi = ((seen[valid] - expected) ** 2 / expected).sum()
        assert chi < 60  # the 0.01 % point of chi squared with 25 degrees of freedom
        few = random_features(z[:8], valid[:8], torch.ones(20, dtype=torch.bool), torch.tensor(1))
        assert int(few.found.sum()) == 5 == len(few.rows[few.found].unique())
        none = random_features(z[:0], valid[:0], wanted, torch.tensor(1))
        assert not none.found.any() and not none.rows.any()


class TestOnline:
    @pytest.mark.parametrize("anchor", ["near", "far"])
    def test_is_the_formula(self, anchor):
        decay, size = 0.6, 8
        q = build(Online(Gradient(0.0), decay=decay, anchor=anchor), num_codes=size)
        share = torch.zeros(size).double()
        for _ in range(4):
            z = torch.randn(15, 3)
            codes = q.codes.detach().double().clone()
            index = q(z).index
            share = decay * share + (1 - decay) * F.one_hot(index, size).double().mean(0)
            pull = torch.exp(-share * size * 10 / (1 - decay) - 1e-3)[:, None]
            distance = torch.cdist(codes, z.double())
            at = distance.argmin(1) if anchor == "near" else distance.argmax(1)
            expected = (1 - pull) * codes + pull * z.double()[at]
            torch.testing.assert_close(q.codes.double(), expected, rtol=1e-5, atol=1e-6)

    def test_dead_codes_land_on_features_and_used_ones_stay(self):
        q = build(Online(Gradient(0.0)), num_codes=40)
        codes = torch.cat([torch.randn(10, 3), torch.randn(30, 3) + 100])
        q.parametrisation.load_state_dict({"weight": codes})
        z = torch.randn(200, 3)
        index = q(z).index
        assert index.max() < 10
        much_used = index.bincount(minlength=40) > 10
        torch.testing.assert_close(q.codes.detach()[much_used], codes[much_used])
        assert float(q.codes[10:].detach().norm(dim=-1).max()) < 10
        # Codes that were loaded on purpose are not overwritten at once.
        q.load_codes(codes)
        q(z)
        assert torch.equal(q.codes, codes)

    def test_anchors_are_never_bad_rows(self):
        codes = torch.randn(6, 3)
        z = torch.randn(9, 3)
        bad = torch.cat([z, torch.full((2, 3), math.nan), torch.full((1, 3), math.inf)])
        valid = bad.isfinite().all(-1)
        valid[4] = False  # masked
        kept = bad[valid]
        for rule, pick in ((nearest_features, torch.argmin), (farthest_features, torch.argmax)):
            rows, found = rule(bad, valid, codes)
            assert bool(found.all())
            assert torch.equal(rows, kept[pick(torch.cdist(codes, kept), dim=1)])
            rows, found = rule(bad[:0], valid[:0], codes)
            assert not found.any() and not rows.any()


@pytest.mark.parametrize("rule", RULES)
class TestEveryRule:
    def test_bad_rows_change_no_code(self, rule):
        """The codes after a batch with NaN, infinite and masked rows: those without these rows."""
        torch.manual_seed(4)
        clean = build(RULES[rule]())
        dirty = copy.deepcopy(clean)
        for _ in range(3):
            z = torch.randn(20, 3)
            bad = torch.tensor([[math.nan, 0, 0], [0, math.inf, 0], [9.0, 9, 9], [0, 0, -math.inf]])
            mixed = torch.cat([bad[:2], z, bad[2:]])
            mask = torch.ones(24, dtype=torch.bool)
            mask[22] = False
            clean(z)
            dirty(mixed, mask=mask)
            assert torch.equal(clean.codes, dirty.codes)
        state = dirty.state_dict()
        assert all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())
        dirty(torch.full((4, 3), math.nan))
        assert bool(dirty.codes.isfinite().all())

    def test_a_deep_copy_moves_its_own_codes(self, rule):
        q = build(RULES[rule]())
        q(torch.randn(5, 3))
        other = copy.deepcopy(q)
        before = q.codes.detach().clone()
        for _ in range(3):
            other(torch.randn(30, 3))
        assert torch.equal(q.codes, before) and not torch.equal(other.codes, before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_statistics_stay_float32(self, rule, dtype):
        q = build(RULES[rule]()).to(dtype)
        assert all(not b.is_floating_point() or b.dtype == torch.float32 for b in q.buffers())
        for _ in range(3):
            q(torch.randn(9, 3, dtype=dtype))
        assert q.codes.dtype == dtype and bool(q.codes.isfinite().all())

    def test_eval_mode_moves_nothing(self, rule):
        q = build(RULES[rule]()).eval()
        before = copy.deepcopy(q.state_dict())
        q(torch.randn(9, 3))
        assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())

    def test_only_a_table_will_do(self, rule):
        with pytest.raises(TypeError, match="moves a free table of codes, got Linear"):
            VectorQuantizer(Linear(Table(4, 3)), update=RULES[rule]())

    def test_one_rule_cannot_move_two_codebooks(self, rule):
        shared = RULES[rule]()
        build(shared)
        with pytest.raises(ValueError, match="already moves the codes of another quantizer"):
            build(shared)
        with pytest.raises(ValueError, match="already moves the codes of another quantizer"):
            build(Revival(shared))


@pytest.mark.parametrize("rule", ["revival of ema", "online far"])
def test_rules_around_rules_compile_in_one_graph(rule):
    torch._dynamo.reset()
    torch.manual_seed(8)
    q = build(RULES[rule]())
    compiled = torch.compile(copy.deepcopy(q), fullgraph=True, backend="eager")
    for _ in range(3):
        z = torch.randn(9, 3)
        assert torch.equal(q(z).index, compiled(z).index)
    torch.testing.assert_close(compiled.codes, q.codes)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: EMA(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: EMA(smoothing=-1), "smoothing must be a finite number of at least 0, got -1"),
        (lambda: Revival(after=0), "after must be a whole number of at least 1, got 0"),
        (lambda: Online(decay=-0.1), r"decay must be in \[0, 1\), got -0.1"),
        (lambda: Online(anchor="middle"), "anchor must be one of.*'middle'"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
