"""Builds the native module with CMake and ninja where a compiler is found.

VQKERN_BUILD=auto (default): try; if it fails, say so and install the pure-Python package.
VQKERN_BUILD=none: do not try.  VQKERN_BUILD=cpp: the CPU module must build.
VQKERN_BUILD=cuda: as cpp; this version has no CUDA C++ kernel to add.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODES = ("auto", "none", "cpp", "cuda")
MODE = os.environ.get("VQKERN_BUILD", "auto")
ROOT = Path(__file__).resolve().parent


def say(message: str) -> None:
    print(f"vqkern: {message}", file=sys.stderr, flush=True)


class CMakeBuild(build_ext):
    """Builds csrc/ in build/cmake-<python> and copies the module to where it belongs."""

    def build_extension(self, ext: Extension) -> None:
        try:
            module = self.compile()
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            if MODE != "auto":
                message = f"vqkern: VQKERN_BUILD={MODE} and the native module failed: {error}"
                raise SystemExit(message) from None
            say(f"the native module was NOT built ({error}).")
            say("Everything works through PyTorch, slower; `vqkern info` shows the state.")
            return
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced in one step: a process that has the old module mapped keeps the old file.
        partial = target.with_suffix(".partial")
        shutil.copyfile(module, partial)
        os.replace(partial, target)
        say(f"native module built: {target.name}")

    def compile(self) -> Path:
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake was not found")
        build = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI') or 'python'}"
        # A cache made by another environment's tools would be trusted over this one's.
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        generator = ["-GNinja"] if shutil.which("ninja") else []
        configure = [
            cmake, str(ROOT), *generator,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}",
            *os.environ.get("VQKERN_CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        self.run_quietly(configure, "cmake could not configure; is there a C++17 compiler?", build)
        jobs = str(min(8, os.cpu_count() or 1))
        self.run_quietly([cmake, "--build", str(build), "-j", jobs], "compiling failed", build)
        modules = [p for p in build.rglob("_native*") if p.suffix in (".so", ".pyd")]
        if not modules:
            raise RuntimeError("the build left no module")
        return modules[0]

    def run_quietly(self, command: list, failure: str, build: Path) -> None:
        result = subprocess.run(command, cwd=build, capture_output=True, text=True)
        if result.returncode:
            output = result.stdout + result.stderr
            if MODE != "auto" or self.verbose > 1:
                sys.stderr.write(output)
            words = ("error:", "No CMAKE_CXX_COMPILER")
            lines = [line.strip() for line in output.splitlines() if any(w in line for w in words)]
            raise RuntimeError(" ".join([failure, *lines[:1]]))


if MODE not in MODES:
    raise SystemExit(f"vqkern: VQKERN_BUILD={MODE!r} is not one of {', '.join(MODES)}")
if MODE == "none":
    say("VQKERN_BUILD=none: no native module; everything works through PyTorch, slower.")

setup(
    ext_modules=[]
    if MODE == "none"
    else [Extension("vqkern._native", sources=[], optional=MODE == "auto")],
    cmdclass={"build_ext": CMakeBuild},
)
