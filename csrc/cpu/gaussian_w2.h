// gaussian_w2 but for its pass back over the points, for few channels: there a call per operation of a framework
// costs more than the operations. See reference.py.
#pragma once

#include <cstdint>

#include "moment_passes.h"

namespace vqkern {

// One side of the distance: points [batch][count][dim], or, where they are null, the mean [batch][dim] and
// covariance [batch][dim][dim] of such.
struct GaussianSide {
    const float* points;
    int64_t count;
    const double* mean;
    const double* covariance;
};

// Value [batch] of the squared distance and the pulls [batch][dim + 2][dim] on x, where that is not null, and on
// y: a matrix, the side's mean and an offset, which map points of the side to their gradients; for a side given by
// moments, the derivatives by covariance and mean. The ridge is `ridge` + `relative` tr(C). False, with nothing
// written, if a covariance is not finite.
bool gaussian_w2(const GaussianSide& x, const GaussianSide& y, int64_t batch, int64_t dim,
                 double ridge, double relative, double* value, double* pull_x, double* pull_y,
                 int threads, const MomentKernels& kernels);

}  // namespace vqkern
