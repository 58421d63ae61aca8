// Exact nearest codes of float32 rows: certified screens, then exact rescoring of what they leave.
#pragma once

#include <cstdint>
#include <vector>

#include "screen.h"

namespace vqkern {

// What a search did, for those who want to see the certificate.
struct SearchCounts {
    int64_t certified;   // rows decided by a screen and exact rescoring
    int64_t candidates;  // codes rescored exactly for those rows
    int64_t scanned;     // rows served by a scan of all codes
    int64_t invalid;     // rows with a NaN or an infinity: index -1, distance +inf
};

// z [n][dim], codes [k][dim], both row-major; writes index [n] and distance [n]. Rows that one screen
// cannot decide go to the next, and after the last one to a scan of all codes.
SearchCounts nearest_code(const float* z, const float* codes, int64_t n, int64_t k, int64_t dim,
                          int64_t* index, float* distance, int threads,
                          const std::vector<const ScreenKernels*>& screens);

}  // namespace vqkern
