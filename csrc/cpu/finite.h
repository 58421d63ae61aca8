// Whether all of some numbers are finite.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vqkern {

// No branch, and no sum of floats, which keeps its order, holds up a vector loop.
inline bool all_finite(const float* x, int64_t count) {
    constexpr uint32_t kExponent = 0x7f800000;  // all of its bits: an infinity or a NaN
    uint32_t found = 0;
    for (int64_t d = 0; d < count; ++d) {
        uint32_t bits;
        std::memcpy(&bits, x + d, sizeof bits);
        found |= (bits & kExponent) == kExponent;
    }
    return found == 0;
}
inline bool all_finite(const double* x, int64_t count) {
    bool finite = true;
    for (int64_t d = 0; d < count; ++d) finite = finite && std::isfinite(x[d]);
    return finite;
}

}  // namespace vqkern
