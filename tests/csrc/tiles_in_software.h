// The matrix unit's instructions in software, for CPUs without one; included before isa_amx.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

namespace tiles_in_software {

inline thread_local float tiles[8][16][16];

inline void load(int tile, const void* from, size_t stride) {
    for (size_t row = 0; row < 16; ++row) {
        std::memcpy(tiles[tile][row], static_cast<const char*>(from) + stride * row, 64);
    }
}

inline void store(int tile, void* to, size_t stride) {
    for (size_t row = 0; row < 16; ++row) {
        std::memcpy(static_cast<char*>(to) + stride * row, tiles[tile][row], 64);
    }
}

inline float widen(uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// c[m][n] += sum_k a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
inline void multiply(int c, int a, int b) {
    uint16_t rows[16][32], codes[16][32];
    std::memcpy(rows, tiles[a], sizeof rows);
    std::memcpy(codes, tiles[b], sizeof codes);
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            for (int k = 0; k < 16; ++k) {
                tiles[c][m][n] += widen(rows[m][2 * k]) * widen(codes[k][2 * n]);
                tiles[c][m][n] += widen(rows[m][2 * k + 1]) * widen(codes[k][2 * n + 1]);
            }
        }
    }
}

}  // namespace tiles_in_software

#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_loadd(tile, from, stride) tiles_in_software::load(tile, from, stride)
#define _tile_stored(tile, to, stride) tiles_in_software::store(tile, to, stride)
#define _tile_dpbf16ps(c, a, b) tiles_in_software::multiply(c, a, b)
