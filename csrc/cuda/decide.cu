// The exact decision among what a screen has left: a warp a row, squared distances of the values as
// given in float64 and in channel order.
//
// After the int8 screen a lane takes a code of a kept group and does the integer product again, now
// with the code's own norm; what no other code is certain to beat is measured. After the half
// screen all codes of the kept groups are measured in float32, and those that this leaves in
// float64. Where float64 cannot tell the nearest two
// apart, the row goes to the list of ties; where a list ran over, to the rows that are left.
#include "hopper.cuh"
#include "screen.cuh"

namespace vqkern::hopper {
namespace {

constexpr uint32_t kAll = 0xffffffff;
constexpr int kGroup = kInt8Columns / kQuarters;
constexpr int kHalfGroup = kHalfColumns / kQuarters;
constexpr int kOpen = 256;  // codes a row may hold before the last of its groups is seen
constexpr int kWarps = 4;
// Sums of squares from here on are right in float32 but for their relative error.
constexpr float kSmallest = 0x1p-90f;

template <class Value>
__device__ inline Value warp_min(Value x) {
  for (int step = 16; step > 0; step /= 2) {
    Value other = __shfl_xor_sync(kAll, x, step);
    x = other < x ? other : x;
  }
  return x;
}

__device__ inline float add_square(float total, float z, float e) {
  float difference = z - e;
  return total + difference * difference;
}

__device__ inline double add_square(double total, float z, float e) {
  double difference = static_cast<double>(z) - static_cast<double>(e);
  return __dadd_rn(total, __dmul_rn(difference, difference));  // never fused: the same everywhere
}

// |z - e|^2; infinity for a code that is not finite.
template <class Value>
__device__ inline Value measure(const float* z, const float* e, int d) {
  Value total = 0;
  int channel = 0;
  if (d % 4 == 0) {
    for (; channel < d; channel += 4) {
      float4 a = *reinterpret_cast<const float4*>(z + channel);
      float4 b = __ldg(reinterpret_cast<const float4*>(e + channel));
      total = add_square(add_square(add_square(add_square(total, a.x, b.x), a.y, b.y), a.z, b.z), a.w, b.w);
    }
  }
  for (; channel < d; ++channel) total = add_square(total, z[channel], __ldg(e + channel));
  return total < INFINITY ? total : INFINITY;
}

// The nearest and the next nearest code that a lane has met.
template <class Value>
struct Nearest {
  Value key = INFINITY, next = INFINITY;
  int code = -1;

  __device__ void meet(Value other, int its_code) {
    if (other < key) {
      next = key;
      key = other;
      code = its_code;
    } else if (other < next) {
      next = other;
    }
  }
};

__device__ inline void give(int* rows, int* count, int64_t row) {
  rows[atomicAdd(count, 1)] = static_cast<int>(row);
}

// Writes the row's answer, or puts it among the ties and says so.
__device__ inline bool settle(const Nearest<double>& mine, const Decision& out, int64_t row, int d, int lane) {
  double least = warp_min(mine.key);
  // Each key is off by (d + 3) 2^-53 of itself at most: beyond this limit no code is the nearest.
  double limit = __dadd_rn(least, __dmul_rn(least, 4 * (d + 3) * 0x1p-53));
  uint32_t near = __ballot_sync(kAll, mine.key <= limit && mine.code >= 0);
  uint32_t more = __ballot_sync(kAll, mine.next <= limit && mine.next < INFINITY);
  bool tied = __popc(near) > 1 || more;
  int code = __shfl_sync(kAll, mine.code, near ? __ffs(near) - 1 : 0);
  if (lane == 0) {
    if (tied) {
      give(out.tied_rows, out.tied_count, row);
    } else {
      out.index[row] = near ? code : -1;
      out.distance[row] = static_cast<float>(least);
    }
  }
  return tied;
}

__device__ inline void count_measured(const Decision& out, int codes, int lane) {
  if (out.measured != nullptr && lane == 0) atomicAdd(out.measured, static_cast<unsigned long long>(codes));
}

// What a row without a screened answer gets: nothing where it is not finite, else a full scan.
__device__ inline void leave(const Decision& out, int64_t row, int8_t* state, int8_t kind) {
  if (kind == kNoCode) {
    out.index[row] = -1;
    out.distance[row] = INFINITY;
  } else {
    state[row] = kLeft;
    give(out.left_rows, out.left_count, row);
  }
}

struct Open {
  float bound;
  int code;
};

// Keeps what `upper` does not rule out, in order; the new count.
__device__ inline int prune(Open* open, int count, float upper, int lane) {
  int left = 0;
  for (int start = 0; start < count; start += 32) {
    Open entry = start + lane < count ? open[start + lane] : Open{INFINITY, -1};
    uint32_t stay = __ballot_sync(kAll, start + lane < count && entry.bound <= upper);
    __syncwarp();  // all have read theirs
    if (stay >> lane & 1) open[left + __popc(stay & ((1u << lane) - 1))] = entry;
    left += __popc(stay);
    __syncwarp();
  }
  return left;
}

__device__ inline int int8_product(const uint8_t* row, const uint8_t* code, int chunks) {
  int dot = 0;
#pragma unroll 4
  for (int chunk = 0; chunk < chunks; ++chunk) {
    int4 a = __ldg(reinterpret_cast<const int4*>(row + chunk * kRows * kChunk));
    int4 b = __ldg(reinterpret_cast<const int4*>(code + chunk * kInt8Columns * kChunk));
    dot = __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, dot))));
  }
  return dot;
}

// Every lane's entry of the four lists of a row and split; whether a list ran over.
__device__ inline bool load_kept(const Screen& s, int split, int64_t row, int lane,
                                 Kept (&entries)[kQuarters]) {
  const int64_t at = (static_cast<int64_t>(split) * s.n + row) * kQuarters;
  const int4 counts = *reinterpret_cast<const int4*>(s.kept_count + at);
  const int kept[kQuarters] = {counts.x, counts.y, counts.z, counts.w};
  bool lost = false;
#pragma unroll
  for (int i = 0; i < kQuarters; ++i) {
    lost = lost || kept[i] > s.capacity;
    entries[i] = lane < min(kept[i], s.capacity) ? s.kept[(at + i) * s.capacity + lane]
                                                 : Kept{INFINITY, 0};
    // A group none of whose codes is finite cannot win.
    if (!(entries[i].bound < INFINITY)) entries[i].bound = NAN;
  }
  return lost;
}

__global__ __launch_bounds__(kWarps * 32) void decide_int8_kernel(
    const Screen s, int splits, const float* half_norms, const int64_t* order, const float* z,
    const float* codes, int d, int8_t* state, int* candidates, const Decision out) {
  __shared__ Open all_open[kWarps][kOpen];
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= s.n) return;
  Open* open = all_open[threadIdx.x / 32];
  const int8_t kind = state[row];
  if (kind != kScreened) {
    if (lane == 0) leave(out, row, state, kind);
    return;
  }
  float upper = lane < splits ? s.upper[static_cast<int64_t>(lane) * s.n + row] : INFINITY;
  upper = warp_min(upper);
  const float4 row_terms = s.row_terms[row];
  const uint8_t* mine = s.rows + row / kRows * s.chunks * kRows * kChunk + row % kRows * kChunk;
  int count = 0;
  bool lost = false;
  for (int split = 0; split < splits && !lost; ++split) {
    Kept entries[kQuarters];
    lost = load_kept(s, split, row, lane, entries);
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const Kept entry = entries[quarter];
      uint32_t left = lost ? 0 : __ballot_sync(kAll, entry.bound <= upper);
      while (left) {
        const int from = __ffs(left) - 1;
        left &= left - 1;
        const int group = __shfl_sync(kAll, entry.group, from);
        if (__shfl_sync(kAll, entry.bound, from) > upper) continue;
        const int64_t tile = group / kQuarters;
        const int within = group % kQuarters * kGroup + lane;
        const int dot = int8_product(
            mine, s.codes + (tile * s.chunks * kInt8Columns + place_of(within, kInt8Columns)) * kChunk,
            s.chunks);
        const float4 first = s.group_terms[group * 2], second = s.group_terms[group * 2 + 1];
        const float delta = fmaf(row_terms.y, first.w, fmaf(row_terms.z, second.x, second.y));
        const float score = half_norms[tile * kInt8Columns + within] -
                            row_terms.x * first.z * static_cast<float>(dot);
        upper = fminf(upper, warp_min(score + delta));
        if (count > kOpen - 32) count = prune(open, count, upper, lane);
        // Not a code that scores infinity, as those do that fill the last tile.
        uint32_t stay = __ballot_sync(kAll, score - delta <= upper && score < INFINITY);
        if (count + __popc(stay) > kOpen) {
          lost = true;
          break;
        }
        if (stay >> lane & 1) {
          open[count + __popc(stay & ((1u << lane) - 1))] = {
              score - delta, static_cast<int>(order[tile * kInt8Columns + within])};
        }
        count += __popc(stay);
        __syncwarp();
      }
    }
  }
  count = prune(open, count, upper, lane);
  if (lost || count > kCandidates) {
    if (lane == 0) leave(out, row, state, kScreened);
    return;
  }
  Nearest<double> nearest;
  for (int i = lane; i < count; i += 32) {
    const int64_t code = open[i].code;
    nearest.meet(measure<double>(z + row * d, codes + code * d, d), open[i].code);
  }
  count_measured(out, count, lane);
  if (settle(nearest, out, row, d, lane)) {
    for (int i = lane; i < kCandidates; i += 32) {
      candidates[row * kCandidates + i] = i < count ? open[i].code : -1;
    }
  }
}

// Shows every lane its share of the codes in the groups that `upper` does not rule out, all lanes as
// many: beyond the last code, that one again, and false. Returns how many codes there are; -1, with
// some not shown, where a list ran over.
template <class Meet>
__device__ inline int meet_kept(const Screen& s, int splits, int64_t row, float upper, int k,
                                int lane, Meet meet) {
  int met = 0;
  for (int split = 0; split < splits; ++split) {
    Kept entries[kQuarters];
    if (load_kept(s, split, row, lane, entries)) return -1;
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      uint32_t left = __ballot_sync(kAll, entries[quarter].bound <= upper);
      while (left) {
        const int first = __shfl_sync(kAll, entries[quarter].group, __ffs(left) - 1) * kHalfGroup;
        left &= left - 1;
        met += min(kHalfGroup, k - first);
        for (int code = first + lane; code < first + kHalfGroup; code += 32) {
          meet(min(code, k - 1), code < k);
        }
      }
    }
  }
  return met;
}

__global__ __launch_bounds__(kWarps * 32) void decide_half_kernel(
    const Screen s, int splits, const float* z, const float* codes, int k, int d, int8_t* state,
    const Decision out) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= s.n) return;
  const int8_t kind = state[row];
  float upper = lane < splits ? s.upper[static_cast<int64_t>(lane) * s.n + row] : INFINITY;
  if (kind != kScreened) {
    if (lane == 0) leave(out, row, state, kind);
    return;
  }
  upper = warp_min(upper);
  auto meet = [&]<class Value>(Nearest<Value>& nearest, int code, bool inside) {
    Value key = measure<Value>(z + row * d, codes + static_cast<int64_t>(code) * d, d);
    nearest.meet(inside ? key : INFINITY, code);
  };
  Nearest<float> seen;
  if (meet_kept(s, splits, row, upper, k, lane,
                [&](int code, bool inside) { meet(seen, code, inside); }) < 0) {
    if (lane == 0) leave(out, row, state, kScreened);
    return;
  }
  // What is measured as a difference does not cancel: each key is off by (d + 3) 2^-24 of itself,
  // but for squares that are subnormal. An infinite limit leaves several codes to every lane.
  const float least = warp_min(seen.key);
  const float limit = least + least * (4 * (d + 3) * 0x1p-24f);
  const uint32_t several = __ballot_sync(kAll, seen.next <= limit);
  Nearest<double> nearest;
  int measured;
  if (least >= kSmallest && !several) {
    if (seen.key <= limit) meet(nearest, seen.code, true);
    measured = __popc(__ballot_sync(kAll, seen.key <= limit));
  } else {
    measured = meet_kept(s, splits, row, upper, k, lane,
                         [&](int code, bool inside) { meet(nearest, code, inside); });
  }
  count_measured(out, measured, lane);
  settle(nearest, out, row, d, lane);
}

}  // namespace

int decide_int8(const Screen& s, int splits, const float* half_norms, const int64_t* order,
                const float* z, const float* codes, int d, int8_t* state, int* candidates,
                const Decision& out, cudaStream_t stream) {
  decide_int8_kernel<<<(s.n + kWarps - 1) / kWarps, kWarps * 32, 0, stream>>>(
      s, splits, half_norms, order, z, codes, d, state, candidates, out);
  return cudaGetLastError();
}

int decide_half(const Screen& s, int splits, const float* z, const float* codes, int k, int d,
                int8_t* state, const Decision& out, cudaStream_t stream) {
  decide_half_kernel<<<(s.n + kWarps - 1) / kWarps, kWarps * 32, 0, stream>>>(s, splits, z, codes, k,
                                                                              d, state, out);
  return cudaGetLastError();
}

}  // namespace vqkern::hopper
