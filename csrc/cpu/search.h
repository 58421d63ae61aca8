// Rows through the screens, and their candidates through the measure; see screen.h and measures.h.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cells.h"
#include "codebook.h"
#include "measures.h"
#include "nearest_code.h"
#include "row_chunk.h"

namespace vqkern {

constexpr int64_t kBlockBytes = 256 << 10;  // codes that stay in the second-level cache
constexpr int64_t kMostRows = 768;  // rows that share one pass over the codes
constexpr int64_t kMostRowsOfFew = 96;  // where the codes stay in the cache in any case
// So few codes, or products a row, take less time than to bring vectors to integers and measure candidates.
constexpr int64_t kFewerCodes = 192, kFewProducts = 24576;

constexpr int64_t kProbedRows = 192, kProbedRowsInCells = 64;
// Rows that reach more of the cells than this are screened against all codes, by integers or by float32.
constexpr double kMostMet = 0.3, kMostMetByFloats = 0.6, kMostMetAfterScreen = 0.9;
constexpr int64_t kScanBlock = 64;  // codes measured for one row after the other
// So few rows are measured against all codes in less time than it takes to pack those.
constexpr int64_t kFewRows = 2;

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

    // Whether a more precise screen takes less time than it takes to measure so many codes a row.
    bool takes_long(double measured) const {
        return measured * (64 + codebook.dim) > codebook.k * codebook.dim / 64.0;
    }

    // Screens rows `ids` and answers those that it decides; returns the others. Where a few rows show
    // that measuring candidates takes longer than a more precise screen, the rest is left to it.
    std::vector<int64_t> screen(const std::vector<int64_t>& ids, const ScreenKernels& kernels, bool last,
                                SearchCounts& counts) const {
        const int64_t n = static_cast<int64_t>(ids.size());
        const bool probed = n >= 16 * kProbedRows && !last;
        if (probed && takes_long(1.0)) return ids;  // that many are measured in any case
        const Packed packed(codebook, kernels, nullptr, threads);
        const PackedCodes codes = packed.codes();
        const int64_t fits = kBlockBytes / (packed.tile_bytes() * codes.group_tiles);
        const int64_t block = std::min<int64_t>(kMostGroups, std::max<int64_t>(1, fits));
        const auto against_all = [&](RowChunk<Measure>& chunk, int64_t, int64_t count) {
            const int64_t panels = (count + kernels.rows - 1) / kernels.rows;
            for (int64_t group = 0; group < packed.groups(); group += block) {
                const int64_t stop = std::min(packed.groups(), group + block);
                for (int64_t p = 0; p < panels; ++p) {
                    kernels.screen(chunk.rows(p), codes, group, stop, chunk.panel(p));
                }
            }
            return count * codebook.k;
        };
        std::vector<int64_t> rest;
        int64_t begin = 0;
        if (probed) {
            begin = kProbedRows;
            const int64_t before = counts.candidates;
            share_out(packed, ids.data(), begin, kMostRows, against_all, rest, counts);
            const double measured = static_cast<double>(counts.candidates - before) / begin;
            const bool undecided = 2 * static_cast<int64_t>(rest.size()) > begin;
            if (undecided || takes_long(measured)) {
                rest.insert(rest.end(), ids.begin() + begin, ids.end());
                return rest;
            }
        }
        share_out(packed, &ids[begin], n - begin, kMostRows, against_all, rest, counts);
        return rest;
    }

    // As well, where there are few codes: rows are compared with all, and never too many are measured.
    std::vector<int64_t> screen_few(const std::vector<int64_t>& ids, const ScreenKernels& kernels,
                                    SearchCounts& counts) const {
        const Packed packed(codebook, kernels, nullptr, threads);
        const PackedCodes codes = packed.codes();
        const auto against_all = [&](RowChunk<Measure>& chunk, int64_t, int64_t count) {
            const int64_t panels = (count + kernels.rows - 1) / kernels.rows;
            for (int64_t p = 0; p < panels; ++p) {
                kernels.screen_few(chunk.rows(p), codes, chunk.panel(p));
            }
            return count * codebook.k;
        };
        std::vector<int64_t> rest;
        share_out(packed, ids.data(), static_cast<int64_t>(ids.size()), kMostRowsOfFew, against_all,
                  rest, counts);
        return rest;
    }

    // As well, each row against the cells in its reach. Where a few rows show that they reach most of them,
    // the rest is left to the screens.
    std::vector<int64_t> meet(std::vector<int64_t> ids, const CellKernels& kernels, double most_met,
                              SearchCounts& counts) const {
        const Cells cells(screened, threads);
        const Packed packed(codebook, kernels, cells.order(), threads);
        const CellCodes codes = cells.codes(packed.codes());
        const int64_t n = static_cast<int64_t>(ids.size());
        std::vector<int64_t> rest;
        const auto meet_part = [&](int64_t begin, int64_t end) {
            int64_t* part = &ids[begin];
            const std::vector<int32_t> homes = cells.sort_by_home(screened.z, part, end - begin, threads);
            const auto among_cells = [&](RowChunk<Measure>& chunk, int64_t first, int64_t count) {
                CellRows rows;
                rows.count = static_cast<int32_t>(count);
                rows.packed = reinterpret_cast<const float*>(chunk.rows(0));
                for (int64_t i = 0; i < count; ++i) {
                    rows.z[i] = screened.z + part[first + i] * screened.dim;
                    rows.home[i] = homes[first + i];
                    rows.panels[i / kPanelRows] = &chunk.panel(i / kPanelRows);
                }
                return kernels.meet(rows, codes) * kCellCodes;
            };
            share_out(packed, part, end - begin, kMostCellRows, among_cells, rest, counts);
        };
        int64_t begin = 0;
        if (n >= 32 * kProbedRows) {
            begin = kProbedRowsInCells;
            // Rows from everywhere: neighbours in a batch are often alike.
            for (int64_t i = 0; i < begin; ++i) std::swap(ids[i], ids[i * (n / begin)]);
            const int64_t before = counts.scores;
            meet_part(0, begin);
            if (counts.scores - before > most_met * begin * codebook.k) {
                rest.insert(rest.end(), ids.begin() + begin, ids.end());
                return rest;
            }
        }
        meet_part(begin, n);
        return rest;
    }

    // Packs rows `ids` in chunks of at most `most`, which the threads share: work(chunk, first, count) takes on
    // the rows from `first` and returns how many scores that took. Then answers what was decided, and adds the
    // others to `rest`.
    template <typename Work>
    void share_out(const Packed& packed, const int64_t* ids, int64_t n, int64_t most,
                   const Work& work, std::vector<int64_t>& rest,
                   SearchCounts& counts) const {
        // As many chunks for each thread, at least two, and large enough to share each pass over the codes.
        const int64_t panel = packed.kernels().rows;
        const int64_t each = std::max<int64_t>(2, (n + most * threads - 1) / (most * threads));
        const int64_t fair = std::max<int64_t>(1, (n + each * threads - 1) / (each * threads));
        const int64_t rows = (fair + panel - 1) / panel * panel;
        const int64_t chunks = (n + rows - 1) / rows;
        std::vector<uint8_t> undecided(n, 0);
        int64_t certified = 0, candidates = 0, scores = 0;
#pragma omp parallel num_threads(threads) reduction(+ : certified, candidates, scores)
        {
            RowChunk<Measure> chunk(screened, measure, packed, rows);
#pragma omp for schedule(dynamic)
            for (int64_t c = 0; c < chunks; ++c) {
                const int64_t first = c * rows, count = std::min(rows, n - first);
                chunk.pack(ids + first, count);
                scores += work(chunk, first, count);
                for (int64_t local = 0; local < count; ++local) {
                    // No bound is right that leaves a row without a code.
                    const bool decided = !chunk.overflowed(local) &&
                                         (chunk.finish(local, candidates).code() >= 0 || !packed.usable());
                    if (!decided) {
                        undecided[first + local] = 1;
                        continue;
                    }
                    answer(ids[first + local], chunk.nearest(local));
                    certified += 1;
                }
            }
        }
        counts.certified += certified;
        counts.candidates += candidates;
        counts.scores += scores;
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

// Rows that one way cannot decide go to the next, and after the last screen to a scan of all codes; returns those
// that do.
template <typename T, typename Measure>
std::vector<int64_t> search_rows(std::vector<int64_t> rows, const Measure& measure,
                                 const Screened& screened, const SearchKernels& kernels,
                                 int64_t* index, T* distance, int threads, SearchCounts& counts) {
    if (rows.empty()) return rows;
    Codebook codebook(screened);
    const Search<T, Measure> search = {measure, screened, codebook, index, distance, threads};
    const int64_t dim = screened.dim;
    const bool floats = kernels.screens.front()->format == Format::kFloat32;
    const bool few = kernels.few != nullptr && screened.k <= kFewCodes &&
                     (floats || screened.k <= kFewerCodes || screened.k * dim <= kFewProducts);
    if (few && static_cast<int64_t>(rows.size()) > kFewRows) {
        rows = search.screen_few(rows, *kernels.few, counts);
        if (!rows.empty()) search.scan(rows, counts);
        return rows;
    }
    const double most_met = floats ? kMostMetByFloats : kMostMet;
    bool cells = kernels.cells != nullptr && Cells::pay(screened, rows, most_met);
    if (cells) rows = search.meet(std::move(rows), *kernels.cells, most_met, counts);
    std::vector<const ScreenKernels*> fitting;
    for (const ScreenKernels* screen : kernels.screens) {
        const bool fits = dim >= screen->least_dim && dim <= most_channels(screen->format);
        // A second screen in the same format would decide no more.
        const bool again = !fitting.empty() && fitting.back()->format == screen->format;
        if (fits && !again) fitting.push_back(screen);
    }
    for (const ScreenKernels* screen : fitting) {
        const size_t before = rows.size();
        if (static_cast<int64_t>(before) <= kFewRows) break;
        rows = search.screen(rows, *screen, screen == fitting.back(), counts);
        // Where the cheapest screen gives up, as in tight clusters, many cells are better than the others.
        if (cells && 2 * rows.size() > before) {
            rows = search.meet(std::move(rows), *kernels.cells, kMostMetAfterScreen, counts);
        }
        cells = false;
    }
    if (!rows.empty()) search.scan(rows, counts);
    return rows;
}

}  // namespace vqkern
