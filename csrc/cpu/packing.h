// Vectors, rows or codes, brought to the format and the layout of a screen.
#pragma once

#include <cstdint>
#include <vector>

#include "codebook.h"
#include "screen.h"

namespace vqkern {

// Channels with their padding: equal steps of the matrix unit, or the least multiple of a word.
constexpr int64_t padded_dim(int64_t dim, const PackKernels& kernels) {
    const bool in_turn = kernels.row_layout == RowLayout::kInTurn;
    const int64_t steps = in_turn ? (dim + kTileChannels - 1) / kTileChannels : 1;
    const int64_t word = channel_step(kernels.format) * steps;
    return (dim + word - 1) / word * word;
}

// Centres some vectors, then rounds them once their common scale is known.
class Packer {
  public:
    Packer(const Codebook& codebook, const PackKernels& kernels, bool rows, int64_t most);

    // Up to `most` vectors [dim], null for those that are not there.
    void centre(const float* const* vectors, int64_t count);

    // Of vector j: its squared norm and its largest component, both after centring.
    double squared(int64_t j) const { return squared_[j]; }
    double widest(int64_t j) const { return widest_[j]; }

    // Rounds vectors [first, first + count) in units of 1 / scale into one panel or tile.
    void place(int64_t first, int64_t count, float scale, void* values);

    // Of vector j, once placed: |x - rounded|, with all that float32 did on the way, and the sum of its
    // rounded components (int8 rows).
    double residual(int64_t j) const { return residual_[j]; }
    int32_t sum(int64_t j) const { return sum_[j]; }

  private:
    void place_precisely(int64_t first, int64_t count, double scale, void* values);

    const Codebook& codebook_;
    const PackKernels& kernels_;
    bool rows_, fast_;
    int64_t dim_, stride_;
    int lanes_;
    Buffer vectors_;               // float32 [most][stride], on the fast path
    std::vector<double> centred_;  // float64 [most][dim], on the other
    std::vector<double> squared_, residual_;
    std::vector<float> widest_, rest_;
    std::vector<int32_t> sum_;
};

}  // namespace vqkern
