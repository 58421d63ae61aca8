"""Do the tests of the kernels bite? Changes one line of a kernel at a time, and runs them.

    python tests/mutants.py [--only NAME] [--jobs N] [--out FILE]

The working tree is copied and built in a temporary folder; each mutant of `mutant_list` is applied
there, what it changed is rebuilt, and its suite runs until the first test fails. A mutant that does
not build is a mistake in the list and counts as no mutant. Exit status 1 if fewer than 90 % of the
others are caught.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
# Seconds: a mutant may loop for ever. One that takes five times as long as its suite without it is
# caught.
LONGEST, SHORTEST_LIMIT, TIMES = 3600, 300, 5
LEAST_SHARE = 0.9
NOT_COPIED = (".git", ".venv", "build", "runs", "*.so", "*.egg-info", "__pycache__", ".*_cache")

# pytest's arguments, and whether Triton interprets. What tests gradients or the public function
# takes long and says nothing about the kernels.
SUITES: dict[str, tuple[list[str], bool]] = {
    "search": (
        [
            "tests/ops/test_nearest_code_cells.py",
            "tests/ops/test_nearest_code_repeats.py",
            "tests/ops/test_nearest_code_edges.py",
            "tests/ops/test_nearest_code.py",
            "tests/ops/test_nearest_code_metrics.py",
            "-k=not reference and not TestPublicFunction and not gradcheck",
        ],
        False,
    ),
    "amx": (["tests/ops/test_amx_in_software.py"], False),
    "rows": (["tests/ops/test_rows.py", "tests/ops/test_bits.py"], False),
    "sums": (["tests/ops/test_code_sums_edges.py", "tests/ops/test_code_sums.py"], False),
    "alignment": (
        [
            "tests/ops/test_squared_mmd.py",
            "tests/ops/test_gaussian_w2_kernels.py",
            "tests/ops/test_gaussian_w2.py",
        ],
        False,
    ),
    "triton": (
        [
            "tests/ops/test_triton_interpreted.py",
            "-k=not mmd and not code_sums and not w2 and not public",
        ],
        True,
    ),
    "triton-mmd": (["tests/ops/test_triton_interpreted.py", "-k=mmd or contract"], True),
    "hopper": (["tests/ops/test_hopper_in_software.py"], True),
    "triton-sums": (
        ["tests/ops/test_triton_interpreted.py", "-k=code_sums"],
        True,
    ),
    "triton-offsets": (
        ["tests/ops/test_triton_compiled.py", "-k=sm_90a-D33 and (rescore or scan)"],
        False,
    ),
}


@dataclass
class Outcome:
    state: str  # caught, survived, did not build
    how: str = ""
    seconds: float = 0.0


class Copy:
    """A copy of the working tree with a build of its own."""

    def __init__(self, folder: Path):
        self.root, self.build, self.built = folder / "tree", folder / "build", folder / "built"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self.build.mkdir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment.pop("TRITON_INTERPRET", None)
        import pybind11

        configure = [
            *("cmake", "-GNinja", "-S", self.root, "-B", self.build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.root / 'vqkern'}",
        ]
        done = self.run(configure)
        if done.returncode or not self.compile():
            sys.exit(f"the unmutated tree does not build\n{done.stdout}")
        shutil.copytree(self.build, self.built)

    def run(
        self, command: list, interpret: bool = False, limit: float = LONGEST
    ) -> subprocess.CompletedProcess:
        environment = {**self.environment, **({"TRITON_INTERPRET": "1"} if interpret else {})}
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
        )

    def compile(self) -> bool:
        return self.run(["ninja", "-C", self.build, "-j1"]).returncode == 0

    def test(self, suite: str, limit: float = LONGEST) -> Outcome:
        arguments, interpret = SUITES[suite]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rf", "-p", "no:cacheprovider"]
        try:
            done = self.run([*command, *arguments], interpret, limit)
        except subprocess.TimeoutExpired:
            return Outcome("caught", f"no end after {limit:.0f} s")
        if done.returncode == 0:
            return Outcome("survived")
        failed = re.search(r"^(?:FAILED|ERROR) tests/ops/([^\n]*?)(?: - .*)?$", done.stdout, re.M)
        if failed:
            return Outcome("caught", failed[1])
        # A crash: the fault handler's stack names the test.
        test = re.search(r"in (test_\w+)", done.stdout)
        if done.returncode < 0 and test:
            return Outcome("caught", f"{test[1]} (crash)")
        sys.exit(f"suite {suite}: pytest ended with {done.returncode}\n{done.stdout[-3000:]}")

    def time_suite(self, suite: str) -> float:
        """Seconds that a suite takes without a mutant; it must be green."""
        begin = time.monotonic()
        outcome = self.test(suite)
        if outcome.state != "survived":
            sys.exit(f"suite {suite} is red without a mutant: {outcome.how}")
        return time.monotonic() - begin

    def try_mutant(self, mutant: Mutant, limit: float) -> Outcome:
        begin = time.monotonic()
        file = self.root / mutant.file
        times, original = file.stat(), file.read_text()
        file.write_text(original.replace(mutant.text, mutant.replacement))
        native = mutant.file.startswith("csrc")
        try:
            if native and not self.compile():
                outcome = Outcome("did not build")
            else:
                outcome = self.test(mutant.suite, limit)
        finally:
            file.write_text(original)
            if native:
                # The objects of the unmutated tree, as old as it: nothing is built twice.
                os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
                shutil.rmtree(self.build)
                shutil.copytree(self.built, self.build)
        outcome.seconds = time.monotonic() - begin
        return outcome


def require_texts(mutants: Iterable[Mutant]) -> None:
    """The text of each mutant must occur exactly once."""
    for mutant in mutants:
        times = (ROOT / mutant.file).read_text().count(mutant.text)
        if times != 1:
            sys.exit(f"{mutant.name}: its text occurs {times} times in {mutant.file}")
        if mutant.suite not in SUITES:
            sys.exit(f"{mutant.name}: there is no suite {mutant.suite!r}")


def table(outcomes: dict[Mutant, Outcome]) -> str:
    width = max(len(mutant.name) for mutant in outcomes)
    lines = []
    for mutant, outcome in outcomes.items():
        where = mutant.file.rpartition("/")[2]
        lines.append(f"{mutant.name:{width}}  {outcome.state:13}  {where}: {mutant.breaks}")
        if outcome.how:
            lines.append(f"{'':{width}}  by {outcome.how}")
    states = [outcome.state for outcome in outcomes.values()]
    caught, valid = states.count("caught"), len(states) - states.count("did not build")
    lines.append(f"\n{caught} of {valid} mutants caught ({100 * caught / max(valid, 1):.0f} %)")
    if valid < len(states):
        lines[-1] += f"; {len(states) - valid} did not build"
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", help="mutants whose name holds NAME")
    parser.add_argument("--jobs", type=int, default=1, help="copies that work side by side")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if not arguments.only or arguments.only in m.name]
    if not mutants:
        sys.exit(f"no mutant's name holds {arguments.only!r}")
    require_texts(mutants)
    outcomes: dict[Mutant, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        numbers = range(arguments.jobs)
        copies: queue.Queue[Copy] = queue.Queue()
        for copy in pool.map(lambda i: Copy(Path(folder) / str(i)), numbers):
            copies.put(copy)

        def with_a_copy(work, *of):
            copy = copies.get()
            try:
                return work(copy, *of)
            finally:
                copies.put(copy)

        suites = sorted({mutant.suite for mutant in mutants})
        taken = pool.map(lambda s: with_a_copy(Copy.time_suite, s), suites)
        limits = {
            suite: max(SHORTEST_LIMIT, TIMES * seconds)
            for suite, seconds in zip(suites, taken, strict=True)
        }
        tried = pool.map(lambda m: with_a_copy(Copy.try_mutant, m, limits[m.suite]), mutants)
        for mutant, outcome in zip(mutants, tried, strict=True):
            outcomes[mutant] = outcome
            line = f"{mutant.name}: {outcome.state} {outcome.how} ({outcome.seconds:.0f} s)"
            print(line, file=sys.stderr, flush=True)
    text = table(outcomes)
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    states = [outcome.state for outcome in outcomes.values()]
    valid = len(states) - states.count("did not build")
    return 0 if valid and states.count("caught") >= LEAST_SHARE * valid else 1


if __name__ == "__main__":
    sys.exit(main())
