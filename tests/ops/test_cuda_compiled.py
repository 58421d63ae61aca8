"""The CUDA kernels compile for Hopper GPUs, and their hot loops spill nothing. Needs nvcc alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the path")
def test_screens_compile_without_spills(tmp_path):
    command = [
        "nvcc", "-O3", "-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v",
        "-cubin", "-o", str(tmp_path / "screen.cubin"), str(SOURCES / "screen.cu"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = result.stdout + result.stderr
    assert "serialized" not in report  # the products would wait for each other
    frames = re.findall(
        r"screen_kernelI\S*?(Int8|Half)ELi(\d).*?(\d+) bytes spill st", report, re.S
    )
    assert len(frames) == 12  # eight numbers of products for int8, four for halves
    assert {spilled for *_, spilled in frames} == {"0"}, frames


def test_the_library_has_what_python_calls():
    """Names and numbers of arguments, read off both sides."""
    text = (SOURCES / "api.cu").read_text()
    declared = {
        name: len(arguments.split(","))
        for name, arguments in re.findall(r"vqkern_hopper_(\w+)\(([^)]*)\)\s*{", text)
    }
    python = (SOURCES.parents[1] / "vqkern/ops/nearest_code/hopper.py").read_text()
    for name in ("codes_bytes", "rows_bytes", "survey", "pack_codes", "search", "error"):
        assert name in declared and name in python
    assert declared["search"] == 24
