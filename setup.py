"""Builds the native module, and the kernels for Hopper GPUs, with CMake where compilers are found.

VQKERN_BUILD=auto (default): try; if it fails, say so and install what there is.
VQKERN_BUILD=none: do not try.  VQKERN_BUILD=cpp: the CPU module must build, no CUDA is tried.
VQKERN_BUILD=cuda: both must build.
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


def has_cuda(build: Path) -> bool:
    """Whether CMake found a CUDA compiler."""
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")
    return "CMAKE_CUDA_COMPILER:" in cache and "CMAKE_CUDA_COMPILER:FILEPATH=NOTFOUND" not in cache


def install(module: Path, target: Path) -> None:
    """Copies a module in one step: a process that has the old one mapped keeps the old file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copyfile(module, partial)
    os.replace(partial, target)
    say(f"built: {target.name}")


class CMakeBuild(build_ext):
    """Builds csrc/ in build/cmake-<python> and copies the modules to where they belong."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        # One that is not built now must not stay: its functions may have changed.
        target.with_name("_hopper.so").unlink(missing_ok=True)
        try:
            build = self.configure()
            install(self.compile(build, "_native"), target)
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            if MODE != "auto":
                message = f"vqkern: VQKERN_BUILD={MODE} and the native module failed: {error}"
                raise SystemExit(message) from None
            say(f"the native module was NOT built ({error}).")
            say("Everything works through PyTorch, slower; `vqkern info` shows the state.")
            return
        if MODE == "cpp":
            return
        try:
            install(self.compile(build, "_hopper"), target.with_name("_hopper.so"))
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            if MODE == "cuda":
                message = f"vqkern: VQKERN_BUILD=cuda and the CUDA kernels failed: {error}"
                raise SystemExit(message) from None
            # Few machines have nvcc, and GPUs are served by Triton without it.
            if has_cuda(build):
                say(f"the CUDA kernels were NOT built ({error}); Triton serves GPUs.")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        (ext,) = self.extensions
        built = Path(self.build_lib, *ext.name.split(".")[:-1], "_hopper.so")
        package = self.get_finalized_command("build_py").get_package_dir("vqkern")
        (Path(package) / built.name).unlink(missing_ok=True)
        if built.exists():
            install(built, Path(package) / built.name)

    def configure(self) -> Path:
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
            f"-DVQKERN_CUDA={'OFF' if MODE == 'cpp' else 'ON'}",
            *os.environ.get("VQKERN_CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        self.run_quietly(configure, "cmake could not configure; is there a C++17 compiler?", build)
        return build

    def compile(self, build: Path, target: str) -> Path:
        if target == "_hopper" and not has_cuda(build):
            raise RuntimeError("nvcc was not found, or does not work")
        jobs = str(min(8, os.cpu_count() or 1))
        command = [shutil.which("cmake"), "--build", str(build), "-j", jobs, "--target", target]
        self.run_quietly(command, "compiling failed", build)
        modules = [p for p in build.rglob(f"{target}*") if p.suffix in (".so", ".pyd")]
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
