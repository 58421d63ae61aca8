"""Triton kernels of `code_sums`: sort by (code, token), then sum each code's run in fixed pieces.

A stable sort puts the tokens of a code side by side in token order. A run is cut every 512 tokens
from its start; one program sums one piece in float64, in a fixed order, and writes the code's row
if the piece is the whole run. Longer runs leave one float64 partial sum a piece, which a second
kernel adds in order. No atomics, and the cuts depend on nothing but the input: same inputs, same
bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = tl.constexpr(512)  # tokens of a run that one program sums

_TOKENS = 8  # tokens read together
_CHANNELS = 128  # channels of one program, at most


@triton.jit
def _partial_row(position, start_of_run):
    """Row of a piece's partial sum. Only runs of more than one piece have any.

    At most one such run starts in any 512 sorted positions, and at most one later piece of such
    runs does: two rows for every 512 positions are enough.
    """
    return position // PIECE * 2 + (position == start_of_run).to(tl.int64)


@triton.jit
def _sum_pieces_kernel(
    z, tokens, sorted_codes, bounds, starts, total, partial, first_pieces,
    D: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum one piece, which starts at a position of the sorted tokens (-1: no piece)."""
    start = tl.load(starts + tl.program_id(0))
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < D
    if start >= 0:
        code = tl.load(sorted_codes + start)
        begin = tl.load(bounds + code)
        end = tl.load(bounds + code + 1)
        stop = tl.minimum(end, start + PIECE)
        sums = tl.zeros([CHANNELS], tl.float64)
        for offset in range(0, (stop - start).to(tl.int32), TOKENS):
            position = start + offset + tl.arange(0, TOKENS)
            live = position < stop
            token = tl.load(tokens + position, mask=live, other=0)
            value = tl.load(
                z + token[:, None] * D + channel[None, :],
                mask=live[:, None] & inside[None, :],
                other=0.0,
            )
            sums += tl.sum(value.to(tl.float64), 0)
        if end - begin <= PIECE:
            tl.store(total + code * D + channel, sums.to(tl.float32), mask=inside)
        else:
            tl.store(partial + _partial_row(start, begin) * D + channel, sums, mask=inside)
            if start == begin:
                tl.store(first_pieces + start // PIECE, start)


@triton.jit
def _join_pieces_kernel(
    sorted_codes, bounds, first_pieces, partial, total,
    D: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the pieces of the long run that starts in one block of 512 positions (-1: none does)."""
    begin = tl.load(first_pieces + tl.program_id(0))
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < D
    if begin >= 0:
        code = tl.load(sorted_codes + begin)
        pieces = (tl.load(bounds + code + 1) - begin + PIECE - 1) // PIECE
        sums = tl.zeros([CHANNELS], tl.float64)
        for piece in range(0, pieces.to(tl.int32)):
            row = _partial_row(begin + tl.cast(piece, tl.int64) * PIECE, begin)
            sums += tl.load(partial + row * D + channel, mask=inside, other=0.0)
        tl.store(total + code * D + channel, sums.to(tl.float32), mask=inside)


def code_sums(z: Tensor, index: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """count int64 [K] and total float32 [K, D] of z [N, D], 16- or 32-bit floats, and index [N].

    Only present codes are walked; the others cost the zeros written for them.
    """
    z, index = z.detach().contiguous(), index.long()
    (n, d), device = z.shape, z.device
    total = torch.zeros(num_codes, d, dtype=torch.float32, device=device)
    if n == 0:
        return torch.zeros(num_codes, dtype=torch.int64, device=device), total
    sorted_codes, tokens = index.sort(stable=True)
    bounds = torch.searchsorted(sorted_codes, torch.arange(num_codes + 1, device=device))
    count = bounds.diff()

    # Positions at which a piece starts, in order, then -1: there are at most `most` of them.
    position = torch.arange(n, device=device)
    begin = bounds[sorted_codes.clamp_min(0)]
    starts_here = (sorted_codes >= 0) & ((position - begin) % PIECE.value == 0)
    most = min(n, num_codes + n // PIECE.value)
    slot = torch.where(starts_here, starts_here.cumsum(0) - 1, most)
    starts = torch.full((most + 1,), -1, dtype=torch.int64, device=device)
    # All that start no piece write to the last place, which no program reads.
    starts.scatter_(0, slot, position)

    blocks = triton.cdiv(n, PIECE.value)
    partial = torch.empty(2 * blocks, d, dtype=torch.float64, device=device)
    first_pieces = torch.full((blocks,), -1, dtype=torch.int64, device=device)
    channels = min(triton.next_power_of_2(d), _CHANNELS)
    columns = triton.cdiv(d, channels)
    with torch.cuda.device_of(z):
        _sum_pieces_kernel[(most, columns)](
            z, tokens, sorted_codes, bounds, starts, total, partial, first_pieces, d, _TOKENS,
            channels, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
        if n > PIECE.value:
            _join_pieces_kernel[(blocks, columns)](
                sorted_codes, bounds, first_pieces, partial, total, d, channels,
                num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
    return count, total
