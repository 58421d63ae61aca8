"""The matrix unit's kernel where there is no matrix unit: its tile instructions in software."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vqkern import backend

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")
FLAGS = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mamx-tile -mamx-int8"

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs g++"),
    pytest.mark.skipif(
        "AVX-512 VNNI" not in getattr(backend.native(), "cpu_kernels", list)(),
        reason="needs AVX-512 VNNI",
    ),
]


def test_the_search_on_emulated_tiles(tmp_path):
    sources = ROOT / "csrc" / "cpu"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-fopenmp", "-DVQKERN_X86=1"]
    flags += [f"-I{sources}"]
    names = ("nearest_code", "codebook", "packing", "cells", "exact", "isa_portable")
    jobs = [[*flags, "-c", sources / f"{name}.cpp", "-o", tmp_path / f"{name}.o"] for name in names]
    software = ["-include", ROOT / "tests" / "csrc" / "tiles_in_software.h"]
    source, result = sources / "isa_amx.cpp", tmp_path / "isa_amx.o"
    jobs.append([*flags, *FLAGS.split(), *software, "-c", source, "-o", result])
    for job in jobs:
        subprocess.run([COMPILER, *job], check=True)
    program = tmp_path / "amx_search"
    objects = sorted(tmp_path.glob("*.o"))
    main = ROOT / "tests" / "csrc" / "amx_search.cpp"
    subprocess.run([COMPILER, *flags, main, *objects, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
