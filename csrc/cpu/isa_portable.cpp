// The kernels for any CPU, on the compiler's own 4-wide vectors (SSE2, NEON, ...).
#include <cfloat>
#include <cstring>

#include "fma_peak.h"
#include "kernel_sums.h"
#include "moment_passes.h"
#include "screen.h"

namespace vqkern {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kRows = 6;

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(const float* p) { return Vec{*p, *p, *p, *p}; }
inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec round(Vec a) {
    // Adding 1.5 * 2^23 leaves no room for a fraction; good for |a| < 2^22.
    const Vec big = splat(12582912.0f);
    return (a + big) - big;
}
inline Vec two_to(Vec n) {
    const IntVec normal = n >= splat(-126.0f);
    const IntVec biased = (__builtin_convertvector(n, IntVec) + 127) << 23;
    const IntVec bits = biased & normal;
    Vec result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
inline float reduce_min(Vec a) {
    float least = a[0];
    for (int i = 1; i < kLanes; ++i) least = a[i] < least ? a[i] : least;
    return least;
}
// Casts between vector types keep the bits.
inline Vec or3(Vec a, Vec b, Vec c) { return (Vec)((IntVec)a | (IntVec)b | (IntVec)c); }
inline bool any_negative(Vec a) {
    const IntVec bits = (IntVec)a;
    return ((bits[0] | bits[1]) | (bits[2] | bits[3])) < 0;
}

struct FlushSubnormals {
    FlushSubnormals() {}
    ~FlushSubnormals() {}
};

#include "screen.inc"

#include "kernel_sums.inc"

#include "fma_peak.inc"

typedef double Wide __attribute__((vector_size(16)));
constexpr int kWideLanes = 2;
constexpr int kTile = 4;

inline Wide wide_load(const double* p) {
    Wide v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void wide_store(double* p, Wide v) { std::memcpy(p, &v, sizeof v); }
inline Wide wide_splat(double x) { return Wide{x, x}; }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return a * b + c; }
inline Wide wide_add(Wide a, Wide b) { return a + b; }
inline Wide wide_sub(Wide a, Wide b) { return a - b; }
inline Wide widen(const float* p) { return Wide{p[0], p[1]}; }
inline void narrow(float* p, Wide v) {
    p[0] = static_cast<float>(v[0]);
    p[1] = static_cast<float>(v[1]);
}

#include "moment_passes.inc"

}  // namespace

const ScreenKernels kScreenPortable = {Format::kFloat32, kRows, kGroup, 1, screen, score_group, nullptr};
const FmaLoop kFmaLoopPortable = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsPortable = {kRows, kGroup, kernel_sums};
const MomentKernels kMomentsPortable = {kTile, centre, gram, map};

}  // namespace vqkern
