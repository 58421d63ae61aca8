#include "moments.h"

#include <algorithm>
#include <vector>

#include "buffer.h"

namespace vqkern {
namespace {

// A set is cut into at most so many parts, at places that depend on n alone: each part's sums are its
// own, and they are added in order, whatever the number of threads.
constexpr int64_t kMostParts = 64;
constexpr int64_t kLeastRows = 2048;
constexpr int64_t kSampled = 64;  // points whose mean is the shift
constexpr int64_t kRowsAtOnce = 512;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Float64 values aligned to a cache line: vectors that cross one take twice as long to load.
struct Doubles {
    explicit Doubles(size_t count) : memory(2 * count), data(reinterpret_cast<double*>(memory.data)) {
        std::fill_n(data, count, 0.0);
    }
    Buffer memory;
    double* data;
};

// Near the mean of points [n][dim], and exactly on them if they are all equal.
void find_shift(const float* x, const bool* valid, int64_t n, int64_t dim, double* shift) {
    int64_t taken = 0;
    const int64_t step = std::max<int64_t>(1, n / kSampled);
    for (int64_t i = 0; i < n; i += step) {
        if (valid != nullptr && !valid[i]) continue;
        for (int64_t d = 0; d < dim; ++d) shift[d] += x[i * dim + d];
        ++taken;
    }
    for (int64_t d = 0; d < dim && taken > 0; ++d) shift[d] /= static_cast<double>(taken);
}

}  // namespace

void moments(const float* x, const bool* valid, int64_t batch, int64_t n, int64_t dim,
             double* count, double* mean, double* covariance, int threads,
             const MomentKernels& kernels) {
    const int64_t padded = round_up(dim, kernels.tile);
    const int64_t parts = std::clamp<int64_t>((n + kLeastRows - 1) / kLeastRows, 1, kMostParts);
    const int64_t part_rows = round_up((n + parts - 1) / parts, kBlockRows);
    const int64_t stride = padded * padded + padded;  // a part's Gram matrix, then its sum
    Doubles shift(batch * padded), sums(batch * parts * stride);
    std::vector<int64_t> counts(batch * parts, 0);
    threads = std::max(1, threads);

    for (int64_t b = 0; b < batch; ++b) {
        find_shift(x + b * n * dim, valid == nullptr ? nullptr : valid + b * n, n, dim,
                   shift.data + b * padded);
    }
#pragma omp parallel num_threads(threads)
    {
        Doubles block(kBlockRows * padded);
        const float* rows[kRowsAtOnce];
#pragma omp for schedule(static)
        for (int64_t task = 0; task < batch * parts; ++task) {
            const int64_t b = task / parts, part = task % parts;
            const int64_t stop = std::min(n, (part + 1) * part_rows);
            double* gram = sums.data + task * stride;
            int64_t i = part * part_rows;
            while (i < stop) {
                int64_t filled = 0;
                for (; i < stop && filled < kRowsAtOnce; ++i) {
                    if (valid == nullptr || valid[b * n + i]) rows[filled++] = x + (b * n + i) * dim;
                }
                kernels.add(rows, filled, dim, padded, shift.data + b * padded, block.data, gram,
                            gram + padded * padded);
                counts[task] += filled;
            }
        }
    }
    for (int64_t b = 0; b < batch; ++b) {
        double* total = sums.data + b * parts * stride;
        int64_t points = counts[b * parts];
        for (int64_t part = 1; part < parts; ++part) points += counts[b * parts + part];
#pragma omp parallel for num_threads(threads) if (stride * parts > 65536)
        for (int64_t i = 0; i < stride; ++i) {
            for (int64_t part = 1; part < parts; ++part) total[i] += total[part * stride + i];
        }
        const double size = static_cast<double>(std::max<int64_t>(points, 1));
        const double freedom = static_cast<double>(std::max<int64_t>(points - 1, 1));
        const double* sum = total + padded * padded;
        double* out = covariance + b * dim * dim;
        count[b] = static_cast<double>(points);
        for (int64_t i = 0; i < dim; ++i) {
            mean[b * dim + i] = shift.data[b * padded + i] + sum[i] / size;
            for (int64_t j = i; j < dim; ++j) {
                const double value = (total[i * padded + j] - sum[i] * sum[j] / size) / freedom;
                out[i * dim + j] = out[j * dim + i] = value;
            }
        }
    }
}

void pull_back(const float* x, const bool* valid, int64_t batch, int64_t n, int64_t dim,
               const double* pull, const double* factor, float* out, int threads,
               const MomentKernels& kernels) {
    const int64_t padded = round_up(dim, kernels.tile);
    Doubles origin(batch * padded), start(batch * padded), square(batch * padded * padded);
    for (int64_t b = 0; b < batch; ++b, pull += (dim + 2) * dim) {
        const double* offset = pull + (dim + 1) * dim;
        std::copy_n(pull + dim * dim, dim, origin.data + b * padded);
        for (int64_t i = 0; i < dim; ++i) {
            start.data[b * padded + i] = factor[b] * offset[i];
            for (int64_t j = 0; j < dim; ++j) {
                square.data[(b * padded + i) * padded + j] = factor[b] * pull[i * dim + j];
            }
        }
    }
    const int64_t parts = (n + kRowsAtOnce - 1) / kRowsAtOnce;
#pragma omp parallel num_threads(std::max(1, threads))
    {
        Doubles block(kBlockRows * padded);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < batch * parts; ++task) {
            const int64_t b = task / parts, first = task % parts * kRowsAtOnce;
            const int64_t count = std::min(kRowsAtOnce, n - first);
            const int64_t at = b * n + first;
            kernels.map(x + at * dim, count, dim, padded, origin.data + b * padded,
                        square.data + b * padded * padded, start.data + b * padded, block.data,
                        out + at * dim);
            for (int64_t r = 0; r < count && valid != nullptr; ++r) {
                if (!valid[at + r]) std::fill_n(out + (at + r) * dim, dim, 0.0f);
            }
        }
    }
}

}  // namespace vqkern
