// The float32 multiply-add rate of this CPU, as a yardstick for the kernels timed in the same run.
#pragma once

#include <cstdint>

namespace vqkern {

struct FmaLoop {
    int64_t flops;                     // of one round
    float (*run)(int64_t rounds);      // returns a value that depends on all of it
};

// GFLOP/s of `threads` threads together, over about `seconds`.
double fma_peak(const FmaLoop& loop, int threads, double seconds);

extern const FmaLoop kFmaLoopPortable;
#ifdef VQKERN_X86
extern const FmaLoop kFmaLoopAvx2;
extern const FmaLoop kFmaLoopAvx512;
#endif

}  // namespace vqkern
