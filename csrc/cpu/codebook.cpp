#include "codebook.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "packing.h"

namespace vqkern {
namespace {

constexpr double kUnit = 0x1p-24;
// What subnormal products and a flush-to-zero mode may lose, for codes scaled to norms below 1.
constexpr double kUnderflow = 0x1p-110;
// So many codes does the centre come from, of few at most one in eight; so many the scale.
constexpr int64_t kMostSampled = 243, kLeastSampled = 9, kNormsSampled = 27;
// Codes longer than this, in units of a typical one, set the scale: their scores must stay in range.
constexpr double kLongestCode = 0x1p30;

// A row is screened against a group in about as long as it takes to look at the result.
int tiles_of_group(int64_t dim, const PackKernels& kernels) {
    const int64_t few = 16 * kernels.tile / dim;
    return static_cast<int>(std::min<int64_t>(kernels.most_tiles, std::max<int64_t>(1, few)));
}

// The error of a sum of products relative to |z||e| + h. float32: a chain of dim + 1 operations, fused
// or not, both roundings of the vectors, and that of the half norm.
// Integers: sums are exact; the half norm is that of a rounded code, in float32, times a scale.
double sum_error(int64_t dim, Format format) {
    switch (format) {
        case Format::kFloat32:
            return (dim + 8) * 1.01 * kUnit;
        case Format::kInt16:
        case Format::kInt8:
            return 0x1p-21;
    }
    return 0.0;
}

// Of 3^m rows, the first becomes a median in each channel: of medians of three, and of three of those, and so on.
// A fifth of 81 may be anywhere without moving it far (Rousseeuw and Bassett 1990: the remedian).
void take_median(float* rows, int64_t count, int64_t dim) {
    for (count /= 3; count > 0; count /= 3) {
        for (int64_t i = 0; i < count; ++i) {
            float* to = rows + i * dim;
            const float* from = rows + 3 * i * dim;
#pragma omp simd
            for (int64_t d = 0; d < dim; ++d) {
                const float a = from[d], b = from[dim + d], c = from[2 * dim + d];
                to[d] = std::max(std::min(a, b), std::min(std::max(a, b), c));
            }
        }
    }
}

}  // namespace

Codebook::Codebook(const Screened& screened)
    : codes(screened.codes),
      k(screened.k),
      dim(screened.dim),
      relative(screened.relative),
      absolute(screened.absolute),
      centre(dim, 0.0f) {
    // Any centre is right; a median makes the bounds tight, and a few codes far out do not move it.
    const int64_t wanted = std::clamp(k / 8, kLeastSampled, kMostSampled);
    std::vector<const float*> sample;
    for (int64_t i = 0, before = -1; i < wanted; ++i) {
        const int64_t j = i * k / wanted;
        if (j != before && all_finite(codes + j * dim, dim)) sample.push_back(codes + j * dim);
        before = j;
    }
    if (sample.empty()) return;
    if (!screened.centred) {
        int64_t count = 1;
        while (3 * count <= static_cast<int64_t>(sample.size())) count *= 3;
        std::vector<float> rows(count * dim);
        for (int64_t i = 0; i < count; ++i) {
            std::copy_n(sample[i * sample.size() / count], dim, rows.data() + i * dim);
        }
        take_median(rows.data(), count, dim);
        std::copy_n(rows.data(), dim, centre.data());
    }
    const size_t of_norms = std::min<size_t>(kNormsSampled, sample.size());
    std::vector<double> norms(of_norms);
    for (size_t i = 0; i < of_norms; ++i) norms[i] = norm(sample[i * sample.size() / of_norms]);
    std::nth_element(norms.begin(), norms.begin() + of_norms / 2, norms.end());
    set_scale(norms[of_norms / 2]);
}

double Codebook::norm(const float* code) const {
    double squared = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
        const double x = static_cast<double>(code[d]) - static_cast<double>(centre[d]);
        squared += x * x;
    }
    return std::sqrt(squared);
}

void Codebook::set_scale(double length) {
    int exponent = 0;
    if (length > 0.0) std::frexp(length, &exponent);
    scale = std::ldexp(1.0, -exponent);
    unscale = std::ldexp(1.0, 2 * exponent);
    fits_float = std::abs(exponent) < 100;
}

Packed::Packed(Codebook& codebook, const PackKernels& kernels, const int32_t* order, int threads)
    : codebook_(codebook),
      kernels_(kernels),
      order_(order),
      dim_(padded_dim(codebook.dim, kernels)),
      tiles_((codebook.k + kernels.tile - 1) / kernels.tile),
      group_tiles_(tiles_of_group(dim_, kernels)),
      kappa_(sum_error(dim_, kernels.format)),
      values_(tiles_ * tile_bytes() / sizeof(float)),
      half_norms_(tiles_ * kernels.tile),
      groups_((tiles_ + group_tiles_ - 1) / group_tiles_) {
    const double longest = std::sqrt(pack(threads));
    if (longest > kLongestCode) {
        codebook.set_scale(longest / codebook.scale);
        pack(threads);
    }
    std::vector<float> norms(groups_.size());
    for (size_t g = 0; g < groups_.size(); ++g) norms[g] = groups_[g].norm;
    std::nth_element(norms.begin(), norms.begin() + norms.size() / 2, norms.end());
    typical_norm_ = norms[norms.size() / 2];
}

double Packed::pack(int threads) {
    const int64_t most = group_tiles_ * kernels_.tile;
    double longest = 0.0;
    bool usable = false;
#pragma omp parallel num_threads(threads) reduction(max : longest) reduction(|| : usable) \
    if (codebook_.k * dim_ > kForOneThread)
    {
        Packer packer(codebook_, kernels_, false, most);
        std::vector<const float*> vectors(most);
#pragma omp for
        for (int64_t g = 0; g < groups(); ++g) {
            longest = std::max(longest, pack_group(g, packer, vectors.data()));
            const float* halves = half_norms_.data + g * most;
            const int64_t there = std::min(most, codebook_.k - g * most);
            usable = usable || std::any_of(halves, halves + there, [](float h) { return h <= FLT_MAX; });
        }
    }
    usable_ = usable;
    return longest;
}

double Packed::pack_group(int64_t g, Packer& packer, const float** vectors) {
    const int64_t first_tile = g * group_tiles_, first = first_tile * kernels_.tile;
    const int64_t tiles = std::min<int64_t>(group_tiles_, tiles_ - first_tile);
    const int64_t count = tiles * kernels_.tile;
    for (int64_t j = 0; j < count; ++j) {
        const bool there = first + j < codebook_.k;
        vectors[j] = there ? codebook_.codes + code_at(first + j) * codebook_.dim : nullptr;
    }
    packer.centre(vectors, count);
    bool all = true;
    for (int64_t j = 0; j < count && first + j < codebook_.k; ++j) {
        // An ordinary norm can only be that of an ordinary code.
        const bool finite = packer.squared(j) <= DBL_MAX || all_finite(vectors[j], codebook_.dim);
        if (!finite) vectors[j] = nullptr;
        all = all && finite;
    }
    if (!all) packer.centre(vectors, count);

    double longest = 0.0, widest = 0.0, residual = 0.0;
    for (int64_t j = 0; j < count; ++j) {
        half_norms_.data[first + j] = vectors[j] == nullptr
                                          ? std::numeric_limits<float>::infinity()
                                          : static_cast<float>(packer.squared(j) / 2);
        longest = std::max(longest, packer.squared(j));
        widest = std::max(widest, packer.widest(j));
    }
    const double norm = std::max(std::sqrt(longest), kShortest);
    Group& group = groups_[g];
    group.scale = 1.0f;
    if (kernels_.format == Format::kInt16) group.scale = static_cast<float>(kInt16Norm / norm);
    if (kernels_.format == Format::kInt8) {
        group.scale = static_cast<float>(kInt8Most / std::max(widest, kShortest));
    }
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t place = first_tile + t, j = t * kernels_.tile;
        packer.place(j, kernels_.tile, group.scale,
                     reinterpret_cast<char*>(values_.data) + place * tile_bytes());
        for (int i = 0; i < kernels_.tile; ++i) {
            residual = std::max(residual, packer.residual(j + i));
        }
    }
    group.norm = round_up(norm * kInflate);
    group.residual = round_up(residual * kInflate);
    group.half_norm = round_up(longest / 2 * kInflate);
    const double stand_ins = 1.01 * codebook_.relative * longest +
                             codebook_.absolute * codebook_.scale * codebook_.scale;
    group.largest = round_up((kappa_ * longest / 2 + stand_ins) * kInflate + kUnderflow);
    return longest;
}

float Packed::row_scale(double longest, double widest) const {
    // Rows near the centre do not get finer units than the half norms of the codes have room for.
    switch (kernels_.format) {
        case Format::kInt16:
            return static_cast<float>(kInt16Norm / std::max({longest, typical_norm_, kShortest}));
        case Format::kInt8:
            return static_cast<float>(
                kInt8Most / std::max({widest, typical_norm_ / 4096, kShortest}));
        default:
            return 1.0f;
    }
}

}  // namespace vqkern
