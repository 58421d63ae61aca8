#include "nearest_code.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "buffer.h"
#include "exact.h"

namespace vqkern {
namespace {

constexpr double kUnit = 0x1p-24;
// What subnormal products and a flush-to-zero mode may lose, for codes scaled to norm 1.
constexpr double kUnderflow = 0x1p-110;
// Rows longer than this are not screened: their scores could leave the float32 range.
constexpr double kLongest = 0x1p90;

constexpr int64_t kNearBytes = 24 << 10;  // codes that stay in the first-level cache
constexpr int64_t kFarBytes = 256 << 10;  // or in the second, where one group fills the first
constexpr int64_t kMostRows = 384;        // rows that share one pass over the codes

bool all_finite(const float* x, int64_t dim) {
    for (int64_t d = 0; d < dim; ++d) {
        if (!std::isfinite(x[d])) return false;
    }
    return true;
}

float round_up(double x) {
    const float y = static_cast<float>(x);
    return y < x ? std::nextafterf(y, FLT_MAX) : y;
}

// The codebook as the screen wants it: finite codes only, centred, scaled to a largest norm near 1.
class Codebook {
  public:
    Codebook(const float* codes, int64_t k, int64_t dim, int group_size, int threads)
        : codes_(codes),
          k_(k),
          dim_(dim),
          group_size_(group_size),
          groups_((k + group_size - 1) / group_size),
          kappa_((dim + 8) * 1.01 * kUnit),
          finite_(k),
          centre_(dim, 0.0f),
          values_(groups_ * dim * group_size),
          half_norms_(groups_ * group_size),
          norms_(groups_),
          largest_(groups_) {
        find_centre();
        find_scale(threads);
        pack(threads);
    }

    PackedCodes packed() const {
        return {values_.data, half_norms_.data, norms_.data, largest_.data, dim_};
    }
    int64_t groups() const { return groups_; }
    double kappa() const { return kappa_; }
    bool usable(int64_t code) const { return finite_[code]; }
    int64_t size() const { return k_; }

    // Channel d of z or of a code in the screen's coordinates; exact up to 2^-52 relative.
    double centred(float x, int64_t d) const {
        return (static_cast<double>(x) - static_cast<double>(centre_[d])) * scale_;
    }

  private:
    void find_centre() {
        std::vector<double> sum(dim_, 0.0);
        int64_t count = 0;
        for (int64_t j = 0; j < k_; ++j) {
            const float* code = codes_ + j * dim_;
            finite_[j] = all_finite(code, dim_);
            if (!finite_[j]) continue;
            ++count;
            for (int64_t d = 0; d < dim_; ++d) sum[d] += code[d];
        }
        // Any centre is right; a mean beyond float32 cannot occur for finite float32 codes.
        for (int64_t d = 0; d < dim_ && count > 0; ++d) {
            centre_[d] = static_cast<float>(sum[d] / static_cast<double>(count));
        }
    }

    void find_scale(int threads) {
        double longest = 0.0;
#pragma omp parallel for num_threads(threads) reduction(max : longest)
        for (int64_t j = 0; j < k_; ++j) {
            if (!finite_[j]) continue;
            longest = std::max(longest, squared_distance(codes_ + j * dim_, centre_.data(), dim_));
        }
        int exponent = 0;
        if (longest > 0.0) std::frexp(std::sqrt(longest), &exponent);
        scale_ = std::ldexp(1.0, -exponent);
    }

    void pack(int threads) {
#pragma omp parallel for num_threads(threads)
        for (int64_t group = 0; group < groups_; ++group) {
            float* values = values_.data + group * dim_ * group_size_;
            float* half_norms = half_norms_.data + group * group_size_;
            double longest = 0.0;
            for (int j = 0; j < group_size_; ++j) {
                const int64_t code = group * group_size_ + j;
                const bool usable = code < k_ && finite_[code];
                double squared = 0.0;
                for (int64_t d = 0; d < dim_; ++d) {
                    const double value = usable ? centred(codes_[code * dim_ + d], d) : 0.0;
                    values[d * group_size_ + j] = static_cast<float>(value);
                    squared += value * value;
                }
                half_norms[j] = usable ? static_cast<float>(squared / 2)
                                       : std::numeric_limits<float>::infinity();
                longest = std::max(longest, squared);
            }
            norms_.data[group] = round_up(std::sqrt(longest) * (1 + 4 * kUnit));
            largest_.data[group] = round_up(kappa_ * longest / 2 * (1 + 4 * kUnit) + kUnderflow);
        }
    }

    const float* codes_;
    int64_t k_, dim_;
    int group_size_;
    int64_t groups_;
    double kappa_;
    double scale_ = 1.0;
    std::vector<uint8_t> finite_;
    std::vector<float> centre_;
    Buffer values_, half_norms_, norms_, largest_;
};

// Rows [begin, end) of one search, packed in panels and screened together.
class RowChunk {
  public:
    RowChunk(const float* z, const float* codes, const Codebook& codebook,
             const ScreenKernels& kernels, int64_t dim, int64_t capacity)
        : z_(z),
          codes_(codes),
          codebook_(codebook),
          kernels_(kernels),
          dim_(dim),
          panels_(capacity * dim),
          rows_(new Row[capacity]) {}

    void search(int64_t begin, int64_t end, int64_t* index, float* distance,
                SearchCounts& counts) {
        const int64_t panels = (end - begin + kernels_.rows - 1) / kernels_.rows;
        for (int64_t p = 0; p < panels; ++p) pack_panel(p, begin + p * kernels_.rows, end);

        const int64_t group_bytes = dim_ * kernels_.group_size * sizeof(float);
        const int64_t budget = 2 * group_bytes <= kNearBytes ? kNearBytes : kFarBytes;
        const int64_t block = std::max<int64_t>(1, budget / group_bytes);
        const PackedCodes packed = codebook_.packed();
        for (int64_t group = 0; group < codebook_.groups(); group += block) {
            const int64_t stop = std::min(codebook_.groups(), group + block);
            for (int64_t p = 0; p < panels; ++p) {
                kernels_.screen(panel(p), packed, group, stop, &rows_[p * kernels_.rows]);
            }
        }
        for (int64_t i = begin; i < end; ++i) decide(i, i - begin, index, distance, counts);
    }

  private:
    float* panel(int64_t p) { return panels_.data + p * kernels_.rows * dim_; }

    void pack_panel(int64_t p, int64_t first, int64_t end) {
        float* values = panel(p);
        for (int r = 0; r < kernels_.rows; ++r) {
            Row& row = rows_[p * kernels_.rows + r];
            row.count = 0;
            row.overflow = false;
            row.upper = -FLT_MAX;  // closed, until found fit to be screened
            row.slope = 0.0f;
            const int64_t i = first + r;
            const float* z = z_ + i * dim_;
            bool open = i < end && all_finite(z, dim_);
            double squared = 0.0;
            for (int64_t d = 0; d < dim_ && open; ++d) {
                const double value = codebook_.centred(z[d], d);
                squared += value * value;
            }
            const double norm = std::sqrt(squared);
            if (open && !(norm <= kLongest)) {
                row.overflow = true;
                open = false;
            }
            for (int64_t d = 0; d < dim_; ++d) {
                values[d * kernels_.rows + r] =
                    open ? -static_cast<float>(codebook_.centred(z[d], d)) : 0.0f;
            }
            if (open) {
                row.upper = FLT_MAX;
                row.slope = round_up(codebook_.kappa() * norm * (1 + 4 * kUnit));
            }
        }
    }

    void decide(int64_t i, int64_t local, int64_t* index, float* distance, SearchCounts& counts) {
        const float* z = z_ + i * dim_;
        const Row& row = rows_[local];
        Nearest nearest(z, codes_, dim_);
        if (!all_finite(z, dim_)) {
            counts.invalid += 1;
        } else if (row.overflow) {
            counts.scanned += 1;
            for (int64_t k = 0; k < codebook_.size(); ++k) {
                if (codebook_.usable(k)) nearest.offer(k);
            }
        } else {
            counts.certified += 1;
            for (int c = 0; c < row.count; ++c) {
                if (row.candidates[c].lower > row.upper) continue;
                counts.candidates += offer_group(local, row, row.candidates[c].group, nearest);
            }
        }
        index[i] = nearest.index();
        distance[i] = nearest.index() < 0 ? std::numeric_limits<float>::infinity()
                                          : static_cast<float>(nearest.distance());
    }

    int64_t offer_group(int64_t local, const Row& row, int64_t group, Nearest& nearest) {
        const PackedCodes packed = codebook_.packed();
        float scores[64];
        kernels_.score_group(panel(local / kernels_.rows), static_cast<int>(local % kernels_.rows),
                             packed, group, scores);
        const float delta = row.slope * packed.norms[group] + packed.largest[group];
        int64_t offered = 0;
        for (int j = 0; j < kernels_.group_size; ++j) {
            // Pads and codes that are not finite score +inf.
            if (!(scores[j] - (delta + std::fabs(scores[j]) * 0x1p-22f) <= row.upper)) continue;
            nearest.offer(group * kernels_.group_size + j);
            offered += 1;
        }
        return offered;
    }

    const float* z_;
    const float* codes_;
    const Codebook& codebook_;
    const ScreenKernels& kernels_;
    int64_t dim_;
    Buffer panels_;
    std::unique_ptr<Row[]> rows_;
};

}  // namespace

SearchCounts nearest_code(const float* z, const float* codes, int64_t n, int64_t k, int64_t dim,
                          int64_t* index, float* distance, int threads,
                          const ScreenKernels& kernels) {
    SearchCounts total = {0, 0, 0, 0};
    if (n == 0) return total;
    threads = std::max(1, threads);
    const Codebook codebook(codes, k, dim, kernels.group_size, threads);

    // Enough chunks to balance the threads, large enough to share each pass over the codes.
    const int64_t fair = (n + 4 * threads - 1) / (4 * threads);
    const int64_t wanted = std::min<int64_t>(std::max<int64_t>(fair, 1), kMostRows);
    const int64_t rows = (wanted + kernels.rows - 1) / kernels.rows * kernels.rows;
    const int64_t chunks = (n + rows - 1) / rows;

    int64_t certified = 0, candidates = 0, scanned = 0, invalid = 0;
#pragma omp parallel num_threads(threads) reduction(+ : certified, candidates, scanned, invalid)
    {
        RowChunk chunk(z, codes, codebook, kernels, dim, rows);
        SearchCounts counts = {0, 0, 0, 0};
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < chunks; ++c) {
            chunk.search(c * rows, std::min(n, (c + 1) * rows), index, distance, counts);
        }
        certified += counts.certified;
        candidates += counts.candidates;
        scanned += counts.scanned;
        invalid += counts.invalid;
    }
    return {certified, candidates, scanned, invalid};
}

}  // namespace vqkern
