#include "gaussian_w2.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace vqkern {
namespace {

// out = a b for row-major matrices.
void multiply(const double* a, const double* b, int64_t dim, double* out) {
    std::fill_n(out, dim * dim, 0.0);
    for (int64_t i = 0; i < dim; ++i) {
        for (int64_t k = 0; k < dim; ++k) {
            const double factor = a[i * dim + k];
            for (int64_t j = 0; j < dim; ++j) out[i * dim + j] += factor * b[k * dim + j];
        }
    }
}

// out = sum_k weight_k v_k v_k^T over the rows v of `rows`.
void sum_of_squares(const double* weight, const double* rows, int64_t dim, double* out) {
    std::fill_n(out, dim * dim, 0.0);
    for (int64_t k = 0; k < dim; ++k) {
        const double* row = rows + k * dim;
        for (int64_t i = 0; i < dim; ++i) {
            const double factor = weight[k] * row[i];
            for (int64_t j = 0; j < dim; ++j) out[i * dim + j] += factor * row[j];
        }
    }
}

double inner(const double* a, const double* b, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

double trace(const double* a, int64_t dim) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += a[i * (dim + 1)];
    return sum;
}

}  // namespace

void gaussian_w2_product(const double* values, const double* vectors, const double* s2,
                         int64_t batch, int64_t dim, double* root, double* product) {
    const int64_t size = dim * dim;
    std::vector<double> weight(dim), half(size);
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t i = 0; i < dim; ++i) weight[i] = std::sqrt(std::max(values[b * dim + i], 0.0));
        sum_of_squares(weight.data(), vectors + b * size, dim, root + b * size);
        multiply(root + b * size, s2 + b * size, dim, half.data());
        multiply(half.data(), root + b * size, dim, product + b * size);
    }
}

void gaussian_w2_finish(const double* values, const double* vectors, const double* root,
                        const double* s1, const double* s2, const double* mean_x,
                        const double* mean_y, double ridge, double relative, int64_t batch,
                        int64_t dim, double by_covariance, double by_mean, double* value,
                        double* pull) {
    const int64_t size = dim * dim;
    std::vector<double> inverse(dim), factor(size), transport(size), weighted(size);
    for (int64_t b = 0; b < batch; ++b, values += dim, vectors += size, root += size, s1 += size,
                 s2 += size, mean_x += dim, mean_y += dim, pull += size + 2 * dim) {
        const double epsilon = ridge + relative * inner(s1, s2, size);
        const double negligible = static_cast<double>(dim) *
                                  std::numeric_limits<double>::epsilon() *
                                  std::max(values[dim - 1], 0.0);
        multiply(vectors, root, dim, factor.data());
        double roots = 0.0, inverses = 0.0, missed = 0.0;
        for (int64_t k = 0; k < dim; ++k) {
            const double shifted = std::max(values[k], 0.0) + epsilon;
            const bool kept = epsilon > 0.0 || shifted > negligible;
            const double reach = inner(factor.data() + k * dim, factor.data() + k * dim, dim);
            inverse[k] = kept ? 1.0 / std::sqrt(shifted) : 0.0;
            roots += std::sqrt(shifted);
            inverses += inverse[k];
            missed += reach * (kept ? epsilon * inverse[k] * inverse[k] : 1.0);
        }
        sum_of_squares(inverse.data(), factor.data(), dim, transport.data());
        double* rest = transport.data();
        for (int64_t i = 0; i < size; ++i) rest[i] = (i % (dim + 1) == 0 ? 1.0 : 0.0) - rest[i];
        multiply(rest, s2, dim, weighted.data());
        const double codes = trace(s2, dim), total = trace(s1, dim) + codes;
        const double direct = total - 2.0 * roots;
        const double factored =
            inner(weighted.data(), rest, size) + missed - 2.0 * epsilon * inverses;
        double apart = 0.0;
        for (int64_t i = 0; i < dim; ++i) {
            const double difference = mean_y[i] - mean_x[i];
            apart += difference * difference;
            pull[size + i] = mean_y[i];
            pull[size + dim + i] = by_mean * 2.0 * difference;
        }
        value[b] = apart + (inner(rest, rest, size) * codes < total ? factored : direct);
        for (int64_t i = 0; i < size; ++i) {
            pull[i] = by_covariance * (rest[i] - relative * inverses * s1[i]);
        }
    }
}

}  // namespace vqkern
