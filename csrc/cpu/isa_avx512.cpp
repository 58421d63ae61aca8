// The kernels for AVX-512 (F, BW, DQ, VL).
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

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRows = 12;  // 24 accumulators, 2 codes and a broadcast in 32 registers
constexpr int kPairRows = 8;

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec scale_by(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }
struct LaneSums {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    void add(Vec a) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
    }
    double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};
inline void transpose(const float* from, float* to) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * kBlock);
    // Pairs of rows, then fours, inside each 128-bit part; then the parts.
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        for (int h = 0; h < 2; ++h) {
            const __m512d even = _mm512_castps_pd(b[i + h]), odd = _mm512_castps_pd(b[i + 2 + h]);
            a[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd));
            a[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512 c = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd);
        const __m512 e = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
        const __m512 f = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
        _mm512_storeu_ps(to + i * kBlock, _mm512_shuffle_f32x4(c, e, 0x88));
        _mm512_storeu_ps(to + (4 + i) * kBlock, _mm512_shuffle_f32x4(d, f, 0x88));
        _mm512_storeu_ps(to + (8 + i) * kBlock, _mm512_shuffle_f32x4(c, e, 0xdd));
        _mm512_storeu_ps(to + (12 + i) * kBlock, _mm512_shuffle_f32x4(d, f, 0xdd));
    }
}
inline void add_to(double* p, Vec a) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    _mm512_storeu_pd(p, _mm512_add_pd(_mm512_loadu_pd(p), low));
    _mm512_storeu_pd(p + 8, _mm512_add_pd(_mm512_loadu_pd(p + 8), high));
}
inline float reduce_min(Vec a) { return _mm512_reduce_min_ps(a); }
inline uint32_t not_above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }

#include "at_most_avx512.inc"
#include "flush_subnormals_x86.inc"
#include "screen.inc"
#include "few_codes.inc"

using Scalar = float;
#include "exp2_fraction.inc"
#include "kernel_sums.inc"

namespace wide {

using Scalar = double;
using Vec = __m512d;
constexpr int kLanes = 8;

inline Vec load(const double* p) { return _mm512_loadu_pd(p); }
inline void store(double* p, Vec v) { _mm512_storeu_pd(p, v); }
inline Vec broadcast(const double* p) { return _mm512_set1_pd(*p); }
inline Vec splat(double x) { return _mm512_set1_pd(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm512_min_pd(a, b); }
inline Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
inline Vec round(Vec a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec scale_by(Vec p, Vec n) { return _mm512_scalef_pd(p, n); }
inline void add_to(double* p, Vec a) { store(p, add(load(p), a)); }
struct LaneSums {
    Vec sum = _mm512_setzero_pd();
    void add(Vec a) { sum = _mm512_add_pd(sum, a); }
    double total() const { return _mm512_reduce_add_pd(sum); }
};
#include "exp2_fraction_wide.inc"
#include "transpose_wide.inc"
#include "kernel_sums.inc"

}  // namespace wide

#include "fma_peak.inc"

using Wide = __m512d;
constexpr int kWideLanes = 8;
constexpr int kWideTile = 8;  // 16 sums, 2 vectors and a broadcast in 32 registers

inline Wide wide_load(const double* p) { return _mm512_loadu_pd(p); }
inline void wide_store(double* p, Wide v) { _mm512_storeu_pd(p, v); }
inline Wide wide_splat(double x) { return _mm512_set1_pd(x); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm512_fmadd_pd(a, b, c); }
inline Wide wide_add(Wide a, Wide b) { return _mm512_add_pd(a, b); }
inline Wide wide_sub(Wide a, Wide b) { return _mm512_sub_pd(a, b); }
inline Wide wide_mul(Wide a, Wide b) { return _mm512_mul_pd(a, b); }
template <int kStep>
inline Wide wide_turn(Wide v) {
    const __m512i bits = _mm512_castpd_si512(v);
    return _mm512_castsi512_pd(_mm512_alignr_epi64(bits, bits, kStep));
}
inline Wide wide_low_halves(Wide a, Wide b) { return _mm512_shuffle_f64x2(a, b, 0x44); }
inline Wide wide_high_halves(Wide a, Wide b) { return _mm512_shuffle_f64x2(a, b, 0xee); }
inline Wide widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline void narrow(float* p, Wide v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }

#include "moment_passes.inc"
#include "rotations.inc"
#include "squared_distance.inc"

// float32 keeps its values; their one rounding is part of the screen's error.
template <Format>
inline int64_t quantize(float*, int64_t, int64_t padded, float, bool, float& residual, int32_t& sum) {
    residual = 0.0f;
    sum = 0;
    return padded;
}
inline void place_column(int32_t* out, int64_t word, int first, int lanes, __mmask16 there,
                         __m512i column) {
    _mm512_mask_storeu_epi32(out + word * lanes + first, there, column);
}

#include "pack_avx512.inc"

#include "cells.inc"

}  // namespace

const ScreenKernels kScreenAvx512 = {
    {Format::kFloat32, RowLayout::kByChannel, kRows, kTile, kMostGroupTiles, centre,
     place<Format::kFloat32, kRows, kTile>},
    1, screen, screen_few};
const CellKernels kCellsAvx512 = {
    {Format::kFloat32, RowLayout::kByChannel, kPanelRows, kCellCodes, 1, centre,
     place<Format::kFloat32, kPanelRows, kCellCodes>},
    meet_cells};
const FmaLoop kFmaLoopAvx512 = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsAvx512 = {pairs<false>, pairs<true>, wide::pairs<false>};
const MomentKernels kMomentsAvx512 = {kWideTile, add_rows, map_rows, orthogonalise};
const SquaredDistance kSquaredDistanceAvx512 = squared_distance;

}  // namespace vqkern
