#include "nearest_code.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "buffer.h"
#include "codebook.h"
#include "exact.h"

namespace vqkern {
namespace {

// Rows longer than this are not screened: their scores could leave the float32 range.
constexpr double kLongest = 0x1p90;

constexpr int64_t kNearBytes = 24 << 10;  // codes that stay in the first-level cache
constexpr int64_t kFarBytes = 256 << 10;  // or in the second, where one group fills the first
constexpr int64_t kMostRows = 768;        // rows that share one pass over the codes

// Some rows of a search, packed in panels and screened together.
class RowChunk {
  public:
    RowChunk(const float* z, const Packed& packed, int64_t capacity)
        : z_(z),
          packed_(packed),
          codebook_(packed.codebook()),
          kernels_(packed.kernels()),
          panel_bytes_(kernels_.rows * packed.dim() * bytes_of(kernels_.format)),
          rows_(capacity / kernels_.rows * panel_bytes_ / sizeof(float)),
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
    char* panel_rows(int64_t p) {
        return reinterpret_cast<char*>(rows_.data) + p * panel_bytes_;
    }

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
        panel.scale = kernels_.format == Format::kInt16
                          ? static_cast<float>(kInt16Norm / std::max(longest, kShortest))
                          : 1.0f;
        for (int r = 0; r < kernels_.rows; ++r) {
            const Rounded rounded = round_row(panel_rows(p), r, panel.scale);
            if (open[r]) set_slopes(panel, r, rounded, norms[r]);
        }
    }

    // Writes the negated centred row r of a panel in the screen's format.
    Rounded round_row(char* panel, int r, double scale) const {
        const int64_t dim = packed_.dim();
        const double* from = &centred_[r * dim];
        const int rows = kernels_.rows;
        switch (kernels_.format) {
            case Format::kFloat32: {
                float* to = reinterpret_cast<float*>(panel) + r;
                for (int64_t d = 0; d < dim; ++d) to[d * rows] = -static_cast<float>(from[d]);
                break;
            }
            case Format::kInt16: {
                int16_t* to = reinterpret_cast<int16_t*>(panel) + 2 * r;
                return round_int16(from, dim, scale, -1.0,
                                   [=](int64_t d) { return to + d / 2 * rows * 2 + d % 2; });
            }
            case Format::kBf16: {
                uint16_t* to = reinterpret_cast<uint16_t*>(panel);
                return round_bf16(from, dim, -1.0,
                                  [=](int64_t d) { return to + bf16_row_place(r, d); });
            }
        }
        return {0.0, 0.0};
    }

    void set_slopes(Panel& panel, int r, const Rounded& rounded, double norm) const {
        double slope = rounded.residual;
        switch (kernels_.format) {
            case Format::kFloat32:  // the residuals are part of kappa
                slope = packed_.kappa() * norm;
                break;
            case Format::kInt16:
                // Two units: half for the rounded half norm, one for the bound, and some to spare.
                slope += 2.0 / (panel.scale * kInt16Norm);
                break;
            case Format::kBf16:  // |eq| is at most |e| + residual, and twice the former at most
                slope += 2.0 * packed_.kappa() * rounded.norm;
                break;
        }
        panel.slope[r] = round_up(slope * kInflate);
        panel.spread[r] = round_up(rounded.norm * kInflate);
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
    int64_t panel_bytes_;
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
    for (const ScreenKernels* screen : screens) {
        if (dim >= screen->least_dim) rows = search.screen(rows, *screen, counts);
    }
    search.scan(rows, counts);
    return counts;
}

}  // namespace vqkern
