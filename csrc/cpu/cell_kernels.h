// What a search in few channels needs of an instruction set; cells.h says what cells are.
#pragma once

#include "screen.h"

namespace vqkern {

constexpr int kCellCodes = 64;
constexpr int kMostCellRows = 256;  // rows that meet cells together
// Boxes lie a block of sixteen at a time, [dim][least, most][kBoxes].
constexpr int kBoxes = 16;

// Cells: a box around each, a box around each block of them, and their codes, a group and a tile a cell.
struct CellCodes {
    const float* boxes;
    const float* block_boxes;
    int64_t cells, blocks;
    PackedCodes packed;
};

// Rows that are neighbours, sorted by home.
struct CellRows {
    int32_t count = 0;
    const float* z[kMostCellRows];      // as the boxes see them
    int32_t home[kMostCellRows];        // the cell that a row falls into
    const float* packed;                // [panels][dim][kPanelRows], negated and centred
    Panel* panels[kMostCellRows / kPanelRows];
};

struct CellKernels : PackKernels {
    // Rows against their homes and all cells in their reach, the nearer ones first. Returns how many pairs
    // that were.
    int64_t (*meet)(const CellRows& rows, const CellCodes& codes);
};

extern const CellKernels kCellsPortable;
#ifdef VQKERN_X86
extern const CellKernels kCellsAvx2;
extern const CellKernels kCellsAvx512;
#endif

}  // namespace vqkern
