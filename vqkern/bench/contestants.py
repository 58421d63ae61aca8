"""Who is compared: every contestant is a name, what it needs, and how to call it.

`prepare(case, *inputs)` does what is not timed and returns the timed call, whose output is a tensor
or a tuple of tensors. It is a module-level function so that a child process can find it by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case

Output = Tensor | tuple[Tensor, ...]
Call = Callable[[], Output]

# Larger score matrices are split by rows. 2^26 float32 scores are 256 MB: of 2^20 ... 2^26 the
# fastest for addmm + argmin on the CPUs tried.
CHUNK_SCORES = 1 << 26
CDIST_SCORES = 1 << 29  # 2 GB of float32
REFERENCE_SCORES = 1 << 24  # the float64 specification is for checking, not for speed


def _no_limit(case: Case) -> str | None:
    return None


@dataclass(frozen=True)
class Contestant:
    """One way of computing an op.

    Attributes:
        name: as the table shows it.
        prepare: (case, *inputs) -> the timed call.
        needs: pairs (module it imports, command that installs it).
        limit: (case) -> None if it runs this case, else the reason it does not.
        note: (case) -> what a reader of its figures must know, or "".
        ours: whether it is this package's own default; times are given relative to it.
        measure_memory: False where a cold call does other work, such as compiling.
    """

    name: str
    prepare: Callable[..., Call]
    needs: tuple[tuple[str, str], ...] = ()
    limit: Callable[[Case], str | None] = _no_limit
    note: Callable[[Case], str] = lambda case: ""
    ours: bool = False
    measure_memory: bool = True


def resolved_backend(case: Case) -> str:
    """The backend that `backend="auto"` gives this case."""
    from .. import backend as backends

    def not_slow() -> str | None:
        return None

    # float16, bfloat16 and float32 inputs: every op supports them on every backend it has.
    known = dict.fromkeys(backends.BACKENDS, not_slow)
    return backends.choose(case.op, "auto", torch.device(case.device), known)


def _auto_note(case: Case) -> str:
    extra = "; also returns the distances" if case.op == "nearest_code" else ""
    return f"backend {resolved_backend(case)}{extra}"


def _reference_limit(case: Case) -> str | None:
    if resolved_backend(case) == "torch":
        return "auto is the torch reference here"
    if case.n * case.k > REFERENCE_SCORES:
        return f"the float64 reference is timed up to N x K = 2^{REFERENCE_SCORES.bit_length() - 1}"
    return None


def _score_rows(case: Case, scores: int) -> int:
    """Rows a chunk, so that a chunk of the score matrix holds at most `scores` entries."""
    return max(1, min(case.n, scores // case.k))


def _chunk_note(scores: int) -> Callable[[Case], str]:
    def note(case: Case) -> str:
        rows = _score_rows(case, scores)
        return f"in chunks of {rows} rows" if rows < case.n else ""

    return note


# nearest_code: inputs z [N, D], codes [K, D]; output (index [N], ...).


def _auto_nearest(case: Case, z: Tensor, codes: Tensor) -> Call:
    from .. import nearest_code

    return lambda: tuple(nearest_code(z, codes))


def _reference_nearest(case: Case, z: Tensor, codes: Tensor) -> Call:
    from .. import nearest_code

    return lambda: tuple(nearest_code(z, codes, backend="torch"))


def _cdist_nearest(case: Case, z: Tensor, codes: Tensor) -> Call:
    rows = _score_rows(case, CDIST_SCORES)
    return lambda: torch.cat([torch.cdist(part, codes).argmin(-1) for part in z.split(rows)])


def _addmm_argmin(half_norm: Tensor, z: Tensor, codes: Tensor) -> Tensor:
    return torch.addmm(half_norm, z, codes.T, alpha=-1).argmin(-1)


def _addmm_nearest(case: Case, z: Tensor, codes: Tensor) -> Call:
    rows = _score_rows(case, CHUNK_SCORES)

    def call() -> Tensor:
        half_norm = codes.square().sum(-1) / 2
        return torch.cat([_addmm_argmin(half_norm, part, codes) for part in z.split(rows)])

    return call


def _compiled_nearest(case: Case, z: Tensor, codes: Tensor) -> Call:
    rows = _score_rows(case, CHUNK_SCORES)
    compiled = torch.compile(_addmm_argmin, fullgraph=True)

    def call() -> Tensor:
        half_norm = codes.square().sum(-1) / 2
        return torch.cat([compiled(half_norm, part, codes) for part in z.split(rows)])

    return call


def _faiss_nearest(case: Case, z: Tensor, codes: Tensor) -> Call:
    import faiss

    index = faiss.IndexFlatL2(case.d)
    index.add(codes.numpy())

    def call() -> Tensor:
        # Its thread count is global, and its thread pool is not torch's.
        faiss.omp_set_num_threads(torch.get_num_threads())
        return torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])

    return call


def _faiss_limit(case: Case) -> str | None:
    if case.device != "cpu":
        return "faiss-cpu runs on CPU tensors"
    return None if case.dtype == "float32" else "IndexFlatL2 takes float32"


FAISS = (("faiss", "pip install faiss-cpu"),)
NEAREST_CODE = (
    Contestant("vqkern", _auto_nearest, note=_auto_note, ours=True),
    Contestant("vqkern torch reference", _reference_nearest, limit=_reference_limit),
    Contestant("torch cdist + argmin", _cdist_nearest, note=_chunk_note(CDIST_SCORES)),
    Contestant("torch addmm + argmin", _addmm_nearest, note=_chunk_note(CHUNK_SCORES)),
    Contestant(
        "faiss IndexFlatL2",
        _faiss_nearest,
        needs=FAISS,
        limit=_faiss_limit,
        note=lambda case: "the index is built before the clock starts",
    ),
)
NEAREST_CODE_COMPILED = Contestant(
    "torch.compile addmm + argmin",
    _compiled_nearest,
    note=_chunk_note(CHUNK_SCORES),
    measure_memory=False,
)

# code_sums: inputs z [N, D], index [N]; output (count [K], total [K, D]).


def _auto_sums(case: Case, z: Tensor, index: Tensor) -> Call:
    from .. import code_sums

    return lambda: tuple(code_sums(z, index, case.k))


def _reference_sums(case: Case, z: Tensor, index: Tensor) -> Call:
    from .. import code_sums

    return lambda: tuple(code_sums(z, index, case.k, backend="torch"))


def _sums_reference_limit(case: Case) -> str | None:
    return "auto is the torch reference here" if resolved_backend(case) == "torch" else None


def _index_add_sums(case: Case, z: Tensor, index: Tensor) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        total = z.new_zeros(case.k, case.d).index_add_(0, index, z)
        return torch.bincount(index, minlength=case.k), total

    return call


def _one_hot_sums(case: Case, z: Tensor, index: Tensor) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        one_hot = torch.zeros(case.n, case.k, dtype=z.dtype, device=z.device)
        one_hot.scatter_(1, index[:, None], 1)
        return one_hot.sum(0), one_hot.T @ z

    return call


def _one_hot_limit(case: Case) -> str | None:
    too_big = case.n * case.k > CDIST_SCORES
    return "its N x K one-hot matrix would exceed 2 GB" if too_big else None


CODE_SUMS = (
    Contestant("vqkern", _auto_sums, note=_auto_note, ours=True),
    Contestant("vqkern torch reference", _reference_sums, limit=_sums_reference_limit),
    Contestant("torch index_add + bincount", _index_add_sums),
    Contestant("torch one-hot matmul", _one_hot_sums, limit=_one_hot_limit),
)

# squared_mmd: inputs x [N, D], y [K, D], bandwidths [B]; output (value, gradient of y [K, D]).


def _auto_mmd(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    return lambda: _mmd_and_gradient(x, y, bandwidths, "auto")


def _reference_mmd(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    return lambda: _mmd_and_gradient(x, y, bandwidths, "torch")


def _mmd_and_gradient(x: Tensor, y: Tensor, bandwidths: Tensor, backend: str) -> Output:
    from .. import squared_mmd

    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        value = squared_mmd(x, leaf, bandwidths, backend=backend)
        return value.detach(), torch.autograd.grad(value, leaf)[0]


def _autograd_mmd(case: Case, x: Tensor, y: Tensor, bandwidths: Tensor) -> Call:
    rates = bandwidths.to(x.dtype).reciprocal()

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.addmm(b.square().sum(-1), a, b.T, alpha=-2)
        squared = (squared + a.square().sum(-1, keepdim=True)).clamp_min(0)
        return sum(torch.exp(-rate * squared).mean() for rate in rates)

    def call() -> Output:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            value = mean_kernel(x, x) + mean_kernel(leaf, leaf) - 2 * mean_kernel(x, leaf)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

    return call


def _autograd_mmd_limit(case: Case) -> str | None:
    # Autograd keeps about two matrices a bandwidth, and there are five bandwidths.
    matrices = case.n * case.n + case.k * case.k + case.n * case.k
    return "autograd would keep over 4 GB" if matrices * 4 * 11 > 4 << 30 else None


SQUARED_MMD = (
    Contestant("vqkern", _auto_mmd, note=_auto_note, ours=True),
    Contestant("vqkern torch reference", _reference_mmd, limit=_reference_limit),
    Contestant("torch kernel matrices + autograd", _autograd_mmd, limit=_autograd_mmd_limit),
)

# gaussian_w2: inputs x [N, D], y [K, D]; output (value, gradient of y [K, D]).


def _value_and_gradient(loss: Callable[[Tensor], Tensor], y: Tensor) -> Output:
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]


def _auto_w2(case: Case, x: Tensor, y: Tensor) -> Call:
    from .. import gaussian_w2

    return lambda: _value_and_gradient(lambda leaf: gaussian_w2(x, leaf), y)


def _reference_w2(case: Case, x: Tensor, y: Tensor) -> Call:
    from .. import gaussian_w2

    return lambda: _value_and_gradient(lambda leaf: gaussian_w2(x, leaf, backend="torch"), y)


def _eigh_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-12).sqrt()) @ vectors.mT


def _autograd_w2(dtype: torch.dtype, x: Tensor, y: Tensor) -> Call:
    """Covariances, eigh and autograd through its eigenvectors, as public trainers write it."""

    def loss(leaf: Tensor) -> Tensor:
        a, b = x.to(dtype), leaf.to(dtype)
        s1, s2 = a.T.cov(), b.T.cov()
        root = _eigh_root(s1)
        cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(1e-12).sqrt().sum()
        apart = (a.mean(0) - b.mean(0)).square().sum()
        return apart + s1.trace() + s2.trace() - 2 * cross

    return lambda: _value_and_gradient(loss, y)


def _autograd_w2_float32(case: Case, x: Tensor, y: Tensor) -> Call:
    return _autograd_w2(torch.float32, x, y)


def _autograd_w2_float64(case: Case, x: Tensor, y: Tensor) -> Call:
    return _autograd_w2(torch.float64, x, y)


def _scipy_w2(case: Case, x: Tensor, y: Tensor) -> Call:
    import numpy as np
    from scipy.linalg import sqrtm

    def call() -> Output:
        a, b = x.double().numpy(), y.double().numpy()
        s1, s2 = np.cov(a.T).reshape(case.d, -1), np.cov(b.T).reshape(case.d, -1)
        centred = b - b.mean(0)
        apart = b.mean(0) - a.mean(0)
        # S1 S2 is not symmetric; its root is, up to similarity, that of S1^1/2 S2 S1^1/2.
        root = sqrtm(s1 @ s2).real
        t = np.linalg.solve(root, s1)
        value = apart @ apart + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)
        pull = 2 / case.k * apart + 2 / (case.k - 1) * (centred - centred @ t.T)
        return torch.tensor(value), torch.from_numpy(pull)

    return call


def _pot_w2(case: Case, x: Tensor, y: Tensor) -> Call:
    import ot

    def loss(leaf: Tensor) -> Tensor:
        a, b = x.double(), leaf.double()
        # Its own covariances are biased: it is given ours.
        fitted = a.mean(0), b.mean(0), a.T.cov(), b.T.cov()
        return ot.gaussian.bures_wasserstein_distance(*fitted) ** 2

    return lambda: _value_and_gradient(loss, y)


def _host_limit(case: Case) -> str | None:
    return None if case.device == "cpu" else "it runs on CPU arrays"


GAUSSIAN_W2 = (
    Contestant("vqkern", _auto_w2, note=_auto_note, ours=True),
    Contestant("vqkern torch reference", _reference_w2, limit=_sums_reference_limit),
    Contestant("torch eigh + autograd, float32", _autograd_w2_float32),
    Contestant("torch eigh + autograd, float64", _autograd_w2_float64),
    Contestant(
        "scipy sqrtm, float64",
        _scipy_w2,
        needs=(("scipy", "pip install scipy"),),
        limit=_host_limit,
        note=lambda case: "with our closed form for the gradient",
    ),
    Contestant("POT, float64", _pot_w2, needs=(("ot", "pip install POT"),)),
)
