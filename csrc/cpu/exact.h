// Signs of differences in real arithmetic, for the ties that float64 cannot decide.
#pragma once

#include <cstdint>

namespace vqkern {

// Sign of |z - a|^2 - |z - b|^2, for finite values.
int compare_distances(const float* z, const float* a, const float* b, int64_t dim);
int compare_distances(const double* z, const double* a, const double* b, int64_t dim);

// Sign of cos(z, b) - cos(z, a): negative where a is nearer. Finite values, a and b not zero.
int compare_cosines(const float* z, const float* a, const float* b, int64_t dim);
int compare_cosines(const double* z, const double* a, const double* b, int64_t dim);

}  // namespace vqkern
