// Which kernels this CPU can run; decided at run time, so that one binary serves all.
#pragma once

#include <vector>

#include "fma_peak.h"
#include "kernel_sums.h"
#include "moment_passes.h"
#include "nearest_code.h"

namespace vqkern {

struct CpuKernels {
    const char* name;
    SearchKernels search;
    const KernelSumKernels* kernel_sums;
    const MomentKernels* moments;
    const FmaLoop* fma_loop;
};

// The kernels called `name`, or the best of this CPU for ""; nullptr if it cannot run them.
const CpuKernels* find_kernels(const char* name);

// What this CPU can run, fastest first.
std::vector<const char*> kernel_names();

}  // namespace vqkern
