// The kernels for any CPU, on the compiler's own 4-wide vectors (SSE2, NEON, ...).
#include <cfloat>
#include <cstring>

#include "screen.h"

namespace vqkern {
namespace {

typedef float Vec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kRows = 6;

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(const float* p) { return Vec{*p, *p, *p, *p}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline float reduce_min(Vec a) {
    float least = a[0];
    for (int i = 1; i < kLanes; ++i) least = a[i] < least ? a[i] : least;
    return least;
}
inline bool any_less_equal(Vec a, float bound) {
    return (a[0] <= bound) | (a[1] <= bound) | (a[2] <= bound) | (a[3] <= bound);
}

#include "screen.inc"

}  // namespace

const ScreenKernels kScreenPortable = {"portable", kRows, kGroup, screen, score_group};

}  // namespace vqkern
