"""layer_step: one training step of a quantizer layer, forward, backward and update.

Inputs z [N, D], codes [K, D], cotangent [N, D]: the gradient that reaches the quantized vectors.
Output (index [N], codes after the step [K, D], gradient of z [N, D]). `layer_step` moves the codes
by SGD on VQ-VAE's loss, both of whose terms weigh 1:

    e_k <- e_k - rate * 2 / (N D) * sum_{i: index_i = k} (e_k - z_i),

`layer_step_ema` by moving averages that start at n_k = 1, S_k = e_k, the commitment weighing
COMMITMENT:

    n_k <- decay + (1 - decay) count_k,  S_k <- decay e_k + (1 - decay) total_k,  e_k <- S_k / n_k

where count_k > 0. The step ends with the codes and is done anew from the same codes by every call:
each call begins with a copy of K x D values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cases import Case
from .base import Call, Contestant, backend_note, chunk_note, memory_limit
from .nearest_code import addmm

DECAY = 0.99
COMMITMENT = 0.25
HAND_WORK = 1 << 38  # N x K x D
VECTOR_QUANTIZE = (("vector_quantize_pytorch", "pip install vector-quantize-pytorch"),)


def learning_rate(case: Case) -> float:
    """A rate at which a code goes a quarter of the way to the vector that chose it."""
    return case.n * case.d / 8


# A layer is (z) -> (quantized, index, loss, ...).
Layer = Callable[[Tensor], tuple[Tensor, ...]]


def _backward(layer: Layer, z: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Index, and the gradient of z; that of the codes is left in their parameter."""
    leaf = z.detach().requires_grad_()
    quantized, index, loss = layer(leaf)[:3]
    torch.autograd.backward((quantized, loss), (cotangent, torch.ones_like(loss)))
    return index, leaf.grad


def _gradient_call(
    layer: Layer, table: nn.Parameter, case: Case, z: Tensor, codes: Tensor, cotangent: Tensor
) -> Call:
    optimizer = torch.optim.SGD([table], lr=learning_rate(case))

    def call() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            table.data = codes.clone()
            optimizer.zero_grad()
            index, z_grad = _backward(layer, z, cotangent)
            optimizer.step()
        return index, table.detach().reshape(case.k, case.d), z_grad

    return call


def _vanilla(case: Case, z: Tensor, codes: Tensor, cotangent: Tensor) -> Call:
    from ... import build_quantizer

    # "uniform" as the cheapest: the codes are replaced.
    layer = build_quantizer(
        "vanilla", dim=case.d, codebook_size=case.k, commitment=1.0, init="uniform"
    ).to(z.device)
    (table,) = layer.parameters()
    table.data = codes
    return _gradient_call(layer, table, case, z, codes, cotangent)


def _ema(case: Case, z: Tensor, codes: Tensor, cotangent: Tensor) -> Call:
    from ... import build_quantizer

    layer = build_quantizer(
        "ema", dim=case.d, codebook_size=case.k, commitment=COMMITMENT, decay=DECAY, init="uniform"
    ).to(z.device)
    (table,) = layer.parameters()
    table.data = codes

    def call() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            table.data = codes.clone()
            layer.update.reset()
            index, z_grad = _backward(layer, z, cotangent)
        return index, table.detach(), z_grad

    return call


def _peer_vanilla(case: Case, z: Tensor, codes: Tensor, cotangent: Tensor) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(
        case.d,
        case.k,
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=False,
        commitment_weight=1.0,
    ).to(z.device)
    table = layer._codebook.embed
    return _gradient_call(lambda z: _batch_of_one(layer, z), table, case, z, codes[None], cotangent)


def _peer_ema(case: Case, z: Tensor, codes: Tensor, cotangent: Tensor) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    # eps=0 turns its smoothing of the counts off, which would move codes that nobody chose.
    layer = VectorQuantize(
        case.d,
        case.k,
        decay=DECAY,
        eps=0.0,
        rotation_trick=False,
        commitment_weight=COMMITMENT,
    ).to(z.device)
    state = layer._codebook

    def call() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            state.embed.data = codes[None].clone()
            state.embed_avg.copy_(codes[None])
            state.cluster_size.fill_(1)
            index, z_grad = _backward(lambda z: _batch_of_one(layer, z), z, cotangent)
        return index, state.embed[0], z_grad

    return call


def _batch_of_one(layer: nn.Module, z: Tensor) -> tuple[Tensor, ...]:
    quantized, index, loss = layer(z[None])
    return quantized[0], index[0], loss


def _peer_limit(case: Case) -> str | None:
    # Measured: 24 bytes a score. The one-hot matrix is int64, then float32, beside the scores.
    needed = 24 * case.n * case.k
    one_hot = f"its N x K one-hot matrix alone takes {4 * case.n * case.k / 1e9:.1f} GB, and"
    return _float32(case) or memory_limit(case, needed, f"{one_hot} a step")


def _hand_vanilla(case: Case, z: Tensor, codes: Tensor, cotangent: Tensor) -> Call:
    table = nn.Parameter(codes)

    def layer(z: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            index = addmm(case, z, table)()
        nearest = F.embedding(index, table)
        loss = F.mse_loss(nearest, z.detach()) + F.mse_loss(z, nearest.detach())
        return z + (nearest - z).detach(), index, loss

    return _gradient_call(layer, table, case, z, codes, cotangent)


def _hand_ema(case: Case, z: Tensor, codes: Tensor, cotangent: Tensor) -> Call:
    def layer(z: Tensor) -> tuple[Tensor, ...]:
        index = addmm(case, z, codes)()
        nearest = codes[index]
        return z + (nearest - z).detach(), index, COMMITMENT * F.mse_loss(z, nearest)

    def call() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            index, z_grad = _backward(layer, z, cotangent)
        counted = torch.bincount(index, minlength=case.k).to(codes.dtype)
        count = torch.ones_like(counted).lerp_(counted, 1 - DECAY)
        total = codes * DECAY
        total.index_add_(0, index, z, alpha=1 - DECAY)
        return index, torch.where((counted > 0)[:, None], total / count[:, None], codes), z_grad

    return call


def _hand_limit(case: Case) -> str | None:
    if case.n * case.k * case.d > HAND_WORK:
        return f"many seconds a call: up to N x K x D = 2^{HAND_WORK.bit_length() - 1}"
    return _float32(case)


def _float32(case: Case) -> str | None:
    return None if case.dtype == "float32" else "layer steps are measured in float32"


def _ours(name: str, prepare: Callable[..., Call]) -> Contestant:
    return Contestant(name, prepare, limit=_float32, note=backend_note, ours=True)


def _peers(by_hand: Callable[..., Call], peer: Callable[..., Call]) -> tuple[Contestant, ...]:
    return (
        Contestant("torch by hand", by_hand, limit=_hand_limit, note=chunk_note()),
        Contestant("vector-quantize-pytorch", peer, needs=VECTOR_QUANTIZE, limit=_peer_limit),
    )


LAYER_STEP = (_ours("vqkern vanilla", _vanilla), *_peers(_hand_vanilla, _peer_vanilla))
LAYER_STEP_EMA = (_ours("vqkern ema", _ema), *_peers(_hand_ema, _peer_ema))
