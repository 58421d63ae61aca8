#include "cpu.h"

#include <cstring>

namespace vqkern {
namespace {

bool always() { return true; }

#ifdef VQKERN_X86
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

struct Entry {
    bool (*runs)();
    CpuKernels kernels;
};

const Entry kEntries[] = {
#ifdef VQKERN_X86
    {has_vnni, {"AVX-512 VNNI", {&kScreenAvx512Vnni, &kScreenAvx512}, &kKernelSumsAvx512, &kFmaLoopAvx512}},
    {has_avx512, {"AVX-512", {&kScreenAvx512}, &kKernelSumsAvx512, &kFmaLoopAvx512}},
    {has_avx2, {"AVX2", {&kScreenAvx2}, &kKernelSumsAvx2, &kFmaLoopAvx2}},
#endif
    {always, {"portable", {&kScreenPortable}, &kKernelSumsPortable, &kFmaLoopPortable}},
};

}  // namespace

std::vector<const char*> kernel_names() {
    std::vector<const char*> names;
    for (const Entry& entry : kEntries) {
        if (find_kernels(entry.kernels.name) != nullptr) names.push_back(entry.kernels.name);
    }
    return names;
}

const CpuKernels* find_kernels(const char* name) {
#ifdef VQKERN_X86
    __builtin_cpu_init();
#endif
    for (const Entry& entry : kEntries) {
        if (name[0] != '\0' && std::strcmp(name, entry.kernels.name) != 0) continue;
        if (entry.runs()) return &entry.kernels;
    }
    return nullptr;
}

}  // namespace vqkern
