// Which kernels this CPU can run; decided at run time, so that one binary serves all.
#pragma once

#include "kernel_sums.h"
#include "screen.h"

namespace vqkern {

struct CpuKernels {
    const char* name;
    const ScreenKernels* screen;
    const KernelSumKernels* kernel_sums;
};

// The kernels called `name`, or the best of this CPU for ""; nullptr if it cannot run them.
const CpuKernels* find_kernels(const char* name);

}  // namespace vqkern
