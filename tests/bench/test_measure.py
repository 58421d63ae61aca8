"""The comparison's arithmetic and fairness: no speed is measured here."""

import csv
import json
import os

import pytest
import torch

import vqkern
from vqkern import bench
from vqkern.bench import Case, Comparison, Contestant, Result, Verdict, compare, measure
from vqkern.bench.measure import HALF_MATMUL, NATIVE_PEAK, TORCH_MATMUL, interleave
from vqkern.bench.memory import PEAK_RESET, Memory, MemoryProbe
from vqkern.bench.operations import OPERATIONS, judge_mmd, judge_nearest, judge_sums
from vqkern.ops.nearest_code.certificate import record

SMALL = Case(64, 100, 3)


def _exact(case, z, codes):
    return lambda: tuple(vqkern.nearest_code(z, codes, backend="torch"))


def _next_code(case, z, codes):
    index = vqkern.nearest_code(z, codes, backend="torch").index
    return lambda: (index + 1) % len(codes)


def _last_of_equals(case, z, codes):
    flipped = vqkern.nearest_code(z, codes.flip(0), backend="torch").index
    return lambda: len(codes) - 1 - flipped


def _raises_at_once(case, z, codes):
    raise RuntimeError("no such instruction\nsecond line")


def _raises_later(case, z, codes):
    calls = iter(range(3))

    def call():
        if next(calls, None) is None:
            raise MemoryError("out of memory")
        return vqkern.nearest_code(z, codes, backend="torch").index

    return call


def _alternates(case, z, codes):
    right = vqkern.nearest_code(z, codes, backend="torch")
    turns = iter(range(10**6))
    return lambda: (right.index, right.distance + next(turns) % 2)


OURS = Contestant("ours", _exact, ours=True)


def _by_name(contestants, case=SMALL, **options):
    comparison = compare(case, contestants=contestants, seconds=0.01, **options)
    return comparison, {result.contestant: result for result in comparison.results}


# Inputs


@pytest.mark.parametrize("data", bench.DATA)
def test_inputs_come_from_the_seed_alone(data):
    first = Case(50, 31, 4, data=data).vectors_and_codes()
    again = Case(50, 31, 4, data=data).vectors_and_codes()
    other = Case(50, 31, 4, data=data, seed=1).vectors_and_codes()
    assert [list(t.shape) for t in first] == [[50, 4], [31, 4]]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_data_sets_are_what_they_say():
    made = {data: Case(500, 201, 4, data=data).vectors_and_codes() for data in bench.DATA}
    assert all(torch.allclose(t.norm(dim=-1), torch.ones(len(t))) for t in made["sphere"])
    assert all(abs(float(t.mean()) - 100) < 0.2 for t in made["offset"])
    assert float(torch.cdist(*made["near"]).amin(-1).amax()) < 0.01
    _, counts = made["duplicates"][1].unique(dim=0, return_counts=True)
    assert sorted(counts.tolist()) == [1] + [2] * 100


def test_dtype():
    z, codes = Case(5, 6, 2, dtype="bfloat16").vectors_and_codes()
    assert z.dtype == codes.dtype == torch.bfloat16


# Judging


def test_a_wrong_contestant_has_a_wrong_argmin_rate():
    _, results = _by_name([OURS, Contestant("next", _next_code)])
    assert results["ours"].verdict == Verdict(64, 0)
    assert results["next"].verdict == Verdict(64, 64)
    assert results["next"].verdict.wrong_rate == 1.0
    assert results["next"].status == "ok" and results["next"].seconds


def test_ties_are_not_wrong_but_counted():
    case = Case(64, 100, 3, data="duplicates")
    _, results = _by_name([OURS, Contestant("last", _last_of_equals)], case)
    assert results["ours"].verdict == Verdict(64, 0, 0)
    assert results["last"].verdict == Verdict(64, 0, 64)


def test_ties_of_different_codes_and_indices_out_of_range():
    z, codes = torch.zeros(4, 1), torch.tensor([[2.0], [1.0], [-1.0], [1.0]])
    judge = judge_nearest(Case(4, 4, 1), (z, codes))
    assert judge((torch.tensor([1, 2, 3, 1]),)) == Verdict(4, 0, 2)
    assert judge((torch.tensor([0, -1, 4, 1]),)) == Verdict(4, 3, 0)
    with pytest.raises(ValueError, match=r"index must be an integer tensor \[4\], got \[3\]"):
        judge((torch.tensor([1, 1, 1]),))


def test_near_misses_below_float32_are_wrong():
    # Half an ulp of 1e8 decides: the float32 distances are equal, the real ones are not.
    z, codes = torch.tensor([[3.0]]), torch.tensor([[1e8], [-1e8]])
    judge = judge_nearest(Case(1, 2, 1), (z, codes))
    assert judge((torch.tensor([0]),)) == Verdict(1, 0)
    assert judge((torch.tensor([1]),)) == Verdict(1, 1)


def test_sums_and_mmd_are_judged():
    case = Case(40, 7, 3, op="code_sums")
    inputs = OPERATIONS["code_sums"].make(case)
    count, total = vqkern.code_sums(*inputs, 7, backend="torch")
    verdict = judge_sums(case, inputs)((count + torch.eye(7, dtype=torch.int64)[0], total * 1.5))
    assert (verdict.checked, verdict.wrong) == (7, 1)
    assert verdict.error == pytest.approx(0.5, rel=1e-5)
    case = Case(20, 11, 3, op="squared_mmd")
    inputs = OPERATIONS["squared_mmd"].make(case)
    reference = OPERATIONS["squared_mmd"].contestants[1]
    value, gradient = reference.prepare(case, *inputs)()
    judge = judge_mmd(case, inputs)
    assert judge((value, gradient)).error < 1e-5
    assert judge((value, gradient * 3)).error == pytest.approx(2, rel=1e-3)
    assert judge((value + 5, gradient)).error == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("op", OPERATIONS)
def test_all_contestants_run_or_say_why(op):
    case = Case(65, 33, 5, op=op)
    # KeOps compiles C++ for several seconds.
    chosen = [c for c in OPERATIONS[op].contestants_on("cpu") if c.name != "KeOps argmin"]
    comparison = compare(case, contestants=chosen, seconds=0.01)
    for result in comparison.results:
        assert (result.status == "ok") == bool(result.seconds) == (not result.reason)
        assert result.status != "failed", result.reason
        if result.verdict is not None:
            assert result.verdict.wrong == 0
            assert result.verdict.error is None or result.verdict.error < 1e-4
    assert comparison.ours is not None
    assert comparison.yardsticks[TORCH_MATMUL] > 0


def test_the_native_peak_is_a_median_over_the_rounds(monkeypatch):
    rates = [90.0, 10.0, 30.0]
    given = []

    def peak():
        given.append(rates[len(given) % 3])
        return given[-1]

    monkeypatch.setattr(measure, "_native_peak", lambda case: peak)
    comparison = compare(Case(65, 33, 5), contestants=[], seconds=1e-6)
    assert given == rates and comparison.yardsticks[NATIVE_PEAK] == 30.0
    assert comparison.results == []


# Failures


def test_a_contestant_that_raises_is_reported_and_stops_nobody():
    missing = Contestant("missing", _exact, needs=(("no_such_module", "pip install it"),))
    limited = Contestant("limited", _exact, limit=lambda case: "too large")
    raising = Contestant("raises", _raises_at_once)
    later = Contestant("later", _raises_later)
    comparison, results = _by_name([raising, missing, later, limited, OURS])
    assert len(results["ours"].seconds) >= 3
    expected = {
        "raises": ("failed", "RuntimeError: no such instruction"),
        "later": ("failed", "MemoryError: out of memory"),
        "missing": ("skipped", "no_such_module is not installed (pip install it)"),
        "limited": ("skipped", "too large"),
    }
    text = bench.table(comparison)
    for name, (status, reason) in expected.items():
        assert (results[name].status, results[name].reason) == (status, reason)
        assert not results[name].seconds
        assert f"{name}: {status}: {reason}" in text


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (_next_code, "64 wrong and 0 ties not to the lowest index of 64 checked: not timed"),
        (_alternates, "two calls differ in their bits: not timed"),
    ],
    ids=["wrong", "different bits"],
)
def test_ours_is_not_timed_where_it_is_wrong(prepare, reason):
    comparison, results = _by_name(
        [Contestant("ours", prepare, ours=True), Contestant("peer", _exact)]
    )
    assert (results["ours"].status, results["ours"].reason) == ("failed", reason)
    assert comparison.ours is None
    assert comparison.time_ratio(results["peer"]) is None
    assert "peer" in bench.table(comparison)


def test_a_slow_peer_is_timed_once_and_ours_in_every_round():
    called = {"ours": 0, "peer": 0}

    def counting(name):
        def prepare(case, z, codes):
            index = vqkern.nearest_code(z, codes, backend="torch").index

            def call():
                called[name] += 1
                return index

            return call

        return prepare

    ours = Contestant("ours", counting("ours"), ours=True)
    peer = Contestant("peer", counting("peer"), note=lambda case: "as it is")
    _, results = _by_name([ours, peer], longest=1e-12)
    assert len(results["peer"].seconds) == 1 and called["peer"] == 2
    assert len(results["ours"].seconds) >= 3 and called["ours"] > 4
    assert results["peer"].note.startswith("as it is; timed once, outside the rounds: a call takes")
    assert "timed once" not in results["ours"].note


def test_a_contestant_of_another_device_does_not_run():
    elsewhere = Contestant("elsewhere", _raises_at_once, devices=("cuda",))
    _, results = _by_name([OURS, elsewhere])
    assert results["elsewhere"].status == "skipped"
    assert results["elsewhere"].reason == "it runs on cuda, not on cpu"
    assert not elsewhere.runs_on("cpu") and elsewhere.runs_on("cuda:1")


def test_counts_and_package_are_reported(tmp_path):
    counts = {"certified": 60, "candidates": 71, "scanned": 3, "invalid": 1}

    def recording(case, z, codes):
        index = vqkern.nearest_code(z, codes, backend="torch").index

        def call():
            record(rows=64, **counts)
            return index

        return call

    torch_version = f"torch {torch.__version__}"
    told = Contestant("told", recording, needs=(("torch", "pip install torch"),))
    silent = Contestant("silent", lambda case, z, codes: lambda: torch.zeros(64, dtype=torch.int64))
    comparison, results = _by_name([silent, told])
    assert results["told"].package == torch_version and results["silent"].package == ""
    bench.write_csv(tmp_path / "a.csv", bench.rows(comparison))
    with open(tmp_path / "a.csv", newline="") as file:
        other, row = csv.DictReader(file)
    assert {name: int(row[name]) for name in counts} == counts
    assert row["package"] == torch_version
    assert all(other[name] == "" for name in counts)
    assert "told: 60 certified, 71 candidates, 3 scanned, 1 invalid" in bench.table(comparison)


def test_identity_is_of_bits():
    _, results = _by_name([OURS, Contestant("alternates", _alternates)])
    assert results["ours"].same_bits is True
    assert results["alternates"].same_bits is False


# Arithmetic


def _fixed() -> Comparison:
    return Comparison(
        Case(1000, 2000, 50),
        2,
        [
            Result("ours", True, seconds=[0.1, 0.2, 0.3, 0.4, 0.5], verdict=Verdict(512, 0)),
            Result(
                "peer",
                False,
                seconds=[0.6, 0.6, 0.6],
                verdict=Verdict(512, 8, 3),
                same_bits=True,
                memory=Memory(3 << 20, PEAK_RESET),
            ),
            Result("gone", False, status="skipped", reason="no reason"),
        ],
        {TORCH_MATMUL: 10.0},
    )


def test_arithmetic():
    comparison = _fixed()
    ours, peer, gone = comparison.results
    assert ours.quartiles() == pytest.approx((0.2, 0.3, 0.4))
    assert comparison.rate(ours) == pytest.approx(2 * 1000 * 2000 * 50 / 0.3 / 1e9)
    assert comparison.time_ratio(peer) == pytest.approx(2.0)
    assert comparison.time_ratio(gone) is None and comparison.rate(gone) is None
    assert Result("once", False, seconds=[0.5]).quartiles() == (0.5, 0.5, 0.5)
    assert peer.verdict.wrong_rate == 8 / 512


def test_the_yardstick_is_the_highest_rate_that_was_measured():
    comparison = _fixed()
    assert comparison.yardstick() == (TORCH_MATMUL, 10.0)
    comparison.yardsticks[HALF_MATMUL] = 80.0
    assert comparison.yardstick() == (HALF_MATMUL, 80.0)
    comparison.yardsticks = {TORCH_MATMUL: 10.0, NATIVE_PEAK: 12.0}
    assert comparison.yardstick() == (NATIVE_PEAK, 12.0)


def test_table_shows_the_figures():
    lines = bench.table(_fixed()).splitlines()
    peer = next(line for line in lines if line.startswith("peer  "))
    assert peer.split() == "peer 600 [600, 600] 0.3333 3% 2.00x 8/512 (1.6%) yes 3.0".split()
    assert "peer: 3/512 exact ties not to the lowest index (not counted as wrong)" in lines
    assert "gone: skipped: no reason" in lines


def test_csv_and_json(tmp_path):
    comparison = _fixed()
    bench.write_csv(tmp_path / "a.csv", bench.rows(comparison, commit="abc"))
    with open(tmp_path / "a.csv", newline="") as file:
        ours, peer, gone = csv.DictReader(file)
    assert tuple(ours) == tuple(bench.COLUMNS)
    assert (ours["median_ms"], ours["throughput"], ours["unit"]) == ("300", "0.666667", "GFLOP/s")
    assert (peer["time_vs_ours"], peer["fraction_of_yardstick"]) == ("2", "0.0333333")
    assert (peer["wrong"], peer["wrong_rate"], peer["not_lowest"]) == ("8", "0.015625", "3")
    assert (peer["extra_bytes"], peer["rounds"], peer["commit"]) == (str(3 << 20), "3", "abc")
    assert (gone["status"], gone["reason"], gone["median_ms"]) == ("skipped", "no reason", "")
    assert all(row["hardware"] and row["torch"] == torch.__version__ for row in (ours, gone))
    bench.write_json(tmp_path / "a.json", [comparison])
    everything = json.loads((tmp_path / "a.json").read_text())
    assert everything[1]["seconds"] == [0.6, 0.6, 0.6]


def test_interleaving_shares_places():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    samples, errors = interleave(calls, dict.fromkeys(calls, 1.0), 6 * 3.1)
    assert not errors and [len(s) for s in samples.values()] == [6, 6, 6]
    rounds = ["".join(seen[i : i + 3]) for i in range(0, 18, 3)]
    assert rounds == ["abc", "acb", "cab", "cba", "bca", "bac"]


def test_a_part_is_called_as_often_in_a_row_as_the_op(monkeypatch):
    class Enough(Exception):
        pass

    def seen(calls, expected, seconds, device):
        raise Enough(expected)

    monkeypatch.setattr(measure, "interleave", seen)
    ours = [c for c in OPERATIONS["gaussian_w2"].contestants_on("cpu") if c.ours]
    with pytest.raises(Enough) as stopped:
        compare(Case(500, 600, 4, op="gaussian_w2"), contestants=ours, seconds=0.1)
    (expected,) = stopped.value.args
    parts = [seconds for name, seconds in expected.items() if name.startswith("one ")]
    assert len(parts) == 3 and min(parts) >= max(expected[c.name] for c in ours)


def test_threads_are_restored():
    before = torch.get_num_threads()
    comparison, _ = _by_name([OURS], threads=1)
    assert comparison.threads == 1
    assert torch.get_num_threads() == before


# Memory


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's counters")
def test_memory_is_that_of_the_call():
    contestants = {c.name: c for c in OPERATIONS["nearest_code"].contestants}
    case = Case(2048, 8192, 4)  # 64 MiB of float32 scores
    with MemoryProbe() as probe:
        memory = probe.measure(contestants["torch cdist + argmin"], case)
        unknown = probe.measure(Contestant("lambda", lambda case, z, codes: None), case)
        unseen = probe.measure(Contestant("unseen", _exact, memory=("cuda",)), case)
        step = OPERATIONS["layer_step_ema"]
        ours = probe.measure(step.contestants[0], Case(4096, 16384, 4, op=step.name))
    assert memory.method == ours.method == PEAK_RESET, memory.method
    assert ours.extra_bytes / 2**20 < 16  # an N x K matrix would take 256 MiB
    assert 60 < memory.extra_bytes / 2**20 < 100
    assert unknown.extra_bytes is None and "not measured" in unknown.method
    assert unseen == (None, "not measured: its first call does other work as well")


# Arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1, got 0"),
        ({"k": 2.5}, "k must be an integer of at least 1, got 2.5"),
        ({"d": True}, "d must be an integer of at least 1, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"data": "uniform"}, "data must be one of gaussian, .*, got 'uniform'"),
        ({"op": "sort"}, "op must be one of nearest_code, .*, got 'sort'"),
        ({"dtype": "int8"}, "dtype must be one of float32, .*, got 'int8'"),
        ({"device": "abacus"}, "device: must be 'cpu' or .*, got 'abacus'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_cases(change, message):
    with pytest.raises(ValueError, match=message):
        Case(**{"n": 1, "k": 1, "d": 1, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds must be positive and finite, got 0"),
        ({"seconds": float("nan")}, "seconds must be positive and finite, got nan"),
        ({"longest": 0}, "longest must be positive, got 0"),
        ({"longest": float("nan")}, "longest must be positive, got nan"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"contestants": [OURS, OURS]}, "distinct names, got 'ours' twice"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        compare(SMALL, **options)
