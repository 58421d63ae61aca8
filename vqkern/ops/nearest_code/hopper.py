"""CUDA C++ screens of `nearest_code` for Hopper GPUs (csrc/cuda), squared L2, up to 256 channels.

Up to HALF_CHANNELS channels, halves: the tensor cores return half the squared distances themselves,
the norms riding along as channels, and a score costs half an instruction. Beyond, int8 at twice the
rate of halves: codes lie in the order of their norms, so that the largest product of a group of
neighbours bounds its lowest score and norms never enter the hot loop. Both keep, for each row, a
list of the groups that could hold the nearest code; csrc/cuda/decide.cu measures those, and the
Triton kernels settle ties and take what a list could not hold.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import backend
from . import certificate

if TYPE_CHECKING:
    from .triton_kernels import Screen

HALF_CHANNELS = 48
_ROWS = 256  # of a block
_CHUNK_ROWS = 1 << 16  # rows screened together: bounds the memory of the lists
_CANDIDATES = 128  # codes of a row that are measured after an int8 screen
_MANY_PRODUCTS = 1 << 40  # some two milliseconds of an H100
_SPLITS = (1, 2, 4, 8, 16)
# Of the half and the int8 screen: codes of a tile, entries of a list.
_COLUMNS = (256, 128)
_CAPACITY = (8, 32)


@functools.cache
def _library() -> ctypes.CDLL:
    module = backend.hopper()
    if isinstance(module, ImportError):
        raise module
    module.vqkern_hopper_error.restype = ctypes.c_char_p
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for name, arguments in {
        "codes_bytes": [number] * 3,
        "rows_bytes": [number] * 3,
        "survey": [number, pointer, number, number, *[pointer] * 3],
        "pack_codes": [number, pointer, number, number, *[pointer] * 3],
        "search": [
            number, pointer, number, pointer, number, number, *[pointer] * 7, number, number,
            *[pointer] * 9,
        ],
    }.items():  # fmt: skip
        function = getattr(module, f"vqkern_hopper_{name}")
        function.argtypes = arguments
        function.restype = ctypes.c_int64 if name.endswith("bytes") else ctypes.c_int
    return module


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def choose_splits(row_blocks: int, tiles: int, processors: int) -> int:
    """In how many parts the codes are screened, so that the last wave of blocks is full enough."""

    def cost(splits: int) -> float:
        waves = -(-row_blocks * splits // processors)
        return waves / splits * (1 + 0.02 * splits)

    return min((s for s in _SPLITS if s == 1 or s * 4 <= tiles), key=cost)


def nearest_code(z: Tensor, codes: Tensor, *, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """Index int64 [N] and squared distance float32 [N] of z [N, D] and codes [K, D].

    float16, bfloat16 or float32 each, any strides, on a Hopper GPU. `splits` is for tests; the
    result does not depend on it.
    """
    z, codes = _plain(z), _plain(codes)
    n, device = len(z), z.device
    index = torch.empty(n, dtype=torch.int64, device=device)
    distance = torch.empty(n, dtype=torch.float32, device=device)
    if n == 0:
        return index, distance
    with torch.cuda.device_of(z):
        prepared = _Codes(codes)
        for start in range(0, n, _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            prepared.search(z[part], index[part], distance[part], splits)
    return index, distance


def _plain(x: Tensor) -> Tensor:
    """Contiguous float32, aligned to 16 bytes; float16 and bfloat16 at their exact values."""
    x = x.detach().float().contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def _enqueue(name: str, *arguments: Tensor | int | None) -> None:
    """Calls a function of the library, with its work on the current stream."""
    module = _library()
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    stream = torch.cuda.current_stream().cuda_stream
    code = getattr(module, f"vqkern_hopper_{name}")(*plain, stream)
    if code:
        message = module.vqkern_hopper_error(code).decode()
        raise RuntimeError(f"nearest_code: the CUDA kernel {name} failed: {message}")


class _Codes:
    """Codes packed for a screen."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes
        (k, d), device = codes.shape, codes.device
        self.int8 = int(d > HALF_CHANNELS)
        self.columns, self.capacity = _COLUMNS[self.int8], _CAPACITY[self.int8]
        size = _library().vqkern_hopper_codes_bytes(self.int8, k, d)
        self.prepared = torch.empty(size, dtype=torch.uint8, device=device)
        norms = torch.empty(k, device=device) if self.int8 else None
        _enqueue("survey", self.int8, codes, k, d, self.prepared, norms)
        self.order = norms.argsort(stable=True) if self.int8 else None
        _enqueue("pack_codes", self.int8, codes, k, d, self.order, self.prepared)

    def search(self, z: Tensor, index: Tensor, distance: Tensor, splits: int | None) -> None:
        from . import triton_decide, triton_kernels

        (n, d), k, device = z.shape, len(self.codes), z.device
        if splits is None:
            tiles = -(-k // self.columns)
            splits = choose_splits(-(-n // _ROWS), tiles, _processors(device))
        size = _library().vqkern_hopper_rows_bytes(self.int8, n, d)
        rows = torch.empty(size, dtype=torch.uint8, device=device)
        state = torch.empty(n, dtype=torch.int8, device=device)
        kept = torch.empty(splits, n, 4, self.capacity, 2, dtype=torch.int32, device=device)
        kept_count = torch.empty(splits, n, 4, dtype=torch.int32, device=device)
        upper = torch.empty(splits, n, device=device)
        candidates = None
        if self.int8:
            candidates = torch.empty(n, _CANDIDATES, dtype=torch.int32, device=device)
        tied, left = triton_decide.no_rows(n, device, 2)
        recording = certificate.recording(device)
        measured = torch.zeros(1, dtype=torch.int64, device=device) if recording else None
        _enqueue(
            "search", self.int8, z, n, self.codes, k, d, self.order, self.prepared, rows, state,
            kept, kept_count, upper, splits, self.capacity, candidates, index, distance, *tied,
            *left, measured,
        )  # fmt: skip
        if self.int8:
            triton_decide.settle_codes(z, self.codes, candidates, tied, index, distance)
        else:
            triton_decide.settle_groups(
                z, self.codes, kept, kept_count, upper, self.columns // 4, tied, index, distance
            )
        # What int8 cannot narrow down, the finer screen of the Triton kernels mostly can; halves
        # have its precision already.
        finer = None
        if self.int8:
            if _unseen(n * k * d) or int(left.count) > 0:
                finer = triton_kernels.search_rows(z, self.codes, left, index, distance)
        else:
            spread = self.prepared[:8].view(torch.float64)
            triton_decide.scan(z, self.codes, spread, left, index, distance)
        if recording:
            _record(state, int(measured), finer, int(left.count), k)


def _unseen(products: int) -> bool:
    """Whether launches are made without a look at the number of rows left, which waits for it.

    To launch the finer screen takes two milliseconds of the host, more than most searches take.
    """
    return products >= _MANY_PRODUCTS or torch.cuda.is_current_stream_capturing()


def _record(state: Tensor, measured: int, finer: Screen | None, left: int, k: int) -> None:
    """Adds the search to the open certificates."""
    from .triton_decide import NO_CODE, SCANNED, SCREENED
    from .triton_kernels import counts_of

    kinds = torch.bincount(state.long(), minlength=3).tolist()
    counts = {
        "rows": len(state),
        "certified": kinds[SCREENED.value],
        "candidates": measured,
        "scanned": kinds[SCANNED.value],
        "invalid": kinds[NO_CODE.value],
    }
    if finer is not None:
        more = counts_of(finer, left, k)
        counts["certified"] += more["certified"]
        counts["candidates"] += more["candidates"]
        counts["scanned"] += more["scanned"] - left
    certificate.record(**counts)
