// gaussian_w2 but for its two passes over points and its eigendecomposition, for few channels: there a call
// per operation of a framework costs more than the operations. See reference.py.
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

// Doubles between the calls: both means, both covariances and a factor G of the first, S1 = G^T G.
constexpr int64_t gaussian_w2_state(int64_t batch, int64_t dim) {
    return batch * dim * (2 + 3 * dim);
}

// state [gaussian_w2_state(batch, dim)], and product [batch][dim][dim] = G S2 G^T, which has the eigenvalues of
// S1^{1/2} S2 S1^{1/2}. False, and no product, if a covariance is not finite.
bool gaussian_w2_product(const GaussianSide& x, const GaussianSide& y, int64_t batch, int64_t dim,
                         double* state, double* product, int threads, const MomentKernels& kernels);

// Value [batch] and `pull` [batch][dim + 2][dim], its derivative with respect to the codes' covariance times
// `by_covariance`, their mean, and the derivative with respect to that times `by_mean`; from the eigenvalues
// [batch][dim], ascending, and eigenvectors (rows) of the product. The ridge is `ridge` + `relative` tr(C).
void gaussian_w2_finish(const double* values, const double* vectors, const double* state,
                        double ridge, double relative, int64_t batch, int64_t dim,
                        double by_covariance, double by_mean, double* value, double* pull);

}  // namespace vqkern
