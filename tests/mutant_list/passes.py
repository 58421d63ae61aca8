"""The other CPU kernels: sums, losses, rows and bits."""

from .mutant import Mutant

CPU = "csrc/cpu/"

MUTANTS = [
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
        "mmd-always-float32", "alignment", CPU + "squared_mmd.cpp",
        "if (error > allowed) result.excess", "if (false) result.excess",
        "float32 rounding is left in gradients that cancel",
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
        "mmd-apart-pulls-by-places", "alignment", CPU + "kernel_sums.inc",
        "kApart ? sub(value, load(own)) : value", "value",
        "half of the points are pulled by where the others are, not by differences",
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
        "moments-next-tile-missed", "alignment", CPU + "moment_passes.inc",
        "if (r + kWideTile < end) centre(r + kWideTile);", "if (r == 0) centre(r + kWideTile);",
        "tiles of rows are centred twice, and then no more",
    ),
    Mutant(
        "moments-shift-dropped", "alignment", CPU + "moments.cpp",
        "mean[i] = shift_.data[b * padded_ + i] + sum[i] / size;",
        "mean[i] = sum[i] / size;",
        "means are relative to the shift",
    ),
    Mutant(
        "w2-pivots-of-rounding", "alignment", CPU + "gaussian_w2.cpp",
        "double most = negligible;", "double most = -1.0;",
        "channels that are explained already are divided by what rounding left of them",
    ),
    Mutant(
        "w2-unscaled", "alignment", CPU + "gaussian_w2.cpp",
        "largest > 0.0 ? std::ilogb(largest) : 0;", "0;",
        "products of squared lengths leave a double's range",
    ),
    Mutant(
        "rotations-end-early", "alignment", CPU + "rotations.inc",
        "__builtin_fabs(common) > negligible *", "__builtin_fabs(common) > 1e-7 *",
        "rows that are orthogonal to seven digits are left so",
    ),
    Mutant(
        "rotations-of-rounding", "alignment", CPU + "rotations.inc",
        "if (!(size[i] > empty && size[j] > empty)) continue;", "",
        "what rounding left of multiples of a row is rotated until nothing is left to divide by",
    ),
    Mutant(
        "last-row-unrotated", "alignment", CPU + "rotations.inc",
        "for (int64_t pair = 0; pair", "for (int64_t pair = 1; pair",
        "the last row never meets another",
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
]  # fmt: skip
