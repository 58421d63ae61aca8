#include "cpu.h"

#include <cstring>
#include <utility>

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
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

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

CpuKernels portable(const char* name) {
    return {name,
            {{&kScreenPortable}, &kCellsPortable, nullptr, kSquaredDistancePortable},
            &kKernelSumsPortable,
            &kMomentsPortable,
            &kFmaLoopPortable};
}

#ifdef VQKERN_X86
CpuKernels avx2(const char* name) {
    return {name,
            {{&kScreenAvx2}, &kCellsAvx2, nullptr, kSquaredDistanceAvx2},
            &kKernelSumsAvx2,
            &kMomentsAvx2,
            &kFmaLoopAvx2};
}

// What the extensions of AVX-512 add are screens.
CpuKernels avx512(const char* name, std::vector<const ScreenKernels*> screens) {
    screens.push_back(&kScreenAvx512);
    return {name,
            {std::move(screens), &kCellsAvx512, nullptr, kSquaredDistanceAvx512},
            &kKernelSumsAvx512,
            &kMomentsAvx512,
            &kFmaLoopAvx512};
}
#endif

// The last screen is in float32.
CpuKernels with_few(CpuKernels kernels) {
    kernels.search.few = kernels.search.screens.back();
    return kernels;
}

// By its name, an instruction set screens few codes as it does many, or else takes them as few whenever it can;
// the best kernels of a CPU do what is faster.
struct Entry {
    bool (*runs)();
    CpuKernels kernels;
};

const Entry kEntries[] = {
#ifdef VQKERN_X86
    {has_amx, avx512("AMX", {&kScreenAmx, &kScreenAvx512VnniInt8, &kScreenAvx512Vnni})},
    {has_vnni, avx512("AVX-512 VNNI", {&kScreenAvx512VnniInt8, &kScreenAvx512Vnni})},
    {has_vnni, avx512("AVX-512 VNNI int16", {&kScreenAvx512Vnni})},
    {has_avx512, avx512("AVX-512", {})},
    {has_avx512, with_few(avx512("AVX-512 few codes", {}))},
    {has_avx2, avx2("AVX2")},
    {has_avx2, with_few(avx2("AVX2 few codes"))},
#endif
    {always, portable("portable")},
    {always, with_few(portable("portable few codes"))},
};

CpuKernels best_kernels() {
    for (const Entry& entry : kEntries) {
        if (entry.runs()) return with_few(entry.kernels);
    }
    return {};
}

}  // namespace

std::vector<const char*> kernel_names() {
    std::vector<const char*> names;
    for (const Entry& entry : kEntries) {
        if (entry.kernels.search.few == nullptr && entry.runs()) names.push_back(entry.kernels.name);
    }
    return names;
}

const CpuKernels* find_kernels(const char* name) {
    static const CpuKernels best = best_kernels();
    if (name[0] == '\0') return &best;
    for (const Entry& entry : kEntries) {
        if (std::strcmp(name, entry.kernels.name) == 0 && entry.runs()) return &entry.kernels;
    }
    return nullptr;
}

}  // namespace vqkern
