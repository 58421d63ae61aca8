// What "nearest" means: exact comparisons of two codes for a row, and the float64 estimate before them.
//
// A measure gives row i and code k a key, less for nearer codes, right up to `width` of either key; the keys
// of codes that cannot be chosen are not finite. `squared(i, key)` is the squared distance behind it in the
// space that the screens search, and `distance(i, key)` what the caller gets.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "exact.h"
#include "squared_distance.h"

namespace vqkern {

// The two sums run in eight chains, channel d in chain d mod 8, in pairs: another order, or fused operations,
// would give other bits.
typedef double Pair __attribute__((vector_size(16)));

template <typename T, typename Term>
double sum_in_pairs(const T* a, const T* b, int64_t dim, Term term) {
    Pair sums[4] = {};
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        for (int i = 0; i < 4; ++i) {
            sums[i] += term(Pair{a[d + 2 * i], a[d + 2 * i + 1]}, Pair{b[d + 2 * i], b[d + 2 * i + 1]});
        }
    }
    for (int i = 0; d < dim; d += 2, ++i) {
        const bool both = d + 1 < dim;
        sums[i] += term(Pair{a[d], both ? a[d + 1] : 0.0}, Pair{b[d], both ? b[d + 1] : 0.0});
    }
    const Pair sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
    return sum[0] + sum[1];
}

// Asks for a code's values; the first lines do, the others follow by themselves.
template <typename T>
void prefetch_code(const T* code, int64_t dim) {
    const char* bytes = reinterpret_cast<const char*>(code);
    const int64_t size = dim * static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < size && at < 1024; at += 64) __builtin_prefetch(bytes + at);
}

// argmin |z - e|^2. float64 values are brought near 1 by a power of two first, so that squares neither
// overflow nor, next to the largest of them, matter where they underflow.
template <typename T>
struct SquaredL2 {
    const T *z, *codes;
    int64_t dim;
    double scale;        // of the keys; 1 for float
    double screen_unit;  // squared distances of the screens, in those of the keys
    SquaredDistance in_float;  // of float vectors

    double key(int64_t i, int64_t k) const {
        if constexpr (sizeof(T) == 4) return in_float(z + i * dim, codes + k * dim, dim);
        const Pair s = {scale, scale};
        return sum_in_pairs(z + i * dim, codes + k * dim, dim, [s](Pair a, Pair b) {
            const Pair difference = a * s - b * s;
            return difference * difference;
        });
    }
    void prefetch(int64_t k) const { prefetch_code(codes + k * dim, dim); }
    // What underflow may lose is below 2^-1000 in any case; a subnormal width would cost a trap an addition.
    double width(double key) const { return (dim + 3) * (0x1p-53 * key + 0x1p-1000); }
    int compare(int64_t i, int64_t a, int64_t b) const {
        return compare_distances(z + i * dim, codes + a * dim, codes + b * dim, dim);
    }
    double squared(int64_t, double key) const { return key * screen_unit; }
    // For some of the codes, copied.
    SquaredL2 among(const T* copies, const std::vector<int64_t>&) const {
        return {z, copies, dim, scale, screen_unit, in_float};
    }
    double distance(int64_t, double key) const {
        return sizeof(T) == 4 ? key : key / scale / scale;
    }
};

// argmax z.e / |e|; the key is minus the cosine. Each vector has a power of two that brings it near 1, and a
// norm after that; neither rows nor codes are zero.
template <typename T>
struct Cosine {
    const T *z, *codes;
    int64_t dim;
    struct Length {
        double scale, norm;
    };
    std::vector<Length> rows, of_codes;

    double key(int64_t i, int64_t k) const {
        const Pair a_scale = {rows[i].scale, rows[i].scale};
        const Pair b_scale = {of_codes[k].scale, of_codes[k].scale};
        const double dot = sum_in_pairs(
            z + i * dim, codes + k * dim, dim,
            [a_scale, b_scale](Pair a, Pair b) { return (a * a_scale) * (b * b_scale); });
        return -dot / (rows[i].norm * of_codes[k].norm);
    }
    void prefetch(int64_t k) const { prefetch_code(codes + k * dim, dim); }
    double width(double) const { return (2 * dim + 20) * 0x1p-53; }
    int compare(int64_t i, int64_t a, int64_t b) const {
        return compare_cosines(z + i * dim, codes + a * dim, codes + b * dim, dim);
    }
    double squared(int64_t, double key) const { return 2.0 * (1.0 + key); }
    // For some of the codes, copied.
    Cosine among(const T* copies, const std::vector<int64_t>& of) const {
        Cosine some = {z, copies, dim, rows, {}};
        for (int64_t k : of) some.of_codes.push_back(of_codes[k]);
        return some;
    }
    double distance(int64_t, double key) const { return std::fmin(std::fmax(1.0 + key, 0.0), 2.0); }
};

// The nearest code met so far: the lexicographic minimum of (distance, index), whatever the order in
// which codes are offered.
template <typename Measure>
class Nearest {
  public:
    Nearest() = default;
    Nearest(const Measure& measure, int64_t row) : measure_(&measure), row_(row) {}

    // Whether the code is now the nearest; one that is not finite never is. The row must be.
    bool offer(int64_t code) {
        const double key = measure_->key(row_, code);
        if (!(std::fabs(key) <= std::numeric_limits<double>::max())) return false;
        if (code_ >= 0) {
            const double width = measure_->width(key) + measure_->width(key_);
            if (key > key_ + width) return false;
            if (key >= key_ - width) {
                const int sign = measure_->compare(row_, code, code_);
                if (sign > 0 || (sign == 0 && code > code_)) return false;
            }
        }
        code_ = code;
        key_ = key;
        return true;
    }

    int64_t code() const { return code_; }  // -1 if none was finite
    double squared() const { return measure_->squared(row_, key_); }
    double distance() const {
        return code_ < 0 ? std::numeric_limits<double>::infinity()
                         : measure_->distance(row_, key_);
    }

  private:
    const Measure* measure_ = nullptr;
    int64_t row_ = 0, code_ = -1;
    double key_ = 0.0;
};

}  // namespace vqkern
