"""nearest_code: inputs z [N, D], codes [K, D]; output (index [N], ...).

Peers that take float32 only get half-precision inputs converted inside the timed call, as a user of
such inputs has to do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from .base import (
    KEOPS,
    Call,
    Contestant,
    backend_note,
    chunk_note,
    chunk_rows,
    keops_compiles,
    keops_lazy_tensor,
    power_of_two,
    reference_limit,
    scores_limit,
)
from .nearest_code_cuda import CUDA_PEERS

CDIST_SCORES = 1 << 29  # 2 GB of float32
USEARCH_SCORES = 1 << 26
LAYER_SCORES = 1 << 28  # at about 20 bytes a score
LAYER_SCORES_BY_DATA = 1 << 26
KEOPS_WORK = 1 << 33  # N x K x D


def _auto(case: Case, z: Tensor, codes: Tensor) -> Call:
    from ... import nearest_code

    return lambda: tuple(nearest_code(z, codes))


def _auto_note(case: Case) -> str:
    return f"{backend_note(case)}; also returns the distances"


def _reference(case: Case, z: Tensor, codes: Tensor) -> Call:
    from ... import nearest_code

    return lambda: tuple(nearest_code(z, codes, backend="torch"))


def _cdist(case: Case, z: Tensor, codes: Tensor) -> Call:
    rows = chunk_rows(case, CDIST_SCORES)
    return lambda: torch.cat([torch.cdist(part, codes).argmin(-1) for part in z.split(rows)])


def addmm_argmin(half_norm: Tensor, z: Tensor, codes: Tensor) -> Tensor:
    """argmin_k |e_k|^2 / 2 - z . e_k, in the precision of the inputs."""
    return torch.addmm(half_norm, z, codes.T, alpha=-1).argmin(-1)


def addmm(case: Case, z: Tensor, codes: Tensor) -> Call:
    """What most code does by hand, with a score matrix that fits into memory."""
    rows = chunk_rows(case)

    def call() -> Tensor:
        half_norm = codes.square().sum(-1) / 2
        return torch.cat([addmm_argmin(half_norm, part, codes) for part in z.split(rows)])

    return call


def _compiled(case: Case, z: Tensor, codes: Tensor) -> Call:
    rows = chunk_rows(case)
    compiled = torch.compile(addmm_argmin, fullgraph=True)

    def call() -> Tensor:
        half_norm = codes.square().sum(-1) / 2
        return torch.cat([compiled(half_norm, part, codes) for part in z.split(rows)])

    return call


def _faiss(case: Case, z: Tensor, codes: Tensor) -> Call:
    import faiss

    index = faiss.IndexFlatL2(case.d)
    index.add(codes.float().numpy())

    def call() -> Tensor:
        # Its thread count is global, and its thread pool is not torch's.
        faiss.omp_set_num_threads(torch.get_num_threads())
        return torch.from_numpy(index.search(z.float().numpy(), 1)[1][:, 0])

    return call


def _sklearn(case: Case, z: Tensor, codes: Tensor) -> Call:
    from sklearn.metrics import pairwise_distances_argmin
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController()

    def call() -> Tensor:
        with pools.limit(limits=torch.get_num_threads()):
            index = pairwise_distances_argmin(z.float().numpy(), codes.float().numpy())
        return torch.from_numpy(index)

    return call


def _usearch(case: Case, z: Tensor, codes: Tensor) -> Call:
    from usearch.index import MetricKind, search

    def call() -> Tensor:
        found = search(
            codes.float().numpy(),
            z.float().numpy(),
            1,
            MetricKind.L2sq,
            exact=True,
            threads=torch.get_num_threads(),
        )
        return torch.from_numpy(found.keys.reshape(-1).astype("int64"))

    return call


def _keops(case: Case, z: Tensor, codes: Tensor) -> Call:
    LazyTensor = keops_lazy_tensor()

    def nearest(z: Tensor, codes: Tensor) -> Tensor:
        difference = LazyTensor(z.float()[:, None]) - LazyTensor(codes.float()[None])
        return (difference**2).sum(-1).argmin(1).squeeze(-1)

    # Compiles now, not in the first call. One row is another formula to it than several.
    nearest(z[:2], codes[:2])
    return lambda: nearest(z, codes)


def _keops_limit(case: Case) -> str | None:
    if keops_compiles(case) is not None:
        return keops_compiles(case)
    if case.device == "cpu" and case.n * case.k * case.d > KEOPS_WORK:
        return f"seconds a call on a CPU: up to N x K x D = 2^{KEOPS_WORK.bit_length() - 1}"
    return None


def _vector_quantize(case: Case, z: Tensor, codes: Tensor) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(case.d, case.k, rotation_trick=False).to(z.device).eval()
    layer._codebook.embed.data = codes.float()[None]
    return lambda: layer(z[None])[1][0]


def _vector_quantize_limit(case: Case) -> str | None:
    scores = case.n * case.k
    if scores > LAYER_SCORES:
        return f"its N x K matrices would exceed 5 GB: up to {power_of_two(LAYER_SCORES)}"
    if scores > LAYER_SCORES_BY_DATA and case.data != "gaussian":
        return f"seconds a call: above {power_of_two(LAYER_SCORES_BY_DATA)} on gaussian data only"
    return None


NEAREST_CODE = (
    Contestant("vqkern", _auto, note=_auto_note, ours=True),
    Contestant("vqkern torch reference", _reference, limit=reference_limit),
    Contestant("torch cdist + argmin", _cdist, note=chunk_note(CDIST_SCORES)),
    Contestant("torch addmm + argmin", addmm, note=chunk_note()),
    Contestant(
        "faiss IndexFlatL2",
        _faiss,
        needs=(("faiss", "pip install faiss-cpu"),),
        note=lambda case: "the index is built before the clock starts",
        devices=("cpu",),
    ),
    Contestant(
        "scikit-learn argmin",
        _sklearn,
        needs=(("sklearn", "pip install scikit-learn"),),
        devices=("cpu",),
    ),
    Contestant(
        "usearch exact",
        _usearch,
        needs=(("usearch", "pip install usearch"),),
        limit=scores_limit(USEARCH_SCORES, "seconds a call"),
        devices=("cpu",),
    ),
    Contestant(
        "KeOps argmin",
        _keops,
        needs=KEOPS,
        limit=_keops_limit,
        note=lambda case: "compiled before the clock starts",
        memory=("cpu",),
    ),
    Contestant(
        "vector-quantize-pytorch",
        _vector_quantize,
        needs=(("vector_quantize_pytorch", "pip install vector-quantize-pytorch"),),
        limit=_vector_quantize_limit,
        note=lambda case: "in eval mode; also returns the codes and builds a one-hot matrix",
    ),
    *CUDA_PEERS,
)
NEAREST_CODE_COMPILED = Contestant(
    "torch.compile addmm + argmin", _compiled, note=chunk_note(), memory=("cuda",)
)
