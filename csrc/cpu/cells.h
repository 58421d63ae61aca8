// Codes in boxes: a search in few channels need not look at all of them.
//
// The codes are halved at the median of their widest channel, and the halves again, until each part is a
// cell of at most kCellCodes. A row at distance r from some code has its nearest one in no cell whose
// bounding box is farther away than r. In eight channels that leaves about a tenth of 256 cells for
// Gaussian rows, and 4 % of 1,024; in sixteen more than half of them.
//
// Rows are sorted by the cell that they fall into, their home, and go in chunks of neighbours: each against
// its home, which gives it a reach, then the cells in reach among those that share a block with the home,
// which shorten it, and at last all others that are still in it. So the codes of a cell are fetched once for
// all rows of a chunk that meet them.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "cell_kernels.h"
#include "codebook.h"

namespace vqkern {

class Cells {
  public:
    // Whether a sample of rows `ids` has codes so near that they may reach less than that share of the cells.
    static bool pay(const Screened& screened, const std::vector<int64_t>& ids, double most_met);

    // Codes that are not finite come last, and count for no box.
    Cells(const Screened& screened, int threads);

    // The code at each place.
    const int32_t* order() const { return order_.data(); }
    CellCodes codes(const PackedCodes& packed) const {
        return {cells_.data, around_.data, count_, blocks_, packed};
    }

    // The cell that a row falls into; it may be outside of the box.
    int32_t home(const float* z) const {
        int64_t at = 0;
        while (splits_[at].channel >= 0) at = 2 * at + 1 + (z[splits_[at].channel] >= splits_[at].value);
        return splits_[at].cell;
    }

    // Sorts `n` of the rows z by home; returns those, in the new order.
    std::vector<int32_t> sort_by_home(const float* z, int64_t* ids, int64_t n, int threads) const;

  private:
    struct Split {
        int32_t channel = -1;  // of a cell: none
        union {
            float value;
            int32_t cell = 0;
        };
    };
    struct Keyed {
        float key;
        int32_t code;
    };

    void halve(const float* codes, int64_t node, int32_t cell, Keyed* from, Keyed* to);
    void bound(const float* codes, int64_t usable, int threads);

    int64_t box_floats() const { return dim_ * 2 * kBoxes; }
    float* box_of_cell(int64_t block) const { return cells_.data + block * box_floats(); }
    float* box_of_part(int64_t part) const { return around_.data + part * box_floats(); }

    int64_t dim_, count_, blocks_, parts_;
    std::vector<Split> splits_;  // node i has the children 2 i + 1 and 2 i + 2
    std::vector<int32_t> order_;
    // Boxes of the cells, and a box around each block of kBoxes of them.
    Buffer cells_, around_;
};

}  // namespace vqkern
