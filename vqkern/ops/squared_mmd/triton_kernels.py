"""Triton kernels of `squared_mmd`: tiles of the kernel matrix that never leave the chip.

A sweep takes a block of rows of one set past columns of the other (or the same) set. Points come
as float16 parts (see `triton_points`), so that one tensor-core product is the exponent of the
widest kernel; rates that double cost one multiplication each. A weight is two float16 parts as
well, and what it pulls is a product with the points' parts: d/da_i sum_j k(a_i, b_j) =
-2 (r_i a_i - (W b)_i).

Up to 32 channels, each pair of points is met once: a tile above the diagonal of a set's own
matrix pulls at its rows and, transposed, at its columns. Pulls are added in 64-bit integers, whose
sum knows no order: same inputs, same bits, whichever program comes first. With more channels the
products dominate, and every program keeps to its rows.

What float32 cannot give is found by `triton_exact` in float64; the device decides.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_exact as exact
from . import triton_points as points
from .triton_points import LADDER, LEFT_ONE, LOW, MOST_RATES, RIGHT_ONE

# Columns whose pulls are added in float32: more are faster, and less exact.
_COLUMNS_EACH = 512
_ROWS = 64
_CHANNELS = 32  # of a gradient at a time
# float64 costs nothing for so few.
_FEW_POINTS = 512
# More bandwidths are summed in float64. A loop of unknown length over them, within the loop over
# tiles, makes Triton 3.6 read beyond its memory on an H100; these are unrolled.
_MOST_RATES = 8
_COMPLETE = 62 - 15 - 8


class Tile(NamedTuple):
    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None

    def options(self) -> dict:
        """What a launch is given beside its arguments."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return dict(
            num_warps=self.warps, num_stages=self.stages, enable_fp_fusion=True, **limit
        )  # fmt: skip


NARROW = Tile(64, 64, 4, 3)
# Left alone, the compiler takes as many registers as three to a processor have; these are four.
NARROW_ON_HOPPER = Tile(64, 64, 4, 3, registers=128)
# Where those of a larger one do not fit into registers.
NARROWEST = Tile(64, 32, 4, 3)
WIDE = Tile(64, 64, 8, 2)


@triton.jit
def _exp2(x, INTERPRETED: tl.constexpr):
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _dot(a, b, INTERPRETED: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def _dot_add(a, b, c, INTERPRETED: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def _kernel_sums(
    exponent, table, RATES: tl.constexpr, LADDER_OF: tl.constexpr, INTERPRETED: tl.constexpr
):
    """2^c sum_i k_i and 2^c sum_i r_i k_i, where 2^exponent is 2^c times the widest kernel.

    LADDER_OF: that many rates double; 0: RATES of the table, and c is in the weights alone.
    """
    if LADDER_OF > 0:
        term = _exp2(exponent, INTERPRETED)
        shift: tl.constexpr = (
            15 - LADDER_OF
            if LADDER_OF < 5
            else (7 if LADDER_OF == 5 else (3 if LADDER_OF == 6 else 1))
        )
        kernel = term
        weight = term
        for i in tl.static_range(1, LADDER_OF):
            scale = 2.0 ** (shift - shift * 2**i)
            if i < LADDER_OF - 1 or LADDER_OF < 4:
                term = term * term
            if i < LADDER_OF - 2 or LADDER_OF < 4:
                kernel += scale * term
                weight += scale * 2.0**i * term
            elif i == LADDER_OF - 2:
                # With the last rate's, whose term is the square of this one and not needed itself.
                last = 2.0 ** (shift - shift * 2 ** (i + 1))
                kernel += term * (scale + last * term)
                weight += term * (scale * 2.0**i + last * 2.0 ** (i + 1) * term)
    else:
        kernel = tl.zeros(exponent.shape, tl.float32)
        weight = tl.zeros(exponent.shape, tl.float32)
        for i in tl.static_range(0, RATES):
            term = _exp2(exponent * tl.load(table + i), INTERPRETED)
            kernel += term
            weight += tl.load(table + MOST_RATES + i) * term
    return kernel, weight


@triton.jit
def _in_thread(x):
    """Row sums of a tile, but for the four threads among which a product shares out a row."""
    rows: tl.constexpr = x.shape[0]
    return tl.sum(tl.sum(tl.reshape(x, [rows, x.shape[1] // 8, 4, 2]), 3), 1)


@triton.jit
def _add_pull(pull, sums, head, low, quantum, ONE: tl.constexpr, WIDTH: tl.constexpr):
    """Add what weights pull at a block of points: head [points, 2 WIDTH] by high parts and norms,
    whose channel ONE is 1; low [points, WIDTH] by low parts.
    """
    part = tl.arange(0, 2)[None, :, None]
    channel = tl.arange(0, WIDTH)[None, :]
    at = tl.arange(0, head.shape[0])
    head = tl.reshape(head, [head.shape[0], 2, WIDTH])
    high = tl.sum(tl.where(part == 0, head, 0.0), 1)
    norms = tl.sum(tl.where(part == 1, head, 0.0), 1)
    weight = tl.sum(tl.where(channel == ONE, norms, 0.0), 1)
    whole = ((high + low / LOW) * quantum).to(tl.int64)
    tl.atomic_add(pull + at[:, None] * WIDTH + channel, whole, sem="relaxed")
    tl.atomic_add(sums + at, (weight * quantum).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["num_tiles", "tiles_each", "quantum"])
def _sweep_kernel(
    left, right, table, state, value, left_pull, left_sum, right_pull, right_sum,
    num_tiles, tiles_each, quantum,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RATES: tl.constexpr,
    LADDER_OF: tl.constexpr, ABOVE: tl.constexpr, DIAGONAL: tl.constexpr, PULL_LEFT: tl.constexpr,
    PULL_RIGHT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Kernel sums and pulls of one block of left points and one run of tiles of right points.

    ABOVE: both are one set, of which only tiles right of the diagonal ones are taken; DIAGONAL:
    those on the diagonal, without the pairs of a point and itself. Points have few channels.
    """
    if (tl.load(state + LADDER) != 0) != (LADDER_OF > 0):
        return
    FORM: tl.constexpr = 4 * WIDTH
    block = tl.program_id(0)
    row = block.to(tl.int64) * ROWS
    of_row = tl.arange(0, ROWS)[:, None]
    of_column = tl.arange(0, COLUMNS)[:, None]
    half = tl.arange(0, 2 * WIDTH)[None, :]
    part = tl.arange(0, WIDTH)[None, :]
    a_head = tl.load(left + row * FORM + (of_row * FORM + half))
    a_rest = tl.load(left + row * FORM + (of_row * FORM + 2 * WIDTH + half))
    if PULL_RIGHT:
        a_low = tl.load(left + row * FORM + (of_row * FORM + 2 * WIDTH + part))
    origin = 0
    if ABOVE:
        origin = (block + 1) * (ROWS // COLUMNS)
    if DIAGONAL:
        origin = block * (ROWS // COLUMNS)
        num_tiles = tl.minimum(origin + ROWS // COLUMNS, num_tiles)
    kernels = tl.zeros([ROWS, 4], tl.float64)
    step = tl.num_programs(1) * tiles_each
    for first in range(origin + tl.program_id(1) * tiles_each, num_tiles, step):
        total = tl.zeros([ROWS, 4], tl.float32)
        pulled = tl.zeros([ROWS, 2 * WIDTH], tl.float32)
        pulled_low = tl.zeros([ROWS, WIDTH], tl.float32)
        for tile in range(first, tl.minimum(first + tiles_each, num_tiles)):
            column = tl.cast(tile, tl.int64) * COLUMNS
            b_head = tl.load(right + column * FORM + (of_column * FORM + half))
            b_rest = tl.load(right + column * FORM + (of_column * FORM + 2 * WIDTH + half))
            exponent = _dot(a_head, tl.trans(b_head), INTERPRETED)
            exponent = _dot_add(a_rest, tl.trans(b_rest), exponent, INTERPRETED)
            kernel, weight = _kernel_sums(exponent, table, RATES, LADDER_OF, INTERPRETED)
            if DIAGONAL:
                same = row + of_row == column + tl.trans(of_column)
                kernel = tl.where(same, 0.0, kernel)
                weight = tl.where(same, 0.0, weight)
            total += _in_thread(kernel)
            if PULL_LEFT or PULL_RIGHT:
                high = weight.to(tl.float16)
                low = (weight - high.to(tl.float32)).to(tl.float16)
            if PULL_LEFT:
                b_low = tl.load(right + column * FORM + (of_column * FORM + 3 * WIDTH + part))
                pulled = _dot_add(high, b_head, pulled, INTERPRETED)
                pulled = _dot_add(low, b_head, pulled, INTERPRETED)
                pulled_low = _dot_add(high, b_low, pulled_low, INTERPRETED)
            if PULL_RIGHT:
                back = _dot(tl.trans(high), a_head, INTERPRETED)
                back = _dot_add(tl.trans(low), a_head, back, INTERPRETED)
                back_low = _dot(tl.trans(high), a_low, INTERPRETED)
                _add_pull(
                    right_pull + column * WIDTH, right_sum + column, back, back_low, quantum,
                    LEFT_ONE, WIDTH,
                )  # fmt: skip
        kernels += total.to(tl.float64)
        if PULL_LEFT:
            _add_pull(
                left_pull + row * WIDTH, left_sum + row, pulled, pulled_low, quantum,
                RIGHT_ONE, WIDTH,
            )  # fmt: skip
    at = block.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    times: tl.constexpr = 2.0 if ABOVE else 1.0
    tl.store(value + at, times * tl.sum(tl.sum(kernels, 1), 0))


@triton.jit(do_not_specialize=["num_tiles", "tiles_each", "quantum"])
def _wide_kernel(
    left, right, table, state, value, pull, sums,
    num_tiles, tiles_each, quantum,
    WIDTH: tl.constexpr, FORM: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, RATES: tl.constexpr, LADDER_OF: tl.constexpr, SAME: tl.constexpr,
    PULL: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """As `_sweep_kernel`, for any number of channels: CHUNK at a time, and of the pull a program.

    SAME: both are one set, without the pairs of a point and itself; where nothing is pulled, tiles
    left of the diagonal are left out and those right of it count twice.
    """
    if (tl.load(state + LADDER) != 0) != (LADDER_OF > 0):
        return
    block = tl.program_id(0)
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHUNK)
    out = tl.program_id(2).to(tl.int64) * CHUNK + channel
    kernels = tl.zeros([ROWS, 4], tl.float64)
    origin = 0
    if SAME and not PULL:
        origin = block * (ROWS // COLUMNS)
    step = tl.num_programs(1) * tiles_each
    for first in range(origin + tl.program_id(1) * tiles_each, num_tiles, step):
        total = tl.zeros([ROWS, 4], tl.float32)
        weights = tl.zeros([ROWS, 4], tl.float32)
        pulled = tl.zeros([ROWS, CHUNK], tl.float32)
        pulled_less = tl.zeros([ROWS, CHUNK], tl.float32)
        for tile in range(first, tl.minimum(first + tiles_each, num_tiles)):
            column = tl.cast(tile, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
            exponent = tl.zeros([ROWS, COLUMNS], tl.float32)
            for start in range(0, FORM, CHUNK):
                a = tl.load(left + row[:, None] * FORM + (start + channel)[None, :])
                b = tl.load(right + column[None, :] * FORM + (start + channel)[:, None])
                exponent = _dot_add(a, b, exponent, INTERPRETED)
            kernel, weight = _kernel_sums(exponent, table, RATES, LADDER_OF, INTERPRETED)
            if SAME:
                same = row[:, None] == column[None, :]
                kernel = tl.where(same, 0.0, kernel)
                weight = tl.where(same, 0.0, weight)
            added = _in_thread(kernel)
            if SAME and not PULL:
                added *= tl.where(tile >= (block + 1) * (ROWS // COLUMNS), 2.0, 1.0)
            total += added
            if PULL:
                weights += _in_thread(weight)
                high = weight.to(tl.float16)
                low = (weight - high.to(tl.float32)).to(tl.float16)
                parts = tl.load(right + column[:, None] * FORM + out[None, :])
                pulled = _dot_add(high, parts, pulled, INTERPRETED)
                pulled = _dot_add(low, parts, pulled, INTERPRETED)
                parts = tl.load(right + column[:, None] * FORM + (out + FORM - WIDTH)[None, :])
                pulled_less = _dot_add(high, parts, pulled_less, INTERPRETED)
        kernels += total.to(tl.float64)
        if PULL:
            whole = ((pulled + pulled_less / LOW) * quantum).to(tl.int64)
            tl.atomic_add(pull + row[:, None] * WIDTH + out[None, :], whole, sem="relaxed")
            if tl.program_id(2) == 0:
                heavy = (tl.sum(weights, 1) * quantum).to(tl.int64)
                tl.atomic_add(sums + row, heavy, sem="relaxed")
    if tl.program_id(2) == 0:
        at = block.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tl.store(value + at, tl.sum(tl.sum(kernels, 1), 0))


@triton.jit
def _factors(plan, rows, others, drop, bits):
    """What a set's own pulls and the others' count in its gradient, per unit of their integers."""
    rate = tl.load(plan)
    n = rows.to(tl.float64)
    own = -4.0 * rate / (n * (n - drop))
    cross = 4.0 * rate / (n * others.to(tl.float64))
    return own, cross, exact.power_of_two(-tl.load(plan + 2) - bits)


@triton.jit(do_not_specialize=["rows", "others", "drop", "bits"])
def _gradient_kernel(
    left, plan, own_pull, own_sum, cross_pull, cross_sum, gradient, largest, heaviest,
    rows, others, drop, bits,
    D: tl.constexpr, WIDTH: tl.constexpr, FORM: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """A set's gradient from its pulls; of each block the largest entry and what errors grow by."""
    block = tl.program_id(0).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    unit = tl.load(plan + 1)
    own, cross, step = _factors(plan, rows, others, drop, bits)
    own_weight = step * own * tl.load(own_sum + row).to(tl.float64)
    cross_weight = step * cross * tl.load(cross_sum + row).to(tl.float64)
    most = tl.zeros([ROWS], tl.float64)
    for start in range(0, WIDTH, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        at = row[:, None] * FORM + channel[None, :]
        point = tl.load(left + at).to(tl.float64)
        point += tl.load(left + at + FORM - 2 * WIDTH).to(tl.float64) / LOW
        at = row[:, None] * WIDTH + channel[None, :]
        pull = own * tl.load(own_pull + at).to(tl.float64)
        pull += cross * tl.load(cross_pull + at).to(tl.float64)
        result = ((own_weight + cross_weight)[:, None] * point - step * pull) / unit
        mask = inside[:, None] & (channel < D)[None, :]
        tl.store(gradient + row[:, None] * D + channel[None, :], result.to(tl.float32), mask=mask)
        most = tl.maximum(most, tl.max(tl.where(mask, tl.abs(result), 0.0), 1))
    tl.store(largest + block, tl.max(most, 0))
    heavy = tl.where(inside, own * own_weight + cross * cross_weight, 0.0)
    tl.store(heaviest + block, tl.max(heavy, 0))


class _Pull(NamedTuple):
    """Integers [rows, width] and [rows] in which pulls and weights are added."""

    pull: Tensor
    sums: Tensor


class _Walk(NamedTuple):
    """A launch: a block of left points to a program, past all tiles of right ones or some."""

    left: str
    right: str
    left_pull: str = ""
    right_pull: str = ""
    above: bool = False
    diagonal: bool = False

    def wants_pull(self) -> bool:
        return bool(self.left_pull or self.right_pull)


def _walks(narrow: bool, x_grad: bool, y_grad: bool) -> dict[str, list[_Walk]]:
    """The walks whose kernels add up to the sum over the pairs of each two sets; and others."""
    own = {}
    for name, grad in (("x", x_grad), ("y", y_grad)):
        pull = f"{name}{name}" if grad else ""
        if narrow:
            own[name] = [
                _Walk(name, name, pull, pull, above=True),
                _Walk(name, name, pull, diagonal=True),
            ]
        else:
            own[name] = [_Walk(name, name, pull, diagonal=True)]
    to_x, to_y = "xy" if x_grad else "", "yx" if y_grad else ""
    cross, others = [_Walk("y", "x", to_y, to_x)], []
    if not narrow and x_grad:
        cross, others = [_Walk("y", "x", to_y)], [_Walk("x", "y", to_x)]
    elif x_grad and not y_grad:
        cross = [_Walk("x", "y", to_x)]
    return {"xx": own["x"], "yy": own["y"], "xy": cross, "": others}


def choose_tile(width: int, pull: bool, ladder: bool, capability: int) -> Tile:
    """capability: 90 for Hopper, 100 for Blackwell and so on."""
    if not points.is_narrow(width):
        return WIDE
    if pull and (capability == 100 or (capability < 100 and width == 32 and not ladder)):
        return NARROWEST
    if pull and capability == 90 and width == 16 and ladder:
        return NARROW_ON_HOPPER
    return NARROW


class _Grid(NamedTuple):
    blocks: int
    programs: int
    tiles: int
    each: int


def _grid(walk: _Walk, sizes: dict[str, int], tile: Tile, chunks: int, processors: int) -> _Grid:
    blocks, tiles = sizes[walk.left] // tile.rows, sizes[walk.right] // tile.columns
    if walk.diagonal and chunks == 0:
        return _Grid(blocks, 1, tiles, tile.rows // tile.columns)
    fill = triton.cdiv(blocks * max(1, chunks) * tiles, 8 * processors)
    each = max(1, min(_COLUMNS_EACH // tile.columns, fill))
    return _Grid(blocks, triton.cdiv(tiles, each), tiles, each)


def squared_mmd(
    x: Tensor, y: Tensor, bandwidths: Tensor, unbiased: bool, x_grad: bool, y_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Value [], gradient [N, D] and gradient [M, D], float32; a gradient not asked for is [0].

    x [N, D] and y [M, D] float16, bfloat16 or float32, any strides; bandwidths float64 [B].
    """
    x, y = x.detach(), y.detach()
    if x.dtype != y.dtype:
        x, y = x.float(), y.float()
    x, y, bandwidths = x.contiguous(), y.contiguous(), bandwidths.double().contiguous()
    value, drop = torch.empty((), dtype=torch.float32, device=x.device), int(unbiased)
    gx, gy = (
        torch.empty(s.shape if grad else (0,), dtype=torch.float32, device=x.device)
        for s, grad in ((x, x_grad), (y, y_grad))
    )
    with torch.cuda.device_of(x):
        mean = points.common_mean(x, y)
        if max(len(x), len(y)) <= _FEW_POINTS or len(bandwidths) > _MOST_RATES:
            wanted = torch.ones(1, dtype=torch.int32, device=x.device)
        else:
            wanted = _swept(x, y, mean, bandwidths, drop, value, gx, gy)
        exact.sweep(wanted, x, y, mean, bandwidths, drop, value, gx, gy)
    return value, gx, gy


def _swept(
    x: Tensor, y: Tensor, mean: Tensor, bandwidths: Tensor, drop: int, value: Tensor,
    gx: Tensor, gy: Tensor,
) -> Tensor:  # fmt: skip
    """Fill value and gradients (those that are not empty) by float32 sums.

    Returns whether they should be found in float64 instead, int32 [1].
    """
    device, (n, d), m, count = x.device, x.shape, len(y), len(bandwidths)
    width = points.padded_width(d)
    form, narrow = points.form_width(width), points.is_narrow(width)
    channels = min(width, points.CHUNK)
    chunks = 0 if narrow else width // channels
    interpreted = device.type == "cpu"
    processors, capability = 2, 90
    if not interpreted:
        of_device = torch.cuda.get_device_properties(device)
        processors, capability = of_device.multi_processor_count, 10 * of_device.major
    sizes = {name: points.padded_rows(size) for name, size in (("x", n), ("y", m))}
    walks = _walks(narrow, gx.numel() > 0, gy.numel() > 0)

    # One piece of memory, all zeros: integers that pulls are added in, sums of kernels, the state.
    # Whether rates double is known on the device alone: both ways are launched, one runs.
    ladders = (count, 0) if count <= points.MOST_DOUBLINGS.value else (0,)
    launches, ends, total = [], {}, 0
    for pair, of_pair in walks.items():
        for walk in of_pair:
            slots = 0
            for ladder in ladders:
                tile = choose_tile(width, walk.wants_pull(), ladder > 0, capability)
                grid = _grid(walk, sizes, tile, chunks, processors)
                launches.append((walk, ladder, tile, grid, total))
                slots = max(slots, grid.blocks * grid.programs)
            total += slots
        ends[pair] = total
    pulls = [p for of_pair in walks.values() for w in of_pair for p in (w.left_pull, w.right_pull)]
    lengths = {pull: sizes[pull[0]] for pull in dict.fromkeys(pulls) if pull}
    memory = torch.zeros(
        sum(lengths.values()) * (width + 1) + total + 2, dtype=torch.int64, device=device
    )
    room = {}
    for pull, rows in lengths.items():
        flat, sums, memory = memory.split([rows * width, rows, len(memory) - rows * (width + 1)])
        room[pull] = _Pull(flat, sums)
    kernels, state = memory[:total].view(torch.float64), memory[total:].view(torch.int32)
    plan = torch.empty(4, dtype=torch.float64, device=device)
    table = torch.empty(2 * MOST_RATES.value, dtype=torch.float32, device=device)
    sets = {
        name: points.prepare(s, mean, bandwidths, plan, table, state)
        for name, s in (("x", x), ("y", y))
    }
    bits = _COMPLETE - (max(n, m) - 1).bit_length()
    none = _Pull(state, state)

    for walk, ladder, tile, grid, start in sorted(
        launches, key=lambda launch: -sizes[launch[0].left] * sizes[launch[0].right]
    ):
        left, right = sets[walk.left].left, sets[walk.right].right
        programs = grid.programs
        if not ladder:
            programs = min(programs, triton.cdiv(8 * processors, grid.blocks))
        numbers = (grid.tiles, grid.each, 2.0**bits)
        if narrow:
            _sweep_kernel[(grid.blocks, programs)](
                left, right, table, state, kernels[start:], *room.get(walk.left_pull, none),
                *room.get(walk.right_pull, none), *numbers, width, tile.rows, tile.columns,
                count, ladder, walk.above, walk.diagonal, bool(walk.left_pull),
                bool(walk.right_pull), interpreted, **tile.options(),
            )  # fmt: skip
        else:
            pull = bool(walk.left_pull)
            _wide_kernel[(grid.blocks, programs, chunks if pull else 1)](
                left, right, table, state, kernels[start:], *room.get(walk.left_pull, none),
                *numbers, width, form, channels, tile.rows, tile.columns, count, ladder,
                walk.diagonal, pull, interpreted, **tile.options(),
            )  # fmt: skip

    blocks = {name: triton.cdiv(sizes[name], _ROWS) for name in "xy"}
    worst = torch.empty(2, blocks["x"] + blocks["y"], dtype=torch.float64, device=device)
    graded, at = {"x": 0, "y": 0}, 0
    for name, gradient in (("x", gx), ("y", gy)):
        if not gradient.numel():
            continue
        own, cross = ("xx", "xy") if name == "x" else ("yy", "yx")
        _gradient_kernel[(blocks[name],)](
            sets[name].left, plan, *room[own], *room[cross], gradient, worst[0, at:],
            worst[1, at:], *((n, m) if name == "x" else (m, n)), drop, bits, d, width,
            form, min(width, _CHANNELS), _ROWS, num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
        graded[name] = blocks[name]
        at += blocks[name]
    wanted = torch.empty(1, dtype=torch.int32, device=device)
    exact.decide_kernel[(1,)](
        kernels, sets["x"].norms, sets["y"].norms, worst[0], worst[1], plan, state, value, wanted,
        n, m, drop, count, ends["xx"], ends["yy"], ends["xy"], len(sets["x"].norms),
        len(sets["y"].norms), graded["x"], graded["y"], num_warps=4,
    )  # fmt: skip
    return wanted
