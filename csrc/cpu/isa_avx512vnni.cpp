// The int16 and int8 screens for AVX-512 VNNI: 32 or 64 products an instruction, twice or four times the
// rate of float32, and exact.
#include <immintrin.h>

#include "screen.h"

namespace vqkern {
namespace {

constexpr int kRows = 12, kHalf = 6;
constexpr int kTile = 32;  // codes, two vectors of 16 scores

inline int64_t row_word(int64_t w, int r, int64_t) { return w * kRows + r; }

#include "integers_avx512.inc"

// The least scores of kHalf rows among some tiles, two at a time: 24 accumulators, 6 minima and the codes at
// hand fill the registers, and rows come straight from memory, a word for all lanes.
template <Format format>
inline void least_of_half(const int32_t* z_words, const __m512i* values, int64_t words,
                          const __m512i* norms, int64_t tiles, __m512i* result) {
    __m512i least[kHalf];
    for (int r = 0; r < kHalf; ++r) least[r] = _mm512_set1_epi32(INT32_MAX);
    for (int64_t tile = 0; tile < tiles; tile += 2) {
        // An odd tile at the end is its own neighbour.
        const int64_t next = tile + 1 < tiles ? tile + 1 : tile;
        const __m512i *first = values + tile * words * 2, *second = values + next * words * 2;
        __m512i sum[4][kHalf];
#pragma GCC unroll 6
        for (int r = 0; r < kHalf; ++r) {
            sum[0][r] = norms[2 * tile];
            sum[1][r] = norms[2 * tile + 1];
            sum[2][r] = norms[2 * next];
            sum[3][r] = norms[2 * next + 1];
        }
        const int32_t* z = z_words;
        for (int64_t w = 0; w < words; ++w, z += kRows) {
            const __m512i* four[4] = {first + 2 * w, first + 2 * w + 1, second + 2 * w,
                                      second + 2 * w + 1};
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const __m512i codes = _mm512_load_si512(four[v]);
                _mm_prefetch(four[v] + 64, _MM_HINT_T0);
#pragma GCC unroll 6
                for (int r = 0; r < kHalf; ++r) multiply_add_word<format>(sum[v][r], z[r], codes);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < kHalf; ++r) {
            const __m512i low = _mm512_min_epi32(sum[0][r], sum[1][r]);
            const __m512i high = _mm512_min_epi32(sum[2][r], sum[3][r]);
            least[r] = _mm512_min_epi32(least[r], _mm512_min_epi32(low, high));
        }
    }
    for (int r = 0; r < kHalf; ++r) result[r] = least[r];
}

template <Format format>
bool least_of_rows(const void* rows, const PackedCodes& codes, int64_t g, const Panel& panel,
                   float* scores) {
    const int32_t* z_words = static_cast<const int32_t*>(rows);
    const int64_t words = codes.dim / channel_step(format);
    const int64_t first = g * codes.group_tiles, tiles = last_tile(codes, g) - first;
    const float unit = panel.scale * codes.groups[g].scale;
    alignas(64) __m512i norms[2 * kMostGroupTiles], least[16];
    for (int64_t i = 0; i < 2 * tiles; ++i) {
        norms[i] = half_norms(codes.half_norms + first * kTile + 16 * i, _mm512_set1_ps(unit));
    }
    for (int r = kRows; r < 16; ++r) least[r] = _mm512_set1_epi32(INT32_MAX);
    // The second half of the rows finds the codes in the first-level cache.
    for (int half = 0; half < kRows; half += kHalf) {
        least_of_half<format>(z_words + half, tile_values(codes, first, words), words, norms, tiles,
                              least + half);
    }
    constexpr __mmask16 kOfRows = (1 << kRows) - 1;
    return report_least(least, panel, 0, kOfRows, unit, scores) &&
           unit * codes.groups[g].half_norm < kCut;
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

const ScreenKernels kScreenAvx512Vnni = {
    {Format::kInt16, RowLayout::kByChannel, kRows, kTile, kMostGroupTiles, centre,
     place<Format::kInt16, kRows, kTile>},
    2, int16::screen, nullptr};
const ScreenKernels kScreenAvx512VnniInt8 = {
    {Format::kInt8, RowLayout::kByChannel, kRows, kTile, kMostGroupTiles, centre,
     place<Format::kInt8, kRows, kTile>},
    7, int8::screen, nullptr};

}  // namespace vqkern
