// Sums of a mixture of Gaussian kernels over pairs of points, the body of squared_mmd.
//
// Points are centred and scaled so that the widest kernel is 2^(a.b - |a|^2 / 2 - |b|^2 / 2). A narrower
// one is that value's power; where bandwidths are powers of two apart, found by squaring.
//
// Rounding of that exponent is in proportion to the norms, which narrow kernels multiply. `apart`, slower by
// two operations a pair and channel, takes 2^(-bend |a - b|^2) of points that are not centred: what is rounded
// then is in proportion to the distance.
#pragma once

#include <cstdint>
#include <type_traits>

namespace vqkern {

constexpr int kMostBandwidths = 64;
constexpr int kBlock = 32;  // points of a block, [dim][kBlock]

struct Ladder {
    int count;
    double rate[kMostBandwidths];  // largest bandwidth / bandwidth, ascending from 1
    int squarings[kMostBandwidths];  // of the term before that give this one; 0: an exponential anew
    double bend;  // of `apart` alone
};

// A block of points, and what the points of other blocks pull it by.
template <typename Scalar>
struct PointBlock {
    const Scalar* values;   // [dim][kBlock]
    const Scalar* offsets;  // [kBlock]: -|a|^2 / 2, or 0 in `apart`; -1e30 for padding
    double* pull;           // [dim + 1][kBlock], or null
};

// All pairs of two blocks:
//   returns              sum_ij k_ij
//   b.pull[dim][j]    += sum_i w_ij,  w_ij = sum_l rate_l exp_l
//   b.pull[d][j]      += sum_i w_ij a_i[d], or sum_i w_ij (a_i - b_j)[d] in `apart`
// and the same for a with i and j exchanged, each where its pull is not null.
template <typename Scalar>
using PairSums = double (*)(const PointBlock<Scalar>& a, const PointBlock<Scalar>& b, int64_t dim,
                            const Ladder& ladder);

// In float32, where only the sums of 32 pairs leave it, and in float64 throughout.
struct KernelSumKernels {
    PairSums<float> single, apart;
    PairSums<double> wide;
};

extern const KernelSumKernels kKernelSumsPortable;
#ifdef VQKERN_X86
extern const KernelSumKernels kKernelSumsAvx2;
extern const KernelSumKernels kKernelSumsAvx512;
#endif

}  // namespace vqkern
