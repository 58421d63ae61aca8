#include "cpu.h"

#include <cstring>

#ifdef VQKERN_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

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

// The tiles' 8 KiB of state must be asked for; the kernel then grants it to all threads.
bool has_amx() {
#ifdef __linux__
    static const bool granted = [] {
        unsigned a, b, c, d;
        if (!has_vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
        const unsigned tile_and_int8 = 1u << 24 | 1u << 25;
        if ((d & tile_and_int8) != tile_and_int8) return false;
        constexpr long kRequestPermission = 0x1023, kTileData = 18;
        return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return granted;
#else
    return false;
#endif
}
#endif

struct Entry {
    bool (*runs)();
    CpuKernels kernels;
};

const Entry kEntries[] = {
#ifdef VQKERN_X86
    {has_amx,
     {"AMX",
      {{&kScreenAmx, &kScreenAvx512VnniInt8, &kScreenAvx512Vnni, &kScreenAvx512}, &kCellsAvx512},
      &kKernelSumsAvx512,
      &kMomentsAvx512,
      &kFmaLoopAvx512}},
    {has_vnni,
     {"AVX-512 VNNI",
      {{&kScreenAvx512VnniInt8, &kScreenAvx512Vnni, &kScreenAvx512}, &kCellsAvx512},
      &kKernelSumsAvx512,
      &kMomentsAvx512,
      &kFmaLoopAvx512}},
    {has_vnni,
     {"AVX-512 VNNI int16",
      {{&kScreenAvx512Vnni, &kScreenAvx512}, &kCellsAvx512},
      &kKernelSumsAvx512,
      &kMomentsAvx512,
      &kFmaLoopAvx512}},
    {has_avx512,
     {"AVX-512",
      {{&kScreenAvx512}, &kCellsAvx512},
      &kKernelSumsAvx512,
      &kMomentsAvx512,
      &kFmaLoopAvx512}},
    {has_avx2,
     {"AVX2",
      {{&kScreenAvx2}, &kCellsAvx2},
      &kKernelSumsAvx2,
      &kMomentsAvx2,
      &kFmaLoopAvx2}},
#endif
    {always,
     {"portable",
      {{&kScreenPortable}, &kCellsPortable},
      &kKernelSumsPortable,
      &kMomentsPortable,
      &kFmaLoopPortable}},
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
