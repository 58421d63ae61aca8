// The certified screens for Hopper: all codes scored on tensor cores, no score stored.
//
// A block keeps 256 rows in shared memory and walks the tiles of codes, which one warp copies ahead
// of the products. Four warpgroups take 64 rows each, so that while one looks at its scores the
// others' products keep the tensor cores busy. A thread holds, of two rows, a quarter of a tile's
// scores: one group. It takes their best with one instruction a score (half: a half), bounds what
// exact arithmetic could make of it, and appends the group to the row's list unless another group
// is certain to beat it. Lists prune themselves where they fill up.
#include <climits>

#include "hopper.cuh"
#include "screen.cuh"

namespace vqkern::hopper {
namespace {

// int8: columns are codes in order of their norm, so that a group's norms are all but equal and the
// largest product bounds its lowest score. Two float4 a group:
// {least h, greatest h, scale, largest |e|}, {lost, floor, -, -}; a row: {scale, |z - zq|, |zq|, -}.
struct Int8 {
  static constexpr int kColumns = kInt8Columns, kParts = 1, kRegisters = 64, kTerms = 2, kStretch = 1;

  __device__ static void multiply(uint32_t (&d)[64], uint64_t a, uint64_t b, bool add) {
    product_int8(d, a, b, add);
  }

  // The largest product of a quarter of a part, for each of the thread's two rows.
  struct Best {
    int low[2] = {INT_MIN, INT_MIN}, high[2] = {INT_MIN, INT_MIN};

    __device__ void meet(const uint32_t (&d)[64]) {
#pragma unroll
      for (int i = 0; i < 64; i += 4) {
        int& l = low[i / 4 % 2];
        int& h = high[i / 4 % 2];
        l = max(l, max(static_cast<int>(d[i]), static_cast<int>(d[i + 1])));
        h = max(h, max(static_cast<int>(d[i + 2]), static_cast<int>(d[i + 3])));
      }
    }

    __device__ float first() const { return static_cast<float>(max(low[0], low[1])); }
    __device__ float second() const { return static_cast<float>(max(high[0], high[1])); }
  };

  __device__ static void bounds(float product, float4 row, const float4 (&group)[2], float& lower,
                                float& upper) {
    float dot = row.x * group[0].z * product;
    float delta = fmaf(row.y, group[0].w, fmaf(row.z, group[1].x, group[1].y));
    lower = group[0].x - dot - delta;
    upper = group[0].y - dot + delta;
  }
};

// half: the products are half the squared distances themselves, norms riding along as channels.
// A group: {largest |e|, lost, floor, relative}; a row: {|z - zq|, |zq|, scale, floor}.
struct Half {
  static constexpr int kColumns = kHalfColumns, kParts = 2, kRegisters = 32, kTerms = 1, kStretch = 2;

  __device__ static void multiply(uint32_t (&d)[32], uint64_t a, uint64_t b, bool add) {
    product_half(d, a, b, add);
  }

  // The least score of a quarter of a tile, for each of the thread's two rows.
  struct Best {
    uint32_t low[2] = {kInfinities, kInfinities}, high[2] = {kInfinities, kInfinities};

    __device__ void meet(const uint32_t (&d)[32]) {
#pragma unroll
      for (int i = 0; i < 32; i += 4) {
        low[0] = least_of_halves(low[0], d[i]);
        high[0] = least_of_halves(high[0], d[i + 1]);
        low[1] = least_of_halves(low[1], d[i + 2]);
        high[1] = least_of_halves(high[1], d[i + 3]);
      }
    }

    __device__ float first() const { return least(least_of_halves(low[0], low[1])); }
    __device__ float second() const { return least(least_of_halves(high[0], high[1])); }

    __device__ static float least(uint32_t two) {
      float2 both = __half22float2(*reinterpret_cast<__half2*>(&two));
      return fminf(both.x, both.y);
    }

    static constexpr uint32_t kInfinities = 0x7C007C00;
  };

  __device__ static void bounds(float score, float4 row, const float4 (&group)[1], float& lower,
                                float& upper) {
    float delta = fmaf(row.x, group[0].x, fmaf(row.y, group[0].y, fmaf(row.z, group[0].z, row.w)));
    delta = fmaf(fabsf(score), group[0].w, delta);
    lower = score - delta;
    upper = score + delta;
  }
};

// The groups that a row cannot rule out, as one thread meets them.
struct List {
  Kept* kept;
  int count, capacity;
  float upper;
  float lost = INFINITY;  // the least bound of the groups that found no room

  __device__ void append(float bound, int group) {
    if (count == capacity) prune();
    if (count < capacity) {
      kept[count] = {bound, group};
      ++count;
    } else {
      lost = fminf(lost, bound);
    }
  }

  __device__ void prune() {
    int left = 0;
    for (int i = 0; i < capacity; ++i) {
      Kept entry = kept[i];
      if (entry.bound <= upper) kept[left++] = entry;
    }
    count = left;
  }
};

__device__ inline float shared_least(float value) {
  value = fminf(value, __shfl_xor_sync(0xffffffff, value, 1));
  return fminf(value, __shfl_xor_sync(0xffffffff, value, 2));
}

template <class Format, int kSteps>
__global__ __launch_bounds__(kThreads, 1) void screen_kernel(const Screen s) {
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t rows_bytes = kRows * kChunk * s.chunks;
  const uint32_t tile_bytes = Format::kColumns * kChunk * s.chunks;
  uint8_t* rows = memory;
  uint8_t* codes = memory + rows_bytes;
  uint64_t* full = reinterpret_cast<uint64_t*>(codes + s.stages * tile_bytes);
  uint64_t* empty = full + s.stages;
  uint64_t* rows_here = empty + s.stages;

  const int first = blockIdx.y * s.tiles_per_split;
  const int stop = min(first + s.tiles_per_split, s.tiles);
  if (threadIdx.x == 0) {
    for (int i = 0; i < s.stages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, kWarpgroups * 4);
    }
    barrier_init(rows_here, 1);
    barrier_fence();
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp >= kWarpgroups * 4) {
    give_registers<24>();
    if (warp == kWarpgroups * 4 && lane == 0) {
      barrier_arrive_expecting(rows_here, rows_bytes);
      bulk_copy(rows, s.rows + static_cast<int64_t>(blockIdx.x) * rows_bytes, rows_bytes, rows_here);
      uint32_t stage = 0, phase = 1;  // the phase before the first counts as over
      for (int tile = first; tile < stop; ++tile) {
        barrier_wait(empty + stage, phase);
        barrier_arrive_expecting(full + stage, tile_bytes);
        bulk_copy(codes + stage * tile_bytes, s.codes + static_cast<int64_t>(tile) * tile_bytes,
                  tile_bytes, full + stage);
        if (++stage == s.stages) stage = 0, phase ^= 1;
      }
    }
  } else {
    take_registers<112>();
    const int quarter = lane % 4;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + warp * 16 + lane / 4;
    float4 terms[2];
    List list[2];
  #pragma unroll
    for (int i = 0; i < 2; ++i) {
      int64_t mine = row + 8 * i;
      bool open = mine < s.n && s.state[mine] == kScreened;
      terms[i] = open ? s.row_terms[mine] : make_float4(0, 0, 0, 0);
      int64_t place = (static_cast<int64_t>(blockIdx.y) * s.n + mine) * kQuarters + quarter;
      list[i] = {s.kept + place * s.capacity, 0, s.capacity, open ? INFINITY : -INFINITY};
    }
    barrier_wait(rows_here, 0);
    // Each warpgroup's 64 rows start 64 * 16 bytes further on in every chunk.
    const uint64_t a = operand(rows + warp / 4 * 64 * kChunk, kRows * kChunk);
    constexpr uint32_t kStepA = 2 * kRows * kChunk >> 4, kStepB = 2 * Format::kColumns * kChunk >> 4;
    constexpr uint32_t kPartBytes = Format::kColumns / Format::kParts * kChunk;

    uint32_t d[Format::kParts][Format::kRegisters];
    auto multiply = [&](int part, uint32_t stage) {
      const uint64_t b = operand(codes + stage * tile_bytes + part * kPartBytes,
                                 Format::kColumns * kChunk);
      product_begin();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        Format::multiply(d[part], a + k * kStepA, b + k * kStepB, k > 0);
      }
      product_commit();
    };
    float4 group[Format::kTerms];
    auto load_terms = [&](int tile) {
      const int64_t id = static_cast<int64_t>(tile) * kQuarters + quarter;
#pragma unroll
      for (int i = 0; i < Format::kTerms; ++i) group[i] = __ldg(s.group_terms + id * Format::kTerms + i);
    };
    auto look = [&](int tile, const typename Format::Best& best) {
      const float scores[2] = {best.first(), best.second()};
      float lower[2], upper[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) Format::bounds(scores[i], terms[i], group, lower[i], upper[i]);
      // Mostly no row of the warp has anything to gain: a score that lowers the upper bound has a
      // lower bound below it.
      if (!__any_sync(0xffffffff, lower[0] <= list[0].upper || lower[1] <= list[1].upper)) return;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        list[i].upper = shared_least(fminf(list[i].upper, upper[i]));
        if (lower[i] <= list[i].upper) list[i].append(lower[i], tile * kQuarters + quarter);
      }
    };

    uint32_t stage = 0, phase = 0;
    // kTiles tiles in one stretch without a branch: while a part is looked at, the next one is
    // multiplied. Between stretches nothing is under way, which the compiler insists on.
    auto walk = [&]<int kTiles>(int tile) {
      constexpr int kParts = Format::kParts, kAll = kTiles * kParts;
      uint32_t stages[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        stages[i] = stage;
        barrier_wait(full + stage, phase);
        if (++stage == s.stages) stage = 0, phase ^= 1;
      }
#pragma unroll
      for (int part = 0; part < kParts; ++part) multiply(part, stages[0]);
      typename Format::Best best;
#pragma unroll
      for (int i = 0; i < kAll; ++i) {
        const int part = i % kParts;
        if (part == 0) {
          load_terms(tile + i / kParts);
          best = {};
        }
        if (i < kAll - kParts + 1) {
          product_wait<kParts - 1>(d[part]);
        } else {
          product_wait<0>(d[part]);
        }
        best.meet(d[part]);
        if (part == kParts - 1 && lane == 0) barrier_arrive(empty + stages[i / kParts]);
        if (i + kParts < kAll) multiply(part, stages[i / kParts + 1]);
        if (part == kParts - 1) look(tile + i / kParts, best);
      }
    };
    int tile = first;
    for (; tile + Format::kStretch <= stop; tile += Format::kStretch) {
      walk.template operator()<Format::kStretch>(tile);
    }
    for (; tile < stop; ++tile) walk.template operator()<1>(tile);

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int64_t mine = row + 8 * i;
      if (mine < s.n) {
        int64_t place = static_cast<int64_t>(blockIdx.y) * s.n + mine;
        // What was lost does not matter if a code that came later rules it out.
        const bool whole = list[i].lost > list[i].upper;
        s.kept_count[place * kQuarters + quarter] = whole ? list[i].count : list[i].capacity + 1;
        if (quarter == 0) s.upper[place] = list[i].upper;
      }
    }
  }
}

template <class Format, int kSteps>
int launch_steps(Screen s, int splits, cudaStream_t stream) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  const int rows_bytes = kRows * kChunk * s.chunks, tile_bytes = Format::kColumns * kChunk * s.chunks;
  s.stages = min(8, (most - rows_bytes - 256) / tile_bytes);
  if (s.stages < 2) return cudaErrorInvalidConfiguration;
  const int bytes = rows_bytes + s.stages * tile_bytes + (2 * s.stages + 1) * 8;
  auto kernel = screen_kernel<Format, kSteps>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  dim3 grid((s.n + kRows - 1) / kRows, splits);
  kernel<<<grid, kThreads, bytes, stream>>>(s);
  return cudaGetLastError();
}

// The number of products along the channels is part of the kernel: they are all in flight at once.
template <class Format, int kSteps>
int launch(const Screen& s, int splits, cudaStream_t stream) {
  if constexpr (kSteps == 0) {
    return cudaErrorInvalidValue;
  } else {
    if (s.chunks == 2 * kSteps) return launch_steps<Format, kSteps>(s, splits, stream);
    return launch<Format, kSteps - 1>(s, splits, stream);
  }
}

}  // namespace

int screen_int8(const Screen& s, int splits, cudaStream_t stream) {
  return launch<Int8, 8>(s, splits, stream);
}

int screen_half(const Screen& s, int splits, cudaStream_t stream) {
  return launch<Half, 4>(s, splits, stream);
}

}  // namespace vqkern::hopper
