// CUDA's threads in software, as far as csrc/cuda uses them: every thread of a block is a fiber, and
// fibers take turns at random wherever threads wait for each other.
//
// What cannot happen on a GPU ends the launch with an error that says so: lanes of a warp that meet
// in different functions, threads that wait for what never comes.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

using std::max;
using std::min;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace in_software {

constexpr size_t kStack = 1 << 16, kShared = 227 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done;
};

// Where the lanes of a warp, or the threads of a block, wait until all of them are there.
struct Meeting {
  const char* what = "";
  unsigned here = 0, turn = 0;
  uint64_t left_by[2][32];  // of this meeting and of the last one, which some may still read
};

alignas(128) inline uint8_t shared_memory[kShared];
inline std::vector<Fiber> fibers;
inline std::vector<Meeting> warps;
inline Meeting block;
inline ucontext_t scheduler;
inline unsigned current, living;
inline uint64_t events, seed = 1;  // an event: something that somebody may have waited for
inline std::string failure;

inline bool coin() {
  seed = seed * 6364136223846793005 + 1442695040888963407;
  return seed >> 63;
}

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

[[noreturn]] inline void fail(const std::string& why) {
  failure = why;
  for (;;) yield();
}

inline void meet(Meeting& meeting, const char* what, unsigned all) {
  if (meeting.here > 0 && std::strcmp(meeting.what, what) != 0) {
    fail(std::string("threads meet in ") + what + " and in " + meeting.what);
  }
  meeting.what = what;
  const unsigned turn = meeting.turn;
  if (++meeting.here == all) {
    meeting.here = 0;
    ++meeting.turn;
    ++events;
  }
  while (meeting.turn == turn) yield();
}

inline unsigned lane() { return current % 32; }

// What every lane of the warp brings to a function that they call together.
inline const uint64_t* gather(const char* what, uint32_t mask, uint64_t mine) {
  if (mask != 0xffffffff) fail(std::string(what) + " of some lanes only");
  Meeting& warp = warps[current / 32];
  uint64_t* left_by = warp.left_by[warp.turn % 2];
  left_by[lane()] = mine;
  meet(warp, what, 32);
  return left_by;
}

// What a block may not leave behind, and what is forgotten after a failure.
inline std::vector<void (*)()> at_end_of_block;

template <class Body>
void run_block(unsigned threads, Body& body) {
  std::memset(shared_memory, 0xA5, kShared);
  if (fibers.size() < threads) fibers.resize(threads);
  warps.assign((threads + 31) / 32, {});
  block = {};
  living = threads;
  static Body* work;
  work = &body;
  auto start = [] {
    (*work)();
    fibers[current].done = true;
    --living;
    ++events;
    for (;;) yield();
  };
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) {
    order[i] = i;
    fibers[i].done = false;
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack = {fibers[i].stack.get(), 0, kStack};
    fibers[i].context.uc_link = nullptr;
    makecontext(&fibers[i].context, +start, 0);
  }
  while (living > 0 && failure.empty()) {
    const uint64_t before = events;
    const unsigned shift = (seed >> 33) % threads;
    if (coin()) std::reverse(order.begin(), order.end());
    std::rotate(order.begin(), order.begin() + shift, order.end());
    for (unsigned i : order) {
      if (fibers[i].done || !failure.empty()) continue;
      current = i;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
    // Threads that have ended are not waited for.
    if (living > 0 && block.here == living) {
      block.here = 0;
      ++block.turn;
      ++events;
    }
    if (events == before && failure.empty()) failure = "threads wait for what never comes";
  }
  for (auto check : at_end_of_block) check();
}

// kernel<<<grid, threads, bytes, stream>>>(arguments) is launch(grid, threads, bytes, stream)(kernel, arguments).
inline auto launch(dim3 grid, unsigned threads, size_t bytes, void*) {
  return [=](auto kernel, auto... arguments) {
    if (bytes > kShared) failure = "more shared memory than there is";
    gridDim = grid;
    blockDim = dim3(threads);
    auto body = [&] { kernel(arguments...); };
    for (unsigned y = 0; y < grid.y && failure.empty(); ++y) {
      for (unsigned x = 0; x < grid.x && failure.empty(); ++x) {
        blockIdx = dim3(x, y);
        run_block(threads, body);
      }
    }
  };
}

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(From) <= sizeof(To));
  To to{};
  std::memcpy(&to, &from, sizeof(From));
  return to;
}

template <class Value>
Value back(uint64_t from) {
  Value value;
  std::memcpy(&value, &from, sizeof(Value));
  return value;
}

}  // namespace in_software

inline void __syncthreads() { in_software::meet(in_software::block, "__syncthreads", ~0u); }
inline void __syncwarp() { in_software::gather("__syncwarp", 0xffffffff, 0); }

template <class Value>
Value __shfl_sync(uint32_t mask, Value value, int from) {
  const uint64_t* all = in_software::gather("__shfl_sync", mask, in_software::bits<uint64_t>(value));
  return in_software::back<Value>(all[from % 32]);
}

template <class Value>
Value __shfl_xor_sync(uint32_t mask, Value value, int other) {
  const uint64_t* all = in_software::gather("__shfl_xor_sync", mask, in_software::bits<uint64_t>(value));
  return in_software::back<Value>(all[in_software::lane() ^ other]);
}

inline uint32_t __ballot_sync(uint32_t mask, bool mine) {
  const uint64_t* all = in_software::gather("__ballot_sync", mask, mine);
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= static_cast<uint32_t>(all[i]) << i;
  return result;
}

inline bool __any_sync(uint32_t mask, bool mine) { return __ballot_sync(mask, mine) != 0; }
inline bool __all_sync(uint32_t mask, bool mine) { return __ballot_sync(mask, mine) == 0xffffffff; }

template <class Value>
Value atomicAdd(Value* to, Value value) {
  Value before = *to;
  *to += value;
  return before;
}

template <class Value>
Value __ldg(const Value* from) { return *from; }

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __double2int_rn(double x) { return static_cast<int>(std::nearbyint(x)); }
inline double __longlong_as_double(long long x) { return in_software::back<double>(x); }
inline long long __double_as_longlong(double x) { return in_software::bits<long long>(x); }

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  }
  return sum;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorUnknown };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = in_software::kShared, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() {
  return in_software::failure.empty() ? cudaSuccess : cudaErrorUnknown;
}
// The error is over when it has been read.
inline const char* cudaGetErrorString(cudaError_t error) {
  static std::string text;
  text = error == cudaErrorUnknown ? in_software::failure : "error " + std::to_string(error);
  in_software::failure.clear();
  return text.c_str();
}
