"""The CUDA kernels compile for Hopper GPUs and spill nothing. Needs nvcc alone."""

import ctypes
import re
import shutil
import subprocess
import types
from pathlib import Path

import pytest

from vqkern.ops.nearest_code import hopper

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


def test_the_library_has_what_python_calls(monkeypatch):
    """Names and types of arguments, read off both sides."""
    text = (SOURCES / "api.cu").read_text()
    declared = dict(re.findall(r"vqkern_hopper_(\w+)\(([^)]*)\)\s*{", text))
    kinds = {
        name: [
            ctypes.c_void_p if "*" in a or "cudaStream_t" in a else ctypes.c_int
            for a in arguments.split(",")
        ]
        for name, arguments in declared.items()
        if arguments
    }
    called = {}

    class Library:
        def __getattr__(self, name):
            return called.setdefault(name.removeprefix("vqkern_hopper_"), types.SimpleNamespace())

    monkeypatch.setattr(hopper.backend, "hopper", Library)
    hopper._library.__wrapped__()
    assert called.pop("error").restype is ctypes.c_char_p
    assert set(called) == set(declared) - {"abi", "error"}
    for name, function in called.items():
        assert function.argtypes == kinds[name], name
        size = re.search(rf"(\w+) vqkern_hopper_{name}\(", text).group(1)
        assert function.restype is {"int": ctypes.c_int, "int64_t": ctypes.c_int64}[size], name
