// The certified screen: float32 scores of all codes, and per row the few groups of codes that could
// still hold the nearest one.
//
// With c the centre of the codes, the score s_k = |e_k - c|^2 / 2 - (z - c).(e_k - c) has the argmin of
// |z - e_k|^2. Computed in float32 it is off by at most
//     delta_k = kappa * (|z - c| |e_k - c| + |e_k - c|^2 / 2),   kappa = (D + 8) * 1.01 * 2^-24,
// which covers the rounding of both centred vectors, of the norm, of a chain of D + 1 products and sums
// with or without fused multiply-add, and of the thresholds below. So with U = min_k (t_k + delta_k), every
// exact minimiser, ties included, has t_k - delta_k <= U.
#pragma once

#include <cstdint>

namespace vqkern {

// Candidate groups a row may hold; a row that needs more is served by a scan of all codes.
constexpr int kCapacity = 32;

struct Candidate {
    int32_t group;
    float lower;  // no code of the group scores below this
};

// Everything the screen keeps about one row.
struct Row {
    float upper;    // U so far, rounded up; -FLT_MAX closes the row to further candidates
    float slope;    // kappa * |z - c|
    int32_t count;  // candidates held
    bool overflow;  // more groups qualified than fit
    Candidate candidates[kCapacity];
};

// Codes packed for the screen: groups of `group_size` consecutive codes, channel-major inside a group.
struct PackedCodes {
    const float* values;      // [groups][dim][group_size], centred and scaled
    const float* half_norms;  // [groups][group_size], |e - c|^2 / 2; +inf where there is no usable code
    const float* norms;       // [groups], largest |e - c|
    const float* largest;     // [groups], kappa * largest |e - c|^2 / 2 + the underflow allowance
    int64_t dim;
};

// The kernels of one instruction set.
struct ScreenKernels {
    int rows;        // rows of a panel
    int group_size;  // codes of a group

    // Scores a panel [dim][rows] of negated, centred rows against groups [begin, end).
    void (*screen)(const float* panel, const PackedCodes& codes, int64_t begin, int64_t end,
                   Row* rows);

    // Scores of one group for row `row` of a panel.
    void (*score_group)(const float* panel, int row, const PackedCodes& codes, int64_t group,
                        float* scores);
};

extern const ScreenKernels kScreenPortable;
#ifdef VQKERN_X86
extern const ScreenKernels kScreenAvx2;
extern const ScreenKernels kScreenAvx512;
#endif

}  // namespace vqkern
