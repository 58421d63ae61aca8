// Rows through the screens, and their candidates through the measure; see screen.h and measures.h.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <vector>

#include "buffer.h"
#include "codebook.h"
#include "measures.h"
#include "nearest_code.h"
#include "packing.h"

namespace vqkern {

// Rows longer than this are not screened: their scores could leave the float32 range.
constexpr double kLongest = 0x1p90;

constexpr int64_t kBlockBytes = 256 << 10;  // codes that stay in the second-level cache
constexpr int64_t kMostRows = 768;        // rows that share one pass over the codes

constexpr int kHeld = 16;             // candidates a row holds before they are measured
// A row that needs more codes measured goes to a more precise screen.
constexpr int64_t most_measured(int64_t k) { return 1024 + k / 16; }

constexpr int64_t kProbedRows = 192;
constexpr int64_t kScanBlock = 64;  // codes measured for one row after the other
// So few rows are measured against all codes in less time than it takes to pack those.
constexpr int64_t kFewRows = 2;

// A panel of rows and their answers so far.
template <typename Measure>
class RowPanel final : public Hits {
  public:
    void open(const Measure& measure, int64_t id, double squared, int r, const Codebook& codebook) {
        codebook_ = &codebook;
        measure_ = &measure;
        rows_[r] = Row();
        rows_[r].nearest = Nearest<Measure>(measure, id);
        rows_[r].squared = squared;
        panel.upper[r] = FLT_MAX;
    }

    void overflow(int r) {
        rows_[r].overflowed = true;
        panel.upper[r] = -FLT_MAX;
    }

    void expect(int64_t code) override {
        if (code < codebook_->k) measure_->prefetch(code);
    }

    void measure(int r, int64_t code) override {
        if (code >= codebook_->k) return;
        Row& row = rows_[r];
        row.measured += 1;
        if (!row.nearest.offer(code)) return;
        const double unit = codebook_->scale * codebook_->scale;
        const double squared = row.nearest.squared() * unit;
        const double rounding =
            ((codebook_->dim + 8) * 0x1p-52 + 4 * codebook_->relative) * (squared + row.squared) +
            codebook_->absolute * unit;
        const double score = (squared - row.squared) / 2 + rounding;
        // Four units in the last place keep later float32 sums with this bound on the safe side.
        const float upper = round_up(score + std::fabs(score) * 0x1p-22);
        panel.upper[r] = std::min(panel.upper[r], upper);
    }

    void keep(int r, int64_t code, float lower) override {
        Row& row = rows_[r];
        if (row.overflowed) return;
        if (row.held == kHeld) {
            int kept = 0;
            for (int i = 0; i < kHeld; ++i) {
                if (row.held_codes[i].lower <= panel.upper[r]) {
                    row.held_codes[kept++] = row.held_codes[i];
                }
            }
            row.held = kept;
            if (kept == kHeld) measure_held(r);
            if (row.measured > most_measured(codebook_->k)) return overflow(r);
        }
        row.held_codes[row.held++] = {code, lower};
        expect(code);
    }

    bool overflowed(int r) const { return rows_[r].overflowed; }

    // The nearest code of a row that did not overflow, and how many codes were measured for it.
    const Nearest<Measure>& finish(int r, int64_t& measured) {
        measure_held(r);
        measured += rows_[r].measured;
        return rows_[r].nearest;
    }

    Panel panel;

  private:
    struct Candidate {
        int64_t code;
        float lower;  // it scores no less
    };
    struct Row {
        Nearest<Measure> nearest;
        double squared = 0.0;  // |z - c|^2
        int64_t measured = 0;
        int held = 0;
        bool overflowed = false;
        Candidate held_codes[kHeld];
    };

    void measure_held(int r) {
        Row& row = rows_[r];
        for (int i = 0; i < row.held; ++i) {
            if (row.held_codes[i].lower <= panel.upper[r]) measure(r, row.held_codes[i].code);
        }
        row.held = 0;
    }

    const Codebook* codebook_ = nullptr;
    const Measure* measure_ = nullptr;
    Row rows_[kPanelRows];
};

// Some rows of a search, packed in panels and screened together.
template <typename Measure>
class RowChunk {
  public:
    RowChunk(const float* z, const Measure& measure, const Packed& packed, int64_t capacity)
        : z_(z),
          measure_(measure),
          packed_(packed),
          kernels_(packed.kernels()),
          panel_bytes_(kernels_.rows * packed.dim() * bytes_of(kernels_.format)),
          rows_(capacity / kernels_.rows * panel_bytes_ / sizeof(float)),
          packer_(packed.codebook(), kernels_, true, kernels_.rows),
          panels_(new RowPanel<Measure>[capacity / kernels_.rows]) {}

    // Screens the finite rows `ids`; then each has overflowed, or can be finished.
    void screen(const int64_t* ids, int64_t count) {
        const int64_t panels = (count + kernels_.rows - 1) / kernels_.rows;
        const PackedCodes codes = packed_.codes();
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t first = p * kernels_.rows;
            pack_panel(p, ids + first, std::min<int64_t>(kernels_.rows, count - first));
        }
        const int64_t fits = kBlockBytes / (packed_.tile_bytes() * codes.group_tiles);
        const int64_t block = std::min<int64_t>(kMostGroups, std::max<int64_t>(1, fits));
        for (int64_t group = 0; group < packed_.groups(); group += block) {
            const int64_t stop = std::min(packed_.groups(), group + block);
            for (int64_t p = 0; p < panels; ++p) {
                kernels_.screen(panel_rows(p), codes, group, stop, panels_[p].panel);
            }
        }
    }

    bool overflowed(int64_t local) const {
        return panels_[local / kernels_.rows].overflowed(static_cast<int>(local % kernels_.rows));
    }

    const Nearest<Measure>& finish(int64_t local, int64_t& measured) {
        return panels_[local / kernels_.rows].finish(static_cast<int>(local % kernels_.rows),
                                                     measured);
    }

  private:
    char* panel_rows(int64_t p) {
        return reinterpret_cast<char*>(rows_.data) + p * panel_bytes_;
    }

    void pack_panel(int64_t p, const int64_t* ids, int64_t count) {
        const Codebook& codebook = packed_.codebook();
        RowPanel<Measure>& rows = panels_[p];
        Panel& panel = rows.panel;
        panel.hits = &rows;
        for (int r = 0; r < kPanelRows; ++r) {
            panel.upper[r] = -FLT_MAX;  // closed
            panel.slope[r] = panel.spread[r] = 0.0f;
            panel.shift[r] = 0;
        }
        const float* vectors[kPanelRows];
        for (int64_t r = 0; r < count; ++r) vectors[r] = z_ + ids[r] * codebook.dim;
        packer_.centre(vectors, count);
        double longest = 0.0, widest = 0.0;
        bool all_short = true;
        for (int r = 0; r < count; ++r) {
            rows.open(measure_, ids[r], packer_.squared(r), r, codebook);
            if (!(std::sqrt(packer_.squared(r)) <= kLongest)) {
                rows.overflow(r);
                vectors[r] = nullptr;
                all_short = false;
                continue;
            }
            longest = std::max(longest, std::sqrt(packer_.squared(r)));
            widest = std::max(widest, packer_.widest(r));
        }
        if (!all_short) packer_.centre(vectors, count);
        panel.scale = packed_.row_scale(longest, widest);
        packer_.place(0, count, panel.scale, panel_rows(p));
        for (int r = 0; r < count; ++r) {
            panel.shift[r] = 128 * packer_.sum(r);
            if (!rows.overflowed(r)) set_slopes(panel, r);
        }
    }

    void set_slopes(Panel& panel, int r) const {
        const double norm = std::sqrt(packer_.squared(r));
        const double rounded = norm + packer_.residual(r);  // at least |zq|
        double slope = packer_.residual(r);
        switch (kernels_.format) {
            case Format::kFloat32:  // the residuals are part of kappa
                slope = packed_.kappa() * norm;
                break;
            case Format::kInt16:
                // Two units: half for the rounded half norm, one for the bound, and some to spare.
                slope += 2.0 / (panel.scale * kInt16Norm);
                break;
            case Format::kInt8:  // as many units; no code is wider than it is long
                slope += 2.0 / (panel.scale * kInt8Most);
                break;
        }
        slope += 2.02 * packed_.codebook().relative * norm;
        panel.slope[r] = round_up(slope * kInflate);
        panel.spread[r] = round_up(rounded * kInflate);
    }

    const float* z_;
    const Measure& measure_;
    const Packed& packed_;
    const ScreenKernels& kernels_;
    int64_t panel_bytes_;
    Buffer rows_;
    Packer packer_;
    std::unique_ptr<RowPanel<Measure>[]> panels_;
};

// One search: its inputs, and the answers as they are found.
template <typename T, typename Measure>
struct Search {
    const Measure& measure;
    const float* z;  // as the screens see them
    Codebook& codebook;
    int64_t* index;
    T* distance;
    int threads;

    void answer(int64_t i, const Nearest<Measure>& nearest) const {
        index[i] = nearest.code();
        distance[i] = static_cast<T>(nearest.distance());
    }

    // Screens rows `ids` and answers those that it decides; returns the others, in order. Where a few rows
    // show that measuring candidates takes longer than a more precise screen, the rest is left to it.
    std::vector<int64_t> screen(const std::vector<int64_t>& ids, const ScreenKernels& kernels,
                                bool last, SearchCounts& counts) const {
        const int64_t n = static_cast<int64_t>(ids.size());
        const Packed packed(codebook, kernels, threads);
        std::vector<int64_t> rest;
        int64_t begin = 0;
        if (!last && n >= 32 * kProbedRows) {
            const int64_t before = counts.candidates;
            screen_part(packed, ids.data(), kProbedRows, rest, counts);
            const double measured = static_cast<double>(counts.candidates - before) / kProbedRows;
            begin = kProbedRows;
            if (measured * (64 + codebook.dim) > codebook.k * codebook.dim / 64.0) {
                rest.insert(rest.end(), ids.begin() + begin, ids.end());
                return rest;
            }
        }
        screen_part(packed, &ids[begin], n - begin, rest, counts);
        return rest;
    }

    void screen_part(const Packed& packed, const int64_t* ids, int64_t n,
                     std::vector<int64_t>& rest, SearchCounts& counts) const {
        // Enough chunks to balance the threads, large enough to share each pass over the codes.
        const int64_t panel = packed.kernels().rows;
        const int64_t fair = (n + 2 * threads - 1) / (2 * threads);
        const int64_t wanted = std::min(std::max<int64_t>(fair, 1), kMostRows);
        const int64_t rows = (wanted + panel - 1) / panel * panel;
        const int64_t chunks = (n + rows - 1) / rows;
        std::vector<uint8_t> undecided(n, 0);
        int64_t certified = 0, candidates = 0;
#pragma omp parallel num_threads(threads) reduction(+ : certified, candidates)
        {
            RowChunk<Measure> chunk(z, measure, packed, rows);
#pragma omp for schedule(dynamic)
            for (int64_t c = 0; c < chunks; ++c) {
                const int64_t begin = c * rows, count = std::min(rows, n - begin);
                chunk.screen(ids + begin, count);
                for (int64_t local = 0; local < count; ++local) {
                    if (chunk.overflowed(local)) {
                        undecided[begin + local] = 1;
                        continue;
                    }
                    answer(ids[begin + local], chunk.finish(local, candidates));
                    certified += 1;
                }
            }
        }
        counts.certified += certified;
        counts.candidates += candidates;
        for (int64_t j = 0; j < n; ++j) {
            if (undecided[j]) rest.push_back(ids[j]);
        }
    }

    // Measures every code for rows `ids`, the codes shared out among the threads.
    void scan(const std::vector<int64_t>& ids, SearchCounts& counts) const {
        const int64_t n = static_cast<int64_t>(ids.size());
        std::vector<Nearest<Measure>> found(n * threads);
#pragma omp parallel for num_threads(threads)
        for (int t = 0; t < threads; ++t) {
            const int64_t begin = codebook.k * t / threads, end = codebook.k * (t + 1) / threads;
            for (int64_t block = begin; block < end; block += kScanBlock) {
                const int64_t stop = std::min(end, block + kScanBlock);
                for (int64_t j = 0; j < n; ++j) {
                    Nearest<Measure>& nearest = found[j * threads + t];
                    if (block == begin) nearest = Nearest<Measure>(measure, ids[j]);
                    for (int64_t k = block; k < stop; ++k) nearest.offer(k);
                }
            }
        }
        for (int64_t j = 0; j < n; ++j) {
            Nearest<Measure> nearest(measure, ids[j]);
            for (int t = 0; t < threads; ++t) {
                const int64_t code = found[j * threads + t].code();
                if (code >= 0) nearest.offer(code);
            }
            answer(ids[j], nearest);
        }
        counts.scanned += n;
    }
};


// Rows that one screen cannot decide go to the next, and after the last one to a scan of all codes.
template <typename T, typename Measure>
void search_rows(std::vector<int64_t> rows, const Measure& measure, const Screened& screened,
                 const std::vector<const ScreenKernels*>& screens, int64_t* index, T* distance,
                 int threads, SearchCounts& counts) {
    if (rows.empty()) return;
    Codebook codebook(screened);
    const Search<T, Measure> search = {measure, screened.z, codebook, index, distance, threads};
    const int64_t dim = screened.dim;
    std::vector<const ScreenKernels*> fitting;
    for (const ScreenKernels* screen : screens) {
        const bool fits = dim >= screen->least_dim && dim <= most_channels(screen->format);
        // A second screen in the same format would decide no more.
        const bool again = !fitting.empty() && fitting.back()->format == screen->format;
        if (fits && !again) fitting.push_back(screen);
    }
    for (const ScreenKernels* screen : fitting) {
        if (static_cast<int64_t>(rows.size()) <= kFewRows) break;
        rows = search.screen(rows, *screen, screen == fitting.back(), counts);
    }
    search.scan(rows, counts);
}

}  // namespace vqkern
