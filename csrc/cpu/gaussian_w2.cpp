#include "gaussian_w2.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moments.h"

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

// The parts of a state, each of all problems.
template <class T>
struct State {
    State(T* state, int64_t batch, int64_t dim)
        : mean_x(state), mean_y(mean_x + batch * dim), s1(mean_y + batch * dim),
          s2(s1 + batch * dim * dim), factor(s2 + batch * dim * dim) {}
    T *mean_x, *mean_y, *s1, *s2, *factor;
};

// G with matrix = G^T G, a row for each pivot of a Cholesky decomposition, zeros where there is none left. The
// next pivot is the channel of which the greatest share is not explained yet: channels of any scale count
// alike, and what rounding cannot tell from 0 does not count.
void factorise(const double* matrix, int64_t dim, double* out) {
    std::vector<double> rest(matrix, matrix + dim * dim);
    std::fill_n(out, dim * dim, 0.0);
    const double negligible = static_cast<double>(dim) * std::numeric_limits<double>::epsilon();
    for (int64_t step = 0; step < dim; ++step) {
        int64_t pivot = -1;
        double most = negligible;
        for (int64_t i = 0; i < dim; ++i) {
            const double all = matrix[i * (dim + 1)], left = rest[i * (dim + 1)];
            if (left > most * all) {
                pivot = i;
                most = left / all;
            }
        }
        if (pivot < 0) return;
        double* row = out + step * dim;
        const double root = std::sqrt(rest[pivot * (dim + 1)]);
        for (int64_t i = 0; i < dim; ++i) row[i] = rest[pivot * dim + i] / root;
        for (int64_t i = 0; i < dim; ++i) {
            for (int64_t j = 0; j < dim; ++j) rest[i * dim + j] -= row[i] * row[j];
        }
        // Done with, whatever rounding left.
        for (int64_t i = 0; i < dim; ++i) rest[pivot * dim + i] = rest[i * dim + pivot] = 0.0;
    }
}

// out = left middle left^T
void sandwich(const double* left, const double* middle, int64_t dim, double* out) {
    std::vector<double> half(dim * dim);
    multiply(left, middle, dim, half.data());
    for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            out[i * dim + j] = out[j * dim + i] = inner(half.data() + i * dim, left + j * dim, dim);
        }
    }
}

// Means and covariances of one side.
void place(const GaussianSide& side, int64_t batch, int64_t dim, double* mean, double* covariance,
           int threads, const MomentKernels& kernels) {
    if (side.points == nullptr) {
        std::copy_n(side.mean, batch * dim, mean);
        std::copy_n(side.covariance, batch * dim * dim, covariance);
        return;
    }
    std::vector<double> count(batch);
    moments(side.points, nullptr, batch, side.count, dim, count.data(), mean, covariance, threads,
            kernels);
}

}  // namespace

bool gaussian_w2_product(const GaussianSide& x, const GaussianSide& y, int64_t batch, int64_t dim,
                         double* state, double* product, int threads,
                         const MomentKernels& kernels) {
    const int64_t size = dim * dim;
    const State<double> all(state, batch, dim);
    place(x, batch, dim, all.mean_x, all.s1, threads, kernels);
    place(y, batch, dim, all.mean_y, all.s2, threads, kernels);
    const auto finite = [](double value) { return std::isfinite(value); };
    if (!std::all_of(all.s1, all.factor, finite)) return false;
    for (int64_t b = 0; b < batch; ++b) {
        double* factor = all.factor + b * size;
        factorise(all.s1 + b * size, dim, factor);
        sandwich(factor, all.s2 + b * size, dim, product + b * size);
    }
    return true;
}

void gaussian_w2_finish(const double* values, const double* vectors, const double* state,
                        double ridge, double relative, int64_t batch, int64_t dim,
                        double by_covariance, double by_mean, double* value, double* pull) {
    const int64_t size = dim * dim;
    const State<const double> all(state, batch, dim);
    std::vector<double> inverse(dim), factor(size), transport(size), weighted(size);
    for (int64_t b = 0; b < batch; ++b, values += dim, vectors += size, pull += size + 2 * dim) {
        const double *s1 = all.s1 + b * size, *s2 = all.s2 + b * size;
        const double *mean_x = all.mean_x + b * dim, *mean_y = all.mean_y + b * dim;
        const double epsilon = ridge + relative * inner(s1, s2, size);
        const double negligible = static_cast<double>(dim) *
                                  std::numeric_limits<double>::epsilon() *
                                  std::max(values[dim - 1], 0.0);
        multiply(vectors, all.factor + b * size, dim, factor.data());
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
