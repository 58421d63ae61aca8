// The kernels for AVX2 with FMA.
#include <immintrin.h>

#include <cfloat>

#include "screen.h"

namespace vqkern {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 12 accumulators, 2 codes and a broadcast in 16 registers

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline bool any_less_equal(Vec a, float bound) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_set1_ps(bound), _CMP_LE_OQ)) != 0;
}
inline float reduce_min(Vec a) {
    __m128 v = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_min_ps(v, _mm_movehl_ps(v, v));
    v = _mm_min_ss(v, _mm_shuffle_ps(v, v, 1));
    return _mm_cvtss_f32(v);
}

#include "screen.inc"

}  // namespace

const ScreenKernels kScreenAvx2 = {"AVX2", kRows, kGroup, screen, score_group};

}  // namespace vqkern
