// The kernels for AVX2 with FMA.
#include <immintrin.h>

#include <cfloat>

#include "cell_kernels.h"
#include "fma_peak.h"
#include "kernel_sums.h"
#include "moment_passes.h"
#include "screen.h"
#include "squared_distance.h"

namespace vqkern {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kPairRows = 4;
constexpr int kRows = 6;  // 12 accumulators, 2 codes and a broadcast in 16 registers

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec scale_by(Vec p, Vec n) {
    const Vec normal = _mm256_cmp_ps(n, _mm256_set1_ps(-126.0f), _CMP_GE_OQ);
    const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(p), shift);
    return _mm256_and_ps(normal, _mm256_castsi256_ps(scaled));
}
struct LaneSums {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    void add(Vec a) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    }
    double total() const {
        const __m256d four = _mm256_add_pd(low, high);
        const __m128d two =
            _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }
};
inline void transpose(const float* from, float* to) {
    Vec a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a[i] = load(from + i * kBlock);
    // Pairs of rows, then fours, inside each 128-bit half; then the halves.
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        for (int h = 0; h < 2; ++h) {
            a[i + 2 * h] = _mm256_shuffle_ps(b[i + h], b[i + 2 + h], 0x44);
            a[i + 2 * h + 1] = _mm256_shuffle_ps(b[i + h], b[i + 2 + h], 0xee);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        store(to + i * kBlock, _mm256_permute2f128_ps(a[i], a[4 + i], 0x20));
        store(to + (4 + i) * kBlock, _mm256_permute2f128_ps(a[i], a[4 + i], 0x31));
    }
}
inline void add_to(double* p, Vec a) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), low));
    _mm256_storeu_pd(p + 4, _mm256_add_pd(_mm256_loadu_pd(p + 4), high));
}
inline float reduce_min(Vec a) {
    __m128 v = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_min_ps(v, _mm_movehl_ps(v, v));
    v = _mm_min_ss(v, _mm_shuffle_ps(v, v, 1));
    return _mm_cvtss_f32(v);
}

inline uint32_t not_above(Vec a, Vec b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
}
inline uint32_t at_most(const float* a, float limit) {
    return not_above(load(a), splat(limit)) | not_above(load(a + 8), splat(limit)) << 8;
}
inline uint32_t at_most_each(const float* a, const float* b) {
    return not_above(load(a), load(b)) | not_above(load(a + 8), load(b + 8)) << 8;
}

#include "flush_subnormals_x86.inc"
#include "screen.inc"
#include "few_codes.inc"

using Scalar = float;
#include "exp2_fraction.inc"
#include "kernel_sums.inc"

namespace wide {

using Scalar = double;
using Vec = __m256d;
constexpr int kLanes = 4;

inline Vec load(const double* p) { return _mm256_loadu_pd(p); }
inline void store(double* p, Vec v) { _mm256_storeu_pd(p, v); }
inline Vec broadcast(const double* p) { return _mm256_broadcast_sd(p); }
inline Vec splat(double x) { return _mm256_set1_pd(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm256_min_pd(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_pd(a, b); }
inline Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_pd(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_pd(a, b); }
inline Vec round(Vec a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec scale_by(Vec p, Vec n) {
    const Vec normal = _mm256_cmp_pd(n, _mm256_set1_pd(-1022.0), _CMP_GE_OQ);
    // The low bits of n + 1.5 * 2^52 are those of the whole number n.
    const Vec shifted = add(max(n, splat(-1023.0)), splat(0x1.8p52));
    const __m256i shift = _mm256_slli_epi64(_mm256_castpd_si256(shifted), 52);
    const __m256i scaled = _mm256_add_epi64(_mm256_castpd_si256(p), shift);
    return _mm256_and_pd(normal, _mm256_castsi256_pd(scaled));
}
inline void add_to(double* p, Vec a) { store(p, add(load(p), a)); }
struct LaneSums {
    Vec sum = _mm256_setzero_pd();
    void add(Vec a) { sum = _mm256_add_pd(sum, a); }
    double total() const {
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }
};
#include "exp2_fraction_wide.inc"
#include "transpose_wide.inc"
#include "kernel_sums.inc"

}  // namespace wide

#include "fma_peak.inc"

using Wide = __m256d;
constexpr int kWideLanes = 4;
constexpr int kWideTile = 4;  // 8 sums, 2 vectors and a broadcast in 16 registers

inline Wide wide_load(const double* p) { return _mm256_loadu_pd(p); }
inline void wide_store(double* p, Wide v) { _mm256_storeu_pd(p, v); }
inline Wide wide_splat(double x) { return _mm256_set1_pd(x); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm256_fmadd_pd(a, b, c); }
inline Wide wide_add(Wide a, Wide b) { return _mm256_add_pd(a, b); }
inline Wide wide_sub(Wide a, Wide b) { return _mm256_sub_pd(a, b); }
inline Wide wide_mul(Wide a, Wide b) { return _mm256_mul_pd(a, b); }
template <int kStep>
inline Wide wide_turn(Wide v) {
    return _mm256_permute4x64_pd(v, kStep == 1 ? 0x39 : kStep == 2 ? 0x4e : 0x93);
}
inline Wide wide_low_halves(Wide a, Wide b) { return _mm256_permute2f128_pd(a, b, 0x20); }
inline Wide wide_high_halves(Wide a, Wide b) { return _mm256_permute2f128_pd(a, b, 0x31); }
inline Wide widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline void narrow(float* p, Wide v) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }

#include "moment_passes.inc"
#include "rotations.inc"
#include "squared_distance.inc"

#include "cells.inc"

}  // namespace

const ScreenKernels kScreenAvx2 = {
    {Format::kFloat32, RowLayout::kByChannel, kRows, kTile, kMostGroupTiles, nullptr, nullptr}, 1, screen,
    screen_few};
const CellKernels kCellsAvx2 = {
    {Format::kFloat32, RowLayout::kByChannel, kPanelRows, kCellCodes, 1, nullptr, nullptr},
    meet_cells};
const FmaLoop kFmaLoopAvx2 = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsAvx2 = {pairs<false>, pairs<true>, wide::pairs<false>};
const MomentKernels kMomentsAvx2 = {kWideTile, add_rows, map_rows, orthogonalise};
const SquaredDistance kSquaredDistanceAvx2 = squared_distance;

}  // namespace vqkern
