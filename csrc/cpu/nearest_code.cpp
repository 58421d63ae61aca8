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
// What subnormal products and a flush-to-zero mode may lose, for codes scaled to norms below 1.
constexpr double kUnderflow = 0x1p-110;
// Rows longer than this are not screened: their scores could leave the float32 range.
constexpr double kLongest = 0x1p90;
// The largest norm of an int16 vector in its own units: a product of two stays below 2^30.
constexpr double kInt16Norm = 32700.0;
// Bounds are added and scaled in float32; this much more keeps them on the safe side.
constexpr double kInflate = 1.0 + 0x1p-16;

constexpr int64_t kSlice = 4096;          // codes summed together, on any number of threads
constexpr int64_t kNearBytes = 24 << 10;  // codes that stay in the first-level cache
constexpr int64_t kFarBytes = 256 << 10;  // or in the second, where one group fills the first
constexpr int64_t kMostRows = 768;        // rows that share one pass over the codes

bool all_finite(const float* x, int64_t dim) {
    // x - x is 0 for finite x and NaN for the rest; no branch keeps the loop a vector loop.
    float sum = 0.0f;
    for (int64_t d = 0; d < dim; ++d) sum += x[d] - x[d];
    return sum == 0.0f;
}

float round_up(double x) {
    const float y = static_cast<float>(x);
    return y < x ? std::nextafterf(y, FLT_MAX) : y;
}

// The nearest whole number, for |x| < 2^51; nearbyint would be a library call on plain x86-64.
double round_whole(double x) {
    constexpr double kBig = 0x1.8p52;
    return (x + kBig) - kBig;
}

// The codes as they came, and the centre and scale that all screens share.
struct Codebook {
    Codebook(const float* codes, int64_t k, int64_t dim, int threads)
        : codes(codes), k(k), dim(dim), finite(k), centre(dim, 0.0f) {
        const int64_t slices = (k + kSlice - 1) / kSlice;
        std::vector<double> sums(slices * dim, 0.0);
        std::vector<float> least(slices * dim, FLT_MAX), largest(slices * dim, -FLT_MAX);
        std::vector<int64_t> counts(slices, 0);
#pragma omp parallel for num_threads(threads)
        for (int64_t s = 0; s < slices; ++s) {
            double* sum = &sums[s * dim];
            float *low = &least[s * dim], *high = &largest[s * dim];
            for (int64_t j = s * kSlice; j < std::min(k, (s + 1) * kSlice); ++j) {
                const float* code = codes + j * dim;
                finite[j] = all_finite(code, dim);
                if (!finite[j]) continue;
                counts[s] += 1;
                for (int64_t d = 0; d < dim; ++d) {
                    sum[d] += code[d];
                    low[d] = code[d] < low[d] ? code[d] : low[d];
                    high[d] = code[d] > high[d] ? code[d] : high[d];
                }
            }
        }
        int64_t count = 0;
        for (int64_t c : counts) count += c;
        if (count == 0) return;
        // Any centre is right; the mean makes the bounds tight.
        double longest = 0.0;
        for (int64_t d = 0; d < dim; ++d) {
            double sum = 0.0;
            float low = FLT_MAX, high = -FLT_MAX;
            for (int64_t s = 0; s < slices; ++s) {
                sum += sums[s * dim + d];
                low = std::min(low, least[s * dim + d]);
                high = std::max(high, largest[s * dim + d]);
            }
            centre[d] = static_cast<float>(sum / static_cast<double>(count));
            const double reach = std::max(static_cast<double>(high) - centre[d],
                                          static_cast<double>(centre[d]) - low);
            longest += reach * reach;
        }
        int exponent = 0;
        if (longest > 0.0) std::frexp(std::sqrt(longest), &exponent);
        scale = std::ldexp(1.0, -exponent);
    }

    // Channel d of a row or a code in the screens' coordinates; exact up to 2^-52 relative.
    double centred(float x, int64_t d) const {
        return (static_cast<double>(x) - static_cast<double>(centre[d])) * scale;
    }

    const float* codes;
    int64_t k, dim;
    std::vector<uint8_t> finite;
    std::vector<float> centre;
    double scale = 1.0;
};

// A codebook packed for one kind of screen.
class Packed {
  public:
    Packed(const Codebook& codebook, const ScreenKernels& kernels, int threads)
        : codebook_(codebook),
          kernels_(kernels),
          dim_(is_int16() ? (codebook.dim + 1) / 2 * 2 : codebook.dim),
          count_((codebook.k + kernels.group_size - 1) / kernels.group_size),
          kappa_((codebook.dim + 8) * 1.01 * kUnit),
          values_(count_ * kernels.group_size * dim_ / (is_int16() ? 2 : 1)),
          half_norms_(count_ * kernels.group_size),
          groups_(count_) {
#pragma omp parallel num_threads(threads)
        {
            std::vector<double> values(dim_ * kernels.group_size, 0.0);
#pragma omp for
            for (int64_t g = 0; g < count_; ++g) pack_group(g, values.data());
        }
        std::vector<float> norms(count_);
        for (int64_t g = 0; g < count_; ++g) norms[g] = groups_[g].norm;
        std::nth_element(norms.begin(), norms.begin() + count_ / 2, norms.end());
        typical_norm_ = norms[count_ / 2];
    }

    PackedCodes codes() const { return {values_.data, half_norms_.data, groups_.data(), dim_}; }
    bool is_int16() const { return kernels_.format == Format::kInt16; }
    const Codebook& codebook() const { return codebook_; }
    const ScreenKernels& kernels() const { return kernels_; }
    int64_t dim() const { return dim_; }
    int64_t groups() const { return count_; }
    int64_t group_bytes() const { return dim_ * kernels_.group_size * (is_int16() ? 2 : 4); }
    double kappa() const { return kappa_; }
    double typical_norm() const { return typical_norm_; }

  private:
    // `values` holds the group in float64, [group_size][dim].
    void pack_group(int64_t g, double* values) {
        const int size = kernels_.group_size;
        float* half_norms = half_norms_.data + g * size;
        double longest = 0.0;
        for (int j = 0; j < size; ++j) {
            const int64_t code = g * size + j;
            double* out = values + j * dim_;
            if (code >= codebook_.k || !codebook_.finite[code]) {
                std::fill(out, out + dim_, 0.0);
                half_norms[j] = std::numeric_limits<float>::infinity();
                continue;
            }
            const float* in = codebook_.codes + code * codebook_.dim;
            double squared = 0.0;
            for (int64_t d = 0; d < codebook_.dim; ++d) {
                out[d] = codebook_.centred(in[d], d);
                squared += out[d] * out[d];
            }
            half_norms[j] = static_cast<float>(squared / 2);
            longest = std::max(longest, squared);
        }
        Group& group = groups_[g];
        group.half_norm = round_up(longest / 2 * kInflate);
        if (is_int16()) {
            pack_int16(g, values, std::max(std::sqrt(longest), 0x1p-40));
            group.largest = round_up(0x1p-22 * longest / 2 * kInflate);
        } else {
            float* out = values_.data + g * dim_ * size;
            for (int64_t d = 0; d < dim_; ++d) {
                for (int j = 0; j < size; ++j) {
                    out[d * size + j] = static_cast<float>(values[j * dim_ + d]);
                }
            }
            group.norm = round_up(std::sqrt(longest) * kInflate);
            group.residual = 0.0f;
            group.scale = 1.0f;
            group.largest = round_up(kappa_ * longest / 2 * kInflate + kUnderflow);
        }
    }

    void pack_int16(int64_t g, const double* values, double norm) {
        const int size = kernels_.group_size;
        int16_t* out = reinterpret_cast<int16_t*>(values_.data) + g * dim_ * size;
        Group& group = groups_[g];
        group.scale = static_cast<float>(kInt16Norm / norm);
        const double scale = group.scale, unit = 1.0 / scale;
        double worst = 0.0;
        for (int j = 0; j < size; ++j) {
            double residual = 0.0;
            for (int64_t d = 0; d < dim_; d += 2) {
                const double a = values[j * dim_ + d], b = values[j * dim_ + d + 1];
                const double a_whole = round_whole(a * scale), b_whole = round_whole(b * scale);
                out[d * size + 2 * j] = static_cast<int16_t>(static_cast<int32_t>(a_whole));
                out[d * size + 2 * j + 1] = static_cast<int16_t>(static_cast<int32_t>(b_whole));
                const double a_rest = a - a_whole * unit, b_rest = b - b_whole * unit;
                residual += a_rest * a_rest + b_rest * b_rest;
            }
            worst = std::max(worst, residual);
        }
        group.norm = round_up(norm * kInflate);
        group.residual = round_up(std::sqrt(worst) * kInflate);
    }

    const Codebook& codebook_;
    const ScreenKernels& kernels_;
    int64_t dim_, count_;
    double kappa_;
    double typical_norm_ = 0.0;
    Buffer values_, half_norms_;
    std::vector<Group> groups_;
};

// Some rows of a search, packed in panels and screened together.
class RowChunk {
  public:
    RowChunk(const float* z, const Packed& packed, int64_t capacity)
        : z_(z),
          packed_(packed),
          codebook_(packed.codebook()),
          kernels_(packed.kernels()),
          panel_floats_(kernels_.rows * packed.dim() / (packed.is_int16() ? 2 : 1)),
          rows_(capacity / kernels_.rows * panel_floats_),
          panels_(new Panel[capacity / kernels_.rows]),
          centred_(kernels_.rows * packed.dim()) {}

    // Screens the finite rows `ids`; then each has overflowed, or its candidates can be offered.
    void screen(const int64_t* ids, int64_t count) {
        const int64_t panels = (count + kernels_.rows - 1) / kernels_.rows;
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t first = p * kernels_.rows;
            pack_panel(p, ids + first, std::min<int64_t>(kernels_.rows, count - first));
        }
        const int64_t bytes = packed_.group_bytes();
        const int64_t budget = 2 * bytes <= kNearBytes ? kNearBytes : kFarBytes;
        const int64_t block = std::max<int64_t>(1, budget / bytes);
        const PackedCodes codes = packed_.codes();
        for (int64_t group = 0; group < packed_.groups(); group += block) {
            const int64_t stop = std::min(packed_.groups(), group + block);
            for (int64_t p = 0; p < panels; ++p) {
                kernels_.screen(panel_rows(p), codes, group, stop, panels_[p]);
            }
        }
    }

    bool overflowed(int64_t local) const {
        return panels_[local / kernels_.rows].overflow[local % kernels_.rows];
    }

    // Offers every code that may be the nearest of the row; returns how many those were.
    int64_t offer_candidates(int64_t local, Nearest& nearest) {
        const int r = static_cast<int>(local % kernels_.rows);
        const Panel& panel = panels_[local / kernels_.rows];
        int64_t offered = 0;
        for (int c = 0; c < panel.count[r]; ++c) {
            if (panel.candidates[r][c].lower > panel.upper[r]) continue;
            offered += offer_group(local, panel.candidates[r][c].group, nearest);
        }
        return offered;
    }

  private:
    float* panel_rows(int64_t p) { return rows_.data + p * panel_floats_; }

    void pack_panel(int64_t p, const int64_t* ids, int64_t count) {
        Panel& panel = panels_[p];
        const int64_t dim = packed_.dim();
        double longest = packed_.typical_norm();
        double norms[kPanelRows] = {};
        bool open[kPanelRows] = {};
        std::fill(centred_.begin(), centred_.end(), 0.0);
        for (int r = 0; r < kPanelRows; ++r) {
            panel.count[r] = 0;
            panel.overflow[r] = false;
            panel.slope[r] = panel.spread[r] = 0.0f;
            panel.upper[r] = -FLT_MAX;  // closed
            if (r >= count) continue;
            const float* z = z_ + ids[r] * codebook_.dim;
            double* out = &centred_[r * dim];
            double squared = 0.0;
            for (int64_t d = 0; d < codebook_.dim; ++d) {
                out[d] = codebook_.centred(z[d], d);
                squared += out[d] * out[d];
            }
            norms[r] = std::sqrt(squared);
            open[r] = norms[r] <= kLongest;
            if (open[r]) {
                panel.upper[r] = FLT_MAX;
                longest = std::max(longest, norms[r]);
            } else {
                panel.overflow[r] = true;
                std::fill(out, out + dim, 0.0);
            }
        }
        if (packed_.is_int16()) {
            pack_int16(p, open, longest);
            return;
        }
        panel.scale = 1.0f;
        float* values = panel_rows(p);
        for (int r = 0; r < kernels_.rows; ++r) {
            for (int64_t d = 0; d < dim; ++d) {
                values[d * kernels_.rows + r] = -static_cast<float>(centred_[r * dim + d]);
            }
            if (open[r]) panel.slope[r] = round_up(packed_.kappa() * norms[r] * kInflate);
        }
    }

    void pack_int16(int64_t p, const bool* open, double longest) {
        Panel& panel = panels_[p];
        const int64_t dim = packed_.dim();
        const int rows = kernels_.rows;
        panel.scale = static_cast<float>(kInt16Norm / std::max(longest, 0x1p-40));
        const double scale = panel.scale;
        int16_t* values = reinterpret_cast<int16_t*>(panel_rows(p));
        for (int r = 0; r < rows; ++r) {
            double residual = 0.0, squared = 0.0;
            for (int64_t d = 0; d < dim; ++d) {
                const double value = centred_[r * dim + d];
                const double whole = round_whole(value * scale);
                values[d / 2 * rows * 2 + r * 2 + d % 2] =
                    static_cast<int16_t>(-static_cast<int32_t>(whole));
                residual += (value - whole / scale) * (value - whole / scale);
                squared += whole * whole;
            }
            if (!open[r]) continue;
            // Two units: half for the rounded half norm, one for the bound, and some to spare.
            const double units = 2.0 / (scale * kInt16Norm);
            panel.slope[r] = round_up((std::sqrt(residual) + units) * kInflate);
            panel.spread[r] = round_up(std::sqrt(squared) / scale * kInflate);
        }
    }

    int64_t offer_group(int64_t local, int64_t g, Nearest& nearest) {
        const PackedCodes codes = packed_.codes();
        const int r = static_cast<int>(local % kernels_.rows);
        const int64_t p = local / kernels_.rows;
        const Panel& panel = panels_[p];
        const Group& group = codes.groups[g];
        float scores[64];
        kernels_.score_group(panel_rows(p), r, codes, g, panel, scores);
        const float delta =
            panel.slope[r] * group.norm + panel.spread[r] * group.residual + group.largest;
        int64_t offered = 0;
        for (int j = 0; j < kernels_.group_size; ++j) {
            const float slack = (delta + std::fabs(scores[j])) * 0x1p-22f + delta;
            if (!(scores[j] - slack <= panel.upper[r])) continue;
            const int64_t code = g * kernels_.group_size + j;
            if (code >= codebook_.k || !codebook_.finite[code]) continue;
            nearest.offer(code);
            offered += 1;
        }
        return offered;
    }

    const float* z_;
    const Packed& packed_;
    const Codebook& codebook_;
    const ScreenKernels& kernels_;
    int64_t panel_floats_;
    Buffer rows_;
    std::unique_ptr<Panel[]> panels_;
    std::vector<double> centred_;
};

// One search: its inputs, and the answers as they are found.
struct Search {
    const float* z;
    const Codebook& codebook;
    int64_t* index;
    float* distance;
    int threads;

    Nearest start(int64_t i) const {
        return Nearest(z + i * codebook.dim, codebook.codes, codebook.dim);
    }

    void answer(int64_t i, const Nearest& nearest) const {
        index[i] = nearest.index();
        distance[i] = nearest.index() < 0 ? std::numeric_limits<float>::infinity()
                                          : static_cast<float>(nearest.distance());
    }

    // Screens rows `ids` and answers those that it decides; returns the others, in order.
    std::vector<int64_t> screen(const std::vector<int64_t>& ids, const ScreenKernels& kernels,
                                SearchCounts& counts) const {
        if (ids.empty()) return {};
        const Packed packed(codebook, kernels, threads);
        // Enough chunks to balance the threads, large enough to share each pass over the codes.
        const int64_t n = static_cast<int64_t>(ids.size());
        const int64_t fair = (n + 2 * threads - 1) / (2 * threads);
        const int64_t wanted = std::min(std::max<int64_t>(fair, 1), kMostRows);
        const int64_t rows = (wanted + kernels.rows - 1) / kernels.rows * kernels.rows;
        const int64_t chunks = (n + rows - 1) / rows;
        std::vector<uint8_t> undecided(n, 0);
        int64_t certified = 0, candidates = 0;
#pragma omp parallel num_threads(threads) reduction(+ : certified, candidates)
        {
            RowChunk chunk(z, packed, rows);
#pragma omp for schedule(dynamic)
            for (int64_t c = 0; c < chunks; ++c) {
                const int64_t begin = c * rows, count = std::min(rows, n - begin);
                chunk.screen(&ids[begin], count);
                for (int64_t local = 0; local < count; ++local) {
                    if (chunk.overflowed(local)) {
                        undecided[begin + local] = 1;
                        continue;
                    }
                    Nearest nearest = start(ids[begin + local]);
                    candidates += chunk.offer_candidates(local, nearest);
                    answer(ids[begin + local], nearest);
                    certified += 1;
                }
            }
        }
        counts.certified += certified;
        counts.candidates += candidates;
        std::vector<int64_t> rest;
        for (int64_t j = 0; j < n; ++j) {
            if (undecided[j]) rest.push_back(ids[j]);
        }
        return rest;
    }

    void scan(const std::vector<int64_t>& ids, SearchCounts& counts) const {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t j = 0; j < static_cast<int64_t>(ids.size()); ++j) {
            Nearest nearest = start(ids[j]);
            for (int64_t k = 0; k < codebook.k; ++k) {
                if (codebook.finite[k]) nearest.offer(k);
            }
            answer(ids[j], nearest);
        }
        counts.scanned += static_cast<int64_t>(ids.size());
    }
};

}  // namespace

void append(Panel& panel, int row, int64_t group, float least, float delta, bool lowers) {
    Candidate* candidates = panel.candidates[row];
    if (panel.count[row] == kCapacity) {
        int kept = 0;
        for (int i = 0; i < kCapacity; ++i) {
            if (candidates[i].lower <= panel.upper[row]) candidates[kept++] = candidates[i];
        }
        panel.count[row] = kept;
        if (kept == kCapacity) {
            panel.overflow[row] = true;
            panel.upper[row] = -FLT_MAX;
            return;
        }
    }
    // Four units in the last place keep later float32 sums with these bounds on the safe side.
    const float slack = (std::fabs(least) + delta) * 0x1p-22f + delta;
    candidates[panel.count[row]++] = {static_cast<int32_t>(group), least - slack};
    if (lowers && least + slack < panel.upper[row]) panel.upper[row] = least + slack;
}

SearchCounts nearest_code(const float* z, const float* codes, int64_t n, int64_t k, int64_t dim,
                          int64_t* index, float* distance, int threads,
                          const std::vector<const ScreenKernels*>& screens) {
    SearchCounts counts = {0, 0, 0, 0};
    if (n == 0) return counts;
    threads = std::max(1, threads);
    const Codebook codebook(codes, k, dim, threads);
    const Search search = {z, codebook, index, distance, threads};

    std::vector<int64_t> rows;
    rows.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
        if (all_finite(z + i * dim, dim)) {
            rows.push_back(i);
        } else {
            search.answer(i, search.start(i));
            counts.invalid += 1;
        }
    }
    for (const ScreenKernels* screen : screens) rows = search.screen(rows, *screen, counts);
    search.scan(rows, counts);
    return counts;
}

}  // namespace vqkern
