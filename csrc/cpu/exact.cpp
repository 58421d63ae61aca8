#include "exact.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace vqkern {
namespace {

// A sum of float64 parts that no rounding touches: non-overlapping, in order of growing magnitude
// (Shewchuk 1997, "Adaptive precision floating-point arithmetic", grow-expansion with zero
// elimination). Its last part has the sign of the whole.
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

    // Adds sign * a * b; the product of float32 differences never leaves the float64 range.
    void add_product(double a, double b, double sign) {
        const double product = a * b;
        add(sign * product);
        add(sign * std::fma(a, b, -product));
    }

    int sign() const { return parts_.empty() ? 0 : (parts_.back() > 0.0) - (parts_.back() < 0.0); }

  private:
    std::vector<double> parts_;
};

// a - b = high + low exactly.
void two_difference(double a, double b, double& high, double& low) {
    high = a - b;
    const double virtual_b = high - a;
    low = (a - (high - virtual_b)) - (b + virtual_b);
}

}  // namespace

double squared_distance(const float* z, const float* e, int64_t dim) {
    // Eight chains in pairs; any other order, or fused operations, would give other bits.
    typedef double Pair __attribute__((vector_size(16)));
    Pair sums[4] = {};
    const auto add = [&](int i, double z0, double z1, double e0, double e1) {
        const Pair difference = Pair{z0, z1} - Pair{e0, e1};
        sums[i] += difference * difference;
    };
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        for (int i = 0; i < 4; ++i) {
            add(i, z[d + 2 * i], z[d + 2 * i + 1], e[d + 2 * i], e[d + 2 * i + 1]);
        }
    }
    for (int i = 0; d < dim; d += 2, ++i) {
        const bool both = d + 1 < dim;
        add(i, z[d], both ? z[d + 1] : 0.0, e[d], both ? e[d + 1] : 0.0);
    }
    const Pair sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
    return sum[0] + sum[1];
}

int compare_distances(const float* z, const float* a, const float* b, int64_t dim) {
    // Duplicated codes are the usual tie. Values are compared, so that -0 equals 0.
    if (std::equal(a, a + dim, b)) return 0;
    Expansion total;
    for (int64_t d = 0; d < dim; ++d) {
        if (a[d] == b[d]) continue;
        double high, low;
        two_difference(z[d], a[d], high, low);
        total.add_product(high, high, 1.0);
        total.add_product(2.0 * high, low, 1.0);
        total.add_product(low, low, 1.0);
        two_difference(z[d], b[d], high, low);
        total.add_product(high, high, -1.0);
        total.add_product(2.0 * high, low, -1.0);
        total.add_product(low, low, -1.0);
    }
    return total.sign();
}

bool Nearest::offer(int64_t code) {
    const float* candidate = codes_ + code * dim_;
    const double distance = squared_distance(z_, candidate, dim_);
    if (!(distance <= std::numeric_limits<double>::max())) return false;
    if (index_ >= 0) {
        const double width = 2.0 * (dim_ + 3) * 0x1p-53 * std::max(distance, distance_);
        if (distance > distance_ + width) return false;
        if (distance >= distance_ - width) {
            const int sign = compare_distances(z_, candidate, codes_ + index_ * dim_, dim_);
            if (sign > 0 || (sign == 0 && code > index_)) return false;
        }
    }
    index_ = code;
    distance_ = distance;
    return true;
}

}  // namespace vqkern
