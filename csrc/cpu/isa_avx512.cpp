// The kernels for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include <cfloat>

#include "fma_peak.h"
#include "kernel_sums.h"
#include "moment_passes.h"
#include "screen.h"

namespace vqkern {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRows = 12;  // 24 accumulators, 2 codes and a broadcast in 32 registers

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
inline Vec two_to(Vec n) {
    const __mmask16 normal = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
    return _mm512_maskz_scalef_ps(normal, _mm512_set1_ps(1.0f), n);
}
inline float reduce_min(Vec a) { return _mm512_reduce_min_ps(a); }
inline Vec or3(Vec a, Vec b, Vec c) {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(a), _mm512_castps_si512(b), _mm512_castps_si512(c), 0xfe));
}
inline bool any_negative(Vec a) { return _mm512_movepi32_mask(_mm512_castps_si512(a)) != 0; }

#include "flush_subnormals_x86.inc"
#include "screen.inc"

#include "kernel_sums.inc"

#include "fma_peak.inc"

using Wide = __m512d;
constexpr int kWideLanes = 8;
constexpr int kTile = 8;  // 16 sums, 2 vectors and a broadcast in 32 registers

inline Wide wide_load(const double* p) { return _mm512_loadu_pd(p); }
inline void wide_store(double* p, Wide v) { _mm512_storeu_pd(p, v); }
inline Wide wide_splat(double x) { return _mm512_set1_pd(x); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm512_fmadd_pd(a, b, c); }
inline Wide wide_add(Wide a, Wide b) { return _mm512_add_pd(a, b); }
inline Wide wide_sub(Wide a, Wide b) { return _mm512_sub_pd(a, b); }
inline Wide widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline void narrow(float* p, Wide v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }

#include "moment_passes.inc"

// float32 keeps its values; their one rounding is part of the screen's error.
inline int64_t quantize(float*, int64_t, int64_t padded, GroupMeasure&) { return padded; }
inline int64_t word_place(int64_t word, int half) { return word * 32 + half * 16; }

#include "pack_avx512.inc"


}  // namespace

const ScreenKernels kScreenAvx512 = {Format::kFloat32, kRows, kGroup, 1, screen, score_group, pack};
const FmaLoop kFmaLoopAvx512 = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsAvx512 = {kRows, kGroup, kernel_sums};
const MomentKernels kMomentsAvx512 = {kTile, centre, gram, map};

}  // namespace vqkern
