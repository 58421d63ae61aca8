// The certified screen: cheap scores of all codes, and per row the few groups of codes that could still
// hold the nearest one.
//
// With c the centre of the codes, the score s_k = |e_k - c|^2 / 2 - (z - c).(e_k - c) has the argmin of
// |z - e_k|^2. Rows and codes are rounded to a format, zq and eq, in which scores t_k are computed:
//     |t_k - s_k| <= delta_k = |z - c - zq| |e_k - c| + |zq| |e_k - c - eq| + (rounding of the sum)
// So with U = min_k (t_k + delta_k), every exact minimiser, ties included, has t_k - delta_k <= U.
//
// Three formats. float32: the residuals are below 2^-24 of the norms, and the sum, a chain of D + 1 products
// and additions with or without fused multiply-add, adds (D + 2) 2^-24 (|z||e| + h); all of it is
// kappa (|z||e| + h) with kappa = (D + 8) 1.01 2^-24. int16: every panel of rows and every group of
// codes has a scale; products and sums are exact integers, the residuals are measured in float64, and
// only the half norm is rounded, to half a unit and to float32's precision. bfloat16: the residuals are
// measured too, and the sum is that of the matrix unit.
#pragma once

#include <cstdint>

namespace vqkern {

// Candidate groups a row may hold; a row that needs more is screened again more precisely, or scanned.
constexpr int kCapacity = 24;
constexpr int kPanelRows = 32;  // lanes of the state; a panel holds at most as many rows

enum class Format { kFloat32, kInt16, kBf16 };

constexpr int64_t bytes_of(Format format) { return format == Format::kFloat32 ? 4 : 2; }

// Channels come in multiples of this, padded with zeros.
constexpr int64_t channel_step(Format format) {
    return format == Format::kFloat32 ? 1 : format == Format::kInt16 ? 2 : 32;
}

// bfloat16 comes in tiles of the matrix unit, 32 channels of 16 rows or of 16 codes, two tiles a step.
// Rows are channel-minor; codes hold pairs of channels: [dim / 32][2][16 rows][32] and
// [dim / 32][2][16 pairs][16 codes][2].
constexpr int64_t bf16_row_place(int64_t row, int64_t d) {
    return d / 32 * 1024 + row / 16 * 512 + row % 16 * 32 + d % 32;
}
constexpr int64_t bf16_code_place(int64_t code, int64_t d) {
    return d / 32 * 1024 + code / 16 * 512 + d % 32 / 2 * 32 + code % 16 * 2 + d % 2;
}

struct Candidate {
    int32_t group;
    float lower;  // no code of the group scores below this
};

// Everything the screen keeps about the rows of a panel. For a row and a group,
//     delta = slope * norm + spread * residual + largest.
struct Panel {
    alignas(64) float upper[kPanelRows];  // U so far, rounded up; -FLT_MAX closes the row
    float slope[kPanelRows];              // multiplies the group's largest |e - c|
    float spread[kPanelRows];             // multiplies the group's largest |e - c - eq|
    float scale;                          // units of the rows: 1 for float32
    int32_t count[kPanelRows];            // candidates held
    bool overflow[kPanelRows];            // more groups qualified than fit
    Candidate candidates[kPanelRows][kCapacity];
};

// What the screen knows about a group of codes.
struct Group {
    float norm;      // largest |e - c|
    float residual;  // largest |e - c - eq|
    float largest;   // the part of delta that no row changes
    float half_norm; // largest |e - c|^2 / 2
    float scale;     // units of the codes: 1 for float32
};

// Codes packed in groups of `group_size` consecutive ones, centred, in units of the largest norm.
struct PackedCodes {
    const void* values;  // float [groups][dim][group_size], int16 [groups][dim / 2][group_size][2]
    const float* half_norms;  // [groups][group_size], |e - c|^2 / 2; +inf where there is no usable code
    const Group* groups;
    int64_t dim;              // padded
};

// The codes of a group as they came, and the centre and scale of the search.
struct GroupSource {
    const float* codes;     // [count][dim]
    const uint8_t* finite;  // [count]
    int64_t count, dim;
    const float* centre;  // [dim]
    float scale;          // a power of two
};

// What packing a group found out.
struct GroupMeasure {
    double longest;   // largest |e - c|^2
    double residual;  // largest |e - c - eq|
    float scale;      // units of the codes
};

// The largest norm of an int16 vector in its own units: a product of two stays below 2^29.
constexpr double kInt16Norm = 23100.0;
// Shorter vectors are scaled as if they were this long.
constexpr double kShortest = 0x1p-40;

// The kernels of one instruction set and format.
struct ScreenKernels {
    Format format;
    int rows;        // rows of a panel
    int group_size;  // codes of a group
    int64_t least_dim;  // with fewer channels the next screen is faster

    // Scores negated, centred rows (float [dim][rows], int16 [dim / 2][rows][2]) against groups
    // [begin, end), and calls `append` for groups that may hold a nearest code.
    void (*screen)(const void* rows, const PackedCodes& codes, int64_t begin, int64_t end,
                   Panel& panel);

    // Scores of one group for row `row` of the rows.
    void (*score_group)(const void* rows, int row, const PackedCodes& codes, int64_t group,
                        const Panel& panel, float* scores);

    // Packs a group; scratch holds group_size rows of channels, padded to 16. Null: float64 does it.
    GroupMeasure (*pack)(const GroupSource& source, int64_t padded, void* values,
                         float* half_norms, float* scratch);
};

// A group whose least score is `least` becomes a candidate of row `row`; it lowers the row's bound if
// `least` is known to be the score of a usable code.
void append(Panel& panel, int row, int64_t group, float least, float delta, bool lowers);

extern const ScreenKernels kScreenPortable;
#ifdef VQKERN_X86
extern const ScreenKernels kScreenAvx2;
extern const ScreenKernels kScreenAvx512;
extern const ScreenKernels kScreenAvx512Vnni;
extern const ScreenKernels kScreenAmx;
#endif

}  // namespace vqkern
