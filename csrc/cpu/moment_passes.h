// The two passes over points that Gaussian operations need, one block of rows at a time, in float64.
#pragma once

#include <cstdint>

namespace vqkern {

// Rows of a block: a block of 64 channels fits the first-level cache.
constexpr int64_t kBlockRows = 64;

struct MomentKernels {
    int tile;  // dimensions are padded to whole tiles

    // Blocks hold rows of `padded` float64 values, a whole number of tiles, zero beyond `dim`.

    // block[r] = rows[r] - shift for `count` rows of dim floats; adds the rows to sum where it is not null. Both
    // shift and sum are [padded].
    void (*centre)(const float* const* rows, int64_t count, int64_t dim, int64_t padded,
                   const double* shift, double* block, double* sum);

    // gram[i][j] += sum_r block[r][i] block[r][j] where j / tile >= i / tile; gram [padded][padded].
    void (*gram)(const double* block, int64_t count, int64_t padded, double* gram);

    // out[r] = offset + block[r] matrix for `count` rows of dim floats, a whole number of tiles in
    // memory; matrix [padded][padded], offset [padded]. Rows of `out` are `dim` floats apart.
    void (*map)(const double* block, int64_t count, int64_t dim, int64_t padded,
                const double* matrix, const double* offset, float* out);
};

extern const MomentKernels kMomentsPortable;
#ifdef VQKERN_X86
extern const MomentKernels kMomentsAvx2;
extern const MomentKernels kMomentsAvx512;
#endif

}  // namespace vqkern
