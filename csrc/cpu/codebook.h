// The codebook of a search, and its packing for one kind of screen.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "screen.h"

namespace vqkern {

// Bounds are added and scaled in float32; this much more keeps them on the safe side.
constexpr double kInflate = 1.0 + 0x1p-16;

bool all_finite(const float* x, int64_t dim);

// x as a float that is not smaller.
float round_up(double x);

// Values rounded to a format, with what the rounding did to them.
struct Rounded {
    double residual;  // |values - rounded|
    double norm;      // |rounded|
};

// Writes -values or values [dim], at `place(d)` of the output for channel d, in int16 units of 1/scale.
template <typename Place>
Rounded round_int16(const double* values, int64_t dim, double scale, double sign, Place place);

// The same in bfloat16, subnormals cut to 0 as the matrix unit does.
template <typename Place>
Rounded round_bf16(const double* values, int64_t dim, double sign, Place place);

// The codes as they came, and the centre and scale that all screens share.
struct Codebook {
    Codebook(const float* codes, int64_t k, int64_t dim, int threads);

    // Channel d of a row or a code in the screens' coordinates; exact up to 2^-52 relative.
    double centred(float x, int64_t d) const {
        return (static_cast<double>(x) - static_cast<double>(centre[d])) * scale;
    }

    const float* codes;
    int64_t k, dim;
    std::vector<uint8_t> finite;
    std::vector<float> centre;
    double scale = 1.0;
    bool fits_float = true;  // centred values and their scale are ordinary float32 numbers
};

// A codebook packed for one kind of screen.
class Packed {
  public:
    Packed(const Codebook& codebook, const ScreenKernels& kernels, int threads);

    PackedCodes codes() const { return {values_.data, half_norms_.data, groups_.data(), dim_}; }
    const Codebook& codebook() const { return codebook_; }
    const ScreenKernels& kernels() const { return kernels_; }
    int64_t dim() const { return dim_; }
    int64_t groups() const { return count_; }
    int64_t group_bytes() const { return dim_ * kernels_.group_size * bytes_of(kernels_.format); }
    // Multiplies |z||e| + h in the error of a sum of products.
    double kappa() const { return kappa_; }
    double typical_norm() const { return typical_norm_; }

  private:
    void pack_group(int64_t g, double* values);
    GroupMeasure pack_precisely(int64_t g, void* packed, float* half_norms, double* values) const;

    const Codebook& codebook_;
    const ScreenKernels& kernels_;
    int64_t dim_, count_;
    double kappa_;
    double typical_norm_ = 0.0;
    Buffer values_, half_norms_;
    std::vector<Group> groups_;
};

// The nearest whole number, for |x| < 2^51; nearbyint would be a library call on plain x86-64.
inline double round_whole(double x) {
    constexpr double kBig = 0x1.8p52;
    return (x + kBig) - kBig;
}

template <typename Place>
Rounded round_int16(const double* values, int64_t dim, double scale, double sign, Place place) {
    const double unit = 1.0 / scale;
    double residual = 0.0, squared = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
        const double whole = round_whole(values[d] * scale);
        *static_cast<int16_t*>(place(d)) = static_cast<int16_t>(static_cast<int32_t>(sign * whole));
        const double rest = values[d] - whole * unit;
        residual += rest * rest;
        squared += whole * whole;
    }
    return {__builtin_sqrt(residual), __builtin_sqrt(squared) * unit};
}

template <typename Place>
Rounded round_bf16(const double* values, int64_t dim, double sign, Place place) {
    double residual = 0.0, squared = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
        const float value = static_cast<float>(values[d]);
        uint32_t bits;
        __builtin_memcpy(&bits, &value, sizeof bits);
        bits += 0x7fff + (bits >> 16 & 1);  // to nearest, ties to even
        bits &= 0xffff0000u;
        if ((bits & 0x7f800000u) == 0) bits = 0;
        float rounded;
        __builtin_memcpy(&rounded, &bits, sizeof rounded);
        const double rest = values[d] - static_cast<double>(rounded);
        residual += rest * rest;
        squared += static_cast<double>(rounded) * rounded;
        if (sign < 0 && rounded != 0.0f) bits ^= 0x80000000u;
        *static_cast<uint16_t*>(place(d)) = static_cast<uint16_t>(bits >> 16);
    }
    return {__builtin_sqrt(residual), __builtin_sqrt(squared)};
}

}  // namespace vqkern
