// The int16 screen for AVX-512 VNNI: 32 products an instruction, twice the rate of float32, and exact.
#include <immintrin.h>

#include "screen.h"

namespace vqkern {
namespace {

constexpr int kRows = 12;   // 24 accumulators, 2 codes and a broadcast in 32 registers
constexpr int kGroup = 32;  // codes, two vectors of 16 scores

// The compiler's intrinsic keeps the accumulators in memory; one instruction on registers does not.
inline void multiply_add(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// Half norms in units of this panel and group. Those beyond 2^29, and the infinite ones of codes that
// are not there, are cut: a score that is too low can only make a candidate too many, as long as it
// does not count as an upper bound. Products stay below 2^29, so no score leaves 32 bits.
constexpr float kCut = 0x1p29f;
constexpr int32_t kCutUnits = 1 << 29;

inline __m512i half_norms(const float* values, __m512 unit) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(values), unit);
    return _mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(kCut)));
}

// The bounds of the rows in whole units, rounded up, less one: a score qualifies if score - bound - 1 is
// negative. Cut so that the difference stays in 32 bits; scores lie between -2^29 and 2^30.
inline __m512i bounds(__m512 upper, __m512 delta, __m512 unit) {
    const __m512 bound = _mm512_mul_ps(_mm512_add_ps(upper, delta), unit);
    const __m512 cut = _mm512_max_ps(_mm512_min_ps(bound, _mm512_set1_ps(0x1p30f)),
                                     _mm512_set1_ps(-0x1p29f - 64));
    const __m512i whole =
        _mm512_cvt_roundps_epi32(cut, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    return _mm512_add_epi32(whole, _mm512_set1_epi32(1));
}

void screen(const void* rows, const PackedCodes& codes, int64_t begin, int64_t end, Panel& panel) {
    const int32_t* z_pairs = static_cast<const int32_t*>(rows);
    const int64_t pairs = codes.dim / 2;
    const __m512 slope = _mm512_load_ps(panel.slope), spread = _mm512_load_ps(panel.spread);
    for (int64_t g = begin; g < end; ++g) {
        const Group& group = codes.groups[g];
        const __m512i* values =
            static_cast<const __m512i*>(codes.values) + g * pairs * (kGroup / 16);
        const float unit = panel.scale * group.scale;
        const __m512 delta =
            _mm512_fmadd_ps(slope, _mm512_set1_ps(group.norm),
                            _mm512_fmadd_ps(spread, _mm512_set1_ps(group.residual),
                                            _mm512_set1_ps(group.largest)));
        alignas(64) int32_t start[16];
        _mm512_store_si512(start,
                           bounds(_mm512_load_ps(panel.upper), delta, _mm512_set1_ps(unit)));
        // From memory they are broadcast for free; from a register by a shuffle each.
        asm volatile("" ::"m"(start) : "memory");
        const __m512i first = half_norms(codes.half_norms + g * kGroup, _mm512_set1_ps(unit));
        const __m512i second = half_norms(codes.half_norms + g * kGroup + 16, _mm512_set1_ps(unit));
        __m512i low[kRows], high[kRows];
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
            low[r] = _mm512_sub_epi32(first, _mm512_set1_epi32(start[r]));
            high[r] = _mm512_sub_epi32(second, _mm512_set1_epi32(start[r]));
        }
        for (int64_t d = 0; d < pairs; ++d) {
            const __m512i a = _mm512_load_si512(values + 2 * d);
            const __m512i b = _mm512_load_si512(values + 2 * d + 1);
#pragma GCC unroll 12
            for (int r = 0; r < kRows; ++r) {
                const __m512i z = _mm512_set1_epi32(z_pairs[d * kRows + r]);
                multiply_add(low[r], z, a);
                multiply_add(high[r], z, b);
            }
        }
        // One sign bit tells whether any of the 384 scores qualifies.
        __m512i any = _mm512_or_si512(low[0], high[0]);
#pragma GCC unroll 12
        for (int r = 1; r < kRows; ++r) any = _mm512_ternarylogic_epi32(any, low[r], high[r], 0xfe);
        if (__builtin_expect(_mm512_movepi32_mask(any) != 0, 0)) {
            alignas(64) __m512i least[kRows];
#pragma GCC unroll 12
            for (int r = 0; r < kRows; ++r) {
                _mm512_store_si512(&least[r], _mm512_min_epi32(low[r], high[r]));
            }
            alignas(64) float deltas[16];
            _mm512_store_ps(deltas, delta);
            for (int r = 0; r < kRows; ++r) {
                const __m512i scores = _mm512_load_si512(&least[r]);
                if (_mm512_movepi32_mask(scores) == 0) continue;
                const int32_t score = _mm512_reduce_min_epi32(scores) + start[r];
                const bool lowers = score < kCutUnits && unit * group.half_norm < kCut;
                append(panel, r, g, static_cast<float>(score) / unit, deltas[r], lowers);
            }
        }
    }
}

void score_group(const void* rows, int row, const PackedCodes& codes, int64_t g, const Panel& panel,
                 float* scores) {
    const int32_t* z_pairs = static_cast<const int32_t*>(rows);
    const int64_t pairs = codes.dim / 2;
    const float unit = panel.scale * codes.groups[g].scale;
    const __m512i* values = static_cast<const __m512i*>(codes.values) + g * pairs * (kGroup / 16);
    __m512i low = half_norms(codes.half_norms + g * kGroup, _mm512_set1_ps(unit));
    __m512i high = half_norms(codes.half_norms + g * kGroup + 16, _mm512_set1_ps(unit));
    for (int64_t d = 0; d < pairs; ++d) {
        const __m512i z = _mm512_set1_epi32(z_pairs[d * kRows + row]);
        multiply_add(low, z, _mm512_load_si512(values + 2 * d));
        multiply_add(high, z, _mm512_load_si512(values + 2 * d + 1));
    }
    const __m512 back = _mm512_set1_ps(1.0f / unit);
    _mm512_storeu_ps(scores, _mm512_mul_ps(_mm512_cvtepi32_ps(low), back));
    _mm512_storeu_ps(scores + 16, _mm512_mul_ps(_mm512_cvtepi32_ps(high), back));
}

// Two channels in 32 bits; the residual also owns up to the rounding of the centred code and of 1/scale.
int64_t quantize(float* rows, int64_t stride, int64_t padded, GroupMeasure& measure) {
    const double norm = __builtin_sqrt(measure.longest);
    measure.scale = static_cast<float>(kInt16Norm / (norm > kShortest ? norm : kShortest));
    const __m512 scale = _mm512_set1_ps(measure.scale), unit = _mm512_set1_ps(1.0f / measure.scale);
    float worst = 0.0f;
    for (int j = 0; j < kGroup; ++j) {
        float* row = rows + j * stride;
        int16_t* out = reinterpret_cast<int16_t*>(row);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t d = 0; d < stride; d += 16) {
            const __m512 v = _mm512_loadu_ps(row + d);
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v, scale));
            const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), unit, v);
            squares = _mm512_fmadd_ps(rest, rest, squares);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), _mm512_cvtepi32_epi16(whole));
        }
        const float sum = _mm512_reduce_add_ps(squares);
        worst = sum > worst ? sum : worst;
    }
    measure.residual = __builtin_sqrt(worst) * (1 + 0x1p-10) + 0x1p-22 * norm + 0x1p-60;
    return padded / 2;
}
inline int64_t word_place(int64_t word, int half) { return word * 32 + half * 16; }

#include "pack_avx512.inc"

}  // namespace

const ScreenKernels kScreenAvx512Vnni = {Format::kInt16, kRows, kGroup, 1, screen,
                                        score_group,     pack};

}  // namespace vqkern
