"""Every Triton kernel compiles for NVIDIA GPUs, spills nothing and addresses in 64 bits.

Needs no GPU: nothing runs. The assembler that Triton bundles reports spills; tiles are those that a
device of each generation would choose.
"""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip(
    "triton", reason="triton is not installed; `pip install triton` brings it"
)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from vqkern.ops.code_sums import triton_kernels as sums  # noqa: E402
from vqkern.ops.gaussian_w2 import iteration as gaussian_iteration  # noqa: E402
from vqkern.ops.gaussian_w2 import triton_kernels as gaussian  # noqa: E402
from vqkern.ops.gaussian_w2 import triton_solve as gaussian_solve  # noqa: E402
from vqkern.ops.gaussian_w2 import triton_tiles as gaussian_tiles  # noqa: E402
from vqkern.ops.nearest_code import triton_decide as decide  # noqa: E402
from vqkern.ops.nearest_code import triton_kernels as nearest  # noqa: E402
from vqkern.ops.nearest_code import triton_rounding as rounding  # noqa: E402
from vqkern.ops.squared_mmd import triton_exact as double  # noqa: E402
from vqkern.ops.squared_mmd import triton_kernels as mmd  # noqa: E402
from vqkern.ops.squared_mmd import triton_points as points  # noqa: E402

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="Triton was told to interpret, not to compile"
)

# Architecture and shared memory a block may use: A100, H100/H200, B200, RTX 50.
TARGETS = {
    80: ("sm_80", 166912),
    90: ("sm_90a", 232448),
    100: ("sm_100a", 232448),
    120: ("sm_120a", 101376),
}
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"


def build(kernel, capability, types, constants, **options):
    """Compile `kernel`; pointers are 16-byte aligned, as torch's allocations are."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def pointers(dtype, names):
    return dict.fromkeys(names.split(), "*" + dtype)


def integers(names):
    return dict.fromkeys(names.split(), "i32")


def screen(capability, d):
    tile = nearest.choose_tile(d, TARGETS[capability][1])
    types = pointers("fp32", "scales residuals norms half_norm reach slack floor lower upper")
    types |= pointers("fp16", "rows_rounded codes_rounded") | pointers("i32", "group")
    types |= pointers("i32", "count") | integers("num_rows num_tiles tiles_per_split num_splits")
    constants = dict(
        WIDTH=nearest.padded_width(d), ROWS=tile.rows, CODES=tile.codes, CHANNELS=tile.channels,
        RESIDENT=tile.resident, INTERPRETED=False, LISTED=capability == 90,
    )  # fmt: skip
    return build(
        nearest._screen_kernel, capability, types, constants,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def exact_types(dtype):
    types = pointers(dtype, "z codes") | pointers("fp32", "lower upper distance")
    types |= pointers("fp64", "spread")
    types |= pointers("i8", "state") | pointers("i32", "group left_rows left_count rows count")
    return types | pointers("i64", "index part_best") | integers("num_rows num_codes")


def rescore(capability, d, dtype="fp32", splits=1):
    return build(
        nearest._rescore_kernel, capability, exact_types(dtype),
        dict(D=d, SPLITS=splits, GROUP=32, LISTED=capability == 90),
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def scan(capability, d, dtype="fp32"):
    constants = dict(
        D=d, CODES=decide._SCAN_CODES, SHARED=decide._SCAN_SHARED, PARTS=decide._SCAN_PARTS
    )
    return build(
        decide._scan_kernel, capability, exact_types(dtype), constants,
        num_warps=decide._SCAN_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def join_parts(capability, d, dtype="fp32"):
    return build(
        decide._join_kernel, capability, exact_types(dtype), dict(D=d, PARTS=decide._SCAN_PARTS),
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def ties_of_codes(capability, d, dtype="fp32"):
    types = exact_types(dtype) | pointers("i32", "candidates")
    return build(
        decide._ties_of_codes_kernel, capability, types, dict(D=d, CANDIDATES=128),
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def ties_of_groups(capability, d, dtype="fp32"):
    types = exact_types(dtype) | pointers("i32", "groups kept_count") | pointers("fp32", "bounds")
    return build(
        decide._ties_of_groups_kernel, capability, types,
        dict(D=d, SPLITS=2, CAPACITY=8, GROUP=64), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


# Lists of rows are what the CUDA kernels for Hopper GPUs leave over: LISTED on sm_90 alone.
def survey(capability, d, dtype="fp32"):
    types = pointers(dtype, "codes") | pointers("i8", "finite") | pointers("fp64", "total")
    types |= pointers("fp32", "low high") | pointers("i32", "count") | integers("num_codes")
    channels = min(nearest.padded_width(d), 64)
    constants = dict(D=d, ROWS=rounding._SURVEY_ROWS, CHANNELS=channels, LISTED=capability == 90)
    return build(
        rounding._survey_kernel, capability, types, constants, num_warps=4, enable_fp_fusion=True
    )


def round_codes(capability, d, dtype="fp32"):
    tile = nearest.choose_tile(d, TARGETS[capability][1])
    types = pointers(dtype, "codes") | pointers("i8", "finite") | pointers("fp16", "rounded")
    types |= pointers("fp32", "centre half_norm reach slack floor") | pointers("fp64", "spread")
    types |= pointers("i32", "count") | integers("num_codes") | {"g": "fp32"}
    width = nearest.padded_width(d)
    constants = dict(
        D=d, WIDTH=width, CODES=tile.codes, CHANNELS=min(width, 64), LISTED=capability == 90
    )
    return build(
        rounding._round_codes_kernel,
        capability,
        types,
        constants,
        num_warps=8,
        enable_fp_fusion=True,
    )


def round_rows(capability, d, dtype="fp32"):
    types = pointers(dtype, "z") | pointers("fp32", "centre scales residuals norms")
    types |= pointers("fp64", "spread") | pointers("fp16", "rounded") | pointers("i8", "state")
    types |= pointers("i32", "rows count") | integers("num_rows")
    width = nearest.padded_width(d)
    constants = dict(
        D=d,
        WIDTH=width,
        ROWS=rounding._ROUNDED_ROWS,
        CHANNELS=min(width, 64),
        LISTED=capability == 90,
    )
    return build(
        rounding._round_rows_kernel,
        capability,
        types,
        constants,
        num_warps=4,
        enable_fp_fusion=True,
    )


def pieces(capability, d, dtype="fp32"):
    types = pointers(dtype, "z") | pointers("fp32", "total") | pointers("fp64", "partial")
    types |= pointers("i64", "tokens sorted_codes bounds starts first_pieces")
    channels = min(triton.next_power_of_2(d), sums._CHANNELS)
    return build(
        sums._sum_pieces_kernel, capability, types,
        dict(D=d, TOKENS=sums._TOKENS, CHANNELS=channels), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def join(capability, d):
    types = pointers("fp32", "total") | pointers("fp64", "partial")
    types |= pointers("i64", "sorted_codes bounds first_pieces")
    channels = min(triton.next_power_of_2(d), sums._CHANNELS)
    return build(
        sums._join_pieces_kernel, capability, types, dict(D=d, CHANNELS=channels),
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def sweep(capability, d, above=False, diagonal=False, pull=True, rates=5, ladder=5):
    """squared_mmd between two sets; above: within one, tiles right of the diagonal; diagonal:
    those on it.
    """
    types = pointers("fp16", "left right") | pointers("fp32", "table") | pointers("i32", "state")
    types |= pointers("fp64", "value") | {"quantum": "fp32"}
    types |= pointers("i64", "left_pull left_sum right_pull right_sum pull sums")
    types |= integers("num_tiles tiles_each")
    width = points.padded_width(d)
    tile = mmd.choose_tile(width, pull, ladder > 0, capability)
    constants = dict(
        WIDTH=width, ROWS=tile.rows, COLUMNS=tile.columns, RATES=rates, LADDER_OF=ladder,
        INTERPRETED=False,
    )  # fmt: skip
    if points.is_narrow(width):
        kernel = mmd._sweep_kernel
        constants |= dict(ABOVE=above, DIAGONAL=diagonal, PULL_LEFT=pull, PULL_RIGHT=above and pull)
    else:
        kernel = mmd._wide_kernel
        same = above or diagonal
        constants |= dict(FORM=points.form_width(width), CHUNK=points.CHUNK, SAME=same, PULL=pull)
    return build(kernel, capability, types, constants, **tile.options())


def sweep_same_set(capability, d):
    return sweep(capability, d, above=True)


def sweep_diagonal(capability, d):
    return sweep(capability, d, diagonal=True)


def sweep_without_pull(capability, d):
    return sweep(capability, d, above=True, pull=False)


def sweep_other_rates(capability, d):
    return sweep(capability, d, above=True, ladder=0)


def points_constants(d):
    width = points.padded_width(d)
    return dict(D=d, WIDTH=width, CHANNELS=min(width, points.CHUNK), ROWS=points._ROWS)


def mean_of_points(capability, d, dtype="fp32"):
    types = pointers(dtype, "x y") | pointers("fp64", "sums") | integers("n m rows_each")
    return build(
        points._survey_kernel, capability, types, points_constants(d),
        num_warps=points.warps(d), enable_fp_fusion=True,
    )  # fmt: skip


def prepare_points(capability, d, dtype="fp32"):
    types = pointers(dtype, "points") | pointers("fp64", "mean bandwidths norms plan")
    types |= pointers("fp16", "left right") | pointers("fp32", "table") | pointers("i32", "state")
    constants = points_constants(d) | dict(FORM=points.form_width(points.padded_width(d)))
    return build(
        points.prepare_kernel, capability, types | integers("rows count"), constants,
        num_warps=points.warps(d), enable_fp_fusion=False,
    )  # fmt: skip


def gradient_of_pulls(capability, d):
    types = pointers("fp16", "left") | pointers("fp64", "plan largest heaviest")
    types |= pointers("i64", "own_pull own_sum cross_pull cross_sum") | pointers("fp32", "gradient")
    constants = points_constants(d) | dict(FORM=points.form_width(points.padded_width(d)))
    constants["CHANNELS"] = min(constants["WIDTH"], mmd._CHANNELS)
    return build(
        mmd._gradient_kernel, capability, types | integers("rows others drop bits"), constants,
        num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip


def sweep_in_double(capability, d, dtype="fp32"):
    types = pointers("i32", "wanted") | pointers(dtype, "a b") | pointers("fp32", "gradient")
    types |= pointers("fp64", "mean bandwidths own_kernels cross_kernels")
    constants = dict(
        D=d, PULL=True, CROSS=True, ROWS=double.ROWS, COLUMNS=double.COLUMNS,
        CHANNELS=double.CHANNELS,
    )  # fmt: skip
    return build(
        double.sweep_kernel, capability, types | integers("rows others drop count"), constants,
        num_warps=double.WARPS, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip


def moments(capability, d, dtype="fp32", both=False):
    types = pointers(dtype, "x y") | pointers("u8", "valid") | pointers("fp64", "partial")
    types |= pointers("i32", "arrived") | integers("num_x num_y splits_x blocks_x blocks_y")
    tiles = gaussian_tiles.tiles(d, capability)
    constants = dict(
        D=d, WIDTH=tiles.width, CHANNELS=tiles.channels, ROWS=tiles.sums.rows,
        BOTH=both, MASKED=not both,
    )  # fmt: skip
    return build(
        gaussian._sums_kernel, capability, types, constants,
        num_warps=tiles.sums.warps, num_stages=tiles.sums.stages,
        maxnreg=gaussian_tiles.MOST_REGISTERS, enable_fp_fusion=True,
    )  # fmt: skip


def moments_of_two(capability, d):
    return moments(capability, d, both=True)


def pull_back(capability, d, dtype="fp32", both=False):
    types = pointers(dtype, "x y out_x out_y") | pointers("u8", "valid")
    types |= pointers("fp64", "pull_x pull_y") | pointers("fp32", "grad")
    types |= integers("num_x num_y programs_x")
    tiles = gaussian_tiles.tiles(d, capability)
    tile = tiles.maps
    constants = dict(
        D=d, CHANNELS=tiles.channels, CHUNK=tile.chunk, ROWS=tile.rows, BLOCKS=tile.blocks,
        BOTH=both, MASKED=not both, SCALED=both,
    )  # fmt: skip
    return build(
        gaussian._pull_back_kernel, capability, types, constants,
        num_warps=tile.warps, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip


def pull_back_of_two(capability, d):
    return pull_back(capability, d, both=True)


def fit(capability, d):
    types = pointers("fp64", "partial count mean covariance") | integers("splits")
    tiles = gaussian_tiles.tiles(d, capability)
    return build(
        gaussian._fit_kernel, capability, types,
        dict(
            D=d, WIDTH=tiles.width, CHANNELS=tiles.channels, SPLITS=tiles.summed // tiles.channels
        ),
        num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip


def solve(capability, d, x_grad=True, alone=True):
    types = pointers("fp64", "partial m_x s1 m_y s2 work steps pull_x pull_y")
    types |= pointers("i32", "arrived") | pointers("fp32", "value_out")
    types |= integers("splits_x splits_y num_x num_y num_steps") | {"ridge": "i64"}
    tiles = gaussian_tiles.tiles(d, capability)
    constants = dict(
        D=d, WIDTH=tiles.width, CHANNELS=tiles.channels, SPLITS=tiles.summed // tiles.channels,
        GROUP=2 * tiles.width // gaussian_solve._ROWS.value if alone and tiles.together else 1,
        FIT_X=alone, FIT_Y=True,
        RELATIVE=True, LEAST=gaussian_iteration.LEAST_RIDGE, TOLERANCE=gaussian_solve._CONVERGED,
        X_GRAD=x_grad, POINTS=True,
    )  # fmt: skip
    return build(
        gaussian_solve._solve_kernel, capability, types, constants,
        num_warps=tiles.solve_warps, num_stages=1,
        maxnreg=gaussian_tiles.MOST_REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip


def solve_one_of_many(capability, d):
    return solve(capability, d, x_grad=False, alone=False)


def assembled(compiled, capability, tmp_path):
    """What the assembler says of a kernel: registers and spills."""
    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    architecture, _ = TARGETS[capability]
    done = subprocess.run(
        [ASSEMBLER, "-v", f"--gpu-name={architecture}", ptx, "-o", tmp_path / "kernel.cubin"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_no_spills(compiled, capability, tmp_path, most=0):
    report = assembled(compiled, capability, tmp_path)
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", report)]
    assert spilled and max(spilled) <= most, report
    assert compiled.metadata.shared <= TARGETS[capability][1]


def assert_wide_offsets(compiled):
    """No pointer moves by a 32-bit product, except among bounds of groups (K / 32)."""
    text = compiled.asm["ttir"]
    defined = {}
    for name, operation in re.findall(r"^\s*(%[\w#]+)(?::\d+)? = (.*)$", text, re.MULTILINE):
        defined[name] = re.sub(r" loc\(.*", "", operation)

    def known(name):
        """Whether it is made of constants and ranges, which no size lets grow."""
        operation = defined.get(name, "")
        if operation.startswith(("arith.constant", "tt.make_range")):
            return True
        parts = re.findall(r"%[\w#]+", operation)
        return operation.startswith(("arith", "tt.splat", "tt.broadcast", "tt.expand")) and all(
            map(known, parts)
        )

    wide = 0
    for name, operation in defined.items():
        if not operation.startswith("tt.addptr"):
            continue
        if re.search(r"i64>?$", operation.strip()):
            wide += 1
            continue
        base, offset = re.findall(r"%[\w#]+", operation)[:2]
        while base in defined:
            base = re.findall(r"%[\w#]+", defined[base])[0]
        if base in ("%reach", "%slack", "%floor"):
            continue
        open_names, seen = [offset], set()
        while open_names:
            current = open_names.pop()
            if current in seen or current not in defined:
                continue
            seen.add(current)
            product = "muli" in defined[current] and not known(current)
            assert not product, f"{name} = {operation}: {current} is 32 bits"
            if defined[current].startswith(("arith", "tt.splat", "tt.broadcast", "tt.expand")):
                open_names += re.findall(r"%[\w#]+", defined[current])
    assert wide > 0


def case(f, capability, d, fast):
    marks = [] if fast else [pytest.mark.slow]
    return pytest.param(
        f, capability, d, id=f"{f.__name__}-{TARGETS[capability][0]}-D{d}", marks=marks
    )


FAST_SCREENS = {(90, 8), (90, 256), (80, 64), (80, 256), (100, 16), (120, 128)}
KERNELS = (
    rescore,
    scan,
    join_parts,
    ties_of_codes,
    ties_of_groups,
    survey,
    round_codes,
    round_rows,
    pieces,
    join,
)
SWEEPS = (
    sweep, sweep_same_set, sweep_diagonal, sweep_without_pull, sweep_other_rates, mean_of_points,
    prepare_points,
    gradient_of_pulls, sweep_in_double,
)  # fmt: skip
PASSES = (moments, moments_of_two, pull_back, pull_back_of_two, fit)
SOLVERS = (solve, solve_one_of_many)
FAST = [(f, 90, 33) for f in (*KERNELS, *SWEEPS)] + [(rescore, 80, 256), (scan, 100, 3)]
FAST += [(sweep, 80, 3), (sweep, 120, 64), (sweep_diagonal, 90, 16), (sweep_same_set, 100, 16)]
FAST += [(sweep_same_set, 90, d) for d in (3, 16, 32)]
FAST += [(moments_of_two, 90, 64), (pull_back_of_two, 90, 64), (moments, 120, 33)]
FAST += [(pull_back, 80, 256), (solve, 90, 64), (solve_one_of_many, 120, 16), (fit, 90, 33)]
CASES = (
    [
        case(screen, c, d, (c, d) in FAST_SCREENS)
        for c in TARGETS
        for d in (8, 16, 32, 64, 128, 256, 384)
    ]
    + [
        case(f, c, d, (f, c, d) in FAST)
        for f in (*KERNELS, *SWEEPS)
        for c in TARGETS
        for d in (3, 16, 32, 33, 64, 256)
    ]
    + [
        case(f, c, d, (f, c, d) in FAST)
        for f in (*PASSES, *SOLVERS)
        for c in TARGETS
        for d in (3, 16, 33, 64, 256)
        if f not in SOLVERS or gaussian_tiles.tiles(d, c).solve_warps
    ]
)


@pytest.mark.parametrize(("f", "capability", "d"), CASES)
def test_it_compiles_without_spills_and_with_wide_offsets(f, capability, d, tmp_path):
    compiled = f(capability, d)
    # The last two have no float64 product in Triton: its operands stay in registers. Where products
    # are a warp's, sums of a wide tile's pulls all but fit.
    few = [(sweep_in_double, 100, 120)]
    few += [(f, 80, 120) for f in (sweep, sweep_same_set, sweep_diagonal, sweep_other_rates)]
    few += [(sweep_other_rates, 90)]
    most = 32 if any(f is g and capability in where for g, *where in few) else 0
    assert_no_spills(compiled, capability, tmp_path, most)
    assert_wide_offsets(compiled)


@pytest.mark.parametrize("kernel", [sweep, sweep_same_set, sweep_diagonal])
def test_four_sweeps_of_sixteen_channels_fit_on_a_hopper_processor(kernel, tmp_path):
    compiled = kernel(90, 16)
    (registers,) = re.findall(r"Used (\d+) registers", assembled(compiled, 90, tmp_path))
    assert 4 * 32 * compiled.metadata.num_warps * int(registers) <= 65536
    assert 4 * (compiled.metadata.shared + 1024) <= 228 * 1024  # one kilobyte each is the system's


@pytest.mark.parametrize(
    "kernel",
    [
        survey,
        round_codes,
        round_rows,
        rescore,
        scan,
        join_parts,
        pieces,
        moments,
        pull_back,
        mean_of_points,
        prepare_points,
        sweep_in_double,
    ],  # fmt: skip
)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.slow
def test_half_precision_inputs(kernel, dtype, tmp_path):
    assert_no_spills(kernel(90, 33, dtype), 90, tmp_path)


def test_many_splits(tmp_path):
    assert_no_spills(rescore(90, 16, splits=nearest._MAX_SPLITS), 90, tmp_path)


@pytest.mark.parametrize("kernel", [rescore, scan, join_parts, ties_of_codes, ties_of_groups])
def test_exact_kernels_contract_nothing(kernel):
    """A multiply-add fused by the compiler would break the error-free transformations."""
    ptx = kernel(90, 8).asm["ptx"]
    assert "mul.rn.f64" in ptx and "add.rn.f64" in ptx
    assert "fma.rn.f64" not in ptx


def contracted_with_another_lane(ptx):
    """Multiply-adds that take what another lane has sent."""
    sent, found = set(), []
    for line in ptx.splitlines():
        operation, _, operands = line.split("//")[0].strip().partition(" ")
        registers = re.findall(r"%\w+", operands)
        if not registers:
            continue
        target, *sources = registers
        if operation.startswith("shfl.sync.bfly"):
            sent.add(target)
        elif sent.intersection(sources):
            if operation.startswith(("mov.", "cvt.", "shl.", "or.")):
                sent.add(target)
            elif operation.startswith("fma."):
                found.append(line)
    return found


@pytest.mark.parametrize(
    "d", [16, pytest.param(3, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kernel", [*KERNELS, *SWEEPS, *PASSES, *SOLVERS])
def test_lanes_agree_on_the_sums_they_share(kernel, d):
    """A lane that adds its own product unrounded to the rounded one of its neighbour has another
    sum than the neighbour, and each writes it to the same place: a race, of values that differ."""
    assert not contracted_with_another_lane(kernel(90, d).asm["ptx"])


def test_screen_loop_stays_in_registers():
    """Minima need no other thread: the half norms alone change their layout in the loop."""
    ttgir = screen(90, 16).asm["ttgir"]
    loop = ttgir[ttgir.index("scf.for") : ttgir.index("scf.yield")]
    assert loop.count("ttg.convert_layout") <= 1
    assert "warp_group_dot" in loop and "async_copy_global_to_local" in loop
