#include "squared_mmd.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "buffer.h"

namespace vqkern {
namespace {

constexpr int kMostSquarings = 6;
constexpr float kPadding = -1e30f;  // the offset of points that are not there: their kernel is 0

Ladder make_ladder(const double* bandwidths, int count) {
    std::vector<double> sorted(bandwidths, bandwidths + count);
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    Ladder ladder;
    ladder.count = count;
    int since = 0;  // squarings since the last exponential: each doubles the relative error
    for (int l = 0; l < count; ++l) {
        ladder.rate[l] = static_cast<float>(sorted[0] / sorted[l]);
        const double steps = l == 0 ? 0.0 : std::log2(sorted[l - 1] / sorted[l]);
        const int whole = static_cast<int>(std::lround(steps));
        const bool power = whole > 0 && std::fabs(steps - whole) < 1e-9;
        since = power && since + whole <= kMostSquarings ? since + whole : 0;
        ladder.squarings[l] = since == 0 ? 0 : whole;
    }
    return ladder;
}

// Points packed in blocks of `width`, channel-major inside a block, with their offsets -|a|^2 / 2.
struct Packed {
    Packed(const float* points, int64_t count, int64_t dim, const std::vector<double>& mean,
           double scale, int width)
        : blocks((count + width - 1) / width),
          values(blocks * dim * width),
          offsets(blocks * width) {
        for (int64_t i = 0; i < blocks * width; ++i) {
            float* out = values.data + i / width * dim * width + i % width;
            double squared = 0.0;
            for (int64_t d = 0; d < dim; ++d) {
                // The norm is that of the rounded point: the exponent of a pair of equals is 0.
                const float value =
                    i < count ? static_cast<float>((points[i * dim + d] - mean[d]) * scale) : 0.0f;
                out[d * width] = value;
                squared += static_cast<double>(value) * value;
            }
            offsets.data[i] = i < count ? static_cast<float>(-squared / 2) : kPadding;
        }
    }
    int64_t blocks;
    Buffer values, offsets;
};

struct Problem {
    int64_t dim;
    std::vector<double> mean;
    double scale;  // of the points, for which the widest kernel is 2^-|a - b|^2 / 2
    double rate;   // 1 / the largest bandwidth
    Ladder ladder;
    int threads;
    const KernelSumKernels* kernels;
};

// sum_ij k(a_i, b_j); adds weight * d/db_j of it to grad [count][dim] where that is not null.
double pair_sum(const Problem& problem, const Packed& a, const Packed& b, const float* points,
                int64_t count, double weight, double* grad) {
    const int64_t dim = problem.dim;
    const int width = problem.kernels->group_size;
    std::vector<double> partial(b.blocks, 0.0);
#pragma omp parallel num_threads(problem.threads)
    {
        Buffer scratch((dim + 1) * width);
        std::vector<double> pull((dim + 1) * width);
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < b.blocks; ++g) {
            std::fill(pull.begin(), pull.end(), 0.0);
            problem.kernels->sum(a.values.data, a.offsets.data, a.blocks, dim,
                                 b.values.data + g * dim * width, b.offsets.data + g * width,
                                 problem.ladder, scratch.data, &partial[g],
                                 grad == nullptr ? nullptr : pull.data());
            if (grad == nullptr) continue;
            // d/db of sum_i k(a_i, b) = -2 sum_i w_i (b - a_i), back in the coordinates of the input.
            const double factor = -2.0 * weight * problem.rate;
            for (int64_t j = g * width; j < std::min(count, (g + 1) * width); ++j) {
                const int64_t lane = j - g * width;
                const double total = pull[dim * width + lane];
                for (int64_t d = 0; d < dim; ++d) {
                    const double centred = points[j * dim + d] - problem.mean[d];
                    grad[j * dim + d] +=
                        factor * (total * centred - pull[d * width + lane] / problem.scale);
                }
            }
        }
    }
    double sum = 0.0;
    for (double value : partial) sum += value;
    return sum;
}

bool all_finite(const float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(x[i])) return false;
    }
    return true;
}

void write(const std::vector<double>& from, float* to) {
    for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace

double squared_mmd(const float* x, const float* y, int64_t n, int64_t m, int64_t dim,
                   const double* bandwidths, int num_bandwidths, bool unbiased, float* x_grad,
                   float* y_grad, int threads, const KernelSumKernels& kernels) {
    if (!all_finite(x, n * dim) || !all_finite(y, m * dim)) {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        if (x_grad != nullptr) std::fill(x_grad, x_grad + n * dim, nan);
        if (y_grad != nullptr) std::fill(y_grad, y_grad + m * dim, nan);
        return nan;
    }
    Problem problem;
    problem.dim = dim;
    problem.threads = std::max(1, threads);
    problem.kernels = &kernels;
    problem.ladder = make_ladder(bandwidths, num_bandwidths);
    problem.rate = 1.0 / *std::max_element(bandwidths, bandwidths + num_bandwidths);
    problem.scale = std::sqrt(2.0 * problem.rate / std::log(2.0));
    problem.mean.assign(dim, 0.0);
    for (int64_t i = 0; i < n * dim; ++i) problem.mean[i % dim] += x[i];
    for (int64_t i = 0; i < m * dim; ++i) problem.mean[i % dim] += y[i];
    for (double& value : problem.mean) value /= static_cast<double>(n + m);

    const auto pack = [&](const float* points, int64_t count, int width) {
        return Packed(points, count, dim, problem.mean, problem.scale, width);
    };
    const Packed x_panels = pack(x, n, kernels.rows), y_panels = pack(y, m, kernels.rows);
    const Packed x_groups = pack(x, n, kernels.group_size);
    const Packed y_groups = pack(y, m, kernels.group_size);

    const double drop = unbiased ? 1.0 : 0.0;
    const double weight_xx = 1.0 / (n * (n - drop)), weight_yy = 1.0 / (m * (m - drop));
    const double weight_xy = 1.0 / (static_cast<double>(n) * m);
    std::vector<double> gx(x_grad == nullptr ? 0 : n * dim, 0.0);
    std::vector<double> gy(y_grad == nullptr ? 0 : m * dim, 0.0);
    double* to_x = x_grad == nullptr ? nullptr : gx.data();
    double* to_y = y_grad == nullptr ? nullptr : gy.data();

    // A point appears on both sides of its own set's sum, hence twice the weight.
    double xx = pair_sum(problem, x_panels, x_groups, x, n, 2.0 * weight_xx, to_x);
    double yy = pair_sum(problem, y_panels, y_groups, y, m, 2.0 * weight_yy, to_y);
    const double xy = pair_sum(problem, x_panels, y_groups, y, m, -2.0 * weight_xy, to_y);
    if (to_x != nullptr) pair_sum(problem, y_panels, x_groups, x, n, -2.0 * weight_xy, to_x);
    if (unbiased) {
        xx -= static_cast<double>(n) * num_bandwidths;
        yy -= static_cast<double>(m) * num_bandwidths;
    }
    if (x_grad != nullptr) write(gx, x_grad);
    if (y_grad != nullptr) write(gy, y_grad);
    return xx * weight_xx + yy * weight_yy - 2.0 * xy * weight_xy;
}

}  // namespace vqkern
