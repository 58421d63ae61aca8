// Rows on their way into the kernels of a search: packed, with what bounds their scores.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>

#include "buffer.h"
#include "codebook.h"
#include "packing.h"
#include "row_panel.h"

namespace vqkern {

// Rows longer than this are not screened: their scores, or the squares of what integers leave of them, could
// leave the float32 range.
constexpr double longest_row(Format format) { return format == Format::kFloat32 ? 0x1p90 : 0x1p60; }

// Some rows of a search, packed in panels.
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

    // Packs the finite rows `ids` in as many panels as they fill.
    void pack(const int64_t* ids, int64_t count) {
        for (int64_t p = 0, first = 0; first < count; ++p, first += kernels_.rows) {
            pack_panel(p, ids + first, std::min<int64_t>(kernels_.rows, count - first));
        }
    }

    Panel& panel(int64_t p) { return panels_[p].panel; }

    char* rows(int64_t p) { return reinterpret_cast<char*>(rows_.data) + p * panel_bytes_; }

    bool overflowed(int64_t local) const {
        return panels_[local / kernels_.rows].overflowed(static_cast<int>(local % kernels_.rows));
    }

    const Nearest<Measure>& finish(int64_t local, int64_t& measured) {
        return panels_[local / kernels_.rows].finish(static_cast<int>(local % kernels_.rows),
                                                     measured);
    }

    const Nearest<Measure>& nearest(int64_t local) const {
        return panels_[local / kernels_.rows].nearest(static_cast<int>(local % kernels_.rows));
    }

  private:
    void pack_panel(int64_t p, const int64_t* ids, int64_t count) {
        const Codebook& codebook = packed_.codebook();
        RowPanel<Measure>& answers = panels_[p];
        Panel& panel = answers.panel;
        panel.hits = &answers;
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
        const double most = longest_row(kernels_.format) * longest_row(kernels_.format);
        for (int r = 0; r < count; ++r) {
            answers.open(measure_, ids[r], packer_.squared(r), r, packed_);
            if (!(packer_.squared(r) <= most)) {
                answers.overflow(r);
                vectors[r] = nullptr;
                all_short = false;
                continue;
            }
            longest = std::max(longest, packer_.squared(r));
            widest = std::max(widest, packer_.widest(r));
        }
        if (!all_short) packer_.centre(vectors, count);
        panel.scale = packed_.row_scale(std::sqrt(longest), widest);
        packer_.place(0, count, panel.scale, rows(p));
        for (int r = 0; r < count; ++r) {
            panel.shift[r] = 128 * packer_.sum(r);
            if (!answers.overflowed(r)) set_slopes(panel, r);
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
    const PackKernels& kernels_;
    int64_t panel_bytes_;
    Buffer rows_;
    Packer packer_;
    std::unique_ptr<RowPanel<Measure>[]> panels_;
};

}  // namespace vqkern
