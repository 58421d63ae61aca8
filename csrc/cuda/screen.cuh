// What the screens, the packing and the narrowing share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace vqkern::hopper {

constexpr int kRows = 256;          // rows of a block
constexpr int kQuarters = 4;        // threads that share a row of a product
constexpr int kWarpgroups = 4;      // of 64 rows each
constexpr int kThreads = kWarpgroups * 128 + 128;  // and one that copies
constexpr int kChunk = 16;          // bytes of one row that lie together
constexpr int kInt8Columns = 128;   // codes of a tile
constexpr int kHalfColumns = 256;
constexpr int kBlockChannels = 12;  // of 16 halves; the other four carry norms

// Chunks of a vector: a product takes two.
__host__ __device__ constexpr int int8_chunks(int d) { return (d + 31) / 32 * 2; }
__host__ __device__ constexpr int half_chunks(int d) { return (d + kBlockChannels - 1) / kBlockChannels * 2; }

// What becomes of a row; the values that the Triton kernels know.
enum State : int8_t { kNoCode = 0, kScreened = 1, kLeft = 2 };

// Rounds a bound up, whatever the few float32 operations on it do.
constexpr double kUpwards = 1 + 0x1p-19;

// Where code i of a tile of `codes` lies in it: a quarter of the tile, a run of consecutive codes,
// takes columns 2q and 2q + 1 of every eight, which one thread of a product holds.
__host__ __device__ constexpr int place_of(int i, int codes) {
  int quarter = codes / kQuarters, within = i % quarter;
  return within / 2 * 8 + i / quarter * 2 + within % 2;
}

// A group of codes that a row could not rule out when it was met.
struct Kept {
  float bound;  // no code of the group scores lower
  int group;
};

struct Screen {
  const uint8_t* rows;      // [row blocks][chunks][kRows][16]
  const float4* row_terms;  // [n]
  const int8_t* state;      // [n]
  const uint8_t* codes;     // [tiles][chunks][columns][16]
  const float4* group_terms;
  Kept* kept;       // [splits][n][kQuarters][capacity]
  int* kept_count;  // [splits][n][kQuarters]; capacity + 1: some were lost that might have won
  float* upper;     // [splits][n]: some code scores no higher
  int n, tiles, tiles_per_split, chunks;
  int capacity;  // at most 32
  uint32_t stages;
};

constexpr int kCandidates = 128;  // codes of a row that are measured after an int8 screen

// Where decisions go. The lists' order differs from run to run; what becomes of their rows does not.
struct Decision {
  int64_t* index;
  float* distance;
  int *tied_rows, *tied_count;  // rows whose nearest codes float64 cannot tell apart
  int *left_rows, *left_count;  // rows for which all codes must be measured
  unsigned long long* measured; // the number of codes measured is added to it; may be null
};

// All return a cudaError_t and only enqueue work.
int survey(const float* codes, int k, int d, int blocks, double* sum, float* low, float* high,
           int* count, float* centre, double* spread, cudaStream_t stream);
int code_norms(const float* codes, int k, int d, const float* centre, const double* spread,
               float* norms, cudaStream_t stream);
int pack_codes_half(const float* codes, int k, int d, const float* centre, const double* spread,
                    uint8_t* packed, float4* terms, cudaStream_t stream);
int pack_rows_half(const float* z, int n, int d, const float* centre, const double* spread,
                   uint8_t* packed, float4* terms, int8_t* state, cudaStream_t stream);
int pack_codes_int8(const float* codes, int k, int d, const float* centre, const double* spread,
                    const int64_t* order, int chunks, uint8_t* packed, float* half_norms,
                    float4* terms, cudaStream_t stream);
int pack_rows_int8(const float* z, int n, int d, const float* centre, const double* spread,
                   int chunks, uint8_t* packed, float4* terms, int8_t* state, cudaStream_t stream);
int screen_int8(const Screen& s, int splits, cudaStream_t stream);
int screen_half(const Screen& s, int splits, cudaStream_t stream);
int decide_int8(const Screen& s, int splits, const float* half_norms, const int64_t* order,
                const float* z, const float* codes, int d, int8_t* state, int* candidates,
                const Decision& out, cudaStream_t stream);
int decide_half(const Screen& s, int splits, const float* z, const float* codes, int k, int d,
                int8_t* state, const Decision& out, cudaStream_t stream);

}  // namespace vqkern::hopper
