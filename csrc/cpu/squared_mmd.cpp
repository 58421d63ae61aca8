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

// Points in blocks, with their offsets -|a|^2 / 2, and the sums that pull at them.
struct Points {
    Points(const float* points, int64_t count, int64_t dim, const std::vector<double>& mean,
           double scale, bool pulled)
        : blocks((count + kBlock - 1) / kBlock),
          values(blocks * dim * kBlock),
          offsets(blocks * kBlock),
          pull(pulled ? blocks * (dim + 1) * kBlock : 0, 0.0) {
        for (int64_t i = 0; i < blocks * kBlock; ++i) {
            float* out = values.data + i / kBlock * dim * kBlock + i % kBlock;
            double squared = 0.0;
            for (int64_t d = 0; d < dim; ++d) {
                // The norm is that of the rounded point: the exponent of a pair of equals is 0.
                const float value =
                    i < count ? static_cast<float>((points[i * dim + d] - mean[d]) * scale) : 0.0f;
                out[d * kBlock] = value;
                squared += static_cast<double>(value) * value;
            }
            offsets.data[i] = i < count ? static_cast<float>(-squared / 2) : kPadding;
        }
    }

    int64_t blocks;
    Buffer values, offsets;
    std::vector<double> pull;  // [blocks][dim + 1][kBlock]; empty where nobody asks
};

// Runs of blocks whose pulls are summed in float32 before they join the float64 totals.
constexpr int64_t kRun = 16;

struct Problem {
    int64_t dim;
    Ladder ladder;
    int threads;
    const KernelSumKernels* kernels;
};

// The pairs of one run of blocks of a with one of b.
class RunPair {
  public:
    RunPair(const Problem& problem, Points& a, Points& b)
        : problem_(problem),
          a_(a),
          b_(b),
          size_((problem.dim + 1) * kBlock),
          a_pull_(a.pull.empty() ? 0 : kRun * size_),
          b_pull_(b.pull.empty() ? 0 : size_) {}

    // sum_ij k_ij, and the pulls at both sides. In a set's own sum, where a is b, the run itself is paired
    // block by block once, and each pair of two blocks stands for its mirror image.
    double sum(int64_t run_a, int64_t run_b) {
        const bool same = &a_ == &b_;
        const int64_t a_begin = run_a * kRun, a_end = std::min(a_.blocks, a_begin + kRun);
        const int64_t b_begin = run_b * kRun, b_end = std::min(b_.blocks, b_begin + kRun);
        const bool a_pulled = !a_.pull.empty(), b_pulled = !b_.pull.empty();
        if (a_pulled) std::fill(a_pull_.data, a_pull_.data + kRun * size_, 0.0f);
        double total = 0.0;
        for (int64_t j = b_begin; j < b_end; ++j) {
            if (b_pulled) std::fill(b_pull_.data, b_pull_.data + size_, 0.0f);
            const int64_t last = same && run_a == run_b ? j + 1 : a_end;
            for (int64_t i = a_begin; i < last; ++i) {
                const bool itself = same && i == j;
                const PointBlock to_a = block(a_, i, !a_pulled || itself ? nullptr : a_pull_.data + (i - a_begin) * size_);
                const PointBlock to_b = block(b_, j, b_pulled ? b_pull_.data : nullptr);
                const double sum = problem_.kernels->pairs(to_a, to_b, problem_.dim, problem_.ladder);
                total += same && !itself ? 2.0 * sum : sum;
            }
            if (b_pulled) join(b_pull_.data, b_, j);
        }
        for (int64_t i = a_begin; a_pulled && i < a_end; ++i) {
            join(a_pull_.data + (i - a_begin) * size_, a_, i);
        }
        return total;
    }

  private:
    PointBlock block(const Points& points, int64_t i, float* pull) const {
        return {points.values.data + i * problem_.dim * kBlock, points.offsets.data + i * kBlock, pull};
    }

    void join(const float* from, Points& points, int64_t i) const {
        double* to = &points.pull[i * size_];
        for (int64_t k = 0; k < size_; ++k) to[k] += from[k];
    }

    const Problem& problem_;
    Points &a_, &b_;
    int64_t size_;
    Buffer a_pull_, b_pull_;
};

// sum_ij k(a_i, b_j) over all pairs; a and b may be one. In a round, no run of blocks is in two pairs, so
// that pulls are added to without locks and in one order, whatever the number of threads.
double pair_sum(const Problem& problem, Points& a, Points& b) {
    const bool same = &a == &b;
    const int64_t a_runs = (a.blocks + kRun - 1) / kRun, b_runs = (b.blocks + kRun - 1) / kRun;
    const int64_t rounds = std::max(a_runs, b_runs);
    std::vector<double> partial(a_runs);
    double total = 0.0;
#pragma omp parallel num_threads(problem.threads)
    {
        RunPair pair(problem, a, b);
        for (int64_t round = 0; round < rounds; ++round) {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < a_runs; ++i) {
                // Of a set's own pairs, those whose numbers add up to the round; of two sets', those that
                // far apart.
                const int64_t j = same ? (round - i + rounds) % rounds : (i + round) % rounds;
                partial[i] = j >= b_runs || (same && j < i) ? 0.0 : pair.sum(i, j);
            }
#pragma omp single
            for (double value : partial) total += value;
        }
    }
    return total;
}

// weight * d/dp of the sum of k over all pairs of each point, in the coordinates of the input:
// d/db k(a, b) = -2 w (b - a) / bandwidth.
void write_gradient(const Points& own, const Points& other, const float* points, int64_t count,
                    int64_t dim, const std::vector<double>& mean, double scale, double own_factor,
                    double other_factor, float* grad) {
    for (int64_t j = 0; j < count; ++j) {
        const int64_t at = j / kBlock * (dim + 1) * kBlock + j % kBlock;
        const double *p = &own.pull[at], *q = &other.pull[at];
        const double total = own_factor * p[dim * kBlock] + other_factor * q[dim * kBlock];
        for (int64_t d = 0; d < dim; ++d) {
            const double centred = points[j * dim + d] - mean[d];
            const double pulled = own_factor * p[d * kBlock] + other_factor * q[d * kBlock];
            grad[j * dim + d] = static_cast<float>(total * centred - pulled / scale);
        }
    }
}

bool all_finite(const float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(x[i])) return false;
    }
    return true;
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
    const double rate = 1.0 / *std::max_element(bandwidths, bandwidths + num_bandwidths);
    const double scale = std::sqrt(2.0 * rate / std::log(2.0));
    std::vector<double> mean(dim, 0.0);
    for (int64_t i = 0; i < n * dim; ++i) mean[i % dim] += x[i];
    for (int64_t i = 0; i < m * dim; ++i) mean[i % dim] += y[i];
    for (double& value : mean) value /= static_cast<double>(n + m);
    const Problem problem = {dim, make_ladder(bandwidths, num_bandwidths), std::max(1, threads),
                             &kernels};

    // Pulls within the sets and between them have different weights, and are summed apart.
    const bool to_x = x_grad != nullptr, to_y = y_grad != nullptr;
    Points own_x(x, n, dim, mean, scale, to_x), own_y(y, m, dim, mean, scale, to_y);
    double xx = pair_sum(problem, own_x, own_x), yy = pair_sum(problem, own_y, own_y);
    Points mixed_x(x, n, dim, mean, scale, to_x), mixed_y(y, m, dim, mean, scale, to_y);
    const double xy = pair_sum(problem, mixed_x, mixed_y);
    if (unbiased) {
        xx -= static_cast<double>(n) * num_bandwidths;
        yy -= static_cast<double>(m) * num_bandwidths;
    }
    const double drop = unbiased ? 1.0 : 0.0;
    const double weight_xx = 1.0 / (n * (n - drop)), weight_yy = 1.0 / (m * (m - drop));
    const double weight_xy = 1.0 / (static_cast<double>(n) * m);
    // A point appears on both sides of its own set's sum, hence twice the weight.
    const double other = 4.0 * rate * weight_xy;
    if (to_x) {
        write_gradient(own_x, mixed_x, x, n, dim, mean, scale, -4.0 * rate * weight_xx, other,
                       x_grad);
    }
    if (to_y) {
        write_gradient(own_y, mixed_y, y, m, dim, mean, scale, -4.0 * rate * weight_yy, other,
                       y_grad);
    }
    return xx * weight_xx + yy * weight_yy - 2.0 * xy * weight_xy;
}

}  // namespace vqkern
