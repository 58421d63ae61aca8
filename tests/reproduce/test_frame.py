"""The frame: rows that are kept, runs that are killed and go on, folders that do not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from vqkern.cli import main
from vqkern.reproduce import NAMES, experiment, moving
from vqkern.reproduce.command import select
from vqkern.reproduce.frame import run_experiment
from vqkern.reproduce.gaussian_shift import EXPERIMENT
from vqkern.reproduce.moving import METHODS, Moving
from vqkern.reproduce.shifts import Shifts

TINY = Shifts(
    shifts=(0.0, 2.0),
    moving=Moving(
        codes=64,
        dim=4,
        features=256,
        our_features=256,
        steps=12,
        test_features=1024,
        mmd_points=64,
        revive_after=3,
    ),
)


class Killed(Exception):
    """Stands for a kill in the middle of a cell."""


def figures(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_rows_are_kept_and_only_missing_cells_are_measured(tmp_path):
    cells = EXPERIMENT.cells(TINY)
    first = run_experiment(EXPERIMENT, TINY, cells[:2], tmp_path)
    assert [(r["method"], r["shift"]) for r in first] == [("vanilla", 0.0), ("vanilla", 2.0)]

    def counted(settings, cell, work):
        seen.append(cell)
        return EXPERIMENT.measure(settings, cell, work)

    seen = []
    again = run_experiment(replace(EXPERIMENT, measure=counted), TINY, cells[:3], tmp_path)
    assert seen == [cells[2]] and again[:2] == first and len(again) == 3
    lines = (tmp_path / "gaussian-shift.csv").read_text().splitlines()
    assert lines[0] == "method,shift,error,utilization,perplexity,w2,seconds" and len(lines) == 4
    assert (tmp_path / "gaussian-shift.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize("method", dict.fromkeys((*METHODS, "wasserstein-logged")))
@pytest.mark.parametrize("after", [1, 7])
def test_a_cell_that_is_killed_goes_on_to_the_same_figures(tmp_path, method, after, monkeypatch):
    cell = {"method": method, "shift": 2.0}
    whole = run_experiment(EXPERIMENT, TINY, [cell], tmp_path / "whole")
    take_step = moving.take_step
    steps = []

    def dies(rule, z, valid, step, settings):
        if step == after:
            raise Killed
        steps.append(step)
        take_step(rule, z, valid, step, settings)

    with monkeypatch.context() as patch:
        patch.setattr(moving, "take_step", dies)
        with pytest.raises(Killed):
            run_experiment(EXPERIMENT, TINY, [cell], tmp_path / "cut", save_every=0)
    assert steps == list(range(after))
    assert (tmp_path / "cut" / "state.safetensors").exists()

    def watched(rule, z, valid, step, settings):
        steps.append(step)
        take_step(rule, z, valid, step, settings)

    monkeypatch.setattr(moving, "take_step", watched)
    resumed = run_experiment(EXPERIMENT, TINY, [cell], tmp_path / "cut")
    assert steps == list(range(TINY.moving.steps))
    assert figures(resumed) == figures(whole)


@pytest.mark.slow  # three processes that import torch
def test_a_process_that_is_killed_for_good_goes_on_to_the_same_figures(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dataclasses import replace\n"
        "from vqkern.reproduce.gaussian_shift import EXPERIMENT\n"
        "from vqkern.reproduce.moving import Moving\n"
        "from vqkern.reproduce.frame import run_experiment\n"
        "from vqkern.reproduce.shifts import Shifts\n"
        "moving = Moving(codes=64, dim=4, our_features=512, steps=400, test_features=1024)\n"
        "s = Shifts(shifts=(2.0,), moving=moving)\n"
        "cell = {'method': 'ours-wasserstein', 'shift': 2.0}\n"
        "run_experiment(EXPERIMENT, s, [cell], Path(sys.argv[1]), save_every=0.0)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out):
        return subprocess.Popen([sys.executable, "-c", code, str(out)], env=environment)

    cut = tmp_path / "cut"
    victim = start(cut)
    deadline = time.monotonic() + 120
    while not (cut / "state.safetensors").exists() and time.monotonic() < deadline:
        assert victim.poll() is None
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (cut / "rows.json").exists()
    assert start(cut).wait() == 0 and start(tmp_path / "whole").wait() == 0
    kept = [
        list(json.loads((folder / "rows.json").read_text())["rows"].values())
        for folder in (cut, tmp_path / "whole")
    ]
    assert figures(kept[0]) == figures(kept[1])


def test_the_state_of_another_cell_is_not_taken(tmp_path, monkeypatch):
    cells = EXPERIMENT.cells(TINY)[:2]
    whole = run_experiment(EXPERIMENT, TINY, cells, tmp_path / "whole")
    take_step = moving.take_step

    def dies(rule, z, valid, step, settings):
        if step == 5:
            raise Killed
        take_step(rule, z, valid, step, settings)

    with monkeypatch.context() as patch:
        patch.setattr(moving, "take_step", dies)
        with pytest.raises(Killed):
            run_experiment(EXPERIMENT, TINY, cells[:1], tmp_path / "cut", save_every=0)
    run_experiment(EXPERIMENT, TINY, cells[1:], tmp_path / "cut")
    assert figures(run_experiment(EXPERIMENT, TINY, cells, tmp_path / "cut")) == figures(whole)


def test_the_state_of_another_experiment_or_setting_is_not_taken(tmp_path, monkeypatch):
    other = experiment("non-gaussian")
    cell = {"method": "wasserstein", "shift": 2.0}
    longer = replace(TINY, moving=replace(TINY.moving, steps=TINY.moving.steps + 1, codes=32))
    take_step = moving.take_step

    def dies(rule, z, valid, step, settings):
        if step == 5:
            raise Killed
        take_step(rule, z, valid, step, settings)

    for name, chosen, settings in (("of", other, TINY), ("at", EXPERIMENT, longer)):
        whole = run_experiment(chosen, settings, [cell], tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(moving, "take_step", dies)
            with pytest.raises(Killed):
                run_experiment(EXPERIMENT, TINY, [cell], tmp_path / f"{name}-cut", save_every=0)
        again = run_experiment(chosen, settings, [cell], tmp_path / f"{name}-cut")
        assert figures(again) == figures(whole)


def test_a_folder_with_other_settings_is_refused(tmp_path):
    cells = EXPERIMENT.cells(TINY)[:1]
    run_experiment(EXPERIMENT, TINY, cells, tmp_path)
    other = replace(TINY, moving=replace(TINY.moving, steps=13))
    with pytest.raises(ValueError, match="another moving"):
        run_experiment(EXPERIMENT, other, cells, tmp_path)
    with pytest.raises(ValueError, match="a run of gaussian-shift, not of bounds"):
        run_experiment(experiment("bounds"), experiment("bounds").quick, [], tmp_path)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match="not a file of this command"):
        run_experiment(EXPERIMENT, TINY, cells, tmp_path)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="state.safetensors' cannot be read"):
        run_experiment(EXPERIMENT, TINY, EXPERIMENT.cells(TINY)[:1], tmp_path)


def test_the_generator_of_the_caller_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_experiment(EXPERIMENT, TINY, EXPERIMENT.cells(TINY)[:1], tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "arguments,complaint",
    [
        (["nothing"], "NAME must be one of gaussian-shift, non-gaussian"),
        (["gaussian-shift", "--methods", "best"], "--methods: must be among vanilla, ema"),
        (["gaussian-shift", "--shifts", "9"], "--shifts: must be among 0, 1, 2"),
        (["bridge-cost", "--shifts", "1"], "--shifts: this experiment has none"),
        (["bounds", "--methods", "vq"], "--methods: this experiment has none"),
        (["bounds", "--threads", "0"], "--threads: expected at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, complaint):
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert main(["reproduce", "bridge-cost", "--out", str(tmp_path / "run")]) == 2
    assert "cannot write into" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_distinct_and_quick_is_smaller(name):
    chosen = experiment(name)
    for settings in (chosen.full, chosen.quick):
        cells = chosen.cells(settings)
        assert len({json.dumps(cell) for cell in cells}) == len(cells) > 0
    assert chosen.name == name and chosen.quick != chosen.full


def test_select_keeps_the_order():
    cells = EXPERIMENT.cells(TINY)
    chosen = select(select(cells, "shift", "--shifts", [2.0]), "method", "--methods", ["ema"])
    assert chosen == [{"method": "ema", "shift": 2.0}]
