#include "exact.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace vqkern {
namespace {

// a - b = high + low exactly.
void two_difference(double a, double b, double& high, double& low) {
    high = a - b;
    const double virtual_b = high - a;
    low = (a - (high - virtual_b)) - (b + virtual_b);
}

// A sum of float64 parts that no rounding touches: non-overlapping, in order of growing magnitude
// (Shewchuk 1997, "Adaptive precision floating-point arithmetic", grow-expansion with zero
// elimination). Its last part has the sign of the whole. For products that stay in float64's range.
class Expansion {
  public:
    void add(double value) {
        size_t kept = 0;
        for (double part : parts_) {
            const double sum = value + part;
            const double virtual_part = sum - value;
            const double error = (value - (sum - virtual_part)) + (part - virtual_part);
            if (error != 0.0) parts_[kept++] = error;
            value = sum;
        }
        parts_.resize(kept);
        if (value != 0.0) parts_.push_back(value);
    }

    void add_product(double a, double b) {
        const double product = a * b;
        add(product);
        add(std::fma(a, b, -product));
    }

    int sign() const { return parts_.empty() ? 0 : (parts_.back() > 0.0) - (parts_.back() < 0.0); }

  private:
    std::vector<double> parts_;
};

// A whole number of units of 2^-2148, the smallest product of two float64 numbers: it holds any sum of
// such products, two's complement in 32-bit limbs (Kulisch's long accumulator).
class LongSum {
  public:
    LongSum() : limbs_(kLimbs, 0) {}

    void add_product(double a, double b) {
        if (a == 0.0 || b == 0.0) return;
        int exponent_a, exponent_b;
        const int64_t whole_a = static_cast<int64_t>(std::ldexp(std::frexp(a, &exponent_a), 53));
        const int64_t whole_b = static_cast<int64_t>(std::ldexp(std::frexp(b, &exponent_b), 53));
        const __int128 product = static_cast<__int128>(whole_a) * whole_b;
        // Subnormal numbers have zeros where this would reach below the unit.
        int place = exponent_a + exponent_b - 106 + 2148;
        unsigned __int128 magnitude = product < 0 ? -static_cast<unsigned __int128>(product)
                                                  : static_cast<unsigned __int128>(product);
        if (place < 0) {
            magnitude >>= -place;
            place = 0;
        }
        const int shift = place % 32;
        // 106 bits and a shift of up to 31 make five limbs.
        uint64_t carry = 0;
        uint32_t parts[5];
        for (int i = 0; i < 5; ++i) {
            const uint64_t word = (static_cast<uint64_t>(static_cast<uint32_t>(magnitude)) << shift) + carry;
            parts[i] = static_cast<uint32_t>(word);
            carry = word >> 32;
            magnitude >>= 32;
        }
        add_limbs(parts, place / 32, product < 0);
    }

    bool negative() const { return limbs_.back() >> 31; }

    int sign() const {
        if (negative()) return -1;
        return std::any_of(limbs_.begin(), limbs_.end(), [](uint32_t v) { return v != 0; });
    }

    // |this|, as limbs without a sign.
    std::vector<uint32_t> magnitude() const {
        std::vector<uint32_t> result = limbs_;
        if (!negative()) return result;
        uint64_t carry = 1;
        for (uint32_t& limb : result) {
            carry += static_cast<uint32_t>(~limb);
            limb = static_cast<uint32_t>(carry);
            carry >>= 32;
        }
        return result;
    }

  private:
    // 2148 bits below one, 2048 above, and 64 for sums of 2^63 products.
    static constexpr int kLimbs = (2148 + 2048 + 64) / 32 + 1;

    void add_limbs(const uint32_t* parts, int at, bool subtract) {
        int64_t carry = 0;
        for (int i = 0; at + i < kLimbs && (i < 5 || carry != 0); ++i) {
            const int64_t part = i < 5 ? parts[i] : 0;
            carry += static_cast<int64_t>(limbs_[at + i]) + (subtract ? -part : part);
            limbs_[at + i] = static_cast<uint32_t>(carry);
            carry >>= 32;
        }
    }

    std::vector<uint32_t> limbs_;
};

std::vector<uint32_t> multiply(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
    std::vector<uint32_t> result(a.size() + b.size(), 0);
    for (size_t i = 0; i < a.size(); ++i) {
        uint64_t carry = 0;
        for (size_t j = 0; a[i] != 0 && j < b.size(); ++j) {
            carry += static_cast<uint64_t>(a[i]) * b[j] + result[i + j];
            result[i + j] = static_cast<uint32_t>(carry);
            carry >>= 32;
        }
        result[i + b.size()] += static_cast<uint32_t>(carry);
    }
    return result;
}

int compare(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
    for (size_t i = std::max(a.size(), b.size()); i-- > 0;) {
        const uint32_t x = i < a.size() ? a[i] : 0, y = i < b.size() ? b[i] : 0;
        if (x != y) return x > y ? 1 : -1;
    }
    return 0;
}

// Whole numbers, as those of lattices are, need no expansion: whether all are, and the difference of the sums.
bool difference_of_whole(const float* z, const float* a, const float* b, int64_t dim,
                                int64_t& difference) {
    constexpr float kMost = 0x1p20f;  // squares of differences stay below 2^42
    if (dim > int64_t{1} << 20) return false;
    int64_t sum = 0;
    for (int64_t d = 0; d < dim; ++d) {
        const float most = std::max(std::max(std::fabs(z[d]), std::fabs(a[d])), std::fabs(b[d]));
        if (!(most <= kMost)) return false;
        const int64_t zi = static_cast<int32_t>(z[d]), ai = static_cast<int32_t>(a[d]),
                      bi = static_cast<int32_t>(b[d]);
        const bool whole = static_cast<float>(zi) == z[d] && static_cast<float>(ai) == a[d] &&
                           static_cast<float>(bi) == b[d];
        if (!whole) return false;
        sum += (zi - ai) * (zi - ai) - (zi - bi) * (zi - bi);
    }
    difference = sum;
    return true;
}

}  // namespace

int compare_distances(const float* z, const float* a, const float* b, int64_t dim) {
    // Duplicated codes are the usual tie. Values are compared, so that -0 equals 0.
    if (std::equal(a, a + dim, b)) return 0;
    int64_t difference;
    if (difference_of_whole(z, a, b, dim, difference)) return (difference > 0) - (difference < 0);
    Expansion total;  // products of float32 differences never leave the float64 range
    const auto add_square = [&total](double x, double y, double sign) {
        double high, low;
        two_difference(x, y, high, low);
        total.add_product(sign * high, high);
        total.add_product(2.0 * sign * high, low);
        total.add_product(sign * low, low);
    };
    for (int64_t d = 0; d < dim; ++d) {
        if (a[d] == b[d]) continue;
        add_square(z[d], a[d], 1.0);
        add_square(z[d], b[d], -1.0);
    }
    return total.sign();
}

int compare_distances(const double* z, const double* a, const double* b, int64_t dim) {
    if (std::equal(a, a + dim, b)) return 0;
    LongSum total;  // of a^2 - b^2 - 2 z a + 2 z b
    for (int64_t d = 0; d < dim; ++d) {
        if (a[d] == b[d]) continue;
        total.add_product(a[d], a[d]);
        total.add_product(b[d], -b[d]);
        for (int twice = 0; twice < 2; ++twice) {
            total.add_product(z[d], -a[d]);
            total.add_product(z[d], b[d]);
        }
    }
    return total.sign();
}

namespace {

template <typename T>
int cosines(const T* z, const T* a, const T* b, int64_t dim) {
    if (std::equal(a, a + dim, b)) return 0;
    LongSum za, zb, aa, bb;
    for (int64_t d = 0; d < dim; ++d) {
        za.add_product(z[d], a[d]);
        zb.add_product(z[d], b[d]);
        aa.add_product(a[d], a[d]);
        bb.add_product(b[d], b[d]);
    }
    const int sign_a = za.sign(), sign_b = zb.sign();
    if (sign_a != sign_b) return sign_a > sign_b ? -1 : 1;
    if (sign_a == 0) return 0;
    // cos(z, a) > cos(z, b) where (z.a)^2 |b|^2 > (z.b)^2 |a|^2, or the other way round below zero.
    const auto left = multiply(multiply(za.magnitude(), za.magnitude()), bb.magnitude());
    const auto right = multiply(multiply(zb.magnitude(), zb.magnitude()), aa.magnitude());
    return -sign_a * compare(left, right);
}

}  // namespace

int compare_cosines(const float* z, const float* a, const float* b, int64_t dim) {
    return cosines(z, a, b, dim);
}
int compare_cosines(const double* z, const double* a, const double* b, int64_t dim) {
    return cosines(z, a, b, dim);
}

}  // namespace vqkern
