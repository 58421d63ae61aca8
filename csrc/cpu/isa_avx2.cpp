// The kernels for AVX2 with FMA.
#include <immintrin.h>

#include <cfloat>

#include "fma_peak.h"
#include "kernel_sums.h"
#include "moment_passes.h"
#include "screen.h"

namespace vqkern {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 12 accumulators, 2 codes and a broadcast in 16 registers

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec or3(Vec a, Vec b, Vec c) { return _mm256_or_ps(a, _mm256_or_ps(b, c)); }
inline bool any_negative(Vec a) { return _mm256_movemask_ps(a) != 0; }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec two_to(Vec n) {
    const Vec normal = _mm256_cmp_ps(n, _mm256_set1_ps(-126.0f), _CMP_GE_OQ);
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_and_ps(normal, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
inline float reduce_min(Vec a) {
    __m128 v = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_min_ps(v, _mm_movehl_ps(v, v));
    v = _mm_min_ss(v, _mm_shuffle_ps(v, v, 1));
    return _mm_cvtss_f32(v);
}

#include "flush_subnormals_x86.inc"
#include "screen.inc"

#include "kernel_sums.inc"

#include "fma_peak.inc"

using Wide = __m256d;
constexpr int kWideLanes = 4;
constexpr int kTile = 4;  // 8 sums, 2 vectors and a broadcast in 16 registers

inline Wide wide_load(const double* p) { return _mm256_loadu_pd(p); }
inline void wide_store(double* p, Wide v) { _mm256_storeu_pd(p, v); }
inline Wide wide_splat(double x) { return _mm256_set1_pd(x); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm256_fmadd_pd(a, b, c); }
inline Wide wide_add(Wide a, Wide b) { return _mm256_add_pd(a, b); }
inline Wide wide_sub(Wide a, Wide b) { return _mm256_sub_pd(a, b); }
inline Wide widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline void narrow(float* p, Wide v) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }

#include "moment_passes.inc"

}  // namespace

const ScreenKernels kScreenAvx2 = {Format::kFloat32, kRows, kGroup, 1, screen, score_group, nullptr};
const FmaLoop kFmaLoopAvx2 = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsAvx2 = {kRows, kGroup, kernel_sums};
const MomentKernels kMomentsAvx2 = {kTile, centre, gram, map};

}  // namespace vqkern
