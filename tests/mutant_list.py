"""The mutants of `make mutants`: one change each that makes results wrong, or unproved.

A change that only costs time, or that another margin makes up for, is none: it cannot fail a test.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`text`, which occurs once in `file`, becomes `replacement`; `suite` names the tests."""

    name: str
    suite: str
    file: str
    text: str
    replacement: str
    breaks: str


CPU = "csrc/cpu/"
CUDA = "csrc/cuda/"
NEAREST = "vqkern/ops/nearest_code/"
SUMS = "vqkern/ops/code_sums/triton_kernels.py"
MMD = "vqkern/ops/squared_mmd/triton_kernels.py"

MUTANTS = [
    Mutant(
        "margin-without-delta", "search", CPU + "screen_groups.inc",
        "* 0x1p-22f + delta;", "* 0x1p-22f;",
        "the bound of a score is its float32 rounding alone",
    ),
    Mutant(
        "delta-without-slope", "search", CPU + "screen_groups.inc",
        "return panel.slope[r] * group.norm + (", "return (",
        "what rounding took from the row is not in the bound",
    ),
    Mutant(
        "delta-without-spread", "search", CPU + "screen_groups.inc",
        "panel.spread[r] * group.residual + group.largest", "group.largest",
        "what rounding took from the codes is not in the bound",
    ),
    Mutant(
        "lower-bound-is-the-score", "search", CPU + "screen_groups.inc",
        "low = least[r] - slack,", "low = least[r],",
        "groups are dropped by their computed score",
    ),
    Mutant(
        "upper-bound-is-the-score", "search", CPU + "screen_groups.inc",
        "high = least[r] + slack;", "high = least[r];",
        "a computed score, not its upper bound, closes groups",
    ),
    Mutant(
        "limit-without-margin", "search", CPU + "screen_groups.inc",
        "units.above(upper + 2 * margin(upper, delta));", "units.above(upper);",
        "codes beside the best of their group are dropped by their score",
    ),
    Mutant(
        "kept-by-score", "search", CPU + "screen_groups.inc",
        "keep(row_, first + j, score - margin(score, delta));",
        "keep(row_, first + j, score);",
        "held candidates are dropped by their score",
    ),
    Mutant(
        "group-test-flipped", "search", CPU + "screen_groups.inc",
        "if (!(lower[i][r] <= panel.upper[r])) continue;",
        "if (lower[i][r] <= panel.upper[r]) continue;",
        "only the best group of a row is looked at",
    ),
    Mutant(
        "boxes-twice-as-far", "search", CPU + "cells.inc",
        "sum[i] = fma(gap, gap, sum[i]);", "sum[i] = fma(gap, gap + gap, sum[i]);",
        "cells seem farther away than they are",
    ),
    Mutant(
        "boxes-of-the-first-code", "search", CPU + "cells.cpp",
        "box[kBoxes] = std::max(box[kBoxes], x);", "box[kBoxes] = box[0];",
        "boxes end where they begin",
    ),
    Mutant(
        "reach-of-half", "search", CPU + "row_panel.h",
        "std::max(squared_[r] + 2 * upper, 0.0)", "std::max(squared_[r] + 2 * upper, 0.0) / 4",
        "only cells within half of a row's distance are met",
    ),
    Mutant(
        "home-blocks-alone", "search", CPU + "cells.inc",
        "own >= 0 && own < kBoxes ? there & ~(1u << own) : there;",
        "own >= 0 && own < kBoxes ? 0 : there;",
        "among neighbouring blocks, a row meets the cells of its own alone",
    ),
    Mutant(
        "last-block-of-cells-dropped", "search", CPU + "cells.inc",
        "return left < kBoxes ? (1u << left) - 1 : (1u << kBoxes) - 1;",
        "return left < kBoxes ? 0 : (1u << kBoxes) - 1;",
        "the last, partial block of cells is not met",
    ),
    Mutant(
        "box-by-its-far-side", "search", CPU + "cells.inc",
        "sub(x, min(max(x, least), most))", "sub(x, min(x, least))",
        "a cell is as far from a row as its far side",
    ),
    Mutant(
        "lone-candidate-of-many", "search", CPU + "row_panel.h",
        "if (row.held == 1 && first", "if (row.held >= 1 && first",
        "of several candidates that are left, the first alone is measured",
    ),
    Mutant(
        "cells-without-slack", "search", CPU + "cells.inc",
        "const float limit = lifted_[which[first + i]] + slack;",
        "const float limit = lifted_[which[first + i]] - slack;",
        "a code that may be as near as the best one is not looked at",
    ),
    Mutant(
        "widths-next-to-nothing", "search", CPU + "cells.cpp",
        "!(width < kInfinity && per_width < kInfinity)", "!(width < kInfinity)",
        "codes next to equal fall into a bucket that is not there",
    ),
    Mutant(
        "first-cell-alone-looked-at", "search", CPU + "cells.inc",
        "                    look_again(cell, which[first + i]);\n", "                    break;\n",
        "a row's nearest code is sought in its home alone",
    ),
    Mutant(
        "order-not-undone", "search", CPU + "row_panel.h",
        "row.nearest.offer(packed_->code_at(place))", "row.nearest.offer(place)",
        "places among cells are taken for codes",
    ),
    Mutant(
        "last-tile-dropped", "search", CPU + "integers_avx512.inc",
        "return end < codes.tiles ? end : codes.tiles;",
        "return end <= codes.tiles ? end : codes.tiles - 1;",
        "the last tile of a partial group is not screened",
    ),
    Mutant(
        "last-tile-dropped-float32", "search", CPU + "screen.inc",
        "return end < codes.tiles ? end : codes.tiles;",
        "return end <= codes.tiles ? end : codes.tiles - 1;",
        "the last tile of a partial group is not screened",
    ),
    Mutant(
        "cut-removed", "search", CPU + "integers_avx512.inc",
        "_mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(kCut)))",
        "_mm512_cvtps_epi32(scaled)",
        "half norms beyond 31 bits become the least integer",
    ),
    Mutant(
        "cut-bounds", "search", CPU + "isa_avx512vnni.cpp",
        "           unit * codes.groups[g].half_norm < kCut;",
        "           true;",
        "a half norm that was cut gives an upper bound where the product is large",
    ),
    Mutant(
        "limit-in-units-rounded-down", "search", CPU + "integers_avx512.inc",
        "const float room = units + __builtin_fabsf(units) * 0x1p-23f + 2.0f;",
        "const float room = 0.999f * units - 2.0f;",
        "codes at the limit are dropped when it is brought to whole units",
    ),
    Mutant(
        "second-half-of-the-rows", "search", CPU + "isa_avx512vnni.cpp",
        "least_of_half<format>(z_words + half,", "least_of_half<format>(z_words,",
        "half of a panel's rows get the scores of the other half",
    ),
    Mutant(
        "second-tile-forgotten", "search", CPU + "isa_avx512vnni.cpp",
        "_mm512_min_epi32(least[r], _mm512_min_epi32(low, high));",
        "_mm512_min_epi32(least[r], low);",
        "every other tile's scores are not compared",
    ),
    Mutant(
        "amx-last-tile-not-compared", "search", CPU + "isa_amx.cpp",
        "    compare(scores, least);\n    const bool low",
        "    const bool low",
        "on the matrix unit, the last tile's scores are stored and never compared",
    ),
    Mutant(
        "amx-step-of-codes", "search", CPU + "isa_amx.cpp",
        "codes + s * steps.channels / 4 * kWordBytes;",
        "codes + s * kTileChannels / 4 * kWordBytes;",
        "on the matrix unit, steps of fewer than 64 channels read codes from further on",
    ),
    Mutant(
        "int8-shift-dropped", "search", CPU + "row_chunk.h",
        "panel.shift[r] = 128 * packer_.sum(r);", "panel.shift[r] = 0;",
        "scores keep what the codes' offset of 128 adds",
    ),
    Mutant(
        "int8-at-any-width", "search", CPU + "screen.h",
        "Format::kInt8 ? 4096 : INT64_MAX;", "Format::kInt8 ? 1 << 20 : INT64_MAX;",
        "sums of int8 products leave 32 bits at 82,900 channels",
    ),
    Mutant(
        "int16-norm-too-large", "search", CPU + "screen.h",
        "kInt16Norm = 23100.0;", "kInt16Norm = 40000.0;",
        "a one-hot vector does not fit 16 bits",
    ),
    Mutant(
        "scale-of-the-first-panel", "search", CPU + "row_chunk.h",
        "packer_.place(0, count, panel.scale, rows(p));",
        "packer_.place(0, count, panels_[0].panel.scale, rows(p));",
        "later panels are rounded in units of the first",
    ),
    Mutant(
        "row-offset-in-32-bits", "search", CPU + "row_chunk.h",
        "screened_.z + ids[r] * codebook.dim;",
        "screened_.z + static_cast<int32_t>(ids[r] * codebook.dim);",
        "rows beyond 2^31 elements are read elsewhere",
    ),
    Mutant(
        "distance-taken-as-exact", "search", CPU + "row_panel.h",
        "((codebook_->dim + 8) * 0x1p-52 + 4 * codebook_->relative)", "(4 * codebook_->relative)",
        "the float64 rounding of a measured distance is not in the bound",
    ),
    Mutant(
        "stand-ins-taken-as-exact", "search", CPU + "row_panel.h",
        "* 0x1p-52 + 4 * codebook_->relative)", "* 0x1p-52)",
        "float32 stand-ins of float64 vectors count as those",
    ),
    Mutant(
        "kappa-dropped", "search", CPU + "row_chunk.h",
        "slope = packed_.kappa() * norm;", "slope = 0.0;",
        "the rounding of float32 sums is not in the bound",
    ),
    Mutant(
        "beyond-the-first-flush", "search", CPU + "row_panel.h",
        "if (kept == kHeld) measure_held(r);", "if (kept == kHeld) row.held = 0;",
        "sixteen candidates that all qualify are forgotten",
    ),
    Mutant(
        "held-test-flipped", "search", CPU + "row_panel.h",
        "if (row.candidates[i].lower <= panel.upper[r]) measure(",
        "if (row.candidates[i].lower > panel.upper[r]) measure(",
        "held candidates that qualify are not measured",
    ),
    Mutant(
        "block-skips-a-group", "search", CPU + "search.h",
        "packed.groups(); group += block)", "packed.groups(); group += block + 1)",
        "the first group after a block is not screened",
    ),
    Mutant(
        "scan-misses-the-last-code", "search", CPU + "search.h",
        "for (int64_t k = block; k < stop; ++k)",
        "for (int64_t k = block; k + 1 < stop || k == 0; ++k)",
        "a full scan leaves out a code of each block",
    ),
    Mutant(
        "padding-scores-zero", "search", CPU + "codebook.cpp",
        "? std::numeric_limits<float>::infinity()", "? 0.0f",
        "codes that are not there bound the score of those that are",
    ),
    Mutant(
        "partial-group-dropped", "search", CPU + "codebook.cpp",
        "groups_((tiles_ + group_tiles_ - 1) / group_tiles_) {",
        "groups_(std::max<int64_t>(1, tiles_ / group_tiles_)) {",
        "the last group is not screened unless it is full",
    ),
    Mutant(
        "code-not-finite-packed", "search", CPU + "codebook.cpp",
        "if (!finite) vectors[j] = nullptr;", "if (false) vectors[j] = nullptr;",
        "NaN and infinity enter norms and scales of a group",
    ),
    Mutant(
        "centring-skipped", "search", CPU + "pack_avx512.inc",
        "_mm512_mul_ps(_mm512_sub_ps(x, c), scale);", "_mm512_mul_ps(x, scale);",
        "products of vectors off the centre, half norms of centred ones",
    ),
    Mutant(
        "channel-mask-dropped", "search", CPU + "pack_avx512.inc",
        "const __mmask16 there = left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1;\n"
        "            const __m512 x",
        "const __mmask16 there = left <= 0 ? 0 : 0xffff;\n            const __m512 x",
        "a vector goes on into the next one",
    ),
    Mutant(
        "tie-width-dropped", "search", CPU + "measures.h",
        "return (dim + 3) * (0x1p-53 * key + 0x1p-1000);", "return 0 * key;",
        "float64 rounding decides between equal distances",
    ),
    Mutant(
        "ties-to-the-highest", "search", CPU + "measures.h",
        "(sign == 0 && code > code_)", "(sign == 0 && code < code_)",
        "the last of equally near codes wins",
    ),
    Mutant(
        "cosine-squared-halved", "search", CPU + "measures.h",
        "return 2.0 * (1.0 + key);", "return 1.0 + key;",
        "a measured cosine bounds scores by half the squared distance",
    ),
    Mutant(
        "row-not-finite-searched", "search", CPU + "nearest_code.cpp",
        "= all_finite(z + i * dim, dim);", "= all_finite(z + i * dim, dim - 1);",
        "rows with NaN or infinity in the last channel get an index",
    ),
    Mutant(
        "expansion-forgets-errors", "search", CPU + "exact.cpp",
        "if (error != 0.0) parts_[kept++] = error;", "if (error > 1e300) parts_[kept++] = error;",
        "the exact comparison is one in float64",
    ),
    Mutant(
        "float32-sums", "sums", CPU + "code_sums.cpp",
        "std::vector<double> sum(dim);", "std::vector<float> sum(dim);",
        "sums are rounded to float32 after every vector",
    ),
    Mutant(
        "runs-end-at-512", "sums", CPU + "code_sums.cpp",
        "t < start[j + 1]; ++t)", "t < std::min(start[j + 1], start[j] + 512); ++t)",
        "the tokens of a code beyond the first 512 are left out",
    ),
    Mutant(
        "last-token-first", "sums", CPU + "code_sums.cpp",
        "z + order[t] * dim;", "z + order[start[j + 1] - 1 - (t - start[j])] * dim;",
        "sums run against the order of tokens",
    ),
    Mutant(
        "vector-offset-in-32-bits", "sums", CPU + "code_sums.cpp",
        "z + order[t] * dim;", "z + static_cast<int32_t>(order[t] * dim);",
        "vectors beyond 2^31 elements are read elsewhere",
    ),
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
        "triton-listed-rows-by-their-place", "triton", NEAREST + "triton_kernels.py",
        "        row = tl.load(rows + place).to(tl.int64)\n", "        row = place\n",
        "the answers of listed rows go to the first rows",
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
        "triton-far-rows-screened", "triton", NEAREST + "triton_rounding.py",
        "within = exponent <= ROW_EXPONENT", "within = exponent <= 1000",
        "rows beyond the screen's range are screened",
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
        "mmd-always-float32", "alignment", CPU + "squared_mmd.cpp",
        "if (error > allowed) result.excess", "if (false) result.excess",
        "float32 rounding is left in gradients that cancel",
    ),
    Mutant(
        "mmd-apart-pulls-by-places", "alignment", CPU + "kernel_sums.inc",
        "kApart ? sub(value, load(own)) : value", "value",
        "half of the points are pulled by where the others are, not by differences",
    ),
    Mutant(
        "mmd-mirror-forgotten", "alignment", CPU + "squared_mmd.cpp",
        "total += same && !itself ? 2.0 * sum : sum;", "total += sum;",
        "pairs of a set's own blocks count once",
    ),
    Mutant(
        "mmd-own-block-twice", "alignment", CPU + "squared_mmd.cpp",
        "block(a, i, itself ? nullptr : a_pulls.block(i))", "block(a, i, a_pulls.block(i))",
        "points of one block pull each other twice",
    ),
    Mutant(
        "mmd-padding-counts", "alignment", CPU + "squared_mmd.cpp",
        "i < count ? -squared / 2 : kPadding", "i < count ? -squared / 2 : 0.0",
        "points that are not there lie at the common mean",
    ),
    Mutant(
        "mmd-taylor-cut", "alignment", CPU + "exp2_fraction_wide.inc",
        "Vec p = splat(1.3691488853904128e-12);", "Vec p = splat(1e-7);",
        "the float64 exponential is right to 1e-13 only",
    ),
    Mutant(
        "moments-odd-rows-dropped", "alignment", CPU + "moment_passes.inc",
        "if (r < count) centre(r, even);", "if (r < count && !kSum) centre(r, even);",
        "the last of an odd number of rows is that of the block before",
    ),
    Mutant(
        "moments-shift-dropped", "alignment", CPU + "moments.cpp",
        "mean[b * dim + i] = shift.data[b * padded + i] + sum[i] / size;",
        "mean[b * dim + i] = sum[i] / size;",
        "means are relative to the shift",
    ),
    Mutant(
        "moments-next-tile-missed", "alignment", CPU + "moment_passes.inc",
        "if (r + kWideTile < end) centre(r + kWideTile);", "if (r == 0) centre(r + kWideTile);",
        "tiles of rows are centred twice, and then no more",
    ),
    Mutant(
        "w2-pivots-of-rounding", "alignment", CPU + "gaussian_w2.cpp",
        "double most = negligible;", "double most = -1.0;",
        "channels that are explained already are divided by what rounding left of them",
    ),
    Mutant(
        "few-codes-least-score-alone", "search", CPU + "few_codes.inc",
        "upper + 2 * margin(upper, delta), delta, panel", "score, delta, panel",
        "of few codes, those whose scores rounding raised are not measured",
    ),
    Mutant(
        "few-codes-other-span-unseen", "search", CPU + "few_codes.inc",
        "found == 1 && (reached & (reached - 1)) == 0", "found == 1",
        "candidates beyond the first span that has any are lost",
    ),
    Mutant(
        "few-codes-candidates-lost", "search", CPU + "few_codes.inc",
        "if (j == last) continue;", "continue;",
        "of several candidates one is measured",
    ),
    Mutant(
        "few-codes-first-group-alone", "search", CPU + "few_codes.inc",
        "for (int64_t g = 1; g < groups; ++g) {", "for (int64_t g = 1; g < 1; ++g) {",
        "what longer codes of other groups add to the bounds is left out",
    ),
    Mutant(
        "infinity-is-finite", "search", CPU + "finite.h",
        "found |= (bits & kExponent) == kExponent;", "found |= (bits & ~0x80000000) > kExponent;",
        "vectors with an infinity are searched",
    ),
    Mutant(
        "zero-is-a-one", "rows", CPU + "bits.cpp",
        "row[m] > 0.0f", "row[m] >= 0.0f",
        "a channel of zero gets the bit of a positive one",
    ),
    Mutant(
        "pull-without-mask", "rows", CPU + "rows.cpp",
        "const bool valid = pairs.valid[i];", "const bool valid = true;",
        "rows that are left out are pulled",
    ),
    Mutant(
        "nothing-passes-left-out-rows", "rows", CPU + "rows.cpp",
        "std::copy_n(passed, dim, out);", "std::fill_n(out, dim, 0.0f);",
        "the straight-through gradient ends at rows that are left out",
    ),
    Mutant(
        "masked-codes-count", "rows", CPU + "rows.cpp",
        "hits[index[i]] += counted[i];", "hits[index[i]] += 1;",
        "usage counts masked positions",
    ),
    Mutant(
        "index-among-the-kinds", "search", CPU + "repeats.h",
        "if (index[i] >= 0) index[i] = codes.first[index[i]];", "",
        "where codes are repeated, the index counts kinds of them",
    ),
    Mutant(
        "copies-without-distance", "search", CPU + "repeats.h",
        "distance[rows[j]] = distance[first];", "",
        "of equal rows the first alone gets a distance",
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
        "triton-mmd-other-norm", "triton-mmd", MMD,
        "                    LEFT_ONE, WIDTH,", "                    RIGHT_ONE, WIDTH,",
        "what a column's weights add up to is a sum over norms",
    ),
    Mutant(
        "triton-mmd-own-pairs-pull", "triton-mmd", MMD,
        "weight = tl.where(same, 0.0, weight)\n            total +=", "total +=",
        "a point pulls at itself",
    ),
    Mutant(
        "cuda-stage-not-awaited", "hopper", CUDA + "screen.cu",
        "        barrier_wait(full + stage, phase);", "",
        "products are made of codes that have not landed",
    ),
    Mutant(
        "cuda-product-read-early", "hopper", CUDA + "screen.cu",
        "product_wait<kParts - 1>(d[part]);", "product_wait<kParts>(d[part]);",
        "scores are looked at while they are made",
    ),
    Mutant(
        "cuda-stage-released-early", "hopper", CUDA + "screen.cu",
        "barrier_init(empty + i, kWarpgroups * 4);", "barrier_init(empty + i, kWarpgroups);",
        "codes are overwritten that others still multiply",
    ),
    Mutant(
        "cuda-half-without-delta", "hopper", CUDA + "screen.cu",
        "    lower = score - delta;\n    upper = score + delta;",
        "    lower = score;\n    upper = score;",
        "groups are dropped by their computed score",
    ),
    Mutant(
        "cuda-tie-missed", "hopper", CUDA + "decide.cu",
        "bool tied = __popc(near) > 1 || more;", "bool tied = false;",
        "float64 breaks exact ties",
    ),
    Mutant(
        "cuda-float32-decides", "hopper", CUDA + "decide.cu",
        "const float limit = least + least * (4 * (d + 3) * 0x1p-24f);",
        "const float limit = least;",
        "the code nearest in float32 is taken for the nearest",
    ),
    Mutant(
        "cuda-one-of-a-lane", "hopper", CUDA + "decide.cu",
        "__ballot_sync(kAll, seen.next <= limit)", "0",
        "a lane's second code is lost where float32 cannot tell it from its first",
    ),
    Mutant(
        "cuda-subnormal-squares", "hopper", CUDA + "decide.cu",
        "least >= kSmallest && ", "",
        "squares that float32 cannot hold decide",
    ),
    Mutant(
        "cuda-lost-without-bound", "hopper", CUDA + "screen.cu",
        "lost = fminf(lost, bound);", "",
        "groups that found no room on a list count as ruled out",
    ),
    Mutant(
        "cuda-lost-forgotten", "hopper", CUDA + "decide.cu",
        "lost = lost || kept[i] > s.capacity;", "",
        "a list that ran over passes for whole",
    ),
    Mutant(
        "cuda-places-in-order", "hopper", CUDA + "screen.cuh",
        "return within / 2 * 8 + i / quarter * 2 + within % 2;", "return i;",
        "a group is not the codes that a thread holds",
    ),
]  # fmt: skip
