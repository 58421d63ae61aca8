"""The CPU screens of nearest_code: bounds, formats, packing."""

from .mutant import Mutant

CPU = "csrc/cpu/"

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
        "last-tile-dropped", "search", CPU + "integers_avx512.inc",
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
        "limit-in-units-rounded-down", "search", CPU + "integers_avx512.inc",
        "const float room = units + __builtin_fabsf(units) * 0x1p-23f + 2.0f;",
        "const float room = 0.999f * units - 2.0f;",
        "codes at the limit are dropped when it is brought to whole units",
    ),
    Mutant(
        "last-tile-dropped-float32", "search", CPU + "screen.inc",
        "return end < codes.tiles ? end : codes.tiles;",
        "return end <= codes.tiles ? end : codes.tiles - 1;",
        "the last tile of a partial group is not screened",
    ),
    Mutant(
        "cut-bounds", "search", CPU + "isa_avx512vnni.cpp",
        "           unit * codes.groups[g].half_norm < kCut;",
        "           true;",
        "a half norm that was cut gives an upper bound where the product is large",
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
        "amx-last-tile-not-compared", "amx", CPU + "isa_amx.cpp",
        "    compare(scores, least);\n    const bool low",
        "    const bool low",
        "on the matrix unit, the last tile's scores are stored and never compared",
    ),
    Mutant(
        "amx-step-of-codes", "amx", CPU + "isa_amx.cpp",
        "codes + s * steps.channels / 4 * kWordBytes;",
        "codes + s * kTileChannels / 4 * kWordBytes;",
        "on the matrix unit, steps of fewer than 64 channels read codes from further on",
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
]  # fmt: skip
