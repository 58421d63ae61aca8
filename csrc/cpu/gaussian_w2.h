// The arithmetic of gaussian_w2 between its two eigendecompositions and after them, for few channels:
// there a call per operation of a framework costs more than the operations. See reference.py.
#pragma once

#include <cstdint>

namespace vqkern {

// Eigenvectors are rows. All matrices are [batch][dim][dim].

// root = A = S1^{1/2} from the eigenvalues [batch][dim] and eigenvectors of S1; product = A S2 A.
void gaussian_w2_product(const double* values, const double* vectors, const double* s2,
                         int64_t batch, int64_t dim, double* root, double* product);

// Value [batch] and `pull` [batch][dim + 2][dim], its derivative with respect to the codes' covariance times
// `by_covariance`, their mean, and the derivative with respect to that times `by_mean`; from the eigenvalues and
// eigenvectors of the product. The ridge is `ridge` + `relative` tr(C).
void gaussian_w2_finish(const double* values, const double* vectors, const double* root,
                        const double* s1, const double* s2, const double* mean_x,
                        const double* mean_y, double ridge, double relative, int64_t batch,
                        int64_t dim, double by_covariance, double by_mean, double* value,
                        double* pull);

}  // namespace vqkern
