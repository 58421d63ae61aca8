"""Triton kernels of `nearest_code` for squared L2: a certified fp16 screen, then an exact decision.

1. Codes and rows are centred on the mean code, scaled by powers of two and rounded to fp16. The
   norms of what rounding dropped are measured in float64, not estimated: triton_rounding.py.
2. The screen scores all codes on tensor cores, t = |e|^2 / 2 - z.e. A group is a run of
   consecutive codes; with the largest norms of the group, its lowest score is off by at most
   Delta. Each row keeps, in registers, the groups with the lowest t - Delta (three for each
   quarter of the tile's groups), the fourth lowest of these bounds, and the upper bound U = min
   (t + Delta). Every nearest code is in a group with t - Delta <= U.
3. Rescoring takes the kept groups with t - Delta <= U: |z - e|^2 of the values as given, in
   float64 and in channel order, and where float64 cannot tell two codes apart, the sign of the
   difference from error-free transformations. If the fourth lowest bound is <= U too, the row may
   have lost a group: it is scanned over all codes in the same exact way, as are rows too far from
   all codes for the screen's range.

No atomics, no list in memory that grows, no host synchronisation: same inputs, same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import certificate
from .triton_decide import (
    NO_CODE,
    SCANNED,
    SCREENED,
    Rows,
    append,
    device_limits,
    nearest_in_groups,
    no_rows,
    scan,
)
from .triton_rounding import round_codes, round_rows

KEPT = tl.constexpr(3)  # groups a row keeps for each quarter
DEPTH = tl.constexpr(4)  # KEPT and the bound of the best group that was not kept

_MAX_SPLITS = 64


class Tile(NamedTuple):
    """Tile of the screen; `resident`: all channels of its rows stay on chip, else they loop."""

    rows: int
    codes: int
    channels: int
    warps: int
    stages: int
    resident: bool

    def shared_bytes(self) -> int:
        per_stage = self.codes * self.channels * 2
        rows = self.rows * self.channels * 2
        return rows + self.stages * per_stage if self.resident else self.stages * (rows + per_stage)


# By padded D; a device takes the first tile that fits its shared memory. Chosen so that nothing
# spills on sm_80, sm_90, sm_100 and sm_120.
TILES = {
    16: (Tile(128, 128, 16, 8, 3, True),),
    32: (Tile(128, 128, 32, 8, 3, True),),
    64: (Tile(128, 128, 64, 8, 3, True),),
    128: (Tile(128, 128, 128, 8, 3, True), Tile(128, 128, 128, 8, 2, True)),
    256: (
        Tile(128, 128, 256, 8, 2, True),
        Tile(64, 128, 256, 8, 2, True),
        Tile(64, 128, 256, 8, 1, True),
    ),
}
# Two stages: with three, Triton 3.6 compiles the loop over channels to wrong sums on an H100.
WIDE_TILE = Tile(64, 128, 64, 8, 2, False)


@triton.jit
def _keep(v, i, v0, v1, v2, v3, i0, i1, i2):
    """Insert (v, i) into v0 <= v1 <= v2 and their indices; v3 is the lowest of what did not fit."""
    c = v < v0
    v, v0 = tl.where(c, v0, v), tl.where(c, v, v0)
    i, i0 = tl.where(c, i0, i), tl.where(c, i, i0)
    c = v < v1
    v, v1 = tl.where(c, v1, v), tl.where(c, v, v1)
    i, i1 = tl.where(c, i1, i), tl.where(c, i, i1)
    c = v < v2
    v, v2 = tl.where(c, v2, v), tl.where(c, v, v2)
    i2 = tl.where(c, i, i2)
    return v0, v1, v2, tl.minimum(v, v3), i0, i1, i2


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "tiles_per_split", "num_splits"])
def _screen_kernel(
    rows_rounded, scales, residuals, norms, codes_rounded, half_norm, reach, slack, floor,
    lower, group, upper, count, num_rows, num_tiles, tiles_per_split, num_splits,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, CHANNELS: tl.constexpr,
    RESIDENT: tl.constexpr, INTERPRETED: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The lowest group bounds of ROWS rows over one split of the tiles of codes."""
    if LISTED:
        num_rows = tl.load(count)
        if tl.program_id(0) * ROWS >= num_rows:
            return
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    inside = row < num_rows
    scale = tl.load(scales + row, mask=inside, other=0.0)
    residual = tl.load(residuals + row, mask=inside, other=0.0)
    norm = tl.load(norms + row, mask=inside, other=0.0)
    channel = tl.arange(0, CHANNELS)
    row_ptr = rows_rounded + row[:, None] * WIDTH + channel[None, :]
    if RESIDENT:
        z = tl.load(row_ptr, mask=inside[:, None], other=0.0)
        if INTERPRETED:
            z = z.to(tl.float32)
    quarter = tl.arange(0, 4)
    u = tl.full([ROWS, 4], float("inf"), tl.float32)
    v0 = u
    v1 = u
    v2 = u
    v3 = u
    i0 = tl.zeros([ROWS, 4], tl.int32)
    i1 = i0
    i2 = i0
    first = tl.minimum(split * tiles_per_split, num_tiles - 1)
    column = tl.cast(first, tl.int64) * CODES + tl.arange(0, CODES)
    id = first * 4 + quarter
    next_half = tl.load(half_norm + column)
    next_reach = tl.load(reach + id)
    next_slack = tl.load(slack + id)
    next_floor = tl.load(floor + id)
    for tile in range(
        split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, num_tiles)
    ):
        # The prepared codes fill whole tiles: nothing to mask.
        column = tl.cast(tile, tl.int64) * CODES + tl.arange(0, CODES)
        code_ptr = codes_rounded + column[None, :] * WIDTH + channel[:, None]
        # The compiler only pipelines what feeds the dot: fetch the next tile's bounds by hand.
        half, top, lost, least = next_half, next_reach, next_slack, next_floor
        following = tl.minimum(tile + 1, num_tiles - 1)
        column = tl.cast(following, tl.int64) * CODES + tl.arange(0, CODES)
        id = following * 4 + quarter
        next_half = tl.load(half_norm + column)
        next_reach = tl.load(reach + id)
        next_slack = tl.load(slack + id)
        next_floor = tl.load(floor + id)
        if RESIDENT:
            e = tl.load(code_ptr)
            if INTERPRETED:
                e = e.to(tl.float32)
            dot = tl.dot(z, e, input_precision="ieee", out_dtype=tl.float32)
        else:
            dot = tl.zeros([ROWS, CODES], tl.float32)
            for start in range(0, WIDTH, CHANNELS):
                a = tl.load(row_ptr + start, mask=inside[:, None], other=0.0)
                e = tl.load(code_ptr + start)
                if INTERPRETED:
                    a = a.to(tl.float32)
                    e = e.to(tl.float32)
                dot = tl.dot(a, e, dot, input_precision="ieee", out_dtype=tl.float32)
        score = half[None, :] - scale[:, None] * dot
        score = tl.min(tl.min(tl.reshape(score, [ROWS, CODES // 8, 4, 2]), 3), 1)
        delta = residual[:, None] * top[None, :] + norm[:, None] * lost[None, :] + least[None, :]
        u = tl.minimum(u, score + delta)
        ids = (tile * 4 + quarter)[None, :] + tl.zeros([ROWS, 4], tl.int32)
        v0, v1, v2, v3, i0, i1, i2 = _keep(score - delta, ids, v0, v1, v2, v3, i0, i1, i2)
    part = row * num_splits + split
    tl.store(upper + part[:, None] * 4 + quarter[None, :], u, mask=inside[:, None])
    out = part[:, None] * (4 * DEPTH) + quarter[None, :]
    tl.store(lower + out, v0, mask=inside[:, None])
    tl.store(lower + out + 4, v1, mask=inside[:, None])
    tl.store(lower + out + 8, v2, mask=inside[:, None])
    tl.store(lower + out + 12, v3, mask=inside[:, None])
    tl.store(group + out, i0, mask=inside[:, None])
    tl.store(group + out + 4, i1, mask=inside[:, None])
    tl.store(group + out + 8, i2, mask=inside[:, None])


@triton.jit(do_not_specialize=["num_codes"])
def _rescore_kernel(
    z, codes, state, lower, group, upper, index, distance, left_rows, left_count, rows, count,
    num_codes,
    D: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The exact decision for one row among the groups that its bounds leave."""
    place = tl.program_id(0).to(tl.int64)
    row = place
    if LISTED:
        if place >= tl.load(count):
            return
        row = tl.load(rows + place).to(tl.int64)
    kind = tl.load(state + place)
    u = tl.min(tl.load(upper + place * (4 * SPLITS) + tl.arange(0, 4 * SPLITS)), 0)
    slot = tl.arange(0, 4 * DEPTH * SPLITS)
    kept = (slot // 4) % DEPTH < KEPT
    bound = tl.load(lower + place * (4 * DEPTH * SPLITS) + slot)
    id = tl.load(group + place * (4 * DEPTH * SPLITS) + slot, mask=kept, other=0)
    possible = (bound <= u) & (bound < float("inf"))
    lost = tl.sum((possible & (kept == 0)).to(tl.int32), 0) > 0
    if (kind == SCREENED) & lost:
        tl.store(state + place, SCANNED)
    if (kind == SCANNED) | ((kind == SCREENED) & lost):
        append(row, left_rows, left_count)
    open = possible & kept & (kind == SCREENED) & (lost == 0)
    best, best_key = nearest_in_groups(z + row * D, codes, id, open, num_codes, D, GROUP)
    tl.store(index + row, best)
    tl.store(distance + row, best_key.to(tl.float32))


def padded_width(d: int) -> int:
    """Channels of the rounded copies: a power of two from 16 on, or a multiple of 64 above 256."""
    return max(16, triton.next_power_of_2(d)) if d <= 256 else triton.cdiv(d, 64) * 64


def choose_tile(d: int, shared_limit: int) -> Tile:
    """The screen's tile for D channels and `shared_limit` bytes of shared memory a block."""
    tiles = TILES.get(padded_width(d), (WIDE_TILE,))
    return next((tile for tile in tiles if tile.shared_bytes() <= shared_limit), tiles[-1])


def nearest_code(z: Tensor, codes: Tensor, *, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """Index int64 [N] and squared distance float32 [N] of z [N, D] and codes [K, D].

    float16, bfloat16 or float32 each, any strides. `splits` fixes in how many parts the codes are
    screened (a power of two, for tests); by default it depends on N and the device. The result
    does not depend on it.
    """
    index, distance, _ = _search(z, codes, splits)
    return index, distance


class Screen(NamedTuple):
    """What the screen leaves for rescoring."""

    tile: Tile
    centre: Tensor  # [D] float32
    spread: Tensor  # largest |e - c| of a channel, float64
    state: Tensor  # [N] int8
    lower: Tensor  # [N, splits, DEPTH, 4]: t - Delta, ascending along DEPTH
    group: Tensor  # [N, splits, DEPTH, 4]: whose bound it is; nothing at the last depth
    upper: Tensor  # [N, splits, 4]: min (t + Delta)


def _search(z: Tensor, codes: Tensor, splits: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Index, distance, and the state of each row (int8): NO_CODE, SCREENED or SCANNED."""
    z, codes = z.detach().contiguous(), codes.detach().contiguous()
    n, device = len(z), z.device
    index = torch.empty(n, dtype=torch.int64, device=device)
    distance = torch.empty(n, dtype=torch.float32, device=device)
    if n == 0:
        return index, distance, torch.empty(0, dtype=torch.int8, device=device)
    recording = certificate.recording(device)
    with torch.cuda.device_of(z):
        screen = search_rows(z, codes, None, index, distance, splits)
    if recording:
        certificate.record(**counts_of(screen, n, len(codes)))
    return index, distance, screen.state


def search_rows(
    z: Tensor, codes: Tensor, listed: Rows | None, index: Tensor, distance: Tensor,
    splits: int | None = None,
) -> Screen:  # fmt: skip
    """Writes index and distance of the listed rows of contiguous z, or of all of them.

    With an empty list nothing but the launches is paid for. What is screened has the order of the
    list.
    """
    n, d = z.shape
    s = _screen(z, codes, splits, listed)
    (left,) = no_rows(n, z.device)
    # Contraction would break the error-free transformations.
    _rescore_kernel[(n,)](
        z, codes, s.state, s.lower, s.group, s.upper, index, distance, *left,
        *(listed or left), len(codes), d, s.lower.shape[1], s.tile.codes // 4, listed is not None,
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    scan(z, codes, s.spread, left, index, distance)
    return s


def counts_of(screen: Screen, n: int, k: int) -> dict[str, int]:
    """What a certificate counts, of the first n rows of a screen; waits for it."""
    state = screen.state[:n]
    kinds = torch.bincount(state.long(), minlength=3).tolist()
    least = screen.upper[:n].amin((1, 2), keepdim=True)[..., None]
    kept = (screen.lower[:n, :, : KEPT.value] <= least).flatten(1).sum(1)
    decided = state == SCREENED.value
    return {
        "rows": n,
        "certified": kinds[SCREENED.value],
        "candidates": int((kept * (screen.tile.codes // 4)).clamp_max(k)[decided].sum()),
        "scanned": kinds[SCANNED.value],
        "invalid": kinds[NO_CODE.value],
    }


def _screen(z: Tensor, codes: Tensor, splits: int | None, listed: Rows | None = None) -> Screen:
    """Round contiguous z (the listed rows, or all) and codes to fp16, and score all codes."""
    (n, d), k, device = z.shape, len(codes), z.device
    processors, shared = device_limits(device)
    tile = choose_tile(d, shared)
    width = padded_width(d)
    tiles, row_blocks = triton.cdiv(k, tile.codes), triton.cdiv(n, tile.rows)
    if splits is None:
        wanted = min(triton.cdiv(2 * processors, row_blocks), triton.cdiv(tiles, 4), _MAX_SPLITS)
        splits = triton.next_power_of_2(wanted)

    rounded_codes = round_codes(codes, width, tile.codes, listed)
    rounded_rows = round_rows(z, rounded_codes, width, listed)
    lower = z.new_empty(n, splits, DEPTH.value, 4, dtype=torch.float32)
    group = z.new_empty(n, splits, DEPTH.value, 4, dtype=torch.int32)
    upper = z.new_empty(n, splits, 4, dtype=torch.float32)
    centre, spread, *tiled = rounded_codes
    *measured, state = rounded_rows
    count = listed[1] if listed else z
    _screen_kernel[(row_blocks, splits)](
        *measured, *tiled, lower, group, upper, count, n, tiles, triton.cdiv(tiles, splits), splits,
        width, tile.rows, tile.codes, tile.channels, tile.resident, device.type != "cuda",
        listed is not None,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return Screen(tile, centre, spread, state, lower, group, upper)
