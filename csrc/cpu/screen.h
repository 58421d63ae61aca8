// The certified screen: cheap scores of all codes, and per row the few codes that could still be nearest.
//
// With c the centre of the codes, the score s_k = |e_k - c|^2 / 2 - (z - c).(e_k - c) has the argmin of
// |z - e_k|^2. Rows and codes are rounded to a format, zq and eq, in which scores t_k are computed:
//     |t_k - s_k| <= delta_k = |z - c - zq| |e_k - c| + |zq| |e_k - c - eq| + (rounding of the sum)
// As soon as the exact score of any code is at most U, a code with t_k - delta_k > U is not the nearest,
// and no tie. A code that passes is a hit: the least of a tile's hits is measured exactly, which lowers U,
// and those that still pass are kept until the end of the screen, when U is lower yet.
//
// Three formats. float32: the residuals are below 2^-24 of the norms, and the sum, a chain of D + 1 products
// and additions with or without fused multiply-add, adds (D + 2) 2^-24 (|z||e| + h); all of it is
// kappa (|z||e| + h) with kappa = (D + 8) 1.01 2^-24. int16 and int8: every panel of rows and every group of
// codes has a scale; products and sums are exact integers, the residuals are measured in float64, and
// only the half norm is rounded, to half a unit and to float32's precision.
#pragma once

#include <cstdint>

namespace vqkern {

constexpr int kPanelRows = 32;  // lanes of the state; a panel holds at most as many rows
constexpr int kMostGroupTiles = 8;
constexpr int kTilesAtOnce = 4;  // whose scores with one row are added up side by side
constexpr int kMostGroups = 64;  // screened at once
constexpr int kFewCodes = 1024;  // of whose scores with a panel all are kept

enum class Format { kFloat32, kInt16, kInt8 };

// Rows of a panel: side by side, a word of channels of each in turn; or one after the other, in steps of
// at most kTileChannels channels, as the matrix unit takes them.
enum class RowLayout { kByChannel, kInTurn };

constexpr int64_t kTileChannels = 64;

constexpr int64_t bytes_of(Format format) {
    return format == Format::kFloat32 ? 4 : format == Format::kInt8 ? 1 : 2;
}

// Channels come in multiples of this, padded with zeros.
constexpr int64_t channel_step(Format format) {
    return format == Format::kFloat32 ? 1 : format == Format::kInt16 ? 2 : 4;
}

// Above this the sums of products could leave 32 bits; int16 vectors are scaled so that theirs cannot.
constexpr int64_t most_channels(Format format) { return format == Format::kInt8 ? 4096 : INT64_MAX; }

// The answers of a panel's rows as they form. To measure and to keep may lower the row's bound, or close it.
class Hits {
  public:
    // The code is about to be measured.
    virtual void expect(int64_t code) = 0;
    // Measures a code exactly.
    virtual void measure(int row, int64_t code) = 0;
    // As well, where no other can be the nearest.
    virtual void decide(int row, int64_t code) = 0;
    // Keeps a code whose score is at least `lower`.
    virtual void keep(int row, int64_t code, float lower) = 0;
    // No code at a larger squared distance, as the screens see them, is nearest to the row. Negative once the
    // row needs more codes measured than it may.
    virtual float reach(int row) = 0;

  protected:
    ~Hits() = default;
};

// Everything the screen knows about the rows of a panel. For a row and a group,
//     delta = slope * norm + spread * residual + largest.
struct Panel {
    alignas(64) float upper[kPanelRows];  // U so far, rounded up; -FLT_MAX closes the row
    float slope[kPanelRows];              // multiplies the group's largest |e - c|
    float spread[kPanelRows];             // multiplies the group's largest |e - c - eq|
    int32_t shift[kPanelRows];            // int8: what the codes' offset of 128 adds to the scores
    float scale;                          // units of the rows: 1 for float32
    Hits* hits;
};

// What the screen knows about a group of codes.
struct Group {
    float norm;       // largest |e - c|
    float residual;   // largest |e - c - eq|
    float largest;    // the part of delta that no row changes
    float half_norm;  // largest |e - c|^2 / 2
    float scale;      // units of the codes: 1 for float32
};

// Codes packed in tiles of consecutive ones, centred, in units of the largest norm; some consecutive
// tiles make a group.
struct PackedCodes {
    const void* values;  // float [tiles][dim][tile], int16 [tiles][dim / 2][tile][2], uint8 of four
    const float* half_norms;  // [tiles][tile], |e - c|^2 / 2; +inf where there is no usable code
    const Group* groups;
    int64_t dim;    // padded
    int64_t tiles;  // in all
    int group_tiles;
};

// Vectors as they came, rows or codes, and the centre and scale of the search.
struct VectorSource {
    const float* const* vectors;  // [count], each [dim]; null for one that is not there or not finite
    int64_t count, dim;
    const float* centre;  // [dim]
    float scale;          // a power of two; negative for rows
};

// The largest norm of an int16 vector in its own units: a product of two stays below 2^29.
constexpr double kInt16Norm = 23100.0;
constexpr double kInt8Most = 127.0;
// Shorter vectors are scaled as if they were this long.
constexpr double kShortest = 0x1p-40;

// How rows and codes are packed for the kernels of one instruction set and format.
struct PackKernels {
    Format format;
    RowLayout row_layout;
    int rows;  // of a panel
    int tile;  // codes of a tile
    int most_tiles;  // of a group

    // Centred vectors in float32, each padded with zeros to `stride` channels; their squared norms, and their
    // largest components. Null, with `place`: float64 does it.
    void (*centre)(const VectorSource& source, int64_t stride, float* vectors, double* squared,
                   float* widest);

    // Rounds such vectors, which it may overwrite, to the format in units of 1 / scale, and places them in a
    // panel or tile of `lanes`, zeros where there is none. |vector - rounded| and, for int8 rows, the sums of
    // their components go to `residual` and `sum`.
    void (*place)(float* vectors, int count, int64_t stride, int64_t padded, float scale, bool rows,
                  void* values, float* residual, int32_t* sum);
};

struct ScreenKernels : PackKernels {
    int64_t least_dim;  // with fewer channels the next screen is faster

    // Scores negated, centred rows (float [dim][rows], int16 [dim / 2][rows][2], int8 of four; or
    // [rows][dim]) against groups [begin, end), at most kMostGroups, and reports hits.
    void (*screen)(const void* rows, const PackedCodes& codes, int64_t begin, int64_t end,
                   Panel& panel);

    // As well against all of at most kFewCodes codes; null where there is no such kernel.
    void (*screen_few)(const void* rows, const PackedCodes& codes, Panel& panel);
};

extern const ScreenKernels kScreenPortable;
#ifdef VQKERN_X86
extern const ScreenKernels kScreenAvx2;
extern const ScreenKernels kScreenAvx512;
extern const ScreenKernels kScreenAvx512Vnni;
extern const ScreenKernels kScreenAvx512VnniInt8;
extern const ScreenKernels kScreenAmx;
#endif

}  // namespace vqkern
