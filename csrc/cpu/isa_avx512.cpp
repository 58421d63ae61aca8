// The kernels for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include <cfloat>

#include "fma_peak.h"
#include "kernel_sums.h"
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

#include "at_most_avx512.inc"
#include "flush_subnormals_x86.inc"
#include "screen.inc"

#include "kernel_sums.inc"

#include "fma_peak.inc"

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

}  // namespace

const ScreenKernels kScreenAvx512 = {Format::kFloat32, kRows,  kTile, 1,
                                     screen,           centre, place<Format::kFloat32>};
const FmaLoop kFmaLoopAvx512 = {2 * kChains * kLanes, fma_rounds};
const KernelSumKernels kKernelSumsAvx512 = {kRows, kTile, kernel_sums};

}  // namespace vqkern
