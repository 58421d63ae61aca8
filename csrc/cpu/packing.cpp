#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vqkern {
namespace {

// The nearest whole number, for |x| < 2^51; nearbyint would be a library call on plain x86-64.
double round_whole(double x) {
    constexpr double kBig = 0x1.8p52;
    return (x + kBig) - kBig;
}

}  // namespace

Packer::Packer(const Codebook& codebook, const PackKernels& kernels, bool rows, int64_t most)
    : codebook_(codebook),
      kernels_(kernels),
      rows_(rows),
      fast_(kernels.place != nullptr && codebook.fits_float),
      dim_(padded_dim(codebook.dim, kernels)),
      stride_((dim_ + 15) / 16 * 16),
      lanes_(rows ? kernels.rows : kernels.tile),
      vectors_(fast_ ? most * stride_ : 0),
      centred_(fast_ ? 0 : most * dim_),
      squared_(most),
      residual_(most),
      widest_(most),
      rest_(most),
      sum_(most) {}

void Packer::centre(const float* const* vectors, int64_t count) {
    const double sign = rows_ ? -1.0 : 1.0;
    if (fast_) {
        const VectorSource source = {vectors, count, codebook_.dim, codebook_.centre.data(),
                                     static_cast<float>(sign * codebook_.scale)};
        kernels_.centre(source, stride_, vectors_.data, squared_.data(), widest_.data());
        return;
    }
    std::fill(centred_.begin(), centred_.end(), 0.0);
    for (int64_t j = 0; j < count; ++j) {
        squared_[j] = 0.0;
        double widest = 0.0;
        for (int64_t d = 0; vectors[j] != nullptr && d < codebook_.dim; ++d) {
            const double x = sign * codebook_.centred(vectors[j][d], d);
            centred_[j * dim_ + d] = x;
            squared_[j] += x * x;
            widest = std::max(widest, std::fabs(x));
        }
        widest_[j] = round_up(widest);
    }
}

void Packer::place(int64_t first, int64_t count, float scale, void* values) {
    if (!fast_) return place_precisely(first, count, scale, values);
    kernels_.place(vectors_.data + first * stride_, static_cast<int>(count), stride_, dim_, scale,
                   rows_, values, &rest_[first], &sum_[first]);
    for (int64_t j = first; j < first + count; ++j) {
        residual_[j] =
            rest_[j] * (1 + 0x1p-10) + 0x1p-22 * std::sqrt(squared_[j]) + 0x1p-60;
    }
}

void Packer::place_precisely(int64_t first, int64_t count, double scale, void* values) {
    const double unit = 1.0 / scale;
    const int lanes = lanes_;
    const bool in_turn = rows_ && kernels_.row_layout == RowLayout::kInTurn;
    std::memset(values, 0, lanes * dim_ * bytes_of(kernels_.format));
    for (int64_t j = 0; j < count; ++j) {
        const double* from = &centred_[(first + j) * dim_];
        double residual = 0.0;
        int32_t sum = 0;
        for (int64_t d = 0; d < dim_; ++d) {
            double rounded = from[d];
            switch (kernels_.format) {
                case Format::kFloat32:  // the residuals are part of kappa
                    static_cast<float*>(values)[d * lanes + j] = static_cast<float>(from[d]);
                    break;
                case Format::kInt16: {
                    const double whole = round_whole(from[d] * scale);
                    static_cast<int16_t*>(values)[(d / 2 * lanes + j) * 2 + d % 2] =
                        static_cast<int16_t>(whole);
                    rounded = whole * unit;
                    break;
                }
                case Format::kInt8: {
                    const double whole = round_whole(from[d] * scale);
                    const int offset = rows_ ? 0 : 128;
                    const int64_t place = in_turn ? j * dim_ + d : (d / 4 * lanes + j) * 4 + d % 4;
                    static_cast<uint8_t*>(values)[place] =
                        static_cast<uint8_t>(static_cast<int>(whole) + offset);
                    sum += static_cast<int32_t>(whole);
                    rounded = whole * unit;
                    break;
                }
            }
            residual += (from[d] - rounded) * (from[d] - rounded);
        }
        residual_[first + j] = std::sqrt(residual);
        sum_[first + j] = sum;
    }
}

}  // namespace vqkern
