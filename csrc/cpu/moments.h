// Moments of point sets and the affine maps that pull their gradients back to the points.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "moment_passes.h"

namespace vqkern {

// points [batch][n][dim]; valid [batch][n] says which count, null: all. To be found: count [batch], mean
// [batch][dim], unbiased covariance [batch][dim][dim]: zeros where there are too few points.
struct PointSet {
    const float* points;
    const bool* valid;
    int64_t batch, n;
    double *count, *mean, *covariance;
};

// The moments of all sets, in one go.
void moments(std::initializer_list<PointSet> sets, int64_t dim, int threads,
             const MomentKernels& kernels);

// out [batch][n][dim] = factor (matrix (x - mean) + offset), 0 where not valid. `pull` [batch][dim + 2][dim]
// is a symmetric matrix, a mean and an offset; factor [batch].
void pull_back(const float* x, const bool* valid, int64_t batch, int64_t n, int64_t dim,
               const double* pull, const double* factor, float* out, int threads,
               const MomentKernels& kernels);

}  // namespace vqkern
