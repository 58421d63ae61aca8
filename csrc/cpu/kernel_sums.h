// Sums of a mixture of Gaussian kernels over pairs of points, the body of squared_mmd.
//
// Points are centred and scaled so that the widest kernel is 2^(a.b - |a|^2 / 2 - |b|^2 / 2). A narrower
// one is that value's power; where bandwidths are powers of two apart, found by squaring.
#pragma once

#include <cstdint>

namespace vqkern {

constexpr int kMostBandwidths = 64;

struct Ladder {
    int count;
    float rate[kMostBandwidths];  // largest bandwidth / bandwidth, ascending from 1
    int squarings[kMostBandwidths];  // of the term before that give this one; 0: an exponential anew
};

struct KernelSumKernels {
    int rows;        // points of a panel
    int group_size;  // points of a group

    // One group of points b, [dim][group_size], against all points a, in panels of [dim][rows]:
    //   *value             += sum_ij k_ij
    //   pull[dim][j]       += sum_i w_ij,  w_ij = sum_l rate_l exp_l
    //   pull[d][j]         += sum_i w_ij a_i[d]            (pull only where it is not null)
    // The offsets are -|a|^2 / 2 and -|b|^2 / 2, and -1e30 for padding. scratch: [dim + 1][group_size].
    void (*sum)(const float* panels, const float* panel_offsets, int64_t num_panels, int64_t dim,
                const float* group, const float* group_offsets, const Ladder& ladder,
                float* scratch, double* value, double* pull);
};

extern const KernelSumKernels kKernelSumsPortable;
#ifdef VQKERN_X86
extern const KernelSumKernels kKernelSumsAvx2;
extern const KernelSumKernels kKernelSumsAvx512;
#endif

}  // namespace vqkern
