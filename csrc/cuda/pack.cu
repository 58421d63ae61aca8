// Codes and rows in the formats of the screens, with the bounds of what rounding lost.
//
// Both are centred on the mean code and scaled by a power of two. Norms and what was lost are
// measured in float64. A code that is not finite scores infinity; so do those that fill the last
// tile.
#include <cuda_fp16.h>

#include "screen.cuh"

namespace vqkern::hopper {
namespace {

constexpr int kSurveyWarps = 8;
constexpr int kMostChannels = 256;

__device__ inline bool finite(float x) { return fabsf(x) < INFINITY; }

__device__ inline double warp_sum(double x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

__device__ inline double warp_max(double x) {
  for (int step = 16; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(0xffffffff, x, step));
  return x;
}

__device__ inline float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
  return x;
}

// 2^e for e in [-1022, 1023].
__device__ inline double power_of_two(int e) {
  return __longlong_as_double(static_cast<long long>(e + 1023) << 52);
}

// e with 2^e <= x < 2^(e + 1); far below for 0.
__device__ inline int exponent_of(double x) {
  return static_cast<int>(__double_as_longlong(x) >> 52 & 0x7FF) - 1023;
}

// Each block's sum, minimum and maximum of every channel over its finite codes, and their number.
// A warp takes kAtOnce codes together, a lane up to kPerLane of their channels.
template <int kPerLane, int kAtOnce>
__global__ void survey_kernel(const float* codes, int k, int d, double* sum, float* low, float* high,
                              int* count) {
  __shared__ double sums[kSurveyWarps][32 * kPerLane];
  __shared__ float lows[kSurveyWarps][32 * kPerLane], highs[kSurveyWarps][32 * kPerLane];
  __shared__ int counts[kSurveyWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  double total[kPerLane] = {};
  float least[kPerLane], most[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) least[i] = INFINITY, most[i] = -INFINITY;
  int found = 0;
  const int stride = gridDim.x * kSurveyWarps * kAtOnce;
  for (int first = (blockIdx.x * kSurveyWarps + warp) * kAtOnce; first < k; first += stride) {
    float value[kAtOnce][kPerLane];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int channel = lane + 32 * i;
        const bool inside = channel < d && first + j < k;
        value[j][i] = inside ? codes[static_cast<int64_t>(first + j) * d + channel] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      bool good = first + j < k;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) good = good && finite(value[j][i]);
      if (!__all_sync(0xffffffff, good)) continue;
      ++found;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        total[i] += value[j][i];
        least[i] = fminf(least[i], value[j][i]);
        most[i] = fmaxf(most[i], value[j][i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    sums[warp][lane + 32 * i] = total[i];
    lows[warp][lane + 32 * i] = least[i];
    highs[warp][lane + 32 * i] = most[i];
  }
  if (lane == 0) counts[warp] = found;
  __syncthreads();
  const int channel = threadIdx.x;
  if (channel < d) {
    double all = 0;
    float lowest = INFINITY, highest = -INFINITY;
    for (int i = 0; i < kSurveyWarps; ++i) {
      all += sums[i][channel];
      lowest = fminf(lowest, lows[i][channel]);
      highest = fmaxf(highest, highs[i][channel]);
    }
    const int64_t at = static_cast<int64_t>(channel) * gridDim.x + blockIdx.x;
    sum[at] = all;
    low[at] = lowest;
    high[at] = highest;
  }
  if (threadIdx.x == 0) {
    int all = 0;
    for (int i = 0; i < kSurveyWarps; ++i) all += counts[i];
    count[blockIdx.x] = all;
  }
}

// The mean code and the square of an upper bound of the largest |e - c|, by one block; 0 where all
// finite codes are one.
__global__ void centre_kernel(const double* sum, const float* low, const float* high,
                              const int* count, int blocks, int d, float* centre, double* spread) {
  __shared__ double reach[kMostChannels];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  double found = 0;
  for (int i = lane; i < blocks; i += 32) found += count[i];
  found = fmax(warp_sum(found), 1.0);
  for (int channel = warp; channel < d; channel += warps) {
    double total = 0;
    float least = INFINITY, most = -INFINITY;
    for (int i = lane; i < blocks; i += 32) {
      int64_t at = static_cast<int64_t>(channel) * blocks + i;
      total += sum[at];
      least = fminf(least, low[at]);
      most = fmaxf(most, high[at]);
    }
    total = warp_sum(total);
    least = -warp_max(-least);
    most = warp_max(most);
    if (lane == 0) {
      float mean = static_cast<float>(total / found);
      centre[channel] = mean;
      double side = fmax(fmax(static_cast<double>(most) - mean, static_cast<double>(mean) - least), 0.0);
      reach[channel] = side * side;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double all = 0;
    for (int i = 0; i < d; ++i) all += reach[i];
    spread[0] = all;
  }
}

// ---- half ----

constexpr double kHalfTop = 0x1p6;    // the largest |e - c|, at most
constexpr double kHalfScore = 0x1p15; // the largest score, at most
constexpr double kHalfTiny = 0x1p-12; // what sums near zero may lose, subnormal or flushed

__device__ inline double half_scale(const double* spread) {
  double reach = sqrt(spread[0]) * (1 + 0x1p-40);
  if (!(reach > 0)) return 1.0;
  return power_of_two(min(max(5 - exponent_of(reach), -1000), 1000));
}

// What the tensor cores may lose of the magnitudes that they add up, and of a sum each time that
// they round it to a half.
__device__ inline double half_loss(int blocks) { return 17.0 * blocks * 0x1p-23; }

struct alignas(16) Columns {
  __half value[16];
};

__global__ void pack_codes_half_kernel(const float* codes, int k, int d, const float* centre,
                                       const double* spread, uint8_t* packed, float4* terms) {
  __shared__ double most[4][kHalfColumns / 32];
  const int i = threadIdx.x, tile = blockIdx.x;
  const int64_t code = static_cast<int64_t>(tile) * kHalfColumns + i;
  const int blocks = half_chunks(d) / 2, per_block = (d + blocks - 1) / blocks;
  const double scale = half_scale(spread);
  bool good = code < k;
  for (int c = 0; good && c < d; ++c) good = finite(codes[code * d + c]);
  uint8_t* out = packed + static_cast<int64_t>(tile) * blocks * 2 * kHalfColumns * kChunk;
  const int place = place_of(i, kHalfColumns);
  double norm = 0, near = 0, lost = 0, norm_lost = 0;
  for (int b = 0; b < blocks; ++b) {
    Columns columns = {};
    double half_norm = 0;
    for (int j = 0; j < per_block; ++j) {
      int channel = b * per_block + j;
      if (!good || channel >= d) break;
      double value = (static_cast<double>(codes[code * d + channel]) - centre[channel]) * scale;
      __half rounded = __double2half(value);
      double back = __half2float(rounded);
      columns.value[j] = rounded;
      half_norm += 0.5 * value * value;
      near += back * back;
      lost += (value - back) * (value - back);
    }
    __half high = good ? __double2half(half_norm) : __ushort_as_half(0x7C00);
    __half low = good ? __double2half(half_norm - __half2float(high)) : __half(0.0f);
    columns.value[12] = columns.value[13] = __half(1.0f);
    columns.value[14] = high;
    columns.value[15] = low;
    norm += 2 * half_norm;
    norm_lost += good ? fabs(half_norm - __half2float(high) - __half2float(low)) : 0.0;
    const int4* both = reinterpret_cast<const int4*>(&columns);
    for (int c = 0; c < 2; ++c) {
      *reinterpret_cast<int4*>(out + ((b * 2 + c) * kHalfColumns + place) * kChunk) = both[c];
    }
  }
  const double mine[4] = {norm, near, lost, norm_lost};
  for (int j = 0; j < 4; ++j) {
    double all = warp_max(mine[j]);
    if (i % 32 == 0) most[j][i / 32] = all;
  }
  __syncthreads();
  if (i < kQuarters) {
    double group[4];
    for (int j = 0; j < 4; ++j) group[j] = fmax(most[j][2 * i], most[j][2 * i + 1]);
    const double loss = half_loss(blocks), reach = sqrt(group[0]), rounded = sqrt(group[1]);
    const double more = kUpwards * (1 + 0x1p-6);  // the relative part acts on the bound, too
    terms[tile * kQuarters + i] =
        make_float4(static_cast<float>(reach * more), static_cast<float>((sqrt(group[2]) + loss * rounded) * more),
                    static_cast<float>((group[3] + loss * 0.5 * group[0]) * more),
                    static_cast<float>(blocks * 0x1p-10 * 1.1));
  }
}

__global__ void pack_rows_half_kernel(const float* z, int n, int d, const float* centre,
                                      const double* spread, uint8_t* packed, float4* terms,
                                      int8_t* state) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x;
  const int blocks = half_chunks(d) / 2, per_block = (d + blocks - 1) / blocks;
  const double scale = half_scale(spread);
  bool good = row < n;
  double norm = 0;
  for (int c = 0; good && c < d; ++c) {
    float value = z[row * d + c];
    good = finite(value);
    double v = (static_cast<double>(value) - centre[c]) * scale;
    norm += v * v;
  }
  int8_t kind = good ? kScreened : kNoCode;
  double shrink = 1;
  if (good) {
    double away = sqrt(norm) + kHalfTop;
    int over = exponent_of(0.5 * away * away / kHalfScore) + 1;
    if (over > 0) shrink = power_of_two(-min(over, 1000));
    if (over > 12) {
      kind = kLeft;
      good = false;
    }
  }
  uint8_t* out = packed + static_cast<int64_t>(blockIdx.x) * blocks * 2 * kRows * kChunk;
  double near = 0, lost = 0, norm_lost = 0;
  for (int b = 0; b < blocks; ++b) {
    Columns columns = {};
    double half_norm = 0;
    for (int j = 0; j < per_block; ++j) {
      int channel = b * per_block + j;
      if (!good || channel >= d) break;
      double value = (static_cast<double>(z[row * d + channel]) - centre[channel]) * scale;
      half_norm += 0.5 * value * value * shrink;
      value *= shrink;
      __half rounded = __double2half(value);
      double back = __half2float(rounded);
      columns.value[j] = __hneg(rounded);
      near += back * back;
      lost += (value - back) * (value - back);
    }
    __half high = __double2half(half_norm), low = __double2half(half_norm - __half2float(high));
    columns.value[12] = high;
    columns.value[13] = low;
    columns.value[14] = columns.value[15] = good ? __double2half(shrink) : __half(0.0f);
    norm_lost += fabs(half_norm - __half2float(high) - __half2float(low));
    const int4* both = reinterpret_cast<const int4*>(&columns);
    for (int c = 0; c < 2; ++c) {
      *reinterpret_cast<int4*>(out + ((b * 2 + c) * kRows + threadIdx.x) * kChunk) = both[c];
    }
  }
  if (row >= n) return;
  state[row] = kind;
  // 2^-48: the rounding of z - c in float64.
  const double more = kUpwards * (1 + 0x1p-6), size = sqrt(near);
  terms[row] = make_float4(static_cast<float>((sqrt(lost) + 0x1p-48 * size) * more), static_cast<float>(size * more),
                           static_cast<float>(shrink * more),
                           static_cast<float>((norm_lost + half_loss(blocks) * 0.5 * norm * shrink + kHalfTiny) * more));
}

// ---- int8 ----

constexpr int kGroup = kInt8Columns / kQuarters;
constexpr int kRowExponent = 60;

// The power of two that takes the bound of |e - c| into [1, 2).
__device__ inline double int8_scale(const double* spread) {
  double reach = sqrt(spread[0]);
  if (!(reach > 0)) return 1.0;
  return power_of_two(min(max(-exponent_of(reach), -1000), 1000));
}

__global__ void norms_kernel(const float* codes, int k, int d, const float* centre,
                             const double* spread, float* norms) {
  const int code = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (code >= k) return;
  const double scale = int8_scale(spread);
  double norm = 0;
  bool good = true;
  for (int c = lane; c < d; c += 32) {
    float value = codes[static_cast<int64_t>(code) * d + c];
    good = good && finite(value);
    double v = (static_cast<double>(value) - centre[c]) * scale;
    norm += v * v;
  }
  good = __all_sync(0xffffffff, good);
  norm = warp_sum(norm);
  if (lane == 0) norms[code] = good ? static_cast<float>(norm) : INFINITY;
}

// Four channels of one vector as int8 of the given scale; adds up the norms of what it was, became
// and lost.
__device__ inline int quantize(const double (&value)[4], float scale, double& norm, double& near,
                               double& lost) {
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    int level = scale > 0 ? __double2int_rn(value[j] / scale) : 0;
    level = min(max(level, -127), 127);
    double back = static_cast<double>(level) * scale;
    norm += value[j] * value[j];
    near += back * back;
    lost += (value[j] - back) * (value[j] - back);
    word |= static_cast<uint32_t>(level & 0xFF) << (8 * j);
  }
  return static_cast<int>(word);
}

__device__ inline void load_four(const float* vector, const float* centre, int d, int channel,
                                 bool good, double scale, double (&value)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    int c = channel + j;
    value[j] = good && c < d ? (static_cast<double>(vector[c]) - centre[c]) * scale : 0.0;
  }
}

// A block is a tile, a warp a group of 32 codes in the order of their norms.
__global__ void pack_codes_int8_kernel(const float* codes, int k, int d, const float* centre,
                                       const double* spread, const int64_t* order, int chunks,
                                       uint8_t* packed, float* half_norms, float4* terms) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x;
  const double scale = int8_scale(spread);
  const int64_t first = static_cast<int64_t>(tile) * kInt8Columns + warp * kGroup;
  const int words = chunks * 4;
  const int64_t mine = first + lane < k ? order[first + lane] : -1;
  uint8_t* out = packed + static_cast<int64_t>(tile) * chunks * kInt8Columns * kChunk;

  float most = 0;
  uint32_t valid = 0;
#pragma unroll 4
  for (int i = 0; i < kGroup; ++i) {
    int64_t code = __shfl_sync(0xffffffff, mine, i);
    bool good = code >= 0;
    float here = 0;
    for (int c = lane; good && c < d; c += 32) {
      float value = codes[code * d + c];
      good = finite(value);
      here = fmaxf(here, static_cast<float>(fabs((static_cast<double>(value) - centre[c]) * scale)));
    }
    good = __all_sync(0xffffffff, good);
    valid |= static_cast<uint32_t>(good) << i;
    most = fmaxf(most, good ? here : 0.0f);
  }
  const float step = warp_max(most) / 127;
  double norms[3] = {}, least = INFINITY, greatest = 0;
#pragma unroll 4
  for (int i = 0; i < kGroup; ++i) {
    int64_t code = __shfl_sync(0xffffffff, mine, i);
    bool good = valid >> i & 1;
    double sums[3] = {};
    const int place = place_of(warp * kGroup + i, kInt8Columns);
    for (int word = lane; word < words; word += 32) {
      double value[4];
      load_four(codes + code * d, centre, d, word * 4, good, scale, value);
      int four = quantize(value, step, sums[0], sums[1], sums[2]);
      *reinterpret_cast<int*>(out + (word / 4 * kInt8Columns + place) * kChunk + word % 4 * 4) = four;
    }
    for (int j = 0; j < 3; ++j) norms[j] = fmax(norms[j], warp_sum(sums[j]));
    double half_norm = good ? 0.5 * warp_sum(sums[0]) : INFINITY;
    least = fmin(least, half_norm);
    greatest = fmax(greatest, half_norm);
    if (lane == 0) {
      half_norms[static_cast<int64_t>(tile) * kInt8Columns + warp * kGroup + i] = static_cast<float>(half_norm);
    }
  }
  if (lane == 0) {
    const double loss = 0x1p-20;  // of float32 operations on scores and bounds
    const int64_t at = (static_cast<int64_t>(tile) * kQuarters + warp) * 2;
    terms[at] = make_float4(static_cast<float>(least), static_cast<float>(greatest), step,
                            static_cast<float>(sqrt(norms[0]) * kUpwards));
    terms[at + 1] = make_float4(static_cast<float>((sqrt(norms[2]) + loss * sqrt(norms[1])) * kUpwards),
                                static_cast<float>(loss * 0.5 * norms[0] * kUpwards + 0x1p-100), 0, 0);
  }
}

// A warp is a row.
__global__ void pack_rows_int8_kernel(const float* z, int n, int d, const float* centre,
                                      const double* spread, int chunks, uint8_t* packed,
                                      float4* terms, int8_t* state) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const double scale = int8_scale(spread);
  const int within = row % kRows;
  uint8_t* out = packed + row / kRows * chunks * kRows * kChunk;
  bool good = row < n;
  double most = 0;
  for (int c = lane; good && c < d; c += 32) {
    float value = z[row * d + c];
    good = finite(value);
    most = fmax(most, fabs((static_cast<double>(value) - centre[c]) * scale));
  }
  good = __all_sync(0xffffffff, good);
  most = warp_max(most);
  int8_t kind = good ? kScreened : kNoCode;
  if (good && exponent_of(most) > kRowExponent) {
    kind = kLeft;
    good = false;
  }
  const float step = good ? static_cast<float>(most / 127) : 0.0f;
  double norm = 0, near = 0, lost = 0;
  for (int word = lane; word < chunks * 4; word += 32) {
    double value[4];
    load_four(z + row * d, centre, d, word * 4, good, scale, value);
    int four = quantize(value, step, norm, near, lost);
    *reinterpret_cast<int*>(out + (word / 4 * kRows + within) * kChunk + word % 4 * 4) = four;
  }
  near = sqrt(warp_sum(near));
  lost = sqrt(warp_sum(lost)) + 0x1p-48 * near;
  if (lane == 0 && row < n) {
    state[row] = kind;
    terms[row] = make_float4(step, static_cast<float>(lost * kUpwards), static_cast<float>(near * kUpwards), 0);
  }
}

}  // namespace

int survey(const float* codes, int k, int d, int blocks, double* sum, float* low, float* high,
           int* count, float* centre, double* spread, cudaStream_t stream) {
  auto kernel = d <= 32 ? survey_kernel<1, 8> : d <= 64 ? survey_kernel<2, 4> : survey_kernel<8, 1>;
  kernel<<<blocks, kSurveyWarps * 32, 0, stream>>>(codes, k, d, sum, low, high, count);
  centre_kernel<<<1, 512, 0, stream>>>(sum, low, high, count, blocks, d, centre, spread);
  return cudaGetLastError();
}

int code_norms(const float* codes, int k, int d, const float* centre, const double* spread,
               float* norms, cudaStream_t stream) {
  norms_kernel<<<(k + 7) / 8, 256, 0, stream>>>(codes, k, d, centre, spread, norms);
  return cudaGetLastError();
}

int pack_codes_half(const float* codes, int k, int d, const float* centre, const double* spread,
                    uint8_t* packed, float4* terms, cudaStream_t stream) {
  pack_codes_half_kernel<<<(k + kHalfColumns - 1) / kHalfColumns, kHalfColumns, 0, stream>>>(
      codes, k, d, centre, spread, packed, terms);
  return cudaGetLastError();
}

int pack_rows_half(const float* z, int n, int d, const float* centre, const double* spread,
                   uint8_t* packed, float4* terms, int8_t* state, cudaStream_t stream) {
  pack_rows_half_kernel<<<(n + kRows - 1) / kRows, kRows, 0, stream>>>(z, n, d, centre, spread,
                                                                       packed, terms, state);
  return cudaGetLastError();
}

int pack_codes_int8(const float* codes, int k, int d, const float* centre, const double* spread,
                    const int64_t* order, int chunks, uint8_t* packed, float* half_norms,
                    float4* terms, cudaStream_t stream) {
  pack_codes_int8_kernel<<<(k + kInt8Columns - 1) / kInt8Columns, 128, 0, stream>>>(
      codes, k, d, centre, spread, order, chunks, packed, half_norms, terms);
  return cudaGetLastError();
}

int pack_rows_int8(const float* z, int n, int d, const float* centre, const double* spread,
                   int chunks, uint8_t* packed, float4* terms, int8_t* state, cudaStream_t stream) {
  pack_rows_int8_kernel<<<(n + kRows - 1) / kRows * (kRows / 8), 256, 0, stream>>>(
      z, n, d, centre, spread, chunks, packed, terms, state);
  return cudaGetLastError();
}

}  // namespace vqkern::hopper
