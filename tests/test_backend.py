"""Backends: what runs where, what a request by name says, and a native module that is broken."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from vqkern import backend


def run_python(script: str, **env) -> str:
    import os

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_auto_takes_what_runs():
    choice = backend.choose("op", "auto", torch.device("cpu"), {"torch": backend.always})
    assert choice == "torch"
    refuse = {"torch": backend.always, "cpp": lambda: "not today"}
    assert backend.choose("op", "auto", torch.device("cpu"), refuse) == "torch"


def test_an_explicit_request_runs_or_raises():
    device = torch.device("cpu")
    with pytest.raises(backend.BackendUnavailable, match="does not support this call: not today"):
        backend.choose("op", "torch", device, {"torch": lambda: "not today"})
    with pytest.raises(
        backend.BackendUnavailable, match="'cuda' does not implement it; it has torch"
    ):
        backend.choose("op", "cuda", device, {"torch": backend.always})
    with pytest.raises(backend.BackendUnavailable, match="'tpu' is not one of 'auto', 'torch'$"):
        backend.choose("op", "tpu", device, {"torch": backend.always})


def test_a_call_that_a_backend_does_not_support_names_the_reason():
    support = {"torch": backend.always, "cpp": lambda: "of a reason"}
    assert backend.choose("op", "auto", torch.device("cpu"), support) == "torch"
    if backend.status()["cpp"].available:
        with pytest.raises(ValueError, match="backend='cpp'.*of a reason"):
            backend.choose("op", "cpp", torch.device("cpu"), support)


@pytest.mark.parametrize(
    "sabotage,reason",
    [
        ("sys.modules['vqkern._native'] = None", "broken|not built"),
        (
            """
            import importlib.machinery, importlib.abc
            class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
                def find_spec(self, name, path, target=None):
                    if name == 'vqkern._native':
                        return importlib.machinery.ModuleSpec(name, self)
                def create_module(self, spec):
                    raise ImportError('libgomp.so.1: cannot open shared object file')
                def exec_module(self, module):
                    pass
            sys.meta_path.insert(0, Broken())
            """,
            "libgomp.so.1: cannot open",
        ),
    ],
    ids=["missing", "broken"],
)
def test_without_the_native_module_everything_works_and_says_why(sabotage, reason):
    output = run_python(
        "import sys\n"
        + textwrap.dedent(sabotage)
        + textwrap.dedent("""
        import torch, vqkern
        from vqkern import info
        z, codes = torch.randn(9, 3), torch.randn(7, 3)
        assert vqkern.nearest_code(z, codes).index.shape == (9,)
        q = vqkern.build_quantizer('mmd', dim=3, codebook_size=7)
        q(z).loss.backward()
        try:
            vqkern.nearest_code(z, codes, backend='cpp')
        except ValueError as error:
            print(error)
        print(info.describe())
        """)
    )
    import re

    assert "backend='cpp' cannot run here" in output
    assert len(re.findall(reason, output)) >= 2, output


def test_import_is_light():
    output = run_python(
        """
        import sys, time
        import torch
        before = set(sys.modules)
        start = time.process_time()  # other programs do not count
        import vqkern
        print(time.process_time() - start)
        heavy = {'triton', 'torchvision', 'matplotlib', 'skimage', 'PIL', 'tqdm', 'scipy'}
        print(sorted(heavy & (set(sys.modules) - before)))
        print(sorted({'triton', 'torchvision'} & set(sys.modules)))
        """
    )
    seconds, added, forbidden = output.splitlines()
    assert float(seconds) < 0.5
    assert added == "[]" and forbidden == "[]"


@pytest.mark.parametrize("content", [b"no library", None])
def test_cuda_kernels_that_are_damaged_or_foreign_are_told(monkeypatch, tmp_path, content):
    """None: a library, and not this one."""
    file = tmp_path / "_hopper.so"
    if content is None:
        if isinstance(backend.native(), ImportError):
            pytest.skip("there is no other library at hand")
        content = Path(backend.native().__file__).read_bytes()
    file.write_bytes(content)
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "backend.py"))
    found = backend._load_hopper()
    assert isinstance(found, ImportError) and "its kernels are broken" in str(found)
