"""k-means with the package's own kernels: codes that start where the features are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import place_among_ranks, sum_over_ranks
from ..ops import code_sums, nearest_code
from ..ops.checks import require_float, require_matrix
from .anchors import random_features


@torch.no_grad()
def kmeans(
    features: Tensor,
    num_codes: int,
    *,
    iterations: int = 10,
    start: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Lloyd's algorithm: the means of the features nearest to each code, `iterations` times.

    ``q.load_codes(kmeans(features, q.codebook_size))`` starts a free table from data. Under
    torch.distributed the features of all ranks count, and all ranks get the same codes.

    Args:
        features: [N, D] of this rank, floating point; rows with NaN or infinity are left out.
        num_codes: K, at most the number of finite features of all ranks.
        iterations: of assignment and averaging, at least 0.
        start: codes [K, D] to begin from; None draws K different features.
        seed: of the draw, and of the features on which empty clusters are set.

    Returns:
        Codes [K, D], float32 (float64 for float64). Deterministic; memory for N + K * D.

    Raises:
        TypeError, ValueError: wrong type or shape, or fewer finite features than codes.
    """
    require_float("kmeans", "features", features)
    require_matrix("kmeans", "features", features, rows="N", columns="D")
    z = features.to(torch.promote_types(features.dtype, torch.float32))
    valid = z.isfinite().all(-1)
    _, available = place_among_ranks(valid.sum())
    if not 1 <= num_codes <= int(available):
        raise ValueError(
            f"kmeans: {num_codes} codes need as many finite features, and at least one; got "
            f"{int(available)} finite features"
        )
    draw = torch.tensor(seed, device=z.device)
    if start is None:
        every = torch.ones(num_codes, dtype=torch.bool, device=z.device)
        codes = random_features(z, valid, every, draw).rows
    elif start.shape != (num_codes, z.shape[1]):
        raise ValueError(
            f"kmeans: start must have shape {[num_codes, z.shape[1]]}, got {list(start.shape)}"
        )
    else:
        codes = start.to(z)
    for iteration in range(iterations):
        index = nearest_code(z, codes).index
        count, total = code_sums(z, index, num_codes)
        sum_over_ranks(count)
        sum_over_ranks(total)
        codes = total / count.clamp_min(1)[:, None]
        reseeded = random_features(z, valid, count == 0, draw + iteration + 1)
        codes = torch.where(reseeded.found[:, None], reseeded.rows, codes)
    return codes
