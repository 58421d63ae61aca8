"""The CUDA kernels compile for Hopper GPUs and spill nothing. Needs nvcc alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"


# Screens: eight numbers of products for int8, four for halves.
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the path")
@pytest.mark.parametrize(("source", "kernels"), [("screen", 12), ("pack", 9), ("decide", 2)])
def test_kernels_compile_without_spills(source, kernels, tmp_path):
    command = [
        "nvcc", "-O3", "-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v",
        "-cubin", "-o", str(tmp_path / "kernels.cubin"), str(SOURCES / f"{source}.cu"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = result.stdout + result.stderr
    assert "serialized" not in report  # the products would wait for each other
    spilled = re.findall(r"(\w+_kernel)\S*\s+\d+ bytes stack frame, (\d+) bytes spill st", report)
    assert len(spilled) == kernels and {int(n) for _, n in spilled} == {0}, report


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
