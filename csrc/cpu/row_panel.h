// Rows on their way through a screen, and their answers as they form; see screen.h and measures.h.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "codebook.h"
#include "measures.h"
#include "screen.h"

namespace vqkern {

constexpr int kHeld = 16;             // candidates a row holds before they are measured
// A row that needs more codes measured goes to a more precise screen.
constexpr int64_t most_measured(int64_t k) { return 1024 + k / 16; }

// A panel of rows and their answers so far.
template <typename Measure>
class RowPanel final : public Hits {
  public:
    void open(const Measure& measure, int64_t id, double squared, int r, const Packed& packed) {
        packed_ = &packed;
        codebook_ = &packed.codebook();
        measure_ = &measure;
        Row& row = rows_[r];  // whose candidates may stay as they are
        row.nearest = Nearest<Measure>(measure, id);
        squared_[r] = squared;
        row.measured = 0;
        row.held = 0;
        row.overflowed = false;
        panel.upper[r] = FLT_MAX;
    }

    void overflow(int r) {
        rows_[r].overflowed = true;
        panel.upper[r] = -FLT_MAX;
    }

    void expect(int64_t place) override {
        if (place < codebook_->k) measure_->prefetch(packed_->code_at(place));
    }

    void measure(int r, int64_t place) override {
        if (place >= codebook_->k) return;
        Row& row = rows_[r];
        row.measured += 1;
        if (!row.nearest.offer(packed_->code_at(place))) return;
        const double unit = codebook_->scale * codebook_->scale;
        const double squared = row.nearest.squared() * unit;
        const double rounding =
            ((codebook_->dim + 8) * 0x1p-52 + 4 * codebook_->relative) * (squared + squared_[r]) +
            codebook_->absolute * unit;
        const double score = (squared - squared_[r]) / 2 + rounding;
        // Four units in the last place keep later float32 sums with this bound on the safe side.
        const float upper = round_up(score + std::fabs(score) * 0x1p-22);
        panel.upper[r] = std::min(panel.upper[r], upper);
    }

    void decide(int r, int64_t place) override {
        if (place >= codebook_->k) return;
        rows_[r].measured += 1;
        rows_[r].nearest.offer(packed_->code_at(place));
    }

    void keep(int r, int64_t place, float lower) override {
        Row& row = rows_[r];
        if (row.overflowed) return;
        if (row.held == kHeld) {
            int kept = 0;
            for (int i = 0; i < kHeld; ++i) {
                if (row.candidates[i].lower <= panel.upper[r]) {
                    row.candidates[kept++] = row.candidates[i];
                }
            }
            row.held = kept;
            if (kept == kHeld) measure_held(r);
            if (row.measured > most_measured(codebook_->k)) return overflow(r);
        }
        row.candidates[row.held++] = {place, lower};
        expect(place);
    }

    float reach(int r) override {
        constexpr float kInfinity = __builtin_inff();
        if (panel.upper[r] == -FLT_MAX) return -1.0f;
        if (panel.upper[r] == FLT_MAX) return kInfinity;
        // Half of |z - e|^2 is the score and half of |z - c|^2.
        const double upper = panel.upper[r];
        const double rounding =
            ((codebook_->dim + 8) * 0x1p-52 + 10 * codebook_->relative) * (squared_[r] + std::fabs(upper));
        const double squared = std::max(squared_[r] + 2 * upper, 0.0) + 4 * rounding;
        // The squared distance of a box is a sum of dim rounded squares.
        const double most = squared * codebook_->unscale * (1 + (codebook_->dim + 8) * 0x1p-22) +
                            4 * codebook_->absolute + 0x1p-120;
        return most < 0x1p99 ? round_up(most) : kInfinity;
    }

    bool overflowed(int r) const { return rows_[r].overflowed; }

    // The nearest code of a row that did not overflow, and how many codes were measured for it.
    const Nearest<Measure>& finish(int r, int64_t& measured) {
        Row& row = rows_[r];
        const Candidate& first = row.candidates[0];
        if (row.held == 1 && first.place < codebook_->k) {  // nothing is left that a bound would spare
            if (first.lower <= panel.upper[r]) {
                row.measured += 1;
                row.nearest.offer(packed_->code_at(first.place));
            }
        } else {
            measure_held(r);
        }
        measured += row.measured;
        return row.nearest;
    }

    const Nearest<Measure>& nearest(int r) const { return rows_[r].nearest; }

    Panel panel;

  private:
    struct Candidate {
        int64_t place;
        float lower;  // it scores no less
    };
    struct Row {
        Nearest<Measure> nearest;
        int64_t measured = 0;
        int held = 0;
        bool overflowed = false;
        Candidate candidates[kHeld];
    };

    void measure_held(int r) {
        Row& row = rows_[r];
        for (int i = 0; i < row.held; ++i) {
            if (row.candidates[i].lower <= panel.upper[r]) measure(r, row.candidates[i].place);
        }
        row.held = 0;
    }

    const Packed* packed_ = nullptr;
    const Codebook* codebook_ = nullptr;
    const Measure* measure_ = nullptr;
    double squared_[kPanelRows];  // |z - c|^2
    Row rows_[kPanelRows];
};

}  // namespace vqkern
