// What Gaussian operations need in float64: the two passes over points, and rotations.
#pragma once

#include <cstdint>

namespace vqkern {

// Rows of a block: a block of 64 channels fits the first-level cache.
constexpr int64_t kBlockRows = 64;

// At most so many rows are rotated.
constexpr int64_t kMostRotated = 32;

// Points are rows of `dim` floats; what is float64 has `padded` channels, a whole number of tiles, zero beyond
// `dim`. `block` has kBlockRows rows to work in.
struct MomentKernels {
    int tile;  // dimensions are padded to whole tiles

    // gram[i][j] += sum_r c_r[i] c_r[j] where j / tile >= i / tile, and sum += sum_r c_r, for `count` centred
    // rows c_r = rows[r] - shift; gram [padded][padded], shift and sum [padded].
    void (*add)(const float* const* rows, int64_t count, int64_t dim, int64_t padded,
                const double* shift, double* block, double* gram, double* sum);

    // out[r] = offset + (rows[r] - shift) matrix for `count` rows; matrix [padded][padded], shift and offset
    // [padded].
    void (*map)(const float* rows, int64_t count, int64_t dim, int64_t padded, const double* shift,
                const double* matrix, const double* offset, double* block, float* out);

    // Rotates `count` rows [width], an even number, until their first `left` channels are orthogonal (one-sided
    // Jacobi, Hestenes 1958); left and width are whole numbers of tiles. Rows down to 2^-52 of the longest
    // keep their digits, where the eigenvalues of a product of matrices would lose those below 2^-26. Squares of
    // lengths, and their products, must be in a double's range where they are to count.
    void (*orthogonalise)(double* rows, int64_t count, int64_t left, int64_t width);
};

extern const MomentKernels kMomentsPortable;
#ifdef VQKERN_X86
extern const MomentKernels kMomentsAvx2;
extern const MomentKernels kMomentsAvx512;
#endif

}  // namespace vqkern
