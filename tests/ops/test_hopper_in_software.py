"""The CUDA kernels for Hopper GPUs without one: threads, warps, copies and tensor-core products are
in software (tests/csrc/hopper_in_software), the Triton kernels behind them interpreted.

What software cannot show (how operands must lie, what the compiler reorders, speed) needs a GPU.
"""

import ctypes
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpreting import INTERPRETED, interpreted
from support import assert_no_regret, lattice_oracle

import vqkern
from vqkern.ops.nearest_code import reference

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings it")

from vqkern.ops.nearest_code import hopper  # noqa: E402

COMPILER = shutil.which("g++")
HALVES = (
    COMPILER
    and not subprocess.run(
        [COMPILER, "-fsyntax-only", "-x", "c++", "-"],
        input=b"_Float16 x;",
        stderr=subprocess.DEVNULL,
    ).returncode
)
TESTS = Path(__file__).parents[1]
CUDA = TESTS.parent / "csrc" / "cuda"

pytestmark = pytest.mark.skipif(not HALVES, reason="needs g++ 12 or later")


def as_cpp(source):
    """CUDA C++ without what only nvcc reads: launches, and memory whose size a launch gives."""
    source = source.replace(
        "extern __shared__ __align__(128) uint8_t memory[]",
        "uint8_t* memory = in_software::shared_memory",
    )
    return re.sub(r"(\w+)<<<(.*?)>>>\(", r"in_software::launch(\2)(\1, ", source, flags=re.S)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not INTERPRETED:
        return None  # it is built in the process that interprets
    folder = tmp_path_factory.mktemp("hopper")
    shutil.copytree(TESTS / "csrc" / "hopper_in_software", folder, dirs_exist_ok=True)
    shutil.copy(CUDA / "screen.cuh", folder)
    flags = "-O2 -std=c++20 -fPIC -ffp-contract=off -fno-strict-aliasing -w -march=native".split()
    builds = []
    for source in sorted(CUDA.glob("*.cu")):
        cpp = folder / f"{source.stem}.cpp"
        cpp.write_text(as_cpp(source.read_text()))
        builds.append(subprocess.Popen([COMPILER, *flags, "-I", folder, "-c", cpp], cwd=folder))
    assert [build.wait() for build in builds] == [0] * 4
    objects = sorted(folder.glob("*.o"))
    path = folder / "hopper.so"
    subprocess.run([COMPILER, "-shared", *objects, "-o", path], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(autouse=True)
def in_software(monkeypatch, library):
    if INTERPRETED:
        monkeypatch.setattr(hopper.backend, "hopper", lambda: library)
        monkeypatch.setattr(hopper, "_processors", lambda device: 2)
        stream = SimpleNamespace(cuda_stream=None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        hopper._library.cache_clear()
    yield
    hopper._library.cache_clear()


def nearest(z, codes, splits=None):
    with vqkern.certificates() as certificate:
        index, distance = hopper.nearest_code(z, codes, splits=splits)
    return index, distance, certificate


def assert_as_reference(z, codes, splits=None):
    index, distance, certificate = nearest(z, codes, splits)
    expected = reference.nearest_code(z, codes, "l2")
    assert torch.equal(index, expected[0]) and torch.equal(distance, expected[1])
    return certificate


# A product more of halves, the change to int8, a product more of int8, the widest.
@pytest.mark.parametrize("d", [1, 12, 13, 37, 48, 49, 64, 65, 256])
@interpreted
def test_lattice_and_certificate(d):
    z, codes = torch.randint(-8, 9, (30, d)).float(), torch.randint(-8, 9, (600, d)).float()
    index, distance, _ = nearest(z, codes)
    expected, squared = lattice_oracle(z, codes)
    assert torch.equal(index, expected) and torch.equal(distance, squared.float())
    z, codes = torch.randn(30, d), torch.randn(600, d)
    index, _, certificate = nearest(z, codes)
    assert_no_regret(z, codes, index)
    assert certificate.share == 1
    assert 30 <= certificate.candidates < 30 * 600


# Both sides of a block of rows, of a group, of a tile.
@pytest.mark.parametrize(
    ("n", "k"), [(0, 5), (1, 1), (255, 63), (256, 64), (257, 65), (31, 128), (33, 257)]
)
@pytest.mark.parametrize("d", [5, 70])
@interpreted
def test_sizes(n, k, d):
    assert_as_reference(torch.randn(n, d), torch.randn(k, d))


@pytest.mark.parametrize("d", [8, 100])
@pytest.mark.parametrize("splits", [1, 2, 16])
@interpreted
def test_splits_change_nothing(d, splits):
    z = torch.randn(20, d)
    z[5, 0] = math.nan
    assert assert_as_reference(z, torch.randn(2500, d), splits).invalid == 1


@pytest.mark.parametrize("d", [3, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@interpreted
def test_half_inputs_and_odd_addresses(d, dtype):
    z, codes = torch.randn(30, d).to(dtype), torch.randn(300, d).to(dtype)
    assert_as_reference(z, codes)
    flat = torch.cat([torch.zeros(1), codes.float().flatten()])
    assert_as_reference(z, flat[1:].view(300, d))


@pytest.mark.parametrize("d", [8, 64])
@interpreted
def test_more_candidates_than_a_list_holds(d):
    """Codes packed more closely than the screen's format can tell apart: lists run over, and the
    rows among them are decided in another way.
    """
    centre = torch.randn(1, d) * 10
    codes = torch.cat([torch.randn(300, d) * 10, centre + 1e-5 * torch.randn(2500, d)])
    z = torch.cat([centre + 1e-5 * torch.randn(4, d), torch.randn(16, d) * 10])
    certificate = assert_as_reference(z, codes, splits=1)
    assert certificate.scanned == 4


@pytest.mark.parametrize("d", [8, 64])
@interpreted
def test_what_a_later_code_rules_out_may_be_lost(d):
    """Lists run over before the nearest code comes, which makes that good."""
    codes = torch.cat([1e-5 * torch.randn(2500, d), torch.randn(300, d) * 10])
    z = codes[2600:2616] + 0.1 * torch.randn(16, d)
    certificate = assert_as_reference(z, codes, splits=1)
    assert certificate.scanned == 0


@pytest.mark.parametrize("d", [8, 64])
@interpreted
def test_codes_that_rounding_confuses(d):
    base = torch.randn(150, d)
    codes = torch.cat([base + 2e-3 * torch.randn(150, d) for _ in range(4)])
    assert_as_reference(base[:20] + 0.3 * torch.randn(20, d), codes)


@pytest.mark.parametrize("d", [3, 8, 48])
@pytest.mark.parametrize("apart", [1, 32])
@interpreted
def test_codes_that_float32_cannot_tell_apart(d, apart):
    """Neighbours, which two lanes measure, or codes of one lane: one of each pair is a unit in the
    last place nearer.
    """
    codes = torch.randn(512, d)
    first = torch.arange(512).view(-1, 2, apart)[:, 0].flatten()
    codes[first + apart] = codes[first]
    channel = torch.randint(d, (256,))
    codes[first + apart, channel] = codes[first, channel].nextafter(torch.randn(256) * 9)
    z = codes[first[:40]] + 0.1 * torch.randn(40, d)
    certificate = assert_as_reference(z, codes)
    assert certificate.candidates > 60


@interpreted
def test_few_codes_are_measured_in_float64():
    z, codes = torch.randn(40, 8), torch.randn(4096, 8)
    certificate = assert_as_reference(z, codes)
    assert 40 <= certificate.candidates < 45


@pytest.mark.parametrize("d", [8, 64])
@interpreted
def test_ties_outliers_and_values_that_are_not_finite(d):
    codes = torch.randn(30, d).repeat(4, 1)
    codes[7] *= 1e4
    codes[3::30, 1] = math.inf
    z = torch.randn(12, d)
    z[0, 0], z[1, 2], z[2] = math.nan, -math.inf, 0
    z[3], z[4], z[5] = 1e30, 1e-30, 3e4
    z[6:9] = codes[11:14]
    assert assert_as_reference(z, codes).invalid == 2


@pytest.mark.parametrize("d", [8, 64])
@interpreted
def test_no_code_is_finite_or_all_are_one(d):
    z = torch.randn(5, d)
    index, distance, _ = nearest(z, torch.full((300, d), math.nan))
    assert bool((index == -1).all()) and bool((distance == math.inf).all())
    index, _, _ = nearest(z, torch.ones(700, d))
    assert not index.any()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-22, 1e-15, 1e-10, 1e10, 1e18, 6e18])
@pytest.mark.parametrize("d", [8, 64])
@interpreted
def test_any_scale(d, scale):
    z, codes = torch.randn(30, d) * scale, torch.randn(300, d) * scale
    index, distance, certificate = nearest(z, codes)
    assert torch.equal(index, reference.nearest_code(z, codes, "l2")[0])
    assert certificate.share == 1
