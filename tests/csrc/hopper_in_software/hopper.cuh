// The functions of csrc/cuda/hopper.cuh in software.
//
// Copies and products are asynchronous on a GPU: here each of them happens either at once or when it
// is waited for, at random, so that neither what is read too early nor what is overwritten too early
// goes unseen.
#pragma once

#include <deque>

#include "cuda_fp16.h"

namespace vqkern::hopper {

struct Barrier {
  uint16_t arrivals, missing;
  uint32_t phase : 1, bytes : 31;
};
static_assert(sizeof(Barrier) == sizeof(uint64_t));

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
  Barrier* barrier;
};

inline std::deque<Copy> copies;

inline Barrier* as_barrier(uint64_t* barrier) { return reinterpret_cast<Barrier*>(barrier); }

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  *as_barrier(barrier) = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0};
}

inline void barrier_fence() {}

inline void end_phase(Barrier* barrier) {
  if (barrier->missing > 0 || barrier->bytes > 0) return;
  barrier->missing = barrier->arrivals;
  barrier->phase ^= 1;
  ++in_software::events;
}

inline void barrier_arrive(uint64_t* barrier) {
  if (as_barrier(barrier)->missing == 0) in_software::fail("more arrivals than a barrier waits for");
  --as_barrier(barrier)->missing;
  end_phase(as_barrier(barrier));
}

inline void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  as_barrier(barrier)->bytes += bytes;
  barrier_arrive(barrier);
}

inline void land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  copy.barrier->bytes -= copy.bytes;
  end_phase(copy.barrier);
}

inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16) {
    in_software::fail("a bulk copy is not aligned to 16 bytes");
  }
  Copy copy = {to, from, bytes, as_barrier(barrier)};
  if (in_software::coin()) {
    land(copy);
  } else {
    copies.push_back(copy);
    ++in_software::events;
  }
}

inline void barrier_wait(uint64_t* barrier, uint32_t phase) {
  Barrier* mine = as_barrier(barrier);
  while (mine->phase == phase) {
    for (size_t i = 0; i < copies.size(); ++i) {
      if (copies[i].barrier != mine) continue;
      land(copies[i]);
      copies.erase(copies.begin() + i--);
    }
    if (mine->phase == phase) in_software::yield();
  }
}

// Start in shared memory and bytes from chunk to chunk, in units of 16, as the hardware has them.
inline uint64_t operand(const void* start, uint32_t chunk_bytes) {
  const auto offset = static_cast<const uint8_t*>(start) - in_software::shared_memory;
  return static_cast<uint64_t>(offset) >> 4 | static_cast<uint64_t>(chunk_bytes >> 4) << 16;
}

inline const uint8_t* place(uint64_t operand, int row, int chunk) {
  return in_software::shared_memory + (operand & 0x3FFF) * 16 + (operand >> 16 & 0x3FFF) * 16 * chunk + row * 16;
}

template <int kCount>
void take_registers() {}

template <int kCount>
void give_registers() {}

struct Product {
  void (*multiply)(uint32_t* d, uint64_t a, uint64_t b, bool add, int thread);
  uint32_t* d;
  uint64_t a, b;
  bool add;
};

// A thread's products: the group that is being made, and those under way.
struct Products {
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
};

inline std::vector<Products> all_products(1024);

inline Products& mine() { return all_products[in_software::current]; }

inline void finish(size_t pending) {
  auto& groups = mine().groups;
  for (; groups.size() > pending; groups.pop_front()) {
    for (const Product& p : groups.front()) p.multiply(p.d, p.a, p.b, p.add, in_software::current % 128);
  }
}

inline void leave_nothing() {
  bool left = !copies.empty();
  copies.clear();
  for (const Products& products : all_products) left |= !products.groups.empty();
  all_products = std::vector<Products>(1024);
  if (left && in_software::failure.empty()) in_software::failure = "a copy or a product that nobody waits for";
}

inline const bool kWatched = (in_software::at_end_of_block.push_back(leave_nothing), true);

// The lanes of a warp make and await products together.
inline void product_begin() { in_software::gather("product_begin", 0xffffffff, 0); }

inline void product_commit() {
  in_software::gather("product_commit", 0xffffffff, 0);
  mine().groups.push_back(std::move(mine().open));
  mine().open.clear();
  if (in_software::coin()) finish(0);
}

template <int kPending, int kCount>
void product_wait(uint32_t (&)[kCount]) {
  finish(kPending);
  in_software::gather("product_wait", 0xffffffff, 0);
}

// Of a product of 64 rows a thread holds rows 16 (thread / 32) + thread % 32 / 4 and the eighth after
// it, and of every eight columns two.
inline void multiply_int8(uint32_t* d, uint64_t a, uint64_t b, bool add, int thread) {
  for (int i = 0; i < 64; ++i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    int sum = add ? static_cast<int>(d[i]) : 0;
    for (int chunk = 0; chunk < 2; ++chunk) {
      const auto* left = reinterpret_cast<const int8_t*>(place(a, row, chunk));
      const auto* right = reinterpret_cast<const int8_t*>(place(b, column, chunk));
      for (int c = 0; c < 16; ++c) sum += left[c] * right[c];
    }
    d[i] = sum;
  }
}

// Tensor cores may cut off where others would round: here they do.
inline __half cut(float x) {
  __half rounded = static_cast<__half>(x);
  if (std::fabs(static_cast<float>(rounded)) <= std::fabs(x)) return rounded;
  return in_software::back<__half>(in_software::bits<uint16_t>(rounded) - 1);
}

inline void multiply_half(uint32_t* d, uint64_t a, uint64_t b, bool add, int thread) {
  for (int i = 0; i < 64; ++i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    __half& result = reinterpret_cast<__half*>(d)[i];
    float sum = add ? static_cast<float>(result) : 0.0f;
    for (int chunk = 0; chunk < 2; ++chunk) {
      const auto* left = reinterpret_cast<const __half*>(place(a, row, chunk));
      const auto* right = reinterpret_cast<const __half*>(place(b, column, chunk));
      for (int c = 0; c < 8; ++c) sum += static_cast<float>(left[c]) * static_cast<float>(right[c]);
    }
    result = cut(sum);
  }
}

inline void product_int8(uint32_t (&d)[64], uint64_t a, uint64_t b, bool add) {
  mine().open.push_back({multiply_int8, d, a, b, add});
}

inline void product_half(uint32_t (&d)[32], uint64_t a, uint64_t b, bool add) {
  mine().open.push_back({multiply_half, d, a, b, add});
}

inline uint32_t least_of_halves(uint32_t a, uint32_t b) {
  auto x = in_software::back<__half2>(a), y = in_software::back<__half2>(b);
  return in_software::bits<uint32_t>(__half2{std::min(x.x, y.x), std::min(x.y, y.y)});
}

}  // namespace vqkern::hopper
