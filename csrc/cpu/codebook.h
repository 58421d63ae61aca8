// The codebook of a search, and its packing for one kind of screen.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "finite.h"
#include "screen.h"

namespace vqkern {

// Bounds are added and scaled in float32; this much more keeps them on the safe side.
constexpr double kInflate = 1.0 + 0x1p-16;

// x as a float that is not smaller; x is finite, and below 2^100.
inline float round_up(double x) {
    float y = static_cast<float>(x);
    // The next float is the next whole number in bits, upwards from 0. Which way x was rounded, no branch can
    // foretell.
    uint32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    bits += static_cast<uint32_t>(y < x) * (1u - 2u * (bits >> 31));
    std::memcpy(&y, &bits, sizeof bits);
    return y;
}

// So few numbers one thread looks at in less time than it takes to wake others.
constexpr int64_t kForOneThread = 1 << 18;

class Packer;

// Vectors as the screens see them: the caller's, or float32 stand-ins for them.
struct Screened {
    const float* z;      // [n][dim]
    const float* codes;  // [k][dim]
    int64_t n, k, dim;
    bool centred = false;   // around 0
    double relative = 0.0;  // |stand-in - vector| / |stand-in| is at most this,
    double absolute = 0.0;  // and what else a score may be off
};

// The codes of a search, and the centre and scale that all screens share.
struct Codebook {
    explicit Codebook(const Screened& screened);

    double norm(const float* code) const;  // |e - c|, not scaled

    // The scale that brings vectors of this length near 1.
    void set_scale(double length);

    // Channel d of a row or a code in the screens' coordinates; exact up to 2^-52 relative.
    double centred(float x, int64_t d) const {
        return (static_cast<double>(x) - static_cast<double>(centre[d])) * scale;
    }

    const float* codes;
    int64_t k, dim;
    double relative, absolute;  // as in Screened
    std::vector<float> centre;
    double scale = 1.0;
    double unscale = 1.0;  // of squares: 1 / scale^2
    bool fits_float = true;  // centred values and their scale are ordinary float32 numbers
};

// A codebook packed for one kind of screen, in its own order or another.
class Packed {
  public:
    Packed(Codebook& codebook, const PackKernels& kernels, const int32_t* order, int threads);

    // The code at a place.
    int64_t code_at(int64_t place) const { return order_ == nullptr ? place : order_[place]; }

    PackedCodes codes() const {
        return {values_.data, half_norms_.data, groups_.data(), dim_, tiles_, group_tiles_};
    }
    const Codebook& codebook() const { return codebook_; }
    const PackKernels& kernels() const { return kernels_; }
    int64_t dim() const { return dim_; }
    int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
    int64_t tiles() const { return tiles_; }
    int group_tiles() const { return group_tiles_; }
    int64_t tile_bytes() const { return dim_ * kernels_.tile * bytes_of(kernels_.format); }
    // Multiplies |z||e| + h in the error of a sum of products.
    double kappa() const { return kappa_; }
    // Half of the groups have no longer code.
    double typical_norm() const { return typical_norm_; }
    // Whether any code is finite.
    bool usable() const { return usable_; }
    // The scale for rows of which the longest and the widest are given.
    float row_scale(double longest, double widest) const;

  private:
    // Packs all codes; returns the largest |e - c|^2.
    double pack(int threads);
    double pack_group(int64_t g, Packer& packer, const float** vectors);

    Codebook& codebook_;
    const PackKernels& kernels_;
    const int32_t* order_;
    int64_t dim_, tiles_;
    int group_tiles_;
    double kappa_;
    double typical_norm_ = 0.0;
    bool usable_ = false;
    Buffer values_, half_norms_;
    std::vector<Group> groups_;
};

}  // namespace vqkern
