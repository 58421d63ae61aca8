"""The cases that are measured, as data: `compare.py` and the pytest-benchmark suites run them."""

from __future__ import annotations

from dataclasses import replace

from vqkern.bench import DATA, Case

# (N, K, D): small codes, then the codebook grows and with it D.
SHAPES = ((16384, 16384, 8), (8192, 65536, 16), (4096, 65536, 64), (2048, 262144, 256))
# Few channels, where most codes are out of a row's reach.
FEW_CHANNELS = [Case(16384, 65536, 4), Case(8192, 65536, 8), Case(16384, 262144, 8)]
# Codebooks of other tokenizers, and those that a product of codebooks is made of.
FEW_CODES = [
    Case(16384, *shape)
    for shape in ((64, 64), (256, 8), (256, 64), (512, 64), (1024, 16), (1024, 256))
]
# How the time depends on the number of vectors, for two codebooks (K, D); several peers switch
# between a slow and a fast path somewhere. One N of each sweep is among the shapes.
SWEPT = ((16384, 8), (65536, 64))
SWEEP = (1, 16, 64, 256, 1024, 4096)
LARGEST = 16384
# Half precision, at a shape where the slowest CPU path of a peer still takes a second.
HALF = [Case(4096, 16384, 8, dtype=dtype) for dtype in ("float16", "bfloat16")]

_GAUSSIAN = [Case(*shape) for shape in SHAPES]
_SWEEPS = [Case(n, k, d) for k, d in SWEPT for n in (*SWEEP, LARGEST) if (n, k, d) not in SHAPES]

NEAREST_CODE = [
    *_GAUSSIAN,
    *FEW_CHANNELS,
    *FEW_CODES,
    *(Case(*SHAPES[0], data=data) for data in DATA if data != "gaussian"),
    *(Case(*shape, data="near") for shape in SHAPES[1:]),
    *(case for case in _SWEEPS if (case.n, case.k) != (LARGEST, 65536)),
    *HALF,
]
NEAREST_CODE_FULL = [
    *_GAUSSIAN,
    *FEW_CHANNELS,
    *FEW_CODES,
    *(Case(*shape, data=data) for shape in SHAPES for data in DATA if data != "gaussian"),
    *_SWEEPS,
    *HALF,
    *(Case(*shape, dtype=half.dtype) for shape in SHAPES[1:3] for half in HALF),
]
CODE_SUMS = [
    Case(*shape, op="code_sums")
    for shape in ((16384, 16384, 8), (65536, 16384, 8), (65536, 65536, 16), (65536, 65536, 256))
]
SQUARED_MMD = [
    Case(*shape, op="squared_mmd")
    for shape in ((1024, 2048, 8), (2048, 4096, 16), (8192, 16384, 16))
]
GAUSSIAN_W2 = [
    *(Case(*shape, op="gaussian_w2") for shape in ((8192, 65536, 16), (8192, 262144, 64))),
    Case(8192, 65536, 16, data="flat", op="gaussian_w2"),
]
# The last is there for its memory: an N x K matrix of float32 would take 17 GB.
LAYER_STEP = [
    Case(*shape, op="layer_step")
    for shape in ((8192, 16384, 32), (8192, 65536, 16), (16384, 262144, 256))
]
LAYER_STEP_EMA = [replace(case, op="layer_step_ema") for case in LAYER_STEP]

CASES = {
    "nearest_code": NEAREST_CODE,
    "code_sums": CODE_SUMS,
    "squared_mmd": SQUARED_MMD,
    "gaussian_w2": GAUSSIAN_W2,
    "layer_step": LAYER_STEP,
    "layer_step_ema": LAYER_STEP_EMA,
}
CASES_FULL = {**CASES, "nearest_code": NEAREST_CODE_FULL}

# The pytest-benchmark suites: small enough to be run after every change.
SUITES = {
    "nearest_code": [
        Case(256, 65536, 64),
        *(Case(1024, 8192, 16, data=data) for data in DATA),
    ],
    "code_sums": [Case(4096, 16384, 8, op="code_sums"), *CODE_SUMS[1:3]],
    "squared_mmd": SQUARED_MMD[:1],
    "gaussian_w2": [GAUSSIAN_W2[0], GAUSSIAN_W2[2]],
    "layer_step": [Case(2048, 16384, 32, op="layer_step")],
    "layer_step_ema": [Case(2048, 16384, 32, op="layer_step_ema")],
}


def cases(op: str, *, full: bool = False, device: str = "cpu") -> list[Case]:
    """The comparison's cases of an op on a device."""
    return [replace(case, device=device) for case in (CASES_FULL if full else CASES)[op]]
