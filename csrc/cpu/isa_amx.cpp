// The int8 screen on the AMX matrix unit: 16,384 products an instruction, exact.
#include <immintrin.h>

#include "screen.h"

namespace vqkern {
namespace {

constexpr int kRows = 32;  // two tiles of rows and two of codes make four tiles of scores
constexpr int kTile = 32;
constexpr int64_t kWordBytes = 128;  // four channels of the 32 codes

// Rows are channel-minor, one after the other.
inline int64_t row_word(int64_t w, int r, int64_t words) { return r * words + w; }

#include "integers_avx512.inc"

// Tiles 0 to 3 are scores, 4 and 5 rows, 6 and 7 codes: 16 rows of `channels` bytes, and as many channels of
// 16 codes, four to a row.
struct alignas(64) TileConfig {
    explicit TileConfig(int64_t channels) {
        for (int tile = 0; tile < 8; ++tile) {
            row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? channels : 64);
            rows[tile] = static_cast<uint8_t>(tile < 6 ? 16 : channels / 4);
        }
    }
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

struct Steps {
    explicit Steps(int64_t dim) : count((dim + kTileChannels - 1) / kTileChannels), channels(dim / count) {}
    int64_t count, channels;
};

inline void load_rows(const char* rows, int64_t dim) {
    _tile_loadd(4, rows, dim);
    _tile_loadd(5, rows + 16 * dim, dim);
}

// Starts the scores of 32 rows and the 32 codes of a tile; rows that fit one step are there already.
inline void multiply(const char* rows, const char* codes, const int32_t* norms, int64_t dim,
                     const Steps& steps) {
    // A stride of 0 gives every row of a tile the same half norms to start from.
    _tile_loadd(0, norms, 0);
    _tile_loadd(1, norms + 16, 0);
    _tile_loadd(2, norms, 0);
    _tile_loadd(3, norms + 16, 0);
    for (int64_t s = 0; s < steps.count; ++s) {
        if (steps.count > 1) load_rows(rows + s * steps.channels, dim);
        const char* values = codes + s * steps.channels / 4 * kWordBytes;
        _tile_loadd(6, values, kWordBytes);
        _tile_loadd(7, values + 64, kWordBytes);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
}

// [2 rows][2 codes][16][16]
inline void store(int32_t* scores) {
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + 256, 64);
    _tile_stored(2, scores + 512, 64);
    _tile_stored(3, scores + 768, 64);
}

inline void compare(const int32_t* scores, __m512i* least) {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
        const int32_t* row = scores + r / 16 * 512 + r % 16 * 16;
        least[r] = _mm512_min_epi32(least[r], _mm512_load_si512(row));
        least[r] = _mm512_min_epi32(least[r], _mm512_load_si512(row + 256));
    }
}

bool least_scores(const void* rows, const PackedCodes& codes, int64_t g, const Panel& panel,
                  float* result) {
    const char* z = static_cast<const char*>(rows);
    const Steps steps(codes.dim);
    const int64_t first = g * codes.group_tiles, end = last_tile(codes, g);
    const float unit = panel.scale * codes.groups[g].scale;
    alignas(64) int32_t norms[kMostGroupTiles * kTile], scores[1024];
    for (int64_t i = 0; i < (end - first) * kTile; i += 16) {
        _mm512_store_si512(norms + i, half_norms(codes.half_norms + first * kTile + i,
                                                 _mm512_set1_ps(unit)));
    }
    const auto start = [&](int64_t tile) {
        const int64_t bytes = codes.dim * kTile;
        multiply(z, static_cast<const char*>(codes.values) + tile * bytes,
                 norms + (tile - first) * kTile, codes.dim, steps);
    };
    __m512i least[kRows];
    for (int r = 0; r < kRows; ++r) least[r] = _mm512_set1_epi32(INT32_MAX);
    if (steps.count == 1) load_rows(z, codes.dim);
    start(first);
    store(scores);
    for (int64_t tile = first + 1; tile < end; ++tile) {
        // The matrix unit is at work on this tile while the scores of the one before are compared.
        start(tile);
        compare(scores, least);
        store(scores);
    }
    compare(scores, least);
    const bool low = report_least(least, panel, 0, 0xffff, unit, result);
    const bool high = report_least(least + 16, panel, 16, 0xffff, unit, result);
    return low && high && unit * codes.groups[g].half_norm < kCut;
}

constexpr auto row_scores = scores_of_row<Format::kInt8>;

#include "at_most_avx512.inc"

#include "screen_groups.inc"

// The matrix unit keeps its shape of tiles while a panel is screened.
void screen_with_tiles(const void* rows, const PackedCodes& codes, int64_t begin, int64_t end,
                       Panel& panel) {
    const TileConfig config(Steps(codes.dim).channels);
    _tile_loadconfig(&config);
    screen(rows, codes, begin, end, panel);
    _tile_release();
}

inline void place_column(int32_t* out, int64_t word, int first, int lanes, __mmask16 there,
                         __m512i column) {
    _mm512_mask_storeu_epi32(out + word * lanes + first, there, column);
}

#include "pack_avx512.inc"

void place_rows_or_codes(float* vectors, int count, int64_t stride, int64_t padded, float scale,
                         bool rows, void* values, float* residual, int32_t* sum) {
    if (!rows) {
        place<Format::kInt8, kRows, kTile>(vectors, count, stride, padded, scale, rows, values, residual, sum);
        return;
    }
    char* out = static_cast<char*>(values);
    __builtin_memset(out, 0, kRows * padded);
    for (int j = 0; j < count; ++j) {
        float* row = vectors + j * stride;
        quantize<Format::kInt8>(row, stride, padded, scale, rows, residual[j], sum[j]);
        __builtin_memcpy(out + j * padded, row, padded);
    }
}


}  // namespace

// With fewer channels the vector unit multiplies as fast, and stores nothing.
const ScreenKernels kScreenAmx = {
    {Format::kInt8, RowLayout::kInTurn, kRows, kTile, kMostGroupTiles, centre, place_rows_or_codes}, 20,
    screen_with_tiles, nullptr};

}  // namespace vqkern
