"""Everything a GPU machine must show, by one command: build, tests, races, sanitizer, benchmarks.

Uses the Python it is started with, needs no network, and writes benchmarks/results/gpu_check.json
with what each step did beside the CSV files of the comparison, and what racecheck found to
racecheck.txt. Each step has a limit, and leaves those after it a minute each, so that the whole
ends in ten minutes whatever happens; a step that could not run is reported as such, never as
passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS, LEAST_SECONDS = 590, 60
SANITIZED = (
    "small_lattice"  # the tests small enough for a sanitizer that slows kernels a hundredfold
)


def steps(out: Path) -> list[tuple[str, list[str], int, str | None]]:
    """Name, command, seconds allowed, and the program it cannot do without."""
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    files = ["tests/ops/test_gpu.py", "tests/ops/test_gpu_hopper.py"]
    # Most of the time goes into compiling one kernel after another.
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"]
    compare = [python, "benchmarks/compare.py", "--device", "cuda", "--out", str(out)]
    check = [*tests, files[0], "-k", SANITIZED]
    hazards = ["--racecheck-report", "all", "--log-file", str(out / "racecheck.txt")]
    return [
        ("build", [python, "setup.py", "build_ext", "--inplace"], 100, None),
        ("tests and 250 race repeats", [*tests, *workers, *files], 150, None),
        ("shapes of record", [python, "benchmarks/gpu_shapes.py", "--out", str(out)], 90, None),
        ("memcheck", [*sanitizer, "--tool", "memcheck", *check], 60, sanitizer[0]),
        ("racecheck", [*sanitizer, "--tool", "racecheck", *hazards, *check], 60, sanitizer[0]),
        ("squared_mmd benchmark", [*compare, "--op", "squared_mmd", "--seconds", "1"], 120, None),
        ("nearest_code benchmark", [*compare, "--op", "nearest_code", "--seconds", "1"], 300, None),
    ]


def run(name: str, command: list[str], limit: int, needs: str | None) -> dict:
    """Runs one step and says what became of it: passed, failed, timed out or not run."""
    if needs is not None and shutil.which(needs) is None:
        return {"step": name, "result": "not run", "why": f"{needs} is not installed"}
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=limit, env=environment).returncode
        result = "passed" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        code, result = None, "timed out"
    seconds = round(time.perf_counter() - start, 1)
    return {"step": name, "result": result, "exit": code, "seconds": seconds}


def main() -> int:
    """0 if every step that could run passed and at least the build, tests and benchmarks ran."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    out = parser.parse_args().out.resolve()
    import torch

    if not torch.cuda.is_available():
        print(
            "gpu_check: torch sees no CUDA device here; this needs a GPU machine", file=sys.stderr
        )
        return 2
    out.mkdir(parents=True, exist_ok=True)
    done, end = [], time.monotonic() + SECONDS
    planned = steps(out)
    for place, (name, command, limit, needs) in enumerate(planned, 1):
        left = int(end - time.monotonic()) - LEAST_SECONDS * (len(planned) - place)
        done.append(run(name, command, max(1, min(limit, left)), needs))
        record = {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "steps": done,
        }
        (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
    print()
    for entry in done:
        print(f"{entry['result']:<10} {entry['step']} {entry.get('why', '')}".rstrip())
    return int(any(entry["result"] in ("failed", "timed out") for entry in done))


if __name__ == "__main__":
    sys.exit(main())
