// Squared maximum mean discrepancy of two point sets, with its gradients, in one sweep.
#pragma once

#include <cstdint>

#include "kernel_sums.h"

namespace vqkern {

// x [n][dim], y [m][dim]; at most kMostBandwidths bandwidths. x_grad [n][dim] and y_grad [m][dim] are
// written where not null. A non-finite point makes everything NaN.
double squared_mmd(const float* x, const float* y, int64_t n, int64_t m, int64_t dim,
                   const double* bandwidths, int num_bandwidths, bool unbiased, float* x_grad,
                   float* y_grad, int threads, const KernelSumKernels& kernels);

}  // namespace vqkern
