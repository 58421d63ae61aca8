#include "codebook.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

namespace vqkern {
namespace {

constexpr double kUnit = 0x1p-24;
// What subnormal products and a flush-to-zero mode may lose, for codes scaled to norms below 1.
constexpr double kUnderflow = 0x1p-110;
constexpr int64_t kSlice = 4096;  // codes summed together, on any number of threads

int64_t padded(int64_t dim, Format format) {
    const int64_t step = channel_step(format);
    return (dim + step - 1) / step * step;
}

// The error of a sum of products relative to |z||e| + h. float32: a chain of dim + 1 operations, fused
// or not, both roundings of the vectors, and that of the half norm. bfloat16: the matrix unit adds pairs of chains of 16.
// int16: sums are exact; the half norm is that of a rounded code, in float32, times a scale.
double sum_error(int64_t dim, Format format) {
    switch (format) {
        case Format::kFloat32:
            return (dim + 8) * 1.01 * kUnit;
        case Format::kBf16:
            return (2 * dim + 64) * 1.01 * kUnit;
        case Format::kInt16:
            return 0x1p-21;
    }
    return 0.0;
}

}  // namespace

bool all_finite(const float* x, int64_t dim) {
    // x - x is 0 for finite x and NaN for the rest; no branch keeps the loop a vector loop.
    float sum = 0.0f;
    for (int64_t d = 0; d < dim; ++d) sum += x[d] - x[d];
    return sum == 0.0f;
}

float round_up(double x) {
    const float y = static_cast<float>(x);
    return y < x ? std::nextafterf(y, FLT_MAX) : y;
}

Codebook::Codebook(const float* codes, int64_t k, int64_t dim, int threads)
    : codes(codes), k(k), dim(dim), finite(k), centre(dim, 0.0f) {
            const int64_t slices = (k + kSlice - 1) / kSlice;
            std::vector<double> sums(slices * dim, 0.0);
            std::vector<float> least(slices * dim, FLT_MAX), largest(slices * dim, -FLT_MAX);
            std::vector<int64_t> counts(slices, 0);
#pragma omp parallel for num_threads(threads)
            for (int64_t s = 0; s < slices; ++s) {
                double* sum = &sums[s * dim];
                float *low = &least[s * dim], *high = &largest[s * dim];
                for (int64_t j = s * kSlice; j < std::min(k, (s + 1) * kSlice); ++j) {
                    const float* code = codes + j * dim;
                    finite[j] = all_finite(code, dim);
                    if (!finite[j]) continue;
                    counts[s] += 1;
                    for (int64_t d = 0; d < dim; ++d) {
                        sum[d] += code[d];
                        low[d] = code[d] < low[d] ? code[d] : low[d];
                        high[d] = code[d] > high[d] ? code[d] : high[d];
                    }
                }
            }
            int64_t count = 0;
            for (int64_t c : counts) count += c;
            if (count == 0) return;
            // Any centre is right; the mean makes the bounds tight.
            double longest = 0.0;
            for (int64_t d = 0; d < dim; ++d) {
                double sum = 0.0;
                float low = FLT_MAX, high = -FLT_MAX;
                for (int64_t s = 0; s < slices; ++s) {
                    sum += sums[s * dim + d];
                    low = std::min(low, least[s * dim + d]);
                    high = std::max(high, largest[s * dim + d]);
                }
                centre[d] = static_cast<float>(sum / static_cast<double>(count));
                const double reach = std::max(static_cast<double>(high) - centre[d],
                                              static_cast<double>(centre[d]) - low);
                longest += reach * reach;
            }
            int exponent = 0;
            if (longest > 0.0) std::frexp(std::sqrt(longest), &exponent);
            scale = std::ldexp(1.0, -exponent);
    fits_float = std::abs(exponent) < 100;
}

Packed::Packed(const Codebook& codebook, const ScreenKernels& kernels, int threads)
    : codebook_(codebook),
      kernels_(kernels),
      dim_(padded(codebook.dim, kernels.format)),
      count_((codebook.k + kernels.group_size - 1) / kernels.group_size),
      kappa_(sum_error(dim_, kernels.format)),
      values_(count_ * group_bytes() / sizeof(float)),
      half_norms_(count_ * kernels.group_size),
      groups_(count_) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<double> scratch((dim_ + 15) / 16 * 16 * kernels.group_size);
#pragma omp for
        for (int64_t g = 0; g < count_; ++g) pack_group(g, scratch.data());
    }
    std::vector<float> norms(count_);
    for (int64_t g = 0; g < count_; ++g) norms[g] = groups_[g].norm;
    std::nth_element(norms.begin(), norms.begin() + count_ / 2, norms.end());
    typical_norm_ = norms[count_ / 2];
}

// `scratch` has room for the group in float64, [group_size][dim padded to 16].
void Packed::pack_group(int64_t g, double* scratch) {
    const int size = kernels_.group_size;
    float* half_norms = half_norms_.data + g * size;
    void* packed = reinterpret_cast<char*>(values_.data) + g * group_bytes();
    GroupMeasure measure;
    if (kernels_.pack != nullptr && codebook_.fits_float) {
        const GroupSource source = {codebook_.codes + g * size * codebook_.dim,
                                    &codebook_.finite[g * size],
                                    std::min<int64_t>(size, codebook_.k - g * size),
                                    codebook_.dim,
                                    codebook_.centre.data(),
                                    static_cast<float>(codebook_.scale)};
        measure = kernels_.pack(source, dim_, packed, half_norms,
                                reinterpret_cast<float*>(scratch));
    } else {
        measure = pack_precisely(g, packed, half_norms, scratch);
    }
    Group& group = groups_[g];
    group.scale = measure.scale;
    group.norm = round_up(std::max(std::sqrt(measure.longest), kShortest) * kInflate);
    group.residual = round_up(measure.residual * kInflate);
    group.half_norm = round_up(measure.longest / 2 * kInflate);
    group.largest = round_up(kappa_ * measure.longest / 2 * kInflate + kUnderflow);
}

GroupMeasure Packed::pack_precisely(int64_t g, void* packed, float* half_norms,
                                    double* values) const {
    const int size = kernels_.group_size;
    GroupMeasure measure = {0.0, 0.0, 1.0f};
    for (int j = 0; j < size; ++j) {
        const int64_t code = g * size + j;
        double* out = values + j * dim_;
        std::fill(out, out + dim_, 0.0);
        half_norms[j] = std::numeric_limits<float>::infinity();
        if (code >= codebook_.k || !codebook_.finite[code]) continue;
        const float* in = codebook_.codes + code * codebook_.dim;
        double squared = 0.0;
        for (int64_t d = 0; d < codebook_.dim; ++d) {
            out[d] = codebook_.centred(in[d], d);
            squared += out[d] * out[d];
        }
        half_norms[j] = static_cast<float>(squared / 2);
        measure.longest = std::max(measure.longest, squared);
    }
    if (kernels_.format == Format::kInt16) {
        const double norm = std::max(std::sqrt(measure.longest), kShortest);
        measure.scale = static_cast<float>(kInt16Norm / norm);
    }
    for (int j = 0; j < size; ++j) {
        const double* from = values + j * dim_;
        Rounded rounded = {0.0, 0.0};
        switch (kernels_.format) {
            case Format::kFloat32: {
                float* to = static_cast<float*>(packed) + j;
                for (int64_t d = 0; d < dim_; ++d) to[d * size] = static_cast<float>(from[d]);
                break;
            }
            case Format::kInt16: {
                int16_t* to = static_cast<int16_t*>(packed) + 2 * j;
                rounded = round_int16(from, dim_, measure.scale, 1.0,
                                      [=](int64_t d) { return to + d / 2 * size * 2 + d % 2; });
                break;
            }
            case Format::kBf16: {
                uint16_t* to = static_cast<uint16_t*>(packed);
                rounded = round_bf16(from, dim_, 1.0,
                                     [=](int64_t d) { return to + bf16_code_place(j, d); });
                break;
            }
        }
        measure.residual = std::max(measure.residual, rounded.residual);
    }
    return measure;
}

}  // namespace vqkern
