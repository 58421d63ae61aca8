"""The Triton kernels."""

from .mutant import Mutant

NEAREST = "vqkern/ops/nearest_code/"
SUMS = "vqkern/ops/code_sums/triton_kernels.py"
MMD = "vqkern/ops/squared_mmd/triton_kernels.py"

MUTANTS = [
    Mutant(
        "triton-absent-codes-score-zero", "triton", NEAREST + "triton_rounding.py",
        'tl.where(good, 0.5 * norm, float("inf"))', "(0.5 * norm)",
        "codes that are not there, or not finite, are scored",
    ),
    Mutant(
        "triton-code-residual-dropped", "triton", NEAREST + "triton_rounding.py",
        "lost = tl.sqrt(most_residual) + g *", "lost = g *",
        "what rounding took from the codes is not in the bound",
    ),
    Mutant(
        "triton-far-rows-screened", "triton", NEAREST + "triton_rounding.py",
        "within = exponent <= ROW_EXPONENT", "within = exponent <= 1000",
        "rows beyond the screen's range are screened",
    ),
    Mutant(
        "triton-row-residual-dropped", "triton", NEAREST + "triton_kernels.py",
        "delta = residual[:, None] * top[None, :] + norm", "delta = norm",
        "what rounding took from the row is not in the bound",
    ),
    Mutant(
        "triton-lower-bound-is-the-score", "triton", NEAREST + "triton_kernels.py",
        "_keep(score - delta, ids,", "_keep(score, ids,",
        "groups are dropped by their computed score",
    ),
    Mutant(
        "triton-upper-bound-is-the-score", "triton", NEAREST + "triton_kernels.py",
        "u = tl.minimum(u, score + delta)", "u = tl.minimum(u, score)",
        "a computed score, not its upper bound, closes groups",
    ),
    Mutant(
        "triton-lost-groups-ignored", "triton", NEAREST + "triton_kernels.py",
        "lost = tl.sum((possible & (kept == 0)).to(tl.int32), 0) > 0",
        "lost = tl.sum((possible & (kept == 0)).to(tl.int32), 0) < 0",
        "a row that lost a group is not scanned",
    ),
    Mutant(
        "triton-first-split-only", "triton", NEAREST + "triton_kernels.py",
        "open = possible & kept & (kind", "open = possible & kept & (slot < 4 * DEPTH) & (kind",
        "groups of later splits are not merged",
    ),
    Mutant(
        "triton-codes-rounded-for-nobody", "triton", NEAREST + "triton_rounding.py",
        "        if tl.load(count) == 0:\n            return\n    tile = tl",
        "        pass\n    tile = tl",
        "with an empty list of rows all codes are rounded",
    ),
    Mutant(
        "triton-listed-rows-by-their-place", "triton", NEAREST + "triton_kernels.py",
        "        row = tl.load(rows + place).to(tl.int64)\n", "        row = place\n",
        "the answers of listed rows go to the first rows",
    ),
    Mutant(
        "triton-scan-without-the-last-part", "triton", NEAREST + "triton_decide.py",
        "* PARTS + tl.arange(0, PARTS))\n",
        "* PARTS + tl.arange(0, PARTS))\n        code = tl.where(code < 768, code, -1)\n",
        "what the last part of a shared scan found is not compared",
    ),
    Mutant(
        "triton-scan-of-one-block", "triton", NEAREST + "triton_decide.py",
        "if differ | (best < 0):", "if best < 0:",
        "a full scan ends with the first block that has a code",
    ),
    Mutant(
        "triton-ties-beyond-the-count", "triton", NEAREST + "triton_decide.py",
        "valid = slot % CAPACITY < tl.load(kept_count + at)", "valid = slot % CAPACITY < CAPACITY",
        "what is left in memory counts as a kept group",
    ),
    Mutant(
        "triton-ties-above-the-bound", "triton", NEAREST + "triton_decide.py",
        "open = valid & (bound <= u) &", "open = valid &",
        "groups that were overtaken are measured; only time is lost where bounds are right",
    ),
    Mutant(
        "triton-tie-width-dropped", "triton", NEAREST + "triton_exact.py",
        "limit = least + least * (4 * (D + 3) * 2.0**-53)", "limit = least",
        "float64 rounding decides between equal distances",
    ),
    Mutant(
        "triton-ties-to-the-highest", "triton", NEAREST + "triton_exact.py",
        "lowest = tl.min(tl.where(near, code, NO_INDEX), 0)",
        "lowest = tl.max(tl.where(near, code, -1), 0)",
        "the last of equally near codes of a group wins",
    ),
    Mutant(
        "triton-product-without-error", "triton", NEAREST + "triton_exact.py",
        "_add(s0, s1, s2, s3, r)", "_add(s0, s1, s2, s3, 0.0 * r)",
        "the exact comparison rounds its products to float64",
    ),
    Mutant(
        "triton-row-offset-in-32-bits", "triton-offsets", NEAREST + "triton_kernels.py",
        "place = tl.program_id(0).to(tl.int64)\n    row =", "place = tl.program_id(0)\n    row =",
        "rows beyond 2^31 elements are read elsewhere",
    ),
    Mutant(
        "triton-code-offset-in-32-bits", "triton-offsets", NEAREST + "triton_exact.py",
        "code = first + tl.arange(0, CODES).to(tl.int64)",
        "code = first.to(tl.int32) + tl.arange(0, CODES)",
        "codes beyond 2^31 elements are read elsewhere",
    ),
    Mutant(
        "triton-pieces-overlap", "triton-sums", SUMS,
        "stop = tl.minimum(end, start + PIECE)", "stop = end",
        "tokens of long runs are summed more than once",
    ),
    Mutant(
        "triton-token-mask-dropped", "triton-sums", SUMS,
        "mask=live[:, None] & inside[None, :],", "mask=inside[None, :],",
        "a run goes on with the vector of token 0",
    ),
    Mutant(
        "triton-float32-sums", "triton-sums", SUMS,
        "sums += tl.sum(value.to(tl.float64), 0)", "sums += tl.sum(value.to(tl.float32), 0)",
        "eight vectors at a time are summed in float32",
    ),
    Mutant(
        "triton-partial-rows-collide", "triton-sums", SUMS,
        "return position // PIECE * 2 + (position == start_of_run).to(tl.int64)",
        "return position // PIECE * 2",
        "two pieces write one partial sum",
    ),
    Mutant(
        "triton-mmd-last-rate", "triton-mmd", MMD,
        "kernel += term * (scale + last * term)", "kernel += term * scale",
        "the narrowest kernel is not in the value",
    ),
    Mutant(
        "triton-mmd-weights-rounded", "triton-mmd", MMD,
        "pulled = _dot_add(low, b_head, pulled, INTERPRETED)", "pass",
        "weights pull with the 11 bits of their high part",
    ),
    Mutant(
        "triton-mmd-points-rounded", "triton-mmd", MMD,
        "whole = ((high + low / LOW) * quantum)", "whole = (high * quantum)",
        "points are pulled at by the 11 bits of their high part",
    ),
    Mutant(
        "triton-mmd-lanes-disagree", "triton-mmd", "vqkern/ops/squared_mmd/triton_exact.py",
        "num_stages=1, enable_fp_fusion=False", "num_stages=1, enable_fp_fusion=True",
        "a lane adds its own square unrounded and another lane's rounded",
    ),
    Mutant(
        "triton-mmd-other-norm", "triton-mmd", MMD,
        "                    LEFT_ONE, WIDTH,", "                    RIGHT_ONE, WIDTH,",
        "what a column's weights add up to is a sum over norms",
    ),
    Mutant(
        "triton-mmd-own-pairs-pull", "triton-mmd", MMD,
        "weight = tl.where(same, 0.0, weight)\n            total +=", "total +=",
        "a point pulls at itself",
    ),
]  # fmt: skip
