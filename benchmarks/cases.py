"""The cases that are measured, as data: `compare.py` and the pytest-benchmark suites run them."""

from __future__ import annotations

from dataclasses import replace

from vqkern.bench import DATA, Case

# (N, K, D): small codes, then the codebook grows and with it D.
SHAPES = ((16384, 16384, 8), (8192, 65536, 16), (4096, 65536, 64), (2048, 262144, 256))
# How the time depends on the number of vectors, at K = 16384, D = 8. 16384 is among the shapes.
SWEEP = (64, 256, 1024, 4096)
FULL_SWEEP = (16, 64, 256, 1024, 4096, 65536)
# The first shape on every other kind of data. faiss takes its faster kernel there: at half of N x K
# and the same D, faiss 1.15.1 takes several times as long.
_EVERY_DATA = [Case(*SHAPES[0], data=data) for data in DATA if data != "gaussian"]

NEAREST_CODE = [
    *(Case(*shape) for shape in SHAPES),
    *(Case(n, 16384, 8) for n in SWEEP),
    *_EVERY_DATA,
]
NEAREST_CODE_FULL = [
    *(Case(*shape, data=data) for shape in SHAPES for data in DATA),
    *(Case(n, 16384, 8) for n in FULL_SWEEP),
]
CODE_SUMS = [
    Case(*shape, op="code_sums")
    for shape in ((16384, 16384, 8), (65536, 16384, 8), (65536, 65536, 16), (65536, 65536, 256))
]
SQUARED_MMD = [Case(*shape, op="squared_mmd") for shape in ((1024, 2048, 8), (2048, 4096, 16))]

GAUSSIAN_W2 = [
    *(Case(*shape, op="gaussian_w2") for shape in ((8192, 65536, 16), (8192, 262144, 64))),
    Case(8192, 65536, 16, data="flat", op="gaussian_w2"),
]

CASES = {
    "nearest_code": NEAREST_CODE,
    "code_sums": CODE_SUMS,
    "squared_mmd": SQUARED_MMD,
    "gaussian_w2": GAUSSIAN_W2,
}
CASES_FULL = {**CASES, "nearest_code": NEAREST_CODE_FULL}

# The pytest-benchmark suites: small enough to be run after every change.
SUITES = {
    "nearest_code": [
        Case(1024, 65536, 64),
        *(Case(4096, 8192, 16, data=data) for data in DATA),
    ],
    "code_sums": CODE_SUMS[:3],
    "squared_mmd": SQUARED_MMD[:1],
    "gaussian_w2": [GAUSSIAN_W2[0], GAUSSIAN_W2[2]],
}


def cases(op: str, *, full: bool = False, device: str = "cpu") -> list[Case]:
    """The comparison's cases of an op on a device."""
    return [replace(case, device=device) for case in (CASES_FULL if full else CASES)[op]]
