// The bfloat16 screen on the AMX matrix unit: 8,192 products an instruction.
#include <immintrin.h>

#include "screen.h"

namespace vqkern {
namespace {

constexpr int kRows = 32;   // two tiles of rows and two of codes make four tiles of scores
constexpr int kGroup = 32;
constexpr int64_t kStepBytes = 2048;  // two tiles

// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Scores of 32 rows and the 32 codes of a group; `scores` is [2 rows][2 codes][16][16].
inline void multiply(const char* rows, const char* codes, const float* half_norms, int64_t steps,
                     float* scores) {
    // A stride of 0 gives every row of a tile the same half norms to start from.
    _tile_loadd(0, half_norms, 0);
    _tile_loadd(1, half_norms + 16, 0);
    _tile_loadd(2, half_norms, 0);
    _tile_loadd(3, half_norms + 16, 0);
    for (int64_t s = 0; s < steps; ++s) {
        _tile_loadd(4, rows + s * kStepBytes, 64);
        _tile_loadd(6, codes + s * kStepBytes, 64);
        _tile_loadd(7, codes + s * kStepBytes + 1024, 64);
        _tile_loadd(5, rows + s * kStepBytes + 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + 256, 64);
    _tile_stored(2, scores + 512, 64);
    _tile_stored(3, scores + 768, 64);
}

inline __m512 least_of_row(const float* scores, int r) {
    const float* row = scores + r / 16 * 512 + r % 16 * 16;
    return _mm512_min_ps(_mm512_load_ps(row), _mm512_load_ps(row + 256));
}

void screen(const void* rows, const PackedCodes& codes, int64_t begin, int64_t end, Panel& panel) {
    const TileConfig config;
    _tile_loadconfig(&config);
    const int64_t steps = codes.dim / 32;
    alignas(64) float scores[4 * 256];
    alignas(64) float delta[kRows], bound[kRows];
    for (int64_t g = begin; g < end; ++g) {
        const Group& group = codes.groups[g];
        multiply(static_cast<const char*>(rows),
                 static_cast<const char*>(codes.values) + g * steps * kStepBytes,
                 codes.half_norms + g * kGroup, steps, scores);
        for (int r = 0; r < kRows; r += 16) {
            const __m512 d =
                _mm512_fmadd_ps(_mm512_load_ps(panel.slope + r), _mm512_set1_ps(group.norm),
                                _mm512_fmadd_ps(_mm512_load_ps(panel.spread + r),
                                                _mm512_set1_ps(group.residual),
                                                _mm512_set1_ps(group.largest)));
            _mm512_store_ps(delta + r, d);
            _mm512_store_ps(bound + r, _mm512_add_ps(_mm512_load_ps(panel.upper + r), d));
        }
        // From memory they are broadcast for free; from a register by a shuffle each.
        asm volatile("" ::"m"(bound) : "memory");
        // One sign bit tells whether any of the 1,024 scores is below its bound. The bounds are rounded
        // up, so that a tie is below.
        __m512i any = _mm512_setzero_si512();
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r += 2) {
            const __m512 even = _mm512_sub_ps(least_of_row(scores, r), _mm512_set1_ps(bound[r]));
            const __m512 odd =
                _mm512_sub_ps(least_of_row(scores, r + 1), _mm512_set1_ps(bound[r + 1]));
            any = _mm512_ternarylogic_epi32(any, _mm512_castps_si512(even),
                                            _mm512_castps_si512(odd), 0xfe);
        }
        if (__builtin_expect(_mm512_movepi32_mask(any) != 0, 0)) {
            for (int r = 0; r < kRows; ++r) {
                const float least = _mm512_reduce_min_ps(least_of_row(scores, r));
                if (least <= bound[r]) append(panel, r, g, least, delta[r], true);
            }
        }
    }
    _tile_release();
}

void score_group(const void* rows, int row, const PackedCodes& codes, int64_t g, const Panel&,
                 float* scores) {
    const uint16_t* z = static_cast<const uint16_t*>(rows);
    const uint16_t* values = static_cast<const uint16_t*>(codes.values) + g * codes.dim * kGroup;
    __m512 sum[2] = {_mm512_loadu_ps(codes.half_norms + g * kGroup),
                     _mm512_loadu_ps(codes.half_norms + g * kGroup + 16)};
    for (int64_t d = 0; d < codes.dim; d += 2) {
        uint32_t pair;
        __builtin_memcpy(&pair, z + bf16_row_place(row, d), sizeof pair);
        const __m512 even = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(pair << 16)));
        const __m512 odd =
            _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(pair & 0xffff0000u)));
        for (int half = 0; half < 2; ++half) {
            const __m512i both = _mm512_loadu_si512(values + bf16_code_place(16 * half, d));
            const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            const __m512 high = _mm512_castsi512_ps(
                _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
            sum[half] = _mm512_fmadd_ps(even, low, sum[half]);
            sum[half] = _mm512_fmadd_ps(odd, high, sum[half]);
        }
    }
    _mm512_storeu_ps(scores, sum[0]);
    _mm512_storeu_ps(scores + 16, sum[1]);
}

// Two channels in 32 bits; the residual also owns up to the rounding of the centred code.
int64_t quantize(float* rows, int64_t stride, int64_t padded, GroupMeasure& measure) {
    const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    float worst = 0.0f;
    for (int j = 0; j < kGroup; ++j) {
        float* row = rows + j * stride;
        uint16_t* out = reinterpret_cast<uint16_t*>(row);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t d = 0; d < stride; d += 16) {
            const __m512 v = _mm512_loadu_ps(row + d);
            __m512i bits = _mm512_castps_si512(v);
            const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
            bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, half));  // to nearest, ties to even
            bits = _mm512_and_si512(bits, upper);
            const __mmask16 normal =
                _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
            bits = _mm512_maskz_mov_epi32(normal, bits);
            const __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(bits));
            squares = _mm512_fmadd_ps(rest, rest, squares);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d),
                                _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
        }
        const float sum = _mm512_reduce_add_ps(squares);
        worst = sum > worst ? sum : worst;
    }
    measure.residual = __builtin_sqrt(worst) * (1 + 0x1p-10) +
                       0x1p-22 * __builtin_sqrt(measure.longest) + 0x1p-60;
    return padded / 2;
}

// Sixteen pairs of channels make a tile of a step, and its other half of the codes the next tile.
inline int64_t word_place(int64_t word, int half) {
    return word / 16 * 512 + half * 256 + word % 16 * 16;
}

#include "pack_avx512.inc"

}  // namespace

const ScreenKernels kScreenAmx = {Format::kBf16, kRows, kGroup, 24, screen, score_group, pack};

}  // namespace vqkern
