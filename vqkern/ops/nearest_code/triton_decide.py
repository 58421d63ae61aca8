"""The exact end of a search on a GPU, after any screen: ties, and rows that all codes must decide.

A screen's kernels put the rows that they cannot decide on two lists. The lists' order may differ
from run to run; what becomes of a row depends on nothing but the row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_exact import challenge, challenge_by

# What becomes of a row.
NO_CODE = tl.constexpr(0)  # not finite: index -1, distance inf
SCREENED = tl.constexpr(1)
SCANNED = tl.constexpr(2)

_SCAN_CODES = 256
_SCAN_WARPS = 8
_SCAN_SHARED = 1024  # rows whose scan is shared out
_SCAN_PARTS = 128
_TIE_PROGRAMS = 8  # a multiprocessor


class Rows(NamedTuple):
    """A list of rows on the device that kernels append to."""

    row: Tensor  # int32 [N]
    count: Tensor  # int32 [1]


def no_rows(n: int, device: torch.device, lists: int = 1) -> list[Rows]:
    """Empty lists with room for n rows each."""
    rows = torch.empty(lists, n, dtype=torch.int32, device=device)
    counts = torch.zeros(lists, 1, dtype=torch.int32, device=device)
    return [Rows(rows[i], counts[i]) for i in range(lists)]


@triton.jit
def append(row, rows, count):
    """Puts a row on a list."""
    tl.store(rows + tl.atomic_add(count, 1), row.to(tl.int32))


@triton.jit
def nearest_in_groups(z, codes, id, open, num_codes, D: tl.constexpr, GROUP: tl.constexpr):
    """The nearest code of the open groups [S] of GROUP consecutive codes, and its distance."""
    best = tl.full([], -1, tl.int64)
    best_key = tl.full([], float("inf"), tl.float64)
    left = tl.sum(open.to(tl.int32), 0)
    while left > 0:
        # Groups in ascending order: a code met later loses a tie.
        next = tl.min(tl.where(open, id, 2147483647), 0)
        best, best_key = challenge(
            z, codes, next.to(tl.int64) * GROUP, num_codes, best, best_key, D, GROUP
        )
        open = open & (id != next)
        left = tl.sum(open.to(tl.int32), 0)
    return best, best_key


@triton.jit
def _ties_of_codes_kernel(
    z, codes, candidates, rows, count, index, distance, D: tl.constexpr, CANDIDATES: tl.constexpr
):
    """The nearest of a tied row's candidates."""
    for place in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        row = tl.load(rows + place).to(tl.int64)
        slot = tl.arange(0, CANDIDATES)
        code = tl.load(candidates + row * CANDIDATES + slot).to(tl.int64)
        best = tl.full([], -1, tl.int64)
        best_key = tl.full([], float("inf"), tl.float64)
        best, best_key = challenge_by(z + row * D, codes, code, code >= 0, best, best_key, D)
        tl.store(index + row, best)
        tl.store(distance + row, best_key.to(tl.float32))


@triton.jit(do_not_specialize=["num_rows", "num_codes"])
def _ties_of_groups_kernel(
    z, codes, bounds, groups, kept_count, upper, rows, count, index, distance, num_rows, num_codes,
    D: tl.constexpr, SPLITS: tl.constexpr, CAPACITY: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The nearest code of the groups that a tied row's screen kept: see csrc/cuda/screen.cuh."""
    for place in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        row = tl.load(rows + place).to(tl.int64)
        u = tl.min(tl.load(upper + tl.arange(0, SPLITS).to(tl.int64) * num_rows + row), 0)
        slot = tl.arange(0, SPLITS * 4 * CAPACITY).to(tl.int64)
        list = slot // CAPACITY
        at = (list // 4 * num_rows + row) * 4 + list % 4
        valid = slot % CAPACITY < tl.load(kept_count + at)
        entry = (at * CAPACITY + slot % CAPACITY) * 2
        bound = tl.load(bounds + entry, mask=valid, other=float("inf"))
        id = tl.load(groups + entry + 1, mask=valid, other=0)
        open = valid & (bound <= u) & (bound < float("inf"))
        best, best_key = nearest_in_groups(z + row * D, codes, id, open, num_codes, D, GROUP)
        tl.store(index + row, best)
        tl.store(distance + row, best_key.to(tl.float32))


@triton.jit(do_not_specialize=["num_codes"])
def _scan_kernel(
    z, codes, spread, rows, count, index, distance, part_best, num_codes,
    D: tl.constexpr, CODES: tl.constexpr, SHARED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The exact decision over all codes.

    The first SHARED rows are shared out, a part of the codes to a program, and `part_best` keeps
    the nearest of each part; the rest have a program each.
    """
    program = tl.program_id(0)
    part, lane = program % PARTS, program // PARTS
    lanes = tl.num_programs(0) // PARTS
    steps = tl.cdiv(tl.cdiv(num_codes, CODES), PARTS)
    left = tl.load(count)
    # Where all finite codes are one vector, as in a codebook that starts at zero, the first wins.
    differ = tl.load(spread) > 0
    shared_left = tl.minimum(left, SHARED)
    place = tl.where(lane < shared_left, lane, SHARED + program)
    while place < left:
        shared = place < SHARED
        begin = tl.where(shared, part * steps * CODES, 0)
        stop = tl.where(shared, tl.minimum(begin + steps * CODES, num_codes), num_codes)
        row = tl.load(rows + place).to(tl.int64)
        best = tl.full([], -1, tl.int64)
        best_key = tl.full([], float("inf"), tl.float64)
        for first in range(begin, stop, CODES):
            if differ | (best < 0):
                best, best_key = challenge(
                    z + row * D, codes, tl.cast(first, tl.int64), num_codes, best, best_key,
                    D, CODES,
                )  # fmt: skip
        if shared:
            tl.store(part_best + tl.cast(place, tl.int64) * PARTS + part, best)
        else:
            tl.store(index + row, best)
            tl.store(distance + row, best_key.to(tl.float32))
        place += tl.where(shared, lanes, tl.num_programs(0))
        if shared & (place >= shared_left):
            place = SHARED + program


@triton.jit
def _join_kernel(
    z, codes, rows, count, index, distance, part_best, D: tl.constexpr, PARTS: tl.constexpr
):
    """The nearest of what the parts of a shared scan found."""
    place = tl.program_id(0)
    if place < tl.load(count):
        row = tl.load(rows + place).to(tl.int64)
        code = tl.load(part_best + tl.cast(place, tl.int64) * PARTS + tl.arange(0, PARTS))
        best = tl.full([], -1, tl.int64)
        best_key = tl.full([], float("inf"), tl.float64)
        best, best_key = challenge_by(z + row * D, codes, code, code >= 0, best, best_key, D)
        tl.store(index + row, best)
        tl.store(distance + row, best_key.to(tl.float32))


def scan(
    z: Tensor, codes: Tensor, spread: Tensor, left: Rows, index: Tensor, distance: Tensor
) -> None:
    """Decides the rows of `left` over all codes; contiguous z [N, D] and codes [K, D]. `spread`
    float64 []: 0 if all finite codes are one vector.
    """
    (n, d), k = z.shape, len(codes)
    programs = 4 * device_limits(z.device)[0]
    shared, parts = min(n, _SCAN_SHARED), min(_SCAN_PARTS, triton.next_power_of_2(programs))
    part_best = torch.empty(shared, parts, dtype=torch.int64, device=z.device)
    # Contraction would break the error-free transformations.
    _scan_kernel[(triton.cdiv(programs, parts) * parts,)](
        z, codes, spread, *left, index, distance, part_best, k, d, _SCAN_CODES, _SCAN_SHARED, parts,
        num_warps=_SCAN_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    _join_kernel[(shared,)](
        z, codes, *left, index, distance, part_best, d, parts, num_warps=4, enable_fp_fusion=False
    )


def settle_codes(
    z: Tensor, codes: Tensor, candidates: Tensor, tied: Rows, index: Tensor, distance: Tensor
) -> None:
    """Decides tied rows among their candidates int32 [N, C], -1 where there is none."""
    _ties_of_codes_kernel[(_TIE_PROGRAMS * device_limits(z.device)[0],)](
        z, codes, candidates, *tied, index, distance, z.shape[1], candidates.shape[1],
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def settle_groups(
    z: Tensor, codes: Tensor, kept: Tensor, kept_count: Tensor, upper: Tensor, group: int,
    tied: Rows, index: Tensor, distance: Tensor,
) -> None:  # fmt: skip
    """Decides tied rows among the kept groups of `group` codes: int32 [splits, N, 4, capacity, 2],
    a bound's bits and a group's number each, their counts int32 [splits, N, 4] and `upper` float32
    [splits, N].
    """
    splits, n, _, capacity, _ = kept.shape
    _ties_of_groups_kernel[(_TIE_PROGRAMS * device_limits(z.device)[0],)](
        z, codes, kept.view(torch.float32), kept, kept_count, upper, *tied, index, distance, n,
        len(codes), z.shape[1], splits, capacity, group, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def device_limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory a block may use."""
    if device.type != "cuda":
        return 2, 1 << 18
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin
