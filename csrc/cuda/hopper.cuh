// The Hopper instructions that the screens are built from, one function each.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace vqkern::hopper {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A barrier in shared memory whose phase ends when `arrivals` threads have arrived and the bytes
// that were announced have landed.
__device__ inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ inline void barrier_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ inline void barrier_wait(uint64_t* barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n"
      ::"r"(shared_address(barrier)), "r"(phase) : "memory");
}

// Copies `bytes` (a multiple of 16) from global to shared memory and counts them on the barrier.
__device__ inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

// An operand in shared memory as chunks of 16 bytes of the inner dimension, each chunk all rows one
// after the other: eight rows are 128 bytes, the next eight follow, the next chunk is `chunk_bytes`
// further on. No swizzle.
__device__ inline uint64_t operand(const void* start, uint32_t chunk_bytes) {
  return static_cast<uint64_t>((shared_address(start) & 0x3FFFF) >> 4) |
         static_cast<uint64_t>((chunk_bytes & 0x3FFFF) >> 4) << 16 |
         static_cast<uint64_t>(128 >> 4) << 32;
}

// Registers of the calling warpgroup from here on; what one gives up another may take.
template <int kCount>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <int kCount>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

__device__ inline void product_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Products are asynchronous and end in the order of their groups.
__device__ inline void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending groups are under way; `d` may be read from here on.
template <int kPending, int kCount>
__device__ inline void product_wait(uint32_t (&d)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define VQKERN_REGISTERS_32                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "    \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define VQKERN_REGISTERS_64                                                                       \
  VQKERN_REGISTERS_32                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "  \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define VQKERN_FOUR(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define VQKERN_SIXTEEN(d, i) \
  VQKERN_FOUR(d, i), VQKERN_FOUR(d, i + 4), VQKERN_FOUR(d, i + 8), VQKERN_FOUR(d, i + 12)

// d (+)= a b for 64 rows, 128 columns and 32 bytes of int8: exact int32 sums.
__device__ inline void product_int8(uint32_t (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" VQKERN_REGISTERS_64 "}, %64, %65, add;\n}\n"
      : VQKERN_SIXTEEN(d, 0), VQKERN_SIXTEEN(d, 16), VQKERN_SIXTEEN(d, 32), VQKERN_SIXTEEN(d, 48)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// d (+)= a b for 64 rows, 128 columns and 16 halves, sums rounded to half; two columns a register.
__device__ inline void product_half(uint32_t (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f16.f16.f16 {" VQKERN_REGISTERS_32
      "}, %32, %33, add, 1, 1, 0, 0;\n}\n"
      : VQKERN_SIXTEEN(d, 0), VQKERN_SIXTEEN(d, 16)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

__device__ inline uint32_t least_of_halves(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

}  // namespace vqkern::hopper
