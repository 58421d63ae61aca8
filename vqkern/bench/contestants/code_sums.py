"""code_sums: inputs z [N, D], index [N]; output (count [K], total [K, D])."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from .base import Call, Contestant, backend_note, not_twice, scores_limit


def _auto(case: Case, z: Tensor, index: Tensor) -> Call:
    from ... import code_sums

    return lambda: tuple(code_sums(z, index, case.k))


def _reference(case: Case, z: Tensor, index: Tensor) -> Call:
    from ... import code_sums

    return lambda: tuple(code_sums(z, index, case.k, backend="torch"))


def _index_add(case: Case, z: Tensor, index: Tensor) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        total = z.new_zeros(case.k, case.d).index_add_(0, index, z)
        return torch.bincount(index, minlength=case.k), total

    return call


def _one_hot(case: Case, z: Tensor, index: Tensor) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        one_hot = torch.zeros(case.n, case.k, dtype=z.dtype, device=z.device)
        one_hot.scatter_(1, index[:, None], 1)
        return one_hot.sum(0), one_hot.T @ z

    return call


CODE_SUMS = (
    Contestant("vqkern", _auto, note=backend_note, ours=True),
    Contestant("vqkern torch reference", _reference, limit=not_twice),
    Contestant("torch index_add + bincount", _index_add),
    Contestant(
        "torch one-hot matmul",
        _one_hot,
        limit=scores_limit(1 << 29, "its one-hot matrix would exceed 2 GB"),
    ),
)
