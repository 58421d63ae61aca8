#include "squared_mmd.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "buffer.h"
#include "finite.h"

namespace vqkern {
namespace {

// Squarings since the last exponential: each doubles the relative error.
constexpr int kMostSquarings = 6, kMostSquaringsApart = 2;
constexpr double kPadding = -1e30;  // the offset of points that are not there: their kernel is 0
// A set is cut into at most so many runs of blocks, at places that depend on its size alone; a round pairs
// each run of one set with one of the other, and a thread goes through such a pair alone.
constexpr int64_t kMostRuns = 32, kLeastRun = 8;
constexpr int64_t kNear = 4;  // blocks whose pulls stay in the first-level cache

// What float32 sums must promise, or they are done again in float64: errors of the gradient relative to its
// largest entry, and of the value relative to itself, or else to mean k(x, x) + mean k(y, y).
constexpr double kGradientError = 5e-6, kValueError = 1e-6, kKernelError = 1e-9;
// The relative error of a float32 weight in units of 2^-24, by itself and for each unit of exponent. Where the
// second takes more than kMostUnits, nothing is tried but differences, whose error is their own alone.
constexpr double kWeightUnits = 2.0, kOffsetUnits = 1.0, kMostUnits = 64.0;
double units_apart(int64_t dim) { return 8.0 + std::sqrt(dim) / 4; }
constexpr int64_t kFewPoints = 128;  // float64 costs nothing for so few

Ladder make_ladder(const double* bandwidths, int count, int most_squarings) {
    std::vector<double> sorted(bandwidths, bandwidths + count);
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    Ladder ladder;
    ladder.count = count;
    int since = 0;
    for (int l = 0; l < count; ++l) {
        ladder.rate[l] = sorted[0] / sorted[l];
        const double steps = l == 0 ? 0.0 : std::log2(sorted[l - 1] / sorted[l]);
        const int whole = static_cast<int>(std::lround(steps));
        const bool power = whole > 0 && std::fabs(steps - whole) < 1e-9;
        since = power && since + whole <= most_squarings ? since + whole : 0;
        ladder.squarings[l] = since == 0 ? 0 : whole;
    }
    return ladder;
}

// The origin and the unit of length in which kernels are found.
struct Frame {
    std::vector<double> mean;
    double scale;
    bool apart;  // the points as they are, times a power of two
};

// Points in blocks, with their offsets -|a|^2 / 2, or 0.
template <typename Scalar>
struct Points {
    template <typename T>
    Points(const T* points, int64_t count, int64_t dim, const Frame& frame)
        : blocks((count + kBlock - 1) / kBlock),
          run(std::max(kLeastRun, (blocks + kMostRuns - 1) / kMostRuns)),
          runs((blocks + run - 1) / run),
          memory(blocks * (dim + 1) * kBlock * (sizeof(Scalar) / sizeof(float))),
          values(reinterpret_cast<Scalar*>(memory.data)),
          offsets(values + blocks * dim * kBlock) {
        double total = 0.0;
        for (int64_t i = 0; i < blocks * kBlock; ++i) {
            Scalar* out = values + i / kBlock * dim * kBlock + i % kBlock;
            double squared = 0.0;
            for (int64_t d = 0; d < dim; ++d) {
                // The norm is that of the rounded point: the exponent of a pair of equals is 0.
                const Scalar value =
                    i < count ? static_cast<Scalar>((points[i * dim + d] - frame.mean[d]) * frame.scale)
                              : 0;
                out[d * kBlock] = value;
                squared += static_cast<double>(value) * value;
            }
            if (frame.apart) squared = 0.0;
            offsets[i] = static_cast<Scalar>(i < count ? -squared / 2 : kPadding);
            if (i < count) total += squared / 2;
        }
        mean_offset = total / count;
    }

    int64_t blocks, run, runs;
    Buffer memory;
    Scalar *values, *offsets;
    double mean_offset;
};

// What pulls at each point of a set, in blocks [dim + 1][kBlock]; none where nobody asks.
struct Pulls {
    Pulls(int64_t points, int64_t dim, bool wanted)
        : size((dim + 1) * kBlock),
          sums(wanted ? (points + kBlock - 1) / kBlock * size : 0, 0.0) {}
    bool wanted() const { return !sums.empty(); }
    double* block(int64_t i) { return wanted() ? sums.data() + i * size : nullptr; }
    // The sum of the weights of point i, with those of its channels d * kBlock before it.
    const double* of(int64_t i) const { return sums.data() + i / kBlock * size + i % kBlock; }

    int64_t size;
    std::vector<double> sums;
};

template <typename Scalar>
struct Problem {
    int64_t dim;
    Frame frame;
    Ladder ladder;
    int threads;
    PairSums<Scalar> pairs;
};

// sum_ij k_ij over one run of blocks of a and one of b, and the pulls at both sides. In a set's own sum,
// where a is b, the run itself is paired block by block once, and each pair of two blocks stands for its
// mirror image.
template <typename Scalar>
double run_sum(const Problem<Scalar>& problem, const Points<Scalar>& a, const Points<Scalar>& b,
               Pulls& a_pulls, Pulls& b_pulls, int64_t run_a, int64_t run_b) {
    const bool same = &a == &b;
    const auto block = [&](const Points<Scalar>& points, int64_t i, double* pull) {
        return PointBlock<Scalar>{points.values + i * problem.dim * kBlock,
                                  points.offsets + i * kBlock, pull};
    };
    const int64_t a_begin = run_a * a.run, a_end = std::min(a.blocks, a_begin + a.run);
    const int64_t b_begin = run_b * b.run, b_end = std::min(b.blocks, b_begin + b.run);
    double total = 0.0;
    for (int64_t near = a_begin; near < a_end; near += kNear) {
        for (int64_t j = b_begin; j < b_end; ++j) {
            const int64_t last = same && run_a == run_b ? std::min(j + 1, a_end) : a_end;
            for (int64_t i = near; i < std::min(near + kNear, last); ++i) {
                const bool itself = same && i == j;
                const double sum =
                    problem.pairs(block(a, i, itself ? nullptr : a_pulls.block(i)),
                                  block(b, j, b_pulls.block(j)), problem.dim, problem.ladder);
                total += same && !itself ? 2.0 * sum : sum;
            }
        }
    }
    return total;
}

// sum_ij k(a_i, b_j) over all pairs; a and b may be one. In a round, no run of blocks is in two pairs, so
// that pulls are added to without locks and in one order, whatever the number of threads.
template <typename Scalar>
double pair_sum(const Problem<Scalar>& problem, const Points<Scalar>& a, const Points<Scalar>& b,
                Pulls& a_pulls, Pulls& b_pulls) {
    const bool same = &a == &b;
    const int64_t rounds = std::max(a.runs, b.runs);
    std::vector<double> partial(a.runs);
    double total = 0.0;
#pragma omp parallel num_threads(problem.threads)
    {
        for (int64_t round = 0; round < rounds; ++round) {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < a.runs; ++i) {
                // Of a set's own pairs, those whose numbers add up to the round; of two sets', those that
                // far apart.
                const int64_t j = same ? (round - i + rounds) % rounds : (i + round) % rounds;
                partial[i] = j >= b.runs || (same && j < i)
                                 ? 0.0
                                 : run_sum(problem, a, b, a_pulls, b_pulls, i, j);
            }
#pragma omp single
            for (double value : partial) total += value;
        }
    }
    return total;
}

// How much of a gradient rounding may have taken: its largest entry, and the error to expect in any.
struct Trust {
    double largest = 0.0, error = 0.0;
};

// A set's gradient, in the coordinates of the input: d/db k(a, b) = -2 w (b - a) / bandwidth, own pairs
// and others with a factor each. `spread` bounds the mean of (w |a - b|)^2 in units of w.
template <typename T>
Trust write_gradient(const Pulls& own, const Pulls& other, const T* points, int64_t count,
                     int64_t dim, const Frame& frame, double own_factor, double other_factor,
                     double spread, T* grad) {
    Trust trust;
    double most = 0.0;
    for (int64_t j = 0; j < count; ++j) {
        const double *p = own.of(j), *q = other.of(j);
        const double total = own_factor * p[dim * kBlock] + other_factor * q[dim * kBlock];
        for (int64_t d = 0; d < dim; ++d) {
            const double centred = points[j * dim + d] - frame.mean[d];
            const double pulled = own_factor * p[d * kBlock] + other_factor * q[d * kBlock];
            const double value = (frame.apart ? 0.0 : total * centred) - pulled / frame.scale;
            trust.largest = std::max(trust.largest, std::fabs(value));
            grad[j * dim + d] = static_cast<T>(value);
        }
        most = std::max(most, own_factor * own_factor * p[dim * kBlock] +
                                  other_factor * other_factor * q[dim * kBlock]);
    }
    trust.error = std::sqrt(most * spread);
    return trust;
}

template <typename T>
struct Sets {
    const T *x, *y;
    int64_t n, m, dim;
    bool unbiased;
    T *x_grad, *y_grad;
};

// The value, the relative error of a weight in units of rounding, and by how much the expected errors of value
// and gradients exceed what is asked for: none of them, if at most 1.
struct Result {
    double value, units, excess;
};

// In the arithmetic of `Scalar`.
template <typename Scalar, typename T>
Result sweep(const Sets<T>& sets, const Problem<Scalar>& problem, double rate) {
    const auto [x, y, n, m, dim, unbiased, x_grad, y_grad] = sets;
    const Frame& frame = problem.frame;
    const Points<Scalar> a(x, n, dim, frame), b(y, m, dim, frame);
    const int bandwidths = problem.ladder.count;
    // The relative error of a weight: that of its exponent, a difference of numbers of the size of the
    // offsets, which the narrowest kernel multiplies, or else a sum of `dim` squares.
    const double narrowest = problem.ladder.rate[bandwidths - 1];
    const double by_offsets = kOffsetUnits * narrowest * (a.mean_offset + b.mean_offset);
    const double units = frame.apart ? units_apart(dim) : kWeightUnits + by_offsets;
    const double beyond = std::numeric_limits<double>::infinity();
    if (sizeof(Scalar) == sizeof(float) && by_offsets > kMostUnits) return {0.0, beyond, beyond};
    const double relative = units * std::numeric_limits<Scalar>::epsilon() / 2;

    // Pulls within the sets and between them have different weights, and are summed apart.
    const bool to_x = x_grad != nullptr, to_y = y_grad != nullptr;
    Pulls own_x(n, dim, to_x), mixed_x(n, dim, to_x), own_y(m, dim, to_y), mixed_y(m, dim, to_y);
    double xx = pair_sum(problem, a, a, own_x, own_x), yy = pair_sum(problem, b, b, own_y, own_y);
    const double xy = pair_sum(problem, a, b, mixed_x, mixed_y);
    if (unbiased) {
        xx -= static_cast<double>(n) * bandwidths;
        yy -= static_cast<double>(m) * bandwidths;
    }
    const double drop = unbiased ? 1.0 : 0.0;
    const double weight_xx = 1.0 / (n * (n - drop)), weight_yy = 1.0 / (m * (m - drop));
    const double weight_xy = 1.0 / (static_cast<double>(n) * m);
    Result result = {xx * weight_xx + yy * weight_yy - 2.0 * xy * weight_xy, units, 0.0};

    // Errors of pairs are independent. (w |a - b|)^2 <= w L / e in units of the largest bandwidth: x exp(-x)
    // is at most 1 / e.
    const double spread = bandwidths * std::exp(-1.0) / rate;
    const auto check = [&](const Trust& trust) {
        const double error = relative * trust.error, allowed = kGradientError * trust.largest;
        if (error > allowed) result.excess = std::max(result.excess, error / allowed);
    };
    // A point appears on both sides of its own set's sum, hence twice the weight.
    const double other = 4.0 * rate * weight_xy;
    if (to_x) {
        check(write_gradient(own_x, mixed_x, x, n, dim, frame, -4.0 * rate * weight_xx, other, spread,
                             x_grad));
    }
    if (to_y) {
        check(write_gradient(own_y, mixed_y, y, m, dim, frame, -4.0 * rate * weight_yy, other, spread,
                             y_grad));
    }
    const double kernels = xx * weight_xx + yy * weight_yy;
    const double pairs = static_cast<double>(std::min(n, m)) * std::min(n, m);
    const double asked = std::max(kValueError * std::fabs(result.value), kKernelError * kernels);
    result.excess = std::max(result.excess, relative * kernels / (asked * std::sqrt(pairs)));
    if (!std::isfinite(result.value)) result.excess = beyond;  // distances that float32 does not hold
    return result;
}

}  // namespace

template <typename T>
MmdResult squared_mmd(const T* x, const T* y, int64_t n, int64_t m, int64_t dim,
                      const double* bandwidths, int num_bandwidths, bool unbiased, T* x_grad, T* y_grad,
                      int threads, const KernelSumKernels& kernels) {
    if (!all_finite(x, n * dim) || !all_finite(y, m * dim)) {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        if (x_grad != nullptr) std::fill(x_grad, x_grad + n * dim, nan);
        if (y_grad != nullptr) std::fill(y_grad, y_grad + m * dim, nan);
        return {nan, false};
    }
    const double rate = 1.0 / *std::max_element(bandwidths, bandwidths + num_bandwidths);
    // Kernels are 2^(a.b - |a|^2 / 2 - |b|^2 / 2), or 2^(-bend |a - b|^2).
    Frame frame = {std::vector<double>(dim, 0.0), std::sqrt(2.0 * rate / std::log(2.0)), false};
    const Frame as_it_is = {frame.mean, std::exp2(std::floor(std::log2(frame.scale) - 0.5)), true};
    for (int64_t i = 0; i < n * dim; ++i) frame.mean[i % dim] += x[i];
    for (int64_t i = 0; i < m * dim; ++i) frame.mean[i % dim] += y[i];
    for (double& value : frame.mean) value /= static_cast<double>(n + m);
    const Sets<T> sets = {x, y, n, m, dim, unbiased, x_grad, y_grad};
    const Ladder ladder = make_ladder(bandwidths, num_bandwidths, kMostSquarings);
    threads = std::max(1, threads);
    if (sizeof(T) == sizeof(float) && std::min(n, m) > kFewPoints) {
        const Problem<float> centred = {dim, frame, ladder, threads, kernels.single};
        const Result result = sweep(sets, centred, rate);
        if (result.excess <= 1.0) return {result.value, false};
        // Not where the errors would have to shrink by more than their units do.
        if (std::isinf(result.units) || result.excess * units_apart(dim) <= result.units) {
            Problem<float> apart = {dim, as_it_is,
                                    make_ladder(bandwidths, num_bandwidths, kMostSquaringsApart), threads,
                                    kernels.apart};
            apart.ladder.bend = rate / (std::log(2.0) * as_it_is.scale * as_it_is.scale);
            const Result again = sweep(sets, apart, rate);
            if (again.excess <= 1.0) return {again.value, false};
        }
    }
    const Problem<double> problem = {dim, frame, ladder, threads, kernels.wide};
    return {sweep(sets, problem, rate).value, true};
}

template MmdResult squared_mmd(const float*, const float*, int64_t, int64_t, int64_t, const double*,
                               int, bool, float*, float*, int, const KernelSumKernels&);
template MmdResult squared_mmd(const double*, const double*, int64_t, int64_t, int64_t,
                               const double*, int, bool, double*, double*, int,
                               const KernelSumKernels&);

}  // namespace vqkern
