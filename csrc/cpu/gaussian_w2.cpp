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

double inner(const double* a, const double* b, int64_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

double trace(const double* a, int64_t dim) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += a[i * (dim + 1)];
    return sum;
}

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

// Means [batch][dim], covariances [batch][dim][dim] and factors G of them of one side.
struct Fitted {
    Fitted(const GaussianSide& side, int64_t batch, int64_t dim)
        : count(batch), mean(batch * dim), covariance(batch * dim * dim),
          factor(batch * dim * dim) {
        if (side.points == nullptr) {
            std::copy_n(side.mean, batch * dim, mean.data());
            std::copy_n(side.covariance, batch * dim * dim, covariance.data());
            return;
        }
        to_find = {side.points, nullptr,     batch,
                   side.count,  count.data(), mean.data(),
                   covariance.data()};
        by_covariance = 2.0 / static_cast<double>(side.count - 1);
        by_mean = 1.0 / static_cast<double>(side.count);
    }

    bool finite() const {
        return std::all_of(covariance.begin(), covariance.end(),
                           [](double value) { return std::isfinite(value); });
    }

    std::vector<double> count, mean, covariance, factor;
    PointSet to_find = {};  // of no batch, if the moments were given
    double by_covariance = 1.0, by_mean = 1.0;  // from derivatives by moments to those that are asked for
};

// Rows [M_k | G_k] that were rotated until those on the left are orthogonal, each of two parts of `padded`
// channels, and the squared lengths of those on the left.
struct Rotated {
    Rotated(const double* g1, const double* g2, int64_t dim, const MomentKernels& kernels)
        : padded((dim + kernels.tile - 1) / kernels.tile * kernels.tile),
          rows(2 * padded * (dim + dim % 2)), values(dim) {
        double largest = 0.0;
        for (int64_t i = 0; i < dim; ++i) {
            for (int64_t j = 0; j < dim; ++j) {
                left(i)[j] = inner(g1 + i * dim, g2 + j * dim, dim);
                largest = std::max(largest, std::abs(left(i)[j]));
            }
            std::copy_n(g1 + i * dim, dim, right(i));
        }
        // Scaled by a power of two, squares of squares neither overflow nor vanish.
        const int scale = largest > 0.0 ? std::ilogb(largest) : 0;
        for (int64_t i = 0; i < dim; ++i) {
            for (int64_t j = 0; j < dim; ++j) left(i)[j] = std::ldexp(left(i)[j], -scale);
        }
        kernels.orthogonalise(rows.data(), dim + dim % 2, padded, 2 * padded);
        for (int64_t i = 0; i < dim; ++i) {
            values[i] = std::ldexp(inner(left(i), left(i), dim), 2 * scale);
        }
    }

    double* left(int64_t i) { return rows.data() + i * 2 * padded; }
    double* right(int64_t i) { return left(i) + padded; }

    int64_t padded;
    std::vector<double> rows, values;
};

// Problem b of a batch, as `y` sees it: its value, and its pull on y.
double solve(const Fitted& x, const Fitted& y, int64_t b, int64_t dim, double ridge,
             double relative, double* pull, const MomentKernels& kernels) {
    const int64_t size = dim * dim;
    const double *s1 = x.covariance.data() + b * size, *s2 = y.covariance.data() + b * size;
    // C has the eigenvalues of M M^T for M = G1 G2^T, and with rotations R that make the rows of R M orthogonal,
    // T = (R G1)^T (V + e I)^{-1/2} R G1 where V are their squared lengths.
    Rotated rotated(x.factor.data() + b * size, y.factor.data() + b * size, dim, kernels);
    const std::vector<double>& values = rotated.values;
    std::vector<double> rest(size), weighted(size);
    // tr C and what rounding may have made of it: sets that vary in different directions have nothing in common.
    double overlap = 0.0, summed = 0.0;
    for (int64_t i = 0; i < size; ++i) {
        overlap += s1[i] * s2[i];
        summed += std::abs(s1[i] * s2[i]);
    }
    const double negligible =
        static_cast<double>(dim) * std::numeric_limits<double>::epsilon() * summed;
    const double epsilon = ridge + relative * (overlap > negligible ? overlap : 0.0);
    for (int64_t i = 0; i < dim; ++i) rest[i * (dim + 1)] = 1.0;  // to become I - T
    double roots = 0.0, inverses = 0.0, missed = 0.0;
    for (int64_t k = 0; k < dim; ++k) {
        const double* row = rotated.right(k);
        const double shifted = values[k] + epsilon;
        const bool kept = epsilon > 0.0 || shifted > negligible;
        const double inverse = kept ? 1.0 / std::sqrt(shifted) : 0.0;
        roots += std::sqrt(shifted);
        inverses += inverse;
        missed += inner(row, row, dim) * (kept ? epsilon * inverse * inverse : 1.0);
        for (int64_t i = 0; i < dim; ++i) {
            const double share = inverse * row[i];
            for (int64_t j = 0; j < dim; ++j) rest[i * dim + j] -= share * row[j];
        }
    }
    multiply(rest.data(), s2, dim, weighted.data());
    const double codes = trace(s2, dim), total = trace(s1, dim) + codes;
    const double direct = total - 2.0 * roots;
    const double factored =
        inner(weighted.data(), rest.data(), size) + missed - 2.0 * epsilon * inverses;
    const bool near = inner(rest.data(), rest.data(), size) * codes < total;
    const double *mean_x = x.mean.data() + b * dim, *mean_y = y.mean.data() + b * dim;
    double apart = 0.0;
    for (int64_t i = 0; i < dim; ++i) {
        const double difference = mean_y[i] - mean_x[i];
        apart += difference * difference;
        pull[size + i] = mean_y[i];
        pull[size + dim + i] = y.by_mean * 2.0 * difference;
    }
    for (int64_t i = 0; i < size; ++i) {
        pull[i] = y.by_covariance * (rest[i] - relative * inverses * s1[i]);
    }
    return apart + (near ? factored : direct);
}

}  // namespace

bool gaussian_w2(const GaussianSide& x, const GaussianSide& y, int64_t batch, int64_t dim,
                 double ridge, double relative, double* value, double* pull_x, double* pull_y,
                 int threads, const MomentKernels& kernels) {
    const int64_t size = dim * dim;
    Fitted of_x(x, batch, dim), of_y(y, batch, dim);
    moments({of_y.to_find, of_x.to_find}, dim, threads, kernels);
    if (!of_x.finite() || !of_y.finite()) return false;
#pragma omp parallel for num_threads(std::max(1, threads)) if (batch > 1)
    for (int64_t b = 0; b < batch; ++b) {
        for (Fitted* side : {&of_x, &of_y}) {
            factorise(side->covariance.data() + b * size, dim, side->factor.data() + b * size);
        }
        const int64_t at = b * (size + 2 * dim);
        if (pull_x != nullptr) solve(of_y, of_x, b, dim, ridge, relative, pull_x + at, kernels);
        value[b] = solve(of_x, of_y, b, dim, ridge, relative, pull_y + at, kernels);
    }
    return true;
}

}  // namespace vqkern
