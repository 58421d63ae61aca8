// Squared distances in float64, and their comparison in real arithmetic where float64 cannot decide.
#pragma once

#include <cstdint>

namespace vqkern {

// |z - e|^2 summed in float64, channel d in chain d mod 8; the relative error is below (dim + 3) * 2^-53.
double squared_distance(const float* z, const float* e, int64_t dim);

// Sign of |z - a|^2 - |z - b|^2 in real arithmetic, for finite float32 values.
int compare_distances(const float* z, const float* a, const float* b, int64_t dim);

// The nearest code met so far: the lexicographic minimum of (distance, index), whatever the order in
// which codes are offered.
class Nearest {
  public:
    Nearest() = default;
    Nearest(const float* z, const float* codes, int64_t dim) : z_(z), codes_(codes), dim_(dim) {}

    // Whether the code is now the nearest; one that is not finite never is. z must be.
    bool offer(int64_t code);

    int64_t index() const { return index_; }  // -1 if nothing was offered
    double distance() const { return distance_; }

  private:
    const float* z_ = nullptr;
    const float* codes_ = nullptr;
    int64_t dim_ = 0;
    int64_t index_ = -1;
    double distance_ = 0.0;
};

}  // namespace vqkern
