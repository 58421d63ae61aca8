"""What a comparison looks like: a table for people, rows of a CSV or JSON file for the rest."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from ..machine import cpu_name
from ..terminal import aligned
from .cases import Case
from .measure import Comparison, Result
from .operations import OPERATIONS

# How a certified search decided its rows.
COUNTS = ("certified", "candidates", "scanned", "invalid")
# One row a contestant and case. Times are milliseconds a call; None is written as an empty field.
COLUMNS = (
    "op,contestant,data,n,k,d,dtype,seed,device,hardware,threads,status,reason,note,rounds,"
    "median_ms,lower_quartile_ms,upper_quartile_ms,throughput,unit,time_vs_ours,"
    "yardstick,yardstick_gflops,fraction_of_yardstick,checked,wrong,wrong_rate,not_lowest,error,"
    "same_bits,certified,candidates,scanned,invalid,extra_bytes,memory_method,package,"
    "vqkern,backend,torch,python,system,commit,utc"
).split(",")


def hardware(device: str = "cpu") -> str:
    """The processor's name as its driver or kernel gives it, and the number of CPU cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores"


def environment(case: Case, commit: str = "unknown") -> dict[str, str]:
    """Hardware and versions: the columns that say where and with what a figure was measured."""
    from .. import __version__, backend
    from .contestants import resolved_backend

    name = resolved_backend(case)
    state = backend.status(case.device)[name]
    detail = f" ({state.reason})" if name == "cpp" and state.reason else ""
    return {
        "hardware": hardware(case.device),
        "vqkern": __version__,
        "backend": f"{name}{detail}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit,
        "utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def rows(comparison: Comparison, commit: str = "unknown") -> list[dict[str, object]]:
    """One dictionary with the keys `COLUMNS` per contestant."""
    case = comparison.case
    shared: dict[str, object] = dict.fromkeys(COLUMNS)
    shared.update({key: getattr(case, key) for key in _CASE_COLUMNS})
    shared.update(environment(case, commit), threads=comparison.threads)
    return [{**shared, **_measured(comparison, result)} for result in comparison.results]


_CASE_COLUMNS = ("op", "data", "n", "k", "d", "dtype", "seed", "device")


def _measured(comparison: Comparison, result: Result) -> dict[str, object]:
    low, median, high = result.quartiles() or (None, None, None)
    verdict = result.verdict
    unit = OPERATIONS[comparison.case.op].unit
    rate = comparison.rate(result)
    yardstick = comparison.yardstick() if unit == "GFLOP/s" else None
    return {
        "contestant": result.contestant,
        "status": result.status,
        "reason": result.reason,
        "note": result.note,
        "rounds": len(result.seconds),
        "median_ms": median and 1e3 * median,
        "lower_quartile_ms": low and 1e3 * low,
        "upper_quartile_ms": high and 1e3 * high,
        "throughput": rate,
        "unit": unit,
        "time_vs_ours": comparison.time_ratio(result),
        "yardstick": yardstick and yardstick[0],
        "yardstick_gflops": yardstick and yardstick[1],
        "fraction_of_yardstick": rate and yardstick and rate / yardstick[1],
        "checked": verdict and verdict.checked,
        "wrong": verdict and verdict.wrong,
        "wrong_rate": verdict and verdict.wrong_rate,
        "not_lowest": verdict and verdict.not_lowest,
        "error": verdict and verdict.error,
        "same_bits": result.same_bits,
        **{name: getattr(result.certificate, name, None) for name in COUNTS},
        "package": result.package,
        "extra_bytes": result.memory.extra_bytes,
        "memory_method": result.memory.method,
    }


def write_csv(path: str | Path, measured: Iterable[dict[str, object]]) -> None:
    """Writes rows under the header `COLUMNS`; figures keep six significant digits."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in measured:
            writer.writerow({key: _field(row[key]) for key in COLUMNS})


def _field(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def write_json(
    path: str | Path, comparisons: Iterable[Comparison], commit: str = "unknown"
) -> None:
    """Writes the same rows with every sample: [{columns..., "seconds": [...]}, ...]."""
    everything = [
        {**row, "seconds": result.seconds}
        for comparison in comparisons
        for row, result in zip(rows(comparison, commit), comparison.results, strict=True)
    ]
    Path(path).write_text(json.dumps(everything, indent=1) + "\n")


def table(comparison: Comparison) -> str:
    """The comparison as aligned text: hardware, case, one line a contestant, then the remarks."""
    case, unit = comparison.case, OPERATIONS[comparison.case.op].unit
    where = environment(case)
    head = [
        f"{where['hardware']}; {comparison.threads} threads; torch {where['torch']}; "
        f"vqkern {where['vqkern']}, backend {where['backend']}",
        case.label(),
    ]
    scale = comparison.yardstick() if unit == "GFLOP/s" else None
    rounds = max((len(r.seconds) for r in comparison.results), default=0)
    rates = "; ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in comparison.yardsticks.items())
    head.append(f"medians [quartiles] of {rounds} interleaved rounds; {rates}")
    titles = ["contestant", "median ms", "quartiles", unit]
    titles += ["of peak"] if scale else []
    titles += ["time vs ours"]
    timed = [r for r in comparison.results if r.status == "ok"]
    counted = OPERATIONS[case.op].counted
    errors = any(r.verdict.error is not None for r in timed)
    titles += [f"wrong {counted}"] if counted else []
    titles += ["max rel. error"] if errors else []
    titles += ["same bits", "extra MiB"]
    body = [_line(comparison, r, scale, bool(counted), errors) for r in timed]
    return "\n".join([*head, "", *aligned([titles, *body]), *_remarks(comparison, scale)])


def _line(
    comparison: Comparison,
    result: Result,
    scale: tuple[str, float] | None,
    counted: bool,
    errors: bool,
) -> list[str]:
    low, median, high = (1e3 * t for t in result.quartiles())
    rate, ratio = comparison.rate(result), comparison.time_ratio(result)
    verdict, memory = result.verdict, result.memory.extra_bytes
    wrong = f"{verdict.wrong}/{verdict.checked}"
    wrong += f" ({verdict.wrong_rate:.1%})" if verdict.wrong else ""
    return [
        result.contestant,
        f"{median:.4g}",
        f"[{low:.4g}, {high:.4g}]",
        f"{rate:.4g}",
        *([f"{rate / scale[1]:.0%}"] if scale else []),
        f"{ratio:.2f}x" if ratio is not None else "-",
        *([wrong] if counted else []),
        *(["-" if verdict.error is None else f"{verdict.error:.1e}"] if errors else []),
        {True: "yes", False: "NO", None: "-"}[result.same_bits],
        f"{memory / 2**20:.1f}" if memory is not None else "-",
    ]


def _remarks(comparison: Comparison, scale: tuple[str, float] | None) -> list[str]:
    remarks = []
    for result in comparison.results:
        if result.status != "ok":
            remarks.append(f"{result.contestant}: {result.status}: {result.reason}")
            continue
        parts = [result.note] if result.note else []
        if result.verdict.not_lowest:
            parts.append(
                f"{result.verdict.not_lowest}/{result.verdict.checked} exact ties not to the "
                "lowest index (not counted as wrong)"
            )
        if result.certificate is not None:
            counted = (f"{getattr(result.certificate, name)} {name}" for name in COUNTS)
            parts.append(", ".join(counted))
        if result.memory.extra_bytes is None and result.memory.method != "not measured":
            parts.append(f"memory {result.memory.method}")
        if parts:
            remarks.append(f"{result.contestant}: {'; '.join(parts)}")
    methods = {r.memory.method for r in comparison.results if r.memory.extra_bytes is not None}
    remarks += [f"extra memory: {method}" for method in sorted(methods)]
    if scale is not None:
        remarks.append(f"of peak: throughput relative to the {scale[0]}")
    return ["", *remarks] if remarks else []
