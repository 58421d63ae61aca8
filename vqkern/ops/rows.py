"""What a layer does with rows beside its kernels: in C++ one pass over memory each.

Every function works on any device in plain PyTorch; float32 rows and int64 indices on the CPU go to
csrc/cpu/rows.cpp. They are called inside operators and know nothing of autograd. What C++ writes to
is made by an input's `new_empty`: torch's own default type and device are the user's to set.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .. import backend as backends


def runs_natively(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether C++ takes these tensors, which it reads as being of `dtype`."""
    built = not isinstance(backends.native(), ImportError)
    return built and all(t.device.type == "cpu" and t.dtype == dtype for t in tensors)


def require_in_range(op: str, index: Tensor, num_codes: int) -> None:
    """Every index must be a code's or -1; names the first that is not and where it stands."""
    if runs_natively(index, dtype=torch.int64):
        flat = index.contiguous()
        place = backends.native().first_outside(flat.data_ptr(), flat.numel(), -1, num_codes - 1)
        if place < 0:
            return
    else:
        wrong = (index < -1) | (index > num_codes - 1)
        if not bool(wrong.any()):
            return
        place = int(wrong.flatten().nonzero()[0])
    position = [int(i) for i in torch.unravel_index(index.new_tensor(place), index.shape)]
    raise IndexError(
        f"{op}: index{position} is {int(index[tuple(position)])}; "
        f"it must be in [0, {num_codes}), or -1 for no code"
    )


def take_rows(codes: Tensor, index: Tensor) -> Tensor:
    """codes [K, D] at index [N], rows of NaN where it is -1; indices in range."""
    if not (runs_natively(codes) and runs_natively(index, dtype=torch.int64)):
        rows = codes[index.clamp_min(0)]
        return rows.masked_fill_((index < 0)[:, None], torch.nan)
    codes, index = codes.contiguous(), index.contiguous()
    out = codes.new_empty(len(index), codes.shape[1])
    backends.native().take_rows(
        codes.data_ptr(), index.data_ptr(), *out.shape, out.data_ptr(), torch.get_num_threads()
    )
    return out


def join_digits(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """sum_m (n_1 ... n_{m-1}) digits[..., m], int64 [...]; -1 where a digit is negative."""
    # A digit that is always 0 may have a base beyond int64.
    bases = [prod(sizes[:m]) if size > 1 else 0 for m, size in enumerate(sizes)]
    if not runs_natively(digits, dtype=torch.int64):
        joint = torch.zeros_like(digits[..., 0])
        for m, base in enumerate(bases):
            joint = joint + digits[..., m] * base
        return torch.where((digits < 0).any(-1), -1, joint)
    digits, factors = digits.contiguous(), digits.new_tensor(bases)
    joint = digits.new_empty(digits.shape[:-1])
    backends.native().join_digits(
        digits.data_ptr(), factors.data_ptr(), joint.numel(), len(bases), joint.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return joint


def split_digits(joint: Tensor, sizes: Sequence[int]) -> Tensor:
    """The digits, int64 [..., M], of joint indices [...] in range; -1 throughout for -1."""
    if not runs_natively(joint, dtype=torch.int64) or max(sizes) >= 2**63:
        digits = joint.new_empty(*joint.shape, len(sizes))
        rest = joint.clamp_min(0)
        for m, size in enumerate(sizes):
            digits[..., m] = rest % size
            rest = rest // size
        return digits.masked_fill_((joint < 0)[..., None], -1)
    joint, factors = joint.contiguous(), joint.new_tensor(list(sizes))
    digits = joint.new_empty(*joint.shape, len(sizes))
    backends.native().split_digits(
        joint.data_ptr(), factors.data_ptr(), joint.numel(), len(sizes), digits.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return digits


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rows [N, D] over their norms, and two factors [N, 1] of the norm, 1 where it is 0 or NaN.

    A zero row stays zero, one that is not finite becomes NaN.
    """
    if not runs_natively(rows):
        largest = rows.abs().amax(-1, keepdim=True)
        regular = largest.isfinite() & (largest > 0)
        largest = torch.where(regular, largest, 1)
        # The scale drops out of the result; squares of what is left neither overflow nor vanish.
        unit = rows / largest
        norm = torch.where(regular, torch.linalg.vector_norm(unit, dim=-1, keepdim=True), 1)
        unit /= norm
        irregular = torch.where((rows == 0).all(-1, keepdim=True), 0.0, torch.nan).to(rows.dtype)
        return torch.where(regular, unit, irregular), largest, norm
    rows = rows.contiguous()
    unit = torch.empty_like(rows)
    largest, norm = rows.new_empty(len(rows), 1), rows.new_empty(len(rows), 1)
    backends.native().unit_rows(
        rows.data_ptr(), *rows.shape, unit.data_ptr(), largest.data_ptr(), norm.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return unit, largest, norm


def unit_rows_slope(grad: Tensor, unit: Tensor, largest: Tensor, norm: Tensor) -> Tensor:
    """The gradient [N, D] of `unit_rows`; 0 in rows without a direction."""
    if not runs_natively(grad, unit):
        along = (grad * unit).sum(-1, keepdim=True)
        slope = torch.addcmul(grad, unit, along, value=-1)
        slope /= norm
        slope /= largest
        # Zero rows and NaN rows have no direction, whatever comes in.
        return torch.where(unit.abs().amax(-1, keepdim=True) > 0, slope, 0)
    grad, slope = grad.contiguous(), torch.empty_like(unit)
    backends.native().unit_rows_slope(
        grad.data_ptr(), unit.data_ptr(), largest.data_ptr(), norm.data_ptr(), *unit.shape,
        slope.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return slope


def ema_step(
    count: Tensor, total: Tensor, weight: float, counts: Tensor, totals: Tensor, codes: Tensor
) -> None:
    """One step of exponential moving averages in place: counts [K] and totals [K, D] by `weight`
    towards count and total, and the codes [K, D] with a count to their ratio.

    A total that is not finite, a sum that overflowed, counts as none; a ratio that is not finite
    moves no code.
    """
    tensors = count, total, counts, totals, codes
    (k, d), shapes = codes.shape, [list(t.shape) for t in tensors]
    if shapes != [[k], [k, d], [k], [k, d], [k, d]]:
        raise ValueError(
            "ema_step: count [K], total [K, D], their averages and codes [K, D] must be of the "
            f"same codes, got {shapes}; a table of another size needs an update rule of its own"
        )
    if not (runs_natively(*tensors) and all(t.is_contiguous() for t in tensors)):
        usable = total.isfinite().all(-1)
        count = torch.where(usable, count, 0)
        counts.lerp_(count, weight)
        totals.lerp_(torch.where(usable[:, None], total, 0), weight)
        rows = totals / counts.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        rows = rows.to(codes.dtype)
        moved = (count > 0) & rows.isfinite().all(-1)
        codes.copy_(torch.where(moved[:, None], rows, codes))
        return
    backends.native().ema_step(
        count.data_ptr(), total.data_ptr(), weight, *codes.shape, counts.data_ptr(),
        totals.data_ptr(), codes.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def squared_difference(
    a: Tensor, b: Tensor, valid: Tensor, through: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of (a - b)^2 over the rows [N, D] that are `valid` [N], and their number.

    a + (b - a), the value of a straight-through estimate, is written to `through` if that is given.
    """
    _require_pairs(a, b, valid)
    if not runs_natively(a, b):
        if through is not None:
            torch.add(a, b - a, out=through)
        # where() before the square: NaN in a row that is left out must not reach the sum.
        return torch.where(valid[:, None], a - b, 0).square().sum(), valid.sum()
    a, b, valid = *_with_rows_apart(a, b), valid.contiguous()
    total, count = backends.native().squared_difference(
        a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0), valid.data_ptr(), *a.shape,
        0 if through is None else through.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return a.new_tensor(total), valid.new_tensor(count, dtype=torch.int64)


def pull_slopes(
    a: Tensor,
    b: Tensor,
    valid: Tensor,
    factors: tuple[Tensor | None, Tensor | None],
    passing: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """factors[0] (a - b) where `valid`, plus `passing` everywhere, and factors[1] (b - a) likewise.

    Rows [N, D], factors without dimensions; for a factor of None, an empty tensor.
    """
    _require_pairs(a, b, valid)
    shapes = [a.shape if factor is not None else (0,) for factor in factors]
    if not runs_natively(a, b, *([] if passing is None else [passing])):
        difference = torch.where(valid[:, None], a - b, 0)
        a_slope, b_slope = a.new_empty(shapes[0]), a.new_empty(shapes[1])
        if factors[0] is not None:
            torch.mul(difference, factors[0], out=a_slope)
            if passing is not None:
                a_slope += passing
        if factors[1] is not None:
            torch.mul(difference, -factors[1], out=b_slope)
        return a_slope, b_slope
    a, b, valid = *_with_rows_apart(a, b), valid.contiguous()
    slopes = [a.new_empty(shape) for shape in shapes]
    numbers = [0.0 if factor is None else float(factor) for factor in factors]
    addresses = [
        0 if factor is None else slope.data_ptr()
        for factor, slope in zip(factors, slopes, strict=True)
    ]
    passed, stride = 0, 0
    if passing is not None:
        (passing,) = _with_rows_apart(passing)
        passed, stride = passing.data_ptr(), passing.stride(0)
    backends.native().pull_slopes(
        a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0), valid.data_ptr(), *a.shape,
        *numbers, passed, stride, *addresses, torch.get_num_threads(),
    )  # fmt: skip
    return slopes[0], slopes[1]


def count_codes(index: Tensor, counted: Tensor, hits: Tensor, skipped: Tensor) -> None:
    """Adds to hits [K] at index [N] where `counted` [N], and to the scalar `skipped` for each -1 of
    these; all but `counted` int64."""
    for name, tensor in (("index", index), ("hits", hits), ("skipped", skipped)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"count_codes: {name} must be int64, got {tensor.dtype}")
    if counted.shape != index.shape or counted.dtype != torch.bool:
        raise ValueError(
            f"count_codes: counted must be bool {list(index.shape)} to match index, got "
            f"{counted.dtype} {list(counted.shape)}"
        )
    if not (runs_natively(index, hits, dtype=torch.int64) and hits.is_contiguous()):
        found = index >= 0
        hits.scatter_add_(0, index.clamp_min(0), (counted & found).long())
        skipped += (counted & ~found).sum()
        return
    index, counted = index.contiguous(), counted.contiguous()
    skipped += backends.native().count_codes(
        index.data_ptr(), counted.data_ptr(), index.numel(), hits.numel(), hits.data_ptr()
    )


def rows_apart(matrix: Tensor) -> bool:
    """Whether a kernel that takes the distance between rows can read this matrix."""
    return matrix.stride(1) == 1 or matrix.shape[1] == 1


def _require_pairs(a: Tensor, b: Tensor, valid: Tensor) -> None:
    """A pass over memory believes what it is told: shapes that do not fit must not get there."""
    fits = a.dim() == 2 and a.shape == b.shape and valid.shape == a.shape[:1]
    if not fits or valid.dtype != torch.bool:
        raise ValueError(
            "rows and codes must be [N, D] each and valid bool [N], got "
            f"{list(a.shape)}, {list(b.shape)} and {valid.dtype} {list(valid.shape)}"
        )


def _with_rows_apart(*matrices: Tensor) -> list[Tensor]:
    return [matrix if rows_apart(matrix) else matrix.contiguous() for matrix in matrices]
