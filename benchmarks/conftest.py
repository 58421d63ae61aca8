"""What the pytest-benchmark suites share: judging, measuring and timing one contestant."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vqkern import certificates
from vqkern.bench import Case, Contestant, MemoryProbe, environment
from vqkern.bench.measure import defect, unavailable
from vqkern.bench.operations import OPERATIONS

sys.path.insert(0, str(Path(__file__).parent))

ROUNDS = 5


def pytest_configure(config: pytest.Config) -> None:
    """`pytest benchmarks` collects the suites, which are not named test_*.py."""
    config.addinivalue_line("python_files", "bench_*.py")


@pytest.fixture(scope="session")
def probe() -> Iterator[MemoryProbe]:
    with MemoryProbe() as started:
        yield started


@pytest.fixture
def run(benchmark, probe: MemoryProbe):
    """run(case, contestant): times warm calls and fills in extra_info; skips with the reason."""

    def measured(case: Case, contestant: Contestant) -> None:
        reason = unavailable(contestant, case)
        if reason is not None:
            pytest.skip(f"{contestant.name}: {reason}")
        operation = OPERATIONS[case.op]
        with torch.no_grad():
            inputs = operation.make(case)
            call = contestant.prepare(case, *inputs)
            with certificates() as certificate:
                output = call()
            verdict = operation.judge(case, inputs)(
                output if isinstance(output, tuple) else (output,)
            )
            if contestant.ours:
                assert defect(verdict) is None
            memory = probe.measure(contestant, case)
            benchmark.group = case.label()
            benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=1)
        benchmark.extra_info.update(environment(case))
        benchmark.extra_info.update(
            contestant=contestant.name,
            package=contestant.package(),
            certificate=dataclasses.asdict(certificate),
            threads=torch.get_num_threads(),
            wrong_rate=verdict.wrong_rate,
            checked=verdict.checked,
            not_lowest=verdict.not_lowest,
            error=verdict.error,
            extra_bytes=memory.extra_bytes,
            memory_method=memory.method,
        )
        if benchmark.stats is not None:  # None under --benchmark-disable
            rate = operation.work(case) / benchmark.stats.stats.median
            benchmark.extra_info.update({"throughput": rate, "unit": operation.unit})

    return measured
