"""Peak extra memory of one call, measured in a process of its own.

A helper process imports the package and nothing more; each measurement forks it, so that no
contestant sees another's heap, thread pools or caches. In the fork the inputs are made, a tiny call
loads libraries and starts threads, the kernel's peak counter is reset, and the peak of the call,
preparation included, is read against the resident set just before it. On CUDA torch's allocator
counts instead, in this process.
"""

from __future__ import annotations

import base64
import ctypes
import dataclasses
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from typing import NamedTuple

import torch

from ..machine import peak_since_reset, peak_since_start, reset_peak_memory, resident_memory
from .cases import Case
from .contestants import Contestant

CALL_LIMIT_SECONDS = 300
PEAK_RESET = "peak resident set of a forked process"
PEAK_LOWER = "growth of ru_maxrss in a forked process (a lower bound)"
CUDA_ALLOCATOR = "torch CUDA allocator"
_UNSEEN = {
    "cpu": "its first call does other work as well",
    "cuda": "it does not allocate through torch",
}


class Memory(NamedTuple):
    """Extra bytes of a call, None if not measured, and how they were measured or why not."""

    extra_bytes: int | None
    method: str


class MemoryProbe:
    """Measures one contestant at a time; a context manager that starts its helper when needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> MemoryProbe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def measure(self, contestant: Contestant, case: Case) -> Memory:
        """Peak extra memory of one call of `contestant` at torch's present thread count."""
        device = torch.device(case.device).type
        if device not in contestant.memory:
            return Memory(None, f"not measured: {_UNSEEN[device]}")
        if device == "cuda":
            return _on_cuda(contestant, case)
        if not hasattr(os, "fork"):
            return Memory(None, "not measured: this platform cannot fork")
        try:
            job = pickle.dumps((contestant.prepare, case, torch.get_num_threads()))
        except (pickle.PicklingError, AttributeError, TypeError):
            return Memory(None, "not measured: a child process cannot find this contestant by name")
        try:
            if self._process is None:
                self._process = _start()
            self._process.stdin.write(base64.b64encode(job).decode() + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError as error:
            return Memory(None, f"not measured: {error}")
        if not answer:
            self.__exit__()
            return Memory(None, "not measured: the helper process died")
        return Memory(*json.loads(answer))


def _start() -> subprocess.Popen[str]:
    program = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "from vqkern.bench.memory import serve; serve()"
    )
    command = [sys.executable, "-c", program, json.dumps(sys.path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """The helper process: one job a line on stdin, one answer a line on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a contestant prints is not an answer
    for line in sys.stdin:
        answers.write(json.dumps(_forked(base64.b64decode(line))) + "\n")
        answers.flush()


def _forked(job: bytes) -> Memory:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(CALL_LIMIT_SECONDS)
        try:
            answer = _measure_here(*pickle.loads(job))
        except BaseException as error:  # whatever it is, the parent must hear of it
            answer = Memory(None, f"not measured: {type(error).__name__}: {error}")
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return Memory(*json.loads(text))
    return Memory(None, f"not measured: the process ended with wait status {status}")


def _measure_here(prepare, case: Case, threads: int) -> Memory:
    from .operations import OPERATIONS

    torch.set_num_threads(threads)
    make = OPERATIONS[case.op].make
    with torch.no_grad():
        tiny = dataclasses.replace(case, n=min(case.n, 256), k=min(case.k, 256))
        prepare(tiny, *make(tiny))()
        inputs = make(case)
        gc.collect()
        return_free_heap()
        # ru_maxrss is second best: it cannot be reset, and a child inherits its parent's.
        resets = reset_peak_memory()
        before = resident_memory() if resets else peak_since_start()
        output = prepare(case, *inputs)()
        extra = (peak_since_reset() if resets else peak_since_start()) - before
        del output
    return Memory(max(0, extra), PEAK_RESET if resets else PEAK_LOWER)


def return_free_heap() -> None:
    """Gives freed heap back if the C library can: a call that reused it would seem to need less."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


def _on_cuda(contestant: Contestant, case: Case) -> Memory:
    from .operations import OPERATIONS

    make = OPERATIONS[case.op].make
    try:
        with torch.no_grad():
            inputs = make(case)
            contestant.prepare(case, *inputs)()  # workspaces that libraries keep are not counted
            torch.cuda.synchronize(case.device)
            torch.cuda.reset_peak_memory_stats(case.device)
            before = torch.cuda.memory_allocated(case.device)
            output = contestant.prepare(case, *inputs)()
            torch.cuda.synchronize(case.device)
            extra = torch.cuda.max_memory_allocated(case.device) - before
            del output
    except Exception as error:
        return Memory(None, f"not measured: {type(error).__name__}: {error}")
    return Memory(extra, CUDA_ALLOCATOR)
