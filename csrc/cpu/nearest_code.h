// Exact nearest codes: certified screens, then exact measuring of what they leave.
#pragma once

#include <cstdint>
#include <vector>

#include "cell_kernels.h"
#include "screen.h"
#include "squared_distance.h"

namespace vqkern {

struct SearchKernels {
    std::vector<const ScreenKernels*> screens;  // cheapest first
    const CellKernels* cells;                   // or null: no search meets fewer than all codes
    const ScreenKernels* few;                   // for few codes, or null
    SquaredDistance squared_distance;
};

// What a search did, for those who want to see the certificate.
struct SearchCounts {
    int64_t certified;   // rows decided by a screen and exact measuring
    int64_t candidates;  // codes measured for those rows
    int64_t scanned;     // rows served by measuring all codes
    int64_t invalid;     // rows with a NaN or an infinity: index -1, distance +inf
    int64_t scores;      // that the screens computed; rows in few channels need not meet all codes
};

// z [n][dim], codes [k][dim], both row-major, float or double; writes index [n] and distance [n], squared
// L2 distances or 1 - cosine. The cosine of a zero row with any code is 0, and it takes the first; a zero code is
// taken only where all are zero.
template <typename T>
SearchCounts nearest_code(const T* z, const T* codes, int64_t n, int64_t k, int64_t dim, bool cosine,
                          int64_t* index, T* distance, int threads,
                          const SearchKernels& kernels);

}  // namespace vqkern
