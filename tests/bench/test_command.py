"""`vqkern bench`, the case lists, benchmarks/compare.py and the pictures."""

import argparse
import csv
import dataclasses
import importlib
import json
import statistics
from collections import Counter
from pathlib import Path

import pytest

from vqkern import bench, cli
from vqkern.bench import Case, Comparison, Result, Verdict, command
from vqkern.bench.measure import TORCH_MATMUL

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vqkern bench")
    command.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def module(monkeypatch):
    """module(name): a file of benchmarks/, as its own scripts import it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def two_contestants(monkeypatch):
    """nearest_code with two contestants: the real peers take seconds to load."""
    operation = bench.OPERATIONS["nearest_code"]
    two = [c for c in operation.contestants if c.ours or c.name == "torch cdist + argmin"]
    changed = dataclasses.replace(operation, contestants=tuple(two))
    monkeypatch.setitem(bench.OPERATIONS, "nearest_code", changed)


# The command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-N 0", "argument -N: must be an integer of at least 1, got '0'"),
        ("-K x", "argument -K: must be an integer of at least 1, got 'x'"),
        ("--seed -1", "argument --seed: must be an integer of at least 0, got '-1'"),
        ("--seconds -1", "argument --seconds: must be a positive number of seconds, got '-1'"),
        ("--seconds inf", "argument --seconds: must be a positive number of seconds, got 'inf'"),
        ("--threads 0", "argument --threads: must be an integer of at least 1, got '0'"),
        ("--data uniform", "argument --data: invalid choice: 'uniform'"),
        ("--device abacus", "argument --device: must be 'auto', 'cpu' or 'cuda[:i]', got 'abacus'"),
        ("--device cuda:99", "argument --device: 'cuda:99' was asked for, but torch finds"),
        ("--device meta", "argument --device: must be 'auto', 'cpu' or 'cuda[:i]', got 'meta'"),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_the_command_line_names_a_bad_argument(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        _parsed(*words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_a_file_that_cannot_be_written_is_refused_at_the_start(option, tmp_path, capsys):
    missing = tmp_path / "none" / "a.csv"
    for path, message in (
        (tmp_path, f"argument {option}: must be a file, and '{tmp_path}' is a folder"),
        (missing, f"argument {option}: there is no folder {missing.parent} to write into"),
    ):
        with pytest.raises(SystemExit):
            _parsed(option, str(path))
        assert message in capsys.readouterr().err


def test_contradicting_options_are_one_line(capsys):
    assert cli.main(["bench", "--compile", "--op", "code_sums"]) == 2
    message = capsys.readouterr().err
    assert message == "vqkern bench: --compile compares nearest_code only, got --op code_sums\n"


def test_the_usage_is_one_line_and_the_help_lists_every_choice(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "-h"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1] == "" and len(text.splitlines()[0]) <= 80
    words = text.replace(",", " ").split()
    for choice in (*bench.OPERATIONS, *bench.DATA, "bfloat16", "--json"):
        assert choice in words


def test_run_prints_and_writes(two_contestants, tmp_path, capsys):
    words = "-N 50 -K 60 -D 3 --seconds 0.01 --no-memory --data duplicates"
    paths = ["--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]
    assert command.run(_parsed(*words.split(), *paths)) == 0
    printed = capsys.readouterr().out
    assert "nearest_code  N=50 K=60 D=3  duplicates, seed 0, float32, cpu" in printed
    everything = json.loads((tmp_path / "a.json").read_text())
    with open(tmp_path / "a.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["contestant"] for row in written] == [row["contestant"] for row in everything]
    median = statistics.median(everything[0]["seconds"])
    assert float(written[0]["median_ms"]) == pytest.approx(1e3 * median, rel=1e-5)


# The case lists


def test_the_cases_cover_shapes_data_sweeps_and_dtypes(module):
    cases = module("cases")
    for listed in (*cases.CASES.values(), *cases.CASES_FULL.values()):
        assert max(Counter(listed).values()) == 1
    for full in (False, True):
        listed = cases.cases("nearest_code", full=full)
        data = {shape: set() for shape in cases.SHAPES}
        for case in listed:
            if (case.n, case.k, case.d) in data and case.dtype == "float32":
                data[case.n, case.k, case.d].add(case.data)
        assert data[cases.SHAPES[0]] == set(bench.DATA)
        assert all(found >= {"gaussian", "near"} for found in data.values())
        for k, d in ((16384, 8), (65536, 64)):
            swept = {case.n for case in listed if (case.k, case.d) == (k, d)}
            assert swept >= {1, 16, 64, 256, 1024, 4096}
        assert {case.dtype for case in listed} == {"float32", "float16", "bfloat16"}
    assert Case(16384, 65536, 64) in cases.CASES_FULL["nearest_code"]
    assert {case.op for case in cases.CASES["layer_step_ema"]} == {"layer_step_ema"}


def test_compare_writes_a_table_and_a_picture(
    module, two_contestants, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    compare = module("compare")
    tiny = [Case(40, 50, 4), Case(40, 50, 4, data="near")]
    monkeypatch.setattr(compare, "cases", lambda op, full, device: tiny)
    assert compare.main(["--seconds", "0.01", "--out", str(tmp_path / "new")]) == 0
    with open(tmp_path / "new" / "nearest_code_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["data"] for row in rows} == {"gaussian", "near"}
    assert (tmp_path / "new" / "nearest_code_cpu.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        compare.main(["--seconds", "0"])
    assert "argument --seconds" in capsys.readouterr().err


# Pictures


def _comparison(n: int, data: str = "gaussian", k: int = 2000) -> Comparison:
    return Comparison(
        Case(n, k, 50, data=data),
        2,
        [
            Result("vqkern", True, seconds=[0.1, 0.2, 0.3], verdict=Verdict(512, 0)),
            Result("peer", False, seconds=[0.6 * n] * 3, verdict=Verdict(512, 8)),
            Result("gone", False, status="skipped", reason="no reason"),
        ],
        {TORCH_MATMUL: 10.0},
    )


def test_plot_has_a_panel_a_shape_and_one_a_sweep(module, tmp_path):
    pytest.importorskip("matplotlib")
    plot = module("plot")
    path = tmp_path / "a.csv"
    swept = [_comparison(n) for n in (1, 16, 1000)]
    other = [_comparison(1000, "near"), _comparison(300, k=70)]
    bench.write_csv(path, [row for c in (*swept, *other) for row in bench.rows(c)])
    every = plot.read(path)
    rows = [row for row in every if row["data"] == "gaussian"]
    assert plot._sweeps(rows) == [(2000, 50)]
    assert plot._bar_shapes(every, rows, [(2000, 50)]) == [(1000, 2000, 50), (300, 70, 50)]
    ours, peer = (row for row in rows if row["n"] == "1000")
    assert plot._label(ours) == "200 ms, 10% of the fp32 peak"
    assert plot._label(peer) == "600000 (3e+03x), 1.6% wrong"
    assert plot.plot(path).stat().st_size > 1000


def test_plot_names_a_table_without_a_timed_row(module, tmp_path):
    pytest.importorskip("matplotlib")
    bench.write_csv(tmp_path / "b.csv", [])
    with pytest.raises(ValueError, match="has no timed row"):
        module("plot").plot(tmp_path / "b.csv")
