"""nearest_code on CUDA: peers that run there alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from .base import Call, Contestant, chunk_note, chunk_rows


def _addmm_tf32(case: Case, z: Tensor, codes: Tensor) -> Call:
    rows = chunk_rows(case)

    def call() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            half_norm = codes.square().sum(-1) / 2
            scores = (torch.addmm(half_norm, part, codes.T, alpha=-1) for part in z.split(rows))
            return torch.cat([part.argmin(-1) for part in scores])
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def _float32_only(case: Case) -> str | None:
    return None if case.dtype == "float32" else "TF32 is a way to multiply float32"


def _faiss(case: Case, z: Tensor, codes: Tensor) -> Call:
    import faiss
    import faiss.contrib.torch_utils  # noqa: F401  lets an index take torch tensors

    resources = faiss.StandardGpuResources()
    config = faiss.GpuIndexFlatConfig()
    config.device = z.device.index or 0
    index = faiss.GpuIndexFlatL2(resources, case.d, config)
    index.add(codes.float())

    def call(resources: object = resources) -> Tensor:  # an index does not keep them alive
        return index.search(z.float(), 1)[1][:, 0]

    return call


def _faiss_limit(case: Case) -> str | None:
    import faiss

    if hasattr(faiss, "StandardGpuResources"):
        return None
    return "the faiss that is installed was built without CUDA (pip install faiss-gpu-cu12)"


def _cuvs(case: Case, z: Tensor, codes: Tensor) -> Call:
    from cuvs.neighbors import brute_force

    index = brute_force.build(codes.float().contiguous(), metric="sqeuclidean")

    def call() -> Tensor:
        _, neighbors = brute_force.search(index, z.float().contiguous(), 1)
        return torch.as_tensor(neighbors, device=z.device)[:, 0]

    return call


def _flash_kmeans(case: Case, z: Tensor, codes: Tensor) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    def call() -> Tensor:
        squared_norm = z.float().square().sum(-1)
        return euclid_assign_triton(z[None], codes[None], squared_norm[None])[0]

    return call


def _flash_kmeans_limit(case: Case) -> str | None:
    # Its tile spans all channels, and Triton's dot products take powers of two from 16 on.
    if case.d < 16 or case.d & (case.d - 1):
        return f"its kernel takes D = 16, 32, 64, ..., not {case.d}"
    return None


def _index_first(case: Case) -> str:
    return "the index is built before the clock starts"


CUDA_PEERS = (
    Contestant(
        "torch addmm + argmin, TF32",
        _addmm_tf32,
        limit=_float32_only,
        note=chunk_note(),
        devices=("cuda",),
    ),
    Contestant(
        "faiss GpuIndexFlatL2",
        _faiss,
        needs=(("faiss", "pip install faiss-gpu-cu12"),),
        limit=_faiss_limit,
        note=_index_first,
        devices=("cuda",),
        memory=(),
    ),
    Contestant(
        "cuVS brute_force",
        _cuvs,
        needs=(("cuvs", "pip install cuvs-cu12"),),
        note=_index_first,
        devices=("cuda",),
        memory=(),
    ),
    Contestant(
        "flash-kmeans assignment",
        _flash_kmeans,
        needs=(("flash_kmeans", "pip install flash-kmeans"),),
        limit=_flash_kmeans_limit,
        note=lambda case: "TF32 products" if case.dtype == "float32" else "",
        devices=("cuda",),
    ),
)
