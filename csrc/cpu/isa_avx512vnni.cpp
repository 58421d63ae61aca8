// The int16 and int8 screens for AVX-512 VNNI: 32 or 64 products an instruction, twice or four times the
// rate of float32, and exact.
#include <immintrin.h>

#include "screen.h"

namespace vqkern {
namespace {

constexpr int kRows = 12;  // 24 accumulators, 2 codes and a broadcast in 32 registers
constexpr int kTile = 32;  // codes, two vectors of 16 scores

// Lane r is the least lane of v[r]: sixteen minima at the price of four.
inline __m512i least_of_each(const __m512i* v) {
    __m512i quarter[4];
    for (int i = 0; i < 4; ++i) {
        const __m512i* u = v + 4 * i;
        // Pairs of rows in alternate lanes, then fours.
        const __m512i a = _mm512_min_epi32(_mm512_unpacklo_epi32(u[0], u[1]),
                                           _mm512_unpackhi_epi32(u[0], u[1]));
        const __m512i b = _mm512_min_epi32(_mm512_unpacklo_epi32(u[2], u[3]),
                                           _mm512_unpackhi_epi32(u[2], u[3]));
        quarter[i] =
            _mm512_min_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // Each 128-bit part of quarter[i] holds rows 4 i to 4 i + 3; the four parts are yet to be joined.
    const __m512i a = _mm512_min_epi32(_mm512_shuffle_i32x4(quarter[0], quarter[1], 0x44),
                                       _mm512_shuffle_i32x4(quarter[0], quarter[1], 0xee));
    const __m512i b = _mm512_min_epi32(_mm512_shuffle_i32x4(quarter[2], quarter[3], 0x44),
                                       _mm512_shuffle_i32x4(quarter[2], quarter[3], 0xee));
    return _mm512_min_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// The compiler's intrinsics keep the accumulators in memory; one instruction on registers does not. The int8
// instruction wants one unsigned factor: codes are offset by 128, and the rows know what that adds.
template <Format format>
inline void multiply_add(__m512i& sum, __m512i z, __m512i codes) {
    if constexpr (format == Format::kInt8) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(z));
    } else {
        asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(z));
    }
}

// Half norms in units of this panel and group. Those beyond 2^29, and the infinite ones of codes that
// are not there, are cut: a score that is too low can only make a candidate too many. Products stay below
// 2^29, so no score leaves 32 bits.
constexpr float kCut = 0x1p29f;
constexpr int32_t kCutUnits = 1 << 29;

inline __m512i half_norms(const float* values, __m512 unit) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(values), unit);
    return _mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(kCut)));
}

inline int64_t last_tile(const PackedCodes& codes, int64_t g) {
    const int64_t end = (g + 1) * codes.group_tiles;
    return end < codes.tiles ? end : codes.tiles;
}

inline const __m512i* tile_values(const PackedCodes& codes, int64_t tile, int64_t words) {
    return static_cast<const __m512i*>(codes.values) + tile * words * 2;
}

template <Format format>
bool least_of_rows(const void* rows, const PackedCodes& codes, int64_t g, const Panel& panel,
                   float* scores) {
    const int32_t* z_words = static_cast<const int32_t*>(rows);
    const int64_t words = codes.dim / channel_step(format);
    const float unit_value = panel.scale * codes.groups[g].scale;
    const __m512 unit = _mm512_set1_ps(unit_value);
    alignas(64) __m512i least[16];
    for (int r = 0; r < 16; ++r) least[r] = _mm512_set1_epi32(INT32_MAX);
    for (int64_t tile = g * codes.group_tiles; tile < last_tile(codes, g); ++tile) {
        const __m512i* values = tile_values(codes, tile, words);
        const __m512i first = half_norms(codes.half_norms + tile * kTile, unit);
        const __m512i second = half_norms(codes.half_norms + tile * kTile + 16, unit);
        __m512i low[kRows], high[kRows];
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
            low[r] = first;
            high[r] = second;
        }
        for (int64_t w = 0; w < words; ++w) {
            const __m512i a = _mm512_load_si512(values + 2 * w);
            const __m512i b = _mm512_load_si512(values + 2 * w + 1);
            _mm_prefetch(values + 2 * w + 32, _MM_HINT_T0);
            _mm_prefetch(values + 2 * w + 33, _MM_HINT_T0);
#pragma GCC unroll 12
            for (int r = 0; r < kRows; ++r) {
                const __m512i z = _mm512_set1_epi32(z_words[w * kRows + r]);
                multiply_add<format>(low[r], z, a);
                multiply_add<format>(high[r], z, b);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
            least[r] = _mm512_min_epi32(least[r], _mm512_min_epi32(low[r], high[r]));
        }
    }
    const __m512i units =
        _mm512_sub_epi32(least_of_each(least), _mm512_load_si512(panel.shift));
    _mm512_store_ps(scores, _mm512_mul_ps(_mm512_cvtepi32_ps(units), _mm512_set1_ps(1 / unit_value)));
    // A half norm that was cut bounds nothing.
    constexpr __mmask16 kOfRows = (1 << kRows) - 1;
    return unit_value * codes.groups[g].half_norm < kCut &&
           _mm512_mask_cmpge_epi32_mask(kOfRows, units, _mm512_set1_epi32(kCutUnits)) == 0;
}

template <Format format>
float scores_of_row(const void* rows, const PackedCodes& codes, int64_t g, int r, const Panel& panel,
                   float* scores) {
    const int32_t* z_words = static_cast<const int32_t*>(rows);
    const int64_t words = codes.dim / channel_step(format);
    const float unit_value = panel.scale * codes.groups[g].scale;
    const __m512 unit = _mm512_set1_ps(unit_value), back = _mm512_set1_ps(1 / unit_value);
    const __m512i shift = _mm512_set1_epi32(panel.shift[r]);
    __m512i least = _mm512_set1_epi32(INT32_MAX);
    for (int64_t tile = g * codes.group_tiles; tile < last_tile(codes, g); ++tile) {
        const __m512i* values = tile_values(codes, tile, words);
        __m512i low = half_norms(codes.half_norms + tile * kTile, unit);
        __m512i high = half_norms(codes.half_norms + tile * kTile + 16, unit);
        low = _mm512_sub_epi32(low, shift);
        high = _mm512_sub_epi32(high, shift);
        for (int64_t w = 0; w < words; ++w) {
            const __m512i z = _mm512_set1_epi32(z_words[w * kRows + r]);
            multiply_add<format>(low, z, _mm512_load_si512(values + 2 * w));
            multiply_add<format>(high, z, _mm512_load_si512(values + 2 * w + 1));
        }
        least = _mm512_min_epi32(least, _mm512_min_epi32(low, high));
        _mm512_store_ps(scores, _mm512_mul_ps(_mm512_cvtepi32_ps(low), back));
        _mm512_store_ps(scores + 16, _mm512_mul_ps(_mm512_cvtepi32_ps(high), back));
        scores += kTile;
    }
    return static_cast<float>(_mm512_reduce_min_epi32(least)) * (1 / unit_value);
}

// The residual also owns up to the rounding of the centred vector and of 1 / scale.
template <Format format>
inline int64_t quantize(float* vector, int64_t stride, int64_t padded, float scale_value, bool rows,
                        float& residual, int32_t& sum) {
    const __m512 scale = _mm512_set1_ps(scale_value), unit = _mm512_set1_ps(1.0f / scale_value);
    const __m512i offset = _mm512_set1_epi32(format == Format::kInt8 && !rows ? 128 : 0);
    __m512 squares = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    for (int64_t d = 0; d < stride; d += 16) {
        const __m512 v = _mm512_loadu_ps(vector + d);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v, scale));
        const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), unit, v);
        squares = _mm512_fmadd_ps(rest, rest, squares);
        if constexpr (format == Format::kInt8) {
            total = _mm512_add_epi32(total, whole);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(reinterpret_cast<uint8_t*>(vector) + d),
                             _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, offset)));
        } else {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<int16_t*>(vector) + d),
                                _mm512_cvtepi32_epi16(whole));
        }
    }
    residual = __builtin_sqrtf(_mm512_reduce_add_ps(squares));
    sum = _mm512_reduce_add_epi32(total);
    return padded / channel_step(format);
}

inline void place_column(int32_t* out, int64_t word, int first, int lanes, __mmask16 there,
                         __m512i column) {
    _mm512_mask_storeu_epi32(out + word * lanes + first, there, column);
}

#include "pack_avx512.inc"

#include "at_most_avx512.inc"

namespace int16 {
constexpr auto least_scores = least_of_rows<Format::kInt16>;
constexpr auto row_scores = scores_of_row<Format::kInt16>;
#include "screen_groups.inc"
}  // namespace int16

namespace int8 {
constexpr auto least_scores = least_of_rows<Format::kInt8>;
constexpr auto row_scores = scores_of_row<Format::kInt8>;
#include "screen_groups.inc"
}  // namespace int8

}  // namespace

const ScreenKernels kScreenAvx512Vnni = {Format::kInt16, kRows,  kTile, 2,
                                         int16::screen,  centre, place<Format::kInt16>};
const ScreenKernels kScreenAvx512VnniInt8 = {Format::kInt8, kRows,  kTile, 7,
                                             int8::screen,  centre, place<Format::kInt8>};

}  // namespace vqkern
