#include "moments.h"

#include <algorithm>
#include <deque>
#include <utility>
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

// The sums of one set's parts, and what they add up to.
class PartSums {
  public:
    PartSums(const PointSet& set, int64_t dim, const MomentKernels& kernels)
        : set_(set), dim_(dim), padded_(round_up(dim, kernels.tile)),
          parts_(std::clamp<int64_t>((set.n + kLeastRows - 1) / kLeastRows, 1, kMostParts)),
          part_rows_(round_up((set.n + parts_ - 1) / parts_, kBlockRows)),
          stride_(padded_ * padded_ + padded_), kernels_(kernels), shift_(set.batch * padded_),
          sums_(set.batch * parts_ * stride_), counts_(set.batch * parts_, 0) {
        for (int64_t b = 0; b < set.batch; ++b) {
            find_shift(set.points + b * set.n * dim, valid_of(b), set.n, dim,
                       shift_.data + b * padded_);
        }
    }

    int64_t tasks() const { return set_.batch * parts_; }

    // Adds up a part; `block` has kBlockRows rows.
    void add(int64_t task, double* block) {
        const float* rows[kRowsAtOnce];
        const int64_t b = task / parts_, part = task % parts_;
        const int64_t stop = std::min(set_.n, (part + 1) * part_rows_);
        const bool* valid = valid_of(b);
        double* gram = sums_.data + task * stride_;
        int64_t i = part * part_rows_;
        while (i < stop) {
            int64_t filled = 0;
            for (; i < stop && filled < kRowsAtOnce; ++i) {
                if (valid == nullptr || valid[i]) {
                    rows[filled++] = set_.points + (b * set_.n + i) * dim_;
                }
            }
            kernels_.add(rows, filled, dim_, padded_, shift_.data + b * padded_, block, gram,
                         gram + padded_ * padded_);
            counts_[task] += filled;
        }
    }

    void finish(int threads) {
        for (int64_t b = 0; b < set_.batch; ++b) finish(b, threads);
    }

  private:
    const bool* valid_of(int64_t b) const {
        return set_.valid == nullptr ? nullptr : set_.valid + b * set_.n;
    }

    void finish(int64_t b, int threads) {
        double* total = sums_.data + b * parts_ * stride_;
        int64_t points = counts_[b * parts_];
        for (int64_t part = 1; part < parts_; ++part) points += counts_[b * parts_ + part];
#pragma omp parallel for num_threads(threads) if (stride_ * parts_ > 65536)
        for (int64_t i = 0; i < stride_; ++i) {
            for (int64_t part = 1; part < parts_; ++part) total[i] += total[part * stride_ + i];
        }
        const double size = static_cast<double>(std::max<int64_t>(points, 1));
        const double freedom = static_cast<double>(std::max<int64_t>(points - 1, 1));
        const double* sum = total + padded_ * padded_;
        double *mean = set_.mean + b * dim_, *out = set_.covariance + b * dim_ * dim_;
        set_.count[b] = static_cast<double>(points);
        for (int64_t i = 0; i < dim_; ++i) {
            mean[i] = shift_.data[b * padded_ + i] + sum[i] / size;
            for (int64_t j = i; j < dim_; ++j) {
                const double value = (total[i * padded_ + j] - sum[i] * sum[j] / size) / freedom;
                out[i * dim_ + j] = out[j * dim_ + i] = value;
            }
        }
    }

    const PointSet set_;
    const int64_t dim_, padded_, parts_, part_rows_, stride_;
    const MomentKernels& kernels_;
    Doubles shift_, sums_;
    std::vector<int64_t> counts_;
};

}  // namespace

void moments(std::initializer_list<PointSet> sets, int64_t dim, int threads,
             const MomentKernels& kernels) {
    threads = std::max(1, threads);
    std::deque<PartSums> sums;
    std::vector<std::pair<PartSums*, int64_t>> tasks;
    for (const PointSet& set : sets) {
        PartSums& own = sums.emplace_back(set, dim, kernels);
        for (int64_t task = 0; task < own.tasks(); ++task) tasks.emplace_back(&own, task);
    }
#pragma omp parallel num_threads(threads)
    {
        Doubles block(kBlockRows * round_up(dim, kernels.tile));
        // A thread that wakes up late finds less left to do.
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); ++i) tasks[i].first->add(tasks[i].second, block.data);
    }
    for (PartSums& own : sums) own.finish(threads);
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
#pragma omp for schedule(dynamic, 4)
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
