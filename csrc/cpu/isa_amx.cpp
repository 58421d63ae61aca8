// The bfloat16 screen on the AMX matrix unit: 8,192 products an instruction.
#include <immintrin.h>

#include "screen.h"

namespace vqkern {
namespace {

constexpr int kRows = 32;   // two tiles of rows and two of codes make four tiles of scores
constexpr int kTile = 32;
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

inline int64_t last_tile(const PackedCodes& codes, int64_t g) {
    const int64_t end = (g + 1) * codes.group_tiles;
    return end < codes.tiles ? end : codes.tiles;
}

inline __m512 least_of_row(const float* scores, int r) {
    const float* row = scores + r / 16 * 512 + r % 16 * 16;
    return _mm512_min_ps(_mm512_load_ps(row), _mm512_load_ps(row + 256));
}

// A tile of codes here is two of the matrix unit's.
bool least_scores(const void* rows, const PackedCodes& codes, int64_t g, const Panel&,
                  float* result) {
    const int64_t steps = codes.dim / 32;
    alignas(64) float scores[4 * 256];
    __m512 least[kRows];
    for (int r = 0; r < kRows; ++r) least[r] = _mm512_set1_ps(__builtin_inff());
    for (int64_t tile = g * codes.group_tiles; tile < last_tile(codes, g); ++tile) {
        multiply(static_cast<const char*>(rows),
                 static_cast<const char*>(codes.values) + tile * steps * kStepBytes,
                 codes.half_norms + tile * kTile, steps, scores);
#pragma GCC unroll 32
        for (int r = 0; r < kRows; ++r) least[r] = _mm512_min_ps(least[r], least_of_row(scores, r));
    }
    for (int r = 0; r < kRows; ++r) result[r] = _mm512_reduce_min_ps(least[r]);
    return true;
}

float row_scores(const void* rows, const PackedCodes& codes, int64_t g, int r, const Panel&,
                float* scores) {
    const uint16_t* z = static_cast<const uint16_t*>(rows);
    __m512 least = _mm512_set1_ps(__builtin_inff());
    for (int64_t tile = g * codes.group_tiles; tile < last_tile(codes, g); ++tile) {
        const uint16_t* values =
            static_cast<const uint16_t*>(codes.values) + tile * codes.dim * kTile;
        __m512 sum[2] = {_mm512_loadu_ps(codes.half_norms + tile * kTile),
                         _mm512_loadu_ps(codes.half_norms + tile * kTile + 16)};
        for (int64_t d = 0; d < codes.dim; d += 2) {
            uint32_t pair;
            __builtin_memcpy(&pair, z + bf16_row_place(r, d), sizeof pair);
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
        least = _mm512_min_ps(least, _mm512_min_ps(sum[0], sum[1]));
        scores += kTile;
    }
    return _mm512_reduce_min_ps(least);
}

#include "at_most_avx512.inc"

#include "screen_groups.inc"

// The matrix unit keeps its shape of tiles while a panel is screened.
void screen_with_tiles(const void* rows, const PackedCodes& codes, int64_t begin, int64_t end,
                       Panel& panel) {
    const TileConfig config;
    _tile_loadconfig(&config);
    screen(rows, codes, begin, end, panel);
    _tile_release();
}

// Two channels in 32 bits; the residual also owns up to the rounding of the centred vector.
template <Format>
inline int64_t quantize(float* vector, int64_t stride, int64_t padded, float, bool, float& residual,
                        int32_t& sum) {
    const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    __m512 squares = _mm512_setzero_ps();
    for (int64_t d = 0; d < stride; d += 16) {
        const __m512 v = _mm512_loadu_ps(vector + d);
        __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, half));  // to nearest, ties to even
        bits = _mm512_and_si512(bits, upper);
        const __mmask16 normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
        bits = _mm512_maskz_mov_epi32(normal, bits);
        const __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(bits));
        squares = _mm512_fmadd_ps(rest, rest, squares);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<uint16_t*>(vector) + d),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    }
    residual = __builtin_sqrtf(_mm512_reduce_add_ps(squares));
    sum = 0;
    return padded / 2;
}

// Sixteen pairs of channels make a tile of a step, and its other half of the codes the next tile.
inline void place_column(int32_t* out, int64_t word, int first, int, __mmask16, __m512i column) {
    _mm512_storeu_si512(out + word / 16 * 512 + first / 16 * 256 + word % 16 * 16, column);
}

#include "pack_avx512.inc"

// Rows are channel-minor: as they come, 32 channels at a time.
void place_rows_or_codes(float* vectors, int count, int64_t stride, int64_t padded, float scale,
                         bool rows, void* values, float* residual, int32_t* sum) {
    if (!rows) {
        place<Format::kBf16>(vectors, count, stride, padded, scale, rows, values, residual, sum);
        return;
    }
    char* out = static_cast<char*>(values);
    for (int j = 0; j < kRows; ++j) {
        const char* row = reinterpret_cast<const char*>(vectors + j * stride);
        if (j < count) {
            quantize<Format::kBf16>(vectors + j * stride, stride, padded, scale, rows, residual[j],
                                    sum[j]);
        }
        for (int64_t d = 0; d < padded; d += 32) {
            const __m512i part = j < count ? _mm512_loadu_si512(row + 2 * d) : _mm512_setzero_si512();
            _mm512_storeu_si512(out + 2 * bf16_row_place(j, d), part);
        }
    }
}

}  // namespace

const ScreenKernels kScreenAmx = {Format::kBf16,     kRows,  kTile, 24,
                                  screen_with_tiles, centre, place_rows_or_codes};

}  // namespace vqkern
