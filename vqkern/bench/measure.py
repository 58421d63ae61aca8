"""The comparison itself: every contestant is judged first, then all are timed in turns."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops import Certificate, certificates
from .cases import Case
from .contestants import Call, Contestant
from .memory import Memory, MemoryProbe
from .operations import OPERATIONS, Judge, Verdict

SAMPLE_SECONDS = 2e-3  # a sample of a faster call is the mean of several calls
MIN_ROUNDS = 3
MAX_ROUNDS = 201
# Idle threads of the previous contestant's pool spin for a while: nobody is timed beside them.
PAUSE_SECONDS = 0.01
LARGEST_ERROR = 1e-3  # a real output of ours that is further off than this is a defect
FLOOR = "a part of the op, not the op"
PEAK_SECONDS = 0.01  # the best of the few runs of multiply-adds that fit
MATMUL_SIZE = {"cpu": 1536, "cuda": 8192}
TORCH_MATMUL = "torch fp32 matmul rate"
HALF_MATMUL = "torch fp16 matmul rate"
NATIVE_PEAK = "native fp32 FMA peak"


@dataclass
class Result:
    """One contestant on one case. `status` is "ok", or "skipped" or "failed" with a reason.

    `package` is the peer's distribution and version; `certificate` says how this package's search
    decided its rows.
    """

    contestant: str
    ours: bool
    status: str = "ok"
    reason: str = ""
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    verdict: Verdict | None = None
    same_bits: bool | None = None
    package: str = ""
    certificate: Certificate | None = None
    memory: Memory = Memory(None, "not measured")

    def quartiles(self) -> tuple[float, float, float] | None:
        """Lower quartile, median and upper quartile of the seconds a call took."""
        if not self.seconds:
            return None
        if len(self.seconds) == 1:
            return (self.seconds[0],) * 3
        low, median, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, median, high

    def fail(self, error: Exception) -> None:
        """Records that the contestant raised; its timings, if any, are dropped."""
        self.status, self.seconds = "failed", []
        text = str(error).strip().splitlines()
        self.reason = f"{type(error).__name__}: {text[0] if text else 'no message'}"


@dataclass
class Comparison:
    """All results of one case. `yardsticks` are rates in GFLOP/s measured in the same run."""

    case: Case
    threads: int
    results: list[Result]
    yardsticks: dict[str, float]

    @property
    def ours(self) -> Result | None:
        """This package's own result, if it ran."""
        return next((r for r in self.results if r.ours and r.status == "ok"), None)

    def rate(self, result: Result) -> float | None:
        """The op's units a second, from the median."""
        quartiles = result.quartiles()
        return OPERATIONS[self.case.op].work(self.case) / quartiles[1] if quartiles else None

    def time_ratio(self, result: Result) -> float | None:
        """Median time relative to ours of the same run: 3.0 means three times as slow as ours."""
        if self.ours is None or not self.ours.seconds or not result.seconds:
            return None
        return result.quartiles()[1] / self.ours.quartiles()[1]

    def yardstick(self) -> tuple[str, float] | None:
        """The machine's peak: on CUDA the rate of an fp16 matrix product; on a CPU that of the
        native fp32 microbenchmark where there is one, else of an fp32 matrix product."""
        for name in (NATIVE_PEAK, HALF_MATMUL, TORCH_MATMUL):
            if name in self.yardsticks:
                return name, self.yardsticks[name]
        return None


def compare(
    case: Case,
    *,
    contestants: Iterable[Contestant] | None = None,
    seconds: float = 5.0,
    longest: float = math.inf,
    threads: int | None = None,
    probe: MemoryProbe | None = None,
) -> Comparison:
    """Judges and times all contestants of a case in this process.

    Args:
        case: the problem.
        contestants: who is compared; None for the op's own list on the case's device. At most one
            is `ours`.
        seconds: about how long all timed rounds may take together; at least 3 rounds are run.
        longest: seconds. A peer whose second call took longer takes no part in the rounds: that
            call is its only sample, and its note says so.
        threads: torch's thread count during the comparison, which the peers follow; None leaves it.
        probe: measures memory where given.

    Raises:
        ValueError: `seconds`, `longest` or `threads` is not positive, or two contestants have one
            name.

    Numerics:
        A contestant's first output is judged against exact float64, and its second is compared with
        the first bit by bit. A contestant that cannot run or raises is kept, with the reason; so is
        ours where it is wrong, and it is not timed then.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"compare: seconds must be positive and finite, got {seconds!r}")
    if not longest > 0:
        raise ValueError(f"compare: longest must be positive, got {longest!r}")
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise ValueError(f"compare: threads must be at least 1, got {threads!r}")
    operation = OPERATIONS[case.op]
    chosen = tuple(operation.contestants_on(case.device) if contestants is None else contestants)
    names = [c.name for c in chosen]
    for name in names:
        if names.count(name) > 1 or name in (TORCH_MATMUL, HALF_MATMUL, NATIVE_PEAK):
            raise ValueError(f"compare: contestants must have distinct names, got {name!r} twice")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return _compare(case, chosen, seconds, longest, probe)
    finally:
        torch.set_num_threads(before)


def _compare(
    case: Case,
    contestants: tuple[Contestant, ...],
    seconds: float,
    longest: float,
    probe: MemoryProbe | None,
) -> Comparison:
    operation = OPERATIONS[case.op]
    inputs = operation.make(case)
    judge = operation.judge(case, inputs)
    results = {c.name: Result(c.name, c.ours) for c in contestants}
    before_rounds: dict[str, float] = {}
    calls: dict[str, Call] = {}
    expected: dict[str, float] = {}
    for contestant in contestants:
        result = results[contestant.name]
        try:
            reason = unavailable(contestant, case)
            if reason is not None:
                result.status, result.reason = "skipped", reason
                continue
            result.note, result.package = contestant.note(case), contestant.package()
            call = contestant.prepare(case, *inputs)
            once = _judge_twice(call, judge, result, case.device)
        except Exception as error:
            result.fail(error)
            continue
        if contestant.ours:
            wrong = defect(result.verdict)
            wrong = wrong or (None if result.same_bits else "two calls differ in their bits")
            if wrong is not None:
                result.status, result.reason = "failed", f"{wrong}: not timed"
                continue
        if once > longest and not contestant.ours:
            before_rounds[contestant.name] = once
        else:
            calls[contestant.name], expected[contestant.name] = call, once
        del call
        if probe is not None:
            result.memory = probe.measure(contestant, case)

    if any(c.ours for c in contestants):
        for name, call in operation.floors(case, *inputs).items():
            results[name] = Result(name, False, note=FLOOR, verdict=Verdict(0, 0))
            call()
            # As often in a row as the op: in its warm caches a part alone is several times faster.
            of_op = [expected[c.name] for c in contestants if c.ours and c.name in expected]
            calls[name], expected[name] = call, max([_timed(call, 1, case.device), *of_op])

    flop = {}
    for name, dtype in _matmuls(case):
        matmul, flop[name] = _matmul(case, dtype)
        calls[name] = matmul
        matmul()
        expected[name] = _timed(matmul, 1, case.device)
    peaks: list[float] = []
    native_peak = _native_peak(case)
    if native_peak is not None:
        calls[NATIVE_PEAK] = lambda: peaks.append(native_peak())
        expected[NATIVE_PEAK] = PEAK_SECONDS
    timed, errors = interleave(calls, expected, seconds, case.device)
    for name, error in errors.items():
        if name in results:
            results[name].fail(error)
    yardsticks = {}
    for name, operations in flop.items():
        yardsticks[name] = operations / statistics.median(timed.pop(name)) / 1e9
    if native_peak is not None:
        del timed[NATIVE_PEAK]
        yardsticks[NATIVE_PEAK] = statistics.median(peaks)
    for name, samples in timed.items():
        results[name].seconds = samples
    for name, once in before_rounds.items():
        result = results[name]
        result.seconds = [once]
        alone = f"timed once, outside the rounds: a call takes longer than {longest:g} s"
        result.note = "; ".join(filter(None, (result.note, alone)))
    return Comparison(case, torch.get_num_threads(), list(results.values()), yardsticks)


def unavailable(contestant: Contestant, case: Case) -> str | None:
    """Why a contestant cannot run a case here, or None."""
    if not contestant.runs_on(case.device):
        return f"it runs on {' and '.join(contestant.devices)}, not on {case.device}"
    for module, remedy in contestant.needs:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed ({remedy})"
    return contestant.limit(case)


def _as_tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _bits(output: tuple[Tensor, ...]) -> list[Tensor]:
    """The bytes of every tensor: NaN equals itself here, and 0.0 is not -0.0."""
    return [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in output]


def _judge_twice(call: Call, judge: Judge, result: Result, device: str) -> float:
    """Fills in verdict, certificate and identity; returns the seconds of the second call, which is
    the first warm one."""
    with certificates() as certificate:
        outputs = [_as_tuple(call())]
    result.certificate = certificate if certificate.rows else None
    result.verdict = judge(outputs[0])
    once = _timed(lambda: outputs.append(_as_tuple(call())), 1, device)
    first, second = map(_bits, outputs)
    result.same_bits = len(first) == len(second) and all(map(torch.equal, first, second))
    return once


def defect(verdict: Verdict) -> str | None:
    """What is wrong with an output that promises to be exact, or None."""
    if verdict.wrong or verdict.not_lowest:
        return (
            f"{verdict.wrong} wrong and {verdict.not_lowest} ties not to the lowest index "
            f"of {verdict.checked} checked"
        )
    if verdict.error is not None and not verdict.error <= LARGEST_ERROR:
        return f"error {verdict.error:.1e} above {LARGEST_ERROR:.0e}"
    return None


def interleave(
    calls: dict[str, Call], expected: dict[str, float], seconds: float, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Times calls in turns, one sample a round: seconds a call by name, and errors by name.

    The order moves on by one every round and is reversed every other round, so that nobody keeps a
    place or a predecessor. A call that raises is timed no further. `expected` are the seconds of a
    warm call, from which follows the number of rounds that fit into `seconds`, 3 at least.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, Exception] = {}
    repeats = {
        name: max(1, min(1000, math.ceil(SAMPLE_SECONDS / max(expected[name], 1e-9))))
        for name in names
    }
    a_round = sum(expected[name] * repeats[name] + PAUSE_SECONDS for name in names)
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / max(a_round, 1e-9))))
    for turn in range(rounds):
        at = turn % max(1, len(names))
        order = names[at:] + names[:at]
        for name in order if turn % 2 == 0 else reversed(order):
            if name in errors:
                continue
            time.sleep(PAUSE_SECONDS)
            try:
                samples[name].append(_timed(calls[name], repeats[name], device))
            except Exception as error:
                errors[name] = error
    return {name: taken for name, taken in samples.items() if name not in errors}, errors


def _timed(call: Call, repeats: int, device: str) -> float:
    """Seconds a call, from the clock of the host, with the device idle before and after."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if cuda:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _matmuls(case: Case) -> list[tuple[str, torch.dtype]]:
    """The matrix products that take part as yardsticks."""
    cuda = torch.device(case.device).type == "cuda"
    half = [(HALF_MATMUL, torch.float16)] if cuda else []
    return [(TORCH_MATMUL, torch.float32), *half]


def _matmul(case: Case, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    size = MATMUL_SIZE[torch.device(case.device).type]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(case.device, dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def _native_peak(case: Case) -> Callable[[], float] | None:
    """What measures the GFLOP/s of multiply-adds alone, where the native module has such a loop."""
    from .. import backend as backends

    module = backends.native()
    if torch.device(case.device).type != "cpu" or not hasattr(module, "fma_peak"):
        return None
    return lambda: module.fma_peak(torch.get_num_threads(), PEAK_SECONDS)
