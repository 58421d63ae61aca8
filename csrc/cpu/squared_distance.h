// |a - b|^2 in float64, the same bits whatever the instruction set.
#pragma once

#include <cstdint>

namespace vqkern {

using SquaredDistance = double (*)(const float* a, const float* b, int64_t dim);

extern const SquaredDistance kSquaredDistancePortable;
#ifdef VQKERN_X86
extern const SquaredDistance kSquaredDistanceAvx2;
extern const SquaredDistance kSquaredDistanceAvx512;
#endif

}  // namespace vqkern
