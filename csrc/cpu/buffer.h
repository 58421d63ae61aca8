// Uninitialised memory for floats, aligned to a cache line.
#pragma once

#include <cstddef>
#include <new>

namespace vqkern {

struct Buffer {
    explicit Buffer(size_t floats)
        : data(static_cast<float*>(::operator new[]((floats + 16) * sizeof(float),
                                                    std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete[](data, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data;
};

}  // namespace vqkern
