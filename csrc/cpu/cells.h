// Codes in boxes: a search in few channels need not look at all of them.
//
// The codes are halved at the median of their widest channel, and the halves again, until each part is one group
// of a screen, a cell. A row at distance r from some code has its nearest one in no cell whose bounding box is
// farther away than r. In eight channels that leaves a quarter of 64 cells for Gaussian rows, a
// twentieth of 1,024; in sixteen almost all, and then nothing is gained.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "codebook.h"
#include "screen.h"

namespace vqkern {

class Cells {
  public:
    // Whether a sample of rows `ids` has codes so near that most cells will be out of their reach.
    static bool pay(const Screened& screened, const std::vector<int64_t>& ids, int64_t size);

    // Cells of `size` codes each; codes that are not finite come last, and count for no box.
    Cells(const Screened& screened, int64_t size, BoxesWithin* boxes_within, int threads);

    int64_t count() const { return count_; }
    // The code at each place.
    const int32_t* order() const { return order_.data(); }

    // A cell that is about the nearest to the row.
    int32_t nearest(const float* z) const;

    // Calls visit(cell, its squared distance) for the cells at squared distances of at most `upto`.
    template <typename Visit>
    void visit(const float* z, float upto, Visit visit) const {
        float squared[kBoxes];
        for (int64_t part = 0; part < parts_; ++part) {
            uint32_t found = within(box_of_part(part), z, -1.0f, upto, squared);
            for (; found != 0; found &= found - 1) {
                const int64_t block = part * kBoxes + __builtin_ctz(found);
                // Where everything is in reach, so are boxes that are not there.
                if (block >= blocks_) break;
                uint32_t cells = within(box_of_cell(block), z, -1.0f, upto, squared);
                for (; cells != 0; cells &= cells - 1) {
                    const int i = __builtin_ctz(cells);
                    const int64_t cell = block * kBoxes + i;
                    if (cell < count_) visit(static_cast<int32_t>(cell), squared[i]);
                }
            }
        }
    }

  private:
    void bound(const float* codes, int64_t size, int64_t usable, int threads);

    uint32_t within(const float* boxes, const float* z, float above, float upto, float* squared) const {
        return within_(boxes, z, dim_, above, upto, squared);
    }

    int64_t box_floats() const { return dim_ * 2 * kBoxes; }
    float* box_of_cell(int64_t block) const { return cells_.data + block * box_floats(); }
    float* box_of_part(int64_t part) const { return around_.data + part * box_floats(); }

    int64_t dim_, count_, blocks_, parts_;
    BoxesWithin* within_;
    std::vector<int32_t> order_;
    // kBoxes at a time, [dim][least, most][kBoxes]: boxes of the cells, and a box around each block of them.
    Buffer cells_, around_;
};

}  // namespace vqkern
