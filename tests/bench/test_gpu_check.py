"""`make gpu-check`: ends in ten minutes whatever its steps do, and never calls a failure passed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    return module


@pytest.mark.parametrize("used", [0.1, 1.0])
def test_ten_minutes_are_enough_for_all_steps(gpu_check, monkeypatch, tmp_path, used):
    clock, limits = [0.0], {}

    def run(name, command, limit, needs):
        clock[0] += used * limit
        limits[name] = limit
        return {"step": name, "result": "timed out" if used == 1 else "passed"}

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: clock[0])
    assert gpu_check.main() == int(used == 1)
    assert clock[0] <= 600 and min(limits.values()) >= 50
    planned = [(step[0], step[2]) for step in gpu_check.steps(tmp_path)]
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [entry["step"] for entry in record["steps"]] == [name for name, _ in planned]
    assert used == 1 or limits == dict(planned)


def test_steps_that_fail_or_cannot_run_say_so(gpu_check):
    python = sys.executable
    assert gpu_check.run("a", [python, "-c", "pass"], 60, None)["result"] == "passed"
    assert gpu_check.run("b", [python, "-c", "raise SystemExit(3)"], 60, None)["exit"] == 3
    assert gpu_check.run("c", [python, "-c", "import time; time.sleep(60)"], 1, None)["result"] == (
        "timed out"
    )
    assert gpu_check.run("d", [], 60, "no-such-program")["result"] == "not run"


def test_without_a_gpu_nothing_runs(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 2
    assert "needs a GPU machine" in capsys.readouterr().err
