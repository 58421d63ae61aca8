// Uninitialised memory for floats, aligned to a cache line; large ones in large pages where there are such.
#pragma once

#include <cstddef>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace vqkern {

struct Buffer {
    explicit Buffer(size_t floats) {
        const size_t bytes = (floats + 16) * sizeof(float);
        constexpr size_t kLargePage = 2 << 20;
        align = bytes < 2 * kLargePage ? 64 : kLargePage;
        data = static_cast<float*>(::operator new[](bytes, std::align_val_t(align)));
#ifdef __linux__
        // A wish; where it is not granted, the memory is as good, and slower to come by.
        if (align == kLargePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    }
    ~Buffer() { ::operator delete[](data, std::align_val_t(align)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data;
    size_t align;
};

}  // namespace vqkern
