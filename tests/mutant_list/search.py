"""The search around the CPU screens: cells, rows on their way, ties, what is exact."""

from .mutant import Mutant

CPU = "csrc/cpu/"

MUTANTS = [
    Mutant(
        "boxes-twice-as-far", "search", CPU + "cells.inc",
        "sum[i] = fma(gap, gap, sum[i]);", "sum[i] = fma(gap, gap + gap, sum[i]);",
        "cells seem farther away than they are",
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
        "cells-without-slack", "search", CPU + "cells.inc",
        "const float limit = lifted_[which[first + i]] + slack;",
        "const float limit = lifted_[which[first + i]] - slack;",
        "a code that may be as near as the best one is not looked at",
    ),
    Mutant(
        "first-cell-alone-looked-at", "search", CPU + "cells.inc",
        "                    look_again(cell, which[first + i]);\n", "                    break;\n",
        "a row's nearest code is sought in its home alone",
    ),
    Mutant(
        "boxes-of-the-first-code", "search", CPU + "cells.cpp",
        "box[kBoxes] = std::max(box[kBoxes], x);", "box[kBoxes] = box[0];",
        "boxes end where they begin",
    ),
    Mutant(
        "widths-next-to-nothing", "search", CPU + "cells.cpp",
        "!(width < kInfinity && per_width < kInfinity)", "!(width < kInfinity)",
        "codes next to equal fall into a bucket that is not there",
    ),
    Mutant(
        "reach-of-half", "search", CPU + "row_panel.h",
        "std::max(squared_[r] + 2 * upper, 0.0)", "std::max(squared_[r] + 2 * upper, 0.0) / 4",
        "only cells within half of a row's distance are met",
    ),
    Mutant(
        "lone-candidate-of-many", "search", CPU + "row_panel.h",
        "if (row.held == 1 && first", "if (row.held >= 1 && first",
        "of several candidates that are left, the first alone is measured",
    ),
    Mutant(
        "order-not-undone", "search", CPU + "row_panel.h",
        "row.nearest.offer(packed_->code_at(place))", "row.nearest.offer(place)",
        "places among cells are taken for codes",
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
        "int8-shift-dropped", "search", CPU + "row_chunk.h",
        "panel.shift[r] = 128 * packer_.sum(r);", "panel.shift[r] = 0;",
        "scores keep what the codes' offset of 128 adds",
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
        "kappa-dropped", "search", CPU + "row_chunk.h",
        "slope = packed_.kappa() * norm;", "slope = 0.0;",
        "the rounding of float32 sums is not in the bound",
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
        "infinity-is-finite", "search", CPU + "finite.h",
        "found |= (bits & kExponent) == kExponent;", "found |= (bits & ~0x80000000) > kExponent;",
        "vectors with an infinity are searched",
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
]  # fmt: skip
