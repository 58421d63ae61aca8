// Rows through the screens, and their candidates through the measure; see screen.h and measures.h.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "buffer.h"
#include "cells.h"
#include "codebook.h"
#include "measures.h"
#include "nearest_code.h"
#include "packing.h"
#include "row_panel.h"

namespace vqkern {

// Rows longer than this are not screened: their scores could leave the float32 range.
constexpr double kLongest = 0x1p90;

constexpr int64_t kBlockBytes = 256 << 10;  // codes that stay in the second-level cache
constexpr int64_t kMostRows = 768;         // rows that share one pass over the codes
constexpr int64_t kMostRowsInCells = 1536;  // rows that go through the cells together

constexpr int64_t kProbedRows = 192;
// Rows that reach more of the cells than this are screened against all codes at once.
constexpr double kMostMet = 0.17;
constexpr int64_t kScanBlock = 64;  // codes measured for one row after the other
// So few rows are measured against all codes in less time than it takes to pack those.
constexpr int64_t kFewRows = 2;

// Some rows of a search, packed in panels and screened together.
template <typename Measure>
class RowChunk {
  public:
    RowChunk(const Screened& screened, const Measure& measure, const Packed& packed, int64_t capacity)
        : screened_(screened),
          measure_(measure),
          packed_(packed),
          kernels_(packed.kernels()),
          panel_bytes_(kernels_.rows * packed.dim() * bytes_of(kernels_.format)),
          rows_(capacity / kernels_.rows * panel_bytes_ / sizeof(float)),
          packer_(packed.codebook(), kernels_, true, kernels_.rows),
          panels_(new RowPanel<Measure>[capacity / kernels_.rows]) {}

    // Screens the finite rows `ids`; then each has overflowed, or can be finished.
    void screen(const int64_t* ids, int64_t count) {
        const int64_t panels = pack(ids, count);
        const PackedCodes codes = packed_.codes();
        const int64_t fits = kBlockBytes / (packed_.tile_bytes() * codes.group_tiles);
        const int64_t block = std::min<int64_t>(kMostGroups, std::max<int64_t>(1, fits));
        for (int64_t group = 0; group < packed_.groups(); group += block) {
            const int64_t stop = std::min(packed_.groups(), group + block);
            for (int64_t p = 0; p < panels; ++p) {
                kernels_.screen(panel_rows(p), codes, group, stop, panels_[p].panel);
            }
        }
    }

    // As well, each row against the cells in its reach; `homes` are cells near the rows. Returns how many
    // cells the rows met.
    int64_t screen(const int64_t* ids, int64_t count, const Cells& cells, const int32_t* homes) {
        pack(ids, count);
        lists_.resize(cells.count());
        for (int64_t local = 0; local < count; ++local) list(homes[local], local);
        int64_t met = screen_lists();
        // Then those in the nearer half of each row's reach; few others are in reach after that.
        farther_.clear();
        for (int64_t local = 0; local < count; ++local) {
            if (overflowed(local)) continue;
            const float reach = panel_of(local).reach(lane_of(local)), near = reach / 4;
            cells.visit(screened_.z + ids[local] * screened_.dim, reach, [&](int32_t cell, float squared) {
                if (cell == homes[local]) return;
                if (squared <= near) {
                    list(cell, local);
                } else {
                    farther_.push_back({cell, static_cast<int32_t>(local), squared});
                }
            });
        }
        met += screen_lists();
        int32_t last = -1;
        float reach = 0.0f;
        for (const Farther& farther : farther_) {
            if (farther.local != last) reach = panel_of(farther.local).reach(lane_of(farther.local));
            last = farther.local;
            if (farther.squared <= reach) list(farther.cell, farther.local);
        }
        return met + screen_lists();
    }

    bool overflowed(int64_t local) const {
        return panels_[local / kernels_.rows].overflowed(static_cast<int>(local % kernels_.rows));
    }

    const Nearest<Measure>& finish(int64_t local, int64_t& measured) {
        return panels_[local / kernels_.rows].finish(static_cast<int>(local % kernels_.rows),
                                                     measured);
    }

  private:
    int64_t pack(const int64_t* ids, int64_t count) {
        const int64_t panels = (count + kernels_.rows - 1) / kernels_.rows;
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t first = p * kernels_.rows;
            pack_panel(p, ids + first, std::min<int64_t>(kernels_.rows, count - first));
        }
        return panels;
    }

    RowPanel<Measure>& panel_of(int64_t local) { return panels_[local / kernels_.rows]; }
    int lane_of(int64_t local) const { return static_cast<int>(local % kernels_.rows); }

    void list(int32_t cell, int64_t local) {
        if (lists_[cell].empty()) listed_.push_back(cell);
        lists_[cell].push_back(static_cast<int32_t>(local));
    }

    // Screens the listed rows, cell by cell: its codes stay in the first-level cache.
    int64_t screen_lists() {
        const PackedCodes codes = packed_.codes();
        int64_t met = 0;
        for (const int32_t cell : listed_) {
            for (const int32_t local : lists_[cell]) {
                Panel& panel = panel_of(local).panel;
                kernels_.screen_row(panel_rows(local / kernels_.rows), lane_of(local), codes, cell, panel);
            }
            met += lists_[cell].size();
            lists_[cell].clear();
        }
        listed_.clear();
        return met;
    }

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
        for (int64_t r = 0; r < count; ++r) vectors[r] = screened_.z + ids[r] * codebook.dim;
        packer_.centre(vectors, count);
        double longest = 0.0, widest = 0.0;
        bool all_short = true;
        for (int r = 0; r < count; ++r) {
            rows.open(measure_, ids[r], packer_.squared(r), r, packed_);
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

    const Screened& screened_;
    const Measure& measure_;
    const Packed& packed_;
    const ScreenKernels& kernels_;
    int64_t panel_bytes_;
    Buffer rows_;
    Packer packer_;
    std::unique_ptr<RowPanel<Measure>[]> panels_;
    struct Farther {
        int32_t cell, local;
        float squared;
    };
    std::vector<Farther> farther_;
    std::vector<std::vector<int32_t>> lists_;  // the rows to screen against each cell,
    std::vector<int32_t> listed_;              // and the cells that have some
};

// One search: its inputs, and the answers as they are found.
template <typename T, typename Measure>
struct Search {
    const Measure& measure;
    const Screened& screened;
    Codebook& codebook;
    int64_t* index;
    T* distance;
    int threads;

    void answer(int64_t i, const Nearest<Measure>& nearest) const {
        index[i] = nearest.code();
        distance[i] = static_cast<T>(nearest.distance());
    }

    // Screens rows `ids` and answers those that it decides; returns the others. Where a few rows show
    // that measuring candidates takes longer than a more precise screen, the rest is left to it.
    std::vector<int64_t> screen(std::vector<int64_t> ids, const ScreenKernels& kernels, bool last,
                                SearchCounts& counts) const {
        const int64_t n = static_cast<int64_t>(ids.size());
        const int64_t size = group_size(codebook.dim, kernels);
        std::unique_ptr<const Cells> cells;
        if (Cells::pay(screened, ids, size)) {
            cells.reset(new Cells(screened, size, kernels.boxes_within, threads));
        }
        const Packed packed(codebook, kernels, cells ? cells->order() : nullptr, threads);
        const Cells* used = cells.get();
        std::vector<int64_t> rest;
        int64_t begin = 0;
        if (n >= 32 * kProbedRows && (!last || cells)) {
            begin = kProbedRows;
            const int64_t before = counts.candidates;
            const int64_t met = screen_part(packed, used, ids.data(), begin, rest, counts);
            const double measured = static_cast<double>(counts.candidates - before) / begin;
            if (!last && measured * (64 + codebook.dim) > codebook.k * codebook.dim / 64.0) {
                rest.insert(rest.end(), ids.begin() + begin, ids.end());
                return rest;
            }
            if (cells && met > kMostMet * cells->count() * begin) used = nullptr;
        }
        screen_part(packed, used, &ids[begin], n - begin, rest, counts);
        return rest;
    }

    // Sorts rows by a cell near each; returns those cells, in the new order.
    std::vector<int32_t> sort_by_cell(const Cells& cells, int64_t* ids, int64_t n) const {
        std::vector<int32_t> homes(n);
#pragma omp parallel for num_threads(threads)
        for (int64_t j = 0; j < n; ++j) {
            homes[j] = cells.nearest(screened.z + ids[j] * screened.dim);
        }
        std::vector<int64_t> places(cells.count() + 1, 0), sorted(n);
        for (int64_t j = 0; j < n; ++j) places[homes[j] + 1] += 1;
        std::partial_sum(places.begin(), places.end(), places.begin());
        for (int64_t j = 0; j < n; ++j) sorted[places[homes[j]]++] = ids[j];
        std::copy(sorted.begin(), sorted.end(), ids);
        // Each place is now where the next cell starts.
        for (int64_t cell = 0, j = 0; cell < cells.count(); ++cell) {
            for (; j < places[cell]; ++j) homes[j] = static_cast<int32_t>(cell);
        }
        return homes;
    }

    // Returns how many cells the rows met.
    int64_t screen_part(const Packed& packed, const Cells* cells, int64_t* ids, int64_t n,
                        std::vector<int64_t>& rest, SearchCounts& counts) const {
        std::vector<int32_t> homes;
        if (cells != nullptr) homes = sort_by_cell(*cells, ids, n);
        // Enough chunks to balance the threads, large enough to share each pass over the codes.
        const int64_t panel = packed.kernels().rows;
        const int64_t fair = (n + 2 * threads - 1) / (2 * threads);
        const int64_t most = cells == nullptr ? kMostRows : kMostRowsInCells;
        const int64_t wanted = std::min(std::max<int64_t>(fair, 1), most);
        const int64_t rows = (wanted + panel - 1) / panel * panel;
        const int64_t chunks = (n + rows - 1) / rows;
        std::vector<uint8_t> undecided(n, 0);
        int64_t certified = 0, candidates = 0, met = 0;
#pragma omp parallel num_threads(threads) reduction(+ : certified, candidates, met)
        {
            RowChunk<Measure> chunk(screened, measure, packed, rows);
#pragma omp for schedule(dynamic)
            for (int64_t c = 0; c < chunks; ++c) {
                const int64_t begin = c * rows, count = std::min(rows, n - begin);
                if (cells == nullptr) {
                    chunk.screen(ids + begin, count);
                } else {
                    met += chunk.screen(ids + begin, count, *cells, &homes[begin]);
                }
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
        const int64_t size = group_size(codebook.dim, packed.kernels());
        counts.scores += cells == nullptr ? n * codebook.k : met * size;
        for (int64_t j = 0; j < n; ++j) {
            if (undecided[j]) rest.push_back(ids[j]);
        }
        return met;
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
    const Search<T, Measure> search = {measure, screened, codebook, index, distance, threads};
    const int64_t dim = screened.dim;
    std::vector<const ScreenKernels*> fitting;
    for (const ScreenKernels* screen : screens) {
        const bool fits = dim >= screen->least_dim && dim <= most_channels(screen->format);
        // A second screen in the same format would decide no more.
        const bool again = !fitting.empty() && fitting.back()->format == screen->format;
        // Among cells few codes are scored, and precision spares more than speed does.
        const bool coarse = screen->format == Format::kInt8 && screen != screens.back() &&
                            Cells::pay(screened, rows, group_size(dim, *screen));
        if (fits && !again && !coarse) fitting.push_back(screen);
    }
    for (const ScreenKernels* screen : fitting) {
        if (static_cast<int64_t>(rows.size()) <= kFewRows) break;
        rows = search.screen(std::move(rows), *screen, screen == fitting.back(), counts);
    }
    search.scan(rows, counts);
}

}  // namespace vqkern
