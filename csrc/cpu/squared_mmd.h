// Squared maximum mean discrepancy of two point sets, with its gradients, in one sweep.
#pragma once

#include <cstdint>

#include "kernel_sums.h"

namespace vqkern {

struct MmdResult {
    double value;
    bool wide;  // whether it was found in float64
};

// x [n][dim], y [m][dim]; at most kMostBandwidths bandwidths. x_grad [n][dim] and y_grad [m][dim] are
// written where not null. A non-finite point makes everything NaN. float32 points are taken in float32, by
// products, or by differences where kernels are narrow, and once more in float64 where that is not right
// enough: where the pulls of the two sets cancel so far that rounding shows in their difference. T is float or
// double.
template <typename T>
MmdResult squared_mmd(const T* x, const T* y, int64_t n, int64_t m, int64_t dim,
                      const double* bandwidths, int num_bandwidths, bool unbiased, T* x_grad, T* y_grad,
                      int threads, const KernelSumKernels& kernels);

}  // namespace vqkern
