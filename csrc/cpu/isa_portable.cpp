// The kernels for any CPU, on the compiler's own 4-wide vectors (SSE2, NEON, ...).
#include <cfloat>
#include <cstring>

#include "cell_kernels.h"
#include "fma_peak.h"
#include "kernel_sums.h"
#include "moment_passes.h"
#include "screen.h"
#include "squared_distance.h"

namespace vqkern {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kPairRows = 4;
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
    // Adding 1.5 * 2^23 leaves no room for a fraction below 2^22; larger numbers are cut, and still large.
    const Vec big = splat(12582912.0f);
    return (max(a, splat(-4194304.0f)) + big) - big;
}
inline Vec scale_by(Vec p, Vec n) {
    const IntVec normal = n >= splat(-126.0f);
    // What is cut is not normal; its conversion would not be defined.
    const IntVec whole = __builtin_convertvector(max(n, splat(-127.0f)), IntVec);
    const IntVec bits = ((IntVec)p + (whole << 23)) & normal;  // the cast keeps the bits
    return (Vec)bits;
}
struct LaneSums {
    double sum = 0.0;
    void add(Vec a) {
        for (int i = 0; i < kLanes; ++i) sum += a[i];
    }
    double total() const { return sum; }
};
inline void transpose(const float* from, float* to) {
    for (int i = 0; i < kLanes; ++i) {
        for (int j = 0; j < kLanes; ++j) to[j * kBlock + i] = from[i * kBlock + j];
    }
}
inline void add_to(double* p, Vec a) {
    for (int i = 0; i < kLanes; ++i) p[i] += a[i];
}
inline float reduce_min(Vec a) {
    float least = a[0];
    for (int i = 1; i < kLanes; ++i) least = a[i] < least ? a[i] : least;
    return least;
}

inline uint32_t not_above(Vec a, Vec b) {
    uint32_t mask = 0;
    for (int i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(a[i] <= b[i]) << i;
    return mask;
}
inline uint32_t at_most(const float* a, float limit) {
    uint32_t mask = 0;
    for (int i = 0; i < 2 * kLanes; ++i) mask |= static_cast<uint32_t>(a[i] <= limit) << i;
    return mask;
}
inline uint32_t at_most_each(const float* a, const float* b) {
    uint32_t mask = 0;
    for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(a[i] <= b[i]) << i;
    return mask;
}

struct FlushSubnormals {
    FlushSubnormals() {}
    ~FlushSubnormals() {}
};

#include "screen.inc"
#include "few_codes.inc"

using Scalar = float;
#include "exp2_fraction.inc"
#include "kernel_sums.inc"

namespace wide {

using Scalar = double;
typedef double Vec __attribute__((vector_size(16)));
typedef int64_t IntVec __attribute__((vector_size(16)));
constexpr int kLanes = 2;

inline Vec load(const double* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(double* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(const double* p) { return Vec{*p, *p}; }
inline Vec splat(double x) { return Vec{x, x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
// Adding 1.5 * 2^52 leaves no room for a fraction below 2^51; larger numbers are cut, and still large.
inline Vec round(Vec a) { return (max(a, splat(-0x1p51)) + splat(0x1.8p52)) - splat(0x1.8p52); }
inline Vec scale_by(Vec p, Vec n) {
    const IntVec normal = n >= splat(-1022.0);
    const IntVec whole = (IntVec)(max(n, splat(-1023.0)) + splat(0x1.8p52));  // in the low bits
    const IntVec bits = ((IntVec)p + (whole << 52)) & normal;
    return (Vec)bits;
}
inline void add_to(double* p, Vec a) { store(p, add(load(p), a)); }
struct LaneSums {
    Vec sum = Vec{0.0, 0.0};
    void add(Vec a) { sum = sum + a; }
    double total() const { return sum[0] + sum[1]; }
};
#include "exp2_fraction_wide.inc"
#include "transpose_wide.inc"
#include "kernel_sums.inc"

}  // namespace wide

#include "fma_peak.inc"

typedef double Wide __attribute__((vector_size(16)));
constexpr int kWideLanes = 2;
constexpr int kWideTile = 4;

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
inline Wide wide_mul(Wide a, Wide b) { return a * b; }
template <int kStep>
inline Wide wide_turn(Wide v) {
    return kStep % 2 == 0 ? v : Wide{v[1], v[0]};
}
inline Wide wide_low_halves(Wide a, Wide b) { return Wide{a[0], b[0]}; }
inline Wide wide_high_halves(Wide a, Wide b) { return Wide{a[1], b[1]}; }
inline Wide widen(const float* p) { return Wide{p[0], p[1]}; }
inline void narrow(float* p, Wide v) {
    p[0] = static_cast<float>(v[0]);
    p[1] = static_cast<float>(v[1]);
}

#include "moment_passes.inc"
#include "rotations.inc"
#include "squared_distance.inc"

#include "cells.inc"

}  // namespace

const ScreenKernels kScreenPortable = {
    {Format::kFloat32, RowLayout::kByChannel, kRows, kTile, kMostGroupTiles, nullptr, nullptr}, 1, screen,
    screen_few};
const CellKernels kCellsPortable = {
    {Format::kFloat32, RowLayout::kByChannel, kPanelRows, kCellCodes, 1, nullptr, nullptr},
    meet_cells};
const FmaLoop kFmaLoopPortable = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsPortable = {pairs<false>, pairs<true>, wide::pairs<false>};
const MomentKernels kMomentsPortable = {kWideTile, add_rows, map_rows, orthogonalise};
const SquaredDistance kSquaredDistancePortable = squared_distance;

}  // namespace vqkern
