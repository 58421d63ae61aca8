// The matrix unit's instructions in software, for CPUs without one; included before isa_amx.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud

namespace tiles_in_software {

struct Config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

inline thread_local Config config;
inline thread_local int8_t tiles[8][16][64];

inline void configure(const void* from) { std::memcpy(&config, from, sizeof config); }

// What lies beyond a tile's shape becomes zero.
inline void load(int tile, const void* from, size_t stride) {
    std::memset(tiles[tile], 0, sizeof tiles[tile]);
    for (size_t row = 0; row < config.rows[tile]; ++row) {
        std::memcpy(tiles[tile][row], static_cast<const char*>(from) + stride * row,
                    config.row_bytes[tile]);
    }
}

inline void store(int tile, void* to, size_t stride) {
    for (size_t row = 0; row < config.rows[tile]; ++row) {
        std::memcpy(static_cast<char*>(to) + stride * row, tiles[tile][row], config.row_bytes[tile]);
    }
}

// c[m][n] += sum_k a[m][k] b[k / 4][4 n + k % 4], a signed and b not.
inline void multiply(int c, int a, int b) {
    for (int m = 0; m < config.rows[c]; ++m) {
        int32_t sums[16];
        std::memcpy(sums, tiles[c][m], sizeof sums);
        for (int n = 0; n < config.row_bytes[c] / 4; ++n) {
            for (int k = 0; k < config.row_bytes[a]; ++k) {
                sums[n] += tiles[a][m][k] * static_cast<uint8_t>(tiles[b][k / 4][4 * n + k % 4]);
            }
        }
        std::memcpy(tiles[c][m], sums, sizeof sums);
    }
}

}  // namespace tiles_in_software

#define _tile_loadconfig(config) tiles_in_software::configure(config)
#define _tile_release() static_cast<void>(0)
#define _tile_loadd(tile, from, stride) tiles_in_software::load(tile, from, stride)
#define _tile_stored(tile, to, stride) tiles_in_software::store(tile, to, stride)
#define _tile_dpbsud(c, a, b) tiles_in_software::multiply(c, a, b)
