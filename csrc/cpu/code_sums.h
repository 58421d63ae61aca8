// Segment sums: how many rows each code received, and their sum.
#pragma once

#include <cstdint>

namespace vqkern {

// z [n][dim], index [n] in [-1, k); writes count [k] and total [k][dim]. -1 is skipped.
void code_sums(const float* z, const int64_t* index, int64_t n, int64_t k, int64_t dim,
               int64_t* count, float* total, int threads);

}  // namespace vqkern
