"""Per op: its inputs, how much work it is, and how an output is judged against exact float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case
from .contestants import (
    CODE_SUMS,
    GAUSSIAN_W2,
    LAYER_STEP,
    LAYER_STEP_EMA,
    NEAREST_CODE,
    SQUARED_MMD,
    Call,
    Contestant,
    gaussian_w2_floors,
)
from .contestants.layer_step import COMMITMENT, DECAY, learning_rate

# Rows judged: enough scores for a small codebook, few enough float64 scores for a large one.
CHECK_ROWS = 512
CHECK_WORK = 1 << 34  # rows x K x D


@dataclass(frozen=True)
class Verdict:
    """How right an output is.

    Attributes:
        checked: rows (nearest_code) or codes (code_sums) looked at; 0 for an op without a count.
        wrong: of these, how many are wrong: a code that is not the nearest in real arithmetic, or a
            wrong count.
        not_lowest: of these, how many took a code that ties with the nearest but is not the lowest
            index. They are not among `wrong`.
        error: largest error relative to the largest value, or None where there are indices only.
    """

    checked: int
    wrong: int
    not_lowest: int = 0
    error: float | None = None

    @property
    def wrong_rate(self) -> float | None:
        """wrong / checked."""
        return self.wrong / self.checked if self.checked else None


Judge = Callable[[tuple[Tensor, ...]], Verdict]


@dataclass(frozen=True)
class Operation:
    """One op as the comparison sees it.

    Attributes:
        name: the public function, or what is done with several.
        unit: of `work` per second.
        work: units in one call, the same for every contestant.
        make: inputs of a case.
        judge: (case, inputs) -> the function that judges an output.
        contestants: who is compared by default, on any device.
        counted: what a verdict counts as right or wrong, or "" if it has an error only.
        floors: (case, *inputs) -> parts that no contestant can do without, by name, which are timed
            in the same rounds.
    """

    name: str
    unit: str
    work: Callable[[Case], float]
    make: Callable[[Case], tuple[Tensor, ...]]
    judge: Callable[[Case, tuple[Tensor, ...]], Judge]
    contestants: tuple[Contestant, ...]
    counted: str = ""
    floors: Callable[..., dict[str, Call]] = lambda case, *inputs: {}

    def contestants_on(self, device: str) -> tuple[Contestant, ...]:
        """Those that run on a device."""
        return tuple(c for c in self.contestants if c.runs_on(device))


def judge_nearest(case: Case, inputs: tuple[Tensor, ...]) -> Judge:
    """Judges indices [N] on a seeded sample of rows; a tie in real arithmetic is not wrong."""
    from .. import nearest_code
    from ..ops.exact import compare_distances

    z, codes = inputs
    size = min(case.n, CHECK_ROWS, max(64, CHECK_WORK // (case.k * case.d)))
    generator = torch.Generator().manual_seed(case.seed + 1)
    rows = torch.randperm(case.n, generator=generator)[:size].sort().values.to(z.device)
    z64, codes64 = z[rows].double(), codes.double()
    exact = nearest_code(z64, codes64, backend="torch").index

    def judge(output: tuple[Tensor, ...]) -> Verdict:
        index = output[0]
        if tuple(index.shape) != (case.n,) or index.is_floating_point():
            raise ValueError(
                f"index must be an integer tensor [{case.n}], "
                f"got {list(index.shape)} of {index.dtype}"
            )
        index = index[rows].to(torch.int64)
        valid = (index >= 0) & (index < case.k)
        other = (valid & (index != exact)).nonzero().squeeze(-1)
        sign = compare_distances(z64[other], codes64[index[other]], codes64[exact[other]])
        if bool((sign < 0).any()):
            raise ArithmeticError("the exact float64 reference was beaten: it has a defect")
        wrong = int((~valid).sum()) + int((sign > 0).sum())
        return Verdict(size, wrong, int((sign == 0).sum()))

    return judge


def _sums_inputs(case: Case) -> tuple[Tensor, Tensor]:
    z, _ = case.vectors_and_codes()
    generator = torch.Generator().manual_seed(case.seed + 1)
    return z, torch.randint(case.k, (case.n,), generator=generator).to(case.device)


def judge_sums(case: Case, inputs: tuple[Tensor, ...]) -> Judge:
    """Judges counts exactly and totals by their largest error relative to the largest total."""
    from .. import code_sums

    z, index = inputs
    exact = code_sums(z.double(), index, case.k, backend="torch")

    def judge(output: tuple[Tensor, ...]) -> Verdict:
        count, total = output
        wrong = int((count.to(torch.int64) != exact.count).sum())
        return Verdict(case.k, wrong, error=_relative_error(total, exact.total))

    return judge


def _mmd_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    from ..ops.squared_mmd.api import DEFAULT_MULTIPLES, mean_bandwidth

    x, y = case.vectors_and_codes()
    multiples = torch.tensor(DEFAULT_MULTIPLES, dtype=torch.float64, device=x.device)
    return x, y, mean_bandwidth(x, y) * multiples


def judge_mmd(case: Case, inputs: tuple[Tensor, ...]) -> Judge:
    """Judges the codes' gradient, and the value relative to the terms that cancel in it."""
    from .. import squared_mmd

    x, y, bandwidths = inputs
    with torch.enable_grad():
        leaf = y.double().requires_grad_()
        value = squared_mmd(x.double(), leaf, bandwidths, backend="torch")
        (gradient,) = torch.autograd.grad(value, leaf)

    def judge(output: tuple[Tensor, ...]) -> Verdict:
        # The mean kernels that cancel are at most 1 a bandwidth.
        value_error = float((output[0].double() - value.detach()).abs()) / len(bandwidths)
        return Verdict(0, 0, error=max(value_error, _relative_error(output[1], gradient)))

    return judge


def judge_w2(case: Case, inputs: tuple[Tensor, ...]) -> Judge:
    """Judges value and codes' gradient against numpy in float64, by another way than ours.

    tr (S1 S2)^{1/2} is the nuclear norm of L1^T L2 for S = L L^T, found by singular values, and T
    solves L1 U V^T = T L2, with no square root of a matrix and no eigenvalue of a product.
    """
    import numpy as np

    x, y = (points.double().cpu().numpy() for points in inputs)
    apart, centred = y.mean(0) - x.mean(0), y - y.mean(0)
    # A QR factor of the points keeps digits that the covariance has squared away.
    left, right = (np.linalg.qr((p - p.mean(0)) / np.sqrt(len(p) - 1), mode="r").T for p in (x, y))
    u, singular, vt = np.linalg.svd(left.T @ right, full_matrices=False)
    value = apart @ apart + (left**2).sum() + (right**2).sum() - 2 * singular.sum()
    t = left @ u @ vt @ np.linalg.pinv(right)
    gradient = 2 / case.k * apart + 2 / (case.k - 1) * (centred - centred @ t.T)
    exact = torch.from_numpy(gradient)

    def judge(output: tuple[Tensor, ...]) -> Verdict:
        value_error = abs(float(output[0]) - value) / value
        return Verdict(0, 0, error=max(value_error, _relative_error(output[1].cpu(), exact)))

    return judge


def _step_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    z, codes = case.vectors_and_codes()
    generator = torch.Generator().manual_seed(case.seed + 1)
    # As large as the gradient of the loss, whose means divide by N D: neither hides the other.
    cotangent = torch.randn(case.n, case.d, generator=generator) / (case.n * case.d)
    return z, codes, cotangent.to(z)


def judge_gradient_step(case: Case, inputs: tuple[Tensor, ...]) -> Judge:
    """Judges a `layer_step` (see contestants/layer_step.py for the formulas)."""

    def moved(codes: Tensor, count: Tensor, total: Tensor) -> Tensor:
        rate = 2 * learning_rate(case) / (case.n * case.d)
        return codes - rate * (count[:, None] * codes - total)

    return _judge_step(case, inputs, commitment=1.0, moved=moved)


def judge_ema_step(case: Case, inputs: tuple[Tensor, ...]) -> Judge:
    """Judges a `layer_step_ema`."""

    def moved(codes: Tensor, count: Tensor, total: Tensor) -> Tensor:
        mass = DECAY + (1 - DECAY) * count[:, None]
        average = (DECAY * codes + (1 - DECAY) * total) / mass
        return torch.where(count[:, None] > 0, average, codes)

    return _judge_step(case, inputs, commitment=COMMITMENT, moved=moved)


def _judge_step(
    case: Case,
    inputs: tuple[Tensor, ...],
    *,
    commitment: float,
    moved: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Judge:
    """The indices are judged as those of nearest_code, the rest by the step in float64 that follows
    from these indices: the codes relative to how far they move, the gradient of z to its size."""
    z, codes, cotangent = inputs
    judge_index = judge_nearest(case, (z, codes))

    def judge(output: tuple[Tensor, ...]) -> Verdict:
        index, after, z_grad = output
        verdict = judge_index((index,))
        z64, codes64 = z.double(), codes.double()
        count = torch.bincount(index, minlength=case.k).double()
        total = torch.zeros_like(codes64).index_add_(0, index, z64)
        exact = moved(codes64, count, total)
        largest = (exact - codes64).abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
        code_error = float((after.double() - exact).abs().amax() / largest)
        pull = 2 * commitment / (case.n * case.d) * (z64 - codes64[index])
        grad_error = _relative_error(z_grad, cotangent.double() + pull)
        return dataclasses.replace(verdict, error=max(code_error, grad_error))

    return judge


def _relative_error(got: Tensor, exact: Tensor) -> float:
    largest = exact.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    return float((got.double() - exact).abs().amax() / largest)


def _search_work(case: Case) -> float:
    return 2 * case.n * case.k * case.d / 1e9


def _distinct_pairs(case: Case) -> float:
    n, k = case.n, case.k
    return (n * (n + 1) / 2 + k * (k + 1) / 2 + n * k) / 1e9


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "nearest_code",
            "GFLOP/s",
            _search_work,
            Case.vectors_and_codes,
            judge_nearest,
            NEAREST_CODE,
            counted="argmin",
        ),
        Operation(
            "code_sums",
            "Gvalue/s",
            lambda case: case.n * case.d / 1e9,
            _sums_inputs,
            judge_sums,
            CODE_SUMS,
            counted="count",
        ),
        Operation("squared_mmd", "Gpair/s", _distinct_pairs, _mmd_inputs, judge_mmd, SQUARED_MMD),
        Operation(
            "gaussian_w2",
            "Gvalue/s",
            lambda case: (case.n + case.k) * case.d / 1e9,
            Case.vectors_and_codes,
            judge_w2,
            GAUSSIAN_W2,
            floors=gaussian_w2_floors,
        ),
        Operation(
            "layer_step",
            "GFLOP/s",
            _search_work,
            _step_inputs,
            judge_gradient_step,
            LAYER_STEP,
            counted="argmin",
        ),
        Operation(
            "layer_step_ema",
            "GFLOP/s",
            _search_work,
            _step_inputs,
            judge_ema_step,
            LAYER_STEP_EMA,
            counted="argmin",
        ),
    )
}
